"""Changes of an index in shards: sent to all, checked by all, and only then made, one change at a time."""

from __future__ import annotations

import threading
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from lemur_ann import validate
from lemur_ann.documents import ids_of, is_stream, iterate_documents, opened, read_documents
from lemur_ann.progress import Progress, Show, progress_lines

from .asking import filters_of, run
from .building import Build, Marks, default_tasks, partitions_of
from .calls import WRITER, Arguments
from .documents import Sender, Staged
from .errors import PartsLost, ShardUnavailable
from .shards import Shards

TRIES = 3  # to send documents to a shard that loses its disk meanwhile


@dataclass(frozen=True)
class Joining:
    """How documents are to join the index.

    Attributes:
        replaces: whether they take the place of those with their ids.
        num_threads: of each shard.
        query_dim: that their tokens must have, for the sake of queries that come with them; None allows any.
    """

    replaces: bool
    num_threads: int | None = None
    query_dim: int | None = None


class Changes:
    """Adds and deletes documents.

    Args:
        shards: where. Their ``columns`` and ``next_id`` change with every change.
        task_options: Ray's, of the tasks that read partitions.

    Attributes:
        lock: held by one change at a time.
        task_options: as given.
    """

    def __init__(self, shards: Shards, task_options: dict[str, Any]) -> None:
        self._shards, self.task_options = shards, task_options
        self.lock = threading.RLock()

    def add(
        self,
        documents: Any,
        joining: Joining,
        *,
        ids: Any,
        offsets: Any,
        resume: bool,
        max_tasks: int | None,
        progress: Show,
    ) -> None:
        """See :meth:`lemur_ann.adapters.ray.ShardedLemurIndex.add`."""
        validate.boolean(resume, "resume")
        place = self._shards.writable()
        if joining.num_threads is not None:
            validate.num_threads(joining.num_threads)
        with progress_lines(progress) as lines, self.lock:
            partitions = partitions_of(documents) if ids is None and offsets is None else None
            if partitions is not None:
                build = Build(
                    self._shards.actors,
                    Marks(place, resume=resume),
                    check=lambda staged, replaces: self.check(staged, replace(joining, replaces=replaces)),
                    commit=lambda staged, replaces: self.commit(staged, replace(joining, replaces=replaces)),
                    discard=self.discard,
                    columns=lambda: self._shards.columns,
                    replaces=joining.replaces,
                    max_tasks=default_tasks() if max_tasks is None else validate.positive_int(max_tasks, "max_tasks"),
                    timeout=self._shards.timeout,
                    task_options=self.task_options,
                )
                build.run(partitions, self._shards.next_id, lines.task("partitions", None))
            elif resume:
                raise TypeError(
                    "resume=True goes with partitions: a folder of files, a list of paths, a dataset of Lance or Ray"
                )
            else:
                self._take(opened(documents), joining, ids, offsets, lines)

    def _take(self, documents: Any, joining: Joining, ids: Any, offsets: Any, lines: Progress) -> None:
        """Send documents to the shards, check them there, and commit them."""
        shards, change = self._shards, uuid.uuid4().hex
        columns, is_checked, once = shards.columns, False, is_stream(documents)
        if not once:
            documents = read_documents(documents, ids=ids, offsets=offsets, dim=columns.dim)
            if columns.dtype is None and documents:
                columns = replace(columns, dtype=np.result_type(*(batch.tokens.dtype for batch in documents)))
        how: dict[str, Any] = {"next_id": shards.next_id, "replaces": joining.replaces, "timeout": shards.timeout}
        try:
            for attempt in range(TRIES):
                sender = Sender(shards.actors, change, columns, **how)
                task = lines.task("documents", None if once else sum(map(len, documents)))
                for batch in iterate_documents(documents, ids=ids, offsets=offsets, dim=columns.dim) if once else documents:
                    sender.send(batch)
                    task.advance(len(batch))
                staged = sender.finish()
                try:
                    if not is_checked:
                        self.check(staged, joining)
                        is_checked = True  # from here on some may be there
                    self.commit(staged, joining)
                    return
                except PartsLost as error:
                    if once or attempt == TRIES - 1:
                        raise ShardUnavailable(f"{error}: the actor lost its disk; try again") from error
        finally:
            self.discard(change)

    def check(self, staged: Staged, joining: Joining) -> None:
        """ValueError or TypeError where documents that wait at the shards may not join."""
        if joining.query_dim is not None and staged.columns.dim not in (None, joining.query_dim):
            raise ValueError(f"queries have dim {joining.query_dim}, documents have dim {staged.columns.dim}")
        self._shards.columns.merged(staged.columns)
        if joining.replaces:
            return
        arguments: Arguments = {(shard, WRITER): (staged.change, staged.num_parts[shard]) for shard in staged.shards}
        known = [found for found in self._shards.call("check", arguments, patient=True).values() if found]
        if known:
            row, doc_id = min(known)
            raise ValueError(f"id {doc_id!r} in row {row} names a document of the index already; delete it first, or upsert")

    def commit(self, staged: Staged, joining: Joining) -> None:
        """Have each shard take its own."""
        shards = self._shards
        arguments: Arguments = {
            (shard, WRITER): (staged.change, staged.num_parts[shard], joining.replaces, joining.num_threads)
            for shard in staged.shards
        }
        before, shards.columns = shards.columns, shards.columns.merged(staged.columns)
        try:
            self.make("commit", arguments)
        except BaseException:
            if before.dim is None:
                with suppress(Exception):
                    shards.look()  # perhaps there are no documents after all
            raise
        shards.next_id = max(shards.next_id, staged.largest + 1)

    def discard(self, change: str) -> None:
        """Forget what was sent."""
        with suppress(RuntimeError):  # away or closed: the next who opens the index forgets it
            self._shards.call("discard", dict.fromkeys(self._shards.actors.writers(), (change,)), timeout=1.0)

    def make(self, method: str, arguments: Arguments) -> None:
        """Change shards, and have their readers show it."""
        try:
            self._shards.call(method, arguments, patient=True)
            self._shards.refresh([shard for shard, _ in arguments])
        except ShardUnavailable as error:
            raise ShardUnavailable(
                f"{error}; the change may be there in part, and made again it is whole", error.shards
            ) from None

    def make_one_by_one(self, method: str, arguments: tuple[Any, ...], lines: Progress) -> None:
        """Change one shard after the other."""
        writers = self._shards.actors.writers()
        task = lines.task("shards", len(writers))
        for writer in writers:
            self.make(method, {writer: arguments})
            task.advance()

    def delete(self, ids: Any, filter: Any) -> int:
        """See :meth:`lemur_ann.adapters.ray.ShardedLemurIndex.delete`."""
        if (ids is None) == (filter is None):
            raise TypeError("delete takes ids or filter=, one of the two")
        shards = self._shards
        shards.writable()
        with self.lock:
            if filter is None:
                wanted = ids_of(ids)
                by_shard = shards.by_shard(wanted)
                shards.check_known(wanted, by_shard)
                gone = {shard: wanted.take(pa.array(rows)).unique() for shard, rows in by_shard.items()}
            else:
                filters = run(filters_of(shards, filter))
                arguments: Arguments = {(shard, WRITER): (own, shards.columns.schema) for shard, own in filters.items()}
                found = shards.call("matching", arguments, patient=True)
                gone = {shard: own for (shard, _), own in found.items() if len(own)}
            self.make("remove", {(shard, WRITER): (own,) for shard, own in gone.items()})
        return sum(map(len, gone.values()))
