"""The search on a device, on CPU tensors: the same hits as the index that scans."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lemur_ann.searching.device
from lemur_ann import Hits
from lemur_ann.documents.inputs import read_queries
from lemur_ann.searching.device import DeviceSearch


def on_cpu_tensors(index, queries, k, num_candidates, excluded=None):
    learned = index.snapshot.learned
    live = np.setdiff1d(np.arange(len(index.snapshot.store)), index.snapshot.deleted.rows)
    search = DeviceSearch(learned.encoder, learned.candidates.take(live), index.snapshot.store, live, "cpu")
    found = search.search(read_queries(queries), k, num_candidates, excluded)
    return [Hits(index.snapshot.ids.column.take(rows), scores) for rows, scores in found]


@pytest.mark.parametrize("step", [1, 2**26])
def test_same_hits(small_index, make_matrices, monkeypatch, step):
    monkeypatch.setattr(lemur_ann.searching.device, "SCORES_PER_STEP", step)
    monkeypatch.setattr(lemur_ann.searching.device, "TOKENS_PER_COPY", max(step // 2**20, 1))
    index, _, queries = small_index(candidates="exact")
    index.delete(["doc-3", "doc-77"])
    index.add(make_matrices(9, dim=16), ids=[f"new-{i}" for i in range(9)])
    for k, count in ((5, 60), (30, 30)):
        expected = index.search(queries, k=k, num_candidates=count)
        for a, b in zip(on_cpu_tensors(index, queries, k, count), expected, strict=True):
            np.testing.assert_array_equal(a.ids, b.ids)
            np.testing.assert_allclose(a.scores, b.scores, rtol=1e-5)


def test_filters(small_index, make_matrices, rng):
    index, _, queries = small_index(candidates="exact")
    index.delete(["doc-3", "doc-77"])
    for share, count in ((0.5, 40), (0.95, 40)):
        excluded = index.snapshot.deleted.with_rows(np.flatnonzero(rng.random(200) < share))
        allowed = index.snapshot.ids.column.take(excluded.others).tolist()
        hits = on_cpu_tensors(index, queries, 5, count, excluded)
        for a, query in zip(hits, queries, strict=True):
            assert set(a.ids.tolist()) <= set(allowed)
            assert len(a) == min(5, len(allowed))
            assert a.scores[0] <= index.search(query, k=1, filter=allowed, exact=True).scores[0] * (1 + 1e-5)


def test_more_than_there_are(small_index):
    index, _, queries = small_index(candidates="exact")
    hits = on_cpu_tensors(index, queries[:2], 500, 1000)
    assert [len(h) for h in hits] == [200, 200]
    exact = index.search(queries[0], k=500, exact=True)
    np.testing.assert_array_equal(hits[0].ids, exact.ids)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_same_hits_on_cuda(small_index):
    index, _documents, queries = small_index(candidates="exact")
    expected = index.search(queries, k=5)
    changes = index._changes
    changes.options_before = changes.options_before.__class__(**{**changes.options_before.__dict__, "device": "cuda"})
    index.fit(queries=queries)
    again = index.search(queries, k=5)
    assert np.mean([len(set(a.ids) & set(b.ids)) for a, b in zip(again, expected, strict=True)]) > 4
