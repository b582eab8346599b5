from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("pymilvus", reason="pip install lemur_ann[milvus]")
pytest.importorskip("milvus_lite", reason="pip install lemur_ann[milvus]")

from lemur_ann.adapters.milvus import LemurCollection
from pymilvus import DataType, MilvusClient, MilvusException

from lemur_ann import LemurEncoder, LemurIndex

QUICK = {"num_features": 512, "epochs": 0, "num_sample_tokens": 1024}


def small_table(ids: list, matrices: list, **columns) -> pa.Table:
    kind = pa.list_(pa.list_(pa.float32(), matrices[0].shape[1]))
    return pa.table({"id": ids, "tokens": pa.array([matrix.tolist() for matrix in matrices], kind), **columns})


@pytest.fixture(scope="module")
def queries(demo_data, matrices_of) -> list[np.ndarray]:
    return matrices_of(demo_data.queries)[:25]


@pytest.fixture(scope="module")
def exact(documents, queries):
    return LemurIndex().add(documents).search(queries, k=10)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    client = MilvusClient(str(tmp_path_factory.mktemp("milvus") / "small.db"))
    yield client
    client.close()


@pytest.fixture
def empty_client(client):
    """The same, without the collections of the test before."""
    for name in client.list_collections():
        client.drop_collection(name)
    return client


@pytest.fixture(scope="module")
def collection(tmp_path_factory, encoder, documents):
    """Made once; tests change no more than its index."""
    client = MilvusClient(str(tmp_path_factory.mktemp("milvus") / "demo.db"))
    made = LemurCollection.create(client, "demo", encoder, documents.schema)
    made.add(documents)
    yield made
    client.close()


@pytest.fixture(scope="module")
def small_encoder(make_small) -> LemurEncoder:
    return LemurEncoder.fit(make_small(200), make_small(60), num_features=64, epochs=1, rank=15)


@pytest.fixture(scope="module")
def make_small():
    random = np.random.default_rng(1)
    return lambda count, dim=8: [random.normal(size=(int(random.integers(1, 6)), dim)).astype(np.float32) for _ in range(count)]


@pytest.fixture
def small(empty_client, small_encoder) -> LemurCollection:
    schema = pa.schema([("id", pa.string()), ("year", pa.int64())])
    return LemurCollection.create(empty_client, "small", small_encoder, schema)


@pytest.mark.parametrize("index", ["as made", ("HNSW", "L2"), ("IVF_FLAT", "COSINE"), ("FLAT",)])
def test_finds_what_exact_search_finds(collection, documents, queries, exact, index, matrices_of, recall, maxsim):
    if index != "as made":
        collection.create_index(*index)
        assert collection.client.describe_index("demo", "vector")["index_type"] == index[0]
    found = collection.search(queries, k=10, num_candidates=200, params={"nprobe": 64} if index[0] == "IVF_FLAT" else None)
    assert recall(found, exact) >= 0.95
    by_id = dict(zip(documents.column("id").to_pylist(), matrices_of(documents), strict=True))
    for query, hits in zip(queries, found, strict=True):
        assert hits.scores.dtype == np.float32
        assert np.all(np.diff(hits.scores) <= 0)
        np.testing.assert_allclose(hits.scores, [maxsim(query, by_id[doc_id]) for doc_id in hits.ids], rtol=1e-3)


def test_all_documents_as_candidates_are_exact_search(collection, queries, exact):
    found = collection.search(queries[:10], k=10, num_candidates=600)
    assert [hits.ids.tolist() for hits in found] == [hits.ids.tolist() for hits in exact[:10]]
    assert collection.search(queries[3], k=10, num_candidates=600) == found[3]


def test_clusters_and_integer_ids(empty_client, recall):
    random = np.random.default_rng(3)
    centres = random.normal(size=(60, 24))

    def near(cluster: int, count: int) -> np.ndarray:
        matrix = centres[cluster] + 0.8 * random.normal(size=(count, 24))
        return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)

    matrices = [near(i % 60, int(random.integers(3, 12))) for i in range(3000)]
    training, asked = ([near(int(random.integers(60)), 5) for _ in range(count)] for count in (600, 20))
    encoder = LemurEncoder.fit(matrices, training, num_features=512, epochs=0, num_sample_tokens=1024)
    collection = LemurCollection.create(empty_client, "clusters", encoder, pa.schema([("id", pa.int64())]))
    collection.add(matrices, ids=np.arange(3000))
    collection.optimize()
    exact = LemurIndex().add(matrices).search(asked, k=10)
    found = collection.search(asked, k=10, num_candidates=300)
    assert found[0].ids.dtype == np.int64
    assert recall(found, exact) >= 0.95
    assert collection.delete([int(found[0].ids[0]), 5000, int(found[0].ids[0])]) == 1
    assert len(collection) == 2999
    assert found[0].ids[0] not in collection.search(asked[0], k=10).ids


@pytest.mark.parametrize("flushed", [False, True])
def test_filters(collection, documents, queries, flushed, recall):
    if flushed:
        collection.create_index()
    years = dict(zip(documents.column("id").to_pylist(), documents.column("year").to_pylist(), strict=True))
    for condition, test in (("year >= 2010", lambda year: year >= 2010), ("year == 1993", lambda year: year == 1993)):
        passing = [row for row, year in enumerate(years.values()) if test(year)]
        part = LemurIndex().add(documents.take(passing)).search(queries[:8], k=10)
        found = collection.search(queries[:8], k=10, filter=condition)
        assert all(test(years[doc_id]) for hits in found for doc_id in hits.ids)
        assert recall(found, part) >= 0.95
    few = collection.search(queries[0], k=50, filter="year == 1993", num_candidates=10, params={"ef": 50})
    assert len(few) == sum(year == 1993 for year in years.values())
    assert len(collection.search(queries[0], filter="year == 1")) == 0
    with pytest.raises(MilvusException, match="nothing_of_the_kind"):
        collection.search(queries[0], filter="nothing_of_the_kind == 1")


def test_documents_come_and_go(small, make_small, maxsim):
    tokens = make_small(12)
    ids = [f"doc-{i}" for i in range(10)]
    assert len(small) == 0
    assert len(small.search(tokens[0])) == 0
    small.add(small_table(ids, tokens[:10], year=[2000 + i for i in range(10)]))
    assert len(small) == 10
    assert small.search(tokens[4], k=1).ids.tolist() == ["doc-4"]
    assert len(small.search(tokens[4], k=50)) == 10

    with pytest.raises(ValueError, match="'doc-2' is there already"):
        small.add(small_table(["doc-20", "doc-2"], tokens[:2]))
    small.optimize()
    small.upsert(small_table(["doc-4", "doc-10"], [tokens[10], tokens[11]]))
    assert len(small) == 11
    assert small.search(tokens[10], k=1).ids.tolist() == ["doc-4"]
    assert small.search(tokens[10], k=1).scores[0] == pytest.approx(maxsim(tokens[10], tokens[10]), rel=1e-3)
    assert sorted(small.search(tokens[0], k=50, filter="year is null").ids) == ["doc-10", "doc-4"]

    assert small.delete(["doc-4", "nobody"]) == 1
    assert small.delete("doc-0") == 1
    assert small.delete([]) == 0
    assert len(small) == 9
    assert "doc-4" not in small.search(tokens[10], k=50).ids
    assert small.delete(filter="year == 2001") == 1
    assert len(small) == 8
    assert "doc-1" not in small.search(tokens[1], k=50).ids


def test_any_text_is_an_id(small, make_small):
    ids = ["it's", 'a "b"', "back\\slash", "two\nlines", "tab\t", "ü"]
    tokens = make_small(6)
    small.add(tokens, ids=ids)
    assert [small.search(query, k=1).ids[0] for query in tokens] == ids
    with pytest.raises(ValueError, match="is there already"):
        small.add(tokens[:1], ids=ids[1:2])
    small.delete(ids[:5])
    assert small.search(tokens[0]).ids.tolist() == ["ü"]


def test_long_documents_and_many(small, make_small, maxsim):
    long = np.random.default_rng(2).normal(size=(20_000, 8)).astype(np.float32)  # 320,000 bytes as float16
    tokens = make_small(600)
    small.add([*tokens, long], ids=[str(i) for i in range(601)])
    hits = small.search(long[:5], k=1)
    assert hits.ids.tolist() == ["600"]
    assert hits.scores[0] == pytest.approx(maxsim(long[:5], long), rel=1e-3)
    assert len(small) == 601


def test_columns_become_fields(empty_client, small_encoder, make_small):
    columns = {
        "text": pa.array(["ü", None]),
        "flag": pa.array([True, None]),
        "small": pa.array([7, None], pa.uint8()),
        "x": pa.array([0.5, None], pa.float64()),
    }
    documents = small_table(["a", "b"], make_small(2), **columns)
    made = LemurCollection.create(empty_client, "typed", small_encoder, documents.schema)
    kinds = {field["name"]: field["type"] for field in empty_client.describe_collection("typed")["fields"]}
    assert kinds["small"] == DataType.INT16
    made.add(documents)
    rows = {row["id"]: row for row in empty_client.query("typed", filter="", limit=5, output_fields=[*columns])}
    assert rows["a"] == {"id": "a", "text": "ü", "flag": True, "small": 7, "x": 0.5}
    assert rows["b"] == {"id": "b", **dict.fromkeys(columns)}
    asked = documents.column("tokens")[0].as_py()
    assert made.search(np.array(asked, np.float32), filter='text == "ü"').ids.tolist() == ["a"]
    when = pa.schema([("id", pa.string()), ("when", pa.timestamp("s"))])
    with pytest.raises(TypeError, match="column 'when' of type timestamp"):
        LemurCollection.create(empty_client, "other", small_encoder, when)


def test_learns_anew(collection, demo_data, documents, queries, exact, recall):
    other = collection.fit("anew", demo_data.training_queries, num_documents=400, rank=63, **QUICK)
    assert other.encoder.dim == 64
    assert len(other) == len(collection) == 600
    assert recall(other.search(queries[:15], k=10, num_candidates=200), exact[:15]) >= 0.95
    year = documents.column("year")[5].as_py()
    assert documents.column("id")[5].as_py() in other.search(queries[0], k=600, filter=f"year == {year}").ids
    with pytest.raises(ValueError, match="there is a collection 'anew' already"):
        collection.fit("anew", demo_data.training_queries, **QUICK)
    with pytest.raises(ValueError, match="made by another encoder|of dim 64"):
        LemurCollection(collection.client, "anew", collection.encoder)


AGAIN = """
import json, os, sys
import numpy as np
from pymilvus import MilvusClient
from lemur_ann import LemurEncoder
from lemur_ann.adapters.milvus import LemurCollection

folder, todo = sys.argv[1:]
encoder, tokens = LemurEncoder.load(folder + "/map.safetensors"), np.load(folder + "/tokens.npy")
client = MilvusClient(folder + "/kept.db")
if todo == "write":
    import pyarrow as pa
    collection = LemurCollection.create(client, "kept", encoder, pa.schema([("id", pa.int64())]))
    collection.add(tokens, ids=np.arange(len(tokens)))
    collection.delete([5])
    os.kill(os.getpid(), 9)
hits = LemurCollection(client, "kept", encoder).search(tokens[7], k=10)
print(json.dumps([hits.ids.tolist(), hits.scores.tolist()]))
client.close()
"""


def test_other_processes_and_a_killed_one(small_encoder, tmp_path):
    tokens = np.random.default_rng(4).normal(size=(50, 3, 8)).astype(np.float32)
    small_encoder.save(tmp_path / "map.safetensors")
    np.save(tmp_path / "tokens.npy", tokens)

    def run(todo: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-I", "-c", AGAIN, str(tmp_path), todo]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    killed = run("write")
    assert killed.returncode == -9, killed.stderr
    first, second = run("read"), run("read")
    assert second.returncode == 0, second.stderr
    assert first.stdout == second.stdout
    ids, scores = json.loads(first.stdout)
    exact = LemurIndex().add(list(np.delete(tokens, 5, axis=0)), ids=np.delete(np.arange(50), 5)).search(tokens[7], k=10)
    assert ids == exact.ids.tolist()
    np.testing.assert_allclose(scores, exact.scores, rtol=1e-3)


def test_what_milvus_does_not_take(small, make_small):
    good = make_small(2)
    for documents, ids, kind, message in (
        (small_table(["a"], good[:1], colour=["red"]), None, ValueError, "column 'colour', the collection has fields"),
        (small_table(["a"], good[:1], year=["then"]), None, TypeError, "column 'year' is .*string, the field takes int64"),
        (good[:1], ["a" * 70_000], ValueError, "column 'id' has a text of 70000 bytes"),
    ):
        for write in (small.add, small.upsert):
            with pytest.raises(kind, match=message):
                write(documents, ids=ids)
    small.add(good[:1], ids=["a"])
    with pytest.raises(ValueError, match="filter must not be empty"):
        small.delete(filter=" ")
    for arguments in ({"k": 20_000}, {"num_candidates": 20_000}):
        with pytest.raises(ValueError, match="at most 16384, got 20000"):
            small.search(good[0], **arguments)
    assert len(small) == 1


def test_collection_and_encoder_must_fit(small, small_encoder, encoder, make_small, client):
    with pytest.raises(ValueError, match="there are no documents to learn from"):
        small.fit("other", make_small(60))
    small.add(make_small(1), ids=["a"])
    other = LemurEncoder.fit(make_small(100), make_small(60), num_features=64, epochs=1, rank=15)
    with pytest.raises(ValueError, match="made by another encoder"):
        LemurCollection(client, "small", other)
    with pytest.raises(ValueError, match="'vector' of dim 16, the encoder's have dim"):
        LemurCollection(client, "small", encoder)
    with pytest.raises(ValueError, match="no collection 'elsewhere'"):
        LemurCollection(client, "elsewhere", small_encoder)
    with pytest.raises(TypeError, match="must be a LemurEncoder"):
        LemurCollection(client, "small", "map.safetensors")
    with pytest.raises(ValueError, match="there is a collection 'small' already"):
        LemurCollection.create(client, "small", small_encoder, pa.schema([("id", pa.string())]))
    with pytest.raises(ValueError, match="must have a column 'id'"):
        LemurCollection.create(client, "none", small_encoder, pa.schema([("text", pa.string())]))
    client.create_collection("theirs", dimension=16)
    with pytest.raises(ValueError, match="must have fields 'id' and 'tokens'"):
        LemurCollection(client, "theirs", small_encoder)
    assert sorted(client.list_collections()) == ["small", "theirs"]


def test_a_fit_that_fails_leaves_no_collection(small, make_small, monkeypatch):
    small.add(make_small(20), ids=[str(i) for i in range(20)])

    def full(self, part, *, new):
        raise OSError("no space left on device")

    monkeypatch.setattr(LemurCollection, "_write", full)
    with pytest.raises(OSError, match="no space left"):
        small.fit("other", make_small(30), num_features=64, epochs=1, rank=15)
    assert small.client.list_collections() == ["small"]
    with pytest.raises(ValueError, match="there is a collection 'small' already"):
        small.fit("small", make_small(30))
    assert len(small) == 20
