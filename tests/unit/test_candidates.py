"""One conformance test for every candidate index."""

from __future__ import annotations

import os

import numpy as np
import pytest

from lemur_ann import _core
from lemur_ann.candidates import KINDS, kind_of
from lemur_ann.candidates.hnsw import HnswCandidates, read_links

OPTIONS = {"M": 16, "ef_construction": 100, "seed": 0}


SIZE = 3000  # enough for the graph to be walked, not scanned


@pytest.fixture
def vectors(rng):
    reduced = rng.normal(size=(SIZE, 15)).astype(np.float32)
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
    index.add(vectors[:1500], first=0, num_threads=1)
    index.add(vectors[1500:], first=1500, num_threads=2)
    index.finish()
    found = index.search(queries, 20, 150, num_threads=2)
    assert [len(f) for f in found] == [20] * len(queries)
    assert recall(found, vectors, queries, 20) > 0.97
    spread = np.linalg.norm(queries, axis=1).max() * np.linalg.norm(vectors[0])
    for f, q in zip(found, queries, strict=True):
        assert np.all(np.diff(vectors[f] @ q) <= 0.01 * spread), "best first, to the precision of int8 codes"


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_deleted_documents_never_come_back(kind, vectors, queries, share, rng, tmp_path):
    index = kind.create(16, OPTIONS)
    index.add(vectors, first=0, num_threads=1)
    index.finish()
    deleted = np.sort(rng.choice(SIZE, int(SIZE * share), replace=False))
    index.delete(deleted)
    found = index.search(queries, 20, 100, num_threads=1)
    assert [len(f) for f in found] == [20] * len(queries)
    assert recall(found, vectors, queries, 20, deleted) > 0.95
    index.save(tmp_path)
    loaded = kind.load(tmp_path, 16, deleted)
    for a, b in zip(loaded.search(queries, 20, 100, num_threads=1), found, strict=True):
        np.testing.assert_array_equal(a, b)
    loaded.add(vectors[:1], first=SIZE, num_threads=1)
    query = np.pad(vectors[:1, :15], ((0, 0), (0, 1)))
    assert SIZE in loaded.search(query, 30, 100, num_threads=1)[0]
    left = SIZE - len(deleted) + 1
    assert [len(f) for f in loaded.search(queries, SIZE, SIZE, num_threads=1)] == [left] * len(queries)


def test_everything_deleted(kind, vectors, queries):
    index = kind.create(16, OPTIONS)
    index.add(vectors, first=0, num_threads=1)
    index.delete(np.arange(SIZE))
    assert [len(f) for f in index.search(queries, 5, 5, num_threads=1)] == [0] * len(queries)


def test_a_broken_off_call_is_replaced(kind, vectors, queries):
    index = kind.create(16, OPTIONS)
    index.add(vectors[::-1].copy(), first=0, num_threads=1)
    index.finish()
    index.delete(np.arange(2000, SIZE))  # as after an add whose tokens were never stored
    index.add(vectors[2000:], first=2000, num_threads=1)
    index.finish()
    assert index.num_rows == SIZE
    mixed = np.concatenate([vectors[::-1][:2000], vectors[2000:]])
    assert recall(index.search(queries, 20, 180, num_threads=1), mixed, queries, 20) > 0.93


def test_vectors_beyond_the_radius_are_found(vectors, queries, rng):
    """They are near nobody, and what many queries want."""
    far = rng.normal(size=(20, 16)).astype(np.float32)
    far[:, -1] = 0
    far *= 2 * np.linalg.norm(vectors[0]) / np.linalg.norm(far, axis=1, keepdims=True)
    mixed = np.concatenate([vectors[:1000], far, vectors[1000:]])
    index = HnswCandidates.create(16, OPTIONS)
    index.add(mixed, first=0, num_threads=1)
    index.finish()
    assert len(index._links) == len(mixed)
    assert recall(index.search(queries, 20, 150, num_threads=1), mixed, queries, 20) > 0.95


def test_take(kind, vectors, tmp_path):
    index = kind.create(16, OPTIONS)
    index.add(vectors, first=0, num_threads=1)
    index.finish()
    index.save(tmp_path)
    for some in (index, kind.load(tmp_path, 16, np.empty(0, np.int64))):
        np.testing.assert_array_equal(some.take(np.array([7, 3])), vectors[[7, 3]])
        assert some.take(np.empty(0, np.int64)).shape == (0, 16)


def test_a_loaded_graph_stays_itself_when_its_folder_gets_another(vectors, queries, tmp_path):
    index, other = (HnswCandidates.create(16, OPTIONS) for _ in range(2))
    index.add(vectors, first=0, num_threads=1)
    index.finish()
    index.save(tmp_path)
    loaded = HnswCandidates.load(tmp_path, 16, np.empty(0, np.int64))
    other.add(vectors[::-1].copy(), first=0, num_threads=1)
    for file in tmp_path.iterdir():
        file.unlink()
    other.save(tmp_path)
    np.testing.assert_array_equal(loaded.take(np.array([5])), vectors[[5]])
    loaded.save(tmp_path)
    again = HnswCandidates.load(tmp_path, 16, np.empty(0, np.int64))
    np.testing.assert_array_equal(again.take(np.array([5])), vectors[[5]])


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limits")
def test_no_room_for_the_graph(vectors, queries, tmp_path):
    """A file that hnswlib could not write whole is noticed, and the graph stays what it was."""
    import resource
    import signal

    index = HnswCandidates.create(16, OPTIONS)
    index.add(vectors, first=0, num_threads=1)
    before = index.search(queries, 20, 100, num_threads=1)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="no room left"):
            index.finish()
        with pytest.raises(OSError, match="no room left"):
            index.save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    for a, b in zip(index.search(queries, 20, 100, num_threads=1), before, strict=True):
        np.testing.assert_array_equal(a, b)
    index.finish()
    assert len(index._links) == SIZE


def test_documents_without_links_are_scanned_until_there_are_many(vectors, queries):
    index = HnswCandidates.create(16, OPTIONS)
    index.add(vectors[:2000], first=0, num_threads=1)
    index.finish()
    index.add(vectors[2000:], first=2000, num_threads=1)
    index.finish()
    assert len(index._links) == 2000
    assert recall(index.search(queries, 20, 150, num_threads=1), vectors, queries, 20) > 0.97
    index.add(vectors[:500], first=SIZE, num_threads=1)
    index.finish()
    assert len(index._links) == SIZE + 500


def test_links_are_those_of_hnswlib(vectors, tmp_path):
    index = HnswCandidates.create(16, OPTIONS)
    index.add(vectors[1000:2000], first=0, num_threads=2)
    index.add(vectors[:1000], first=1000, num_threads=2)  # threads insert in an order of their own
    state = index._loaded().__getstate__()[0]
    index._loaded().save_index(str(tmp_path / "graph"))
    links, entries = read_links(tmp_path / "graph", 16, 2000)
    nodes = state["data_level0"].view(np.uint8).reshape(-1, state["size_data_per_element"])
    labels = dict(zip(state["label_lookup_internal"].tolist(), state["label_lookup_external"].tolist(), strict=True))
    for node in range(2000):
        words = nodes[node, : 4 + 4 * 32].copy().view(np.int32)
        neighbours = [labels[i] for i in words[1 : 1 + (words[0] & 0xFFFF)].tolist()]
        found = links[labels[node]]
        assert found[: len(neighbours)].tolist() == neighbours
        assert np.all(found[len(neighbours) :] == -1)
    levels = state["element_levels"]
    level = next(level for level in range(9) if np.count_nonzero(levels >= level) <= 2 * 2000**0.5)
    assert entries.tolist() == sorted(labels[node] for node in np.flatnonzero(levels[:2000] >= level).tolist())
    fewer, _ = read_links(tmp_path / "graph", 16, 1500)  # as if the last had been left by a broken-off call
    for row in range(1500):
        kept = [i for i in links[row].tolist() if 0 <= i < 1500]
        assert fewer[row].tolist() == kept + [-1] * (32 - len(kept))


def test_bad_links_and_codes_are_refused(vectors):
    codes, scales = _core.int8_codes(vectors, 1)
    links, entries = np.zeros((SIZE, 4), np.int32), np.zeros(1, np.int32)
    query = vectors[:1]
    links[0, 0] = SIZE
    with pytest.raises(ValueError, match="a link of the graph is not a node"):
        _core.CodedGraph(codes, scales, 16, links, entries).search(query, None, 10, 10, 1)
    with pytest.raises(ValueError, match="an entry of the graph is not a node"):
        _core.CodedGraph(codes, scales, 16, links, np.array([-1], np.int32)).search(query, None, 10, 10, 1)
    with pytest.raises(ValueError, match="codes and scales differ"):
        _core.CodedGraph(codes, scales[1:], 16, links, entries)
    with pytest.raises(ValueError, match="stride"):
        _core.CodedGraph(codes, scales, 65, links, entries)
    with pytest.raises(ValueError, match="differ in dim"):
        _core.CodedGraph(codes, scales, 16, links, entries).search(query[:, :8].copy(), None, 10, 10, 1)


def test_empty(kind, queries):
    assert [len(f) for f in kind.create(16, OPTIONS).search(queries, 5, 5, num_threads=1)] == [0] * len(queries)


def test_unknown_kind():
    with pytest.raises(ValueError, match="candidates must be one of hnsw, exact, got 'lsh'"):
        kind_of("lsh")
