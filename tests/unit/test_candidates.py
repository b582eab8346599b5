"""One conformance test for every candidate index."""

from __future__ import annotations

import os

import hnswlib
import numpy as np
import pytest

from lemur_ann import _core
from lemur_ann.candidates.hnsw import HnswKind
from lemur_ann.candidates.hnswlib_file import read_links
from lemur_ann.candidates.kinds import OWN_KINDS, kind_of
from lemur_ann.documents.rows import RowSet

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


@pytest.fixture(params=OWN_KINDS)  # test_libraries.py has the contract for all
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


def built(kind, *blocks):
    builder = kind.builder(16, OPTIONS)
    for block in blocks:
        builder.add(block, num_threads=2)
    return builder.finish()


def saved_and_loaded(kind, index, folder):
    """By way of the files of its structure."""
    structure = index.structure
    if structure is not None:
        paths = {role: folder / f"{role}{suffix}" for role, suffix in kind.files.items()}
        structure.save(paths)
        structure = kind.load_structure(paths, 16, structure.num_rows)
    return kind.assemble(16, structure, index.parts, OPTIONS)


def kept(kind, vectors):
    """What is given back of vectors that joined a structure."""
    if not isinstance(kind, HnswKind):
        return vectors
    codes, scales = _core.int8_codes(vectors, 1)
    return codes[:, :16] * scales[:, None]


def test_finds_the_largest_inner_products(kind, vectors, queries):
    index = built(kind, vectors[:1500], vectors[1500:])
    found = index.search(queries, 20, 150, num_threads=2)
    assert [len(f) for f in found] == [20] * len(queries)
    assert recall(found, vectors, queries, 20) > 0.97
    spread = np.linalg.norm(queries, axis=1).max() * np.linalg.norm(vectors[0])
    for f, q in zip(found, queries, strict=True):
        assert np.all(np.diff(vectors[f] @ q) <= 0.01 * spread), "best first, to the precision of int8 codes"


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_excluded_documents_never_come(kind, vectors, queries, share, rng, tmp_path):
    index = built(kind, vectors[:2900]).extended(vectors[2900:], num_threads=1)
    mask = np.zeros(SIZE, bool)
    mask[rng.choice(SIZE, int(SIZE * share), replace=False)] = True
    excluded = RowSet.of(mask)
    found = index.search(queries, 20, 100, num_threads=1, excluded=excluded)
    assert [len(f) for f in found] == [20] * len(queries)
    assert recall(found, vectors, queries, 20, excluded.rows) > 0.95
    loaded = saved_and_loaded(kind, index, tmp_path)
    for a, b in zip(loaded.search(queries, 20, 100, num_threads=2, excluded=excluded), found, strict=True):
        np.testing.assert_array_equal(a, b)
    left = SIZE - excluded.count
    found = loaded.search(queries, SIZE, SIZE, num_threads=1, excluded=excluded)
    assert [len(f) for f in found] == [left] * len(queries)
    assert not np.isin(np.concatenate(found), excluded.rows).any()


def test_those_that_are_not_excluded_are_far_from_the_query(kind, vectors, queries):
    """The graph leads to others first."""
    index = built(kind, vectors)
    for query in queries[:5]:
        mask = np.ones(SIZE, bool)
        mask[np.argsort(vectors @ query)[: SIZE // 3]] = False
        (found,) = index.search(query[None], 300, 300, num_threads=1, excluded=RowSet.of(mask))
        assert np.isin(exact(vectors, query, 20, np.flatnonzero(mask)), found).all()


def test_everything_excluded(kind, vectors, queries):
    everything = RowSet.of(np.ones(SIZE, bool))
    found = built(kind, vectors).search(queries, 5, 5, num_threads=1, excluded=everything)
    assert [len(f) for f in found] == [0] * len(queries)


def test_what_is_extended_stays_what_it_was(kind, vectors, queries):
    index = built(kind, vectors[:2000])
    before = index.search(queries, 20, 150, num_threads=1)
    more = index.extended(vectors[2000:2700], num_threads=1).extended(vectors[2700:], num_threads=1)
    other = index.extended(vectors[::-1][:900].copy(), num_threads=1)
    assert (index.num_rows, more.num_rows, other.num_rows) == (2000, SIZE, 2900)
    for a, b in zip(index.search(queries, 20, 150, num_threads=1), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert recall(more.search(queries, 20, 150, num_threads=1), vectors, queries, 20) > 0.97
    mixed = np.concatenate([vectors[:2000], vectors[::-1][:900]])
    assert recall(other.search(queries, 20, 150, num_threads=1), mixed, queries, 20) > 0.97


def test_vectors_beyond_the_radius_are_found(vectors, queries, rng):
    """They are near nobody, and what many queries want."""
    far = rng.normal(size=(20, 16)).astype(np.float32)
    far[:, -1] = 0
    far *= 2 * np.linalg.norm(vectors[0]) / np.linalg.norm(far, axis=1, keepdims=True)
    mixed = np.concatenate([vectors[:1000], far, vectors[1000:]])
    index = built(kind_of("hnsw"), mixed)
    assert index.structure.num_rows == len(mixed)
    assert recall(index.search(queries, 20, 150, num_threads=1), mixed, queries, 20) > 0.95


def test_take(kind, vectors, tmp_path):
    index = built(kind, vectors[:2500], vectors[2500:2900]).extended(vectors[2900:], num_threads=1)
    rows = np.array([7, 2999, 3, 2899, 2900])
    for some in (index, saved_and_loaded(kind, index, tmp_path)):
        np.testing.assert_array_equal(some.take(rows[[0, 2, 3]]), kept(kind, vectors[rows[[0, 2, 3]]]))
        np.testing.assert_array_equal(some.take(rows[[1, 4]]), vectors[rows[[1, 4]]])
        assert some.take(np.empty(0, np.int64)).shape == (0, 16)


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps the name of a file that is open")
def test_a_loaded_graph_stays_itself_when_its_files_are_gone(vectors, queries, tmp_path):
    index = saved_and_loaded(kind_of("hnsw"), built(kind_of("hnsw"), vectors), tmp_path)
    for file in tmp_path.iterdir():
        file.unlink()
    expected = kept(kind_of("hnsw"), vectors)
    np.testing.assert_array_equal(index.take(np.array([5])), expected[[5]])
    assert recall(index.search(queries, 20, 150, num_threads=1), vectors, queries, 20) > 0.97
    more = index.extended(vectors[:1500], num_threads=1)  # so many that they join the graph
    assert more.structure.num_rows == SIZE + 1500
    again = saved_and_loaded(kind_of("hnsw"), more, tmp_path)
    np.testing.assert_array_equal(again.take(np.array([5, SIZE + 7])), expected[[5, 7]])


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limits")
def test_no_room_for_the_graph(vectors, queries, tmp_path, caplog):
    """A file that hnswlib could not write whole is noticed; what was there stays, and new documents are scanned."""
    import resource
    import signal

    index = built(kind_of("hnsw"), vectors[:1000])
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="no room left"):
            built(kind_of("hnsw"), vectors)
        more = index.extended(vectors[1000:], num_threads=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "scanned until there is room" in caplog.text
    assert (more.structure, more.num_rows) == (None, SIZE)
    assert recall(more.search(queries, 20, 150, num_threads=1), vectors, queries, 20) > 0.97
    assert more.extended(vectors[:1], num_threads=1).structure.num_rows == SIZE + 1


def test_documents_without_links_are_scanned_until_there_are_many(vectors, queries):
    index = built(kind_of("hnsw"), vectors[:1000])
    assert index.structure is None
    index = built(kind_of("hnsw"), vectors[:2000]).extended(vectors[2000:], num_threads=1)
    assert index.structure.num_rows == 2000
    assert recall(index.search(queries, 20, 150, num_threads=1), vectors, queries, 20) > 0.97
    index = index.extended(vectors[:500], num_threads=1)
    assert (index.structure.num_rows, index.parts) == (SIZE + 500, [])


def test_many_small_additions_make_few_parts(kind, vectors):
    index = built(kind, vectors[:2000])
    for row in range(2000, 2300):
        index = index.extended(vectors[row : row + 1], num_threads=1)
    assert len(index.parts) <= 10
    np.testing.assert_array_equal(index.take(np.arange(2000)), kept(kind, vectors[:2000]))
    np.testing.assert_array_equal(index.take(np.arange(2000, 2300)), vectors[2000:2300])


@pytest.mark.parametrize("is_loaded", [False, True])
def test_a_graph_that_grows_finds_what_one_made_at_once_finds(vectors, queries, tmp_path, is_loaded):
    kind = kind_of("hnsw")
    index, at_once = built(kind, vectors[:1100]), built(kind, vectors)
    for begin in range(1100, SIZE, 380):
        if is_loaded:
            index = saved_and_loaded(kind, index, tmp_path)
        index = index.extended(vectors[begin : begin + 380], num_threads=1)
    assert index.structure.num_rows > 2 * 1100
    for beam in (20, 40, 80):
        grown, made = (recall(one.search(queries, 20, beam, num_threads=1), vectors, queries, 20) for one in (index, at_once))
        assert grown > made - 0.02


def test_a_crowd_far_from_all_others_is_found(vectors, rng):
    """More documents than a search for links looks at, nearer to one another than to any other."""
    crowd = np.zeros((1500, 16), np.float32)
    crowd[:, :15] = rng.normal(size=15) + 0.02 * rng.normal(size=(1500, 15))
    radius = np.linalg.norm(vectors[0])
    crowd *= 0.95 * radius / np.linalg.norm(crowd, axis=1, keepdims=True)
    crowd[:, 15] = np.sqrt(radius**2 - (crowd**2).sum(1))
    index = built(kind_of("hnsw"), vectors).extended(crowd, num_threads=1)
    assert index.structure.num_rows == SIZE + 1500
    for query in np.pad(crowd[:20, :15], ((0, 0), (0, 1))):
        (found,) = index.search(query[None], 20, 30, num_threads=1)
        assert (found >= SIZE).all()


def test_what_is_made_of_what_a_graph_gives_back_is_the_same(vectors):
    """As a compaction makes it: codes of what codes say are these codes."""
    index = built(kind_of("hnsw"), vectors)
    again = built(kind_of("hnsw"), index.take(np.arange(SIZE)))
    np.testing.assert_array_equal(again.structure.codes, index.structure.codes)
    np.testing.assert_allclose(again.structure.scales, index.structure.scales, rtol=2e-7)


def test_links_are_those_of_hnswlib(vectors, tmp_path):
    graph = hnswlib.Index("l2", 16)
    graph.init_index(2000, M=16, ef_construction=100, random_seed=0)
    graph.add_items(vectors[1000:2000], np.arange(1000), num_threads=2)  # threads insert in an order of their own
    graph.add_items(vectors[:1000], np.arange(1000, 2000), num_threads=2)
    state = graph.__getstate__()[0]
    graph.save_index(str(tmp_path / "graph"))
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
    none = codes[:0], scales[:0]
    links, entries = np.zeros((SIZE, 4), np.int32), np.zeros(1, np.int32)
    query = vectors[:1]
    graph = _core.CodedGraph(16, codes, scales, links, entries, *none)
    excluded = np.zeros(SIZE, bool)
    excluded[:100] = True
    with pytest.raises(ValueError, match="num_excluded is not the number"):
        graph.search(query, excluded, 99, SIZE, SIZE, 1)
    with pytest.raises(ValueError, match="excluded and rows differ"):
        graph.search(query, excluded[1:], 99, 10, 10, 1)
    with pytest.raises(ValueError, match="differ in dim"):
        graph.search(query[:, :8].copy(), None, 0, 10, 10, 1)
    links[0, 0] = SIZE
    with pytest.raises(ValueError, match="a link of the graph is not a node"):
        _core.CodedGraph(16, codes, scales, links, entries, *none).search(query, None, 0, 10, 10, 1)
    with pytest.raises(ValueError, match="an entry of the graph is not a node"):
        _core.CodedGraph(16, codes, scales, links, np.array([-1], np.int32), *none).search(query, None, 0, 10, 10, 1)
    with pytest.raises(ValueError, match="codes and scales differ"):
        _core.CodedGraph(16, codes, scales[1:], links, entries, *none)
    with pytest.raises(ValueError, match="codes and links differ"):
        _core.CodedGraph(16, codes, scales, links[1:], entries, *none)
    with pytest.raises(ValueError, match="stride"):
        _core.CodedGraph(65, codes, scales, links, entries, *none)


def test_empty(kind, queries):
    assert [len(f) for f in built(kind).search(queries, 5, 5, num_threads=1)] == [0] * len(queries)


def test_unknown_kind():
    with pytest.raises(ValueError, match="candidates must be one of hnsw, exact, faiss, usearch, svs, got 'lsh'"):
        kind_of("lsh")
