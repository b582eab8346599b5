"""What a client does that an index at home has no need of: it comes again, waits, writes once, and has coroutines."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import lemur_ann
from lemur_ann import LemurIndex, TextIndex
from lemur_ann.client import HitsWithColumns, calls, wire
from lemur_ann.service import bodies
from lemur_ann.service.access import new_key

SMALL = {"num_features": 64, "epochs": 1, "rank": 15}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(calls, "FIRST_PAUSE_S", 0.01)


@pytest.fixture
def connected(serve):
    """A function: a service of one index, and a client of it."""
    clients = []

    def begin(*, retries=3, **options):
        served = serve(**options)
        clients.append(lemur_ann.connect(served.address, "index", retries=retries))
        return served, clients[-1]

    yield begin
    for client in clients:
        client.close()


def answered(status, times, headers=()):
    """ASGI that answers so often with a status, and then hands on."""
    left = [times]

    def wrap(app):
        async def call(scope, receive, send):
            if left[0] <= 0:
                await app(scope, receive, send)
                return
            left[0] -= 1
            await send(
                {"type": "http.response.start", "status": status, "headers": [(k.encode(), v.encode()) for k, v in headers]}
            )
            await send({"type": "http.response.body", "body": b'{"error": "busy", "message": "too much to do"}'})

        return call

    return wrap


def dropped(times):
    """ASGI that does what it is asked, and loses the answer so often: its connection ends in the middle."""
    left = [times]

    def wrap(app):
        async def call(scope, receive, send):
            if left[0] <= 0:
                await app(scope, receive, send)
                return
            left[0] -= 1

            async def lose(message):
                if message["type"] == "http.response.start":
                    await send({**message, "headers": [(b"content-length", b"1000000")]})
                    await send({"type": "http.response.body", "body": b"{", "more_body": True})

            await app(scope, receive, lose)
            raise ConnectionResetError("lost")

        return call

    return wrap


# Once, and again


@pytest.mark.parametrize("status", [429, 503])
def test_it_comes_again_where_there_is_too_much_to_do(connected, make_matrices, status):
    served, index = connected()
    index.add(make_matrices(5))
    served.wrap = answered(status, 2, [("retry-after", "0")])
    assert len(index.search(make_matrices(1)[0], 3)) == 3
    assert [path.rpartition("/")[2] for _, path, _ in served.requests] == ["documents", "search", "search", "search"]
    served.wrap = answered(status, 4)
    with pytest.raises(ConnectionError, match="too much to do"):
        index.search(make_matrices(1)[0], 3)


def test_it_waits_as_long_as_it_is_told(connected, make_matrices):
    served, index = connected()
    served.wrap = answered(503, 1, [("retry-after", "1")])
    begin = time.monotonic()
    index.add(make_matrices(5))
    assert time.monotonic() - begin >= 1
    served.wrap = answered(503, 1, [("retry-after", "3600")])
    with pytest.raises(ConnectionError):
        index.search(make_matrices(1)[0], 3)
    assert wire.retry_after(wire.Answer(503, {"retry-after": "Wed, 21 Oct 2099 07:28:00 GMT"}, b"")) > 1e6
    assert wire.retry_after(wire.Answer(503, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, b"")) == 0
    assert wire.retry_after(wire.Answer(503, {"retry-after": "soon"}, b"")) is None
    assert wire.retry_after(wire.Answer(503, {}, b"")) is None


def test_pauses_grow_and_end():
    sent = calls.Calls("there", "index", 1.0, 20)._sent(wire.Request("GET", "", 1.0))
    pauses = []
    for _ in range(20):
        assert isinstance(next(sent), wire.Request)
        pauses.append(sent.send(wire.Lost("gone", False)).seconds)
    next(sent)
    with pytest.raises(ConnectionError, match="there gave no answer"):
        sent.send(wire.Lost("gone", False))
    assert pauses[0] <= 0.01
    assert pauses[8] > pauses[2]
    assert max(pauses) <= calls.LONGEST_PAUSE_S


def test_a_change_whose_answer_is_lost_is_applied_once(connected, make_matrices):
    served, index = connected()
    index.add(make_matrices(5))
    served.wrap = dropped(2)
    index.add(make_matrices(3))
    assert list(index) == list(range(8))
    keys = [headers["idempotency-key"] for _, path, headers in served.requests if path.endswith("documents")]
    assert len(keys) == 4
    assert keys[0] != keys[1] == keys[2] == keys[3]
    served.wrap = dropped(1)
    assert index.delete([0, 1]) == 2
    served.wrap = dropped(1)
    assert len(index.search(make_matrices(1)[0], 3)) == 3
    assert len(index) == 6


def test_the_answer_is_lost_and_the_service_begins_anew(connected, make_matrices):
    served, index = connected(retries=40)
    index.add(make_matrices(5))
    served.wrap = dropped(10**9)
    thread = threading.Thread(target=index.add, args=(make_matrices(3),))
    thread.start()
    while len(served.service.indexes["index"].index) == 5:
        time.sleep(0.01)
    served.stop()
    served.wrap = lambda app: app
    served.start()
    thread.join(60)
    assert not thread.is_alive()
    assert len(index) == 8


def test_nobody_is_there(serve, make_matrices):
    served = serve()
    index = lemur_ann.connect(served.address, "index", retries=1)
    index.add(make_matrices(3))
    served.stop()
    with pytest.raises(ConnectionError, match=r"POST /v1/indexes/index/search: \w+"):
        index.search(make_matrices(1)[0])
    with pytest.raises(ConnectionError, match="it may have been applied or not"):
        index.add(make_matrices(3))
    served.start()
    assert len(index) == 3
    index.close()


def test_an_answer_that_does_not_come(serve, monkeypatch):
    served = serve()

    def late(app):
        async def call(scope, receive, send):
            await asyncio.sleep(2)

        return call

    served.wrap = late
    with lemur_ann.connect(served.address, "index", timeout=0.1, retries=1) as index, pytest.raises(TimeoutError):
        len(index)
    assert len(served.requests) == 2


def test_a_job_that_is_begun_twice_runs_once(connected, make_matrices):
    served, index = connected()
    index.add(make_matrices(40))
    served.wrap = dropped(1)
    index.compact()
    assert len(served.service.jobs._jobs) == 1


# Who, where


def test_keys_and_names(serve, tmp_path, make_matrices):
    writer = new_key(tmp_path / "keys", "writer", ["index"], "write")
    reader = new_key(tmp_path / "keys", "reader", ["*"], "read")
    served = serve("index", "other", keys=tmp_path / "keys")
    lemur_ann.connect(served.address, "index", key=writer).add(make_matrices(3))
    assert len(lemur_ann.connect(served.address, "index", key=reader)) == 3
    with pytest.raises(PermissionError, match="does not allow to write"):
        lemur_ann.connect(served.address, "index", key=reader).add(make_matrices(3))
    with pytest.raises(PermissionError, match="other"):
        len(lemur_ann.connect(served.address, "other", key=writer))
    with pytest.raises(PermissionError, match="valid key is needed"):
        len(lemur_ann.connect(served.address, "index"))
    with pytest.raises(FileNotFoundError, match="no index 'third'"):
        len(lemur_ann.connect(served.address, "third", key=reader))
    with pytest.raises(ConnectionError, match="not as a lemur_ann service does"):
        len(lemur_ann.connect(served.address + "/elsewhere", "index", key=reader))


@pytest.mark.parametrize(
    ("kind", "arguments", "named"),
    [
        (ValueError, ("127.0.0.1:8080", "index"), {}),
        (ValueError, ("ftp://127.0.0.1", "index"), {}),
        (ValueError, ("http://127.0.0.1:eighty", "index"), {}),
        (ValueError, ("http://key@127.0.0.1", "index"), {}),
        (TypeError, (None, "index"), {}),
        (TypeError, ("http://127.0.0.1", None), {}),
        (ValueError, ("http://127.0.0.1", ""), {}),
        (ValueError, ("http://127.0.0.1", "index"), {"timeout": 0}),
        (TypeError, ("http://127.0.0.1", "index"), {"retries": 1.5}),
        (ValueError, ("http://127.0.0.1", "index"), {"retries": -1}),
        (ValueError, ("http://127.0.0.1", "index"), {"key": "a\nb"}),
        (FileNotFoundError, ("https://127.0.0.1", "index"), {"certificate": "nowhere.pem"}),
    ],
)
def test_bad_arguments(kind, arguments, named):
    for connect in (lemur_ann.connect, lemur_ann.connect_async):
        with pytest.raises(kind):
            connect(*arguments, **named)


def test_it_needs_little():
    program = (
        "import sys, lemur_ann\nindex = lemur_ann.connect('http://127.0.0.1:1', 'index', retries=0)\n"
        "try:\n    index.search([[1.0, 0.0]])\nexcept ConnectionError:\n    pass\n"
        "print([name for name in ('fastapi', 'pydantic', 'torch', 'hnswlib', 'uvicorn') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True, timeout=60).stdout
    assert shown.strip() == "[]"


def test_without_httpx():
    program = "import sys; sys.modules['httpx'] = None; import lemur_ann; lemur_ann.connect('http://127.0.0.1:1', 'index')"
    ended = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert "ImportError: lemur_ann.connect needs httpx: pip install 'lemur_ann[client]'" in ended.stderr


# What only a service has


def test_filters_and_columns(connected, make_matrices):
    served, index = connected()
    documents = pa.table({"id": [f"doc {i}" for i in range(30)], "year": range(2000, 2030), "tags": [["a"]] * 30})
    twin = LemurIndex().add(make_matrices(30))
    index.add(documents.append_column("tokens", twin.get(range(30)).column("tokens")))
    query = make_matrices(1)[0]
    found = index.search(query, 5, filter={"year": {"$lt": 2003}}, columns=["year"])
    assert sorted(found.ids) == ["doc 0", "doc 1", "doc 2"]
    assert isinstance(found, HitsWithColumns)
    assert found.columns.to_pylist() == [{"year": 2000 + int(doc_id[4:])} for doc_id in found.ids]
    num_requests = len(served.requests)
    table = index.to_table(found)
    assert table.column_names == ["rank", "id", "score", "year"]
    assert index.to_table([found, found]).num_rows == 6
    assert len(served.requests) == num_requests
    assert index.to_table(found, ["tags"]).column_names == ["rank", "id", "score", "tags"]
    assert len(index.search([query, query], columns=["*"])[1].columns.column_names) == 2
    assert len(index.search(query, 5, filter=[f"doc {i}" for i in range(25_000)])) == 5
    assert index.delete(filter={"year": {"$in": np.array([2001, 2002])}}) == 2
    for call in (index.search, lambda _, **how: index.delete(**how)):
        with pytest.raises(TypeError, match="is a dict such as"):
            call(query, filter=pc.field("year") > 2000)
    with pytest.raises(TypeError, match="is a dict such as"):
        index.search(query, filter=[True, False])
    with pytest.raises(ValueError, match="no column 'yaer'"):
        index.search(query, filter={"yaer": 3})
    with pytest.raises(KeyError, match="yaer"):
        index.search(query, columns=["yaer"])
    with pytest.raises(TypeError, match="list of names"):
        index.search(query, columns="year")


def test_texts(connected, word_encoder):
    _, index = connected(encoder=word_encoder)
    index.add(["a red fox", "a blue whale"], ids=["fox", "whale"])
    index.upsert(pa.table({"id": ["fox", "crow"], "text": ["a fox", "a black crow"], "legs": [4, 2]}))
    twin = TextIndex(word_encoder).add(["a blue whale", "a fox", "a black crow"], ids=["whale", "fox", "crow"])
    assert index.search("blue", 2) == twin.search("blue", 2)
    assert index.search(["blue", "crow"], 2) == twin.search(["blue", "crow"], 2)
    assert index.metadata(["crow"]).to_pylist() == [{"id": "crow", "text": "a black crow", "legs": 2}]
    assert index.evaluate(["blue", "crow"], 1, relevant=["whale", "crow"]).relevance.measures["success@1"].found == 1
    assert index.about().takes_texts
    with pytest.raises(TypeError, match="strings"):
        index.search(["blue", 3])
    with pytest.raises(ValueError, match="one id for each of 2 documents"):
        index.add(["one", "two"], ids=["three"])


def test_no_texts_without_an_encoder(connected, make_matrices):
    _, index = connected()
    index.add(make_matrices(3))
    for call in (index.search, lambda text: index.add([text])):
        with pytest.raises(TypeError, match="no encoder"):
            call("a text")
    with pytest.raises(TypeError, match="note="):
        index.add(make_matrices(1), note="a note")


def test_many_documents_go_in_parts(connected, make_matrices, monkeypatch):
    monkeypatch.setattr(wire, "BYTES_PER_PART", 4000)
    served, index = connected()
    matrices = make_matrices(60)
    told = []
    index.add(iter(matrices), progress=lambda *stage: told.append(stage))
    assert told[-1] == ("documents sent", 60, None)
    bodies = [int(headers["content-length"]) for _, path, headers in served.requests if path.endswith("documents")]
    assert len(bodies) > 5
    assert max(bodies) < 6000
    twin = LemurIndex().add(matrices)
    monkeypatch.setattr(wire, "QUERIES_PER_PART", 2)
    assert index.search(matrices[:5], 3) == twin.search(matrices[:5], 3)
    monkeypatch.setattr(wire, "TOKENS_PER_PART", 7)
    assert index.get(range(60)) == twin.get(range(60))
    with pytest.raises(ValueError, match=r"id 3 .*the first \d+ documents went before, and are in"):
        index.add(matrices, ids=[*range(100, 159), 3])
    assert 60 < len(index) < 120


def test_it_reads_what_it_wrote(connected, make_matrices):
    served, index = connected()
    index.add(make_matrices(3))
    index.delete(0)
    version = index.version
    index.search(make_matrices(1)[0])
    method, path, headers = served.requests[-1]
    assert (method, path) == ("POST", "/v1/indexes/index/search")
    assert headers["x-lemur-version"] == str(version)
    assert headers["user-agent"].startswith("lemur_ann/")


def test_shown(connected, make_matrices):
    served, index = connected()
    assert repr(index) == f"<RemoteIndex 'index' at {served.address}>"
    assert "none yet" in index._repr_html_()
    assert index
    assert index.dim is None
    assert index.ids().to_pylist() == []


# Coroutines


async def test_coroutines(serve, tmp_path, make_matrices):
    LemurIndex.open(tmp_path / "index", **SMALL).close()
    served = serve()
    matrices, queries = make_matrices(100), make_matrices(64)
    twin = LemurIndex(**SMALL).add(matrices)
    async with lemur_ann.connect_async(served.address, "index") as index:
        assert await index.add(matrices[:50]) is index
        assert await index.count() == 50
        await asyncio.gather(*(index.upsert([matrix], ids=[50 + i]) for i, matrix in enumerate(matrices[50:])))
        served.wrap = answered(503, 5, [("retry-after", "0")])
        found = await asyncio.gather(*(index.search(query, 5) for query in queries))
        assert [sorted(hits) for hits in found] == [sorted(hits) for hits in twin.search(queries, 5)]
        assert len(await index.search(queries, 5, exact=True)) == 64
        assert await index.contains(3)
        assert not await index.contains(300)
        assert sorted((await index.ids()).to_pylist()) == list(range(100))
        assert await index.get([3]) == twin.get([3])
        assert (await index.metadata([3])).num_rows == 1
        assert (await index.to_table(found[0])).num_rows == 5
        assert (await index.explain(queries[0], 3)).doc_id == 3
        assert (await index.evaluate(queries, 5)).recall == 1
        await index.fit(queries=queries)
        assert (await index.tune(queries, 0.5)).target_recall == 0.5
        await index.refit(queries, rank=7)
        await index.recode(None)
        assert (await index.about()).is_fitted
        assert await index.delete([3]) == 1
        await index.compact()
        with pytest.raises(KeyError):
            await index.get([3])


async def test_a_coroutine_that_is_given_up(serve, make_matrices):
    served = serve()
    async with lemur_ann.connect_async(served.address, "index") as index:
        await index.add(make_matrices(5))
        served.wrap = answered(503, 10**9, [("retry-after", "30")])
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(index.search(make_matrices(1)[0]), 0.2)
        served.wrap = lambda app: app
        assert len(await index.search(make_matrices(1)[0])) == 5


def test_ids_travel_in_parts(connected, monkeypatch):
    monkeypatch.setattr(bodies, "IDS_AT_A_TIME", 7)
    _, index = connected()
    index.add([np.ones((1, 2), np.float32)] * 30, ids=[f"doc {i}" for i in range(30)])
    assert index.ids().to_pylist() == [f"doc {i}" for i in range(30)]
    assert list(index) == index.ids().to_pylist()


def test_an_error_says_its_class_and_hits_whether_they_are_exact(serve, tmp_path, make_matrices):
    LemurIndex.open(tmp_path / "index", **SMALL, num_centroids=8).close()
    served = serve()
    with lemur_ann.connect(served.address, "index") as index, httpx.Client(base_url=served.address) as plain:
        index.add(make_matrices(80)).fit(queries=make_matrices(40))
        told = plain.post("/v1/indexes/index/get", json={"ids": [700]}).json()
        assert (told["error"], told["type"]) == ("not_found", "KeyError")
        told = plain.post("/v1/indexes/index/search", json={"tokens": [[1.0] * 16], "filter": {}})
        assert (told.status_code, told.json()["type"]) == (400, "TypeError")
        assert index.search(make_matrices(1)[0]).exact
        index.recode("int4", keep_tokens="none")
        assert not index.search(make_matrices(1)[0]).exact
