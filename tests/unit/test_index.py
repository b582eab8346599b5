from __future__ import annotations

import threading
import warnings

import numpy as np
import pyarrow as pa
import pytest

import lemur_ann
from lemur_ann import Hits, LemurIndex, NotFitted, reference


def exact_ids(documents, query, k):
    return [f"doc-{i}" for i in reference.top_k(reference.maxsim(query, documents), k)]


def test_search_returns_exact_scores_best_first(small_index):
    index, documents, queries = small_index()
    for query in queries[:10]:
        hits = index.search(query, k=5)
        assert len(hits) == 5
        assert hits.scores.dtype == np.float32
        assert np.all(np.diff(hits.scores) <= 0)
        by_id = reference.maxsim(query, documents)
        for doc_id, score in hits:
            assert score == pytest.approx(by_id[int(doc_id.removeprefix("doc-"))], abs=1e-5)


def test_exact_is_the_oracle(small_index):
    index, documents, queries = small_index()
    for query in queries[:10]:
        assert index.search(query, k=7, exact=True).ids.tolist() == exact_ids(documents, query, 7)


@pytest.mark.parametrize("candidates", ["hnsw", "exact"])
def test_graph_and_scan_find_most(small_index, candidates):
    index, _, queries = small_index(candidates=candidates, epochs=0, num_features=256, rank=63)
    assert index.evaluate(queries, k=5, num_candidates=60).recall > 0.8


def test_rank_none_keeps_all_features(small_index):
    index, _, queries = small_index(rank=None)
    assert index.encoder.dim == 64 + 1
    assert len(index.search(queries[0])) == 10


def test_batches_equal_single_queries(small_index):
    index, _, queries = small_index()
    for arguments in ({}, {"exact": True}, {"num_candidates": 11, "ef_search": 50}):
        many = index.search(queries, k=4, **arguments)
        assert many == [index.search(q, k=4, **arguments) for q in queries]
        assert many == index.search(queries, k=4, num_threads=1, **arguments)


def test_batch_forms(small_index, rng):
    index, _, _ = small_index()
    cube = rng.normal(size=(3, 4, 16)).astype(np.float32)
    expected = [index.search(q) for q in cube]
    assert index.search(cube) == expected
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(cube.reshape(-1)), 16)
    table = pa.table({"tokens": pa.ListArray.from_arrays(pa.array([0, 4, 8, 12], pa.int32()), vectors)})
    assert index.search(table) == expected
    assert index.search([]) == []


def test_float16_queries_and_documents(make_matrices):
    documents = make_matrices(50, dtype=np.float16)
    index = LemurIndex(num_features=32, epochs=0, rank=15).fit(documents, queries=make_matrices(20))
    assert index.snapshot.store.dtype == np.float16
    query = documents[3]
    hits = index.search(query, k=1)
    assert hits.ids[0] == 3
    assert hits.scores[0] == pytest.approx(reference.maxsim(query, documents)[3], rel=1e-6)


def test_k_beyond_the_documents(small_index):
    index, documents, queries = small_index(num_candidates=5)
    assert len(index.search(queries[0], k=50)) == 50
    assert len(index.search(queries[0], k=1000)) == len(documents)
    assert len(index.search(queries[0], k=20, num_candidates=3)) == 20


def test_empty_and_unfitted(make_matrices):
    index = LemurIndex()
    assert len(index) == 0
    assert len(index.search(np.ones((2, 8), np.float32))) == 0
    assert [len(h) for h in index.search([np.ones((2, 8), np.float32)] * 3)] == [0, 0, 0]
    documents = make_matrices(30)
    index.add(documents, ids=[f"doc-{i}" for i in range(30)])
    assert not index.is_fitted
    query = make_matrices(1)[0]
    assert index.search(query, k=5).ids.tolist() == exact_ids(documents, query, 5)
    with pytest.raises(NotFitted, match="fit"):
        _ = index.encoder
    index.delete(["doc-0", "doc-1"])
    assert len(index.search(query, k=30)) == 28


def test_fit_after_add_learns_from_what_is_there(make_matrices):
    documents, queries = make_matrices(100), make_matrices(30)
    index = LemurIndex(num_features=64, epochs=1, rank=15, num_candidates=50)
    index.add(documents[:60]).add(documents[60:])
    index.delete([5, 6])
    index.fit(queries=queries)
    assert index.is_fitted
    assert len(index) == 98
    for query in queries:
        assert not {5, 6} & set(index.search(query, k=98).ids.tolist())
    with pytest.raises(ValueError, match="holds 98 documents already"):
        index.fit(documents, queries=queries)


def test_add_and_delete(small_index, make_matrices):
    index, documents, _ = small_index()
    more = make_matrices(40)
    index.add(more, ids=[f"more-{i}" for i in range(40)])
    assert len(index) == 240
    for i in (0, 17, 39):
        hits = index.search(more[i], k=1, num_candidates=200)
        assert hits.ids[0] == f"more-{i}"
    assert index.delete(["more-17", "doc-3"]) == 2
    assert "more-17" not in index
    assert "more-18" in index
    for query in [more[17], documents[3]]:
        for exact in (False, True):
            found = index.search(query, k=238, exact=exact).ids.tolist()
            assert len(found) == 238
            assert not {"more-17", "doc-3"} & set(found)
    index.add([more[17]], ids=["more-17"])  # an id that is free again
    assert index.search(more[17], k=1, num_candidates=200).ids[0] == "more-17"
    assert index.delete("more-17") == 1


def test_delete_nearly_everything(small_index):
    index, _, queries = small_index(num_candidates=10)
    index.delete([f"doc-{i}" for i in range(190)])
    assert sorted(index.search(queries[0], k=10).ids.tolist()) == [f"doc-{i}" for i in range(190, 200)]
    index.delete([f"doc-{i}" for i in range(190, 200)])
    assert len(index.search(queries[0])) == 0


@pytest.mark.parametrize("epochs", [0, 1])
def test_added_documents_get_the_vectors_of_a_fit(small_index, epochs):
    """Alone or among others, at once or later, on one thread or two, a document gets the same vector to the last bit."""
    index, documents, _ = small_index(epochs=epochs)
    fitted = index.snapshot.learned.candidates.take(np.arange(200))
    for i in (0, 50, 199):
        index.delete([f"doc-{i}"])
        index.add([documents[i]], ids=[f"doc-{i}"], num_threads=1 + i % 2)
        np.testing.assert_array_equal(index.snapshot.learned.candidates.take([len(index.snapshot.store) - 1])[0], fitted[i])


def test_default_ids(make_matrices):
    index = LemurIndex()
    index.add(make_matrices(3)).add(make_matrices(2))
    assert sorted(index.search(np.ones((1, 16), np.float32)).ids.tolist()) == [0, 1, 2, 3, 4]
    index.delete([4])
    index.add(make_matrices(1))
    assert 5 in index  # ids of deleted documents do not come back by themselves
    assert index.search(np.ones((1, 16), np.float32)).ids.dtype == np.int64


def test_metadata(make_matrices):
    matrices = make_matrices(4)
    flat = np.concatenate(matrices)
    offsets = pa.array(np.concatenate([[0], np.cumsum([len(m) for m in matrices])]).astype(np.int32))
    tokens = pa.ListArray.from_arrays(offsets, pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), 16))
    table = pa.table({"id": list("abcd"), "title": list("wxyz"), "tokens": tokens, "year": [1, 2, 3, 4]})
    index = LemurIndex().add(table.slice(0, 2))
    assert index.metadata(["b", "a"]).to_pydict() == {"id": ["b", "a"], "title": ["x", "w"], "year": [2, 1]}
    index.add(table.slice(2, 1).drop_columns(["year"])).add(make_matrices(1), ids=["e"])
    assert index.metadata(["c", "e"]).to_pydict() == {"id": ["c", "e"], "title": ["y", None], "year": [None, None]}
    with pytest.raises(TypeError, match="metadata column 'year' is large_string, index has it as int64"):
        index.add(table.slice(3).set_column(3, "year", pa.array(["x"])))
    assert "d" not in index
    with pytest.raises(KeyError, match="no document has the id 'q'"):
        index.metadata("q")


def tokens_column(count):
    return pa.array([[[1.0] * 16]] * count, pa.list_(pa.list_(pa.float32(), 16)))


def test_metadata_of_every_kind(tmp_path):
    """Dictionaries differ from batch to batch, and a column may be all null at first."""
    index = LemurIndex()
    for i, kinds in enumerate((["a", "b"], ["b", "c"])):
        columns = {"id": [2 * i, 2 * i + 1], "tokens": tokens_column(2), "kind": pa.array(kinds).dictionary_encode()}
        index.add(pa.table({**columns, "note": pa.nulls(2) if i == 0 else pa.array(["x", None])}))
    index.save(tmp_path / "i")
    loaded = LemurIndex.load(tmp_path / "i")
    assert loaded.metadata([3, 0, 2]).to_pydict() == {"id": [3, 0, 2], "kind": ["c", "a", "b"], "note": [None, None, "x"]}
    assert LemurIndex().add(make_ids("a")).metadata([]).column("id").type == pa.large_string()
    twice = pa.Table.from_arrays([tokens_column(1), pa.array([1]), pa.array([2])], names=["tokens", "x", "x"])
    with pytest.raises(ValueError, match="more than one column 'x'"):
        loaded.add(twice)
    assert len(loaded) == 4


def make_ids(*ids):
    return pa.table({"id": list(ids), "tokens": tokens_column(len(ids))})


def test_the_caller_may_reuse_its_buffers():
    tokens, offsets = np.ones((4, 3), np.float32), np.array([0, 2, 4])
    index = LemurIndex().add(tokens, offsets=offsets)
    before = index.search(np.ones((1, 3), np.float32))
    tokens[:] = 7
    offsets[1] = 1
    assert index.search(np.ones((1, 3), np.float32)) == before


def test_mixed_dtypes(make_matrices):
    half, single = make_matrices(3, dtype=np.float16), make_matrices(2)
    index = LemurIndex().add(half + single)  # one addition of both: float32 holds both
    assert index.snapshot.store.dtype == np.float32
    index = LemurIndex().add(half)
    index.add(single)
    assert index.snapshot.store.dtype == np.float16
    with pytest.raises(ValueError, match="exceeds the range of float16"):
        index.add([np.full((1, 16), 1e6, np.float32)])
    assert len(index) == 5


@pytest.mark.parametrize("value", [1e30, -3e38, np.nan, np.inf])
def test_values_whose_products_overflow_are_refused(small_index, value):
    index, _, _ = small_index()
    with pytest.raises(ValueError, match="huge"):
        index.add([np.full((1, 16), value, np.float32)], ids=["x"])
    assert len(index.add([np.full((1, 16), 1e14, np.float32)], ids=["x"])) == 201
    assert len(index.search(np.full((2, 16), -1e14, np.float32), k=201)) == 201


def test_an_addition_that_breaks_off_can_be_repeated(small_index, make_matrices, monkeypatch):
    for candidates in ("hnsw", "exact"):
        index, _, _ = small_index(candidates=candidates)
        new = make_matrices(5)

        def interrupt(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("lemur_ann.changes.Changes.publish", interrupt)  # when all is ready
            with pytest.raises(KeyboardInterrupt):
                index.add(make_matrices(9), ids=[f"lost-{i}" for i in range(9)])
        index.add(new, ids=[f"new-{i}" for i in range(5)])
        assert len(index) == 205
        for i in range(5):
            assert index.search(new[i], k=1, num_candidates=150).ids[0] == f"new-{i}"


def test_devices_that_are_not_there(make_matrices, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    index = LemurIndex(device="cuda", epochs=0, num_features=16)
    with pytest.raises(ValueError, match="device is 'cuda', and torch .* sees no such device here"):
        index.fit(make_matrices(5), queries=make_matrices(5))
    assert len(index) == 0


def test_numpy_options_can_be_saved(make_matrices, tmp_path):
    options = {
        "M": np.int64(8),
        "num_features": np.int32(16),
        "ridge": np.float32(1e-3),
        "seed": np.uint8(3),
        "epochs": np.int64(0),
    }
    LemurIndex(**options).fit(make_matrices(5), queries=make_matrices(5)).save(tmp_path / "i")
    assert LemurIndex.load(tmp_path / "i").options.M == 8
    with pytest.raises(ValueError, match="device must be"):
        LemurIndex.load(tmp_path / "i", device="tpu")


def test_metadata_that_comes_late(make_matrices):
    index = LemurIndex().add(make_matrices(1), ids=["a"])
    tokens = pa.array([[[1.0] * 16]], pa.list_(pa.list_(pa.float32(), 16)))
    index.add(pa.table({"id": ["b"], "tokens": tokens, "title": ["t"]}))
    assert index.metadata(["a", "b"]).column("title").to_pylist() == [None, "t"]


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda i: i.add([np.ones((2, 8), np.float32)], ids=["x"]), ValueError, "document 0 .* has dim 8, index has dim 16"),
        (lambda i: i.add([np.ones((2, 16), np.float32)], ids=["doc-1"]), ValueError, "'doc-1' in row 0 names a document"),
        (lambda i: i.add([np.ones((2, 16), np.float32)] * 2, ids=["x", "x"]), ValueError, "'x' is repeated in row 1"),
        (
            lambda i: i.add([np.ones((2, 16), np.float32)], ids=[1]),
            TypeError,
            "ids are integers, index has ids that are strings",
        ),
        (lambda i: i.add([np.ones((2, 16), np.float32)]), ValueError, "documents have no ids, and the index holds string ids"),
        (lambda i: i.add([np.full((1, 16), np.nan)], ids=["x"]), ValueError, "NaN"),
        (
            lambda i: i.add([np.ones((2, 16), np.float32), np.empty((0, 16), np.float32)], ids=["x", "y"]),
            ValueError,
            r"document 1 \(id 'y'\) has no tokens",
        ),
        (lambda i: i.delete(["doc-1", "nobody"]), KeyError, "no document has the id 'nobody'"),
        (lambda i: i.search(np.ones(16, np.float32)), ValueError, r"query must be a matrix .* got shape \(16,\)"),
        (lambda i: i.search(np.ones((2, 8), np.float32)), ValueError, "query has dim 8, index has dim 16"),
        (lambda i: i.search([np.ones((2, 8), np.float32)]), ValueError, "query 0 has dim 8, index has dim 16"),
        (lambda i: i.search(np.ones((0, 16), np.float32)), ValueError, "query has no tokens"),
        (lambda i: i.search([np.ones((0, 16), np.float32)]), ValueError, "query 0 has no tokens"),
        (lambda i: i.search(np.full((1, 16), np.inf)), ValueError, "query has a NaN, infinite or huge value"),
        (lambda i: i.search(np.ones((1, 16), np.int64)), TypeError, "query must be float32 or float16, got int64"),
        (lambda i: i.search(np.ones((1, 16), np.float32), k=0), ValueError, "k must be at least 1, got 0"),
        (lambda i: i.search(np.ones((1, 16), np.float32), k=True), TypeError, "k must be an integer"),
        (lambda i: i.search(np.ones((1, 16), np.float32), ef_search=0), ValueError, "ef_search must be at least 1, got 0"),
        (lambda i: i.search(np.ones((1, 16), np.float32), num_candidates=-3), ValueError, "num_candidates must be at least 1"),
        (lambda i: i.search(np.ones((1, 16), np.float32), num_threads=0), ValueError, "num_threads must be at least 1"),
        (lambda i: i.search("query"), TypeError, "must be token embeddings, got str"),
        (lambda i: i.evaluate([]), ValueError, "at least one query"),
    ],
)
def test_bad_input_changes_nothing(small_index, make_matrices, fitted, change, error, message):
    if fitted:
        index, _, _ = small_index()
    else:
        index = LemurIndex().add(make_matrices(200), ids=[f"doc-{i}" for i in range(200)])
    query = make_matrices(1)[0]
    before = index.search(query, k=200)
    with pytest.raises(error, match=message):
        change(index)
    assert len(index) == 200
    assert index.search(query, k=200) == before
    index.add([query], ids=["new"])  # and it goes on working
    assert index.search(query, k=1).ids[0] == "new"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"queries": [np.ones((1, 8), np.float32)]}, ValueError, "queries have dim 8, documents have dim 16"),
        ({"queries": [np.ones((1, 16), np.float32), np.empty((0, 16), np.float32)]}, ValueError, "query 1 has no tokens"),
        ({"queries": [np.full((1, 16), np.nan, np.float32)]}, ValueError, "query 0 has a NaN"),
        ({"ids": ["a"] * 20}, ValueError, "'a' is repeated in row 1"),
        ({"offsets": [0]}, TypeError, "offsets= goes with one flat matrix"),
    ],
)
def test_bad_fit_leaves_the_index_empty(make_matrices, arguments, error, message):
    index = LemurIndex()
    with pytest.raises(error, match=message):
        index.fit(make_matrices(20), **arguments)
    assert len(index) == 0
    assert not index.is_fitted


def test_fit_needs_documents():
    with pytest.raises(ValueError, match="at least one document"):
        LemurIndex().fit([])
    with pytest.raises(ValueError, match="at least one document"):
        LemurIndex().fit()
    with pytest.raises(TypeError, match="documents is None"):
        LemurIndex().fit(ids=["a"])


@pytest.mark.parametrize("number", [1, 2, 3])
def test_tiny_corpora(make_matrices, number):
    documents = make_matrices(number)
    index = LemurIndex(num_features=32, epochs=1).fit(documents, queries=make_matrices(2))
    assert index.search(documents[0], k=5).ids[0] == 0


def test_one_token_one_dim():
    index = LemurIndex(num_features=8, epochs=1).fit([np.ones((1, 1), np.float32)] * 3, queries=[np.ones((1, 1), np.float32)])
    assert index.search(np.ones((1, 1), np.float32), k=2).scores.tolist() == [1, 1]


def test_identical_documents_are_all_found():
    """A graph of equal vectors has parts that no walk reaches; the index finds them all the same."""
    one = np.ones((2, 4), np.float32)
    index = LemurIndex(num_features=16, epochs=0, rank=7, M=2, ef_construction=5).fit([one] * 500, queries=[one])
    assert len(index.search(one, k=400, num_candidates=450)) == 400


def test_without_queries_warns_once_and_says_what_to_do(make_matrices):
    with pytest.warns(UserWarning, match=r"Pass queries=") as caught:
        index = LemurIndex(num_features=32, epochs=1, rank=15).fit(make_matrices(50))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert index.is_fitted


def test_with_queries_there_is_no_warning(make_matrices):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LemurIndex(num_features=32, epochs=1, rank=15).fit(make_matrices(50), queries=make_matrices(20))


def test_the_same_seed_learns_the_same_map(make_matrices):
    documents, queries = make_matrices(80), make_matrices(40)

    def vectors(seed):
        options = {"num_features": 32, "epochs": 2, "rank": 15, "candidates": "exact", "seed": seed}
        return LemurIndex(**options).fit(documents, queries=queries, num_threads=1).snapshot.learned.candidates.vectors

    np.testing.assert_array_equal(vectors(1), vectors(1))
    assert not np.array_equal(vectors(1), vectors(2))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epochs": -1}, ValueError, "epochs must be at least 0, got -1"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"seed": "x"}, TypeError, "seed must be an integer, got str"),
        ({"num_features": 1}, ValueError, "num_features must be at least 2"),
        ({"ridge": "x"}, ValueError, "ridge must be a number above 0"),
        ({"rank": 0}, ValueError, "rank must be at least 1"),
        ({"M": 1}, ValueError, "M must be at least 2"),
        ({"ef_construction": 0}, ValueError, "ef_construction must be at least 1"),
        ({"num_features": 1.5}, TypeError, "num_features must be an integer"),
        *(
            ({"ridge": value}, ValueError, "ridge must be a number above 0, got")
            for value in (True, None, [1e-6], 1j, np.True_)
        ),
        ({"ridge": 0.0}, ValueError, "ridge must be a number above 0, got 0.0"),
        ({"candidates": "lsh"}, ValueError, "candidates must be one of hnsw, exact, faiss, usearch, svs, got 'lsh'"),
        ({"device": "tpu"}, ValueError, "device must be 'cpu', 'cuda' or 'mps', got 'tpu'"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        LemurIndex(**options)


def test_searches_in_many_threads(small_index):
    index, _, queries = small_index()
    expected = [index.search(q, k=5, num_candidates=20 + i) for i, q in enumerate(queries)]
    failures = []

    def work():
        for _ in range(5):
            for i, query in enumerate(queries):
                if index.search(query, k=5, num_candidates=20 + i) != expected[i]:
                    failures.append(i)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_evaluate(small_index):
    index, _, queries = small_index()
    result = index.evaluate(queries, k=5, num_candidates=200)
    assert isinstance(result, lemur_ann.Evaluation)
    assert result.recall == 1.0  # every document is a candidate
    assert (result.num_queries, result.num_documents, result.k) == (60, 200, 5)
    assert 0 < result.latency_p50_ms <= result.latency_p95_ms
    assert index.evaluate(queries, k=5, num_candidates=5).recall < 1.0


def test_hits_and_repr(small_index):
    index, _, queries = small_index()
    hits = index.search(queries[0], k=2)
    assert isinstance(hits, Hits)
    assert [(a, pytest.approx(b)) for a, b in zip(hits.ids, hits.scores, strict=True)] == list(hits)
    assert repr(index) == "<LemurIndex of 200 documents, dim 16, hnsw, fitted>"
    assert "not fitted: exact search" in repr(LemurIndex())


def test_all_of_it_as_arrow(small_index):
    index, documents, queries = small_index()
    index.add(
        pa.table(
            {
                "id": ["with metadata"],
                "tokens": pa.array([documents[0].tolist()], pa.list_(pa.list_(pa.float32(), 16))),
                "year": [2020],
            }
        )
    )
    index.delete("doc-3")
    table = index.to_arrow().read_all()
    assert table.column_names == ["id", "vector", "tokens", "year"]
    assert table.column("id").to_pylist() == list(index)
    np.testing.assert_array_equal(
        table.column("vector").combine_chunks().flatten().to_numpy().reshape(-1, 16),
        index.snapshot.learned.candidates.take(index.snapshot.live),
    )
    again = LemurIndex().add(index.to_arrow(vectors=False))
    assert again.search(queries[:5], k=5, exact=True) == index.search(queries[:5], k=5, exact=True)
    assert index.to_arrow(tokens=False, vectors=False).schema.names == ["id", "year"]


def test_arrow_of_an_index_without_a_map_or_documents(make_matrices):
    index = LemurIndex()
    assert index.to_arrow().read_all().num_rows == 0
    index.add(make_matrices(3), ids=[5, 6, 7])
    assert index.to_arrow().schema.names == ["id", "tokens"]
    assert index.to_arrow().read_all().column("id").to_pylist() == [5, 6, 7]


def test_arrow_is_of_one_moment(small_index, monkeypatch):
    monkeypatch.setattr("lemur_ann.searching.tables.ROWS_PER_BATCH", 50)
    index, _, _ = small_index()
    reader = index.to_arrow()
    reader.read_next_batch()
    index.delete(list(index)[100:])
    assert reader.read_all().num_rows == 150


def test_a_column_called_vector_is_not_lost(make_matrices):
    matrices, queries = make_matrices(200), make_matrices(60)
    table = pa.table(
        {"tokens": pa.array([m.tolist() for m in matrices], pa.list_(pa.list_(pa.float32(), 16))), "vector": range(200)}
    )
    index = LemurIndex(num_features=64, epochs=1, rank=15).fit(table, queries)
    with pytest.raises(ValueError, match="a metadata column is called 'vector'"):
        index.to_arrow()
    assert index.to_arrow(vectors=False).schema.names == ["id", "tokens", "vector"]
