from __future__ import annotations

import datetime
import subprocess
import sys
import uuid

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("qdrant_client", reason="pip install lemur_ann[qdrant]")
pytest.importorskip("qdrant_edge", reason="pip install lemur_ann[qdrant]")

import qdrant_edge as edge
from lemur_ann.adapters.qdrant import LemurCollection, LemurShard, point_id
from qdrant_client import QdrantClient, models

from lemur_ann import Hits, LemurEncoder, LemurIndex

GRAPH = {"indexing_threshold": 1, "full_scan_threshold": 100}  # kilobytes: a graph, and scans of what filters leave


@pytest.fixture(scope="module")
def encoder(demo_data) -> LemurEncoder:
    return LemurEncoder.fit(demo_data.documents, demo_data.training_queries, num_features=256, epochs=1, num_sample_tokens=2048)


@pytest.fixture(scope="module")
def queries(demo_data) -> list[np.ndarray]:
    return [np.array(query, np.float32) for query in demo_data.queries.column("tokens").to_pylist()]


@pytest.fixture(scope="module")
def exact(demo_data, queries) -> list[Hits]:
    return LemurIndex().add(demo_data.documents).search(queries, k=10)


@pytest.fixture(scope="module")
def rows(demo_data) -> pa.Table:
    """The sample, with what a filter can ask for."""
    years = pa.array([2000 + i % 20 for i in range(len(demo_data.documents))])
    return demo_data.documents.append_column("year", years)


@pytest.fixture(scope="module", params=["collection", "shard"])
def filled(request, encoder, rows, tmp_path_factory):
    """The sample in either engine; tests must not change it."""
    if request.param == "collection":
        collection = LemurCollection.create(QdrantClient(":memory:"), "demo", encoder)
        collection.add(rows)
        yield collection
        return
    with LemurShard.create(tmp_path_factory.mktemp("qdrant") / "shard", encoder, **GRAPH) as shard:
        shard.add(rows)
        assert shard.create_index()
        assert shard.shard.info().indexed_vectors_count >= len(rows)
        yield shard


@pytest.fixture(scope="module")
def small_encoder() -> LemurEncoder:
    random = np.random.default_rng(0)
    return LemurEncoder.fit(matrices(random, 100), matrices(random, 60), num_features=64, epochs=1, rank=15)


@pytest.fixture(params=["collection", "shard"])
def empty(request, small_encoder, tmp_path):
    """A collection of tokens of dim 8 that tests may change."""
    if request.param == "collection":
        yield LemurCollection.create(QdrantClient(":memory:"), "small", small_encoder)
        return
    with LemurShard.create(tmp_path / "small", small_encoder) as shard:
        yield shard


def matrices(random: np.random.Generator, count: int, dim: int = 8) -> list[np.ndarray]:
    made = [random.normal(size=(int(random.integers(2, 6)), dim)).astype(np.float32) for _ in range(count)]
    return [matrix / np.linalg.norm(matrix, axis=1, keepdims=True) for matrix in made]


def clustered(random: np.random.Generator, count: int) -> list[np.ndarray]:
    centres = np.random.default_rng(0).normal(size=(60, 16))
    raw = [centres[random.integers(60)] + 0.6 * random.normal(size=(8, 16)) for _ in range(count)]
    return [(matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32) for matrix in raw]


def table(ids: list, tokens: list[np.ndarray], **columns: list) -> pa.Table:
    kind = pa.list_(pa.list_(pa.float32(), tokens[0].shape[1]))
    return pa.table({"id": ids, "tokens": pa.array([matrix.tolist() for matrix in tokens], kind), **columns})


def year_is(collection, year: int):
    if isinstance(collection, LemurShard):
        return edge.Filter(must=[edge.FieldCondition("year", match=edge.MatchValue(year))])
    return models.Filter(must=[models.FieldCondition(key="year", match=models.MatchValue(value=year))])


def assert_exact_scores(found: list[Hits], exact: list[Hits]) -> None:
    for one, best in zip(found, exact, strict=True):
        scores = dict(best)
        common = [(score, scores[doc_id]) for doc_id, score in one if doc_id in scores]
        np.testing.assert_allclose(*np.array(common).T, rtol=1e-3)
        assert one.scores.dtype == np.float32
        assert np.all(np.diff(one.scores) <= 0)


def payloads(collection, ids: list) -> list[dict]:
    points = [point_id(i) for i in ids]
    if isinstance(collection, LemurShard):
        found = collection.shard.retrieve(points, with_payload=True, with_vector=False)
    else:
        found = collection.client.retrieve(collection.name, points, with_payload=True)
    by_id = {str(record.id): record.payload for record in found}
    return [by_id[str(point)] for point in points]


def set_payload(collection, doc_id, payload: dict) -> None:
    if isinstance(collection, LemurShard):
        collection.shard.update(edge.UpdateOperation.set_payload([point_id(doc_id)], payload))
    else:
        collection.client.set_payload(collection.name, payload, points=[point_id(doc_id)])


@pytest.mark.parametrize("rerank", ["engine", "kernel"])
def test_finds_what_exact_maxsim_finds(filled, queries, exact, rerank, recall):
    asked = queries if rerank == "engine" else queries[:20]
    found = filled.search(asked, k=10, num_candidates=150, rerank=rerank)
    assert recall(found, exact[: len(asked)]) >= 0.95
    assert_exact_scores(found, exact[: len(asked)])


def test_one_query_is_the_batch(filled, queries):
    many = filled.search(queries[:5], k=3)
    for query, batched in zip(queries[:5], many, strict=True):
        one = filled.search(query, k=3)
        assert one.ids.tolist() == batched.ids.tolist()
        np.testing.assert_allclose(one.scores, batched.scores, rtol=1e-5)
    assert filled.search([], k=3) == []


def test_reranks_agree(filled, queries):
    for query in queries[:5]:
        a, b = (filled.search(query, rerank=rerank, num_candidates=60) for rerank in ("engine", "kernel"))
        np.testing.assert_allclose(a.scores, b.scores, rtol=1e-4)


def test_filter_is_applied_to_candidates(filled, rows, queries, recall):
    """Each year has a twentieth of the documents: fewer than k of all candidates would be left."""
    of_year = rows.filter(pa.compute.equal(rows.column("year"), 2007))
    best = LemurIndex().add(of_year).search(queries[:20], k=10)
    for rerank in ("engine", "kernel"):
        found = filled.search(queries[:20], k=10, num_candidates=30, filter=year_is(filled, 2007), rerank=rerank)
        assert recall(found, best) == 1
    assert len(filled.search(queries[0], filter=year_is(filled, 1))) == 0


def test_engines_own_multivector_search_agrees_with_exact(filled, queries, exact):
    for query, best in zip(queries[:10], exact[:10], strict=True):
        if isinstance(filled, LemurShard):
            nearest = edge.Query.Nearest(query.tolist(), using="tokens")
            points = filled.shard.query(edge.QueryRequest(limit=10, query=nearest, with_payload=["id"]))
        else:
            points = filled.client.query_points("demo", query.tolist(), using="tokens", limit=10).points
        np.testing.assert_allclose([point.score for point in points], best.scores, rtol=1e-3)
        assert {point.payload["id"] for point in points} == set(best.ids)


def test_clustered_documents(tmp_path, recall):
    random = np.random.default_rng(3)
    documents, asked = table([*range(3000)], clustered(random, 3000)), clustered(random, 40)
    how = {"num_features": 256, "epochs": 2, "num_sample_tokens": 512, "rank": 127}
    encoder = LemurEncoder.fit(documents, clustered(random, 300), **how)
    with LemurShard.create(tmp_path / "shard", encoder, **GRAPH) as shard:
        shard.add(documents)
        assert shard.create_index()
        found = shard.search(asked, num_candidates=200)
    assert recall(found, LemurIndex().add(documents).search(asked, k=10)) >= 0.95


def test_documents_come_and_go(empty, maxsim):
    random = np.random.default_rng(1)
    tokens = matrices(random, 12)
    ids = [f"doc-{i}" for i in range(10)]
    empty.add(table(ids, tokens[:10], year=[2000 + i for i in range(10)]))
    assert len(empty) == 10
    assert empty.search(tokens[4], k=1).ids.tolist() == ["doc-4"]
    assert len(empty.search(tokens[4], k=50)) == 10

    empty.upsert(table(["doc-4", "doc-10"], [tokens[10], tokens[11]], year=[1999, 1999]))
    assert len(empty) == 11
    assert empty.search(tokens[10], k=1).ids.tolist() == ["doc-4"]
    assert payloads(empty, ["doc-4"]) == [{"id": "doc-4", "year": 1999}]
    assert empty.search(tokens[10], k=1).scores[0] == pytest.approx(maxsim(tokens[10], tokens[10]), rel=1e-3)

    assert empty.delete(["doc-4", "nobody", "doc-4"]) == 1
    assert empty.delete("doc-0") == 1
    assert "doc-4" not in empty.search(tokens[10], k=50).ids
    assert len(empty) == 9
    assert empty.delete(filter=year_is(empty, 2001)) == 1
    assert len(empty) == 8
    assert "doc-1" not in empty.search(tokens[1], k=50).ids
    with pytest.raises(ValueError, match="'doc-2' is there already"):
        empty.add(table(["doc-20", "doc-2"], tokens[:2]))
    assert len(empty) == 8


def test_ids_come_back_as_they_went_in(empty):
    tokens = matrices(np.random.default_rng(2), 4)
    uuids = [str(uuid.uuid4()), str(uuid.uuid4()).upper()]
    empty.add(table([*uuids, "any text: ü"], tokens[:3]))
    assert [empty.search(query, k=1).ids[0] for query in tokens[:3]] == [*uuids, "any text: ü"]
    assert empty.delete([*uuids, "any text: ü"]) == 3
    assert len(empty) == 0
    assert len(empty.search(tokens[0])) == 0
    assert len(empty.search(tokens[0], rerank="kernel")) == 0

    empty.add(table([0, 2**40], tokens[:2]))
    hits = empty.search(tokens[1], k=2)
    assert hits.ids.dtype == np.int64
    assert hits.ids.tolist() == [2**40, 0]
    empty.delete(0)
    assert empty.search(tokens[1]).ids.tolist() == [2**40]


def test_payload_is_of_the_engines_types(empty):
    tokens = matrices(np.random.default_rng(2), 1)
    when = datetime.datetime(2024, 5, 6, 7, 8, tzinfo=datetime.timezone.utc)
    columns = {"n": [7], "x": [0.5], "flag": [True], "tags": [["a", "b"]], "of": [{"a": 1}], "none": [None], "when": [when]}
    empty.add(table(["a"], tokens, **columns))
    expected = {"id": "a", "n": 7, "x": 0.5, "flag": True, "tags": ["a", "b"], "of": {"a": 1}, "none": None}
    assert payloads(empty, ["a"]) == [{**expected, "when": "2024-05-06T07:08:00+00:00"}]
    with pytest.raises(TypeError, match="a payload cannot hold bytes"):
        empty.add(table(["b"], tokens, raw=[b"x"]))
    set_payload(empty, "a", {"year": 2001})
    assert empty.search(tokens[0], filter=year_is(empty, 2001)).ids.tolist() == ["a"]


def test_large_writes_are_split(empty, monkeypatch):
    monkeypatch.setattr(type(empty), "bytes_per_request", 400)
    written = []
    write = empty._engine.write
    monkeypatch.setattr(empty._engine, "write", lambda points: (written.append(len(points)), write(points)))
    tokens = matrices(np.random.default_rng(2), 30)
    empty.add(table([f"{i}" for i in range(30)], tokens))
    assert sum(written) == len(empty) == 30
    assert len(written) > 8
    assert [empty.search(query, k=1).ids[0] for query in tokens] == [f"{i}" for i in range(30)]


def test_what_qdrant_does_not_take(empty):
    tokens = matrices(np.random.default_rng(2), 3)
    for write in (empty.add, empty.upsert):
        with pytest.raises(ValueError, match="at least 0, got -2"):
            write(table([1, -2, 3], tokens))
        with pytest.raises(ValueError, match="is repeated, expected each id once"):  # two ids of one point
            write(table(["abc", point_id("abc")], tokens[:2]))
    assert len(empty) == 0
    with pytest.raises(ValueError, match="at least 0, got -2"):
        empty.delete([1, -2])
    with pytest.raises(ValueError, match="rerank must be one of"):
        empty.search(tokens[0], rerank="mine")


def test_schema_and_encoder_must_fit(small_encoder, encoder, tmp_path):
    random = np.random.default_rng(5)
    tokens = matrices(random, 20)
    other = LemurEncoder.fit(matrices(random, 100), matrices(random, 60), num_features=64, epochs=1, rank=15)
    client = QdrantClient(":memory:")
    LemurCollection.create(client, "there", small_encoder).add(table([*range(20)], tokens))
    with pytest.raises(ValueError, match="there is a collection 'there' already"):
        LemurCollection.create(client, "there", small_encoder)
    with pytest.raises(ValueError, match="no collection 'elsewhere'"):
        LemurCollection(client, "elsewhere", small_encoder)
    with pytest.raises(ValueError, match="made by another encoder"):
        LemurCollection(client, "there", other)
    with pytest.raises(ValueError, match="has dim 16, the encoder's have dim 256"):
        LemurCollection(client, "there", encoder)
    with pytest.raises(ValueError, match="has no vector 'mine'"):
        LemurCollection(client, "there", small_encoder, vector_name="mine")
    with pytest.raises(ValueError, match="must not be a multi-vector"):
        LemurCollection(client, "there", small_encoder_of_dim(8), vector_name="tokens", tokens_name="lemur")
    with pytest.raises(TypeError, match="must be a LemurEncoder"):
        LemurCollection(client, "there", "map.safetensors")

    with LemurShard.create(tmp_path / "shard", small_encoder) as shard:
        shard.add(table([*range(20)], tokens))
        with pytest.raises(ValueError, match="made by another encoder"):
            LemurShard(shard.shard, other)
        with pytest.raises(ValueError, match="no vector 'lemur' of dim 256"):
            LemurShard(shard.shard, encoder)
        with pytest.raises(ValueError, match="no vector 'mine'"):
            LemurShard(shard.shard, small_encoder, vector_name="mine")


def small_encoder_of_dim(dim: int) -> LemurEncoder:
    random = np.random.default_rng(6)
    return LemurEncoder.fit(matrices(random, 40, 16), matrices(random, 20, 16), num_features=32, epochs=0, rank=dim - 1)


AGAIN = """
import sys
import numpy as np
from qdrant_client import QdrantClient
from lemur_ann import LemurEncoder
from lemur_ann.adapters.qdrant import LemurCollection, LemurShard

kind, path, encoder, query = sys.argv[1:]
encoder, query = LemurEncoder.load(encoder), np.load(query)
collection = LemurShard.load(path, encoder) if kind == "shard" else LemurCollection(QdrantClient(path=path), "kept", encoder)
hits = collection.search(query, k=5)
print(hits.ids.tolist(), hits.scores.tolist())
(collection if kind == "shard" else collection.client).close()
"""


@pytest.mark.parametrize("kind", ["collection", "shard"])
def test_another_process_finds_the_same(kind, small_encoder, tmp_path):
    tokens = matrices(np.random.default_rng(4), 50)
    path = tmp_path / "store"
    if kind == "shard":
        collection = LemurShard.create(path, small_encoder)
    else:
        collection = LemurCollection.create(QdrantClient(path=str(path)), "kept", small_encoder)
    collection.add(table([f"doc-{i}" for i in range(50)], tokens))
    collection.delete(["doc-3"])
    hits = collection.search(tokens[3], k=5)
    (collection if kind == "shard" else collection.client).close()
    small_encoder.save(tmp_path / "map.safetensors")
    np.save(tmp_path / "query.npy", tokens[3])
    files = [str(path), str(tmp_path / "map.safetensors"), str(tmp_path / "query.npy")]
    done = subprocess.run([sys.executable, "-I", "-c", AGAIN, kind, *files], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hits.ids.tolist()} {hits.scores.tolist()}"
    assert "doc-3" not in hits.ids


def test_a_shard_that_was_not_closed_has_its_writes(small_encoder, tmp_path):
    tokens = matrices(np.random.default_rng(4), 20)
    small_encoder.save(tmp_path / "map.safetensors")
    np.save(tmp_path / "tokens.npy", np.concatenate([matrix[:2] for matrix in tokens]))
    program = """
import os, sys
import numpy as np
from lemur_ann import LemurEncoder
from lemur_ann.adapters.qdrant import LemurShard
import pyarrow as pa
folder = sys.argv[1]
tokens = np.load(folder + "/tokens.npy").reshape(20, 2, 8)
shard = LemurShard.create(folder + "/shard", LemurEncoder.load(folder + "/map.safetensors"))
kind = pa.list_(pa.list_(pa.float32(), 8))
shard.add(pa.table({"id": list(range(20)), "tokens": pa.array(tokens.tolist(), kind)}))
shard.delete([5])
os.kill(os.getpid(), 9)
"""
    killed = subprocess.run([sys.executable, "-I", "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert killed.returncode == -9, killed.stderr
    with LemurShard.load(tmp_path / "shard", small_encoder) as shard:
        assert len(shard) == 19
        assert shard.search(tokens[7][:2], k=1).ids.tolist() == [7]


def test_a_shards_graph_is_of_the_options(small_encoder, tmp_path):
    tokens = matrices(np.random.default_rng(4), 400)
    with LemurShard.create(tmp_path / "shard", small_encoder) as shard:
        shard.add(table([*range(400)], tokens))
        assert not shard.create_index()  # below the threshold
        before = [hits.ids.tolist() for hits in shard.search(tokens[:20], k=1)]
    quantization = edge.ScalarQuantizationConfig(edge.ScalarType.Int8)
    with LemurShard.load(tmp_path / "shard", small_encoder, m=8, quantization=quantization, **GRAPH) as shard:
        assert shard.create_index()
        assert shard.shard.info().indexed_vectors_count >= 400
        assert [hits.ids.tolist() for hits in shard.search(tokens[:20], k=1)] == before
        exact = LemurIndex().add(tokens).search(tokens[:20], k=1)
        np.testing.assert_allclose(
            [h.scores[0] for h in shard.search(tokens[:20], k=1)], [h.scores[0] for h in exact], rtol=1e-3
        )


def old_collection(kind: str, tmp_path, documents: list[np.ndarray], distance: str = "DOT"):
    """A collection made without LEMUR, whose payload has an ``id`` of its own, and a point without tokens."""
    if kind == "collection":
        client = QdrantClient(":memory:")
        multi = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
        params = models.VectorParams(size=16, distance=models.Distance[distance], multivector_config=multi)
        client.create_collection("old", vectors_config={"colbert": params})
        points = [
            models.PointStruct(id=i, vector={"colbert": matrix.tolist()}, payload={"id": f"theirs {i}"})
            for i, matrix in enumerate(documents)
        ]
        client.upsert("old", [*points, models.PointStruct(id=9999, vector={})])
        return (client, "old")
    multi = edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim)
    params = edge.EdgeVectorParams(16, edge.Distance.Dot, multivector_config=multi)
    shard = edge.EdgeShard.create(str(tmp_path / "old"), edge.EdgeConfig(vectors={"colbert": params}))
    points = [edge.Point(i, {"colbert": matrix.tolist()}, {"id": f"theirs {i}"}) for i, matrix in enumerate(documents)]
    shard.update(edge.UpdateOperation.upsert_points([*points, edge.Point(9999, {}, {})]))
    return (shard,)


@pytest.mark.parametrize(("kind", "distance"), [("collection", "DOT"), ("collection", "COSINE"), ("shard", "DOT")])
def test_learns_from_what_is_there(kind, distance, tmp_path, recall):
    random = np.random.default_rng(8)
    documents, training = clustered(random, 600), clustered(random, 100)
    asked = [matrix * np.float32(3) for matrix in clustered(random, 30)]
    if distance == "COSINE":
        training = [matrix * random.uniform(1, 5) for matrix in training]
    old = old_collection(kind, tmp_path, documents, distance)
    how = {"tokens_name": "colbert", "num_features": 128, "epochs": 2, "num_sample_tokens": 512, "rank": 63}
    cls = LemurCollection if kind == "collection" else LemurShard
    learned = cls.fit(*old, training, num_documents=300, **how)
    assert len(learned) == 601
    compared = [matrix / np.float32(3) for matrix in asked] if distance == "COSINE" else asked
    exact = LemurIndex().add(documents).search(compared, k=10)
    for rerank in ("engine", "kernel"):
        found = learned.search(asked, num_candidates=200, rerank=rerank)
        assert recall(found, exact) >= 0.95
        assert_exact_scores(found, exact)
    with pytest.raises(ValueError, match="there is a vector 'lemur' already"):
        cls.fit(*old, training, **how)
    again = cls.fit(*old, training, replace=True, **{**how, "rank": 31})
    assert again.encoder.dim == 32
    assert recall(again.search(asked, num_candidates=300), exact) >= 0.95
    new = clustered(random, 1)
    again.add(table([601], new))
    assert again.search(new[0], k=1).ids.tolist() == [601]


def test_nothing_to_learn_from(small_encoder, tmp_path):
    client = QdrantClient(":memory:")
    with pytest.raises(ValueError, match="no collection 'old'"):
        LemurCollection.fit(client, "old")
    with pytest.raises(ValueError, match="no point has 'colbert'"):
        LemurCollection.fit(*old_collection("collection", tmp_path, []), tokens_name="colbert")
    with pytest.raises(ValueError, match="no multi-vector 'tokens'"):
        LemurCollection.fit(*old_collection("collection", tmp_path, []))


def test_options_of_a_collection_reach_the_engine(small_encoder):
    client = QdrantClient(":memory:")
    graph = models.HnswConfigDiff(m=24)
    made = LemurCollection.create(client, "a", small_encoder, vector_params={"hnsw_config": graph, "on_disk": True})
    params = client.get_collection("a").config.params.vectors
    assert (params["lemur"].hnsw_config.m, params["lemur"].on_disk, params["tokens"].hnsw_config.m) == (24, True, 0)
    assert params["lemur"].distance == params["tokens"].distance == models.Distance.DOT
    made.create_index(hnsw=models.HnswConfigDiff(m=32), indexing_threshold=100)
    assert len(made) == 0


@pytest.mark.parametrize("kind", ["collection", "shard"])
def test_a_vector_of_somebody_else_is_not_dropped(kind, tmp_path):
    random = np.random.default_rng(5)
    tokens = matrices(random, 30)
    own = random.normal(size=(30, 3))
    if kind == "collection":
        client, multi = QdrantClient(":memory:"), models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
        vectors = {"dense": models.VectorParams(size=3, distance=models.Distance.DOT)}
        vectors["tokens"] = models.VectorParams(size=8, distance=models.Distance.DOT, multivector_config=multi)
        client.create_collection("mine", vectors_config=vectors)
        named = [{"dense": own[i].tolist(), "tokens": tokens[i].tolist()} for i in range(30)]
        client.upsert("mine", [models.PointStruct(id=i, vector=vector) for i, vector in enumerate(named)])
        fit, read = LemurCollection.fit, lambda name: client.retrieve("mine", [7], with_vectors=True)[0].vector[name]
        place = (client, "mine")
    else:
        params = {"dense": edge.EdgeVectorParams(3, edge.Distance.Dot)}
        multi = edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim)
        params["tokens"] = edge.EdgeVectorParams(8, edge.Distance.Dot, multivector_config=multi)
        (tmp_path / "mine").mkdir()
        shard = edge.EdgeShard.create(str(tmp_path / "mine"), edge.EdgeConfig(vectors=params))
        points = [edge.Point(i, {"dense": own[i].tolist(), "tokens": tokens[i].tolist()}, {}) for i in range(30)]
        shard.update(edge.UpdateOperation.upsert_points(points))
        fit, read = LemurShard.fit, lambda name: shard.retrieve([7], with_payload=False, with_vector=True)[0].vector[name]
        place = (shard,)
    how = {"num_features": 64, "epochs": 1, "rank": 15, "replace": True}
    queries = matrices(random, 40)
    with pytest.raises(ValueError, match="the vector 'dense' was not made by lemur_ann"):
        fit(*place, queries, vector_name="dense", **how)
    with pytest.raises(ValueError, match="vector_name and tokens_name must differ"):
        fit(*place, queries, vector_name="tokens", **how)
    np.testing.assert_allclose(read("dense"), own[7], rtol=1e-5)
    np.testing.assert_allclose(read("tokens"), tokens[7], rtol=1e-5)
    fit(*place, queries, **how)
    assert len(fit(*place, queries, **how)) == 30  # its own is
    np.testing.assert_allclose(read("dense"), own[7], rtol=1e-5)


def test_a_shard_takes_no_folder_of_somebody_else(small_encoder, tmp_path):
    """The engine deletes folders among its segments that it does not know."""
    for folder in ("segments/photos", "papers"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "thesis.txt").write_text("ten years of work")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match="is not empty"):
        LemurShard.create(tmp_path, small_encoder)
    with pytest.raises(FileNotFoundError, match="no shard in"):
        LemurShard.load(tmp_path, small_encoder)
    with pytest.raises(FileExistsError, match="is not empty"):
        LemurShard.create(tmp_path / "papers" / "thesis.txt", small_encoder)
    assert sorted(tmp_path.rglob("*")) == before
    LemurShard.create(tmp_path / "new", small_encoder).close()
    with pytest.raises(FileExistsError, match="is not empty"):
        LemurShard.create(tmp_path / "new", small_encoder)
    LemurShard.load(tmp_path / "new", small_encoder).close()


def test_filters_as_dicts(small_encoder):
    """As in Qdrant's JSON."""
    collection = LemurCollection.create(QdrantClient(":memory:"), "dicts", small_encoder)
    tokens = matrices(np.random.default_rng(2), 4)
    collection.add(table(list("abcd"), tokens, year=[1, 2, 2, 3]))
    two = {"must": [{"key": "year", "match": {"value": 2}}]}
    assert sorted(collection.search(tokens[0], filter=two).ids) == ["b", "c"]
    assert len(collection.search(tokens[0], filter={})) == 4
    with pytest.raises(TypeError, match=r"filter must be a models.Filter, such as .*, got \{'year': 2\}"):
        collection.search(tokens[0], filter={"year": 2})
    assert collection.delete(filter=two) == 2
