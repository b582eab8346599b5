"""What clients, files of keys and encoders do wrong, and a service and a client must bear."""

from __future__ import annotations

import datetime
import decimal
import functools
import json
import operator
import os
import signal
import socket
import struct
import threading
import time

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import lemur_ann
from lemur_ann.client.wire import write_arrow
from lemur_ann.service import access, bodies, queue
from lemur_ann.service.hosted import Hosted, Request
from lemur_ann.service.json_filters import as_expression
from lemur_ann.service.service import told, version_in
from tests.service.serving import ARROW, command, served, words_encoder

JSON = {"content-type": "application/json"}


@pytest.fixture
def index(tmp_path):
    opened = Hosted("books", tmp_path / "books", encoder=words_encoder())
    opened.add(pa.table({"id": [1, 2], "text": ["red apple", "green pear"], "year": [2020, 2**60]}), Request(), replaces=False)
    return opened


def filtered(table, filter):
    return table.filter(as_expression(filter, table.schema))


# Bodies


def test_true_is_no_id(index):
    with served(index) as address:
        answer = httpx.post(f"{address}/v1/indexes/books/delete", content=b'{"ids": [true]}', headers=JSON)
        assert answer.status_code == 422
        assert httpx.get(f"{address}/v1/indexes/books").json()["num_documents"] == 2


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("documents", b'{"documents": [{"tokens": [[1%s]]}]}' % (b"0" * 400), "application/json"),
        ("jobs/compact", b"[" * 100_000, "application/json"),
        ("search?filter=" + '{"$not":' * 2000, b"", ARROW),
    ],
)
def test_huge_numbers_and_deep_json_are_bad_requests(index, path, body, kind):
    if kind == ARROW:
        body = write_arrow(pa.table({"text": ["apple"]}))
    with served(index) as address:
        answer = httpx.post(f"{address}/v1/indexes/books/{path}", content=body, headers={"content-type": kind})
        assert answer.status_code == 400, answer.text


def compressed(table, compression):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_a_small_body_does_not_unpack_to_gigabytes(compression):
    small = pa.table({"text": ["a", "b"], "kind": pa.array(["x", "x"]).dictionary_encode()})
    assert bodies.read_arrow(compressed(small, compression), ARROW).equals(small)
    large = compressed(pa.table({"text": pa.array([b"\0" * (bodies.MAX_UNPACKED + 1)])}), compression)
    with pytest.raises(bodies.TooLarge, match="unpacks"):
        bodies.read_arrow(large, ARROW)
    assert told(bodies.TooLarge("")).status == 413


def test_a_value_written_once_is_not_read_into_gigabytes_of_rows():
    table = pa.table({"text": pa.array(["x" * 100_000]).take(pa.array(np.zeros(4000, np.int64)))})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    assert sink.tell() < 100_000
    with pytest.raises(bodies.TooLarge):
        bodies.read_arrow(sink.getvalue().to_pybytes(), bodies.PARQUET)
    sink = pa.BufferOutputStream()
    pq.write_table(table.slice(0, 600), sink)
    assert bodies.read_arrow(sink.getvalue().to_pybytes(), bodies.PARQUET).equals(table.slice(0, 600))


def test_rows_of_nothing_are_refused():
    body = bytearray(write_arrow(pa.table({"n": pa.nulls(77_777)})))
    place = body.index(struct.pack("<q", 77_777))
    while place >= 0:
        body[place : place + 8] = struct.pack("<q", 2**50)
        place = body.find(struct.pack("<q", 77_777))
    with pytest.raises(bodies.TooLarge):
        bodies.read_arrow(bytes(body), ARROW)


def test_an_answer_has_a_bound(index, monkeypatch):
    monkeypatch.setattr("lemur_ann.service.hosted.MAX_HITS", 3)
    with served(index) as address:
        body = json.dumps({"queries": [{"text": "apple"}, {"text": "pear"}]}).encode()
        answer = httpx.post(f"{address}/v1/indexes/books/search", content=body, headers=JSON)
        assert answer.status_code == 400
        assert "3 together at most" in answer.json()["message"]


@pytest.mark.parametrize("header", ["²", "9" * 5000, "-1", "1e3", ""])
def test_versions_that_are_none(header):
    assert version_in(header) == 0
    assert version_in("12") == 12


# Filters


@pytest.mark.parametrize("column", ["n", "text"])
def test_no_value_passes_no_negation(column):
    table = pa.table({"n": [1, None, 3], "text": ["a", None, "c"]})
    value = table.column(column)[0].as_py()
    for filter in ({"$in": [value]}, {"$nin": [value]}, {"$in": []}, {"$nin": []}):
        assert None not in filtered(table, {"$not": {column: filter}}).column(column).to_pylist()
    assert filtered(table, {"$not": {column: {"$in": [value]}}}).num_rows == 1


OPERATORS = {
    "$eq": operator.eq,
    "$ne": operator.ne,
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("kind", [pa.int8(), pa.uint16(), pa.int64()])
def test_integers_are_compared_with_any_number(name, kind):
    low, high = (-128, 127) if kind == pa.int8() else (0, 2**16 - 1) if kind == pa.uint16() else (-(2**63), 2**63 - 1)
    values = [low, low + 1, 2, 3, high - 1, high]
    table = pa.table({"n": pa.array([*values, None], kind)})
    for number in (-1e300, low - 1, float(low), -0.5, 2, 2.0, 2.5, 3, 300.5, 2.0**53, high, high + 1, 1e300):
        expected = [value for value in values if OPERATORS[name](value, number)]
        assert filtered(table, {"n": {name: number}}).column("n").to_pylist() == expected, number


def test_whole_floats_decimals_times_and_both_zeros():
    table = pa.table(
        {
            "n": [1, 2],
            "f": [-0.0, 1.0],
            "d": pa.array([decimal.Decimal("1.50"), decimal.Decimal("2.00")]),
            "t": [datetime.time(1), datetime.time(2)],
        }
    )
    for filter in ({"n": {"$in": [1.0]}}, {"f": {"$in": [0]}}, {"d": 1.5}, {"d": {"$lt": 1.75}}, {"t": "01:00:00"}):
        assert filtered(table, filter).column("n").to_pylist() == [1], filter
    assert filtered(table, {"n": {"$nin": [1.0, 1.5, 1e300]}}).column("n").to_pylist() == [2]


def test_nested_columns_have_exists_alone():
    union = pa.UnionArray.from_dense(pa.array([0], pa.int8()), pa.array([0], pa.int32()), [pa.array([1])])
    with pytest.raises(TypeError, match="exists"):
        filtered(pa.table({"u": union}), {"u": {"$in": []}})


# Changes


def test_a_deletion_of_nothing_is_applied_once_after_a_crash(tmp_path):
    index = Hosted("books", tmp_path / "books")
    index.add(pa.table({"id": [1], "tokens": [[[1.0, 2.0]]]}), Request(), replaces=False)
    asked = Request("key", "digest")
    assert index.delete(None, {"id": {"$gt": 5}}, asked)["deleted"] == 0
    index.add(pa.table({"id": [6], "tokens": [[[1.0, 2.0]]]}), Request(), replaces=False)
    index.close()
    again = Hosted("books", tmp_path / "books")
    assert again.delete(None, {"id": {"$gt": 5}}, asked)["repeated"]
    assert len(again.index) == 2
    again.close()


def test_a_key_is_known_after_a_compaction_and_all_deletions(tmp_path):
    index = Hosted("books", tmp_path / "books")
    tokens = [[[1.0, 2.0]]]
    first, last = Request("first", "a"), Request("last", "b")
    index.add(pa.table({"id": [1, 2], "tokens": tokens * 2}), first, replaces=False)
    index.delete([1], None, Request())
    index.index.compact()
    index.delete([2], None, last)
    index.close()
    again = Hosted("books", tmp_path / "books")
    assert again.add(pa.table({"id": [1, 2], "tokens": tokens * 2}), first, replaces=False)["repeated"]
    assert again.delete([2], None, last)["repeated"]
    assert len(again.index) == 0
    again.close()


# Keys


def test_a_file_of_keys_that_breaks_lets_nobody_in_and_tells_nothing(index, tmp_path):
    path = tmp_path / "keys.json"
    key = access.new_key(path, "app", ["books", "nowhere"])
    whole = path.read_text()
    with served(index, keys=path) as address:
        ask = functools.partial(httpx.get, f"{address}/v1/indexes", headers={"authorization": f"Bearer {key}"})
        for broken in ("{not", "[1]", None):
            path.unlink() if broken is None else path.write_text(broken)
            answer = ask()
            assert answer.status_code == 503
            assert "keys.json" not in answer.text
        path.write_text(whole)
        assert ask().status_code == 200
        missing = httpx.get(f"{address}/v1/indexes/nowhere", headers={"authorization": f"Bearer {key}"})
        assert missing.status_code == 404


@pytest.mark.parametrize("change", [{"indexes": "papers-*"}, {"indexes": [1]}, {"name": {}}, {"sha256": ["0"] * 64}])
def test_a_key_of_other_types_is_none(tmp_path, change):
    path = tmp_path / "keys.json"
    access.new_key(path, "app", ["books"])
    path.write_text(json.dumps([json.loads(path.read_text())[0] | change]))
    with pytest.raises(ValueError, match="keys.json"):
        access.Keys(path)


def test_a_client_is_told_of_its_own_indexes_alone(index, tmp_path):
    path = tmp_path / "keys.json"
    key = access.new_key(path, "app", ["nowhere"])
    with served(index, keys=path) as address:
        answer = httpx.get(f"{address}/v1/indexes/nowhere", headers={"authorization": f"Bearer {key}"})
    assert answer.status_code == 404
    assert "books" not in answer.text


# Encoders


def test_an_encoder_that_exits_ends_no_process(tmp_path):
    def leave(texts):
        if texts != ["apple"]:
            return words_encoder()[0](texts)
        raise SystemExit(3)

    index = Hosted("books", tmp_path / "books", encoder=(leave, words_encoder()[1]))
    index.add(pa.table({"text": ["red apple"]}), Request(), replaces=False)
    with served(index) as address:
        answer = httpx.post(f"{address}/v1/indexes/books/search", content=b'{"text": "apple"}', headers=JSON)
        assert answer.status_code == 500
        assert httpx.get(f"{address}/healthz").status_code == 200


def test_an_encoder_that_hangs_does_not_hold_the_end_up():
    release = threading.Event()
    waiting = queue.SearchQueue(lambda key, items: release.wait(60) and items, num_threads=1, max_batch=1, max_waiting=9)
    threading.Thread(target=waiting.ask_and_wait, args=(0, 1, 60), daemon=True).start()
    time.sleep(0.1)
    begin = time.monotonic()
    waiting.close(0.2)
    assert time.monotonic() - begin < 5
    release.set()


def test_a_job_encodes_beside_other_requests(tmp_path):
    begun, release = threading.Event(), threading.Event()
    release.set()  # for the first query

    def slow(texts):
        begun.set()
        assert release.wait(30)
        return words_encoder()[0](texts)

    index = Hosted("books", tmp_path / "books", encoder=(slow, words_encoder()[1]))
    with served(index) as address:
        ask = functools.partial(httpx.post, f"{address}/v1/indexes/books/jobs/fit", headers=JSON, timeout=30)
        thread = threading.Thread(target=ask, kwargs={"content": b'{"queries": ["red"]}'})
        begun.clear()
        release.clear()
        thread.start()
        assert begun.wait(10)
        assert httpx.get(f"{address}/healthz", timeout=5).status_code == 200
        release.set()
        thread.join(30)


# The client


@pytest.fixture
def answering():
    """A function: the address of something that gives the same answer to each request, once for a connection."""
    listening = []

    def begin(raw):
        sock = socket.create_server(("127.0.0.1", 0))
        listening.append(sock)

        def run():
            while True:
                try:
                    connection, _ = sock.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(2**16)
                    connection.sendall(raw)

        threading.Thread(target=run, daemon=True).start()
        return f"http://127.0.0.1:{sock.getsockname()[1]}"

    yield begin
    for sock in listening:
        sock.close()


@pytest.mark.parametrize(
    ("status", "headers", "content"),
    [
        ("200 OK", "Content-Type: text/html", "<html>"),
        ("302 Found", "Location: http://127.0.0.1:1/", ""),
        ("204 No Content", "Content-Type: application/json", ""),
        ("200 OK", "Content-Type: application/json", "[]"),
        ("200 OK", "Content-Type: application/json", "{}"),
        ("200 OK", "Content-Type: application/json\r\nContent-Encoding: gzip", "hello"),
    ],
)
@pytest.mark.parametrize("call", [len, lambda x: "a" in x, lambda x: x.search([[1.0]]), lambda x: x.add([[[1.0]]]), list])
def test_what_is_no_service_gives_no_answer(answering, status, headers, content, call):
    raw = f"HTTP/1.1 {status}\r\n{headers}\r\nConnection: close\r\nContent-Length: {len(content)}\r\n\r\n{content}"
    with lemur_ann.connect(answering(raw.encode()), "books", retries=0) as client, pytest.raises(ConnectionError):
        call(client)


@pytest.mark.parametrize("address", ["http://[::1", "http://a b", "http://exa\0mple"])
def test_addresses_that_are_none(address):
    with pytest.raises(ValueError, match="address must be"):
        lemur_ann.connect(address, "books")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_has_connections_of_its_own(index):
    with served(index) as address, lemur_ann.connect(address, "books") as client:
        assert len(client) == 2
        shared, pool = client._http, client._http._transport._pool
        child = os.fork()
        if not child:
            good = len(client) == 2 and client._http is not shared
            os._exit(0 if good else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert client._http is shared
        assert len(pool.connections) == 1
        assert len(client) == 2


def test_sigterm_ends_a_service_whose_changes_are_under_way(tmp_path):
    """What was acknowledged is there."""
    with command(tmp_path, "books") as (process, address):
        acknowledged = []

        def add(begin):
            for number in range(begin, begin + 1000):
                body = json.dumps({"documents": [{"id": number, "tokens": [[1.0, 2.0]]}]}).encode()
                try:
                    answer = httpx.post(f"{address}/v1/indexes/books/documents", content=body, headers=JSON)
                except httpx.HTTPError:
                    return
                if answer.status_code == 200:
                    acknowledged.append(number)

        threads = [threading.Thread(target=add, args=(begin,)) for begin in (0, 10_000)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0
        for thread in threads:
            thread.join(20)
    with lemur_ann.LemurIndex.open(tmp_path / "books") as index:
        assert acknowledged
        assert set(acknowledged) <= set(index)


# Arrow Flight


def test_flight_takes_no_other_texts_and_no_key_that_is_too_long_for_its_parts(index):
    flight = pytest.importorskip("pyarrow.flight")
    from lemur_ann.service.access import Keys
    from lemur_ann.service.flight import FlightDoor
    from lemur_ann.service.service import Service

    def asked(batch):
        writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(b'{"index": "books"}'))
        with writer:
            writer.begin(batch.schema)
            writer.write_batch(batch)
            return reader.read_chunk().data.num_rows

    def put(key):
        command = json.dumps({"index": "books", "key": key}).encode()
        batch = pa.record_batch({"id": [7], "text": ["blue plum"]})
        writer, reader = client.do_put(flight.FlightDescriptor.for_command(command), batch.schema)
        with writer:
            writer.write_batch(batch)
            writer.done_writing()
            return reader.read()

    service = Service([index], Keys(None))
    door = FlightDoor(service, "127.0.0.1", 0)
    with flight.connect(f"grpc://127.0.0.1:{door.port}") as client:
        assert asked(pa.record_batch({"text": ["apple"]})) == 2
        for column in (pa.array([None], pa.string()), pa.array([5])):
            with pytest.raises(pa.ArrowInvalid, match="text"):
                asked(pa.record_batch({"text": column}))
        with pytest.raises(pa.ArrowInvalid, match="key"):
            put("k" * 60)
        with pytest.raises(pa.ArrowInvalid, match="key"):
            list(client.do_action(flight.Action("delete", b'{"index": "books", "ids": [1], "key": 5}')))
        assert len(index.index) == 2
        assert client.get_schema(flight.FlightDescriptor.for_path("books")).schema.names[0] == "id"
        assert put("k" * 56) is not None
    door.shutdown()
    service.close()


def test_what_an_encoder_does_wrong_is_no_fault_of_the_client(tmp_path):
    def broken(texts):
        raise KeyError("no such word")

    index = Hosted("books", tmp_path / "books", encoder=(broken, words_encoder()[1]))
    with served(index) as address:
        answer = httpx.post(f"{address}/v1/indexes/books/search", json={"text": "a fox"}, timeout=30)
    assert (answer.status_code, answer.json()["error"]) == (500, "encoder_failed")
    assert "KeyError: no such word" in answer.json()["message"]


def test_metrics_want_a_key_where_clients_have_to_have_one(tmp_path):
    secret = access.new_key(tmp_path / "keys.json", "prometheus", [], "read")
    with served(Hosted("books", tmp_path / "books"), keys=tmp_path / "keys.json") as address:
        assert httpx.get(f"{address}/metrics").status_code == 401
        assert httpx.get(f"{address}/metrics", headers={"authorization": f"Bearer {secret}"}).status_code == 200
