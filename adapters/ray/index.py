"""ShardedLemurIndex: the interface of LemurIndex over shards, each an actor of Ray."""

from __future__ import annotations

import json
import os
import threading
import uuid
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.exceptions import RayTaskError

from lemur_ann import CorruptIndex, LemurEncoder, LemurIndex, NotFitted
from lemur_ann import _validate as validate
from lemur_ann.documents.inputs import QueryBatch, ids_of, is_single_query, iterate_documents, read_documents, read_queries
from lemur_ann.documents.sources import is_stream, opened
from lemur_ann.insight.stats import Part, Stats
from lemur_ann.options import Options
from lemur_ann.progress import Progress, Show
from lemur_ann.progress import progress as progress_lines
from lemur_ann.searching import Tuned
from lemur_ann.searching.filters import booleans

from .building import Build, Marks, default_tasks, partitions_of
from .calls import WRITER, Actors, Calls, Target, agathered, gathered
from .documents import Columns, Sender, Staged, shard_of, shards_of
from .errors import PartsLost, ShardUnavailable
from .hits import merged
from .learning import Sample, learn
from .shard import from_bytes, start, to_bytes
from .storage import Place

SHARDS, FORMAT = "shards.json", "lemur_ann shards 1"
TRIES = 3  # to send documents to a shard that loses its disk meanwhile
BYTES_TO_SHARE = 2**16  # of queries, which all shards then read from Ray's object store
CLOSE_S = 10.0  # for actors to let go of their directories

# what a map is learned with; other options are of the index that uses it
LEARNING = {
    *("num_features", "epochs", "num_training_tokens", "num_training_documents", "num_sample_tokens", "target_precision"),
    *("ridge", "rank", "distillation_steps", "device", "seed"),
}

Arguments = dict[Target, tuple[Any, ...]]
Steps = Generator[Calls, dict[Target, Any], Any]


class ShardedLemurIndex:
    """A multi-vector index in shards, each an actor of Ray over a LemurIndex on a directory of its own.

    Documents belong to the shard that a hash of their id names. Arguments, hits and errors are those of
    :class:`lemur_ann.LemurIndex`, and as with its ``open`` every change is on disk when the call that made it returns. Any
    number of threads may search and change it. Pickled, it travels to tasks, actors and Serve deployments, which may search it.

    Args:
        directory: a path that all nodes have, or a URL for fsspec, such as ``s3://bucket/folder``. What is there is opened;
            where there is nothing an index is made.
        num_shards: of a new index; None means 2.
        replicas: actors for each shard: one that writes, and others that only search.
        num_threads: of each call within a shard, unless it says otherwise; None means all cores.
        num_searches: searches that a replica works on at a time.
        max_pending: searches that may wait for a replica, those it works on included, before more raise ``Overloaded``.
        timeout: seconds to wait for a shard that is away.
        hedge_after: seconds after which a search that a replica has not answered is asked of another too, and the first answer
            counts: against late answers, at the price of some more work. A little above the time of most searches is good;
            None never asks twice.
        num_cpus: that Ray reserves for each replica. Ray's tasks wait for ever where replicas have reserved all.
        actor_options: of Ray for all replicas, such as resources and scheduling_strategy.
        task_options: of Ray for tasks that read partitions and learn, such as num_cpus, num_gpus and memory.
        storage_options: of fsspec's file system.
        cache: the folder, on each node, for what is under a URL; None means one in Python's ``tempfile.gettempdir()``.
        **options: of a new index, as :class:`lemur_ann.LemurIndex` takes them.

    Raises:
        IndexLocked: it is open already.
        FileExistsError: something else is there.
        TypeError, ValueError: options or num_shards for an index that is there, or bad ones.
        ShardUnavailable: an actor does not start.
    """

    def __init__(
        self,
        directory: str | PathLike[str],
        *,
        num_shards: int | None = None,
        replicas: int = 1,
        num_threads: int | None = 1,
        num_searches: int = 4,
        max_pending: int = 64,
        timeout: float = 60.0,
        hedge_after: float | None = None,
        num_cpus: float = 0,
        actor_options: dict[str, Any] | None = None,
        task_options: dict[str, Any] | None = None,
        storage_options: dict[str, Any] | None = None,
        cache: str | PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        replicas = validate.positive_int(replicas, "replicas")
        max_pending = validate.positive_int(max_pending, "max_pending")
        num_searches = validate.positive_int(num_searches, "num_searches")
        self._num_threads = None if num_threads is None else validate.num_threads(num_threads)
        self._timeout = _seconds(timeout)
        self._hedge_after = None if hedge_after is None else _seconds(hedge_after, "hedge_after")
        self._place: Place | None = Place(directory, storage_options)
        self._task_options = dict(task_options or {})
        self._changing = threading.RLock()  # held by one change at a time
        self._rebuilding = threading.Lock()  # and by what takes long: fit, refit, compact
        described = _described(self._place, num_shards, options)
        self._names: list[str] = described["shards"]
        self._options: dict[str, Any] = described["options"]
        settings: dict[str, Any] = {
            "options": self._options,
            "cache": None if cache is None else os.fspath(cache),
            "num_threads": self._num_threads,
            "timeout": self._timeout,
            "num_searches": num_searches,
            "actor_options": {"num_cpus": num_cpus, **(actor_options or {})},
        }
        self._actors: Actors | None = Actors(
            [[start(self._place, name, WRITER, **settings)] for name in self._names], max_pending
        )
        try:
            self._look()
            self._call("discard", dict.fromkeys(self._actors.writers(), (None,)))
            if replicas > 1:
                shards = [
                    [*own, *(start(self._place, name, replica, **settings) for replica in range(1, replicas))]
                    for name, own in zip(self._names, self._actors.shards, strict=True)
                ]
                self._actors = Actors(shards, max_pending)
                self._call("ping", dict.fromkeys(self._readers(), ()), patient=True)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, directory: str | PathLike[str], **settings: Any) -> ShardedLemurIndex:
        """The same as the constructor, under the name it has in LemurIndex."""
        return cls(directory, **settings)

    @classmethod
    def load(
        cls, directory: str | PathLike[str], *, storage_options: dict[str, Any] | None = None, **settings: Any
    ) -> ShardedLemurIndex:
        """Open an index that is there; changes are made there, too.

        Raises:
            FileNotFoundError: there is none.
        """
        place = Place(directory, storage_options)
        if place.read(SHARDS) is None:
            raise FileNotFoundError(f"no index in shards at {place.url}: it has no {SHARDS}")
        return cls(directory, storage_options=storage_options, **settings)

    def __reduce__(self) -> Any:
        """Elsewhere it searches the same shards, and changes nothing."""
        settings = self._timeout, self._hedge_after, self._num_threads
        return _attached, (self._open_actors(), self._names, self._options, *settings)

    # Calls

    def _open_actors(self) -> Actors:
        if self._actors is None:
            raise RuntimeError("the index is closed")
        return self._actors

    def _call(
        self, method: str, arguments: Arguments, *, patient: bool = False, timeout: float | None = None
    ) -> dict[Target, Any]:
        """Answers of some actors, in the order of the targets."""
        timeout = self._timeout if timeout is None else timeout
        answers = gathered(Calls(self._open_actors(), method, arguments, timeout=timeout, patient=patient)).result()
        return {target: answers[target] for target in arguments}

    def _each(self, method: str, *arguments: Any) -> list[Any]:
        """The answer of one replica of each shard."""
        return list(self._call(method, {(shard, None): arguments for shard in range(len(self._names))}).values())

    def _readers(self, shards: Sequence[int] | None = None) -> list[Target]:
        actors = self._open_actors()
        return [target for shard in (range(len(actors)) if shards is None else shards) for target in actors.readers(shard)]

    def _refresh(self, shards: Sequence[int]) -> None:
        """Readers show what was changed before the change returns; those that are gone for good show nothing."""
        actors = self._open_actors()
        calls = gathered(Calls(actors, "refresh", dict.fromkeys(self._readers(shards), ()), timeout=self._timeout))
        calls.missing = [target for target in calls.missing if not actors.are_gone(target)]
        calls.result()

    def _look(self) -> None:
        """What the documents that are there have in common."""
        described = self._call("describe", dict.fromkeys(self._open_actors().writers(), ()), patient=True)
        columns = Columns()
        for own in described.values():
            columns = columns.merged(Columns.of(own["schema"]))
        self._columns = columns
        self._next_id = max(own["largest"] for own in described.values()) + 1

    def _writable(self) -> Place:
        self._open_actors()
        if self._place is None:
            raise PermissionError("this index was pickled, and searches only: the one that opened the directory changes it")
        return self._place

    # What it holds

    def __len__(self) -> int:
        """The number of documents."""
        return int(sum(self._each("size")))

    def __contains__(self, doc_id: object) -> bool:
        if not isinstance(doc_id, (str, int)) or (isinstance(doc_id, int) and not -(2**63) <= doc_id < 2**63):
            return False
        shard = shard_of(doc_id, len(self._names))
        (known,) = self._call("known", {(shard, None): (ids_of([doc_id]),)}).values()
        return bool(known[0])

    def __iter__(self) -> Iterator[Any]:
        """The ids of all documents, in the order of :meth:`ids`."""
        return iter(self.ids().to_pylist())

    def __repr__(self) -> str:
        if self._actors is None:
            return "<ShardedLemurIndex, closed>"
        replicas = len(self._actors.shards[0])
        place = "" if self._place is None else f", open on {self._place.url}"
        return f"<ShardedLemurIndex of {len(self._names)} shards, {replicas} replicas each{place}>"

    @property
    def num_shards(self) -> int:
        """The number of shards, which stays what it was when the index was made."""
        return len(self._names)

    @property
    def options(self) -> Options:
        """What it was made with."""
        return Options(**self._options)

    @property
    def dim(self) -> int | None:
        """Dimension of tokens; None before the first document."""
        if self._place is None:
            self._columns = self._merged_columns(self._each("schema"))
        return self._columns.dim

    @property
    def is_fitted(self) -> bool:
        """Whether all shards have a learned map; those without search exactly."""
        return all(self._each("is_fitted"))

    @property
    def encoder(self) -> LemurEncoder:
        """The learned map, which is the same in all shards.

        Raises:
            NotFitted: before fit.
        """
        (data,) = self._call("encoder", {(0, None): ()}).values()
        return from_bytes(data)

    def ids(self) -> pa.Array:
        """The ids of all documents, int64 or large_string: one shard after the other, oldest first in each."""
        parts = self._each("ids")
        parts = [ids for ids in parts if len(ids)] or parts[:1]
        return pa.concat_arrays(parts)

    def get(self, ids: Any) -> pa.Table:
        """Some documents as they are stored; see :meth:`lemur_ann.LemurIndex.get`.

        Raises:
            KeyError: an id names no document.
        """
        wanted = ids_of(ids)
        by_shard = self._by_shard(wanted)
        self._check_known(wanted, by_shard)
        found = self._call("get", {(shard, None): (wanted.take(pa.array(rows)),) for shard, rows in by_shard.items()})
        if not found:
            return self._each("get", wanted)[0]
        order = np.argsort(np.concatenate([by_shard[shard] for shard, _ in found]), kind="stable")
        return pa.concat_tables(found.values(), promote_options="default").take(pa.array(order))

    def _by_shard(self, ids: pa.Array) -> dict[int, npt.NDArray[np.int64]]:
        """The positions of the ids of each shard that has some."""
        shards = shards_of(ids.to_pylist(), len(self._names))
        return {shard: np.flatnonzero(shards == shard) for shard in np.unique(shards).tolist()}

    def _check_known(self, ids: pa.Array, by_shard: dict[int, npt.NDArray[np.int64]]) -> None:
        """KeyError where an id names no document."""
        found = self._call("known", {(shard, WRITER): (ids.take(pa.array(rows)),) for shard, rows in by_shard.items()})
        known = np.ones(len(ids), np.bool_)
        for (shard, _), own in found.items():
            known[by_shard[shard]] = own
        missing = ids.filter(pa.array(~known)).unique().to_pylist()
        if missing:
            raise KeyError(f"no document has the id {missing[0]!r}" + f" ({len(missing)} ids missing)" * (len(missing) > 1))

    def stats(self) -> Stats:
        """What the writers of all shards hold, added up; see :meth:`lemur_ann.LemurIndex.stats`."""
        every = list(self._call("stats", dict.fromkeys(self._open_actors().writers(), ())).values())
        names = dict.fromkeys(name for own in every for name in own.parts)
        parts = {name: _added([own.parts[name] for own in every if name in own.parts]) for name in names}
        return Stats(
            sum(own.num_documents for own in every),
            sum(own.num_deleted for own in every),
            sum(own.num_tokens for own in every),
            parts,
        )

    # Changing it

    def add(
        self,
        documents: Any,
        *,
        ids: Any = None,
        offsets: Any = None,
        num_threads: int | None = None,
        resume: bool = False,
        max_tasks: int | None = None,
        progress: Show = None,
    ) -> ShardedLemurIndex:
        """Add documents, with the arguments of :meth:`fit`; the learned map stays as it is.

        All are checked before any shard takes its own, and each shard takes all of its own or none. Of partitions (see
        :meth:`fit`) that holds for each, one after the other.

        Returns:
            the index itself.

        Raises:
            ValueError, TypeError: bad documents, or an id that names a document already; nothing has changed, and of partitions
                those before are there.
            ShardUnavailable: a shard is away. What the others have taken is there, and ``upsert``, or ``resume=True`` with
                partitions, brings the rest.
        """
        return self._add(documents, ids, offsets, num_threads, resume, max_tasks, progress, replaces=False)

    def upsert(
        self,
        documents: Any,
        *,
        ids: Any = None,
        offsets: Any = None,
        num_threads: int | None = None,
        resume: bool = False,
        max_tasks: int | None = None,
        progress: Show = None,
    ) -> ShardedLemurIndex:
        """Add documents in the place of those that had their ids before; otherwise as :meth:`add`.

        Raises:
            ValueError, TypeError: bad documents, an id twice among them, or documents without ids; nothing has changed.
            ShardUnavailable: as for :meth:`add`.
        """
        return self._add(documents, ids, offsets, num_threads, resume, max_tasks, progress, replaces=True)

    def _add(
        self,
        documents: Any,
        ids: Any,
        offsets: Any,
        num_threads: int | None,
        resume: bool,
        max_tasks: int | None,
        progress: Show,
        *,
        replaces: bool,
        query_dim: int | None = None,
    ) -> ShardedLemurIndex:
        place = self._writable()
        if num_threads is not None:
            validate.num_threads(num_threads)

        def check(staged: Staged, replaces: bool) -> None:
            if query_dim is not None and staged.columns.dim not in (None, query_dim):
                raise ValueError(f"queries have dim {query_dim}, documents have dim {staged.columns.dim}")
            self._check(staged, replaces)

        def commit(staged: Staged, replaces: bool) -> None:
            self._commit(staged, replaces, num_threads)

        with progress_lines(progress) as lines, self._changing:
            partitions = partitions_of(documents) if ids is None and offsets is None else None
            if partitions is not None:
                build = Build(
                    self._open_actors(),
                    Marks(place, resume=resume),
                    check=check,
                    commit=commit,
                    discard=self._discard,
                    columns=lambda: self._columns,
                    replaces=replaces,
                    max_tasks=default_tasks() if max_tasks is None else validate.positive_int(max_tasks, "max_tasks"),
                    timeout=self._timeout,
                    task_options=self._task_options,
                )
                build.run(partitions, self._next_id, lines.task("partitions", None))
            elif resume:
                raise TypeError(
                    "resume=True goes with partitions: a folder of files, a list of paths, a dataset of Lance or Ray"
                )
            else:
                self._take(opened(documents), ids, offsets, replaces, check, commit, lines)
        return self

    def _take(
        self,
        documents: Any,
        ids: Any,
        offsets: Any,
        replaces: bool,
        check: Callable[[Staged, bool], None],
        commit: Callable[[Staged, bool], None],
        lines: Progress,
    ) -> None:
        """Send documents to the shards, check them there, and commit them."""
        change = uuid.uuid4().hex
        columns, is_checked, once = self._columns, False, is_stream(documents)
        if not once:
            documents = read_documents(documents, ids=ids, offsets=offsets, dim=columns.dim)
            if columns.dtype is None and documents:
                columns = replace(columns, dtype=np.result_type(*(batch.tokens.dtype for batch in documents)))
        try:
            for attempt in range(TRIES):
                sender = Sender(
                    self._open_actors(), change, columns, next_id=self._next_id, replaces=replaces, timeout=self._timeout
                )
                task = lines.task("documents", None if once else sum(map(len, documents)))
                for batch in iterate_documents(documents, ids=ids, offsets=offsets, dim=columns.dim) if once else documents:
                    sender.send(batch)
                    task.advance(len(batch))
                staged = sender.finish()
                try:
                    if not is_checked:
                        check(staged, replaces)
                        is_checked = True  # from here on some may be there
                    commit(staged, replaces)
                    return
                except PartsLost as error:
                    if once or attempt == TRIES - 1:
                        raise ShardUnavailable(f"{error}: the actor lost its disk; try again") from error
        finally:
            self._discard(change)

    def _check(self, staged: Staged, replaces: bool) -> None:
        """ValueError or TypeError where documents that wait at the shards may not join."""
        self._columns.merged(staged.columns)
        arguments: Arguments = {(shard, WRITER): (staged.change, staged.num_parts[shard]) for shard in staged.shards}
        known = [] if replaces else [found for found in self._call("check", arguments, patient=True).values() if found]
        if known:
            row, doc_id = min(known)
            raise ValueError(f"id {doc_id!r} in row {row} names a document of the index already; delete it first, or upsert")

    def _commit(self, staged: Staged, replaces: bool, num_threads: int | None) -> None:
        """Have each shard take its own."""
        arguments: Arguments = {
            (shard, WRITER): (staged.change, staged.num_parts[shard], replaces, num_threads) for shard in staged.shards
        }
        before, self._columns = self._columns, self._columns.merged(staged.columns)
        try:
            self._change("commit", arguments)
        except BaseException:
            if before.dim is None:
                with suppress(Exception):
                    self._look()  # perhaps there are no documents after all
            raise
        self._next_id = max(self._next_id, staged.largest + 1)

    def _change(self, method: str, arguments: Arguments) -> None:
        """Change shards, and have their readers show it."""
        try:
            self._call(method, arguments, patient=True)
            self._refresh([shard for shard, _ in arguments])
        except ShardUnavailable as error:
            raise ShardUnavailable(
                f"{error}; the change may be there in part, and made again it is whole", error.shards
            ) from None

    def _discard(self, change: str) -> None:
        with suppress(RuntimeError):  # away or closed: the next who opens the index forgets it
            self._call("discard", dict.fromkeys(self._open_actors().writers(), (change,)), timeout=1.0)

    def delete(self, ids: Any = None, *, filter: Any = None) -> int:
        """Delete documents; they never appear again, and their ids are free for new documents.

        Args:
            ids: those of the documents: one, or a sequence.
            filter: instead of ids, as for :meth:`search`.

        Returns:
            how many were deleted.

        Raises:
            KeyError: an id names no document; nothing has changed.
            TypeError, ValueError: neither ids nor filter, both, or a bad filter; nothing has changed.
            ShardUnavailable: a shard is away; what the others have deleted is gone.
        """
        if (ids is None) == (filter is None):
            raise TypeError("delete takes ids or filter=, one of the two")
        self._writable()
        with self._changing:
            if filter is None:
                wanted = ids_of(ids)
                by_shard = self._by_shard(wanted)
                self._check_known(wanted, by_shard)
                gone = {shard: wanted.take(pa.array(rows)).unique() for shard, rows in by_shard.items()}
            else:
                filters = _run(self._filters(filter))
                found = self._call(
                    "matching", {(shard, WRITER): (own, self._columns.schema) for shard, own in filters.items()}, patient=True
                )
                gone = {shard: own for (shard, _), own in found.items() if len(own)}
            self._change("remove", {(shard, WRITER): (own,) for shard, own in gone.items()})
        return sum(map(len, gone.values()))

    def fit(
        self,
        documents: Any = None,
        queries: Any = None,
        *,
        ids: Any = None,
        offsets: Any = None,
        query_offsets: Any = None,
        encode_query: Callable[[list[str]], Any] | None = None,
        text_column: str = "text",
        encoder: LemurEncoder | None = None,
        num_learning_documents: int = 60_000,
        resume: bool = False,
        max_tasks: int | None = None,
        memory_limit: int | str | None = None,
        num_threads: int | None = None,
        progress: Show = None,
    ) -> ShardedLemurIndex:
        """Add documents, learn one map for all shards, and index the documents with it.

        The documents are there, and searched exactly, before learning begins: if that fails, ``fit(queries=...)`` learns from
        them.

        Args:
            documents: as for :meth:`lemur_ann.LemurIndex.fit`. A folder of Parquet files, a list of paths, a dataset of files,
                of Lance or of Ray is taken in partition by partition (a file, a fragment, a block), by tasks of Ray, in bounded
                memory. A dataset of Ray must have a column ``id``.
            queries, ids, offsets, query_offsets, encode_query, text_column, encoder: as for :meth:`lemur_ann.LemurIndex.fit`.
            num_learning_documents: how many to learn from, of all shards together; the others are only encoded.
            resume: go on with partitions that are not marked as done, after a build that broke off; what is there already, in
                whole or in part, is not there twice. Where no build was begun, begin one.
            max_tasks: partitions that are read at a time; None means the processors of the cluster.
            memory_limit, progress: as for :meth:`lemur_ann.LemurIndex.fit`.
            num_threads: of learning, None means all cores of the machine where it happens; and of each shard, None means what
                the index was opened with.

        Returns:
            the index itself.

        Raises:
            ValueError, TypeError, OSError: as :meth:`lemur_ann.LemurIndex.fit`; nothing has changed, and of partitions those
                before are there.
            ShardUnavailable: a shard is away.
        """
        self._writable()
        if sum(given is not None for given in (queries, encode_query, encoder)) > 1:
            raise TypeError("encode_query= and encoder= take the place of queries; pass one of them")
        if documents is None and (ids is not None or offsets is not None):
            raise TypeError("ids= and offsets= go with documents, and documents is None")
        validate.positive_int(num_learning_documents, "num_learning_documents")
        training = None if queries is None else read_queries(opened(queries), offsets=query_offsets)
        dim = None if encoder is None else _map_dim(encoder)
        if training is not None and len(training):
            dim = training.tokens.shape[1]
        with self._rebuilding, progress_lines(progress) as lines:
            if documents is not None:
                with self._changing:
                    count = len(self)
                    if count and not resume:
                        raise ValueError(
                            f"the index holds {count} documents already; add(documents) brings more, and "
                            "fit(queries=...) without documents learns anew from those it holds"
                        )
                    self._add(
                        documents,
                        ids,
                        offsets,
                        num_threads,
                        resume,
                        max_tasks,
                        lines,
                        replaces=False,
                        query_dim=dim,
                    )
            elif dim is not None and self._columns.dim not in (None, dim):
                raise ValueError(f"queries have dim {dim}, documents have dim {self._columns.dim}")
            if encoder is None:
                how = {"encode_query": encode_query, "text_column": text_column, "memory_limit": memory_limit}
                options = {name: value for name, value in self._options.items() if name in LEARNING}
                data = self._learned(training, num_learning_documents, num_threads, {**how, **options}, lines)
            else:
                data = ray.put(to_bytes(encoder))
            every = self._open_actors().writers()
            task = lines.task("shards", len(every))
            self._change("learn", dict.fromkeys(every, (data, num_threads)))
            task.advance(len(every))
        return self

    def _learned(
        self,
        training: QueryBatch | None,
        num_documents: int,
        num_threads: int | None,
        how: dict[str, Any],
        lines: Progress,
    ) -> Any:
        """A map for the documents there are, as a reference to its bytes."""
        sizes = np.array(self._each("size"))
        if sizes.sum() == 0:
            raise ValueError("fit needs at least one document, got none")
        counts = np.ceil(sizes * min(1.0, num_documents / sizes.sum())).astype(int).tolist()
        seed = how.get("seed", Options.seed)
        drawn = self._call("draw", {(shard, None): (count, seed + shard) for shard, count in enumerate(counts)})
        sample = Sample(self._open_actors(), list(drawn.values()), self._timeout)
        queries = (None, None) if training is None else (training.tokens, training.offsets)
        task: Any = ray.remote(**{**self._task_options, "num_returns": 2})(learn)
        line = lines.task("learning", 1)
        data, warned = task.remote(sample, *queries, num_threads, how)
        try:
            found = ray.get(warned)
        except RayTaskError as error:
            raise error.cause from None
        line.advance()
        for message, category in found:
            warnings.warn(message, category, stacklevel=3)
        return data

    def refit(
        self,
        queries: Any = None,
        *,
        query_offsets: Any = None,
        encoder: LemurEncoder | None = None,
        num_learning_documents: int = 60_000,
        memory_limit: int | str | None = None,
        num_threads: int | None = None,
        progress: Show = None,
        **options: Any,
    ) -> ShardedLemurIndex:
        """Learn anew from the stored documents, and index these one shard after the other.

        Searches and changes go on meanwhile. Scores are exact MaxSim whichever map a shard has.

        Args:
            queries: as for :meth:`lemur_ann.LemurIndex.refit`; None learns from the query tokens that the old map kept.
            query_offsets: int (num_queries + 1,), with a flat matrix only.
            encoder: a map learned elsewhere; nothing is learned.
            num_learning_documents, memory_limit, num_threads, progress: as for :meth:`fit`.
            **options: of learning, such as num_features, epochs or rank.

        Raises:
            NotFitted: before fit.
            TypeError: an option that there is not.
            ValueError: bad queries or values of options, or no documents.
            ShardUnavailable: a shard is away; those before it have the new map.
        """
        self._writable()
        unknown = [name for name in options if name not in LEARNING]
        if unknown:
            raise TypeError(f"refit got unknown options {', '.join(unknown)}; expected any of {', '.join(sorted(LEARNING))}")
        if encoder is not None and (queries is not None or options):
            raise TypeError("encoder= takes the place of learning: no queries or options beside it")
        with self._rebuilding, progress_lines(progress) as lines:
            if not self.is_fitted:
                raise NotFitted("the index has no learned map yet: call fit(documents, queries=...) first")
            changed = {**{name: value for name, value in self._options.items() if name in LEARNING}, **options}
            Options(**changed)
            if encoder is not None:
                if _map_dim(encoder) != self._columns.dim:
                    raise ValueError(f"encoder takes tokens of dim {encoder.token_dim}, documents have dim {self._columns.dim}")
                data = ray.put(to_bytes(encoder))
            else:
                if queries is None:
                    if query_offsets is not None:
                        raise TypeError("query_offsets= goes with queries, and queries is None")
                    sample = np.array(self.encoder.targets.sample_tokens)
                    training = QueryBatch(sample, np.arange(len(sample) + 1, dtype=np.int64))
                else:
                    training = read_queries(opened(queries), offsets=query_offsets, dim=self._columns.dim)
                    if len(training) == 0:
                        raise ValueError(
                            "refit needs at least one query, got none; queries=None learns from the old map's sample"
                        )
                how = {**changed, "memory_limit": memory_limit}
                data = self._learned(training, num_learning_documents, num_threads, how, lines)
            self._one_by_one("learn", (data, num_threads), lines)
        return self

    def _one_by_one(self, method: str, arguments: tuple[Any, ...], lines: Progress) -> None:
        """Change one shard after the other."""
        writers = self._open_actors().writers()
        task = lines.task("shards", len(writers))
        for writer in writers:
            self._change(method, {writer: arguments})
            task.advance()

    def compact(self, *, num_threads: int | None = None, progress: Show = None) -> ShardedLemurIndex:
        """Take back the space of deleted documents, one shard after the other; searches and changes go on meanwhile.

        Raises:
            OSError: no room; the shard is as it was.
            ShardUnavailable: a shard is away.
        """
        self._writable()
        with self._rebuilding, progress_lines(progress) as lines:
            self._one_by_one("compact", (num_threads,), lines)
        return self

    def tune(
        self,
        queries: Any,
        target_recall: float = 0.95,
        k: int = 10,
        *,
        seed: int = 0,
        num_threads: int | None = None,
        progress: Show = None,
    ) -> list[Tuned]:
        """Have each shard find the quickest search of a wanted recall of its own best k, for ``search(target_recall=...)``.

        The best k of all shards are among these, and found as often or more often.

        Returns:
            what each shard has chosen; see :meth:`lemur_ann.LemurIndex.tune`.
        """
        self._writable()
        batch = read_queries([queries] if is_single_query(queries) else opened(queries), dim=self._columns.dim)
        how = {"target_recall": target_recall, "k": k, "seed": seed, "num_threads": num_threads}
        writers = self._open_actors().writers()
        with self._rebuilding, progress_lines(progress) as lines:
            task = lines.task("shards", len(writers))
            tuned = self._call("tune", dict.fromkeys(writers, (batch.tokens, batch.offsets, how)), patient=True)
            task.advance(len(writers))
            self._refresh([shard for shard, _ in writers])
        return list(tuned.values())

    # Searching it

    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        num_candidates: int | None = None,
        ef_search: int | None = None,
        target_recall: float | None = None,
        filter: Any = None,
        exact: bool = False,
        num_threads: int | None = None,
        timeout: float | None = None,
        allow_partial: bool = False,
    ) -> Any:
        """The k documents of highest exact MaxSim score among the candidates of all shards.

        Args:
            queries, k, filter, exact: as for :meth:`lemur_ann.LemurIndex.search`.
            num_candidates, ef_search, target_recall: of each shard; None means the index's own.
            num_threads: of each shard; None means what the index was opened with.
            timeout: seconds to wait for all shards, those that are being started again included; None means the index's own.
            allow_partial: answer with what has come by then, and name the shards that are missing.

        Returns:
            :class:`~lemur_ann.adapters.ray.ShardedHits` for one query, a list of them for a batch.

        Raises:
            ValueError, TypeError: as :meth:`lemur_ann.LemurIndex.search`.
            ShardUnavailable: a shard has not answered in time, and not ``allow_partial``.
            Overloaded: ``max_pending`` searches wait for a shard already.
        """
        how = {"num_candidates": num_candidates, "ef_search": ef_search, "target_recall": target_recall}
        how |= {"filter": filter, "exact": exact, "num_threads": num_threads}
        return _run(self._searching(queries, k, how, timeout, allow_partial))

    async def asearch(
        self,
        queries: Any,
        k: int = 10,
        *,
        num_candidates: int | None = None,
        ef_search: int | None = None,
        target_recall: float | None = None,
        filter: Any = None,
        exact: bool = False,
        num_threads: int | None = None,
        timeout: float | None = None,
        allow_partial: bool = False,
    ) -> Any:
        """:meth:`search` for an event loop, which does other things while the shards work."""
        how = {"num_candidates": num_candidates, "ef_search": ef_search, "target_recall": target_recall}
        how |= {"filter": filter, "exact": exact, "num_threads": num_threads}
        return await _arun(self._searching(queries, k, how, timeout, allow_partial))

    def _searching(self, queries: Any, k: int, how: dict[str, Any], timeout: float | None, allow_partial: bool) -> Steps:
        """The calls of a search, one after the other; each is given back its answers."""
        actors = self._open_actors()
        k = validate.positive_int(k, "k")
        timeout = self._timeout if timeout is None else _seconds(timeout)
        dim = None if self._place is None else self._columns.dim
        single = is_single_query(queries)
        if single:
            matrix = validate.token_matrix(queries, "query", dim=dim)
            row = validate.first_bad_row(matrix)
            if row is not None:
                raise ValueError(f"query has {validate.BAD_VALUE} in token {row}")
            batch = QueryBatch(matrix, np.array([0, len(matrix)], dtype=np.int64))
        else:
            batch = read_queries(queries, dim=dim)
        if len(batch) == 0:
            return []
        filters = yield from self._filters(how.pop("filter"))
        columns = None
        if any(isinstance(filter, pc.Expression) for filter in filters.values()):
            columns = self._columns.schema
            if self._place is None:  # which cannot know what columns have come since it was pickled
                answers = yield Calls(actors, "schema", {(shard, None): () for shard in range(len(actors))}, timeout=timeout)
                columns = self._merged_columns(answers.values()).schema
        tokens = ray.put(batch.tokens) if batch.tokens.nbytes > BYTES_TO_SHARE else batch.tokens
        arguments: Arguments = {
            (shard, None): (tokens, batch.offsets, k, {**how, "filter": filter}, columns) for shard, filter in filters.items()
        }
        calls = Calls(
            actors,
            "search",
            arguments,
            timeout=timeout,
            bounded=True,
            allow_partial=allow_partial,
            hedge_after=self._hedge_after,
        )
        answers = yield calls
        missing = tuple(sorted(shard for shard, _ in calls.missing))
        found = [answers[target] for target in arguments if target in answers]
        hits = [merged([own[i] for own in found], k, missing) for i in range(len(batch))]
        return hits[0] if single else hits

    @staticmethod
    def _merged_columns(schemas: Any) -> Columns:
        columns = Columns()
        for schema in schemas:
            columns = columns.merged(Columns.of(schema))
        return columns

    def _filters(self, filter: Any) -> Steps:
        """The part of a filter that each shard needs; those for which nothing is left are not asked."""
        every = range(len(self._names))
        if filter is None or isinstance(filter, pc.Expression):
            return dict.fromkeys(every, filter)
        mask = booleans(filter)
        if mask is not None:
            sizes = yield Calls(self._open_actors(), "size", {(shard, None): () for shard in every}, timeout=self._timeout)
            ends = np.cumsum([sizes[shard, None] for shard in every])
            if len(mask) != ends[-1]:
                raise ValueError(
                    f"filter has {len(mask)} booleans, expected one for each of {ends[-1]} documents, in the order of ids()"
                )
            return dict(zip(every, np.split(mask, ends[:-1]), strict=True))
        try:
            count = len(filter)
        except TypeError:
            filter, count = _listed(filter)
        if isinstance(filter, (str, bytes)) or not count:
            return dict.fromkeys(every, filter)
        ids = ids_of(filter)
        if self._place is not None:
            self._columns.check_ids(ids)
        return {shard: ids.take(pa.array(rows)) for shard, rows in self._by_shard(ids).items()}

    # Keeping it

    def save(self, directory: str | PathLike[str], *, storage_options: dict[str, Any] | None = None) -> None:
        """A copy of all shards, as they are at this moment, in a folder or under a URL where nothing is yet.

        Raises:
            FileExistsError: something is there.
        """
        own = self._writable()
        place = Place(directory, storage_options)
        if place.url == own.url:
            return
        if place.names():
            raise FileExistsError(f"{place.url} is not empty; choose another path or remove it")
        with self._changing:
            self._call("save", {(shard, WRITER): (place / name,) for shard, name in enumerate(self._names)}, patient=True)
            _describe(place, self._names, self._options)

    def close(self) -> None:
        """Stop the actors; whoever opens the directory next may change it. Pickled copies can search no longer."""
        actors, self._actors = self._actors, None
        if actors is None or self._place is None:
            return
        every: Arguments = {(s, r): () for s, own in enumerate(actors.shards) for r in range(len(own))}
        with suppress(Exception):
            gathered(Calls(actors, "close", every, timeout=CLOSE_S))
        for shard, replica in every:
            assert replica is not None
            ray.kill(actors.shards[shard][replica])

    def __enter__(self) -> ShardedLemurIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _run(steps: Steps) -> Any:
    """Make the calls that a method asks for, and give what it returns."""
    try:
        calls = next(steps)
        while True:
            calls = steps.send(gathered(calls).result())
    except StopIteration as stop:
        return stop.value


async def _arun(steps: Steps) -> Any:
    """The same, in an event loop."""
    try:
        calls = next(steps)
        while True:
            calls = steps.send((await agathered(calls)).result())
    except StopIteration as stop:
        return stop.value


def _attached(
    actors: Actors,
    names: list[str],
    options: dict[str, Any],
    timeout: float,
    hedge_after: float | None,
    num_threads: int | None,
) -> ShardedLemurIndex:
    """An index over actors that another process has started."""
    index = ShardedLemurIndex.__new__(ShardedLemurIndex)
    index._actors, index._names, index._options, index._timeout = actors, names, options, timeout
    index._hedge_after, index._num_threads, index._place, index._columns = hedge_after, num_threads, None, Columns()
    return index


def _described(place: Place, num_shards: int | None, options: dict[str, Any]) -> dict[str, Any]:
    """What is to be known of an index before its shards are opened; of a new one it is written."""
    data = place.read(SHARDS)
    if data is None:
        foreign = [name for name in place.names() if name != "shard-000" and not name.startswith(".")]
        if foreign:
            raise FileExistsError(f"{place.url} holds {foreign[0]!r} and no {SHARDS}; choose another path or move that away")
        chosen = LemurIndex(**options).options
        options = {name: getattr(chosen, name) for name in options}  # checked, and plain values
        count = 2 if num_shards is None else validate.positive_int(num_shards, "num_shards")
        return _describe(place, [f"shard-{shard:03}" for shard in range(count)], options)
    try:
        described: dict[str, Any] = json.loads(data)
        if described["format"] != FORMAT or not described["shards"] or not isinstance(described["options"], dict):
            raise ValueError(f"expected {FORMAT!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptIndex(f"{place.url}/{SHARDS} cannot be read: {error!r}") from error
    if options:
        raise TypeError(f"options ({', '.join(sorted(options))}) are for a new index, and this opens the one in {place.url}")
    if num_shards not in (None, len(described["shards"])):
        raise ValueError(f"num_shards is {num_shards}, and the index in {place.url} has {len(described['shards'])} shards")
    return described


def _describe(place: Place, names: list[str], options: dict[str, Any]) -> dict[str, Any]:
    described = {"format": FORMAT, "shards": names, "options": options}
    place.write(SHARDS, json.dumps(described, indent=2).encode())
    return described


def _seconds(value: Any, name: str = "timeout") -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"{name} must be a number of seconds above 0, got {value!r}")
    return float(value)


def _map_dim(encoder: Any) -> int:
    if not isinstance(encoder, LemurEncoder):
        raise TypeError(f"encoder must be a LemurEncoder, got {type(encoder).__name__}")
    return encoder.token_dim


def _listed(filter: Any) -> tuple[Any, int]:
    """An iterator of ids as a list; what is none goes to the shards as it is, which refuse it."""
    if isinstance(filter, Iterator):
        ids = list(filter)
        return ids, len(ids)
    return filter, 0


def _added(parts: Sequence[Part]) -> Part:
    def total(values: list[int | None]) -> int | None:
        return None if None in values else sum(value or 0 for value in values)

    return Part(sum(p.size for p in parts), total([p.mapped for p in parts]), total([p.resident for p in parts]))
