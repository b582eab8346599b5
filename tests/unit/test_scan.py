"""scan: hits one after the other."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow.compute as pc
import pytest

from lemur_ann import LemurIndex


@pytest.fixture(scope="module")
def index(demo_data):
    how = {"num_candidates": 20, "ef_search": 40, "shortlist": 60}
    return LemurIndex(num_features=128, epochs=0, **how).fit(demo_data.documents, queries=demo_data.training_queries)


def tokens_of(queries, row):
    return np.array(queries["tokens"][row].as_py(), np.float32)


def test_begins_as_a_search_does_and_ends_with_all(index, demo_data):
    for row in range(20):
        query = tokens_of(demo_data.queries, row)
        exact = dict(index.search(query, k=len(index), exact=True))
        found = list(index.scan(query))
        assert [doc_id for doc_id, _ in found[:10]] == index.search(query, k=10).ids.tolist()
        assert len(found) == len(index)
        assert len({doc_id for doc_id, _ in found}) == len(index)
        for doc_id, score in found:
            assert score == pytest.approx(exact[doc_id], rel=1e-5)


def test_it_is_in_exact_order_but_for_what_is_found_late(index, demo_data):
    """A search for k may miss some, and a scan has these later: the first k are no worse than those of a search."""
    found_by_scan = found_by_search = 0
    for row in range(20):
        query = tokens_of(demo_data.queries, row)
        best = set(index.search(query, k=40, exact=True).ids)
        found = {doc_id for doc_id, _ in itertools.islice(index.scan(query), 40)}
        assert len(found) == 40
        found_by_scan += len(best & found)
        found_by_search += len(best.intersection(index.search(query, k=40).ids))
    assert found_by_scan >= found_by_search


def test_reads_no_more_than_it_must(index, demo_data, monkeypatch):
    from lemur_ann.searching import scan as module

    counts = []

    class Counting(module.Rerank):
        def __call__(self, candidates):
            counts.extend(map(len, candidates))
            return super().__call__(candidates)

    monkeypatch.setattr(module, "Rerank", Counting)
    hits = index.scan(tokens_of(demo_data.queries, 0))
    assert counts == []
    next(hits)
    assert counts == [20]
    for _ in itertools.islice(hits, 15):
        pass
    assert sum(counts) <= 60


def test_filters_and_deleted_documents(demo_data):
    index = LemurIndex(num_features=128, epochs=0, num_candidates=20, ef_search=40).fit(
        demo_data.documents, queries=demo_data.training_queries
    )
    query = tokens_of(demo_data.queries, 3)
    ids = index.ids().to_pylist()
    index.delete(ids[::3])
    kept = set(ids) - set(ids[::3])
    assert {doc_id for doc_id, _ in index.scan(query)} == kept
    allowed = sorted(kept)[:200]
    found = [doc_id for doc_id, _ in index.scan(query, filter=allowed)]
    assert sorted(found) == allowed
    best = index.search(query, k=10, exact=True, filter=allowed).ids.tolist()
    assert found[0] == best[0]
    assert len(set(best) & set(found[:20])) >= 8
    assert next(index.scan(query, filter=pc.field("id") == allowed[0]))[0] == allowed[0]
    assert list(index.scan(query, filter=[])) == []


def test_is_of_one_moment(make_matrices):
    documents = make_matrices(30)
    index = LemurIndex().add(documents)
    hits = index.scan(documents[0])
    assert next(hits)[0] == 0
    index.delete(list(range(1, 30)))
    index.add(make_matrices(5), ids=[100, 101, 102, 103, 104])
    assert sorted(doc_id for doc_id, _ in hits) == list(range(1, 30))


def test_an_index_without_a_map_or_documents(make_matrices):
    documents = make_matrices(30)
    index = LemurIndex()
    assert list(index.scan(documents[0])) == []
    index.add(documents)
    found = list(index.scan(documents[0]))
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True)
    assert [doc_id for doc_id, _ in found] == index.search(documents[0], k=30, exact=True).ids.tolist()
    assert len(list(index.scan(np.zeros((3, documents[0].shape[1]), np.float32)))) == 30


def test_bad_arguments_are_refused_at_once(index, demo_data):
    with pytest.raises(ValueError, match=r"one query, a matrix \(num_tokens, dim\), got a batch of 3"):
        index.scan(demo_data.queries[:3])
    with pytest.raises(ValueError, match="dim"):
        index.scan(np.ones((3, 7), np.float32))
    with pytest.raises((ValueError, TypeError)):
        index.scan(tokens_of(demo_data.queries, 0), filter="year > 3")
    with pytest.raises(ValueError, match="num_threads"):
        index.scan(tokens_of(demo_data.queries, 0), num_threads=0)


def test_the_array_of_a_query_may_be_used_again(index, demo_data):
    buffer = tokens_of(demo_data.queries, 0)
    expected = list(itertools.islice(index.scan(buffer.copy()), 50))
    hits = index.scan(buffer)
    buffer[:] = 0
    assert list(itertools.islice(hits, 50)) == expected
