"""One index of a service: its encoder, the queue of its searches, and its changes, each of which happens once."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lemur_ann import validate
from lemur_ann.documents.inputs import ids_of, queries_of
from lemur_ann.hits import Hits
from lemur_ann.index import LemurIndex
from lemur_ann.insight.evaluation import Evaluation
from lemur_ann.progress import Task
from lemur_ann.saved.storage import MANIFEST
from lemur_ann.searching.filters import excluded_by
from lemur_ann.searching.snapshot import Snapshot
from lemur_ann.searching.tables import hits_table
from lemur_ann.service.json_filters import as_expression
from lemur_ann.service.queue import Busy, SearchQueue
from lemur_ann.texts import TextIndex

log = logging.getLogger("lemur_ann.service")

MAX_REQUESTS = 400  # changes whose idempotency keys are known, the last ones
MAX_HITS = 1_000_000  # of one request
FOLLOW_S = 0.05  # how often a reader looks for a new version
Query = str | npt.NDArray[Any]


@dataclass(frozen=True)
class How:
    """What searches must share to be answered together."""

    k: int = 10
    num_candidates: int | None = None
    ef_search: int | None = None
    shortlist: int | None = None
    target_recall: float | None = None
    max_loss: float | None = None
    exact: bool = False
    filter: str | None = None  # as JSON
    columns: tuple[str, ...] | None = None

    def expression(self, snapshot: Snapshot) -> pc.Expression | None:
        """The filter, for the columns of a snapshot."""
        return None if self.filter is None else as_expression(json.loads(self.filter), schema_of(snapshot))


@dataclass(frozen=True)
class Answered:
    """The hits of each query of a request, with their metadata where it was asked for, in one version of the index."""

    hits: list[Hits]
    tables: list[pa.Table] | None
    version: int


@dataclass(frozen=True)
class Limits:
    """How much a service takes on.

    Attributes:
        num_threads: that search, for each index; None means all cores.
        max_batch: queries that one thread answers together.
        max_waiting: searches that may wait, and a quarter as many changes; what comes then is told to come again.
        timeout_s: for a search from its arrival to its answer.
        max_body: bytes of a request.
        body_timeout_s: from the head of a request to the end of its body.
        max_tokens: of one query.
    """

    num_threads: int | None = None
    max_batch: int = 16
    max_waiting: int = 256
    timeout_s: float = 10.0
    max_body: int = 64 * 2**20
    body_timeout_s: float = 30.0
    max_tokens: int = 4096


@dataclass(frozen=True)
class Request:
    """A request for a change: the client's name for it, None where it will not be sent again, and a digest of what it asks."""

    key: str | None = None
    digest: str = ""


class EncoderFailed(RuntimeError):
    """The encoder fails on texts: not what a client did wrong, but what it should be told."""

    def __init__(self, error: Exception) -> None:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        super().__init__(f"the encoder of the service failed: {type(error).__name__}: {message}")


class OtherRequest(ValueError):
    """An idempotency key that another request had."""


@dataclass(eq=False)
class Hosted:
    """An index that is open, to write or only to read.

    Args:
        name: in paths of requests.
        path: its directory.
        read_only: take no lock, and follow what another process writes.
        encoder: for texts; None where only tokens are taken.
        limits: of searches and requests.
    """

    name: str
    path: Path
    read_only: bool = False
    encoder: Any = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self.index = LemurIndex.open(self.path, read_only=self.read_only)
        self.texts = None if self.encoder is None else TextIndex(self.encoder, self.index, fit_at=None)
        self.searches = SearchQueue(
            self._answers,
            num_threads=validate.num_threads(self.limits.num_threads),
            max_batch=self.limits.max_batch,
            max_waiting=self.limits.max_waiting,
        )
        self._changes = ThreadPoolExecutor(1, thread_name_prefix=f"lemur_ann changes {self.name}")
        self._waiting, self._lock = 0, threading.Lock()
        self._closing = threading.Event()
        self._requests: dict[str, tuple[str, dict[str, Any]]] = {} if self.read_only else _known_requests(self.index.note)
        self._follower = threading.Thread(target=self._follow, name=f"lemur_ann follow {self.name}", daemon=True)
        if self.read_only:
            self._follower.start()

    def close(self) -> None:
        """Answer what waits, and let others write."""
        self._closing.set()
        self.searches.close()
        self._changes.shutdown()
        if self.read_only:
            self._follower.join()
        self.index.close()

    @property
    def version(self) -> int:
        """Of the index on disk, as this process sees it."""
        return self.index.snapshot.number

    # Searching

    async def search(self, queries: list[Query], how: How) -> Answered:
        """The hits of queries, texts or matrices.

        Raises:
            Busy, TimeoutError: there is too much to do.
            ValueError, TypeError: see :meth:`lemur_ann.LemurIndex.search`.
        """
        self._check_hits(queries, how)
        answered: Answered = await self.searches.ask(how, queries, self.limits.timeout_s)
        return answered

    def begin_search(self, queries: list[Query], how: How) -> asyncio.Future[Answered]:
        """As :meth:`search`, for who waits for the answer by himself, see :meth:`SearchQueue.begin`."""
        self._check_hits(queries, how)
        return self.searches.begin(how, queries, self.limits.timeout_s)

    def search_and_wait(self, queries: list[Query], how: How) -> Answered:
        """As :meth:`search`, for a thread that has no loop."""
        self._check_hits(queries, how)
        answered: Answered = self.searches.ask_and_wait(how, queries, self.limits.timeout_s)
        return answered

    def _check_hits(self, queries: list[Query], how: How) -> None:
        k = min(how.k, self.index.snapshot.num_documents)
        if len(queries) > 1 and len(queries) * k > MAX_HITS:
            raise ValueError(f"{len(queries):,} queries ask for {k:,} hits each, expected {MAX_HITS:,} together at most")

    def _answers(self, how: How, asked: list[list[Query]]) -> list[Any]:
        """For each request its answer; run by threads of the queue."""
        snapshot = self.index.snapshot
        matrices = self._matrices([query for queries in asked for query in queries])
        settings = self.index._settings(
            snapshot, how.k, how.num_candidates, how.ef_search, how.target_recall, 1, how.shortlist, how.max_loss
        )
        filter = how.expression(snapshot)
        batch = queries_of(matrices, snapshot.dim).batch
        hits = self.index._searcher.search(snapshot, batch, settings, filter=filter, exact=how.exact)
        answers, begin = [], 0
        for queries in asked:
            own = hits[begin : begin + len(queries)]
            begin += len(queries)
            answers.append(Answered(own, _tables(snapshot, own, how.columns), snapshot.number))
        return answers

    def _matrices(self, queries: list[Query]) -> list[npt.NDArray[Any]]:
        """Queries as token matrices: texts through the encoder, all at once."""
        rows = [row for row, query in enumerate(queries) if isinstance(query, str)]
        matrices: list[Any] = list(queries)
        if rows:
            for row, matrix in zip(rows, self.encode([queries[row] for row in rows]), strict=True):  # type: ignore[misc]
                matrices[row] = matrix
        for matrix in matrices:
            if len(matrix) > self.limits.max_tokens:
                raise ValueError(f"a query has {len(matrix)} tokens, expected {self.limits.max_tokens} at most")
        return matrices

    def encode(self, texts: list[str]) -> list[npt.NDArray[Any]]:
        """Query texts as token matrices.

        Raises:
            TypeError: the service has no encoder for this index.
            EncoderFailed: it fails on these texts, or gives something else than a matrix for each.
        """
        index = self.with_texts()
        try:
            return index._queries(texts, Task())
        except Exception as error:
            raise EncoderFailed(error) from error

    def with_texts(self) -> TextIndex:
        """The index with its encoder.

        Raises:
            TypeError: it has none.
        """
        if self.texts is None:
            raise TypeError(
                f"index {self.name!r} has no encoder here, so that it takes tokens and no texts; serve it with --encoder"
            )
        return self.texts

    def evaluate(self, queries: list[Query], how: How, relevant: list[Any] | None) -> Evaluation:
        """See :meth:`lemur_ann.LemurIndex.evaluate`; with the threads that searches have."""
        return self.index.evaluate(
            self._matrices(queries),
            how.k,
            num_candidates=how.num_candidates,
            ef_search=how.ef_search,
            shortlist=how.shortlist,
            target_recall=how.target_recall,
            max_loss=how.max_loss,
            filter=how.expression(self.index.snapshot),
            relevant=relevant,
            num_threads=self.limits.num_threads,
            progress=False,
        )

    # Changing

    async def change(self, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Make one change after the other, in a thread: ``make`` is :meth:`add`, or another of those below.

        It is made to its end even where its client has gone.

        Raises:
            Busy: as many wait as may.
        """
        return await asyncio.shield(asyncio.wrap_future(self._begin(make)))

    def change_and_wait(self, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """As :meth:`change`, for a thread that has no loop."""
        return self._begin(make).result()

    def _begin(self, make: Callable[[], dict[str, Any]]) -> Future[dict[str, Any]]:
        with self._lock:
            if self._waiting >= max(1, self.limits.max_waiting // 4):
                raise Busy(f"{self._waiting} changes wait already")
            self._waiting += 1
        future = self._changes.submit(make)
        future.add_done_callback(self._is_made)
        return future

    def _is_made(self, _: Any) -> None:
        with self._lock:
            self._waiting -= 1

    def add(self, documents: pa.Table, request: Request, *, replaces: bool) -> dict[str, Any]:
        """Add documents, or upsert them."""
        into: Any = self.index if "tokens" in documents.column_names else self.with_texts()

        def planned() -> dict[str, Any]:
            result = {"added": len(documents)}
            if replaces and "id" in documents.column_names:
                known = self.index.snapshot.ids.known(ids_of(documents.column("id")))
                result["replaced"] = len(known)
            return result

        apply = into.upsert if replaces else into.add
        return self._once(request, planned, lambda note: apply(documents, note=note))

    def delete(self, ids: list[Any] | None, filter: dict[str, Any] | None, request: Request) -> dict[str, Any]:
        """Delete documents by their ids, or by a filter."""
        if (ids is None) == (filter is None):
            raise TypeError("delete takes ids or filter, one of the two")
        if ids is None:
            snapshot = self.index.snapshot
            rows = excluded_by(as_expression(filter, schema_of(snapshot)), snapshot).others
            ids = snapshot.ids.column.take_array(rows).to_pylist()
        given, count = ids, len(set(ids))
        return self._once(request, lambda: {"deleted": count}, lambda note: self.index.delete(given, note=note))

    def _once(
        self, request: Request, planned: Callable[[], dict[str, Any]], apply: Callable[[str | None], Any]
    ) -> dict[str, Any]:
        """Apply a change whose request is new, and tell again what an old one did.

        What it does is known before, and goes to disk with it, in the index's note: a request that comes again after a crash
        finds it there, or finds that nothing was done.
        """
        if self.read_only:
            raise PermissionError(f"index {self.name!r} is served read-only")
        known = None if request.key is None else self._requests.get(request.key)
        if known is not None:
            digest, result = known
            if digest != request.digest:
                raise OtherRequest(f"Idempotency-Key {request.key!r} came with another request before: each change has its own")
            return {**result, "repeated": True, **self._state()}
        result = planned()
        if request.key is None:
            apply(None)
        else:
            requests = {**self._requests, request.key: (request.digest, result)}
            requests = dict(list(requests.items())[-MAX_REQUESTS:])
            try:
                apply(json.dumps({"requests": requests}, separators=(",", ":"), ensure_ascii=False))
            finally:  # an error may have come after the fact
                self._requests = _known_requests(self.index.note)
        return {**result, **self._state()}

    def _state(self) -> dict[str, Any]:
        snapshot = self.index.snapshot
        return {"num_documents": snapshot.num_documents, "version": snapshot.number}

    # Following another process

    def refresh(self) -> None:
        """Read the version that is on disk now; of an index that is open to write it is there already."""
        if self.read_only:
            self.index.refresh()

    def _follow(self) -> None:
        manifest = self.path / MANIFEST
        seen: Any = None
        while not self._closing.wait(FOLLOW_S):
            seen = self._refreshed(manifest, seen)

    def _refreshed(self, manifest: Path, seen: Any) -> Any:
        try:
            status = os.stat(manifest)
            now = (status.st_ino, status.st_mtime_ns, status.st_size)
            if now != seen:
                self.index.refresh()
        except Exception as error:  # the next look tries again
            log.warning("index %r cannot be refreshed: %s", self.name, error)
            return seen
        return now


def schema_of(snapshot: Snapshot) -> pa.Schema:
    """The columns that a filter may name."""
    fields = [pa.field("id", snapshot.ids.column.type)]
    return pa.schema(fields if snapshot.metadata is None else [*fields, *snapshot.metadata.schema])


def _tables(snapshot: Snapshot, hits: list[Hits], columns: tuple[str, ...] | None) -> list[pa.Table] | None:
    if not columns:
        return None
    named = None if columns == ("*",) else columns
    return [hits_table(snapshot, one, named) for one in hits]


def _known_requests(note: str | None) -> dict[str, tuple[str, dict[str, Any]]]:
    """The requests that an index's note knows; none where it is a note of something else."""
    try:
        known = json.loads(note or "{}")["requests"]
        return {str(key): (str(digest), dict(result)) for key, (digest, result) in known.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}
