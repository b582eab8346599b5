"""The service over HTTP, asked as clients of any language ask it."""

import base64
import concurrent.futures
import json
import socket
import threading
import time

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from lemur_ann import LemurIndex
from lemur_ann.service.access import new_key
from lemur_ann.service.hosted import Hosted, Limits
from tests.service.serving import ARROW, served, words_encoder

NAMES = ["fox", "whale", "owl", "bear"]
SMALL = {"num_features": 64, "epochs": 0, "rank": 15, "num_candidates": 40}


def encoded(matrix, dtype="float16"):
    matrix = np.asarray(matrix, dtype)
    return {"data": base64.b64encode(matrix.tobytes()).decode(), "shape": list(matrix.shape), "dtype": dtype}


def arrow_of(**columns):
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def tokens_column(matrices):
    flat = np.concatenate(matrices)
    offsets = np.cumsum([0, *map(len, matrices)]).astype(np.int32)
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])
    )


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A learned index of 300 documents on disk, and queries."""
    random = np.random.default_rng(5)
    documents = [random.normal(size=(random.integers(3, 9), 16)).astype(np.float32) for _ in range(300)]
    queries = [random.normal(size=(4, 16)).astype(np.float16) for _ in range(40)]
    path = tmp_path_factory.mktemp("service") / "known"
    table = pa.table(
        {"id": np.arange(300), "tokens": tokens_column(documents), "year": 1900 + np.arange(300) % 50, "name": NAMES * 75}
    )
    index = LemurIndex(**SMALL).fit(table, queries=queries, progress=False)
    index.save(path)
    return path, queries


@pytest.fixture(scope="module")
def reading(known):
    """A client of a service of that index, read-only, and the index itself."""
    path, queries = known
    with served(Hosted("known", path, read_only=True)) as address, httpx.Client(base_url=address, timeout=30) as client:
        yield client, LemurIndex.load(path), queries


@pytest.fixture
def writing(tmp_path):
    """A client of a service of an empty index with an encoder, and the folder of the index."""
    folder = tmp_path / "new"
    with (
        served(Hosted("new", folder, encoder=words_encoder())) as address,
        httpx.Client(base_url=address, timeout=30) as client,
    ):
        yield client, folder


def found(answer):
    assert answer.status_code == 200, answer.text
    return [(hit["id"], np.float32(hit["score"])) for hit in answer.json()["hits"]]


def expected(hits):
    return [(doc_id, np.float32(score)) for doc_id, score in hits]


@pytest.mark.parametrize("form", ["float16", "float32", "lists"])
def test_a_search_is_that_of_the_index(reading, form):
    client, index, queries = reading
    for query in queries[:10]:
        tokens = query.astype(np.float32).tolist() if form == "lists" else encoded(query, form)
        asked = client.post("/v1/indexes/known/search", json={"tokens": tokens, "k": 7})
        assert found(asked) == expected(index.search(query, 7))
        assert asked.json()["exact"] is True


def test_widths_filters_and_columns(reading):
    client, index, queries = reading
    for how in ({"exact": True}, {"num_candidates": 10, "ef_search": 10, "shortlist": 0}, {"k": 1000}):
        asked = client.post("/v1/indexes/known/search", json={"tokens": encoded(queries[0]), **how})
        assert found(asked) == expected(
            index.search(queries[0], how.get("k", 10), **{n: v for n, v in how.items() if n != "k"})
        )
    body = {"tokens": encoded(queries[1]), "filter": {"year": {"$lt": 1905}}, "columns": ["year", "name"]}
    asked = client.post("/v1/indexes/known/search", json=body)
    hits = index.search(queries[1], filter=pc.field("year") < 1905)
    assert found(asked) == expected(hits)
    wanted = index.to_table(hits, ["year", "name"]).select(["year", "name"]).to_pylist()
    assert [{"year": hit["year"], "name": hit["name"]} for hit in asked.json()["hits"]] == wanted
    assert set(client.post("/v1/indexes/known/search", json={**body, "columns": ["*"]}).json()["hits"][0]) == {
        "id",
        "score",
        "year",
        "name",
    }


def test_several_queries(reading):
    client, index, queries = reading
    asked = client.post("/v1/indexes/known/search", json={"queries": [{"tokens": encoded(query)} for query in queries], "k": 3})
    results = asked.json()["results"]
    assert [[hit["id"] for hit in hits] for hits in results] == [hits.ids.tolist() for hits in index.search(queries, 3)]


def test_arrow_in_and_out(reading):
    client, index, queries = reading
    headers = {"content-type": ARROW, "accept": ARROW}
    params = {"k": 4, "columns": ["year"], "filter": json.dumps({"name": "owl"})}
    body = arrow_of(tokens=tokens_column(queries))
    asked = client.post("/v1/indexes/known/search", params=params, content=body, headers=headers)
    assert asked.status_code == 200, asked.text
    table = pa.ipc.open_stream(asked.content).read_all()
    hits = index.search(queries, 4, filter=pc.field("name") == "owl")
    assert table.column("id").to_pylist() == [doc_id for one in hits for doc_id in one.ids.tolist()]
    assert table.column("query").to_pylist() == [i for i, one in enumerate(hits) for _ in range(len(one))]
    assert set(table.column_names) >= {"query", "id", "score", "year"}


def test_many_at_once_get_their_own_hits(reading):
    client, index, queries = reading
    recent = pc.field("year") >= 1920
    wanted = [expected(index.search(queries[i % 40], 5, filter=recent if i % 3 == 0 else None)) for i in range(200)]

    def ask(number):
        how = {"filter": {"year": {"$gte": 1920}}} if number % 3 == 0 else {}
        return found(client.post("/v1/indexes/known/search", json={"tokens": encoded(queries[number % 40]), "k": 5, **how}))

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(200))) == wanted
    metrics = client.get("/metrics").text
    assert 'lemur_ann_documents{index="known"} 300.0' in metrics
    assert 'lemur_ann_requests_total{route="/v1/indexes/{name}/search",status="200"}' in metrics


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "one of text, tokens and queries"),
        ({"tokens": [[1.0, 2.0]]}, 400, "dim"),
        ({"tokens": [[1.0], [1.0, 2.0]]}, 400, "rows of one length"),
        ({"tokens": []}, 400, "rows of one length"),
        ({"tokens": [["a"]]}, 422, "tokens"),
        ({"tokens": {"data": "%%%", "shape": [1, 16]}}, 400, "base64"),
        ({"tokens": {"data": "AAAA", "shape": [1, 16]}}, 400, "3 bytes, expected 32"),
        ({"tokens": {"data": "AAAA", "shape": [10**12, 10**12]}}, 400, "bytes, expected"),
        ({"tokens": {"data": "AAAA", "shape": [0, 16]}}, 422, "shape"),
        ({"tokens": [[float("nan")] * 16]}, 400, "NaN"),
        ({"tokens": [[0.5] * 16], "k": 0}, 422, "k: "),
        ({"tokens": [[0.5] * 16], "k": 10**9}, 422, "k: "),
        ({"tokens": [[0.5] * 16], "nope": 1}, 422, "nope"),
        ({"tokens": [[0.5] * 16], "columns": ["nope"]}, 404, "no metadata column 'nope'"),
        ({"tokens": [[0.5] * 16], "filter": {"nope": 1}}, 400, "no column 'nope'"),
        ({"tokens": [[0.5] * 16], "target_recall": 0.9}, 400, "tune"),
        ({"tokens": [[0.5] * 16] * 5000}, 400, "4096 at most"),
        ({"text": "a fox"}, 400, "--encoder"),
        ({"queries": []}, 422, "queries"),
        ({"queries": [{"text": "a", "tokens": [[1.0]]}]}, 400, "query 0 has text or tokens"),
    ],
)
def test_bad_searches_are_told_what_is_wrong(reading, body, status, message):
    answer = reading[0].post("/v1/indexes/known/search", content=json.dumps(body), headers={"content-type": "application/json"})
    assert (answer.status_code, message in answer.json()["message"]) == (status, True), answer.text


def test_bad_bodies(reading):
    client = reading[0]
    where = "/v1/indexes/known/search"
    assert client.post(where, content=b"{", headers={"content-type": "application/json"}).status_code == 422
    assert client.post(where, content=b"\xff\xfe", headers={"content-type": "application/json"}).status_code == 422
    assert client.post(where, content=b"ARROW1", headers={"content-type": ARROW}).status_code == 400
    # what a page of another site can make a browser send without asking
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert client.post(where, content=b'{"tokens": [[1]]}', headers={"content-type": kind}).status_code == 415
    assert client.post(where, content=b"").status_code == 415
    assert client.get(where).status_code == 405
    assert client.post("/v1/indexes/..%2f..%2fetc/search", json={}).status_code == 404
    assert client.post("/v1/indexes/none/search", json={}).json()["message"].startswith("no index 'none' here")


def test_a_reader_changes_nothing(reading):
    client = reading[0]
    for method, where, body in (
        ("POST", "documents", {"documents": [{"id": 999, "tokens": [[0.5] * 16]}]}),
        ("PUT", "documents", {"documents": [{"id": 1, "tokens": [[0.5] * 16]}]}),
        ("POST", "delete", {"ids": [1]}),
        ("POST", "jobs/compact", {}),
    ):
        answer = client.request(method, f"/v1/indexes/known/{where}", json=body)
        assert (answer.status_code, answer.json()["error"]) == (403, "read_only")


def test_get_and_explain(reading):
    client, index, queries = reading
    document = client.post("/v1/indexes/known/get", json={"ids": [5], "tokens": True}).json()["documents"][0]
    stored = index.get([5])
    matrix = np.frombuffer(base64.b64decode(document["tokens"]["data"]), document["tokens"]["dtype"]).reshape(
        document["tokens"]["shape"]
    )
    assert np.array_equal(matrix, stored.column("tokens")[0].values.flatten().to_numpy().reshape(-1, 16))
    assert (document["id"], document["year"]) == (5, stored.column("year")[0].as_py())
    assert client.post("/v1/indexes/known/get", json={"ids": [5, 1234]}).status_code == 404
    best = index.search(queries[0], 1).ids[0]
    told = client.post("/v1/indexes/known/explain", json={"tokens": encoded(queries[0]), "id": int(best)}).json()
    ours = index.explain(queries[0], best)
    assert told["rank"] == 1
    assert told["best_tokens"] == ours.best_tokens.tolist()
    assert np.float32(told["score"]) == np.float32(ours.score)


def test_what_it_says_of_itself(reading):
    client = reading[0]
    about = client.get("/v1/indexes/known").json()
    assert (about["num_documents"], about["dim"], about["is_fitted"], about["takes_texts"], about["read_only"]) == (
        300,
        16,
        True,
        False,
        True,
    )
    assert about["columns"] == {"id": "int64", "year": "int64", "name": "string"} or about["columns"]["name"] == "large_string"
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").status_code == 200
    assert client.get("/v1/indexes", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert client.get("/v1/indexes", headers={"x-request-id": "a\tb"}).headers["x-request-id"] != "a\tb"
    assert "/v1/indexes/{name}/search" in client.get("/openapi.json").json()["paths"]


def add(client, rows, method="POST", **headers):
    return client.request(method, "/v1/indexes/new/documents", json={"documents": rows}, headers=headers)


def test_documents_as_texts_and_tokens(writing):
    client, folder = writing
    assert (
        add(client, [{"id": "fox", "text": "a red fox", "year": 1}, {"id": "whale", "text": "a blue whale"}]).json()["added"]
        == 2
    )
    tokens = words_encoder()[1](["a grey owl"])[0]
    assert add(client, [{"id": "owl", "tokens": tokens.tolist(), "text": "a grey owl"}]).json()["num_documents"] == 3
    hit = client.post("/v1/indexes/new/search", json={"text": "grey owl", "k": 1, "columns": ["text", "year"]}).json()["hits"][
        0
    ]
    assert (hit["id"], hit["text"], hit["year"]) == ("owl", "a grey owl", None)
    changed = add(client, [{"id": "fox", "text": "a white fox"}, {"id": "bear", "text": "a bear"}], "PUT").json()
    assert (changed["added"], changed["replaced"], changed["num_documents"]) == (2, 1, 4)
    body = arrow_of(id=["newt"], tokens=tokens_column([tokens]))
    answer = client.post("/v1/indexes/new/documents", content=body, headers={"content-type": ARROW})
    assert answer.json()["num_documents"] == 5
    assert client.post("/v1/indexes/new/delete", json={"ids": ["newt", "owl"]}).json()["deleted"] == 2
    assert client.post("/v1/indexes/new/delete", json={"filter": {"text": {"$contains": "bear"}}}).json()["deleted"] == 1
    assert client.post("/v1/indexes/new/delete", json={"filter": {"text": "nothing"}}).json()["deleted"] == 0
    assert sorted(LemurIndex.open(folder, read_only=True).ids().to_pylist()) == ["fox", "whale"]


def test_parquet_body(writing, tmp_path):
    client, _ = writing
    table = pa.table({"id": ["a", "b"], "text": ["one two", "three"]})
    pq.write_table(table, tmp_path / "docs.parquet")
    content = (tmp_path / "docs.parquet").read_bytes()
    headers = {"content-type": "application/vnd.apache.parquet"}
    assert client.post("/v1/indexes/new/documents", content=content, headers=headers).json()["added"] == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "a"}], "text"),
        ([{"id": "a", "text": "x"}, {"id": "a", "text": "y"}], "'a'"),
        ([{"id": "a", "text": "x"}, {"id": "b", "tokens": [[1.0] * 16]}], "1 of 2 documents have tokens"),
        ([{"id": "a", "tokens": [[1.0] * 16]}, {"id": "b", "tokens": [[1.0] * 15]}], "dims"),
        ([{"id": "a", "tokens": {"data": "AA==", "shape": [1, 16]}}], "document 0"),
        ([{"id": "a", "tokens": "abc"}], "document 0"),
        ([{"id": "a", "text": "x", "year": 1}, {"id": "b", "text": "x", "year": "two"}], "column 'year'"),
        ([{"id": ["a"], "text": "x"}], "id"),
        ([{"id": "a", "text": None}], "text"),
    ],
)
def test_bad_documents_change_nothing(writing, rows, message):
    client, folder = writing
    add(client, [{"id": "kept", "text": "kept"}])
    answer = add(client, rows)
    assert (answer.status_code, message in answer.json()["message"]) == (400, True), answer.text
    assert LemurIndex.open(folder, read_only=True).ids().to_pylist() == ["kept"]


def test_a_change_with_a_key_happens_once(tmp_path):
    folder = tmp_path / "new"

    def ask(method, where, body, key):
        return client.request(method, f"/v1/indexes/new/{where}", json=body, headers={"idempotency-key": key})

    with served(Hosted("new", folder, encoder=words_encoder())) as address, httpx.Client(base_url=address) as client:
        first = ask("POST", "documents", {"documents": [{"id": 1, "text": "one"}]}, "add-1").json()
        again = ask("POST", "documents", {"documents": [{"id": 1, "text": "one"}]}, "add-1").json()
        assert again == {**first, "repeated": True}
        other = ask("POST", "documents", {"documents": [{"id": 2, "text": "two"}]}, "add-1")
        assert (other.status_code, other.json()["error"]) == (409, "other_request")
        assert ask("PUT", "documents", {"documents": [{"id": 1, "text": "uno"}]}, "put-1").json()["replaced"] == 1
        assert ask("POST", "delete", {"ids": [1]}, "delete-1").json()["deleted"] == 1
    # a service that begins anew knows them: they are in the index
    with served(Hosted("new", folder, encoder=words_encoder())) as address, httpx.Client(base_url=address) as client:
        assert ask("PUT", "documents", {"documents": [{"id": 1, "text": "uno"}]}, "put-1").json()["repeated"] is True
        assert ask("POST", "delete", {"ids": [1]}, "delete-1").json()["deleted"] == 1
        assert client.get("/v1/indexes/new").json()["num_documents"] == 0
        assert ask("POST", "documents", {"documents": [{"id": 3, "text": "x"}]}, "x" * 65).status_code == 400


def test_a_change_that_changes_nothing_is_remembered_too(tmp_path):
    def delete(client):
        headers = {"idempotency-key": "gone"}
        return client.post("/v1/indexes/new/delete", json={"filter": {"text": "fox"}}, headers=headers).json()

    with served(Hosted("new", tmp_path / "new", encoder=words_encoder())) as address, httpx.Client(base_url=address) as client:
        add(client, [{"id": 1, "text": "owl"}])
        assert delete(client)["deleted"] == 0
    with served(Hosted("new", tmp_path / "new", encoder=words_encoder())) as address, httpx.Client(base_url=address) as client:
        add(client, [{"id": 2, "text": "fox"}])  # which came after the request that is sent again
        assert delete(client).items() >= {"deleted": 0, "repeated": True, "num_documents": 2}.items()


def test_as_many_keys_as_are_known_fit(writing):
    client, _ = writing
    for i in range(450):
        key = f"{i:04}" + '"\\' * 30  # what JSON writes at length
        answer = client.post("/v1/indexes/new/delete", json={"ids": []}, headers={"idempotency-key": key})
        assert answer.status_code == 200, answer.text
    assert client.post("/v1/indexes/new/delete", json={"ids": []}, headers={"idempotency-key": key}).json()["repeated"] is True


def test_one_key_from_many_threads_is_applied_once(writing):
    client, folder = writing
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda _: add(client, [{"id": "fox", "text": "a fox"}], **{"idempotency-key": "same"}), range(8))
        )
    assert [answer.status_code for answer in answers] == [200] * 8
    assert sum(not answer.json().get("repeated", False) for answer in answers) == 1
    assert len(LemurIndex.open(folder, read_only=True)) == 1


def test_jobs(writing):
    client, _ = writing
    words = ["red", "blue", "old", "small", "quick", "grey"]
    texts = [f"{a} {b} {c}" for a in words for b in words for c in NAMES]
    add(client, [{"id": i, "text": text} for i, text in enumerate(texts)])

    def done(kind, **arguments):
        job = client.post(f"/v1/indexes/new/jobs/{kind}", json=arguments)
        assert job.status_code == 202, job.text
        while job.json()["state"] in ("waiting", "running"):
            time.sleep(0.05)
            job = client.get(f"/v1/indexes/new/jobs/{job.json()['id']}")
        return job.json()

    assert done("fit", num_threads=1)["result"]["learned_from"] == "sentences"
    assert client.get("/v1/indexes/new").json()["is_fitted"]
    tuned = done("tune", queries=texts[:40], target_recall=0.9)
    assert tuned["state"] == "done", tuned
    assert client.post("/v1/indexes/new/search", json={"text": "red fox", "target_recall": 0.9}).status_code == 200
    assert done("recode", token_codes="nonsense")["state"] == "failed"
    assert client.post("/v1/indexes/new/jobs/explode", json={}).status_code == 400
    assert client.post("/v1/indexes/new/jobs/tune", json={"nope": 1}).status_code == 400
    assert client.get("/v1/indexes/new/jobs/none").status_code == 404


def test_keys(known, tmp_path):
    path, queries = known
    keys = tmp_path / "keys.json"
    reader, writer = new_key(keys, "app", ["known"], "read"), new_key(keys, "etl", ["*"], "write")
    assert reader not in keys.read_text()
    assert keys.stat().st_mode & 0o077 == 0
    index, other = Hosted("known", path, read_only=True), Hosted("other", tmp_path / "other")
    with served(index, other, keys=keys) as address, httpx.Client(base_url=address) as client:

        def status(secret, method, where, body=None):
            headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
            return client.request(method, where, json=body, headers=headers).status_code

        query = {"tokens": encoded(queries[0])}
        assert status(None, "POST", "/v1/indexes/known/search", query) == 401
        assert status("lemur_wrong", "POST", "/v1/indexes/known/search", query) == 401
        assert status(reader, "POST", "/v1/indexes/known/search", query) == 200
        assert status(reader, "POST", "/v1/indexes/other/search", query) == 403
        assert status(reader, "POST", "/v1/indexes/known/delete", {"ids": [1]}) == 403
        one = {"documents": [{"id": 1, "tokens": [[1.0, 2.0]]}]}
        assert status(writer, "POST", "/v1/indexes/other/documents", one) == 200
        assert status(None, "GET", "/v1/indexes") == 401
        assert [one["name"] for one in client.get("/v1/indexes", headers={"authorization": f"Bearer {reader}"}).json()] == [
            "known"
        ]
        assert status(None, "GET", "/healthz") == 200
        # a key that is taken back opens nothing from then on
        keys.write_text(json.dumps([row for row in json.loads(keys.read_text()) if row["name"] != "app"]))
        assert status(reader, "POST", "/v1/indexes/known/search", query) == 401
    with pytest.raises(ValueError, match="already"):
        new_key(keys, "etl", ["*"], "read")


def test_pages_of_other_sites_are_kept_out(known):
    path, _ = known
    with served(Hosted("known", path, read_only=True), hosts=("localhost", "127.0.0.1")) as address:
        assert httpx.get(address + "/v1/indexes").status_code == 200
        assert httpx.get(address + "/v1/indexes", headers={"host": "evil.example"}).status_code == 400


class Slow:
    """An encoder that takes its time, as models do."""

    def __init__(self, seconds):
        self.seconds, self.calls = seconds, []

    def encode_query(self, texts):
        self.calls.append(len(texts))
        time.sleep(self.seconds)
        return words_encoder()[0](texts)

    encode_document = encode_query


def test_more_than_may_wait_are_told_to_come_again(tmp_path):
    slow = Slow(0.3)
    limits = Limits(num_threads=1, max_batch=2, max_waiting=4, timeout_s=20)
    with served(Hosted("new", tmp_path / "new", encoder=slow, limits=limits)) as address:
        with concurrent.futures.ThreadPoolExecutor(24) as pool:
            ask = lambda i: httpx.post(f"{address}/v1/indexes/new/search", json={"text": f"word{i}"}, timeout=30)  # noqa: E731
            answers = list(pool.map(ask, range(24)))
        assert {answer.status_code for answer in answers} == {200, 429}
        assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status_code == 429)
        assert max(slow.calls[1:]) == 2  # of those that waited, as many together as may


def test_what_takes_too_long_is_given_up(tmp_path):
    slow = Slow(0.5)
    limits = Limits(num_threads=1, max_batch=1, timeout_s=0.8)
    with served(Hosted("new", tmp_path / "new", encoder=slow, limits=limits)) as address:
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            ask = lambda i: httpx.post(f"{address}/v1/indexes/new/search", json={"text": f"word{i}"}, timeout=30)  # noqa: E731
            statuses = sorted(answer.status_code for answer in pool.map(ask, range(6)))
        assert statuses[0] == 200
        assert statuses[-1] == 504
        time.sleep(1.2)
        assert len(slow.calls) < 7  # with the first query of the start: those past their time were not encoded


def test_a_client_that_goes_away_costs_nothing_more(tmp_path):
    slow = Slow(0.5)
    with served(Hosted("new", tmp_path / "new", encoder=slow, limits=Limits(num_threads=1, max_batch=1))) as address:
        for i in range(8):
            with pytest.raises(httpx.TimeoutException):
                httpx.post(f"{address}/v1/indexes/new/search", json={"text": f"word{i}"}, timeout=0.05)
        begin = time.monotonic()
        assert httpx.post(f"{address}/v1/indexes/new/search", json={"text": "fox"}, timeout=30).status_code == 200
        assert time.monotonic() - begin < 3  # not the four seconds of all eight


def test_large_and_slow_bodies(known):
    path, queries = known
    limits = Limits(max_body=10_000, body_timeout_s=0.5)
    with served(Hosted("known", path, read_only=True, limits=limits)) as address:
        answer = httpx.post(f"{address}/v1/indexes/known/search", json={"text": "x" * 20_000})
        assert (answer.status_code, answer.json()["error"]) == (413, "too_large")
        parts = (b"x" * 5000 for _ in range(10))  # chunked, of no length beforehand
        answer = httpx.post(f"{address}/v1/indexes/known/search", content=parts, headers={"content-type": "application/json"})
        assert answer.status_code == 413
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as slow:
            slow.sendall(
                b"POST /v1/indexes/known/search HTTP/1.1\r\nhost: x\r\n"
                b"content-type: application/json\r\ncontent-length: 99\r\n\r\n{"
            )
            slow.settimeout(10)
            assert b" 408 " in slow.recv(4096)
        body = {"tokens": encoded(queries[0])}
        assert httpx.post(f"{address}/v1/indexes/known/search", json=body).status_code == 200


def test_connections_without_a_request_are_closed(known):
    path, queries = known
    with served(Hosted("known", path, read_only=True), head_s=0.6) as address:
        host, port = address.removeprefix("http://").split(":")
        idle = [socket.create_connection((host, int(port))) for _ in range(100)]
        for one in idle[::2]:
            one.sendall(b"POST /v1/indexes/known/search HTTP/1.1\r\nhost: x\r\nx-slow: ")
        with httpx.Client(base_url=address) as client:  # and nobody else notices
            for _ in range(5):
                assert client.post("/v1/indexes/known/search", json={"tokens": encoded(queries[0])}).status_code == 200
                time.sleep(0.2)
            time.sleep(0.8)  # a connection that has asked before is not one of these
            assert client.post("/v1/indexes/known/search", json={"tokens": encoded(queries[0])}).status_code == 200
        for one in idle:
            one.settimeout(5)
            assert one.recv(100) == b""
            one.close()


def test_garbage_ends_in_an_answer(reading):
    client, index, queries = reading
    host, port = str(client.base_url).removeprefix("http://").rstrip("/").split(":")
    random = np.random.default_rng(3)
    for garbage in (
        b"\x00" * 100,
        b"GET " + b"a" * 100_000,
        random.bytes(5000),
        b"POST / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
    ):
        with socket.create_connection((host, int(port))) as one:
            one.settimeout(5)
            try:
                one.sendall(garbage)
                one.recv(4096)
            except OSError:
                pass
    asked = client.post("/v1/indexes/known/search", json={"tokens": encoded(queries[0])})
    assert found(asked) == expected(index.search(queries[0]))


def test_searches_beside_changes_are_of_a_version_that_was(writing):
    """Each version of the index has one document more, so that what a search finds says which version it was of."""
    client, _ = writing
    add(client, [{"id": 0, "text": "fox"}])
    seen, stop = [], threading.Event()

    def search():
        while not stop.is_set():
            answer = client.post("/v1/indexes/new/search", json={"text": "fox", "k": 1000}).json()
            seen.append((answer["version"], len(answer["hits"])))

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    versions = {add(client, [{"id": i, "text": f"fox {i}"}]).json()["version"]: i + 1 for i in range(1, 40)}
    stop.set()
    for thread in threads:
        thread.join()
    assert seen
    assert all(versions.get(version, 1) == count for version, count in seen)
