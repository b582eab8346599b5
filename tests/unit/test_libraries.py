"""One contract for all kinds of candidates: those of other libraries are skipped where they are not installed."""

from __future__ import annotations

import threading

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import lemur_ann.candidates
from lemur_ann import CorruptIndex, LemurIndex
from lemur_ann.candidates.exact import ExactKind
from lemur_ann.candidates.hnsw import HnswKind
from lemur_ann.candidates.kinds import KINDS, LIBRARIES, kind_of
from lemur_ann.candidates.library import LibraryKind
from lemur_ann.documents.rows import RowSet
from lemur_ann.saved import storage

OPTIONS = {"M": 12, "ef_construction": 80, "seed": 0, "candidates_options": None}
VARIANTS = [
    *((kind, None) for kind in KINDS),
    ("faiss", {"factory": "IVF32,SQ8", "nprobe": 12}),
    ("faiss", {"factory": "Flat"}),
    ("usearch", {"dtype": "f32"}),
    ("svs", {"dtype": "float16"}),
]


@pytest.fixture(params=VARIANTS, ids=lambda variant: "-".join([variant[0], *(map(str, (variant[1] or {}).values()))]))
def variant(request):
    kind, own = request.param
    if kind in LIBRARIES:
        pytest.importorskip(LIBRARIES[kind][0], reason=f"pip install {LIBRARIES[kind][1]}")
    return kind, own


@pytest.fixture
def vectors(rng):
    """On a sphere, in clusters, as documents' vectors are; and queries with a last coordinate of 0."""
    centres = rng.normal(size=(40, 31))
    low = centres[rng.integers(40, size=3000)] + 0.5 * rng.normal(size=(3000, 31))
    radius = 1.1 * np.linalg.norm(low, axis=1).max()
    documents = np.concatenate([low, np.sqrt(radius**2 - (low**2).sum(1, keepdims=True))], axis=1)
    queries = np.pad(low[rng.integers(3000, size=30)] + 0.3 * rng.normal(size=(30, 31)), ((0, 0), (0, 1)))
    return documents.astype(np.float32), queries.astype(np.float32)


def built(kind, own, documents):
    builder = kind_of(kind).builder(32, {**OPTIONS, "candidates_options": own}, len(documents))
    for begin in range(0, len(documents), 700):
        builder.add(documents[begin : begin + 700], num_threads=2)
    return builder.finish()


def recall(found, products, k):
    best = np.argsort(-products, axis=1, kind="stable")[:, :k]
    return np.mean([len(set(own[:k].tolist()) & set(exact.tolist())) / k for own, exact in zip(found, best, strict=True)])


def test_finds_what_a_scan_finds(variant, vectors):
    documents, queries = vectors
    candidates = built(*variant, documents)
    assert candidates.num_rows == 3000
    found = candidates.search(queries, 20, 100, num_threads=2)
    assert all(len(set(own.tolist())) == 20 for own in found)
    assert recall(found, queries @ documents.T, 10) > 0.9
    for own, query in zip(found, queries, strict=True):  # best first, but for the error of codes
        products = documents[own] @ query
        assert np.all(np.diff(products) <= 0.02 * np.abs(products).max())
    np.testing.assert_array_equal(candidates.search(queries[:1], 20, 100, num_threads=1)[0], found[0])
    rows = np.array([0, 2999, 5])
    error = np.abs(documents).max() / 254 if variant[0] == "hnsw" else 0  # of int8 codes
    np.testing.assert_allclose(candidates.take(rows), documents[rows], rtol=1e-6, atol=1.01 * error)


@pytest.mark.parametrize("share", [0.5, 0.03])
def test_exactly_as_many_as_pass_a_filter(variant, vectors, rng, share):
    documents, queries = vectors
    candidates = built(*variant, documents)
    mask = rng.random(3000) >= share
    found = candidates.search(queries, 20, 100, num_threads=1, excluded=RowSet.of(mask.copy()))
    assert all(len(set(own.tolist())) == 20 and not mask[own].any() for own in found)
    products = queries @ documents.T
    products[:, mask] = -np.inf
    assert recall(found, products, 10) > 0.9
    mask[:] = True
    mask[[7, 8]] = False
    assert {
        frozenset(own.tolist()) for own in candidates.search(queries, 20, 100, num_threads=1, excluded=RowSet.of(mask.copy()))
    } == {frozenset([7, 8])}


def test_more_documents(variant, vectors):
    documents, queries = vectors
    first = built(*variant, documents[:2000])
    second = first.extended(documents[2000:2100], num_threads=2)  # scanned
    third = second.extended(documents[2100:], num_threads=2)  # made anew, or taken in
    assert [candidates.num_rows for candidates in (first, second, third)] == [2000, 2100, 3000]
    assert recall(first.search(queries, 10, 100, num_threads=1), queries @ documents[:2000].T, 10) > 0.9
    assert recall(second.search(queries, 10, 100, num_threads=1), queries @ documents[:2100].T, 10) > 0.9
    assert recall(third.search(queries, 10, 100, num_threads=1), queries @ documents.T, 10) > 0.9


def test_none_and_few(variant, vectors):
    documents, queries = vectors
    empty = built(*variant, documents[:0])
    assert [len(own) for own in empty.search(queries, 5, 10, num_threads=1)] == [0] * 30
    few = built(*variant, documents[:3])
    assert {len(own) for own in few.search(queries, 5, 10, num_threads=1)} == {3}


def test_an_index_lives_with_it(variant, make_matrices, tmp_path, monkeypatch):
    monkeypatch.setattr(lemur_ann.candidates, "MIN_SCANNED", 50)
    kind, own = variant
    documents, queries = make_matrices(300), make_matrices(80)
    own = own if own is None or "nprobe" not in own else {"factory": "IVF4,SQ8", "nprobe": 4}
    options = {"candidates": kind, "candidates_options": own, "num_features": 64, "epochs": 1, "rank": 15, "num_candidates": 60}
    with LemurIndex.open(tmp_path / "index", **options) as index:
        columns = {"id": [f"doc-{i}" for i in range(300)], "year": [1990 + i % 30 for i in range(300)]}
        tokens = pa.array([d.tolist() for d in documents], pa.list_(pa.list_(pa.float32(), 16)))
        index.fit(pa.table({**columns, "tokens": tokens}), queries)
        assert index.evaluate(queries, k=5).recall > 0.5
        index.add(make_matrices(40), ids=[f"new-{i}" for i in range(40)])
        index.delete([f"doc-{i}" for i in range(0, 100, 2)])
        filtered = index.search(queries[:20], k=5, filter=pc.field("year") < 1995)
        assert all(len(hits) == 5 for hits in filtered)
        threads = [threading.Thread(target=index.search, args=(queries,), kwargs={"ef_search": 60 + i}) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        hits = index.search(queries, k=5)
    loaded = LemurIndex.load(tmp_path / "index")
    assert loaded.options.candidates_options == own
    assert loaded.search(queries, k=5) == hits
    assert loaded.search(queries[:20], k=5, filter=pc.field("year") < 1995) == filtered
    loaded.compact()
    assert loaded.evaluate(queries, k=5).recall > 0.5
    assert len(loaded) == 290


@pytest.mark.parametrize("kind", LIBRARIES)
def test_a_damaged_file(kind, make_matrices, tmp_path, monkeypatch):
    pytest.importorskip(LIBRARIES[kind][0], reason=f"pip install {LIBRARIES[kind][1]}")
    monkeypatch.setattr(lemur_ann.candidates, "MIN_SCANNED", 50)
    index = LemurIndex(candidates=kind, num_features=64, rank=15, epochs=0)
    index.fit(make_matrices(100), make_matrices(30)).save(tmp_path / "index")
    (graph,) = (tmp_path / "index").glob("graph-*")
    graph.write_bytes(graph.read_bytes()[:-100])
    with pytest.raises(CorruptIndex, match="graph"):
        LemurIndex.load(tmp_path / "index")


def test_a_library_that_is_not_there(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="candidates='svs' needs a package that is not installed: pip install scalable-vs"):
        LemurIndex(candidates="svs")


def test_options_that_fit_no_kind():
    with pytest.raises(ValueError, match=f"candidates must be one of {', '.join(KINDS)}, got 'trees'"):
        LemurIndex(candidates="trees")
    with pytest.raises(ValueError, match=r"candidates='hnsw' has no options of its own, got \['factory'\]"):
        LemurIndex(candidates_options={"factory": "Flat"})
    with pytest.raises(TypeError, match="candidates_options must be a dict, got str"):
        LemurIndex(candidates="exact", candidates_options="Flat")


@pytest.mark.parametrize("kind", [ExactKind, HnswKind, LibraryKind])
def test_files_of_every_kind_have_names_of_ours(kind):
    """So that the next writer deletes those that a crash left behind."""
    for role, suffix in kind.files.items():
        assert storage.number_of(f"{role}-000012{suffix}") == 12
