"""ShardedLemurIndex: the interface of LemurIndex over shards, each an actor of Ray."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from lemur_ann import LemurEncoder, NotFitted, validate
from lemur_ann.documents import QueryBatch, ids_of, opened, queries_of, read_queries
from lemur_ann.insight import Part, Stats
from lemur_ann.options import Options
from lemur_ann.progress import Show, progress_lines
from lemur_ann.searching import Tuned

from .asking import arun, run, searching, seconds
from .calls import WRITER
from .changing import Changes, Joining
from .documents import Columns, shard_of
from .learning import LEARNING, learned, of_learning
from .shards import Shards
from .storage import SHARDS, Place, describe, described


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
        trusted: read the graphs of other libraries (see candidates= of LemurIndex) as they are, whichever machine wrote them.
            They cannot be checked; False makes them anew on each other machine, of their vectors. None means True in object
            storage, where your account alone writes, and False for a path and ``file://``.
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
        trusted: bool | None = None,
        **options: Any,
    ) -> None:
        replicas = validate.positive_int(replicas, "replicas")
        max_pending = validate.positive_int(max_pending, "max_pending")
        num_searches = validate.positive_int(num_searches, "num_searches")
        num_threads = None if num_threads is None else validate.num_threads(num_threads)
        timeout = seconds(timeout)
        self._hedge_after = None if hedge_after is None else seconds(hedge_after, "hedge_after")
        self._rebuilding = threading.Lock()  # held by what takes long: fit, refit, compact
        place = Place(directory, storage_options)
        known = described(place, num_shards, options)
        self._options: dict[str, Any] = known["options"]
        self._shards = Shards.started(
            known["shards"],
            place,
            timeout,
            replicas=replicas,
            max_pending=max_pending,
            options=self._options,
            cache=None if cache is None else str(validate.path(cache, "cache").absolute()),  # not that of where an actor runs
            num_threads=num_threads,
            num_searches=num_searches,
            trusted=None if trusted is None else validate.boolean(trusted, "trusted"),
            actor_options={"num_cpus": num_cpus, **(actor_options or {})},
        )
        self._changes = Changes(self._shards, dict(task_options or {}))

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
        return _attached, (self._shards, self._options, self._hedge_after)

    # What it holds

    def __len__(self) -> int:
        """The number of documents."""
        return sum(self._shards.each("size"))

    def __contains__(self, doc_id: object) -> bool:
        if isinstance(doc_id, bool) or not isinstance(doc_id, (str, int, np.integer)):
            return False
        try:
            wanted = ids_of([doc_id])
        except ValueError:  # beyond int64
            return False
        shard = shard_of(wanted[0].as_py(), len(self._shards))
        (known,) = self._shards.call("known", {(shard, None): (wanted,)}).values()
        return bool(known[0])

    def __iter__(self) -> Iterator[Any]:
        """The ids of all documents, in the order of :meth:`ids`."""
        return iter(self.ids().to_pylist())

    def __repr__(self) -> str:
        shards = self._shards
        if shards.is_closed:
            return "<ShardedLemurIndex, closed>"
        place = "" if shards.place is None else f", open on {shards.place.url}"
        return f"<ShardedLemurIndex of {len(shards)} shards, {len(shards.actors.shards[0])} replicas each{place}>"

    @property
    def num_shards(self) -> int:
        """The number of shards, which stays what it was when the index was made."""
        return len(self._shards)

    @property
    def options(self) -> Options:
        """What it was made with."""
        return Options(**self._options)

    @property
    def dim(self) -> int | None:
        """Dimension of tokens; None before the first document."""
        if self._shards.place is None:  # which cannot know what has come since it was pickled
            return Columns.of_all(self._shards.each("schema")).dim
        return self._shards.dim

    @property
    def is_fitted(self) -> bool:
        """Whether all shards have a learned map; those without search exactly."""
        return all(self._shards.each("is_fitted"))

    @property
    def encoder(self) -> LemurEncoder:
        """The learned map, which is the same in all shards.

        Raises:
            NotFitted: before fit.
        """
        (data,) = self._shards.call("encoder", {(0, None): ()}).values()
        return LemurEncoder.from_bytes(data)

    def ids(self) -> pa.Array:
        """The ids of all documents, int64 or large_string: one shard after the other, oldest first in each."""
        parts = self._shards.each("ids")
        parts = [ids for ids in parts if len(ids)] or parts[:1]
        return pa.concat_arrays(parts)

    def get(self, ids: Any) -> pa.Table:
        """Some documents as they are stored; see :meth:`lemur_ann.LemurIndex.get`.

        Raises:
            KeyError: an id names no document.
        """
        shards, wanted = self._shards, ids_of(ids)
        by_shard = shards.by_shard(wanted)
        shards.check_known(wanted, by_shard)
        found = shards.call("get", {(shard, None): (wanted.take(pa.array(rows)),) for shard, rows in by_shard.items()})
        if not found:
            return shards.each("get", wanted)[0]
        order = np.argsort(np.concatenate([by_shard[shard] for shard, _ in found]), kind="stable")
        return pa.concat_tables(found.values(), promote_options="default").take(pa.array(order))

    def stats(self) -> Stats:
        """What the writers of all shards hold, added up; see :meth:`lemur_ann.LemurIndex.stats`."""
        every = list(self._shards.call("stats", dict.fromkeys(self._shards.actors.writers(), ())).values())
        names = dict.fromkeys(name for own in every for name in own.parts)
        parts = {name: _added([own.parts[name] for own in every if name in own.parts]) for name in names}
        return Stats(
            sum(own.num_documents for own in every),
            sum(own.num_deleted for own in every),
            sum(own.num_tokens for own in every),
            parts,
            sum(own.num_recent for own in every),
            sum(own.num_unfamiliar for own in every),
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
        joining = Joining(replaces=False, num_threads=num_threads)
        self._changes.add(documents, joining, ids=ids, offsets=offsets, resume=resume, max_tasks=max_tasks, progress=progress)
        return self

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
        joining = Joining(replaces=True, num_threads=num_threads)
        self._changes.add(documents, joining, ids=ids, offsets=offsets, resume=resume, max_tasks=max_tasks, progress=progress)
        return self

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
        return self._changes.delete(ids, filter)

    def fit(
        self,
        documents: Any = None,
        queries: Any = None,
        *,
        ids: Any = None,
        offsets: Any = None,
        query_offsets: Any = None,
        encode_query: Callable[[list[str]], Any] | None = None,
        text_column: str | None = "text",
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
        validate.boolean(resume, "resume")
        self._shards.writable()
        if sum(given is not None for given in (queries, encode_query, encoder)) > 1:
            raise TypeError("encode_query= and encoder= take the place of queries; pass one of them")
        if documents is None and (ids is not None or offsets is not None):
            raise TypeError("ids= and offsets= go with documents, and documents is None")
        validate.positive_int(num_learning_documents, "num_learning_documents")
        training = None if queries is None else read_queries(opened(queries), offsets=query_offsets)
        dim = None if encoder is None else _map_dim(encoder)
        if training is not None and len(training):
            dim = training.tokens.shape[1]
        shards = self._shards
        with self._rebuilding, progress_lines(progress) as lines:
            if documents is not None:
                with self._changes.lock:
                    count = len(self)
                    if count and not resume:
                        raise ValueError(
                            f"the index holds {count} documents already; add(documents) brings more, and "
                            "fit(queries=...) without documents learns anew from those it holds"
                        )
                    joining = Joining(replaces=False, num_threads=num_threads, query_dim=dim)
                    self._changes.add(
                        documents, joining, ids=ids, offsets=offsets, resume=resume, max_tasks=max_tasks, progress=lines
                    )
            elif dim is not None and shards.dim not in (None, dim):
                raise ValueError(f"queries have dim {dim}, documents have dim {shards.dim}")
            if encoder is None:
                how = {"encode_query": encode_query, "text_column": text_column, "memory_limit": memory_limit}
                how |= of_learning(self._options)
                data = learned(shards, training, num_learning_documents, num_threads, how, self._changes.task_options, lines)
            else:
                data = ray.put(encoder.to_bytes())
            every = shards.actors.writers()
            task = lines.task("shards", len(every))
            self._changes.make("learn", dict.fromkeys(every, (data, num_threads)))
            task.advance(len(every))
        return self

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
        self._shards.writable()
        unknown = [name for name in options if name not in LEARNING]
        if unknown:
            raise TypeError(f"refit got unknown options {', '.join(unknown)}; expected any of {', '.join(sorted(LEARNING))}")
        if encoder is not None and (queries is not None or options):
            raise TypeError("encoder= takes the place of learning: no queries or options beside it")
        shards = self._shards
        with self._rebuilding, progress_lines(progress) as lines:
            if not self.is_fitted:
                raise NotFitted("the index has no learned map yet: call fit(documents, queries=...) first")
            changed = {**of_learning(self._options), **options}
            Options(**changed)
            if encoder is not None:
                if _map_dim(encoder) != shards.dim:
                    raise ValueError(f"encoder takes tokens of dim {encoder.token_dim}, documents have dim {shards.dim}")
                data = ray.put(encoder.to_bytes())
            else:
                training = self._queries_to_refit(queries, query_offsets)
                how = {**changed, "memory_limit": memory_limit}
                data = learned(shards, training, num_learning_documents, num_threads, how, self._changes.task_options, lines)
            self._changes.make_one_by_one("learn", (data, num_threads), lines)
        return self

    def _queries_to_refit(self, queries: Any, query_offsets: Any) -> QueryBatch:
        """Those given, or the sample that the old map kept."""
        if queries is None:
            if query_offsets is not None:
                raise TypeError("query_offsets= goes with queries, and queries is None")
            sample = np.array(self.encoder.targets.sample_tokens)
            return QueryBatch(sample, np.arange(len(sample) + 1, dtype=np.int64))
        training = read_queries(opened(queries), offsets=query_offsets, dim=self._shards.dim)
        if len(training) == 0:
            raise ValueError("refit needs at least one query, got none; queries=None learns from the old map's sample")
        return training

    def compact(self, *, num_threads: int | None = None, progress: Show = None) -> ShardedLemurIndex:
        """Take back the space of deleted documents, one shard after the other; searches and changes go on meanwhile.

        Raises:
            OSError: no room; the shard is as it was.
            ShardUnavailable: a shard is away.
        """
        self._shards.writable()
        with self._rebuilding, progress_lines(progress) as lines:
            self._changes.make_one_by_one("compact", (num_threads,), lines)
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
        self._shards.writable()
        shards = self._shards
        batch = queries_of(opened(queries), shards.dim).batch
        how = {"target_recall": target_recall, "k": k, "seed": seed, "num_threads": num_threads}
        writers = shards.actors.writers()
        with self._rebuilding, progress_lines(progress) as lines:
            task = lines.task("shards", len(writers))
            tuned = shards.call("tune", dict.fromkeys(writers, (batch.tokens, batch.offsets, how)), patient=True)
            task.advance(len(writers))
            shards.refresh([shard for shard, _ in writers])
        return list(tuned.values())

    # Searching it

    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        num_candidates: int | None = None,
        ef_search: int | None = None,
        shortlist: int | None = None,
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
            num_candidates, ef_search, shortlist, target_recall: of each shard; None means the index's own.
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
        how: dict[str, Any] = {"num_candidates": num_candidates, "ef_search": ef_search, "target_recall": target_recall}
        how |= {"shortlist": shortlist, "filter": filter, "exact": exact, "num_threads": num_threads, "timeout": timeout}
        return run(searching(self._shards, self._hedge_after, queries, k, allow_partial=allow_partial, **how))

    async def asearch(self, queries: Any, k: int = 10, **how: Any) -> Any:
        """:meth:`search`, with all its arguments, for an event loop, which does other things while the shards work."""
        return await arun(searching(self._shards, self._hedge_after, queries, k, **how))

    # Keeping it

    def save(self, directory: str | PathLike[str], *, storage_options: dict[str, Any] | None = None) -> None:
        """A copy of all shards, as they are at this moment, in a folder or under a URL where nothing is yet.

        Raises:
            FileExistsError: something is there.
        """
        own = self._shards.writable()
        place = Place(directory, storage_options)
        if place.url == own.url:
            return
        if place.names():
            raise FileExistsError(f"{place.url} is not empty; choose another path or remove it")
        names = self._shards.names
        with self._changes.lock:
            self._shards.call("save", {(shard, WRITER): (place / name,) for shard, name in enumerate(names)}, patient=True)
            describe(place, names, self._options)

    def close(self) -> None:
        """Stop the actors; whoever opens the directory next may change it. Pickled copies can search no longer."""
        self._shards.close()

    def __enter__(self) -> ShardedLemurIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _attached(shards: Shards, options: dict[str, Any], hedge_after: float | None) -> ShardedLemurIndex:
    """An index over shards that another process has started."""
    index = ShardedLemurIndex.__new__(ShardedLemurIndex)
    index._shards, index._options, index._hedge_after = shards, options, hedge_after
    index._changes = Changes(shards, {})
    index._rebuilding = threading.Lock()
    return index


def _map_dim(encoder: Any) -> int:
    if not isinstance(encoder, LemurEncoder):
        raise TypeError(f"encoder must be a LemurEncoder, got {type(encoder).__name__}")
    return encoder.token_dim


def _added(parts: Sequence[Part]) -> Part:
    def total(values: list[int | None]) -> int | None:
        return None if None in values else sum(value or 0 for value in values)

    return Part(sum(p.size for p in parts), total([p.mapped for p in parts]), total([p.resident for p in parts]))
