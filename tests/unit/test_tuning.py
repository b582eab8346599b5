"""tune, and searches for a wanted recall."""

from __future__ import annotations

import numpy as np
import pytest

from lemur_ann import LemurIndex, NotFitted
from lemur_ann.options import Options
from lemur_ann.searching.settings import Settings


@pytest.fixture(scope="module")
def tuned_demo(demo_data, tmp_path_factory):
    from lemur_ann.demo import fit_demo_index

    index = fit_demo_index(demo_data, epochs=1)
    return index, index.tune(demo_data.queries, target_recall=0.9, k=10, num_threads=1)


def test_finds_what_was_asked_for(tuned_demo, demo_data):
    index, tuned = tuned_demo
    low, high = tuned.recall_interval
    assert (tuned.target_recall, tuned.k, tuned.num_queries) == (0.9, 10, len(demo_data.queries) // 2)
    assert low <= tuned.recall <= high
    assert high > 0.9, "chosen at .9 on queries like these"
    assert tuned.num_candidates < len(index), "not by scoring everything"
    look = f", shortlist {tuned.shortlist}" if tuned.shortlist else ""
    assert str(tuned).startswith(f"num_candidates {tuned.num_candidates}, ef_search {tuned.ef_search}{look}: recall@10 0.")
    result = index.evaluate(demo_data.queries, target_recall=0.9)
    assert (result.num_candidates, result.ef_search) == (tuned.num_candidates, tuned.ef_search)
    assert result.recall > 0.85


def test_search_uses_the_least_that_is_enough(tuned_demo, demo_data):
    index, tuned = tuned_demo
    query = demo_data.queries.slice(0, 1)
    how = {"num_candidates": tuned.num_candidates, "ef_search": tuned.ef_search, "shortlist": tuned.shortlist}
    explicit = index.search(query, **how)[0]
    for target, k in ((0.9, 10), (0.5, 10), (0.8, 3)):
        hits = index.search(query, k=k, target_recall=target)[0]
        np.testing.assert_array_equal(hits.ids, explicit.ids[:k])
    for target, k in ((0.95, 10), (0.9, 11)):
        with pytest.raises(ValueError, match=f"not tuned for target_recall {target} at k {k}, but for: 0.9 at k 10"):
            index.search(query, k=k, target_recall=target)


def test_is_kept_with_the_map(tuned_demo, demo_data, tmp_path):
    index, tuned = tuned_demo
    index.save(tmp_path / "index")
    loaded = LemurIndex.load(tmp_path / "index")
    assert loaded.tuned == index.tuned == (tuned,)
    loaded.tune(demo_data.queries[:20], 1.0, k=2, num_threads=1)
    again = loaded.tune(demo_data.queries[:20], 1.0, k=2, num_threads=1)
    assert [(t.target_recall, t.k) for t in loaded.tuned] == [(0.9, 10), (1.0, 2)]
    assert loaded.tuned[-1] == again
    hits = loaded.search(demo_data.queries[:5], k=2, target_recall=1.0)
    exact = loaded.search(demo_data.queries[:5], k=2, exact=True)
    found = [len(set(h.ids) & set(e.ids)) for h, e in zip(hits, exact, strict=True)]
    assert sum(found) >= 8


def test_a_new_map_forgets_it(small_index):
    index, _, queries = small_index()
    index.tune(queries, 0.5, k=3)
    assert index.tuned
    index.refit(queries=queries)
    assert index.tuned == ()


def test_deleted_documents_and_small_indexes(small_index):
    index, documents, queries = small_index()
    index.delete([f"doc-{i}" for i in range(0, 190)])
    tuned = index.tune(queries, 1.0, k=20)
    assert tuned.recall == 1.0
    assert tuned.num_candidates <= 20
    assert len(index.search(documents[0], k=20, target_recall=1.0)) == 10
    index.delete([f"doc-{i}" for i in range(190, 200)])
    with pytest.raises(ValueError, match="at least one document"):
        index.tune(queries)


def test_bad_arguments(small_index):
    index, _, queries = small_index()
    with pytest.raises(ValueError, match="at least two queries, to choose on and to measure on, got 1"):
        index.tune(queries[0])
    with pytest.raises(ValueError, match="target_recall must be above 0 and at most 1, got 1.5"):
        index.tune(queries, 1.5)
    with pytest.raises(TypeError, match="target_recall must be a number, got str"):
        index.tune(queries, "high")
    with pytest.raises(ValueError, match="not tuned for target_recall 0.9 at k 10, but for: nothing yet"):
        index.search(queries[0], target_recall=0.9)
    with pytest.raises(TypeError, match="takes the place of"):
        index.search(queries[0], target_recall=0.9, ef_search=10)
    with pytest.raises(NotFitted):
        LemurIndex().tune(queries)


def test_widths_follow_the_number_of_documents():
    """At 300,000 documents the widths of 60,000 found .937 of the top 10, these .962."""

    def usual(**how):
        own = Settings.of(Options(), (), 10, **how)
        return own.num_candidates, own.ef_search, own.shortlist

    assert usual(looks=True) == usual(looks=True, num_documents=60_000) == (120, 300, 1000)
    assert usual(looks=True, num_documents=300_000) == (153, 486, 1621)
    assert usual(looks=True, num_documents=300_000, breadth=5) == (764, 972, 3241)
    assert usual(num_documents=300_000) == (405, 486, 0)
    ascending = [usual(looks=True, num_documents=10**power) for power in range(3, 10)]
    assert ascending == sorted(ascending)
    named = Settings.of(Options(num_candidates=50, shortlist=70), (), 10, looks=True, num_documents=10**8)
    assert (named.num_candidates, named.shortlist) == (50, 70)
