"""Searches among some of the documents."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from lemur_ann import LemurIndex

SIZE = 3000


@pytest.fixture(scope="module")
def matrices():
    """Documents around 30 centres, so that some are near a query and some are far."""
    rng = np.random.default_rng(5)
    centres = rng.normal(size=(30, 16))
    topics = rng.integers(0, 30, SIZE)
    documents = [(centres[t] + 0.7 * rng.normal(size=(rng.integers(2, 9), 16))).astype(np.float32) for t in topics]
    queries = [(centres[i % 30] + 0.7 * rng.normal(size=(4, 16))).astype(np.float32) for i in range(130)]
    return documents, queries, topics


@pytest.fixture(scope="module", params=["hnsw", "exact"])
def index(matrices, request):
    documents, queries, topics = matrices
    plain = LemurIndex().add(documents, ids=[f"doc-{i}" for i in range(SIZE)])
    table = plain.get(plain.ids())
    table = table.append_column("topic", pa.array(topics)).append_column("number", pa.array(np.arange(SIZE)))
    table = table.append_column("name", pa.array([f"n{i % 7}" if i % 3 else None for i in range(SIZE)]))
    index = LemurIndex(num_features=256, epochs=2, rank=15, candidates=request.param, num_candidates=60, ef_search=120)
    index.fit(table, queries=queries[:100])
    return index.delete([f"doc-{i}" for i in range(0, SIZE, 100)]) and index


def brute_force(index, query, k, allowed):
    scores = {doc_id: score for doc_id, score in index.search(query, k=len(index), exact=True) if doc_id in allowed}
    return sorted(scores, key=scores.get, reverse=True)[:k]


def live(numbers):
    return {f"doc-{i}" for i in numbers if i % 100}


FILTERS = {
    "half": (pc.field("number") % 2 == 0) if hasattr(pc.Expression, "__mod__") else pc.field("number") < SIZE // 2,
    "tenth": pc.field("number") < SIZE // 10,
    "hundredth": (pc.field("number") >= 300) & (pc.field("number") < 330),
    "thousandth": pc.field("number").isin([7, 11, 500, 1501]),
    "topic": pc.field("topic") == 3,
    "null": pc.field("name").is_null(),
    "id": pc.field("id") == "doc-77",
    "nothing": pc.field("number") < 0,
    "everything": pc.field("number") >= 0,
}


@pytest.mark.parametrize("name", FILTERS)
def test_k_of_those_that_pass(index, matrices, name):
    allowed = set(index.metadata(index.ids()).filter(FILTERS[name]).column("id").to_pylist())
    found = index.search(matrices[1][100:], k=10, filter=FILTERS[name])
    recalls = []
    for query, hits in zip(matrices[1][100:], found, strict=True):
        assert len(hits) == min(10, len(allowed))
        assert set(hits.ids.tolist()) <= allowed
        best = brute_force(index, query, 10, allowed)
        exact = index.search(query, k=10, filter=FILTERS[name], exact=True)
        assert exact.ids.tolist() == best
        recalls.append(len(set(hits.ids.tolist()) & set(best)) / max(len(best), 1))
    assert not allowed or np.mean(recalls) >= 0.95
    if allowed:
        assert index.evaluate(matrices[1][100:], filter=FILTERS[name]).recall >= 0.95


def test_documents_far_from_the_query(index, matrices):
    """What passes is what a graph search would meet last: far more candidates are looked at than were asked for."""
    found = []
    for query in matrices[1][100:]:
        ranked = index.search(query, k=len(index), exact=True).ids.tolist()
        hits = index.search(query, k=10, filter=set(ranked[-600:]))
        found.append(len(set(hits.ids.tolist()) & set(ranked[-600:-590])) / 10)
    assert np.mean(found) >= 0.9


@pytest.mark.parametrize("form", [set, list, tuple, frozenset, np.array, pa.array, iter])
def test_ids(index, matrices, form):
    wanted = ["doc-3", "doc-4", "doc-100", "nobody"]  # one is deleted
    hits = index.search(matrices[1][0], k=10, filter=form(wanted))
    assert sorted(hits.ids.tolist()) == ["doc-3", "doc-4"]
    assert len(index.search(matrices[1][0], filter=form([]) if form is not np.array else [])) == 0


def test_booleans(index, matrices):
    mask = np.zeros(len(index), bool)
    mask[[0, 5, len(index) - 1]] = True
    ids = np.array(index.ids().to_pylist())
    for form in (
        mask,
        mask.tolist(),
        pa.array(mask),
        pa.chunked_array([mask[:7], mask[7:]]),
        pa.array(mask).take([*range(len(mask))]),
    ):
        hits = index.search(matrices[1][0], k=10, filter=form)
        assert sorted(hits.ids.tolist()) == sorted(ids[mask])
    with pytest.raises(ValueError, match=f"filter has 3 booleans, expected one for each of {len(index)} documents"):
        index.search(matrices[1][0], filter=[True, False, True])


def test_masks_keep_their_meaning_after_changes(make_matrices):
    documents = make_matrices(40)
    index = LemurIndex().add(documents, ids=list(range(40)))
    index.delete([0, 7, 8])
    index.upsert([documents[0]], ids=[20])
    mask = np.array([doc_id == 20 for doc_id in index])
    assert index.search(documents[0], filter=mask).ids.tolist() == [20]


@pytest.mark.parametrize(
    ("filter", "error", "message"),
    [
        (pc.field("year") > 3, ValueError, r"does not fit the columns id \(.*string\), topic"),
        (pc.field("number") > "a", ValueError, "does not fit the columns"),
        ("number > 3", TypeError, "filter must be a pyarrow compute expression .* got str"),
        (7, TypeError, "got int"),
        ([1, 2], TypeError, "ids are integers, index has ids that are strings"),
        ([None], ValueError, "id is null"),
        ([1.5], TypeError, "ids must be strings or integers"),
        (np.ones((2, 2), bool), TypeError, "ids must be|filter must be"),
        ([("year", ">", 2000)], TypeError, r"got list; with .* write filter=\(pc.field\('year'\) > 2000\)$"),
        (
            [[("year", "=", 2000), ("topic", "not in", {"a"})], [("topic", "in", ("b", "c"))]],
            TypeError,
            r"filter=\(\(pc.field\('year'\) == 2000\) & ~pc.field\('topic'\).isin\(\['a'\]\)\) \| "
            r"\(pc.field\('topic'\).isin\(\['b', 'c'\]\)\)$",
        ),
        ([("doc-1", 0.5)], TypeError, "of hits they are hits.ids"),
        ([("year", "like", "x")], TypeError, "got tuple in row 0"),
    ],
)
def test_bad_filters(index, matrices, filter, error, message):
    for call in (index.search, index.evaluate):
        with pytest.raises(error, match=message):
            call(matrices[1][:2], filter=filter)
    with pytest.raises(error, match=message):
        index.delete(filter=filter)
    assert len(index) == SIZE - SIZE // 100


def test_delete_by_filter(matrices, make_matrices):
    table = LemurIndex().add(make_matrices(50), ids=list(range(50)))
    table = table.get(table.ids()).append_column("year", pa.array([2000 + i // 10 for i in range(50)]))
    index = LemurIndex().add(table)
    assert index.delete(filter=pc.field("year") < 2002) == 20
    assert index.ids().to_pylist() == list(range(20, 50))
    assert index.delete(filter=pc.field("year") < 2002) == 0
    assert index.delete(filter={20, 21, 999}) == 2
    for arguments in ({}, {"ids": [30], "filter": {31}}):
        with pytest.raises(TypeError, match="ids or filter="):
            index.delete(**arguments)
    assert len(index) == 28


def test_before_fit_and_without_documents(make_matrices):
    documents = make_matrices(20)
    index = LemurIndex().add(documents, ids=list(range(20)))
    assert index.search(documents[3], k=2, filter=[4, 5]).ids.tolist() in ([4, 5], [5, 4])
    assert len(LemurIndex().search(documents[3], filter=pc.field("id") == 3)) == 0
    assert len(LemurIndex().search(documents[3], filter=[])) == 0


def test_any_expression_fits_no_documents(small_index):
    query = np.ones((2, 16), np.float32)
    assert len(LemurIndex().search(query, filter=pc.field("year") > 2000)) == 0
    index, _, _ = small_index()
    index.delete(list(index))
    assert len(index.search(query, filter=pc.field("year") > 2000)) == 0


def test_a_wider_walk_finds_others_before_those_it_found(make_matrices):
    """Behind a filter a search may widen; in a graph of few links, what it finds then is in another order."""
    documents, queries = make_matrices(4000, low=2, high=8), make_matrices(80, low=2, high=8)
    index = LemurIndex(num_features=64, epochs=0, rank=15, num_candidates=20, ef_search=None, M=2, ef_construction=4)
    index.fit(documents, queries=queries[30:], num_threads=1, progress=False)
    mask = np.arange(4000) % 10 < 9
    found = index.search(queries[:30], k=5, filter=mask)
    exact = index.search(queries[:30], k=5, filter=mask, exact=True)
    assert all(len(set(hits.ids.tolist())) == 5 for hits in found), "no document twice"
    assert np.mean([np.isin(hits.ids, own.ids).mean() for hits, own in zip(exact, found, strict=True)]) > 0.9
