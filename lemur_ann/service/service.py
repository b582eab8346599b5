"""What a service is, whatever is spoken to it: its indexes, who may use them, and how errors are told."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
import numpy as np
import pyarrow as pa
import pydantic

from lemur_ann.client.wire import matrix_as_json
from lemur_ann.errors import CorruptIndex, IndexLocked, NotFitted
from lemur_ann.service import bodies, hosted
from lemur_ann.service.access import Access, Denied, Keys, NoKeys
from lemur_ann.service.hosted import EncoderFailed, Hosted, How, OtherRequest, schema_of
from lemur_ann.service.jobs import Jobs
from lemur_ann.service.queue import Busy
from lemur_ann.service.telemetry import Metrics, log

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
        metrics: of this process.
    """

    def __init__(
        self, indexes: Iterable[Hosted], keys: Keys, *, writer: Writer | None = None, metrics: Metrics | None = None
    ) -> None:
        self.indexes = {index.name: index for index in indexes}
        self.keys = keys
        self.writer = writer
        self.metrics = metrics or Metrics()
        self.jobs = Jobs()
        self.doors: list[Callable[[], None]] = []  # others than HTTP: each is ended before the indexes close
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
        for end in self.doors:
            end()
        self.jobs.close()
        for index in self.indexes.values():
            index.close()

    def find(self, authorization: str | None, name: str, access: Access) -> tuple[Hosted, str | None]:
        """An index by its name, where the client of a header ``Authorization`` may have it so, and the name of its key.

        Raises:
            Denied: it may not.
            Refused: there is none of that name.
        """
        key = self.keys.check(authorization, name, access)
        if name not in self.indexes:
            known = ", ".join(self.keys.allowed(authorization, self.indexes)) or "none for this key"
            raise Refused(404, "not_found", f"no index {name[:60]!r} here; there are {known}")
        return self.indexes[name], key

    def allowed(self, authorization: str | None) -> list[Hosted]:
        """The indexes that a client may read.

        Raises:
            Denied: it has no key.
        """
        return [self.indexes[name] for name in self.keys.allowed(authorization, self.indexes)]


@dataclass(frozen=True)
class Told:
    """An error as a client is told it.

    Attributes:
        status: as HTTP has it.
        error: one word.
        message: what was expected, what came and the remedy.
        headers: of an answer over HTTP.
        kind: the class of the error in Python, where an index here would raise it.
    """

    status: int
    error: str
    message: str
    headers: dict[str, str] = field(default_factory=dict)
    kind: str | None = None


def told(error: BaseException) -> Told | None:
    """How an error is told; None where it is one of the service, which clients learn nothing of."""
    if isinstance(error, pydantic.ValidationError):
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        return Told(422, "invalid", f"{where}: {first['msg']}")
    if isinstance(error, Refused):
        return Told(error.status, error.error, str(error), error.headers)
    if isinstance(error, Denied):
        headers = {} if error.is_known else {"www-authenticate": "Bearer"}
        return Told(403 if error.is_known else 401, "forbidden" if error.is_known else "unauthorized", str(error), headers)
    for kind, status, name in PROBLEMS:
        if isinstance(error, kind):
            message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
            message = message or "it took too long" if status == 504 else message
            return Told(status, name, message, {"retry-after": "1"} if status in (429, 503) else {}, kind.__name__)
    return None


def query_of(query: bodies.Query | bodies.Search | bodies.Explained, number: int = 0) -> Any:
    """The text or the matrix (num_tokens, dim) of a query, which has one of the two."""
    if (query.text is None) == (query.tokens is None):
        raise ValueError(f"query {number} has text or tokens, one of the two")
    return query.text if query.tokens is None else bodies.matrix_of(query.tokens)


def how_of(asked: Any) -> How:
    """The settings of a :class:`bodies.Widths` that has ``filter`` and ``columns`` as well."""
    filter = None if asked.filter is None else json.dumps(asked.filter, sort_keys=True)
    columns = None if asked.columns is None else tuple(asked.columns)
    widths = {name: getattr(asked, name) for name in bodies.Widths.model_fields}
    return How(**widths, filter=filter, columns=columns)


def about_of(index: Hosted, service: Service) -> dict[str, Any]:
    """An index as :class:`bodies.About` has it."""
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


def documents_of(table: pa.Table, dim: int | None) -> list[dict[str, Any]]:
    """Documents as JSON objects, with their tokens as :class:`bodies.Encoded`."""
    without = table.drop_columns(["tokens"]) if "tokens" in table.column_names else table
    rows: list[dict[str, Any]] = without.to_pylist()
    if "tokens" in table.column_names:
        for row, tokens in zip(rows, table.column("tokens"), strict=True):
            row["tokens"] = matrix_as_json(tokens.values.flatten().to_numpy().reshape(-1, dim or 1))
    return rows


def explained_of(index: Hosted, asked: bodies.Explained) -> dict[str, Any]:
    """Why a document has its score, see :meth:`lemur_ann.LemurIndex.explain`: names of columns, and lists."""
    query = query_of(asked)
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
    return told | {"similarities": matrix_as_json(found.similarities), "members": found.members}


def answered_batch(answered: hosted.Answered) -> pa.RecordBatch:
    """The hits of a request: ``query``, int64; ``id``; ``score``, float32; and where columns were asked for, ``rank`` before
    the id and these at the end.
    """
    query = pa.array(np.repeat(np.arange(len(answered.hits)), [len(hits) for hits in answered.hits]))
    if answered.tables:
        table = pa.concat_tables(answered.tables).add_column(0, "query", query)
        return pa.record_batch([column.combine_chunks() for column in table.columns], schema=table.schema)
    ids = np.concatenate([hits.ids for hits in answered.hits])
    scores = np.concatenate([hits.scores for hits in answered.hits])
    kind = pa.int64() if ids.dtype.kind in "iu" else pa.large_string()
    return pa.record_batch([query, pa.array(ids, kind), pa.array(scores)], ["query", "id", "score"])


def version_in(header: str) -> int:
    """The version that a header names; 0 where it names none."""
    return int(header) if header.isascii() and header.isdigit() and len(header) < 20 else 0


def away(error: Exception) -> Refused:
    """That the process that writes does not answer."""
    return Refused(503, "writer_away", f"the process that writes does not answer: {error!r}; try again", {"retry-after": "1"})


def request_of(key: str | None, parts: Iterable[str], body: bytes) -> hosted.Request:
    """A request for a change, with the client's name for it; ``parts`` and ``body`` are what it asks.

    Raises:
        ValueError: a name that is too long, or cannot be printed.
    """
    if key is None:
        return hosted.Request()
    if not 1 <= len(key) <= MAX_KEY or not key.isprintable() or not key.isascii():
        raise ValueError(f"Idempotency-Key has {len(key)} characters, expected 1 to {MAX_KEY} printable ones of ASCII")
    return hosted.Request(key, hashlib.sha256("\n".join(parts).encode() + b"\n" + body).hexdigest()[:16])


PROBLEMS: tuple[tuple[type[Exception], int, str], ...] = (
    (Busy, 429, "busy"),
    (NoKeys, 503, "no_keys"),
    (bodies.TooLarge, 413, "too_large"),
    (TimeoutError, 504, "timeout"),
    (asyncio.TimeoutError, 504, "timeout"),  # another class before Python 3.11
    (OtherRequest, 409, "other_request"),
    (NotFitted, 409, "not_fitted"),
    (EncoderFailed, 500, "encoder_failed"),
    (IndexLocked, 503, "locked"),
    (PermissionError, 403, "read_only"),
    (KeyError, 404, "not_found"),
    (CorruptIndex, 500, "corrupt"),
    (ValueError, 400, "bad_request"),
    (TypeError, 400, "bad_request"),
)
