"""The service over HTTP: routes, what they refuse, and how errors are told."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from importlib.resources import files
from typing import Any, Protocol

import httpx
import numpy as np
import pyarrow as pa
import pydantic
import pydantic_core
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, StreamingResponse
from pydantic import BaseModel
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect

import lemur_ann
from lemur_ann.documents.inputs import read_queries
from lemur_ann.errors import CorruptIndex, IndexLocked, NotFitted
from lemur_ann.service import bodies, hosted
from lemur_ann.service.access import Access, Denied, Keys
from lemur_ann.service.hosted import Hosted, How, OtherRequest, schema_of
from lemur_ann.service.jobs import Jobs
from lemur_ann.service.queue import Busy
from lemur_ann.service.telemetry import Metrics, Observed, log

DISCONNECTED = 499  # as nginx says it
LOOK_AFTER_S = 0.1  # whether the client of a search is still there
KINDS = ("application/json", bodies.ARROW, bodies.PARQUET)
LARGE_BODY = 2**18  # bytes; a smaller one is read in the loop's own thread
EXPLAINED = (
    "doc_id",
    "score",
    "rank",
    "num_documents",
    "estimate",
    "estimate_rank",
    "found_at",
    "k",
    "query_words",
    "document_words",
)
EXPLAINED_BY_TOKEN = ("best_tokens", "best_similarities", "gains", "document_gains")
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}
MAX_KEY = 64  # characters of an idempotency key


class Writer(Protocol):
    """A client of the process that writes, such as :class:`httpx.AsyncClient`."""

    async def request(self, method: str, url: str, *, content: bytes, headers: dict[str, str]) -> httpx.Response:
        """Its answer."""


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, error: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.error, self.headers = status, error, headers or {}


class Service:
    """The indexes of one process, by name, and who may use them.

    Args:
        indexes: open ones; the service closes them.
        keys: who may.
        writer: the process that writes, where this one only reads: changes are handed on to it.
    """

    def __init__(self, indexes: Iterable[Hosted], keys: Keys, *, writer: Writer | None = None) -> None:
        self.indexes = {index.name: index for index in indexes}
        self.keys = keys
        self.writer = writer
        self.metrics = Metrics()
        self.jobs = Jobs()
        self.is_ready = False
        for name, index in self.indexes.items():
            index.searches.batch_sizes = self.metrics.batch.labels(name).observe

    def warm(self) -> None:
        """Answer a first query of each index, so that no client waits for what is done once."""
        for index in self.indexes.values():
            if len(index.index) and index.index.dim:
                query = index.index.get([next(iter(index.index))]).column("tokens")[0].values
                matrix = query.flatten().to_numpy().reshape(-1, index.index.dim)
                index.index.search(matrix, 1)
            if index.texts is not None:
                try:
                    index.encode(["a first query"])
                except Exception as error:  # one that knows certain texts alone serves these
                    log.warning("the encoder of index %r failed on a first query: %s", index.name, error)
        self.is_ready = True

    def close(self) -> None:
        """Answer what waits, and close the indexes."""
        self.is_ready = False
        self.jobs.close()
        for index in self.indexes.values():
            index.close()

    def hosted(self, request: Request, access: Access) -> Hosted:
        """The index that a path names, where the client may have it so.

        Raises:
            Denied: it may not.
            Refused: there is none of that name.
        """
        name = request.path_params["name"]
        request.scope["lemur_key"] = self.keys.check(request.headers.get("authorization"), name, access)
        if name not in self.indexes:
            raise Refused(404, "not_found", f"no index {name[:60]!r} here; there are {', '.join(self.indexes)}")
        return self.indexes[name]


def make_app(service: Service, hosts: Sequence[str] = ("*",)) -> Any:
    """The ASGI application of a service, which answers to these names of hosts alone."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(service.warm)
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="lemur_ann",
        version=lemur_ann.__version__,
        description="Multi-vector search: MaxSim over late-interaction embeddings.",
        lifespan=lifespan,
        responses={status: {"model": bodies.Problem} for status in (400, 401, 403, 404, 413, 422, 429, 503)},
    )
    app.state.service = service
    app.add_exception_handler(Exception, _told)
    for kind in (
        Refused,
        Denied,
        Busy,
        pydantic.ValidationError,
        ValueError,
        TypeError,
        KeyError,
        OSError,
        asyncio.TimeoutError,
        RuntimeError,
    ):
        app.add_exception_handler(kind, _told)
    _about_routes(app, service)
    _search_routes(app, service)
    _change_routes(app, service)
    if "*" not in hosts:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    return Observed(app, service.metrics)


def _about_routes(app: FastAPI, service: Service) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse((files("lemur_ann.service") / "page.html").read_text("utf-8"), headers=PAGE_HEADERS)

    @app.get("/healthz", tags=["about"])
    async def healthz() -> dict[str, str]:
        """That the process answers."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["about"])
    async def readyz() -> Response:
        """That a first query has been answered, and that it does not shut down."""
        return _json({"status": "ready" if service.is_ready else "not ready"}, 200 if service.is_ready else 503)

    @app.get("/metrics", tags=["about"])
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.page(service.indexes.values()), media_type="text/plain; version=0.0.4")

    @app.get("/v1/indexes", tags=["about"], response_model=list[bodies.About])
    async def indexes(request: Request) -> Response:
        """The indexes that the client may read."""
        allowed = service.keys.allowed(request.headers.get("authorization"), service.indexes)
        return _json([_about(service.indexes[name], service) for name in allowed])

    @app.get("/v1/indexes/{name}", tags=["about"], response_model=bodies.About)
    async def about(request: Request, name: str) -> Response:
        """One index."""
        index = service.hosted(request, "read")
        await _follow(request, index)
        return _json(_about(index, service))

    @app.get("/v1/indexes/{name}/ids", tags=["about"])
    async def ids(request: Request, name: str) -> Response:
        """The ids of all documents in one version, as an Arrow IPC stream with the column ``id``, oldest first."""
        index = service.hosted(request, "read")
        await _follow(request, index)
        return StreamingResponse(bodies.ids_in_parts(index.index.ids()), media_type=bodies.ARROW)


def _search_routes(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/indexes/{name}/search",
        tags=["search"],
        response_model=bodies.Found,
        openapi_extra=_takes(bodies.Search, bodies.ARROW),
    )
    async def search(request: Request, name: str) -> Response:
        """The k documents of highest MaxSim among the candidates.

        An Arrow IPC stream with a column ``tokens`` or ``text`` asks a batch; ``k``, ``filter`` as JSON, and the other fields
        are parameters of the path then, or one JSON object in the metadata ``lemur_ann`` of its schema. With ``Accept:
        application/vnd.apache.arrow.stream`` the hits come as a table with the column ``query``.
        """
        index = service.hosted(request, "read")
        body = await _body(request, index)
        await _follow(request, index)
        large = len(body) > 2**18
        asked, queries, _ = await asyncio.to_thread(_read_search, request, body) if large else _read_search(request, body)
        answered = await _while_there(request, index.search(queries, _how(asked)))
        if bodies.ARROW in request.headers.get("accept", ""):
            exact = all(hits.exact for hits in answered.hits)
            headers = _version_of(answered.version) | {"x-lemur-exact": str(exact).lower()}
            return Response(await asyncio.to_thread(_arrow_of, answered), media_type=bodies.ARROW, headers=headers)
        rows = [bodies.rows_of(hits, answered.tables and answered.tables[i]) for i, hits in enumerate(answered.hits)]
        found = {"hits": rows[0]} if asked.queries is None and not _is_arrow(request) else {"results": rows}
        exact = all(hits.exact for hits in answered.hits)
        return _json({**found, "exact": exact, "version": answered.version})

    @app.post("/v1/indexes/{name}/get", tags=["search"], openapi_extra=_takes(bodies.Wanted))
    async def get(request: Request, name: str) -> Response:
        """Some documents as they are stored."""
        index = service.hosted(request, "read")
        wanted = bodies.Wanted.model_validate_json(await _body(request, index))
        await _follow(request, index)
        table = await asyncio.to_thread(index.index.get if wanted.tokens else index.index.metadata, wanted.ids)
        if bodies.ARROW in request.headers.get("accept", ""):
            return Response(await asyncio.to_thread(bodies.write_arrow, table), media_type=bodies.ARROW)
        return _json({"documents": await asyncio.to_thread(_documents_of, table, index.index.dim)})

    @app.post("/v1/indexes/{name}/explain", tags=["search"], openapi_extra=_takes(bodies.Explained))
    async def explain(request: Request, name: str) -> Response:
        """Why a document has its score for a query: the best document token for each of the query's."""
        index = service.hosted(request, "read")
        asked = bodies.Explained.model_validate_json(await _body(request, index))
        await _follow(request, index)
        return _json(await asyncio.to_thread(_explained, index, asked))

    measuring = asyncio.Lock()  # one at a time: each takes all the threads of an index

    @app.post("/v1/indexes/{name}/evaluate", tags=["search"], openapi_extra=_takes(bodies.Search, bodies.ARROW))
    async def evaluate(request: Request, name: str) -> Response:
        """Recall against exact MaxSim and latency, of queries as :func:`search` takes them; see ``LemurIndex.evaluate``.

        An Arrow column ``relevant`` of ids, lists of ids, or lists of structs ``id``, ``grade`` has the relevance measured too.
        """
        index = service.hosted(request, "read")
        body = await _body(request, index)
        await _follow(request, index)
        asked, queries, relevant = await asyncio.to_thread(_read_search, request, body)
        async with measuring:
            return _json(asdict(await asyncio.to_thread(index.evaluate, queries, _how(asked), relevant)))


def _change_routes(app: FastAPI, service: Service) -> None:
    async def added(request: Request, *, replaces: bool) -> Response:
        index = service.hosted(request, "write")
        body = await _body(request, index)
        if service.writer is not None:
            return await _handed_on(request, body, service.writer)
        documents = await asyncio.to_thread(_read_documents, request, body)
        asked = _request_of(request, body)
        return _changed(await index.change(lambda: index.add(documents, asked, replaces=replaces)))

    takes = _takes(bodies.Documents, bodies.ARROW, bodies.PARQUET)

    @app.post("/v1/indexes/{name}/documents", tags=["changes"], response_model=bodies.Changed, openapi_extra=takes)
    async def add(request: Request, name: str) -> Response:
        """Add documents, whose ids must be new. It is on disk when this returns.

        With a header ``Idempotency-Key`` the same request may be sent again, and is applied once.
        """
        return await added(request, replaces=False)

    @app.put("/v1/indexes/{name}/documents", tags=["changes"], response_model=bodies.Changed, openapi_extra=takes)
    async def upsert(request: Request, name: str) -> Response:
        """Add documents in the place of those that have their ids."""
        return await added(request, replaces=True)

    @app.post(
        "/v1/indexes/{name}/delete", tags=["changes"], response_model=bodies.Changed, openapi_extra=_takes(bodies.Deletion)
    )
    async def delete(request: Request, name: str) -> Response:
        """Delete documents by their ids or by a filter."""
        index = service.hosted(request, "write")
        body = await _body(request, index)
        if service.writer is not None:
            return await _handed_on(request, body, service.writer)
        asked, who = bodies.Deletion.model_validate_json(body), _request_of(request, body)
        return _changed(await index.change(lambda: index.delete(asked.ids, asked.filter, who)))

    @app.post("/v1/indexes/{name}/jobs/{kind}", tags=["changes"], status_code=202)
    async def start(request: Request, name: str, kind: str) -> Response:
        """Start what takes minutes: ``fit``, ``refit``, ``tune``, ``compact`` or ``recode``, with the arguments of
        ``LemurIndex`` as JSON. Queries come as token matrices, or as texts where the index has an encoder.
        """
        index = service.hosted(request, "write")
        body = await _body(request, index)
        if service.writer is not None:
            return await _handed_on(request, body, service.writer)
        return _json(service.jobs.start(index, kind, body, _request_of(request, body)), 202)

    @app.get("/v1/indexes/{name}/jobs/{number}", tags=["changes"])
    async def job(request: Request, name: str, number: str) -> Response:
        """How far a job is, and what it gave."""
        index = service.hosted(request, "read")
        if service.writer is not None:
            return await _handed_on(request, b"", service.writer)
        return _json(service.jobs.state(index, number))


# What comes


async def _body(request: Request, index: Hosted) -> bytes:
    """The body, within the limits of size and of time."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind not in KINDS:  # a page of another site can make a browser send text or forms, and nothing else
        raise Refused(415, "unsupported", f"Content-Type is {kind[:60]!r}, expected one of {', '.join(KINDS)}")
    limit = index.limits.max_body
    length = request.headers.get("content-length")
    if length is not None and length.isdigit() and int(length) > limit:
        raise Refused(413, "too_large", f"the body has {int(length):,} bytes, expected {limit:,} at most")
    try:
        return await asyncio.wait_for(_parts(request, limit), index.limits.body_timeout_s)
    except asyncio.TimeoutError:
        raise Refused(
            408, "timeout", f"the body did not come in {index.limits.body_timeout_s:g} s", {"connection": "close"}
        ) from None
    except ClientDisconnect:
        raise Refused(DISCONNECTED, "disconnected", "the client has gone") from None


async def _parts(request: Request, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise Refused(413, "too_large", f"the body has over {limit:,} bytes, which is the most that is taken")
        parts.append(part)
    return b"".join(parts)


def _is_arrow(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip() in (bodies.ARROW, bodies.PARQUET)


def _read_search(request: Request, body: bytes) -> tuple[bodies.Search, list[Any], list[Any] | None]:
    """What is asked, its queries (texts or matrices), and for each the relevant documents, where a column has them."""
    if _is_arrow(request):
        given: dict[str, Any] = dict(request.query_params)
        columns = request.query_params.getlist("columns")
        if columns:
            given["columns"] = columns
        if "filter" in given:
            given["filter"] = json.loads(given["filter"])
        table = bodies.read_arrow(body, request.headers["content-type"].partition(";")[0].strip())
        asked = bodies.Search.model_validate(given | bodies.settings_in(table))
        relevant = bodies.relevant_in(table)
        if "text" in table.column_names and "tokens" not in table.column_names:
            return asked, bodies.texts_in(table), relevant
        batch = read_queries(table)
        return asked, [batch.matrix(i) for i in range(len(batch))], relevant
    asked = bodies.Search.model_validate_json(body)
    several = asked.queries is not None
    if (asked.text is not None) + (asked.tokens is not None) + several != 1:
        raise ValueError("a search has one of text, tokens and queries")
    several_or_one: Sequence[bodies.Query | bodies.Search] = asked.queries or [asked]
    return asked, [_query_of(query, i) for i, query in enumerate(several_or_one)], None


def _query_of(query: bodies.Query | bodies.Search | bodies.Explained, number: int = 0) -> Any:
    if (query.text is None) == (query.tokens is None):
        raise ValueError(f"query {number} has text or tokens, one of the two")
    return query.text if query.tokens is None else bodies.matrix_of(query.tokens)


def _how(asked: bodies.Search) -> How:
    filter = None if asked.filter is None else json.dumps(asked.filter, sort_keys=True)
    columns = None if asked.columns is None else tuple(asked.columns)
    widths = {name: getattr(asked, name) for name in bodies.Widths.model_fields}
    return How(**widths, filter=filter, columns=columns)


def _read_documents(request: Request, body: bytes) -> Any:
    if _is_arrow(request):
        return bodies.read_arrow(body, request.headers["content-type"].partition(";")[0].strip())
    return bodies.table_of(bodies.Documents.model_validate_json(body).documents)


def _request_of(request: Request, body: bytes) -> hosted.Request:
    key = request.headers.get("idempotency-key")
    if key is None:
        return hosted.Request()
    if not 1 <= len(key) <= MAX_KEY or not key.isprintable():
        raise ValueError(f"Idempotency-Key has {len(key)} characters, expected 1 to {MAX_KEY} printable ones")
    parts = (request.method, request.url.path, request.headers.get("content-type", ""))
    return hosted.Request(key, hashlib.sha256("\n".join(parts).encode() + b"\n" + body).hexdigest()[:16])


async def _follow(request: Request, index: Hosted) -> None:
    """See to it that the client reads what it wrote: the version that its header names, or a later one."""
    wanted = request.headers.get("x-lemur-version", "")
    if wanted.isdigit() and index.read_only and index.version < int(wanted):
        await asyncio.to_thread(index.refresh)


async def _while_there(request: Request, answer: Any) -> Any:
    """The answer; given up where the client goes before it is there."""
    task = asyncio.ensure_future(answer)
    done, _ = await asyncio.wait({task}, timeout=LOOK_AFTER_S)
    while not done:
        if await request.is_disconnected():
            task.cancel()
            raise Refused(DISCONNECTED, "disconnected", "the client has gone")
        done, _ = await asyncio.wait({task}, timeout=LOOK_AFTER_S)
    return task.result()


async def _handed_on(request: Request, body: bytes, writer: Writer) -> Response:
    """What the process that writes says to a request."""
    kept = ("content-type", "idempotency-key", "x-request-id", "accept")
    headers = {name: request.headers[name] for name in kept if name in request.headers}
    headers["x-request-id"] = request.scope["lemur_request_id"]
    try:
        answer = await writer.request(request.method, request.url.path, content=body, headers=headers)
    except httpx.HTTPError as error:
        message = f"the process that writes does not answer: {error!r}; try again"
        raise Refused(503, "writer_away", message, {"retry-after": "1"}) from error
    back = ("content-type", "retry-after", "x-lemur-version")
    return Response(answer.content, answer.status_code, {name: answer.headers[name] for name in back if name in answer.headers})


# What goes out


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    content = pydantic_core.to_json(value, bytes_mode="base64", inf_nan_mode="null", fallback=str)
    return Response(content, status, headers, media_type="application/json")


def _changed(result: dict[str, Any]) -> Response:
    return _json(result, headers=_version_of(result["version"]))


def _version_of(version: int) -> dict[str, str]:
    return {"x-lemur-version": str(version)}


def _about(index: Hosted, service: Service) -> dict[str, Any]:
    snapshot = index.index.snapshot
    return {
        "name": index.name,
        "num_documents": snapshot.num_documents,
        "num_tokens": snapshot.store.num_tokens,
        "dim": snapshot.dim,
        "version": snapshot.number,
        "is_fitted": snapshot.learned is not None,
        "takes_texts": index.texts is not None,
        "read_only": index.read_only and service.writer is None,
        "columns": {field.name: str(field.type) for field in schema_of(snapshot)},
    }


def _arrow_of(answered: hosted.Answered) -> bytes:
    tables = answered.tables or [hits.to_arrow() for hits in answered.hits]
    parts = [table.add_column(0, "query", pa.array(np.full(len(table), i))) for i, table in enumerate(tables)]
    return bodies.write_arrow(pa.concat_tables(parts))


def _documents_of(table: pa.Table, dim: int | None) -> list[dict[str, Any]]:
    without = table.drop_columns(["tokens"]) if "tokens" in table.column_names else table
    rows: list[dict[str, Any]] = without.to_pylist()
    if "tokens" in table.column_names:
        for row, tokens in zip(rows, table.column("tokens"), strict=True):
            row["tokens"] = bodies.encoded(tokens.values.flatten().to_numpy().reshape(-1, dim or 1))
    return rows


def _explained(index: Hosted, asked: bodies.Explained) -> dict[str, Any]:
    query = _query_of(asked)
    if isinstance(query, str):
        found = index.with_texts().explain(query, asked.id, k=asked.k)
    else:
        found = index.index.explain(query, asked.id, k=asked.k)
    names = (
        "doc_id",
        "score",
        "rank",
        "num_documents",
        "estimate",
        "estimate_rank",
        "found_at",
        "k",
        "query_words",
        "document_words",
    )
    told = {name: getattr(found, name) for name in names}
    arrays = ("best_tokens", "best_similarities", "gains", "document_gains", "usual_similarities")
    told |= {name: getattr(found, name).tolist() for name in arrays}
    return told | {"similarities": bodies.encoded(found.similarities), "members": found.members}


def _takes(model: type[BaseModel], *others: str) -> dict[str, Any]:
    """The body of a route, for the OpenAPI page: it is read by hand, which takes half the time."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    content: dict[str, Any] = {"application/json": {"schema": _inlined(schema)}}
    content |= {kind: {"schema": {"type": "string", "format": "binary"}} for kind in others}
    return {"requestBody": {"required": True, "content": content}}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without references to others of its own."""
    definitions = schema.pop("$defs", {})

    def of(node: Any) -> Any:
        if isinstance(node, dict):
            name = node.get("$ref", "").rpartition("/")[2]
            return of(definitions[name]) if name in definitions else {key: of(value) for key, value in node.items()}
        return [of(value) for value in node] if isinstance(node, list) else node

    return dict(of(schema))


def _told(request: Request, error: Exception) -> Response:
    """An error as JSON: what was refused, and why."""
    if isinstance(error, pydantic.ValidationError):
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        return _problem(422, "invalid", f"{where}: {first['msg']}")
    if isinstance(error, Refused):
        return _problem(error.status, error.error, str(error), error.headers)
    if isinstance(error, Denied):
        headers = {} if error.is_known else {"www-authenticate": "Bearer"}
        return _problem(403 if error.is_known else 401, "forbidden" if error.is_known else "unauthorized", str(error), headers)
    for kind, status, name in PROBLEMS:
        if isinstance(error, kind):
            message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
            headers = {"retry-after": "1"} if status in (429, 503) else {}
            return _problem(status, name, message, headers, kind.__name__)
    log.exception("request %s failed", request.scope.get("lemur_request_id"), exc_info=error)
    return _problem(500, "internal", "the service failed; its log has the request's id")


def _problem(status: int, name: str, message: str, headers: dict[str, str] | None = None, kind: str | None = None) -> Response:
    told = {"error": name, "message": message[:2000]}
    return _json(told if kind is None else told | {"type": kind}, status, headers)


PROBLEMS: tuple[tuple[type[Exception], int, str], ...] = (
    (Busy, 429, "busy"),
    (TimeoutError, 504, "timeout"),
    (asyncio.TimeoutError, 504, "timeout"),  # another class before Python 3.11
    (OtherRequest, 409, "other_request"),
    (NotFitted, 409, "not_fitted"),
    (IndexLocked, 503, "locked"),
    (PermissionError, 403, "read_only"),
    (KeyError, 404, "not_found"),
    (CorruptIndex, 500, "corrupt"),
    (ValueError, 400, "bad_request"),
    (TypeError, 400, "bad_request"),
)
