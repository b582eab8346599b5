"""The service over HTTP: routes, what they refuse, and how errors are told."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import asdict
from importlib.resources import files
from typing import Any

import httpx
import pyarrow as pa
import pydantic
import pydantic_core
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, StreamingResponse
from pydantic import BaseModel
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.routing import Route

import lemur_ann
from lemur_ann.client.wire import write_arrow
from lemur_ann.documents.inputs import read_queries
from lemur_ann.service import bodies, hosted
from lemur_ann.service.access import Access, Denied, NoKeys
from lemur_ann.service.hosted import Answered, Hosted, How
from lemur_ann.service.queue import Busy
from lemur_ann.service.service import (
    Refused,
    Service,
    Writer,
    about_of,
    answered_batch,
    away,
    documents_of,
    explained_of,
    how_of,
    query_of,
    request_of,
    told,
    version_in,
)
from lemur_ann.service.telemetry import Observed, log

DISCONNECTED = 499  # as nginx says it
LOOK_AFTER_S = 0.1  # whether the client of a search is still there
KINDS = ("application/json", bodies.ARROW, bodies.PARQUET)
ERRORS = (400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503, 504)
LARGE_BODY = 2**18  # bytes; a smaller one is read in the loop's own thread
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}


def make_app(service: Service, hosts: Sequence[str] = ("*",)) -> Any:
    """The ASGI application of a service, which answers to these names of hosts alone."""

    agents, around = _agents(service)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(service.warm)
        async with around():
            yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="lemur_ann",
        version=lemur_ann.__version__,
        description="Multi-vector search: MaxSim over late-interaction embeddings.",
        lifespan=lifespan,
        responses={status: {"model": bodies.Problem} for status in ERRORS},
    )
    app.state.service = service
    app.add_exception_handler(Exception, _told)
    for kind in (
        Refused,
        Denied,
        NoKeys,
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
    if agents is not None:
        app.router.routes.append(Route("/mcp", endpoint=_Asgi(agents), include_in_schema=False))
    if "*" not in hosts:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    return Observed(app, service.metrics)


class _Asgi:
    """An application as the endpoint of a route, which would take a function for one of requests."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._app(scope, receive, send)


def _agents(service: Service) -> tuple[Any, Callable[[], Any]]:
    """The tools for language models, where their package is installed and an index takes texts; and what runs around them."""
    if importlib.util.find_spec("mcp") is None or not any(index.texts is not None for index in service.indexes.values()):
        return None, nullcontext
    from lemur_ann.service.agents import make_handler, make_server

    return make_handler(make_server(service), service)


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
    async def metrics(request: Request) -> Response:
        """For Prometheus, which sends a key where clients have to."""
        service.keys.check(request.headers.get("authorization"), None, "read")
        return Response(service.metrics.page(service.indexes.values()), media_type="text/plain; version=0.0.4")

    @app.get("/v1/indexes", tags=["about"], response_model=list[bodies.About])
    async def indexes(request: Request) -> Response:
        """The indexes that the client may read."""
        return _json([about_of(index, service) for index in service.allowed(request.headers.get("authorization"))])

    @app.get("/v1/indexes/{name}", tags=["about"], response_model=bodies.About)
    async def about(request: Request, name: str) -> Response:
        """One index."""
        index = _hosted(service, request, "read")
        await _follow(request, index)
        return _json(about_of(index, service))

    @app.get("/v1/indexes/{name}/ids", tags=["about"])
    async def ids(request: Request, name: str) -> Response:
        """The ids of all documents in one version, as an Arrow IPC stream with the column ``id``, oldest first."""
        index = _hosted(service, request, "read")
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
        index = _hosted(service, request, "read")
        body = await _body(request, index)
        await _follow(request, index)
        large = len(body) > LARGE_BODY
        asked, queries, _ = await asyncio.to_thread(_read_search, request, body) if large else _read_search(request, body)
        answered = await _searched(request, index, queries, how_of(asked))
        exact = all(hits.exact for hits in answered.hits)
        if bodies.ARROW in request.headers.get("accept", ""):
            headers = _version_of(answered.version) | {"x-lemur-exact": str(exact).lower()}
            return Response(await asyncio.to_thread(_arrow_of, answered), media_type=bodies.ARROW, headers=headers)
        rows = [bodies.rows_of(hits, answered.tables and answered.tables[i]) for i, hits in enumerate(answered.hits)]
        found = {"hits": rows[0]} if asked.queries is None and not _is_arrow(request) else {"results": rows}
        return _json({**found, "exact": exact, "version": answered.version})

    @app.post("/v1/indexes/{name}/get", tags=["search"], openapi_extra=_takes(bodies.Wanted))
    async def get(request: Request, name: str) -> Response:
        """Some documents as they are stored."""
        index = _hosted(service, request, "read")
        wanted = bodies.Wanted.model_validate_json(await _body(request, index))
        await _follow(request, index)
        table = await asyncio.to_thread(index.index.get if wanted.tokens else index.index.metadata, wanted.ids)
        if bodies.ARROW in request.headers.get("accept", ""):
            return Response(await asyncio.to_thread(write_arrow, table), media_type=bodies.ARROW)
        return _json({"documents": await asyncio.to_thread(documents_of, table, index.index.dim)})

    @app.post("/v1/indexes/{name}/explain", tags=["search"], openapi_extra=_takes(bodies.Explained))
    async def explain(request: Request, name: str) -> Response:
        """Why a document has its score for a query: the best document token for each of the query's."""
        index = _hosted(service, request, "read")
        asked = bodies.Explained.model_validate_json(await _body(request, index))
        await _follow(request, index)
        return _json(await asyncio.to_thread(explained_of, index, asked))

    measuring = asyncio.Lock()  # one at a time: each takes all the threads of an index

    @app.post("/v1/indexes/{name}/evaluate", tags=["search"], openapi_extra=_takes(bodies.Search, bodies.ARROW))
    async def evaluate(request: Request, name: str) -> Response:
        """Recall against exact MaxSim and latency, of queries as :func:`search` takes them; see ``LemurIndex.evaluate``.

        An Arrow column ``relevant`` of ids, lists of ids, or lists of structs ``id``, ``grade`` has the relevance measured too.
        """
        index = _hosted(service, request, "read")
        body = await _body(request, index)
        await _follow(request, index)
        asked, queries, relevant = await asyncio.to_thread(_read_search, request, body)
        async with measuring:
            return _json(asdict(await asyncio.to_thread(index.evaluate, queries, how_of(asked), relevant)))


def _change_routes(app: FastAPI, service: Service) -> None:
    async def added(request: Request, *, replaces: bool) -> Response:
        index = _hosted(service, request, "write")
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
        index = _hosted(service, request, "write")
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
        index = _hosted(service, request, "write")
        body = await _body(request, index)
        if service.writer is not None:
            return await _handed_on(request, body, service.writer)
        asked = _request_of(request, body)
        begun = await asyncio.to_thread(service.jobs.start, index, kind, body, asked)  # which may encode texts
        return _json(begun, 202)

    @app.get("/v1/indexes/{name}/jobs/{number}", tags=["changes"])
    async def job(request: Request, name: str, number: str) -> Response:
        """How far a job is, and what it gave."""
        index = _hosted(service, request, "read")
        if service.writer is not None:
            return await _handed_on(request, b"", service.writer)
        return _json(service.jobs.state(index, number))


# What comes


def _hosted(service: Service, request: Request, access: Access) -> Hosted:
    """The index that a path names, where the client may have it so."""
    index, request.scope["lemur_key"] = service.find(request.headers.get("authorization"), request.path_params["name"], access)
    return index


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
        return await _in_time(_parts(request, limit), index.limits.body_timeout_s)
    except asyncio.TimeoutError:
        raise Refused(
            408, "timeout", f"the body did not come in {index.limits.body_timeout_s:g} s", {"connection": "close"}
        ) from None
    except ClientDisconnect:
        raise Refused(DISCONNECTED, "disconnected", "the client has gone") from None


async def _in_time(work: Coroutine[Any, Any, bytes], seconds: float) -> bytes:
    if sys.version_info < (3, 11):
        return await asyncio.wait_for(work, seconds)
    async with asyncio.timeout(seconds):  # without a task of its own
        return await work


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
            given["filter"] = bodies.loads(given["filter"], "filter")
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
    return asked, [query_of(query, i) for i, query in enumerate(several_or_one)], None


def _read_documents(request: Request, body: bytes) -> Any:
    if _is_arrow(request):
        return bodies.read_arrow(body, request.headers["content-type"].partition(";")[0].strip())
    return bodies.table_of(bodies.Documents.model_validate_json(body).documents)


def _request_of(request: Request, body: bytes) -> hosted.Request:
    parts = (request.method, request.url.path, request.headers.get("content-type", ""))
    return request_of(request.headers.get("idempotency-key"), parts, body)


async def _follow(request: Request, index: Hosted) -> None:
    """See to it that the client reads what it wrote: the version that its header names, or a later one."""
    if index.read_only and index.version < version_in(request.headers.get("x-lemur-version", "")):
        await asyncio.to_thread(index.refresh)


async def _searched(request: Request, index: Hosted, queries: list[Any], how: How) -> Answered:
    """The answer of a search; given up where its time is over, or its client gone, before it is there."""
    limit = index.limits.timeout_s
    end = time.monotonic() + limit
    future = index.begin_search(queries, how)
    try:
        while not future.done():
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"not answered in {limit:g} s")
            await asyncio.wait({future}, timeout=min(LOOK_AFTER_S, left))
            if not future.done() and await request.is_disconnected():
                raise Refused(DISCONNECTED, "disconnected", "the client has gone")
    finally:
        future.cancel()
    return future.result()


async def _handed_on(request: Request, body: bytes, writer: Writer) -> Response:
    """What the process that writes says to a request."""
    kept = ("content-type", "idempotency-key", "x-request-id", "accept")
    headers = {name: request.headers[name] for name in kept if name in request.headers}
    headers["x-request-id"] = request.scope["lemur_request_id"]
    try:
        answer = await writer.request(request.method, request.url.path, content=body, headers=headers)
    except httpx.HTTPError as error:
        raise away(error) from error
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


def _arrow_of(answered: hosted.Answered) -> bytes:
    return write_arrow(pa.Table.from_batches([answered_batch(answered)]))


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
    known = told(error)
    if known is not None:
        return _problem(known.status, known.error, known.message, known.headers, known.kind)
    log.exception("request %s failed", request.scope.get("lemur_request_id"), exc_info=error)
    return _problem(500, "internal", "the service failed; its log has the request's id")


def _problem(status: int, name: str, message: str, headers: dict[str, str] | None = None, kind: str | None = None) -> Response:
    told = {"error": name, "message": message[:2000]}
    return _json(told if kind is None else told | {"type": kind}, status, headers)
