"""One conformance test for every candidate index."""

from __future__ import annotations

import numpy as np
import pytest

from lemur_ann.candidates import KINDS, kind_of

OPTIONS = {"M": 16, "ef_construction": 100, "seed": 0}


@pytest.fixture
def vectors(rng):
    reduced = rng.normal(size=(400, 15)).astype(np.float32)
    radius = 1.1 * np.linalg.norm(reduced, axis=1).max()
    last = np.sqrt(radius**2 - np.sum(reduced**2, axis=1, keepdims=True))
    return np.concatenate([reduced, last], axis=1).astype(np.float32)


@pytest.fixture
def queries(rng):
    return np.pad(rng.normal(size=(20, 15)), ((0, 0), (0, 1))).astype(np.float32)


@pytest.fixture(params=KINDS)
def kind(request):
    return kind_of(request.param)


def exact(vectors, query, count, deleted=()):
    products = vectors @ query
    products[list(deleted)] = -np.inf
    return np.argsort(-products, kind="stable")[:count]


def recall(found, vectors, queries, count, deleted=()):
    return np.mean(
        [
            len(set(f.tolist()) & set(exact(vectors, q, count, deleted).tolist())) / count
            for f, q in zip(found, queries, strict=True)
        ]
    )


def test_finds_the_largest_inner_products(kind, vectors, queries):
    index = kind.create(16, OPTIONS)
    index.add(vectors[:150], first=0, num_threads=1)
    index.add(vectors[150:], first=150, num_threads=2)
    found = index.search(queries, 20, 100, num_threads=2)
    assert [len(f) for f in found] == [20] * len(queries)
    assert recall(found, vectors, queries, 20) > 0.97
    for f, q in zip(found, queries, strict=True):
        assert np.all(np.diff(vectors[f] @ q) <= 1e-4), "best first"


def test_deleted_documents_never_come_back(kind, vectors, queries, tmp_path):
    index = kind.create(16, OPTIONS)
    index.add(vectors, first=0, num_threads=1)
    deleted = np.arange(0, 400, 2)
    index.delete(deleted)
    found = index.search(queries, 20, 100, num_threads=1)
    assert recall(found, vectors, queries, 20, deleted) > 0.95
    index.save(tmp_path)
    loaded = kind.load(tmp_path, 16, deleted)
    for a, b in zip(loaded.search(queries, 20, 100, num_threads=1), found, strict=True):
        np.testing.assert_array_equal(a, b)
    loaded.add(vectors[:1], first=400, num_threads=1)
    query = np.pad(vectors[:1, :15], ((0, 0), (0, 1)))
    assert 400 in loaded.search(query, 3, 50, num_threads=1)[0]
    assert [len(f) for f in loaded.search(queries, 400, 400, num_threads=1)] == [201] * len(queries)


def test_empty(kind, queries):
    assert [len(f) for f in kind.create(16, OPTIONS).search(queries, 5, 5, num_threads=1)] == [0] * len(queries)


def test_unknown_kind():
    with pytest.raises(ValueError, match="candidates must be one of hnsw, exact, got 'lsh'"):
        kind_of("lsh")
