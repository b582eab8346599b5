"""Every kernel on every instruction set of this machine against the float64 oracle."""

from __future__ import annotations

import numpy as np
import pytest

from lemur_ann import _core, maxsim, reference

DIMS = [1, 2, 7, 16, 31, 48, 128, 130]
LENGTHS = [1, 2, 3, 5, 6, 11, 12, 13, 25, 96, 97, 200]
QUERY_LENGTHS = [1, 15, 16, 17, 31, 32, 33, 48, 70]


def flat(matrices):
    offsets = np.concatenate([[0], np.cumsum([len(m) for m in matrices])])
    return np.concatenate(matrices), offsets


def tolerance(query, documents):
    """The bound for float32 dot products of dim terms, with room for nothing more."""
    dim = query.shape[1]
    longest = max(np.linalg.norm(d.astype(np.float64), axis=1).max() for d in documents)
    size = np.linalg.norm(query.astype(np.float64), axis=1).max() * longest
    return (dim + 2) * np.finfo(np.float32).eps * size


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("dim", DIMS)
def test_token_maxima(isa, dim, dtype, rng):
    documents = [rng.normal(size=(n, dim)).astype(dtype) for n in LENGTHS]
    for num_x in (1, 16, 33, 70):
        x = rng.normal(size=(num_x, dim)).astype(np.float32)
        got = maxsim.token_maxima(x, *flat(documents), num_threads=2)
        expected = reference.token_maxima(x, documents)
        assert got.shape == (num_x, len(documents))
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance(x, documents))


def int8_maxima(x, documents, num_threads=2, by_document=False):
    return _core.token_maxima(x, _core.Documents([flat(documents)]), num_threads, "int8", by_document)


def int8_tolerance(x, document):
    """The bound of cpp/include/lemur/int8.hpp for each row of x, with room for float32 scales."""
    x, document = np.abs(x).astype(np.float64), np.abs(document).astype(np.float64)
    largest = np.outer(x.max(axis=1), document.max(axis=1))
    bound = np.outer(x.max(axis=1), document.sum(axis=1)) + np.outer(x.sum(axis=1), document.max(axis=1))
    return (1.0001 * (bound / 254 + x.shape[1] * largest / 254**2)).max(axis=1)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("dim", DIMS)
def test_int8_token_maxima(isa, dim, dtype, rng):
    documents = [rng.normal(size=(n, dim)).astype(dtype) for n in LENGTHS]
    for num_x in (1, 16, 33, 70):
        x = rng.normal(size=(num_x, dim)).astype(np.float32)
        got = int8_maxima(x, documents)
        atol = np.stack([int8_tolerance(x, document) for document in documents], axis=1)
        assert got.shape == atol.shape
        assert np.all(np.abs(got - reference.token_maxima(x, documents)) <= atol)


def test_int8_is_close_for_random_tokens(isa, make_matrices):
    """Tokens of length 1, one a document: far less than the bound, which is for the worst case."""
    x, documents = np.concatenate(make_matrices(200, dim=128, high=1)), make_matrices(500, dim=128, high=1)
    errors = np.abs(int8_maxima(x, documents) - reference.token_maxima(x, documents))
    assert np.sqrt(np.mean(errors**2)) < 0.001
    assert errors.max() < 0.006


@pytest.mark.parametrize("dim", [1, 33, 64, 131])
def test_int8_has_the_same_bits_everywhere(isa, dim, make_matrices):
    """On every instruction set, with any number of threads, in both layouts."""
    documents = make_matrices(300, dim=dim, low=0, high=40)  # more tokens than one thread takes at once
    for num_x in (1, 15, 16, 17, 40):
        x = make_matrices(1, dim=dim, low=num_x, high=num_x)[0]
        got = int8_maxima(x, documents, num_threads=1)
        for num_threads in (1, 2, 7):
            np.testing.assert_array_equal(int8_maxima(x, documents, num_threads), got)
            np.testing.assert_array_equal(int8_maxima(x, documents, num_threads, by_document=True), got.T)
        _core.force_isa("scalar")
        np.testing.assert_array_equal(int8_maxima(x, documents), got)
        _core.force_isa(isa)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_token_maxima_by_document_is_the_transpose(isa, precision, make_matrices):
    documents = _core.Documents([flat(make_matrices(9)), flat(make_matrices(4, dtype=np.float16))])
    x = make_matrices(1, low=40, high=40)[0]
    got = _core.token_maxima(x, documents, 2, precision, by_document=True)
    assert got.shape == (13, 40)
    np.testing.assert_array_equal(got.T, _core.token_maxima(x, documents, 2, precision))


def test_int8_edges(isa):
    """Documents without tokens, tokens of zeros, and products that are all negative."""
    tokens = np.array([[-1, -1], [-2, -2], [0, 0]], np.float32)
    x = np.array([[1, 1], [0, 0]], np.float32)
    got = int8_maxima(x, [tokens[:0], tokens[:2], tokens[:0], tokens[2:], tokens[:0]])
    np.testing.assert_array_equal(got, [[-np.inf, -2, -np.inf, 0, -np.inf], [-np.inf, 0, -np.inf, 0, -np.inf]])


def test_precision_is_checked():
    documents = _core.Documents([flat([np.ones((1, 2), np.float32)])])
    with pytest.raises(ValueError, match=r"precision must be 'float32' or 'int8', got 'int4'"):
        _core.token_maxima(np.ones((1, 2), np.float32), documents, 1, "int4")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("num_tokens", QUERY_LENGTHS)
def test_scores_and_rerank(isa, num_tokens, dtype, rng):
    documents = [rng.normal(size=(n, 24)).astype(dtype) for n in LENGTHS]
    query = rng.normal(size=(num_tokens, 24)).astype(dtype)
    expected = reference.maxsim(query, documents)
    atol = num_tokens * tolerance(query, documents)
    got = maxsim.scores(query, *flat(documents), num_threads=1)
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)
    candidates = rng.permutation(len(documents))[:9]
    indices, scores = maxsim.rerank(query, *flat(documents), candidates, k=5)
    np.testing.assert_array_equal(indices, candidates[reference.top_k(expected[candidates], 5)])
    np.testing.assert_array_equal(scores, got[indices])  # the same bits, whichever way a document is reached


def test_fma_instruction_sets_agree_bit_for_bit(rng):
    documents = [rng.normal(size=(n, 77)).astype(np.float32) for n in LENGTHS]
    query = rng.normal(size=(19, 77)).astype(np.float32)
    before = _core.active_isa()
    try:
        results = []
        for isa in [name for name in _core.supported_isas() if name != "scalar"]:
            _core.force_isa(isa)
            results.append(maxsim.scores(query, *flat(documents)))
    finally:
        _core.force_isa(before)
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


@pytest.mark.parametrize(("num_a", "num_b", "depth"), [(1, 1, 1), (5, 3, 700), (97, 33, 512), (100, 40, 1500), (12, 16, 31)])
def test_products(isa, num_a, num_b, depth, rng):
    a, b = rng.normal(size=(num_a, depth)).astype(np.float32), rng.normal(size=(depth, num_b)).astype(np.float32)
    got = _core.products(a, _core.Columns(b, 2), 2)
    np.testing.assert_allclose(got, a.astype(np.float64) @ b.astype(np.float64), rtol=0, atol=512 * 1e-6)
    for rows in (slice(0, 1), slice(num_a // 2, num_a)):  # the same bits whatever the batch and the threads
        np.testing.assert_array_equal(_core.products(np.ascontiguousarray(a[rows]), _core.Columns(b, 1), 1), got[rows])


@pytest.mark.parametrize("num_threads", [1, 2, 7])
def test_threads_change_nothing(isa, num_threads, make_matrices):
    documents = make_matrices(300, dim=33, high=40)
    query = make_matrices(1, dim=33, low=20, high=20)[0]
    once = maxsim.scores(query, *flat(documents), num_threads=1)
    np.testing.assert_array_equal(maxsim.scores(query, *flat(documents), num_threads=num_threads), once)


def test_half_precision_is_read_exactly(isa):
    """All finite half-precision numbers, subnormals among them, each as a document of one token."""
    bits = np.arange(2**16, dtype=np.uint16).view(np.float16)
    values = bits[np.isfinite(bits)]
    got = maxsim.token_maxima(np.ones((1, 1), np.float32), values[:, None], np.arange(len(values) + 1))
    np.testing.assert_array_equal(got[0], values.astype(np.float32))


@pytest.mark.parametrize("dim", [8, 13, 24])
def test_half_precision_tails(isa, dim, rng):
    documents = [rng.normal(size=(n, dim)).astype(np.float16) for n in (1, 2, 5, 9)]
    query = rng.normal(size=(3, dim)).astype(np.float32)
    widened = [d.astype(np.float32) for d in documents]
    np.testing.assert_array_equal(maxsim.scores(query, *flat(documents)), maxsim.scores(query, *flat(widened)))


def test_documents_without_tokens(isa):
    tokens = np.ones((2, 4), np.float32)
    scores = maxsim.scores(np.ones((1, 4), np.float32), tokens, [0, 0, 2, 2])
    np.testing.assert_array_equal(scores, [-np.inf, 4, -np.inf])
    indices, _ = maxsim.rerank(np.ones((1, 4), np.float32), tokens, [0, 0, 2, 2], [2, 1, 0])
    np.testing.assert_array_equal(indices, [1])


def test_negative_similarities_are_kept(isa):
    """A padded lane or an empty start value of 0 would beat every negative inner product."""
    scores = maxsim.scores(np.ones((3, 5), np.float32), -np.ones((2, 5), np.float32), [0, 1, 2])
    np.testing.assert_array_equal(scores, [-15, -15])
