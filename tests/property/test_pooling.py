"""What must hold of pooled tokens, for any tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import lemur_ann

values = st.floats(-8, 8, width=16)


@st.composite
def documents(draw):
    """Some documents of one dim and dtype, many with equal tokens, opposite ones and zeros."""
    dim, dtype = draw(st.integers(1, 12)), draw(st.sampled_from([np.float16, np.float32]))
    shapes = st.tuples(st.integers(1, 40), st.just(dim))
    return [draw(hnp.arrays(dtype, shapes, elements=values)) for _ in range(draw(st.integers(1, 4)))]


ways = st.sampled_from(["ward", "sequential"])


@settings(deadline=None)
@given(documents(), st.integers(1, 9), st.integers(0, 5), ways)
def test_pooled_tokens_are_means_of_their_members(given_documents, pool_factor, protected_tokens, way):
    pooled, groups = lemur_ann.pool(given_documents, pool_factor, pooling=way, protected_tokens=protected_tokens)
    for tokens, own, numbers in zip(given_documents, pooled, groups, strict=True):
        first = min(protected_tokens, len(tokens))
        left = len(tokens) - first
        assert len(own) <= first + (max(left // pool_factor, 1) if left else 0)
        assert own.dtype == tokens.dtype
        np.testing.assert_array_equal(own[:first], tokens[:first])
        assert numbers[:first].tolist() == list(range(first))
        assert np.unique(numbers).tolist() == list(range(len(own)))
        for number, token in enumerate(own):
            members = tokens[numbers == number].astype(np.float64)
            if len(members) == 1:
                np.testing.assert_array_equal(token, members[0].astype(tokens.dtype))
            else:
                check_mean(token.astype(np.float64), members, 0.01 if tokens.dtype == np.float16 else 1e-3)


def check_mean(token, members, tolerance):
    """The direction of the mean, where it has one, and the mean length of those that are not zero."""
    lengths = np.linalg.norm(members, axis=1)
    mean = members.mean(axis=0)
    size, wanted = np.linalg.norm(mean), lengths[lengths > 0].mean() if lengths.any() else 0.0
    if size > 0.01 * wanted and wanted > 0.01:
        assert np.linalg.norm(token) == pytest.approx(wanted, rel=0.02)  # those near to 1 count as 1
        np.testing.assert_allclose(token / np.linalg.norm(token), mean / size, atol=10 * tolerance)


@settings(deadline=None)
@given(documents(), st.integers(2, 5), ways)
def test_a_document_does_not_depend_on_others(given_documents, pool_factor, way):
    together, groups = lemur_ann.pool(given_documents, pool_factor, pooling=way)
    for tokens, own, numbers in zip(given_documents, together, groups, strict=True):
        (alone,), (found,) = lemur_ann.pool([tokens], pool_factor, pooling=way, num_threads=1)
        np.testing.assert_array_equal(own, alone)
        np.testing.assert_array_equal(numbers, found)


@settings(deadline=None)
@given(documents(), st.integers(2, 5), ways)
def test_what_an_index_gives_goes_in_again(given_documents, pool_factor, way):
    index = lemur_ann.LemurIndex(pool_factor=pool_factor, pooling=way).add(given_documents)
    again = lemur_ann.LemurIndex(pool_factor=pool_factor, pooling=way).add(index.to_arrow())
    assert again.get(list(again)).equals(index.get(list(index)))
