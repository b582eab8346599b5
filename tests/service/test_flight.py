"""Arrow Flight, asked by pyarrow's own client; the server is in another process, or in this one where a test looks into it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow as pa
import pytest

from lemur_ann import LemurIndex
from lemur_ann.demo import fit_demo_index
from lemur_ann.documents.inputs import tokens_from_arrow
from lemur_ann.service.access import Keys, new_key
from lemur_ann.service.bodies import column_of
from lemur_ann.service.hosted import Hosted, Limits
from lemur_ann.service.service import Service

from .doors import free_port, served

flight = pytest.importorskip("pyarrow.flight")
from lemur_ann.service.flight import FlightDoor  # noqa: E402

PATIENCE = flight.FlightCallOptions(timeout=60)


def act(client, kind, options=PATIENCE, **given):
    (result,) = client.do_action(flight.Action(kind, json.dumps(given).encode()), options)
    return result.body.to_pybytes()


def asked(client, options=PATIENCE, **command):
    return client.do_exchange(flight.FlightDescriptor.for_command(json.dumps(command)), options)


def ask(writer, reader, matrices, is_first=False, metadata=None):
    batch = pa.record_batch([column_of(matrices)], ["tokens"])
    if is_first:
        writer.begin(batch.schema)
    if metadata is None:
        writer.write_batch(batch)
    else:
        writer.write_with_metadata(batch, metadata)
    return reader.read_chunk()


def put(client, table, options=PATIENCE, **command):
    """What the server says to a put, part by part."""
    writer, told = client.do_put(flight.FlightDescriptor.for_command(json.dumps(command)), table.schema, options)
    writer.write_table(table)
    writer.done_writing()
    results = []
    while (part := told.read()) is not None:
        results.append(json.loads(part.to_pybytes()))
    writer.close()
    return results


@pytest.fixture(scope="module")
def queries(demo_data):
    tokens, offsets = tokens_from_arrow(demo_data.queries.column("tokens").combine_chunks(), "tokens")
    return [tokens[offsets[i] : offsets[i + 1]] for i in range(20)]


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory, demo_data):
    """The demo's 600 documents, saved with random features."""
    folder = tmp_path_factory.mktemp("flight") / "demo"
    fit_demo_index(demo_data, epochs=0).save(folder)
    return folder


@pytest.fixture
def opened(tmp_path):
    """(service, client) of an empty index "a" in this process; keys where asked for."""
    ends = []

    def make(keys=None, **limits):
        index = Hosted("a", tmp_path / "a", limits=Limits(num_threads=1, **limits))
        service = Service([index], Keys(keys))
        door = FlightDoor(service, "127.0.0.1", 0)
        service.doors.append(door.end)
        client = flight.connect(f"grpc://127.0.0.1:{door.port}")
        ends.extend([service.close, client.close])
        return service, client

    yield make
    for end in reversed(ends):
        end()


def documents(matrices, first=0, **columns):
    ids = [f"d{first + i}" for i in range(len(matrices))]
    return pa.table({"id": ids, "tokens": column_of(matrices), **columns})


def test_searches_on_one_stream_are_those_of_the_index(demo_folder, tmp_path, queries):
    expected = LemurIndex.load(demo_folder).search(queries, 5)
    with served(tmp_path, f"demo={demo_folder}", "--read-only") as (_, location, _), flight.connect(location) as client:
        writer, reader = asked(client, index="demo", k=5)
        with writer:
            for number, query in enumerate(queries):
                chunk = ask(writer, reader, [query], is_first=number == 0)
                assert chunk.data.schema.names == ["query", "id", "score"]
                assert chunk.data.column("id").to_pylist() == expected[number].ids.tolist()
                assert chunk.data.column("score").to_pylist() == expected[number].scores.tolist()
                assert json.loads(chunk.app_metadata.to_pybytes()) == {"exact": True, "version": 1}
            several = ask(writer, reader, queries[:3]).data
            assert several.column("query").to_pylist() == [0] * 5 + [1] * 5 + [2] * 5
            writer.done_writing()
        writer, reader = asked(client, index="demo", k=2, columns=["text"], filter={"text": {"$contains": "editor"}})
        with writer:
            found = ask(writer, reader, queries[:1], is_first=True).data
            assert found.schema.names == ["query", "rank", "id", "score", "text"]
            assert all("editor" in text for text in found.column("text").to_pylist())
            writer.done_writing()
        (info,) = client.list_flights(options=PATIENCE)
        assert (info.descriptor.path, info.total_records) == ([b"demo"], 600)
        table = client.do_get(info.endpoints[0].ticket, PATIENCE).read_all()
        assert table.equals(LemurIndex.load(demo_folder).to_arrow(vectors=False).read_all())


def test_nothing_found_is_a_batch_without_rows(opened, make_matrices):
    _, client = opened()
    matrices = make_matrices(5)
    put(client, documents(matrices, year=[2000] * 5), index="a")
    for columns in (None, ["year"]):
        writer, reader = asked(client, index="a", filter={"year": 1999}, columns=columns)
        with writer:
            chunk = ask(writer, reader, matrices[:1], is_first=True)
            assert chunk.data.num_rows == 0
            writer.done_writing()


def test_puts_and_actions(opened, make_matrices):
    service, client = opened()
    matrices = make_matrices(8)
    table = documents(matrices, year=pa.array(range(2000, 2008)))
    (told,) = put(client, table[:6], index="a", key="first")
    assert (told["added"], told["num_documents"]) == (6, 6)
    (again,) = put(client, table[:6], index="a", key="first")
    assert again["repeated"]
    assert again["num_documents"] == 6
    with pytest.raises(pa.ArrowInvalid, match="'first' came with another request before"):
        put(client, table[:5], index="a", key="first")
    with pytest.raises(pa.ArrowInvalid, match="d0"):
        put(client, table[:1], index="a")
    (told,) = put(client, table[5:], index="a", mode="upsert")
    assert (told["added"], told["replaced"], told["num_documents"]) == (3, 1, 8)
    about = json.loads(act(client, "about", index="a"))
    assert about["num_documents"] == 8
    assert about["columns"] == {"id": "large_string", "year": "int64"}
    got = pa.ipc.open_stream(act(client, "get", index="a", ids=["d3", "d1"], tokens=True)).read_all()
    assert got.column("year").to_pylist() == [2003, 2001]
    why = json.loads(act(client, "explain", index="a", tokens=matrices[2].tolist(), id="d2"))
    assert why["rank"] == 1
    assert json.loads(act(client, "delete", index="a", filter={"year": {"$lt": 2002}}))["deleted"] == 2
    assert len(service.indexes["a"].index) == 6
    job = json.loads(act(client, "compact", index="a"))
    end = time.monotonic() + 60
    while job["state"] in ("waiting", "running") and time.monotonic() < end:
        time.sleep(0.02)
        job = json.loads(act(client, "job", index="a", id=job["id"]))
    assert job["state"] == "done", job
    assert {action.type for action in client.list_actions()} >= {"delete", "fit", "refit", "tune", "recode", "compact", "get"}


def test_a_large_put_goes_in_in_parts(opened, make_matrices):
    service, client = opened(max_body=20_000)
    table = documents(make_matrices(60, low=12), number=pa.array(range(60)))
    told = put(client, table, index="a", key="all")
    assert len(told) > 2
    assert sum(part["added"] for part in told) == told[-1]["num_documents"] == 60
    again = put(client, table, index="a", key="all")
    assert all(part["repeated"] for part in again)
    assert len(service.indexes["a"].index) == 60


def test_a_stream_reads_what_its_client_wrote(opened, make_matrices):
    service, client = opened()
    matrices = make_matrices(3)
    put(client, documents(matrices), index="a")
    writer, reader = asked(client, index="a", k=1)
    with writer:
        for number, query in enumerate(matrices):
            metadata = json.dumps({"version": service.indexes["a"].version}).encode()
            assert ask(writer, reader, [query], number == 0, metadata).data.column("id")[0].as_py() == f"d{number}"
        writer.done_writing()


@pytest.mark.parametrize(
    ("command", "kind", "message"),
    [
        ({"index": "b"}, pa.ArrowKeyError, "no index 'b' here; there are a"),
        ({"index": "a", "k": 0}, pa.ArrowInvalid, "k: Input should be greater than or equal to 1"),
        ({"index": "a", "filters": {}}, pa.ArrowInvalid, "filters: Extra inputs are not permitted"),
        ({"index": "a", "filter": {"nothing": 1}}, pa.ArrowInvalid, "no column 'nothing'; there are id"),
    ],
)
def test_bad_commands(opened, make_matrices, command, kind, message):
    _, client = opened()
    matrices = make_matrices(2)
    put(client, documents(matrices), index="a")
    writer, reader = asked(client, **command)
    with pytest.raises(kind, match=message) as raised:
        ask(writer, reader, matrices[:1], is_first=True)
    assert "site-packages" not in str(raised.value).partition("Detail")[0]
    with pytest.raises(pa.ArrowInvalid, match=r"unknown action 'drop'; expected one of about"):
        act(client, "drop", index="a")
    with pytest.raises(pa.ArrowInvalid, match="a JSON object with the name of an index"):
        act(client, "about")


def test_bad_queries(opened, make_matrices):
    _, client = opened()
    put(client, documents(make_matrices(2)), index="a")

    def refused(batch):
        writer, reader = asked(client, index="a")
        writer.begin(batch.schema)
        writer.write_batch(batch)
        with pytest.raises(pa.ArrowInvalid) as raised:
            reader.read_chunk()
        return str(raised.value)

    assert "dim" in refused(pa.record_batch([column_of([np.ones((2, 3), np.float32)])], ["tokens"]))
    assert "finite" in refused(pa.record_batch([column_of([np.full((2, 16), np.nan, np.float32)])], ["tokens"]))
    assert "a column 'tokens' or 'text'; got x" in refused(pa.record_batch([pa.array([1])], ["x"]))
    assert "no encoder" in refused(pa.record_batch([pa.array(["words"])], ["text"]))
    assert "no rows" in refused(pa.record_batch([column_of([np.ones((2, 16), np.float32)])], ["tokens"])[:0])


def test_keys(opened, tmp_path, make_matrices):
    keys = tmp_path / "keys.json"
    reads, writes = new_key(keys, "r", ["a"], "read"), new_key(keys, "w", ["*"], "write")
    _, client = opened(keys)

    def with_key(secret):
        return flight.FlightCallOptions(headers=[(b"authorization", f"Bearer {secret}".encode())], timeout=60)

    table = documents(make_matrices(2))
    with pytest.raises(flight.FlightUnauthenticatedError, match="a valid key is needed"):
        act(client, "about", index="a")
    with pytest.raises(flight.FlightUnauthenticatedError, match="a valid key is needed"):
        act(client, "about", with_key("lemur_other"), index="a")
    with pytest.raises(flight.FlightUnauthorizedError, match="key 'r' does not allow to write index 'a'"):
        put(client, table, with_key(reads), index="a")
    assert put(client, table, with_key(writes), index="a")[0]["added"] == 2
    assert json.loads(act(client, "about", with_key(reads), index="a"))["num_documents"] == 2
    assert len(list(client.list_flights(options=with_key(reads)))) == 1


def test_busy_is_unavailable(opened, make_matrices):
    service, client = opened(max_waiting=1)
    matrices = make_matrices(2)
    put(client, documents(matrices), index="a")
    index, goes_on = service.indexes["a"], threading.Event()
    answer = index.searches._answer
    index.searches._answer = lambda how, items: goes_on.wait(30) and answer(how, items)
    asking = [threading.Thread(target=index.search_and_wait, args=([matrices[0]], _how())) for _ in range(2)]
    try:
        for thread in asking:
            thread.start()
        end = time.monotonic() + 30
        while not len(index.searches) and time.monotonic() < end:
            time.sleep(0.01)
        writer, reader = asked(client, index="a")
        with pytest.raises(flight.FlightUnavailableError, match="1 searches wait already"):
            ask(writer, reader, matrices[:1], is_first=True)
    finally:
        goes_on.set()
        for thread in asking:
            thread.join()


def _how():
    from lemur_ann.service.hosted import How

    return How()


def test_readers_hand_changes_on(tmp_path, make_matrices):
    matrices = make_matrices(4)
    with served(tmp_path, tmp_path / "a", "--workers", "2") as (_, location, _), flight.connect(location) as client:
        end = time.monotonic() + 60
        while True:  # readiness is that of any reader, and the first one has this port
            try:
                act(client, "about", index="a")
                break
            except flight.FlightUnavailableError:
                assert time.monotonic() < end
                time.sleep(0.1)
        (told,) = put(client, documents(matrices), index="a", key="k")
        assert told["added"] == 4
        assert put(client, documents(matrices), index="a", key="k")[0]["repeated"]
        with pytest.raises(pa.ArrowInvalid, match="d0"):
            put(client, documents(matrices), index="a")
        writer, reader = asked(client, index="a", k=1)
        with writer:
            metadata = json.dumps({"version": told["version"]}).encode()
            assert ask(writer, reader, matrices[3:], True, metadata).data.column("id").to_pylist() == ["d3"]
            writer.done_writing()
        assert json.loads(act(client, "delete", index="a", ids=["d0"]))["deleted"] == 1
        job = json.loads(act(client, "compact", index="a"))
        assert json.loads(act(client, "job", index="a", id=job["id"]))["kind"] == "compact"
    assert len(LemurIndex.load(tmp_path / "a")) == 3


def test_a_stream_that_waits_does_not_keep_a_server_from_ending(demo_folder, tmp_path, queries):
    with served(tmp_path, f"demo={demo_folder}", "--read-only") as (_, location, process):
        client = flight.connect(location)
        writer, reader = asked(client, index="demo")
        ask(writer, reader, queries[:1], is_first=True)
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert time.monotonic() - begin < 15
        with pytest.raises(pa.ArrowException):
            ask(writer, reader, queries[:1])
        with pytest.raises((pa.ArrowException, StopIteration)):
            writer.close()
        client.close()


def test_a_port_that_is_taken(opened):
    service, _ = opened()
    port = free_port()
    door = FlightDoor(service, "127.0.0.1", port)
    service.doors.append(door.end)
    with pytest.raises(OSError, match=rf"cannot listen at 127.0.0.1 port {port}: is the port taken\?"):
        FlightDoor(service, "127.0.0.1", port)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_tls(demo_folder, tmp_path, queries):
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
    make += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(make, check=True, capture_output=True)
    index = Hosted("demo", demo_folder, read_only=True, limits=Limits(num_threads=1))
    service = Service([index], Keys(None))
    door = FlightDoor(service, "127.0.0.1", 0, certificate=certificate, private_key=key)
    service.doors.append(door.end)
    try:
        with flight.connect(f"grpc+tls://127.0.0.1:{door.port}", tls_root_certs=certificate.read_bytes()) as client:
            assert json.loads(act(client, "about", index="demo"))["num_documents"] == 600
    finally:
        service.close()


def test_a_thread_that_answers_itself_is_one_of_the_queue_s(opened, make_matrices):
    service, _ = opened()
    queue = service.indexes["a"].searches
    running, most, lock = 0, 0, threading.Lock()

    def answer(how, items):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002)
        with lock:
            running -= 1
        return items

    queue._answer = answer
    got = []

    def ask_often(first):
        got.extend(queue.ask_and_wait("how", first + i, 30) for i in range(25))

    asking = [threading.Thread(target=ask_often, args=(100 * i,)) for i in range(6)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert sorted(got) == [100 * i + j for i in range(6) for j in range(25)]
    assert most == 1, "num_threads is 1"

    queue._answer = lambda how, items: time.sleep(0.3) or items
    blocking = threading.Thread(target=queue.ask_and_wait, args=("how", 0, 30))
    blocking.start()
    time.sleep(0.1)
    with pytest.raises(TimeoutError, match=r"not answered in 0\.05 s"):
        queue.ask_and_wait("how", 1, 0.05)
    blocking.join()


def test_metrics_count_queries(opened, make_matrices):
    service, client = opened()
    matrices = make_matrices(3)
    put(client, documents(matrices), index="a")
    writer, reader = asked(client, index="a")
    with writer:
        for number in range(3):
            ask(writer, reader, matrices, is_first=number == 0)
        writer.done_writing()
    list(client.list_flights(options=PATIENCE))
    page = service.metrics.page(service.indexes.values()).decode()
    assert 'lemur_ann_requests_total{route="flight search",status="200"} 3.0' in page
    assert 'lemur_ann_requests_total{route="flight put",status="200"} 1.0' in page
    assert 'lemur_ann_requests_total{route="flight list",status="200"} 1.0' in page


def test_a_client_in_another_process(opened, make_matrices):
    service, client = opened()
    put(client, documents(make_matrices(3)), index="a")
    port = service.doors[0].__self__.port
    script = (
        "import pyarrow.flight as f; "
        f"print(f.connect('grpc://127.0.0.1:{port}').do_get(f.Ticket(b'{{\"index\": \"a\"}}')).read_all().num_rows)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "3", done.stderr
