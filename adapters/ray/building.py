"""Documents in partitions: files of a folder, fragments of a Lance dataset, blocks of a Ray dataset. Tasks read them."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayTaskError

from lemur_ann import CorruptIndex
from lemur_ann.documents import iterate_documents, lance_scanner, open_path
from lemur_ann.progress import Task

from .calls import Actors
from .documents import Columns, Sender, Staged
from .errors import PartsLost
from .storage import Place

MARKS = "build.json"  # beside the shards

WAITING, COMMITTING, DONE = "waiting", "committing", "done"


@dataclass(frozen=True)
class Partition:
    """Some of the documents, which a task reads.

    Attributes:
        name: the same whenever the same data are built from.
        num_rows: None where nobody knows without reading.
        source: what :meth:`open` makes documents of.
    """

    name: str
    num_rows: int | None
    source: Any

    def open(self) -> Any:
        """Its documents, to be read piece by piece."""
        raise NotImplementedError


class _Fragment(Partition):
    def open(self) -> Any:
        import pyarrow.dataset as ds

        fragment, schema = self.source
        return ds.FileSystemDataset([fragment], schema, fragment.format, fragment.filesystem)


class _LanceFragment(Partition):
    def open(self) -> Any:
        dataset, fragment_id = self.source
        return lance_scanner(dataset, fragments=[dataset.get_fragment(fragment_id)])


class _Block(Partition):
    def open(self) -> Any:
        from ray.data.block import BlockAccessor

        (block,) = self.source
        return BlockAccessor.for_block(ray.get(block)).to_arrow()


def partitions_of(documents: Any) -> Iterator[Partition] | None:
    """The partitions of a folder or a list of files, a dataset of Arrow or Lance, or a dataset of Ray; None for all else."""
    import pyarrow.dataset as ds  # which imports pandas, and actors need neither

    if isinstance(documents, (str, os.PathLike)):
        dataset = open_path(documents)
        return _files(dataset) if len(dataset.files) > 1 else None
    if isinstance(documents, (list, tuple)) and documents and isinstance(documents[0], (str, os.PathLike)):
        return _files(open_path(*documents))
    if isinstance(documents, ds.FileSystemDataset):
        return _files(documents)
    if hasattr(documents, "lance_schema") and hasattr(documents, "get_fragments"):
        return (
            _LanceFragment(f"fragment {fragment.fragment_id}", fragment.count_rows(), (documents, fragment.fragment_id))
            for fragment in documents.get_fragments()
        )
    if type(documents).__module__.startswith("ray.data") and hasattr(documents, "iter_internal_ref_bundles"):
        return _blocks(documents)
    return None


def _files(dataset: Any) -> Iterator[Partition] | None:
    try:
        fragments = list(dataset.get_fragments())
    except ValueError:  # a dataset with a filter does not tell its fragments
        return None
    return (_Fragment(fragment.path, fragment.count_rows(), (fragment, dataset.schema)) for fragment in fragments)


def _blocks(dataset: Any) -> Iterator[Partition]:
    number = 0
    for bundle in dataset.iter_internal_ref_bundles():
        for block in bundle.block_refs:
            yield _Block(f"block {number}", None, (block,))
            number += 1


class Marks:
    """How far a build has come, in a small file beside the shards.

    A partition that is marked as being committed when a build breaks off may have been taken by some shards; the next build
    puts it in the place of what they took.
    """

    def __init__(self, place: Place, *, resume: bool) -> None:
        self._place = place
        self._partitions: dict[str, dict[str, Any]] = {}
        data = place.read(MARKS) if resume else None
        if data is not None:
            self._partitions = _marked(data, place.url)

    def plan(self, partition: Partition, next_id: int) -> int:
        """The first id of a partition whose documents have none, which is the same when a build goes on.

        ValueError where a partition is not what it was then.
        """
        known = self._partitions.get(partition.name)
        if known is None:
            known = {"num_rows": partition.num_rows, "first_id": next_id, "state": WAITING}
            self._partitions[partition.name] = known
        elif known["num_rows"] != partition.num_rows:
            raise ValueError(
                f"{partition.name} has {partition.num_rows} documents, and had {known['num_rows']} when the build began"
            )
        return int(known["first_id"])

    def state(self, name: str) -> str:
        """Of a partition that was planned."""
        return str(self._partitions[name]["state"])

    def largest(self) -> int:
        """The largest id that was planned for, -1 where there is none."""
        ends = [known["first_id"] + known["num_rows"] for known in self._partitions.values() if known["num_rows"] is not None]
        return max(ends, default=0) - 1

    def set(self, name: str, state: str) -> None:
        """Mark a partition, for good."""
        self._partitions[name]["state"] = state
        self.write()

    def write(self) -> None:
        """Keep the plan."""
        self._place.write(MARKS, json.dumps({"partitions": self._partitions}, indent=1).encode())


def _marked(data: bytes, url: str) -> dict[str, dict[str, Any]]:
    """The partitions of a build that broke off; CorruptIndex where the file was altered."""
    try:
        partitions: dict[str, dict[str, Any]] = json.loads(data)["partitions"]
        for known in partitions.values():
            rows = 0 if known["num_rows"] is None else known["num_rows"]
            if type(rows) is not int or type(known["first_id"]) is not int or known["state"] not in (WAITING, COMMITTING, DONE):
                raise ValueError(f"not a partition: {known!r}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptIndex(f"{url}/{MARKS} cannot be read: {error!r}") from error
    return partitions


def stage(
    partition: Partition,
    actors: Actors,
    change: str,
    columns: Columns,
    next_id: int | None,
    replaces: bool,
    timeout: float,
) -> Staged:
    """Read the documents of a partition, and send each shard its own. Runs as a task of Ray."""
    sender = Sender(actors, change, columns, next_id=next_id or 0, replaces=replaces, timeout=timeout)
    for batch in iterate_documents(partition.open(), dim=columns.dim):
        if batch.ids is None and next_id is None:
            raise ValueError("the documents of a Ray dataset need a column 'id'")
        sender.send(batch)
    return sender.finish()


class Build:
    """Takes in partitions, several at a time, and commits one after the other.

    Args:
        actors: the shards.
        marks: how far it came before.
        check: raises where what was staged may not join.
        commit: takes it in; the second argument is whether it replaces what is there.
        discard: forgets what was staged.
        columns: of the index as they are; they may grow with every commit.
        replaces: whether documents take the place of those with their ids.
        max_tasks: how many partitions are read at a time.
        timeout: of calls to shards.
        task_options: Ray's, of the tasks that read.
    """

    def __init__(
        self,
        actors: Actors,
        marks: Marks,
        *,
        check: Callable[[Staged, bool], None],
        commit: Callable[[Staged, bool], None],
        discard: Callable[[str], None],
        columns: Callable[[], Columns],
        replaces: bool,
        max_tasks: int,
        timeout: float,
        task_options: dict[str, Any],
    ) -> None:
        self._actors, self._marks, self._columns = actors, marks, columns
        self._check, self._commit, self._discard = check, commit, discard
        self._replaces, self._max_tasks, self._timeout = replaces, max_tasks, timeout
        self._stage = ray.remote(**task_options)(stage) if task_options else ray.remote(stage)
        self._running: dict[Any, tuple[Partition, str, bool]] = {}

    def run(self, partitions: Iterator[Partition], next_id: int, task: Task) -> None:
        """Take in all that are not marked as done.

        Raises:
            ValueError, TypeError: bad documents, with the name of their partition, of which nothing is taken. Those before it
                are there.
        """
        try:
            for partition in self._planned(partitions, next_id):
                # the first documents of all decide what columns the others may have
                limit = 1 if self._columns().dim is None else self._max_tasks
                while len(self._running) >= limit:
                    self._finish_one(task)
                self._start(partition)
            while self._running:
                self._finish_one(task)
        finally:
            for reference, (_, change, _) in self._running.items():
                ray.cancel(reference)
                self._discard(change)

    def _planned(self, partitions: Iterator[Partition], next_id: int) -> Iterator[Partition]:
        """Those to take in; of those whose size is known the plan is made, and kept, before any of them."""
        next_id = max(next_id, self._marks.largest() + 1)
        known: list[Partition] = []
        for partition in partitions:
            if partition.num_rows is not None:
                known.append(partition)
                next_id = max(next_id, self._marks.plan(partition, next_id) + partition.num_rows)
                continue
            self._marks.plan(partition, 0)
            if self._marks.state(partition.name) != DONE:
                yield partition
        self._marks.write()
        yield from (partition for partition in known if self._marks.state(partition.name) != DONE)

    def _start(self, partition: Partition) -> None:
        change = uuid.uuid4().hex
        replaces = self._replaces or self._marks.state(partition.name) == COMMITTING
        next_id = None if partition.num_rows is None else self._marks.plan(partition, 0)
        reference = self._stage.remote(partition, self._actors, change, self._columns(), next_id, self._replaces, self._timeout)
        self._running[reference] = partition, change, replaces

    def _finish_one(self, task: Task) -> None:
        (reference,), _ = ray.wait(list(self._running), num_returns=1)
        partition, change, replaces = self._running.pop(reference)
        try:
            staged: Staged = ray.get(reference)
            self._check(staged, replaces)
            self._marks.set(partition.name, COMMITTING)
            self._commit(staged, replaces)
            self._marks.set(partition.name, DONE)
            task.advance()
        except PartsLost:  # by an actor that lost its disk too
            self._start(partition)
        except Exception as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            if type(cause) in (ValueError, TypeError):
                raise type(cause)(f"{partition.name}: {cause}") from None
            raise cause from None
        finally:
            self._discard(change)


def default_tasks() -> int:
    """As many as the cluster has processors."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call,unused-ignore]
    return max(1, int(resources.get("CPU", 1)))
