"""One replica of one shard: an actor over a LemurIndex on a directory of its own."""

from __future__ import annotations

import re
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray

from lemur_ann import Hits, IndexLocked, LemurEncoder, LemurIndex
from lemur_ann.insight import Stats
from lemur_ann.saved import MANIFEST
from lemur_ann.searching import Tuned

from .calls import WRITER
from .documents import ROW, matching_ids
from .errors import PartsLost
from .storage import Place, Published

CHANGE, PART = re.compile(r"[0-9a-f]{32}"), re.compile(r"\d+\.(arrow|new)")  # what is staged: folders, and files in them
LOCK_S = 10.0  # to wait, at most, for the process that had the shard before to be gone

Found = tuple[npt.NDArray[Any], npt.NDArray[np.float32]]  # ids and scores of a query


class Shard:
    """Documents of one shard: the writer, of which there is one, or a reader.

    Each method may be called again after the actor died in the middle of it: what has happened does not happen twice.

    Args:
        place: of the whole index.
        name: of the shard there.
        replica: its number, which says whether it is the writer.
        options: of a new index.
        cache: the folder for what is under a URL.
        num_threads: of each call that does not say; None means all cores.
        timeout: seconds to wait for another process to let go of the shard, if that is less than LOCK_S.
        trusted: read the graphs of other libraries as they are; None means where the shard is in object storage.
    """

    def __init__(
        self,
        place: Place,
        name: str,
        replica: int,
        options: dict[str, Any],
        cache: str | None,
        num_threads: int | None,
        timeout: float,
        trusted: bool | None = None,
    ) -> None:
        self._writes, self._options, self._num_threads = replica == WRITER, options, num_threads
        self._lock_s = min(timeout, LOCK_S)
        self._place, self._is_trusted = place, trusted
        if place.is_url:
            whole = blake2b(place.url.encode(), digest_size=8).hexdigest()
            base = Path(cache or Path(tempfile.gettempdir(), "lemur_ann"), whole)
            self._folder = base / (name if self._writes else f"{name}.replica-{replica}")
            self._published: Published | None = Published(place / name, self._folder)
        else:
            self._folder = Path(place.path, name)
            self._published = None
        self._staging = self._folder.with_name(f"{name}.staging")
        self._index: LemurIndex | None = None
        self._is_behind = False  # a change is in the folder and could not be published
        self._opening = threading.Lock()
        self._cache_lock: Any = None

    # Opening

    @property
    def index(self) -> LemurIndex:
        """What is in the folder, opened when it is first asked for: so an actor can tell what is wrong with it."""
        with self._opening:
            if self._index is None:
                self._index = self._opened()
            return self._index

    @property
    def _trusted(self) -> bool:
        # Where this account alone writes, the graph that the writer made on its machine is not made anew on every other.
        return self._published is not None and not self._place.is_local if self._is_trusted is None else self._is_trusted

    def _opened(self) -> LemurIndex:
        if self._published is not None:
            self._lock_cache()
            if self._writes:
                self._published.claim()
            else:
                self._published.fetch()
        if not self._writes:
            return LemurIndex.open(self._folder, read_only=True, trusted=self._trusted)
        options = {} if (self._folder / MANIFEST).exists() else self._options
        until = time.monotonic() + self._lock_s
        while True:
            try:
                index = LemurIndex.open(self._folder, trusted=self._trusted, **options)
                break
            except IndexLocked:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
        if self._published is not None:
            self._published.publish()
        return index

    def _lock_cache(self) -> None:
        """One process alone uses a cache: two would each take away the other's files."""
        if self._cache_lock is None:
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(f"{self._folder}.lock", timeout=self._lock_s, thread_local=False)
            try:
                lock.acquire()
            except filelock.Timeout:
                raise IndexLocked(f"{self._folder} is the cache of another process") from None
            self._cache_lock = lock

    def _changeable(self) -> LemurIndex:
        """The index, without a change that could not be published."""
        if self._is_behind:
            with self._opening:
                if self._index is not None:
                    self._index.close()
                    self._index = None
                self._is_behind = False
        return self.index

    def _publish(self) -> None:
        if self._published is not None:
            try:
                self._published.publish()
            except BaseException:
                self._is_behind = True
                raise

    def ping(self) -> None:
        """Whether it is there, and can open its shard."""
        _ = self.index

    def close(self) -> None:
        """Let go of the directory."""
        with self._opening:
            if self._index is not None:
                self._index.close()

    def refresh(self) -> None:
        """A reader's: read the version that is there now."""
        index = self.index
        if not self._writes:
            if self._published is not None:
                self._published.fetch()
            index.refresh()

    # Changing

    def stage(self, change: str, number: int, part: pa.Table) -> None:
        """Keep documents of a change beside the index, where :meth:`commit` finds them."""
        folder = self._staging / change
        folder.mkdir(parents=True, exist_ok=True)
        new = folder / f".{number}.{uuid.uuid4().hex[:12]}"  # of this call, which may be one of two: calls are tried again
        with pa.OSFile(str(new), "wb") as sink, pa.ipc.new_file(sink, part.schema) as writer:
            writer.write_table(part)
        new.replace(folder / f"{number}.arrow")

    def _staged(self, change: str, count: int) -> list[pa.Table]:
        """Mapped, in their order."""
        paths = [self._staging / change / f"{number}.arrow" for number in range(count)]
        missing = [path for path in paths if not path.exists()]
        if missing:
            raise PartsLost(f"{len(missing)} of {count} parts of a change are gone, such as {missing[0]}")
        return [pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in paths]

    def check(self, change: str, count: int) -> tuple[int, Any] | None:
        """The row and the id of the first document of a change that is there already."""
        index = self._changeable()
        for part in self._staged(change, count):
            for row, doc_id in zip(part.column(ROW).to_pylist(), part.column("id").to_pylist(), strict=True):
                if doc_id in index:
                    return row, doc_id
        return None

    def commit(self, change: str, count: int, replaces: bool, num_threads: int | None) -> None:
        """Add the documents of a change, for good."""
        index = self._changeable()
        parts = self._staged(change, count)
        # all of them are there or none, if this is asked for again
        if replaces or parts[0].column("id")[0].as_py() not in index:
            add = index.upsert if replaces else index.add
            add(_Stream(part.drop_columns(ROW) for part in parts), num_threads=self._threads(num_threads))
        self._publish()

    def discard(self, change: str | None) -> None:
        """Forget what was staged for a change; None: for all. What has another name than :meth:`stage` gives stays."""
        if change is None and self._staging.is_dir():
            folders = list(self._staging.iterdir())
        else:
            folders = [] if change is None else [self._staging / change]
        for folder in folders:
            if CHANGE.fullmatch(folder.name) and not folder.is_symlink():
                with suppress(OSError):
                    for file in folder.iterdir():
                        if PART.fullmatch(file.name):
                            file.unlink()
                    folder.rmdir()
        with suppress(OSError):  # it is not empty, or not there
            self._staging.rmdir()

    def remove(self, ids: pa.Array) -> None:
        """Delete those of the documents that are there."""
        index = self._changeable()
        there = [doc_id for doc_id in ids.to_pylist() if doc_id in index]
        if there:
            index.delete(there)
        self._publish()

    def learn(self, encoder: bytes, num_threads: int | None) -> None:
        """Index the documents with a map that was learned elsewhere."""
        index = self._changeable()
        learn = index.refit if index.is_fitted else index.fit
        learn(encoder=LemurEncoder.from_bytes(encoder), num_threads=self._threads(num_threads), progress=False)
        self._publish()

    def compact(self, num_threads: int | None) -> None:
        """See :meth:`lemur_ann.LemurIndex.compact`."""
        self._changeable().compact(num_threads=self._threads(num_threads), progress=False)
        self._publish()

    def tune(self, tokens: Any, offsets: Any, how: dict[str, Any]) -> Tuned:
        """See :meth:`lemur_ann.LemurIndex.tune`."""
        how["num_threads"] = self._threads(how["num_threads"])
        tuned = self._changeable().tune(_matrices(tokens, offsets), progress=False, **how)
        self._publish()
        return tuned

    def save(self, place: Place) -> None:
        """A copy elsewhere."""
        if not place.is_url:
            self.index.save(place.path)
            return
        with tempfile.TemporaryDirectory(dir=self._folder.parent) as folder:
            self.index.save(Path(folder, "index"))
            Published(place, Path(folder, "index")).publish()

    # Reading

    def search(self, tokens: Any, offsets: Any, k: int, how: dict[str, Any], columns: pa.Schema | None) -> list[Found]:
        """The best of this shard for each query."""
        index = self.index
        how = {**how, "num_threads": self._threads(how["num_threads"])}
        if columns is not None and isinstance(how["filter"], pc.Expression):
            empty = index.to_arrow(tokens=False, vectors=False)
            if len(index) and not set(columns.names) <= set(empty.schema.names):
                how["filter"] = matching_ids(empty.read_all(), how["filter"], columns)
        hits: list[Hits] = index.search(_matrices(tokens, offsets), k, **how)
        return [(own.ids, own.scores) for own in hits]

    def matching(self, filter: Any, columns: pa.Schema) -> pa.Array:
        """The ids of the documents that a filter lets through."""
        index = self.index
        if isinstance(filter, pc.Expression):
            return matching_ids(index.to_arrow(tokens=False, vectors=False).read_all(), filter, columns)
        ids = index.ids()
        if isinstance(filter, np.ndarray) and filter.dtype == np.bool_:
            return ids.filter(pa.array(filter))
        return pa.array([doc_id for doc_id in filter.to_pylist() if doc_id in index], ids.type)

    def known(self, ids: pa.Array) -> npt.NDArray[np.bool_]:
        """Which ids name a document."""
        index = self.index
        return np.array([doc_id in index for doc_id in ids.to_pylist()], np.bool_)

    def size(self) -> int:
        """The number of documents."""
        return len(self.index)

    def is_fitted(self) -> bool:
        """Whether it has a learned map."""
        return self.index.is_fitted

    def describe(self) -> dict[str, Any]:
        """What the others must know of it."""
        ids = self.index.ids()
        largest = pc.max(ids).as_py() if len(ids) and pa.types.is_integer(ids.type) else -1
        return {"schema": self.schema(), "largest": largest}

    def schema(self) -> pa.Schema | None:
        """Of its documents; None before the first."""
        index = self.index
        return None if index.dim is None else index.to_arrow(vectors=False).schema

    def ids(self) -> pa.Array:
        """Of all documents."""
        return self.index.ids()

    def get(self, ids: pa.Array) -> pa.Table:
        """See :meth:`lemur_ann.LemurIndex.get`."""
        return self.index.get(ids)

    def draw(self, count: int, seed: int) -> pa.Array:
        """The ids of some documents, at random."""
        ids = self.index.ids()
        chosen = np.random.default_rng(seed).choice(len(ids), min(count, len(ids)), replace=False)
        return ids.take(pa.array(np.sort(chosen)))

    def some(self, ids: pa.Array) -> pa.Table | None:
        """Those of the documents that are there still."""
        index = self.index
        while True:
            there = [doc_id for doc_id in ids.to_pylist() if doc_id in index]
            try:
                return index.get(there) if there else None
            except KeyError:  # deleted meanwhile
                continue

    def stats(self) -> Stats:
        """See :meth:`lemur_ann.LemurIndex.stats`."""
        return self.index.stats()

    def encoder(self) -> bytes:
        """The learned map."""
        return self.index.encoder.to_bytes()

    def _threads(self, num_threads: int | None) -> int | None:
        return self._num_threads if num_threads is None else num_threads


class _Stream:
    """Documents as a stream, which is what :class:`lemur_ann.LemurIndex` takes anything to be that has ``to_batches``."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables = tables

    def to_batches(self) -> Iterator[pa.RecordBatch]:
        """One table after the other."""
        for table in self._tables:
            yield from table.to_batches()


def _matrices(tokens: Any, offsets: Any) -> list[Any]:
    return np.split(tokens, offsets[1:-1])


def start(
    place: Place,
    name: str,
    replica: int,
    *,
    options: dict[str, Any],
    cache: str | None,
    num_threads: int | None,
    timeout: float,
    num_searches: int,
    actor_options: dict[str, Any],
    trusted: bool | None = None,
) -> Any:
    """Start an actor, which Ray starts again whenever it dies."""
    groups = {"search": num_searches, "read": 2, "stage": 2, "change": 1, "rebuild": 1}
    settings = {"concurrency_groups": groups, "max_restarts": -1, "max_task_retries": 0, **actor_options}
    return ray.remote(**settings)(Shard).remote(place, name, replica, options, cache, num_threads, timeout, trusted)
