"""The two-pass rerank against exact scores of all candidates, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from lemur_ann import _core


def flat(matrices):
    return np.concatenate(matrices), np.concatenate([[0], np.cumsum([len(m) for m in matrices])])


def coded(*parts):
    """Documents in chunks, with codes."""
    chunks = [flat(part) for part in parts]
    return _core.Documents(chunks, [_core.token_codes(tokens, 2) for tokens, _ in chunks])


def related(make_matrices, rng, count, dim, dtype=np.float32, high=40):
    """Documents whose scores differ by their topic: each mixes its tokens with one direction."""
    matrices = make_matrices(count, dim=dim, low=1, high=high)
    topic = rng.normal(size=dim) / np.sqrt(dim)
    mixed = [m + topic * rng.random() for m in matrices]
    return [(m / np.linalg.norm(m, axis=1, keepdims=True)).astype(dtype) for m in mixed]


def check(queries, documents, candidates, k, num_threads):
    tokens, offsets = flat(queries)
    bounds = np.concatenate([[0], np.cumsum([len(c) for c in candidates])])
    all_candidates = np.concatenate(candidates)
    found, scores, counts = _core.rerank(tokens, offsets, documents, all_candidates, bounds, k, num_threads)
    exact = _core.candidate_scores(tokens, offsets, documents, all_candidates, bounds, num_threads)
    for i, own in enumerate(candidates):
        values = exact[bounds[i] : bounds[i + 1]]
        order = [j for j in np.lexsort((own, -values)) if np.isfinite(values[j])][:k]
        assert counts[i] == len(order)
        np.testing.assert_array_equal(found[i, : counts[i]], own[order])
        np.testing.assert_array_equal(scores[i, : counts[i]], values[order])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("dim", [2, 16, 48, 128, 130])
def test_same_hits_as_exact_scores_of_all(isa, dim, dtype, make_matrices, rng):
    documents = related(make_matrices, rng, 300, dim, dtype)
    store = coded(documents[:100], documents[100:])
    queries = related(make_matrices, rng, 9, dim)
    candidates = [np.sort(rng.choice(300, size, replace=False)) for size in (300, 200, 17, 16, 9, 1, 0, 250, 100)]
    for num_threads in (1, 2, 12):
        check(queries, store, candidates, 10, num_threads)
    check(queries, store, candidates, 1000, 2)
    check(queries[:1], store, candidates[:1], 1, 2)


def test_documents_without_tokens_or_codes(isa, make_matrices, rng):
    documents = related(make_matrices, rng, 60, 16)
    tokens, offsets = flat(documents)
    offsets = np.sort(np.concatenate([offsets, offsets[[5, 7, 60]]]))  # three documents without tokens
    candidates = [np.arange(len(offsets) - 1)]
    queries = related(make_matrices, rng, 1, 16)
    check(queries, _core.Documents([(tokens, offsets)], [_core.token_codes(tokens, 1)]), candidates, 100, 1)
    check(queries, _core.Documents([(tokens, offsets)]), candidates, 100, 1)


def test_equal_scores_keep_the_smaller_index(isa, make_matrices):
    (matrix,) = make_matrices(1, dim=16, low=5)
    documents = coded([matrix] * 40)
    tokens, offsets = flat([matrix])
    found, _, _ = _core.rerank(tokens, offsets, documents, np.arange(39, -1, -1), np.array([0, 40]), 7, 1)
    np.testing.assert_array_equal(found[0], np.arange(7))


def test_far_more_exact_than_codes_alone(isa, make_matrices, rng):
    """Documents so alike that their codes cannot order them: the exact pass must go on until it may stop."""
    (base,) = make_matrices(1, dim=64, low=20, high=20)
    documents = [(base + 1e-4 * rng.normal(size=base.shape)).astype(np.float32) for _ in range(200)]
    check(make_matrices(4, dim=64, low=8), coded(documents), [np.arange(200)] * 4, 5, 2)


def test_codes_that_do_not_fit_are_refused(rng):
    tokens, offsets = rng.normal(size=(10, 8)).astype(np.float32), np.array([0, 10])
    codes = _core.token_codes(tokens, 1)
    with pytest.raises(ValueError, match="codes for each chunk, or for none"):
        _core.Documents([(tokens, offsets), (tokens, offsets)], [codes])
    with pytest.raises(ValueError, match="a row for each token"):
        _core.Documents([(tokens, offsets)], [_core.token_codes(tokens[:9], 1)])
    with pytest.raises(ValueError, match="a row for each token"):
        _core.Documents([(np.ones((10, 65), np.float32), offsets)], [codes])
    documents = _core.Documents([(tokens, offsets)], [codes])
    with pytest.raises(ValueError, match="query has dim 4, documents have dim 8"):
        _core.rerank(np.ones((2, 4), np.float32), np.array([0, 2]), documents, np.array([0]), np.array([0, 1]), 1, 1)
    with pytest.raises(IndexError, match="document index 1 is outside"):
        _core.rerank(tokens, offsets, documents, np.array([1]), np.array([0, 1]), 1, 1)
    with pytest.raises(ValueError, match="candidate_offsets"):
        _core.rerank(tokens, offsets, documents, np.array([0]), np.array([0, 2]), 1, 1)
    with pytest.raises(ValueError, match="k must be at least 1"):
        _core.rerank(tokens, offsets, documents, np.array([0]), np.array([0, 1]), 0, 1)
