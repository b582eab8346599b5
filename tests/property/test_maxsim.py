"""What must hold for any tokens."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lemur_ann import _core, maxsim, reference

values = st.floats(-8, 8, width=16)


@st.composite
def query_and_documents(draw):
    dim = draw(st.integers(1, 20))
    dtype = draw(st.sampled_from([np.float16, np.float32]))

    def matrix(low, high):
        return draw(hnp.arrays(dtype, st.tuples(st.integers(low, high), st.just(dim)), elements=values))

    return matrix(1, 40), [matrix(1, 30) for _ in range(draw(st.integers(1, 4)))]


def score(query, documents):
    offsets = np.concatenate([[0], np.cumsum([len(d) for d in documents])])
    return maxsim.scores(query, np.concatenate(documents), offsets, num_threads=1)


@given(query_and_documents(), st.randoms(use_true_random=False))
def test_order_of_document_tokens_does_not_matter(data, random):
    query, documents = data
    shuffled = [d[random.sample(range(len(d)), len(d))] for d in documents]
    np.testing.assert_array_equal(score(query, shuffled), score(query, documents))


@given(query_and_documents(), st.randoms(use_true_random=False))
def test_order_of_query_tokens_hardly_matters(data, random):
    query, documents = data
    shuffled = query[random.sample(range(len(query)), len(query))]
    np.testing.assert_allclose(score(shuffled, documents), score(query, documents), rtol=1e-6, atol=1e-5)


@given(query_and_documents())
def test_a_further_document_token_never_lowers_a_score(data):
    query, documents = data
    longer = [np.concatenate([d, d[:1] * -1, query[:1].astype(d.dtype)]) for d in documents]
    assert np.all(score(query, longer) >= score(query, documents))


@given(query_and_documents())
def test_scores_add_over_query_tokens(data):
    query, documents = data
    parts = sum(score(query[i : i + 1], documents).astype(np.float64) for i in range(len(query)))
    np.testing.assert_allclose(score(query, documents), parts, rtol=1e-6, atol=1e-6)


@given(query_and_documents())
def test_scores_scale_with_the_query(data):
    query, documents = data
    np.testing.assert_array_equal(score(query.astype(np.float32) * 2, documents), 2 * score(query, documents))


@given(query_and_documents())
@settings(max_examples=50)
def test_a_document_scores_alike_alone_and_in_company(data):
    query, documents = data
    alone = [score(query, [d])[0] for d in documents]
    np.testing.assert_array_equal(score(query, documents), alone)


def int8_maxima(query, documents, num_threads=1):
    offsets = np.concatenate([[0], np.cumsum([len(d) for d in documents])])
    chunks = [(np.concatenate(documents), offsets)]
    return _core.token_maxima(query.astype(np.float32), _core.Documents(chunks), num_threads, "int8")


@given(query_and_documents())
def test_int8_stays_within_its_bound(data):
    """The bound of cpp/include/lemur/int8.hpp, with room for float32 scales."""
    query, documents = data
    expected = reference.token_maxima(query, documents)
    x = np.abs(query.astype(np.float64))
    for got, exact, document in zip(int8_maxima(query, documents).T, expected.T, documents, strict=True):
        y = np.abs(document.astype(np.float64))
        sizes = np.outer(x.max(axis=1), y.sum(axis=1)) + np.outer(x.sum(axis=1), y.max(axis=1))
        bound = sizes / 254 + x.shape[1] * np.outer(x.max(axis=1), y.max(axis=1)) / 254**2
        assert np.all(np.abs(got - exact) <= 1.0001 * bound.max(axis=1))


@given(query_and_documents(), st.randoms(use_true_random=False))
def test_int8_maxima_depend_on_nothing_else(data, random):
    """Not on the order of a document's tokens, the documents and query tokens beside it, or the threads."""
    query, documents = data
    whole = int8_maxima(query, documents)
    shuffled = [d[random.sample(range(len(d)), len(d))] for d in documents]
    np.testing.assert_array_equal(int8_maxima(query, shuffled, num_threads=2), whole)
    alone = [int8_maxima(query[i : i + 1], [d])[0, 0] for i in range(len(query)) for d in documents]
    np.testing.assert_array_equal(np.reshape(alone, whole.shape), whole)


@given(query_and_documents())
def test_int8_maxima_scale_with_the_query(data):
    query, documents = data
    np.testing.assert_array_equal(int8_maxima(query.astype(np.float32) * 4, documents), 4 * int8_maxima(query, documents))
