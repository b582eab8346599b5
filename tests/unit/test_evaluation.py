"""The recall of evaluate: its interval, and that all of it is of one moment."""

from __future__ import annotations

import numpy as np
import pytest

from lemur_ann import Evaluation, LemurIndex
from lemur_ann.insight import metrics


def test_the_interval_is_that_of_the_same_hits(small_index):
    index, _, queries = small_index()
    result = index.evaluate(queries, k=5, num_candidates=8)
    found = index.search(queries, 5, num_candidates=8)
    exact = index.search(queries, 5, exact=True)
    shared = [len(set(f.ids.tolist()) & set(e.ids.tolist())) for f, e in zip(found, exact, strict=True)]
    recall, low, high = metrics.share_found(shared, [5] * len(queries))
    assert result.recall_interval == (low, high)
    assert result.recall == pytest.approx(recall)
    assert 0 < low < recall < high < 1


def test_the_interval_where_all_is_found(small_index):
    index, _, queries = small_index()
    assert index.evaluate(queries, k=5, num_candidates=200).recall_interval == metrics.share_found([5] * 60, [5] * 60)[1:]
    index.delete(list(index))
    assert index.evaluate(queries, k=5).recall_interval == (1.0, 1.0), "nothing to find"


def test_an_evaluation_made_without_an_interval_says_nothing_of_it():
    made = Evaluation(0.5, 10, 20, 20, 1, 3, 100, 1.0, 1.0, 1.0, 1.0)
    assert made.recall_interval == (0.0, 1.0)


@pytest.mark.parametrize("fitted", [True, False])
def test_documents_added_meanwhile_are_not_counted(small_index, fitted):
    """They are the best for every query: an exact answer of one moment and hits of another would have nothing in common."""
    index, documents, queries = small_index()
    if not fitted:
        index = LemurIndex().add(documents, ids=[f"doc-{i}" for i in range(200)])
    new = [f"new-{i}" for i in range(40)]

    def change(*step):
        if "new-0" not in index:
            index.add([np.concatenate([own, 2 * own]) for own in queries[:40]], ids=new)

    how = {} if not fitted else {"num_candidates": 200}
    result = index.evaluate(queries, k=10, progress=change, **how)
    assert len(index) == 240
    assert (result.recall, result.num_documents) == (1.0, 200)
    assert result.recall_interval == metrics.share_found([10] * len(queries), [10] * len(queries))[1:]
    best = index.search(queries[:40], k=10, exact=True)
    assert all(set(hits.ids.tolist()) & set(new) for hits in best)
