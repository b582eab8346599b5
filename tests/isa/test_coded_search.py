"""Searches over int8 codes on every instruction set: the same exact integers, so the same candidates everywhere."""

from __future__ import annotations

import numpy as np
import pytest

from lemur_ann import _core


def scanned(dim, codes, scales):
    """Rows without links."""
    return _core.CodedGraph(dim, codes[:0], scales[:0], np.empty((0, 1), np.int32), np.empty(0, np.int32), codes, scales)


@pytest.mark.parametrize("dim", [1, 7, 16, 63, 64, 65, 256, 300])
def test_scan_ranks_by_products_of_codes(isa, dim, rng):
    vectors = rng.normal(size=(301, dim)).astype(np.float32)
    queries = rng.normal(size=(5, dim)).astype(np.float32)
    codes, scales = _core.int8_codes(vectors, 2)
    assert codes.shape == (301, _core.int8_stride(dim))
    assert np.all(codes[:, dim:] == 0)
    np.testing.assert_allclose(codes[:, :dim] * scales[:, None], vectors, atol=np.abs(vectors).max() / 253)
    query_codes, _ = _core.int8_codes(queries, 1)
    products = query_codes.astype(np.int64) @ codes.astype(np.int64).T
    expected = np.argsort(-(products.astype(np.float32) * scales), axis=1, kind="stable")[:, :40]
    got = scanned(dim, codes, scales).search(queries, None, 0, 40, 40, 2)
    np.testing.assert_array_equal(got, expected)


def test_largest_codes_do_not_overflow(isa):
    vectors = np.ones((3, 256), np.float32)
    vectors[1] = -1
    vectors[2, ::2] = -1
    graph = scanned(256, *_core.int8_codes(vectors, 1))
    np.testing.assert_array_equal(graph.search(vectors, None, 0, 3, 3, 1), [[0, 2, 1], [1, 2, 0], [2, 0, 1]])


def test_excluded_rows(isa, rng):
    vectors = rng.normal(size=(100, 20)).astype(np.float32)
    graph = scanned(20, *_core.int8_codes(vectors, 1))
    excluded = rng.random(100) < 0.7
    got = graph.search(vectors[:4], excluded, excluded.sum(), 50, 50, 1)
    assert got.shape == (4, 100 - excluded.sum())
    for row in got:
        assert sorted(row.tolist()) == np.flatnonzero(~excluded).tolist()
