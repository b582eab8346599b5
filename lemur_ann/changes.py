"""One snapshot, replaced by changes: which wait for each other, which may go on beside them, and what is on disk when.

Two locks. ``writing`` is held by one change at a time, while it makes the next snapshot of the newest and publishes it.
``rebuilding`` is held by what takes long: learning and compaction work on the snapshot that they found, beside changes, and
at the end take ``writing`` to join what has changed meanwhile. Who needs both takes ``rebuilding`` first.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from os import PathLike
from typing import Any

import numpy as np
import pyarrow as pa

from lemur_ann import validate
from lemur_ann.candidates.kinds import kind_of
from lemur_ann.candidates.look import LookWeights, SecondLook
from lemur_ann.documents.coded_store import CodedStore
from lemur_ann.documents.inputs import QueryBatch, read_queries
from lemur_ann.documents.intake import take_in
from lemur_ann.documents.rows import Rows
from lemur_ann.documents.sources import opened
from lemur_ann.encoder import LemurEncoder
from lemur_ann.events import after_fork, log, timed
from lemur_ann.learning import learned_parts
from lemur_ann.learning.familiarity import are_many
from lemur_ann.learning.memory import release
from lemur_ann.learning.projection import Encoded
from lemur_ann.options import Options
from lemur_ann.progress import Progress, Task
from lemur_ann.saved.directory import Directory
from lemur_ann.searching.filters import excluded_by
from lemur_ann.searching.settings import Tuned
from lemur_ann.searching.snapshot import Learned, Snapshot

MIN_DELETED = 1024  # fewer deleted documents never make an index compact itself

_NO_ROWS: Rows = np.empty(0, np.int64)


@dataclass
class Documents:
    """Documents as a caller passed them, to join an index."""

    documents: Any
    ids: Any
    offsets: Any
    directory: str | None  # for the temporary file of a stream's tokens
    note: str | None = None  # to keep with the version that has them


@dataclass
class Lesson:
    """What a map is to be learned from; or ``encoder``, a map learned elsewhere, in the place of all that."""

    queries: QueryBatch | None = None
    asked: tuple[Any, Any] | None = None  # queries and offsets as a caller passed them, not read yet
    kept_from: str | None = None  # what the map learned from that kept these queries, where one did
    encode_query: Callable[[list[str]], Any] | None = None
    text_column: str | None = "text"
    resume: bool = False  # train on from the features of the map there is
    encoder: LemurEncoder | None = None
    look: LookWeights | None = None  # to go on with, where there are no queries to learn another from
    codes: LookWeights | None = None  # whose centroids and codes stay
    num_threads: int = 1
    memory_limit: int | None = None
    directory: str | None = None


class Changes:
    """The newest snapshot of an index, in memory or on a directory, and all that replaces it.

    Attributes:
        options_before: those that the index was made with, and has until it learns a map, which keeps its own.
        snapshot: what a search reads, once.
        version: a number that grows with every snapshot.
        beginnings: how often it was emptied and began anew: its rows are then others than before.
        directory: where every change is committed; None in memory.
        writing, rebuilding: the locks.
    """

    def __init__(self, options: Options, snapshot: Snapshot, directory: Directory | None = None) -> None:
        self.options_before = options
        self.snapshot = snapshot
        self.version = 0
        self.beginnings = 0
        self.directory = directory
        self._make_locks()
        after_fork(self, Changes._make_locks)
        self._scratch: str | None = None  # a folder that the caller named for temporary files

    def _make_locks(self) -> None:
        """Free ones: in a forked child no other thread goes on with what it had begun."""
        self.writing = threading.RLock()
        self.rebuilding = threading.Lock()
        self.compaction: threading.Thread | None = None
        self.is_closing = False

    @property
    def options(self) -> Options:
        """How the index learns and searches now."""
        learned = self.snapshot.learned
        return self.options_before if learned is None else learned.options

    def check_writable(self) -> None:
        """PermissionError where changes cannot be committed."""
        if self.directory is not None:
            self.directory.check_writable()

    def temporary(self, directory: str | PathLike[str] | None = None) -> str | None:
        """The folder for temporary files: the one given, that of the index, or the last one given."""
        if directory is not None:
            self._scratch = validate.directory(directory)
            return self._scratch
        return self._scratch if self.directory is None else str(self.directory.path)

    @contextmanager
    def timed(self, name: str, **values: Any) -> Iterator[dict[str, Any]]:
        """A log record of what the block did to the index, once it is done."""
        with timed(name, **values) as told:
            yield told
            told["num_documents"] = self.snapshot.num_documents

    # Learning

    def fit(self, documents: Documents, lesson: Lesson, progress: Progress) -> None:
        """Documents for an empty index, and a map for them: searches see both or neither."""
        with self.rebuilding, self.writing, self.timed("fit"):
            if self.snapshot.num_documents:
                raise ValueError(
                    f"the index holds {self.snapshot.num_documents} documents already; add(documents) brings more, and "
                    "fit(queries=...) without documents learns anew from those it holds"
                )
            dim = None if lesson.encoder is None else lesson.encoder.token_dim
            empty = Snapshot.empty(coded=self.snapshot.store.coded)
            taken, _ = self._joined(empty, documents, dim, lesson.num_threads, progress, replaces=False)
            new = learned(taken, self.options, lesson, progress)
            self.publish(replace(taken, learned=new, store=new.kept(taken.store)))

    def fit_stored(self, lesson: Lesson, progress: Progress) -> None:
        """A map for the documents there are, which go on changing meanwhile."""
        with self.rebuilding, self.timed("fit"):
            beginnings, base = self.beginnings, self.snapshot
            if base.learned is not None and base.learned.keeps_codes_alone:
                lesson.codes = base.learned.encoder.look  # codes of codes would lose more
            self._adopt(base, beginnings, learned(base, self.options, lesson, progress), lesson)

    def refit(self, lesson: Lesson, options: dict[str, Any], progress: Progress) -> None:
        """The same, with options changed, from queries or from those tokens of queries that the old map kept.

        Everything is read and checked once nobody else is learning: another map would have other options.
        """
        with self.rebuilding, self.timed("refit"):
            beginnings, base = self.beginnings, self.snapshot
            old = base.fitted()
            queries, query_offsets = lesson.asked or (None, None)
            lesson.asked = None
            changed = changed_options(old, options, resume=lesson.resume and lesson.encoder is None)
            if lesson.encoder is not None:
                if queries is not None or lesson.resume or options:
                    raise TypeError("encoder= takes the place of learning: no queries, resume or options beside it")
                check_map(lesson.encoder, base.store.dim)
            elif base.num_documents == 0:
                raise ValueError("refit needs at least one document, and the index holds none")
            else:
                lesson.queries = _queries_to_refit(old, queries, query_offsets, base.store.dim)
                if queries is None:
                    lesson.kept_from = old.encoder.training.get("learned_from")
                if queries is None and changed.num_centroids == old.options.num_centroids:
                    lesson.look = old.encoder.look
                if old.keeps_codes_alone:
                    if changed.num_centroids != old.options.num_centroids:
                        raise ValueError("num_centroids stays as it is where codes alone are kept, which are made with them")
                    lesson.codes = old.encoder.look
            del queries
            self._adopt(base, beginnings, learned(base, changed, lesson, progress), lesson)

    def _adopt(self, base: Snapshot, beginnings: int, new: Learned, lesson: Lesson) -> None:
        """Let searches use what was learned of ``base``, with candidates of the documents that came since."""
        with self.writing:
            now, first, num_threads = self.snapshot, base.num_rows, lesson.num_threads
            if self.beginnings != beginnings:
                check_map(new.encoder, now.store.dim)
                new, first = new.begun_anew(lesson.directory), 0
            later = now.store.slice(first, now.num_rows)
            if len(later):
                new = new.extended(later, num_threads)
            self.publish(replace(now, learned=new, store=new.kept(now.store)))

    def recode(self, changed: dict[str, Any], num_threads: int, progress: Progress) -> None:
        """Other codes of the tokens, or codes alone; searches go on meanwhile, and changes wait."""
        with self.rebuilding, self.writing, self.timed("recode", **changed):
            now = self.snapshot
            options = replace(self.options, **changed)
            if isinstance(now.store, CodedStore):
                check_smaller(self.options, options)
            if options == self.options:
                return
            task = progress.task("recode", now.num_rows)
            store = now.store.recoded(options.keeps_int8, self.temporary())
            if now.learned is None:
                before, self.options_before = self.options_before, options
                try:
                    self.publish(replace(now, store=store))
                except BaseException:
                    self.options_before = before
                    raise
            else:
                encoder = coding(now.learned.encoder, now, options)
                new = now.learned.recoded(store, options, encoder, num_threads)
                self.publish(replace(now, learned=new, store=new.kept(store)))
            task.advance(now.num_rows)

    def keep_tuned(self, encoder: LemurEncoder, tuned: Tuned) -> None:
        """Beside the map that it was tuned for, in the place of what was tuned for the same before.

        Raises:
            RuntimeError: there is another map by now.
        """
        with self.writing:
            now = self.snapshot
            if now.learned is None or now.learned.encoder is not encoder:
                raise RuntimeError("the index learned another map while it was tuned: tune again")
            others = tuple(t for t in now.learned.tuned if t.asked != tuned.asked)
            self.publish(replace(now, learned=replace(now.learned, tuned=(*others, tuned))))

    # Documents

    def add(self, documents: Documents, num_threads: int, progress: Progress, *, replaces: bool) -> None:
        """Documents at the end; those that have their ids already go in the same step, where ``replaces``."""
        with self.timed("upsert" if replaces else "add") as told, self.writing:
            now = self.snapshot
            is_emptied = now.num_rows > 0 == now.num_documents  # by a version that did not begin anew then
            now = now.begun_anew(self.temporary()) if is_emptied else now
            joined, num_new = self._joined(now, documents, now.dim, num_threads, progress, replaces=replaces)
            if documents.note is not None:
                joined = replace(joined, note=documents.note)
            if num_new or documents.note is not None:
                (self._begin_anew if is_emptied else self.publish)(joined)
            told["num_new"] = num_new
            if joined.learned is not None:
                _tell_unfamiliar(now.learned, joined.learned, joined.num_rows, told)
        self._compact_if_due()

    def _joined(
        self, base: Snapshot, new: Documents, dim: int | None, num_threads: int, progress: Progress, *, replaces: bool
    ) -> tuple[Snapshot, int]:
        """A snapshot with documents at its end, all checked; and how many these are."""
        batches, metadata = take_in(
            new.documents,
            ids=new.ids,
            offsets=new.offsets,
            directory=new.directory,
            store=base.store,
            dim=dim,
            id_map=base.ids,
            metadata=base.metadata,
            progress=progress,
            replaces=replaces,
            pooling=self.options.pooled_by,
            num_threads=num_threads,
        )
        replaced = _NO_ROWS
        if batches and replaces:
            replaced = base.ids.known(pa.concat_arrays([batch.ids for batch in batches]))
        return base.with_documents(batches, metadata, replaced, num_threads, progress), sum(map(len, batches))

    def delete(self, ids: pa.Array | None, filter: Any, note: str | None = None) -> int:
        """Documents by their ids, each of which must be there, or those that a filter lets through; how many."""
        with self.timed("delete") as told, self.writing:
            now = self.snapshot
            rows = np.unique(now.ids.find(ids)) if ids is not None else excluded_by(filter, now).others
            if len(rows) or note is not None:
                left = now.without(rows, self.temporary()) if len(rows) else now
                left = left if note is None else replace(left, note=note)
                (self.publish if left.num_rows or not len(rows) else self._begin_anew)(left)
            told["num_deleted"] = len(rows)
        self._compact_if_due()
        return len(rows)

    # Compaction

    def compact(self, num_threads: int, progress: Progress) -> None:
        """Without deleted documents, and with what has changed meanwhile."""
        with self.rebuilding:
            beginnings, base = self.beginnings, self.snapshot
            if base.deleted.count == 0:
                return
            with self.timed("compact"):
                task = progress.task("compact", base.num_documents)
                compacted = base.compacted(num_threads, task, self.temporary())
                with self.writing:
                    if self.beginnings == beginnings:  # else none of these documents is there any more
                        self.publish(compacted.with_changes(base, self.snapshot, num_threads))

    def _compact_if_due(self) -> None:
        deleted, share = self.snapshot.deleted, self.options.compact_at
        if share is None or deleted.count < max(MIN_DELETED, share * len(deleted)):
            return
        with self.writing:
            if self.compaction is not None and self.compaction.is_alive():
                return
            thread = threading.Thread(target=self._compact_in_background, name="lemur_ann compaction")
            try:
                thread.start()
            except (RuntimeError, MemoryError) as error:  # the change has happened all the same, and the next one tries again
                log.warning("the index could not compact itself: %s", error)
            else:
                self.compaction = thread

    def _compact_in_background(self) -> None:
        try:
            self.compact(1, _Stoppable(self))
        except _Stopped:
            pass
        except Exception as error:  # the next change tries again
            log.warning("the index could not compact itself: %s", error)

    # What others see

    def publish(self, snapshot: Snapshot) -> None:
        """Let searches see this one; on disk first, where there is a directory."""
        if self.directory is not None:
            try:
                snapshot = self.directory.commit(snapshot, self.options_before)
            except BaseException:
                self._show(self.directory.snapshot)  # what is on disk: an interrupt may have come after the fact
                raise
        _ = snapshot.documents  # made now rather than by the next search
        self._show(snapshot)

    def _begin_anew(self, snapshot: Snapshot) -> None:
        """The same, where its rows are not those of the snapshot before."""
        try:
            self.publish(snapshot)
        finally:  # last: who reads this number and then a snapshot learns of too many beginnings, and never of too few
            self.beginnings += 1

    def _show(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.version += 1  # last: who has read this number reads nothing older than it

    def refresh(self) -> bool:
        """Show the version that is on disk now; whether it is a new one."""
        if self.directory is None:
            raise ValueError("the index is not open on a directory: LemurIndex.open(path) is what can be refreshed")
        with self.writing:
            changed = self.directory.refresh()
            if changed:
                self.options_before = self.directory.options
                self._show(self.directory.snapshot)
        return changed

    def close(self) -> None:
        """Give up a compaction in the background, and let go of the directory."""
        self.is_closing = True
        try:
            compaction = self.compaction
            if compaction is not None:
                compaction.join()
        finally:  # also where the user does not wait: what the compaction made cannot be committed then
            with self.writing:
                if self.directory is not None:
                    self.directory.close()
            self.is_closing = False


def _tell_unfamiliar(before: Learned | None, after: Learned, num_rows: int, told: dict[str, Any]) -> None:
    """Of the documents since learning, in the record of an addition; and a warning each time that their number doubles."""
    known = 0 if before is None else before.num_unfamiliar
    told["num_unfamiliar"] = after.num_unfamiliar - known
    num_recent = num_rows - after.num_rows
    if after.num_unfamiliar.bit_length() > known.bit_length() and are_many(after.num_unfamiliar, num_recent):
        log.warning(
            "%d of %d documents that came since the map was learned are unlike those it learned from: searches may miss them. "
            "refit(queries=...) with queries for such documents learns a map that knows them",
            after.num_unfamiliar,
            num_recent,
        )


def learned(base: Snapshot, options: Options, lesson: Lesson, progress: Progress) -> Learned:
    """A map for the documents of a snapshot, learned or given, and candidates of all its rows."""
    if lesson.encoder is not None:
        given, encoded = lesson.encoder, None
        options = replace(
            options,
            num_features=len(given.query_map),
            num_sample_tokens=len(given.targets.sample_tokens),
            rank=given.dim - 1,
            target_precision=given.targets.precision,
        )
        encoder = coding(given.copy(options), base, options)
    else:
        start = base.learned.encoder.feature_map if lesson.resume and base.learned is not None else None
        parts, encoded = learned_parts(
            base.store,
            base.live,
            base.metadata,
            lesson.queries,
            options,
            encode_query=lesson.encode_query,
            text_column=lesson.text_column,
            start=start,
            look=lesson.look,
            codes=lesson.codes,
            num_threads=lesson.num_threads,
            progress=progress,
            memory_limit=lesson.memory_limit,
            directory=lesson.directory,
        )
        if lesson.kept_from is not None:  # a map of tokens that another kept is of what that one was of
            parts.training["learned_from"] = lesson.kept_from
        encoder = coding(LemurEncoder.of(parts), base, options)
        lesson.queries = None  # the graph takes their place in memory
    return _indexed(base, options, encoder, encoded, lesson, progress)


def _indexed(
    base: Snapshot,
    options: Options,
    encoder: LemurEncoder,
    encoded: Encoded | None,
    lesson: Lesson,
    progress: Progress,
) -> Learned:
    """Candidates of all rows of a snapshot; ``encoded``: those of them that learning has encoded already."""
    release()  # what learning held, before the graph takes its place
    begin, num_threads = time.perf_counter(), lesson.num_threads
    builder = kind_of(options.candidates).builder(encoder.dim, asdict(options), base.num_rows, lesson.directory)
    task = progress.task(f"{options.candidates} index", base.num_rows)
    every = np.arange(base.num_rows)  # deleted documents keep their row
    for _, vectors in encoder.encode_blocks(base.store, every, num_threads=num_threads, known=encoded):
        builder.add(vectors, num_threads=num_threads)
        task.advance(len(vectors))
    candidates = builder.finish()
    seconds = encoder.training.setdefault("seconds", {})
    seconds["candidates"] = time.perf_counter() - begin
    begin, look = time.perf_counter(), None
    if encoder.look is not None:
        look = SecondLook(encoder.look, [], options.small_bits).extended(base.store, num_threads=num_threads)
        seconds["centroids of documents"] = time.perf_counter() - begin
    return Learned(options, encoder, candidates, base.num_rows, look=look)


def coding(encoder: LemurEncoder, base: Snapshot, options: Options) -> LemurEncoder:
    """The same map with what small codes are made with, if options ask for such and an older version learned it without.

    Raises:
        ValueError: it has no centroids, to which they are relative.
    """
    look = encoder.look
    if not options.small_bits or (look is not None and look.codes is not None):
        return encoder
    if look is None:
        raise ValueError(
            f"token_codes={options.token_codes!r} are relative to centroids of tokens, and the map was learned without any: of "
            "fewer than 500 documents, of zeros alone, with num_centroids=0, or by a version that knew none; "
            "refit(num_centroids=64), or another number, learns some"
        )
    from lemur_ann.learning.codes import learn_codes

    sample = encoder.targets.sample_tokens * np.sqrt(encoder.token_weights)[:, None]
    codes = learn_codes(base.store, base.live, look.centroids, sample, options.seed)
    return encoder.copy(options, look=replace(look, codes=codes))


def check_smaller(now: Options, wanted: Options) -> None:
    """ValueError where codes would have to tell more than those that are kept alone."""
    if wanted.keep_tokens != "none" or not 0 < wanted.small_bits <= now.small_bits:
        raise ValueError(
            f"tokens are not kept, only codes {now.token_codes!r} of them: they can become smaller, and not "
            f"token_codes={wanted.token_codes!r} with keep_tokens={wanted.keep_tokens!r}; make the index anew from the tokens"
        )


def changed_options(old: Learned, options: dict[str, Any], *, resume: bool) -> Options:
    """Those of a map to be learned anew.

    Raises:
        TypeError: an option that there is not.
        ValueError: ``resume``, and the features of the old map are not such as training goes on from.
    """
    kept = "token_codes", "keep_tokens"  # which the store has or has not
    pooled = tuple(vars(old.options.pooled_by))
    known = [field.name for field in fields(Options) if field.name not in (*kept, *pooled)]
    unknown = [name for name in options if name not in known]
    if set(unknown) & set(kept):
        raise TypeError(f"refit learns anew, and keeps {' and '.join(kept)}: recode changes them")
    if set(unknown) & set(pooled):
        raise TypeError(
            f"refit learns from tokens as they are kept, and keeps {', '.join(pooled)}: documents are pooled as they come: "
            "make the index anew from the tokens, as LemurIndex(pool_factor=2).fit(...)"
        )
    if unknown:
        raise TypeError(f"refit got unknown options {', '.join(unknown)}; expected any of {', '.join(known)}")
    changed = replace(old.options, **options)
    config = old.encoder.feature_weights.config
    if resume and (changed.epochs == 0 or config["kind"] != "trained"):
        raise ValueError("resume=True trains on from learned features: it needs epochs above 0, before and now")
    if resume and config["num_features"] != changed.num_features:
        raise ValueError(f"resume=True needs the same num_features, {config['num_features']}, got {changed.num_features}")
    return changed


def check_map(encoder: Any, dim: int | None) -> None:
    """That it is a learned map, for tokens of this dimension."""
    if not isinstance(encoder, LemurEncoder):
        raise TypeError(f"encoder must be a LemurEncoder, got {type(encoder).__name__}")
    if dim not in (None, encoder.token_dim):
        raise ValueError(f"encoder takes tokens of dim {encoder.token_dim}, documents have dim {dim}")


def _queries_to_refit(old: Learned, queries: Any, offsets: Any, dim: int | None) -> QueryBatch:
    """Those given; None stands for the query tokens that the old map kept, each a query of its own."""
    if queries is not None:
        training = read_queries(opened(queries), offsets=offsets, dim=dim)
        if len(training) == 0:
            raise ValueError("refit needs at least one query, got none; queries=None learns from the old map's sample")
        return training
    if offsets is not None:
        raise TypeError("query_offsets= goes with queries, and queries is None")
    sample = np.array(old.encoder.targets.sample_tokens)  # torch wants what could be written
    return QueryBatch(sample, np.arange(len(sample) + 1, dtype=np.int64))


class _Stopped(Exception):
    """The compaction in the background was given up."""


class _Stoppable(Progress, Task):
    """Progress that ends in :class:`_Stopped` once the index is closed or the program ends."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes

    def task(self, description: str, total: int | None) -> Task:
        return self

    def advance(self, count: int = 1, note: str | None = None) -> None:
        if self._changes.is_closing or not threading.main_thread().is_alive():
            raise _Stopped
