"""The service over Arrow Flight: token matrices and documents travel as Arrow, and a stream stays open for query after query.

What a client sends along is JSON, with the names that HTTP has:

- ``DoExchange`` searches. The descriptor's command is ``{"index": "papers", "k": 10, "filter": ..., "columns": [...]}`` with
  any of the widths of :class:`bodies.Widths`. Each record batch is a request of as many queries as it has rows, in a column
  ``tokens``, list<fixed_size_list<float16 or float32>[dim]>, or ``text``. Its answer is a record batch with the columns
  ``query``, the row of the request; ``id``; ``score``; and, where columns were asked for, ``rank`` and these. The metadata of
  the answer is ``{"exact": true, "version": 7}``; that of a request may be ``{"version": 7}``, for a search in no earlier one.
- ``DoPut`` adds documents: ``{"index": "papers", "mode": "add" or "upsert", "key": "a name for the request"}``. They go in in
  parts of no more than a request over HTTP may have, each of which is on disk when its counts come back as metadata.
- ``DoGet`` exports an index: ``{"index": "papers", "tokens": true, "vectors": false}``.
- Actions are listed by ``list_actions``.

A key is a header ``authorization: Bearer KEY``. An error ends its call, or its stream.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import httpx
import pyarrow as pa
import pydantic_core
from pyarrow import flight
from pydantic import Field

from lemur_ann.client.wire import write_arrow
from lemur_ann.documents.inputs import tokens_from_arrow
from lemur_ann.service import bodies
from lemur_ann.service.access import Access
from lemur_ann.service.hosted import Hosted, How
from lemur_ann.service.jobs import KINDS
from lemur_ann.service.service import (
    MAX_KEY,
    Refused,
    Service,
    about_of,
    answered_batch,
    away,
    explained_of,
    how_of,
    request_of,
    told,
    version_in,
)
from lemur_ann.service.telemetry import access_log, log

QUIET_S = 0.2  # with nothing under way before what is left are streams that wait for their clients
ACTIONS = {
    "about": "One index: index.",
    "get": "Documents as an Arrow IPC stream: index, ids, tokens.",
    "explain": "Why a document has its score: index, text or tokens, id, k.",
    "delete": "Delete documents: index, ids or filter, key.",
    **{kind: f"Start the job {kind}: index, and {', '.join(names)}; gives its id." for kind, (names, _) in KINDS.items()},
    "job": "How far a job is: index, id.",
}


class Asked(bodies.Widths):
    """The command of an exchange: a search, of queries that come as record batches."""

    index: str
    filter: dict[str, Any] | None = None
    columns: list[str] | None = None


class Put(bodies._Strict):
    """The command of a put."""

    index: str
    mode: Literal["add", "upsert"] = "add"
    key: str | None = Field(None, min_length=1, max_length=MAX_KEY - 8)  # each part has its number behind it


class Export(bodies._Strict):
    """The ticket of an export, and the command of what is told of it before."""

    index: str
    tokens: bool = True
    vectors: bool = False


class _Call:
    """One call: who asks, and what is told of it in the log."""

    def __init__(self, service: Service, context: Any, route: str) -> None:
        self.service, self.route = service, f"flight {route}"
        self.client, self.begin = context.peer(), time.perf_counter()
        self.header: _Header = context.get_middleware("lemur_ann")
        self.key: str | None = None
        self.index: str | None = None
        self._counts: Any = None

    def find(self, name: str, access: Access) -> Hosted:
        """An index, in the version that the client has seen or a later one."""
        self.index = name
        index, self.key = self.service.find(self.header.authorization, name, access)
        follow(index, version_in(self.header.version))
        return index

    def count(self, status: int, begin: float) -> None:
        """One request more."""
        if self._counts is None or self._counts[0] != (self.route, status):  # a stream's are looked up once
            metrics = self.service.metrics
            self._counts = (
                (self.route, status),
                metrics.requests.labels(self.route, str(status)),
                metrics.seconds.labels(self.route),
            )
        self._counts[1].inc()
        self._counts[2].observe(time.perf_counter() - begin)

    def end(self, status: int) -> None:
        """A line in the log."""
        line = {
            "request": uuid.uuid4().hex,
            "client": self.client,
            "key": self.key,
            "route": self.route,
            "index": self.index,
            "status": status,
            "ms": round(1e3 * (time.perf_counter() - self.begin), 3),
        }
        if access_log.isEnabledFor(logging.INFO):
            access_log.info("%s", json.dumps({name: value for name, value in line.items() if value is not None}))


def _handler(route: str, *, is_whole: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A method that gets a :class:`_Call`, and whose errors are told as Flight tells them. It counts its requests by itself, or
    is one as a whole.
    """

    def of(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def handle(self: FlightDoor, context: Any, *rest: Any) -> Any:
            call = _Call(self._service, context, route)
            failed: Exception | None = None
            try:
                result = method(self, call, *rest)
                if is_whole:
                    call.count(200, call.begin)
                call.end(200)
            except Exception as error:
                status, failed = _as_flight(error)
                call.count(status, call.begin)
                call.end(status)
            if failed is not None:  # out of the handler above: Arrow would send its traceback
                raise failed
            return result

        return handle

    return of


class FlightDoor(flight.FlightServerBase):  # type: ignore[misc]
    """A server that answers from its making on, until :meth:`end`.

    Args:
        service: whose indexes it serves.
        host, port: to listen at. One process has a port: Arrow does not share it.
        certificate, private_key: PEM files, for TLS.
        writer: the process that writes, where this one only reads: changes are handed on to it over HTTP.

    Raises:
        OSError: the port is taken.
    """

    def __init__(
        self,
        service: Service,
        host: str,
        port: int,
        *,
        certificate: Path | None = None,
        private_key: Path | None = None,
        writer: httpx.Client | None = None,
    ) -> None:
        self._service, self._writer = service, writer
        self._ending: threading.Thread | None = None
        self._under_way, self._lock, self._last = 0, threading.Lock(), time.monotonic()
        pair = [] if certificate is None or private_key is None else [(certificate.read_bytes(), private_key.read_bytes())]
        where = f"grpc{'+tls' if pair else ''}://{f'[{host}]' if ':' in host else host}:{port}"
        try:
            super().__init__(where, tls_certificates=pair or None, middleware={"lemur_ann": _Headers(service)})
        except pa.ArrowException as error:
            raise OSError(f"Arrow Flight cannot listen at {host} port {port}: is the port taken? {error}") from error

    def end(self, timeout: float = 30.0) -> None:
        """Take no new calls, and answer what is under way. Streams whose clients ask nothing now end with the process."""
        self._ending = threading.Thread(target=self.shutdown, name="lemur_ann flight ends", daemon=True)
        self._ending.start()
        end = time.monotonic() + timeout
        while self.has_streams and time.monotonic() < end:
            self._ending.join(QUIET_S / 4)
            with self._lock:
                if not self._under_way and time.monotonic() - self._last > QUIET_S:
                    return

    @property
    def has_streams(self) -> bool:
        """Whether streams are open still, once it ends."""
        return self._ending is not None and self._ending.is_alive()

    @contextmanager
    def _busy(self) -> Iterator[None]:
        with self._lock:
            self._under_way += 1
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1
                self._last = time.monotonic()

    # Searching

    @_handler("search")
    def do_exchange(self, call: _Call, descriptor: Any, reader: Any, writer: Any) -> None:
        """Answer searches, one record batch after the other."""
        asked = Asked.model_validate_json(descriptor.command or b"{}")
        index, how = call.find(asked.index, "read"), how_of(asked)
        schema: pa.Schema | None = None
        while True:
            try:
                chunk = reader.read_chunk()
            except StopIteration:
                return
            if chunk.data is None:
                continue
            with self._busy():
                begin = time.perf_counter()
                batch, about = _searched(index, how, chunk)
                if schema is None:
                    schema = batch.schema
                    writer.begin(schema)
                elif batch.schema != schema:
                    raise ValueError(f"the columns of index {index.name!r} are others now; open another stream")
                writer.write_with_metadata(batch, about)
                call.count(200, begin)

    # Changing

    @_handler("put")
    def do_put(self, call: _Call, descriptor: Any, reader: Any, writer: Any) -> None:
        """Add documents, part by part."""
        asked = Put.model_validate_json(descriptor.command or b"{}")
        index = call.find(asked.index, "write")
        limit = max(1, index.limits.max_body * 3 // 4)  # as Arrow IPC they are a little more
        for number, part in enumerate(_parts(reader, limit)):
            with self._busy():
                begin = time.perf_counter()
                key = asked.key if not number or asked.key is None else f"{asked.key}:{number}"
                result = self._put(index, part, key, replaces=asked.mode == "upsert")
                writer.write(pa.py_buffer(_json(result)))
                call.count(200, begin)

    def _put(self, index: Hosted, documents: pa.Table, key: str | None, *, replaces: bool) -> Any:
        method, path = "PUT" if replaces else "POST", f"/v1/indexes/{index.name}/documents"
        body = write_arrow(documents) if key is not None or self._writer is not None else b""
        if self._writer is not None:
            return self._handed_on(method, path, body, bodies.ARROW, key)
        request = request_of(key, (method, path, bodies.ARROW), body)
        return index.change_and_wait(lambda: index.add(documents, request, replaces=replaces))

    def _handed_on(self, method: str, path: str, body: bytes, kind: str, key: str | None = None) -> Any:
        """What the process that writes says to a request."""
        assert self._writer is not None
        headers = {"content-type": kind} | ({} if key is None else {"idempotency-key": key})
        try:
            answer = self._writer.request(method, path, content=body, headers=headers)
        except httpx.HTTPError as error:
            raise away(error) from error
        if answer.status_code >= 400:
            problem = answer.json()
            raise Refused(answer.status_code, problem["error"], problem["message"])
        return answer.json()

    # Reading

    @_handler("get")
    def do_get(self, call: _Call, ticket: Any) -> Any:
        """All documents of an index, as they are at one moment."""
        asked = Export.model_validate_json(ticket.ticket)
        found = call.find(asked.index, "read").index.to_arrow(tokens=asked.tokens, vectors=asked.vectors)

        def batches() -> Iterator[pa.RecordBatch]:
            with self._busy():
                yield from found
            call.count(200, call.begin)

        return flight.RecordBatchStream(pa.RecordBatchReader.from_batches(found.schema, batches()))

    @_handler("list", is_whole=True)
    def list_flights(self, call: _Call, criteria: bytes) -> Any:
        """The indexes that the client may read."""
        return iter([self._info(index, Export(index=index.name)) for index in self._service.allowed(call.header.authorization)])

    @_handler("info", is_whole=True)
    def get_flight_info(self, call: _Call, descriptor: Any) -> Any:
        """One index, by a path of its name or by a command as a ticket has it."""
        asked = _described(descriptor)
        return self._info(call.find(asked.index, "read"), asked)

    @_handler("schema", is_whole=True)
    def get_schema(self, call: _Call, descriptor: Any) -> Any:
        """The columns of an export."""
        asked = _described(descriptor)
        found = call.find(asked.index, "read").index.to_arrow(tokens=asked.tokens, vectors=asked.vectors)
        return flight.SchemaResult(found.schema)

    def _info(self, index: Hosted, asked: Export) -> Any:
        schema = index.index.to_arrow(tokens=asked.tokens, vectors=asked.vectors).schema
        descriptor = flight.FlightDescriptor.for_path(index.name)
        endpoint = flight.FlightEndpoint(asked.model_dump_json(), [])  # no place: where this came from
        return flight.FlightInfo(schema, descriptor, [endpoint], len(index.index), -1)

    # Actions

    def list_actions(self, context: Any) -> list[tuple[str, str]]:
        """Their names, and what the JSON of each has."""
        return list(ACTIONS.items())

    @_handler("action", is_whole=True)
    def do_action(self, call: _Call, action: Any) -> Iterable[bytes]:
        """One of :data:`ACTIONS`."""
        kind, body = action.type, bytes(action.body or b"")
        call.route = f"flight {kind}" if kind in ACTIONS else call.route
        if kind not in ACTIONS:
            raise ValueError(f"unknown action {kind[:40]!r}; expected one of {', '.join(ACTIONS)}")
        given = bodies.loads(body or b"{}", f"the body of action {kind!r}")
        if not isinstance(given, dict) or not isinstance(given.get("index"), str):
            raise TypeError(f"the body of action {kind!r} is a JSON object with the name of an index as 'index'")
        access: Access = "read" if kind in ("about", "get", "explain", "job") else "write"
        with self._busy():
            result = self._acted(kind, call.find(given.pop("index"), access), given)
        return iter([result if isinstance(result, bytes) else _json(result)])

    def _acted(self, kind: str, index: Hosted, given: dict[str, Any]) -> Any:
        path = f"/v1/indexes/{index.name}"
        if kind == "about":
            return about_of(index, self._service)
        if kind == "get":
            wanted = bodies.Wanted.model_validate(given)
            return write_arrow((index.index.get if wanted.tokens else index.index.metadata)(wanted.ids))
        if kind == "explain":
            return explained_of(index, bodies.Explained.model_validate(given))
        if kind == "job":
            number = str(given.get("id"))
            if self._writer is not None and number.isalnum():
                return self._handed_on("GET", f"{path}/jobs/{number}", b"", "application/json")
            return self._service.jobs.state(index, number)
        key = given.pop("key", None)
        if key is not None and not isinstance(key, str):
            raise TypeError(f"key of action {kind!r} is a string, got {type(key).__name__}")
        body = _json(given)
        path += "/delete" if kind == "delete" else f"/jobs/{kind}"
        if self._writer is not None:
            return self._handed_on("POST", path, body, "application/json", key)
        request = request_of(key, ("POST", path, "application/json"), body)
        if kind != "delete":
            return self._service.jobs.start(index, kind, body, request)
        asked = bodies.Deletion.model_validate(given)
        return index.change_and_wait(lambda: index.delete(asked.ids, asked.filter, request))


class _Header(flight.ServerMiddleware):  # type: ignore[misc]
    """What the headers of a call say."""

    def __init__(self, authorization: str | None, version: str) -> None:
        self.authorization, self.version = authorization, version


class _Headers(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Lets no call in that has no key, before anything of its body is read."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def start_call(self, info: Any, headers: dict[str, list[Any]]) -> _Header:
        """Of one call."""
        first = {name.lower(): _text(values[0]) for name, values in headers.items() if values}
        authorization = first.get("authorization")
        failed: Exception | None = None
        try:
            self._service.keys.check(authorization, None, "read")
        except Exception as error:
            _, failed = _as_flight(error)
        if failed is not None:
            raise failed
        return _Header(authorization, first.get("x-lemur-version", ""))


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _searched(index: Hosted, how: How, chunk: Any) -> tuple[pa.RecordBatch, bytes]:
    """The answer to a record batch of queries, and its metadata."""
    batch = chunk.data
    if batch.nbytes > index.limits.max_body:
        raise Refused(
            413, "too_large", f"the record batch has {batch.nbytes:,} bytes, expected {index.limits.max_body:,} at most"
        )
    if chunk.app_metadata is not None:
        given = bodies.loads(bytes(chunk.app_metadata), "the metadata of a record batch")
        if not isinstance(given, dict) or not isinstance(given.get("version"), int):
            raise ValueError('the metadata of a record batch of queries is JSON such as {"version": 7}, or none')
        follow(index, given["version"])
    if not batch.num_rows:
        raise ValueError("a record batch of queries has no rows, expected one query at least")
    answered = index.search_and_wait(_queries(batch), how)
    exact = "true" if all(hits.exact for hits in answered.hits) else "false"
    return answered_batch(answered), b'{"exact":%s,"version":%d}' % (exact.encode(), answered.version)


def _described(descriptor: Any) -> Export:
    """What a descriptor names: a path of an index's name, or a command as a ticket has it."""
    if descriptor.descriptor_type == flight.DescriptorType.PATH:
        return Export(index="/".join(part.decode("utf-8", "replace") for part in descriptor.path))
    return Export.model_validate_json(descriptor.command)


def _queries(batch: pa.RecordBatch) -> list[Any]:
    names = batch.schema.names
    if "tokens" in names:
        tokens, offsets = tokens_from_arrow(batch.column("tokens"), "queries")  # the search checks the rest
        return [tokens[begin:end] for begin, end in itertools.pairwise(offsets.tolist())]
    if "text" in names:
        return bodies.texts_in(pa.Table.from_batches([batch]))
    raise ValueError(f"a record batch of queries has a column 'tokens' or 'text'; got {', '.join(names) or 'none'}")


def follow(index: Hosted, version: int) -> None:
    """See to it that an index is in this version at least."""
    if index.read_only and index.version < version:
        index.refresh()


def _parts(reader: Any, limit: int) -> Iterator[pa.Table]:
    """What a stream brings, as tables of no more than so many bytes, or of one document."""
    schema, size = reader.schema, 0
    batches: list[pa.RecordBatch] = []
    for chunk in reader:
        for batch in () if chunk.data is None else _pieces(chunk.data, limit):
            if batches and size + batch.nbytes > limit:
                yield pa.Table.from_batches(batches, schema)
                batches, size = [], 0
            batches.append(batch)
            size += batch.nbytes
    if batches:
        yield pa.Table.from_batches(batches, schema)


def _pieces(batch: pa.RecordBatch, limit: int) -> Iterator[pa.RecordBatch]:
    if batch.nbytes <= limit or batch.num_rows == 1:
        yield batch
        return
    half = batch.num_rows // 2
    yield from _pieces(batch.slice(0, half), limit)
    yield from _pieces(batch.slice(half), limit)


def _json(value: Any) -> bytes:
    return pydantic_core.to_json(value, bytes_mode="base64", inf_nan_mode="null", fallback=str)


def _as_flight(error: Exception) -> tuple[int, Exception]:
    """The status that HTTP has for an error, and the error that a Flight client gets, with the same message.

    Arrow puts its own classes' tracebacks behind their messages, which name a line of this file and nothing else.
    """
    if isinstance(error, (flight.FlightError, pa.ArrowCancelled)):  # the client has gone
        return 499, error
    known = told(error)
    if known is None or known.status == 500:
        log.exception("a request over Arrow Flight failed", exc_info=error)
        return 500, flight.FlightInternalError("the service failed; its log says how")
    return known.status, ERRORS.get(known.status, pa.ArrowInvalid)(known.message[:2000])


ERRORS: dict[int, Callable[[str], Exception]] = {
    401: flight.FlightUnauthenticatedError,
    403: flight.FlightUnauthorizedError,
    404: pa.ArrowKeyError,
    408: flight.FlightTimedOutError,
    429: flight.FlightUnavailableError,
    503: flight.FlightUnavailableError,
    504: flight.FlightTimedOutError,
}
