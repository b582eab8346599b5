"""The service for language models: tools of the Model Context Protocol, over HTTP at ``/mcp`` and over stdin and stdout.

They read: nothing here changes an index. What it needs beside the package is the extra ``lemur_ann[mcp]``.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import pydantic_core
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from pydantic import BaseModel, ConfigDict, Field
from starlette.routing import Route

import lemur_ann
from lemur_ann.service import bodies
from lemur_ann.service.access import Keys
from lemur_ann.service.hosted import Hosted, How, Limits, schema_of
from lemur_ann.service.service import Service, about_of, told
from lemur_ann.service.telemetry import log

MAX_HITS, MAX_DOCUMENTS = 50, 20  # of one call: what comes is read by a model
MAX_CHARACTERS = 1000  # of a text in a hit
WHICH = "Name of the index, as list_indexes gives it; may be left out where there is one."
INSTRUCTIONS = (
    "Search collections of documents by meaning. list_indexes says which there are and what can be filtered by; search finds "
    "the documents that answer a question or fit a description; get_documents gives the whole of those whose ids are known."
)


class Found(BaseModel):
    """A document that was found."""

    id: bodies.Id
    score: float = Field(description="Higher is better; scores of one query can be compared with each other, and no others.")
    document: dict[str, Any] = Field(description=f"Its columns; texts end after {MAX_CHARACTERS:,} characters.")


class Hits(BaseModel):
    """What a search found, the best first."""

    hits: list[Found]


class Document(BaseModel):
    """A document as it is stored: its id and its columns."""

    model_config = ConfigDict(extra="allow")
    id: bodies.Id


class Documents(BaseModel):
    """Documents as they are stored."""

    documents: list[Document]


class Index(BaseModel):
    """A collection of documents."""

    name: str
    num_documents: int
    columns: dict[str, str] = Field(description="Columns that a filter may name, with their types.")


class Indexes(BaseModel):
    """The collections there are."""

    indexes: list[Index]


def make_server(service: Service) -> MCPServer[Any]:
    """The tools of a service, for its indexes that take texts."""
    server: MCPServer[Any] = MCPServer(
        "lemur_ann", title="Document search", version=lemur_ann.__version__, instructions=INSTRUCTIONS, log_level="WARNING"
    )
    reads = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)

    @server.tool(title="Search documents", annotations=reads)
    @_said
    async def search(
        ctx: Context[Any, Any],
        query: Annotated[str, Field(min_length=1, description="A question, or a description of what to find, in plain words.")],
        k: Annotated[int, Field(ge=1, le=MAX_HITS, description="How many documents to return.")] = 10,
        filter: Annotated[
            dict[str, Any] | None,
            Field(
                description='Only documents whose columns fit, such as {"year": {"$gte": 2020}, "lang": "en"}. Operators: $eq, '
                "$ne, $gt, $gte, $lt, $lte, $in, "
                "$nin, $exists, $startswith, $endswith, $contains; $and, $or, $not between filters."
            ),
        ] = None,
        index: Annotated[str | None, Field(description=WHICH)] = None,
    ) -> Hits:
        """Find the documents that fit a query best, by meaning and not by words alone. Ask in whole sentences; ask again in
        other words where the hits do not fit.
        """
        found = _index(service, ctx, index)
        columns = tuple(name for name in schema_of(found.index.snapshot).names if name not in ("id", "query", "rank", "score"))
        how = How(k=k, filter=None if filter is None else json.dumps(filter, sort_keys=True), columns=columns or None)
        answered = await found.search([query], how)
        rows = bodies.rows_of(answered.hits[0], answered.tables and answered.tables[0])
        return Hits(hits=[Found(id=row.pop("id"), score=row.pop("score"), document=_shown(row)) for row in rows])

    @server.tool(title="Read documents", annotations=reads)
    @_said
    async def get_documents(
        ctx: Context[Any, Any],
        ids: Annotated[
            list[bodies.Id], Field(min_length=1, max_length=MAX_DOCUMENTS, description="Ids, as search gives them.")
        ],
        index: Annotated[str | None, Field(description=WHICH)] = None,
    ) -> Documents:
        """Read the whole of some documents, by their ids."""
        found = _index(service, ctx, index)
        table = await asyncio.to_thread(found.index.metadata, ids)
        return Documents(documents=[Document(**_plain(row)) for row in table.to_pylist()])

    @server.tool(title="List indexes", annotations=reads)
    @_said
    async def list_indexes(ctx: Context[Any, Any]) -> Indexes:
        """List the collections of documents that can be searched, with their sizes and their columns."""
        about = [about_of(found, service) for found in service.allowed(_authorization(ctx)) if found.texts is not None]
        return Indexes(indexes=[Index(**{name: one[name] for name in Index.model_fields}) for one in about])

    return server


def make_handler(server: MCPServer[Any], service: Service) -> tuple[Any, Callable[[], Any]]:
    """An ASGI application that answers to requests with a key, and what runs around all of them, once."""
    whole = server.streamable_http_app(stateless_http=True, json_response=True)
    (route,) = (route for route in whole.routes if isinstance(route, Route) and route.path == "/mcp")

    async def handle(scope: Any, receive: Any, send: Any) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        scope["lemur_key"] = service.keys.check(headers.get(b"authorization"), None, "read")  # each tool asks for its index
        await route.endpoint(scope, receive, send)

    return handle, server.session_manager.run


def run_stdio(indexes: dict[str, Path], encoder: str, limits: Limits) -> None:
    """Serve a client that has this process's stdin and stdout, until it ends; indexes are read, and followed as they change."""
    from lemur_ann.service.encoders import load

    with contextlib.redirect_stdout(sys.stderr):  # the client reads stdout
        model = load(encoder)
        opened = [Hosted(name, path, read_only=True, encoder=model, limits=limits) for name, path in indexes.items()]
        service = Service(opened, Keys(None))
    try:
        asyncio.run(make_server(service).run_stdio_async())
    finally:
        service.close()


def _said(tool: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """A tool whose errors are told to the model, as HTTP tells them."""

    @functools.wraps(tool)
    async def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return await tool(*args, **kwargs)
        except Exception as error:
            known = told(error)
            if known is None or known.status == 500:
                log.exception("a tool failed", exc_info=error)
                raise ToolError("the service failed; its log says how") from None
            raise ToolError(known.message) from None

    return call


def _authorization(ctx: Context[Any, Any]) -> str | None:
    return None if ctx.headers is None else ctx.headers.get("authorization")


def _index(service: Service, ctx: Context[Any, Any], name: str | None) -> Hosted:
    if name is None:
        allowed = [index.name for index in service.allowed(_authorization(ctx)) if index.texts is not None]
        if len(allowed) != 1:
            raise ValueError(f"say which index; there are {', '.join(allowed)}")
        name = allowed[0]
    index, _ = service.find(_authorization(ctx), name, "read")
    index.with_texts()
    return index


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    short = {
        name: value[:MAX_CHARACTERS] + "..." if isinstance(value, str) and len(value) > MAX_CHARACTERS else value
        for name, value in row.items()
        if name != "rank"
    }
    return _plain(short)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Values as JSON has them."""
    return dict(pydantic_core.to_jsonable_python(row, bytes_mode="base64", inf_nan_mode="null", fallback=str))
