from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("chromadb", reason="pip install lemur_ann[chroma]")

import chromadb
from chromadb.config import Settings
from chromadb.errors import ChromaError
from lemur_ann.adapters.chroma import LemurCollection

from lemur_ann import LemurEncoder, LemurIndex

pytestmark = pytest.mark.filterwarnings("ignore:legacy embedding function config:DeprecationWarning")

QUICK = {"num_features": 512, "epochs": 0, "num_sample_tokens": 1024}


def quiet() -> Settings:
    """Anew each time, since clients write into them."""
    return Settings(anonymized_telemetry=False)


def connect(path) -> chromadb.ClientAPI:
    return chromadb.PersistentClient(str(path), settings=quiet())


@pytest.fixture(params=["records", "beside"])
def collection(request, tmp_path, encoder, documents):
    """The sample, with its tokens in either place."""
    tokens = LemurIndex.open(tmp_path / "tokens", candidates="exact", token_codes=None) if request.param == "beside" else None
    made = LemurCollection.create(connect(tmp_path / "db"), "demo", encoder, tokens=tokens)
    made.add(documents)
    yield made
    if tokens is not None:
        tokens.close()


def test_finds_what_exact_search_finds(collection, documents, queries, exact, matrices_of, recall, maxsim):
    found = collection.search(queries, k=10, num_candidates=200)
    assert recall(found, exact) >= 0.95
    by_id = dict(zip(documents.column("id").to_pylist(), matrices_of(documents), strict=True))
    for query, hits in zip(queries, found, strict=True):
        assert hits.scores.dtype == np.float32
        assert np.all(np.diff(hits.scores) <= 0)
        np.testing.assert_allclose(hits.scores, [maxsim(query, by_id[doc_id]) for doc_id in hits.ids], rtol=1e-3)
    assert collection.search(queries[0]) == found[0]
    assert collection.search([]) == []


def test_all_documents_as_candidates_are_exact_search(collection, queries, exact, recall):
    found = collection.search(queries[:20], k=10, num_candidates=600)
    assert recall(found, exact[:20]) >= 0.99  # Chroma's graph may leave out a record or two
    every = collection.search(queries[0], k=600)
    assert len(set(every.ids)) == 600


def test_clusters(tmp_path, recall):
    random = np.random.default_rng(3)
    centres = random.normal(size=(60, 24))

    def near(cluster: int, count: int) -> np.ndarray:
        matrix = centres[cluster] + 0.8 * random.normal(size=(count, 24))
        return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)

    matrices = [near(i % 60, int(random.integers(3, 12))) for i in range(3000)]
    training, asked = ([near(int(random.integers(60)), 5) for _ in range(count)] for count in (600, 40))
    encoder = LemurEncoder.fit(matrices, training, num_features=512, epochs=0, num_sample_tokens=1024)
    collection = LemurCollection.create(connect(tmp_path), "clusters", encoder)
    collection.add(matrices, ids=[str(i) for i in range(3000)])
    exact = LemurIndex().add(matrices, ids=[str(i) for i in range(3000)]).search(asked, k=10)
    found = collection.search(asked, k=10, num_candidates=300)
    assert recall(found, exact) >= 0.95
    scores = dict(exact[0])
    np.testing.assert_allclose(
        *zip(*((score, scores[doc_id]) for doc_id, score in found[0] if doc_id in scores), strict=True), rtol=1e-3
    )


def test_filters(collection, documents, queries, recall):
    years = dict(zip(documents.column("id").to_pylist(), documents.column("year").to_pylist(), strict=True))
    for where, test in (({"year": {"$gte": 2010}}, lambda year: year >= 2010), ({"year": 1993}, lambda year: year == 1993)):
        passing = [row for row, year in enumerate(years.values()) if test(year)]
        part = LemurIndex().add(documents.take(passing)).search(queries[:8], k=10)
        found = collection.search(queries[:8], k=10, filter=where)
        assert all(test(years[doc_id]) for hits in found for doc_id in hits.ids)
        assert recall(found, part) >= 0.95
    few = collection.search(queries[0], k=50, filter={"year": 1993}, num_candidates=1)
    assert len(few) == sum(year == 1993 for year in years.values())
    assert len(collection.search(queries[0], filter={"year": 1})) == 0

    texts = dict(zip(documents.column("id").to_pylist(), documents.column("text").to_pylist(), strict=True))
    hits = collection.search(queries[0], k=600, where_document={"$contains": "library"})
    assert set(hits.ids) == {doc_id for doc_id, text in texts.items() if "library" in text}
    with pytest.raises(ValueError, match="Expected where operator"):
        collection.search(queries[0], filter={"year": {"$like": 1}})


def test_changes_are_visible(collection, documents, queries, maxsim):
    before = collection.search(queries[0], k=3)
    assert collection.delete([before.ids[0], "not there", before.ids[0]]) == 1
    assert len(collection) == 599
    assert before.ids[0] not in collection.search(queries[0], k=3).ids

    collection.add(pa.table({"id": ["new"], "tokens": pa.array([queries[0].tolist()], documents.schema.field("tokens").type)}))
    hits = collection.search(queries[0], k=1)
    assert hits.ids.tolist() == ["new"]
    assert hits.scores[0] == pytest.approx(maxsim(queries[0], queries[0]), rel=1e-3)
    collection.upsert([queries[1], queries[2]], ids=["new", "newer"])
    assert len(collection) == 601
    assert collection.search(queries[1], k=1).ids.tolist() == ["new"]
    scores = dict(collection.search(queries[0], k=601))
    assert len(scores) == 601
    assert scores["new"] == pytest.approx(maxsim(queries[0], queries[1]), rel=1e-3)

    collection.collection.update(ids=["new"], metadatas=[{"year": 2050}])  # Chroma's own call keeps the tokens
    assert collection.search(queries[1], filter={"year": 2050}).ids.tolist() == ["new"]
    assert collection.delete(filter={"year": {"$lt": 2019}}) == 579
    left = collection.search(queries[0], k=100)
    assert len(left) == len(collection) == 22
    assert "newer" in left.ids
    assert collection.delete(where_document={"$contains": " "}) == 20
    assert set(collection.search(queries[0]).ids) == {"new", "newer"}
    assert collection.delete("new") == 1
    assert collection.delete([]) == 0
    assert collection.delete(["newer"]) == 1
    assert len(collection) == len(collection.search(queries[0])) == 0


def test_records_are_chromas(tmp_path, encoder, documents):
    collection = LemurCollection.create(connect(tmp_path), "demo", encoder, metadata={"owner": "me"}, hnsw={"ef_search": 300})
    assert collection.collection.metadata["owner"] == "me"
    assert collection.collection.configuration["hnsw"]["ef_search"] == 300
    two = documents[:2].select(["id", "tokens", "text"])
    two = two.append_column("tags", pa.array([["a", "b"], None])).append_column("x", pa.array([0.5, None]))
    two = two.append_column("good", pa.array([True, False]))
    collection.add(two)
    got = collection.collection.get()
    assert got["ids"] == two.column("id").to_pylist()
    assert got["documents"] == two.column("text").to_pylist()
    assert got["metadatas"] == [{"tags": ["a", "b"], "x": 0.5, "good": True}, {"good": False}]
    collection.upsert(two[:1].select(["id", "tokens"]).append_column("x", pa.array([None], pa.float64())))
    assert collection.collection.get(ids=got["ids"][:1])["metadatas"] == [{"tags": ["a", "b"], "good": True}]
    embeddings = collection.collection.get(include=["embeddings"])["embeddings"]
    np.testing.assert_array_equal(embeddings, encoder.encode_documents(two))


def test_large_writes_are_split(tmp_path, encoder, documents, queries, monkeypatch, recall):
    monkeypatch.setattr(LemurCollection, "bytes_per_request", 100_000)
    monkeypatch.setattr(LemurCollection, "documents_per_request", 10)
    collection = LemurCollection.create(connect(tmp_path), "demo", encoder)
    collection.add(documents[:1])
    written = []
    add = collection.collection.add
    monkeypatch.setattr(collection.collection, "add", lambda **record: (written.append(len(record["ids"])), add(**record)))
    collection.add(documents[1:200])
    assert sum(written) == 199
    assert max(written) <= 10
    assert len(written) > 20
    exact = LemurIndex().add(documents[:200]).search(queries[:10], k=10)
    assert recall(collection.search(queries[:10], k=10), exact) >= 0.95


def test_refit(collection, demo_data, queries, exact, encoder, recall):
    collection.collection.modify(metadata={**collection.collection.metadata, "owner": "me"})
    new = collection.refit(demo_data.training_queries, "again", num_documents=400, rank=127, **QUICK)
    assert new.encoder.dim == 128
    assert new.collection.metadata["owner"] == "me"
    assert len(new) == len(collection) == 600
    assert recall(new.search(queries, k=10, num_candidates=300), exact) >= 0.95
    rows = [one.collection.get(include=["documents", "metadatas"]) for one in (collection, new)]
    assert rows[0] == rows[1]
    stored = new.collection.get(ids=["zlib1g", *rows[0]["ids"][:1]], include=["embeddings"])["embeddings"]
    np.testing.assert_allclose(np.linalg.norm(stored, axis=1), new.encoder.radius, rtol=1e-3)
    with pytest.raises(ValueError, match="made by another encoder"):
        LemurCollection(collection.client, "again", encoder, tokens=collection.tokens)


AGAIN = """
import json, os, sys
import chromadb, numpy as np
from chromadb.config import Settings
from lemur_ann import LemurEncoder, LemurIndex
from lemur_ann.adapters.chroma import LemurCollection
folder = sys.argv[1]
client = chromadb.PersistentClient(folder + "/db", settings=Settings(anonymized_telemetry=False))
tokens = LemurIndex.open(folder + "/tokens") if os.path.exists(folder + "/tokens") else None
collection = LemurCollection(client, "demo", LemurEncoder.load(folder + "/map.safetensors"), tokens=tokens)
query = np.load(folder + "/query.npy")
if sys.argv[2] == "write":
    collection.upsert([query], ids=["late"])
    os._exit(1)  # without closing anything
hits = collection.search(query, k=10)
print(json.dumps([hits.ids.tolist(), hits.scores.tolist()]))
"""


def test_another_process_finds_the_same(collection, queries, encoder, tmp_path, maxsim):
    encoder.save(tmp_path / "map.safetensors")
    np.save(tmp_path / "query.npy", queries[0])
    hits = collection.search(queries[0], k=9)
    if collection.tokens is not None:
        collection.tokens.close()

    def again(what: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-I", "-c", AGAIN, str(tmp_path), what]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    killed = again("write")
    assert killed.returncode == 1, killed.stderr
    assert not killed.stderr
    done = again("read")
    assert done.returncode == 0, done.stderr
    ids, scores = json.loads(done.stdout)
    assert ids == ["late", *hits.ids]
    assert scores == [pytest.approx(maxsim(queries[0], queries[0]), rel=1e-3), *hits.scores.tolist()]


def test_server(tmp_path, encoder, documents, queries, exact, recall):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).parent / "chroma", "run", "--path", tmp_path, "--host", "127.0.0.1", "--port", str(port)]
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=tmp_path, env={**os.environ, "ANONYMIZED_TELEMETRY": "False"}
        )
    try:
        for _ in range(300):
            assert server.poll() is None, (tmp_path / "log").read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        with chromadb.HttpClient("127.0.0.1", port, settings=quiet()) as client:
            LemurCollection.create(client, "demo", encoder).add(documents)
            collection = LemurCollection(client, "demo", encoder)
            assert len(collection) == 600
            found = collection.search(queries[:20], k=10)
            assert recall(found, exact[:20]) >= 0.95
            collection.delete(filter={"year": {"$ne": 1993}})
            assert len(collection.search(queries[0], k=50)) == 20
            for one in (client, client._admin_client):
                one._server._session.close()  # which Chroma's own close leaves to the garbage collector
    finally:
        server.terminate()
        server.wait(30)


def test_what_chroma_does_not_take(collection, documents, matrices_of):
    good = matrices_of(documents)[:2]
    first = documents.column("id")[0].as_py()
    dates = pa.table({"id": ["a"], "tokens": documents.column("tokens")[:1], "day": pa.array([0], pa.date32())})
    for write in (collection.add, collection.upsert):
        with pytest.raises(ValueError, match="Expected metadata value to be a str.* which is a date"):
            write(dates)
        with pytest.raises(TypeError, match="column 'text' must be of strings"):
            write(documents[:1].drop_columns("text").append_column("text", pa.array([1])))
        with pytest.raises(ValueError, match="id 'a' is repeated"):
            write(good, ids=["a", "a"])
    with pytest.raises(ValueError, match=f"id '{first}' is there already; upsert replaces"):
        collection.add(good, ids=["a", first])
    with pytest.raises(TypeError, match="delete takes either ids or filter=, one of them"):
        collection.delete(["a"], where_document={"$contains": "library"})
    assert len(collection) == 600
    assert collection.tokens is None or len(collection.tokens) == 600


def test_collection_and_encoder_must_fit(collection, encoder, documents, demo_data, queries):
    client = collection.client
    other = LemurEncoder.fit(documents[:300], demo_data.training_queries, num_features=64, epochs=0, rank=15)
    with pytest.raises(ValueError, match="made by another encoder"):
        LemurCollection(client, "demo", other, tokens=collection.tokens)
    with pytest.raises(ValueError, match="collection 'demo' keeps its tokens in"):
        LemurCollection(client, "demo", encoder, tokens=LemurIndex() if collection.tokens is None else None)
    with pytest.raises(TypeError, match="encoder must be a LemurEncoder, got str"):
        LemurCollection(client, "demo", "map.safetensors")
    with pytest.raises(TypeError, match="tokens must be a LemurIndex, got str"):
        LemurCollection(client, "demo", encoder, tokens="tokens")
    with pytest.raises(ValueError, match="tokens must be an empty index, got one of 600 documents"):
        LemurCollection.create(client, "more", encoder, tokens=LemurIndex().add(documents))
    with pytest.raises(ChromaError, match="already exists"):
        LemurCollection.create(client, "demo", encoder)
    with pytest.raises(ChromaError, match="does not exist"):
        LemurCollection(client, "elsewhere", encoder)
    client.create_collection("plain", embedding_function=None)
    with pytest.raises(ValueError, match="was not made by LemurCollection"):
        LemurCollection(client, "plain", encoder)
    empty = LemurCollection.create(client, "empty", encoder)
    assert len(empty.search(queries[0])) == 0
    with pytest.raises(ValueError, match="no documents to learn from"):
        empty.refit(demo_data.training_queries, "never")
    empty.collection.add(ids=["theirs"], embeddings=encoder.encode_documents(documents[:1]))
    with pytest.raises(ValueError, match="record 'theirs' has no tokens"):
        empty.search(queries[0])


def test_a_refit_that_fails_leaves_no_collection(tmp_path, encoder, documents, queries, monkeypatch):
    client = connect(tmp_path)
    collection = LemurCollection.create(client, "demo", encoder)
    collection.add(documents[:40])
    mine = client.create_collection("mine")
    mine.add(ids=["1"], documents=["ten years of work"], embeddings=[[1.0]])

    def full(self, new, ids):
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(LemurCollection, "_copy", full)
        with pytest.raises(OSError, match="no space left"):
            collection.refit(queries, "other", **QUICK)
    with pytest.raises(ChromaError, match="already exists"):
        collection.refit(queries, "mine", **QUICK)
    with pytest.raises(ChromaError, match="already exists"):
        LemurCollection.create(client, "mine", encoder)
    assert sorted(found.name for found in client.list_collections()) == ["demo", "mine"]
    assert mine.get()["documents"] == ["ten years of work"]
    assert len(collection) == 40


@pytest.mark.parametrize("beside", [False, True])
def test_an_empty_id_is_told_before_anything_is_written(tmp_path, encoder, documents, matrices_of, beside):
    tokens = LemurIndex() if beside else None
    collection = LemurCollection.create(connect(tmp_path), "demo", encoder, tokens=tokens)
    for write in (collection.add, collection.upsert):
        with pytest.raises(ValueError, match="Chroma takes no empty id, and there is one in row 1"):
            write(matrices_of(documents[:2]), ids=["a", ""])
    assert len(collection) == 0
    assert tokens is None or len(tokens) == 0


def test_empty_filters(collection, queries):
    assert collection.search(queries[0], filter={}, where_document={}) == collection.search(queries[0])
    for nothing in ({"filter": {}}, {"where_document": {}}, {"filter": {}, "where_document": {}}):
        with pytest.raises(ValueError, match="exactly one operator"):
            collection.delete(**nothing)
    assert len(collection) == 600
