"""Which requests make a call, in which order, and when one is sent again: generators, for threads and coroutines alike.

A call yields a :class:`~lemur_ann.client.wire.Request` and is sent what came of it, or yields a :class:`Pause` and is resumed
after it; its result is what it returns.
"""

from __future__ import annotations

import itertools
import json
import random
import threading
import uuid
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import pyarrow as pa

from lemur_ann import validate
from lemur_ann.client import wire
from lemur_ann.client.wire import About, Answer, Lost, Queries, Request
from lemur_ann.documents.ids import plain_id
from lemur_ann.documents.inputs import ids_of
from lemur_ann.hits import Hits
from lemur_ann.insight.evaluation import Evaluation
from lemur_ann.progress import Show, progress_lines
from lemur_ann.searching.settings import Tuned

if TYPE_CHECKING:
    from lemur_ann.insight.explanation import Explanation

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0  # before a request is sent again; it doubles each time
PATIENCE_S = 60.0  # a service that wants to be asked later than that is not asked again
CHANGE_S = 600.0  # for a change, which takes as long as what it brings, and for a measurement
FIRST_LOOK_S, LONGEST_LOOK_S = 0.05, 2.0  # between looks at a job

T = TypeVar("T")


@dataclass(frozen=True)
class Pause:
    """Nothing is to be done for so long."""

    seconds: float


Steps = Generator[Request | Pause, Any, T]


class Calls:
    """The calls to one index of a service.

    Args:
        where: its address, for errors.
        name: of the index.
        timeout: seconds for each request that only reads.
        retries: how often a request is sent again.
    """

    def __init__(self, where: str, name: str, timeout: float, retries: int) -> None:
        self.where, self.name = where, name
        self._path = f"/v1/indexes/{quote(name, safe='')}"
        self._timeout, self._retries = timeout, retries
        self._lock = threading.Lock()
        self._version = 0  # the last one that a change of this client made

    # One request

    def _ask(
        self, method: str, path: str, content: bytes | None = None, kind: str = wire.JSON, *, accept: str | None = None
    ) -> Steps[Answer]:
        headers = {} if content is None else {"content-type": kind}
        if accept is not None:
            headers["accept"] = accept
        if self._version:
            headers[wire.VERSION] = str(self._version)
        return self._sent(Request(method, self._path + path, self._timeout, content, headers))

    def _change(self, method: str, path: str, content: bytes, kind: str = wire.JSON) -> Steps[dict[str, Any]]:
        """A request that is applied once, however often it is sent."""
        headers = {"content-type": kind, "idempotency-key": uuid.uuid4().hex}
        request = Request(method, self._path + path, max(self._timeout, CHANGE_S), content, headers)
        told = wire.told_of((yield from self._sent(request)), "state" if "/jobs/" in path else "version")
        self._saw(told["version"])
        return told

    def _saw(self, version: int | None) -> None:
        with self._lock:
            self._version = max(self._version, version or 0)

    def _sent(self, request: Request) -> Steps[Answer]:
        """The answer to a request, which is sent again where none came or the service has too much to do."""
        for attempt in itertools.count():
            answer: Answer | Lost = yield request
            if isinstance(answer, Answer) and answer.status < 400:
                if not wire.is_of_service(answer):  # a page of a proxy, or the way to another place
                    raise wire.error_of(answer, request, self.where)
                return answer
            wait = FIRST_PAUSE_S * 2**attempt * random.uniform(0.5, 1)  # clients that failed together come back apart
            wait = min(wait, LONGEST_PAUSE_S)
            if isinstance(answer, Answer):
                if answer.status not in (429, 503):
                    break
                wait = max(wait, wire.retry_after(answer) or 0)
            if attempt >= self._retries or wait > PATIENCE_S:
                break
            yield Pause(wait)
        raise wire.error_of(answer, request, self.where)

    # Reading

    def about(self) -> Steps[About]:
        """What the service tells of it."""
        told = wire.told_of((yield from self._ask("GET", "")), *About.__dataclass_fields__)
        return About(**{name: told[name] for name in About.__dataclass_fields__})

    def ids(self) -> Steps[pa.Array]:
        """All ids."""
        column = wire.read_arrow((yield from self._ask("GET", "/ids"))).column("id")
        return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)

    def contains(self, doc_id: Any) -> Steps[bool]:
        """Whether an id names a document."""
        doc_id = plain_id(doc_id)
        if isinstance(doc_id, bool) or not isinstance(doc_id, (str, int)):
            return False
        try:
            answer = yield from self._ask("POST", "/get", wire.as_json({"ids": [doc_id]}))
        except (KeyError, TypeError, ValueError):  # there is none, or none of its kind
            return False
        wire.told_of(answer, "documents")
        return True

    def get(self, ids: Any, *, tokens: bool) -> Steps[pa.Table]:
        """Documents as they are stored."""
        wanted = ids_of(ids).to_pylist()
        size = wire.TOKENS_PER_PART if tokens else wire.IDS_PER_PART
        tables = []
        for begin in range(0, max(len(wanted), 1), size):
            body = wire.as_json({"ids": wanted[begin : begin + size], "tokens": tokens})
            tables.append(wire.read_arrow((yield from self._ask("POST", "/get", body, accept=wire.ARROW))))
        return pa.concat_tables(tables)

    def search(self, queries: Any, settings: dict[str, Any]) -> Steps[Any]:
        """Hits of one query, or of each of a batch."""
        asked = Queries.of(queries)
        found: list[Hits] = []
        for table in asked.tables(min(wire.QUERIES_PER_PART, max(1, wire.HITS_PER_PART // settings["k"]))):
            body = wire.search_body(table, settings)
            answer = yield from self._ask("POST", "/search", body, wire.ARROW, accept=wire.ARROW)
            found += wire.hits_of(answer, len(table), with_columns=bool(settings.get("columns")))
        return found[0] if asked.is_one else found

    def to_table(self, hits: Any, columns: Sequence[str] | None) -> Steps[pa.Table]:
        """Hits with metadata."""
        if isinstance(columns, (str, bytes)):
            raise TypeError(f"columns must be a list of names, got {columns!r}; one is columns=[{columns!r}]")
        batch = [hits] if isinstance(hits, Hits) else list(hits)
        if not all(isinstance(one, Hits) for one in batch):
            raise TypeError(f"hits must be Hits or a sequence of them, got {type(hits).__name__}")
        metadata = wire.columns_of(batch, columns)
        if metadata is None:
            metadata = yield from self.get([doc_id for one in batch for doc_id in one.ids.tolist()], tokens=False)
            metadata = metadata.drop_columns(["id"])
            missing = next((name for name in columns or () if name not in metadata.column_names), None)
            if missing is not None:
                raise KeyError(f"no metadata column {missing!r}; there are {metadata.column_names}")
            metadata = metadata if columns is None else metadata.select(list(columns))
        return wire.table_of(batch, metadata, is_one=isinstance(hits, Hits))

    def explain(self, query: Any, doc_id: Any, k: int, query_words: Any, document_words: Any) -> Steps[Explanation]:
        """Why a document has its score."""
        asked = Queries.of(query)
        if not asked.is_one:
            raise TypeError(f"explain takes one query, a text or a matrix (num_tokens, dim), got a batch of {len(asked)}")
        key = "text" if asked.batch is None else "tokens"
        body = wire.as_json({key: asked.as_json()[0], "id": plain_id(doc_id), "k": validate.positive_int(k, "k")})
        answer = yield from self._ask("POST", "/explain", body)
        return wire.explanation_of(json.loads(answer.content), query_words, document_words)

    def evaluate(self, queries: Any, settings: dict[str, Any], relevant: Any) -> Steps[Evaluation]:
        """Recall and latency."""
        body = wire.search_body(wire.evaluation_table(queries, relevant), settings)
        headers = {"content-type": wire.ARROW, wire.VERSION: str(self._version)}
        request = Request("POST", f"{self._path}/evaluate", max(self._timeout, CHANGE_S), body, headers)
        return wire.evaluation_of(json.loads((yield from self._sent(request)).content))

    # Changing

    def add(self, documents: Any, ids: Any, offsets: Any, note: Any, progress: Show, *, replaces: bool) -> Steps[None]:
        """Documents, part after part."""
        if note is not None:
            raise TypeError("note= is of an index that is here: a service keeps which requests it has applied in its place")
        done = 0
        with progress_lines(progress) as lines:
            task = lines.task("documents sent", None)
            for table in wire.parts_of(documents, ids, offsets):
                body = wire.write_arrow(table)
                try:
                    yield from self._change("PUT" if replaces else "POST", "/documents", body, wire.ARROW)
                except Exception as error:
                    if not done:
                        raise
                    message = error.args[0] if error.args else ""
                    raise type(error)(f"{message}; the first {done:,} documents went before, and are in") from error
                done += len(table)
                task.advance(len(table))

    def delete(self, ids: Any, filter: Any, note: Any) -> Steps[int]:
        """Documents by ids or by a filter; how many."""
        if note is not None:
            raise TypeError("note= is of an index that is here: a service keeps which requests it has applied in its place")
        if (ids is None) == (filter is None):
            raise TypeError("delete takes ids or filter=, one of the two")
        what = {"filter": wire.filter_of(filter)} if ids is None else {"ids": ids_of(ids).to_pylist()}
        told = yield from self._change("POST", "/delete", wire.as_json(what))
        return int(told["deleted"])

    def job(self, kind: str, arguments: dict[str, Any], progress: Show) -> Steps[Any]:
        """What takes minutes, to its end; its result."""
        given = {name: value for name, value in arguments.items() if value is not None or name == "token_codes"}
        with progress_lines(progress) as lines:
            lines.task(kind, None)
            job = yield from self._change("POST", f"/jobs/{kind}", wire.as_json(given))
            for wait in _looks():
                if job["state"] not in ("waiting", "running"):
                    break
                yield Pause(wait)
                try:
                    job = json.loads((yield from self._ask("GET", f"/jobs/{job['id']}")).content)
                except KeyError as error:
                    raise ConnectionError(
                        f"{self.where} was begun anew, and knows nothing of the {kind} that was begun"
                    ) from error
        if job["state"] == "failed":
            raise wire.error_of_job(job["error"])
        self._saw(job["version"])
        return job["result"]

    def fit(
        self,
        documents: Any,
        queries: Any,
        ids: Any,
        offsets: Any,
        encode_query: Any,
        arguments: dict[str, Any],
        progress: Show,
    ) -> Steps[None]:
        """Documents, where they are given, and a map for all."""
        if documents is None and (ids is not None or offsets is not None):
            raise TypeError("ids= and offsets= go with documents, and documents is None")
        known = yield from self.about()
        if encode_query is not None and not known.takes_texts:
            raise ValueError(
                f"index {self.name!r} has no encoder at its service, where it learns: pass queries=, or serve it with --encoder"
            )
        if documents is not None:
            if known.num_documents:
                raise ValueError(
                    f"the index holds {known.num_documents} documents already; add(documents) brings more, and "
                    "fit(queries=...) without documents learns anew from those it holds"
                )
            yield from self.add(documents, ids, offsets, None, progress, replaces=False)
        yield from self.job("fit", {"queries": _as_json(queries), **arguments}, progress)

    def refit(self, queries: Any, arguments: dict[str, Any], progress: Show) -> Steps[None]:
        """Another map."""
        yield from self.job("refit", {"queries": _as_json(queries), **arguments}, progress)

    def tune(self, queries: Any, relevant: Any, arguments: dict[str, Any], progress: Show) -> Steps[Tuned]:
        """The quickest search of a wanted recall or relevance."""
        judged = wire.relevant_as_json(queries, relevant)
        told = yield from self.job("tune", {"queries": _as_json(queries), "relevant": judged, **arguments}, progress)
        return wire.tuned_of(told)


def _as_json(queries: Any) -> Any:
    return None if queries is None else Queries.of(queries).as_json()


def _looks() -> Iterator[float]:
    wait = FIRST_LOOK_S
    while True:
        yield wait
        wait = min(wait * 1.5, LONGEST_LOOK_S)
