"""A search over shards, as the calls that it makes one after the other: made here, or in an event loop."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from lemur_ann import validate
from lemur_ann.documents import check_kind, ids_of, queries_of
from lemur_ann.searching import booleans

from .calls import Arguments, Calls, Target, agathered, gathered
from .documents import Columns
from .hits import merged
from .shards import Shards

BYTES_TO_SHARE = 2**16  # of queries, which all shards then read from Ray's object store

Steps = Generator[Calls, dict[Target, Any], Any]


def run(steps: Steps) -> Any:
    """Make the calls that a method asks for, and give what it returns."""
    try:
        calls = next(steps)
        while True:
            calls = steps.send(gathered(calls).result())
    except StopIteration as stop:
        return stop.value


async def arun(steps: Steps) -> Any:
    """The same, in an event loop."""
    try:
        calls = next(steps)
        while True:
            calls = steps.send((await agathered(calls)).result())
    except StopIteration as stop:
        return stop.value


def searching(
    shards: Shards,
    hedge_after: float | None,
    queries: Any,
    k: int,
    *,
    filter: Any = None,
    timeout: float | None = None,
    allow_partial: bool = False,
    num_candidates: int | None = None,
    ef_search: int | None = None,
    shortlist: int | None = None,
    target_recall: float | None = None,
    exact: bool = False,
    num_threads: int | None = None,
) -> Steps:
    """The calls of a search; see :meth:`lemur_ann.adapters.ray.ShardedLemurIndex.search`, and there for ``hedge_after`` too."""
    actors = shards.actors
    k = validate.positive_int(k, "k")
    allow_partial, exact = validate.boolean(allow_partial, "allow_partial"), validate.boolean(exact, "exact")
    timeout = shards.timeout if timeout is None else seconds(timeout)
    asked = queries_of(queries, shards.dim)
    if len(asked.batch) == 0:
        return []
    filters = yield from filters_of(shards, filter)
    columns = None
    if any(isinstance(own, pc.Expression) for own in filters.values()):
        columns = shards.columns.schema
        if shards.place is None:  # which cannot know what columns have come since it was pickled
            answers = yield Calls(actors, "schema", dict.fromkeys(shards.any_replica, ()), timeout=timeout)
            columns = Columns.of_all(answers.values()).schema
    how: dict[str, Any] = {"num_candidates": num_candidates, "ef_search": ef_search, "target_recall": target_recall}
    how |= {"shortlist": shortlist, "exact": exact, "num_threads": num_threads}
    tokens, offsets = asked.batch.tokens, asked.batch.offsets
    shared = ray.put(tokens) if tokens.nbytes > BYTES_TO_SHARE else tokens
    arguments: Arguments = {
        (shard, None): (shared, offsets, k, {**how, "filter": own}, columns) for shard, own in filters.items()
    }
    calls = Calls(
        actors, "search", arguments, timeout=timeout, bounded=True, allow_partial=allow_partial, hedge_after=hedge_after
    )
    answers = yield calls
    missing = tuple(sorted(shard for shard, _ in calls.missing))
    found = [answers[target] for target in arguments if target in answers]
    return asked.answered([merged([own[i] for own in found], k, missing) for i in range(len(asked.batch))])


def filters_of(shards: Shards, filter: Any) -> Steps:
    """The part of a filter that each shard needs; those for which nothing is left are not asked."""
    every = range(len(shards))
    if filter is None or isinstance(filter, pc.Expression):
        return dict.fromkeys(every, filter)
    mask = booleans(filter)
    if mask is not None:
        sizes = yield Calls(shards.actors, "size", dict.fromkeys(shards.any_replica, ()), timeout=shards.timeout)
        ends = np.cumsum([sizes[target] for target in shards.any_replica])
        if len(mask) != ends[-1]:
            raise ValueError(
                f"filter has {len(mask)} booleans, expected one for each of {ends[-1]} documents, in the order of ids()"
            )
        return dict(zip(every, np.split(mask, ends[:-1]), strict=True))
    if isinstance(filter, Iterator):
        filter = list(filter)
    try:
        is_refused = isinstance(filter, (str, bytes)) or not len(filter)
    except TypeError:
        is_refused = True
    if is_refused:  # by the shards, where it is no filter at all; no ids let nothing through
        return dict.fromkeys(every, filter)
    ids = ids_of(filter)
    if shards.place is not None:
        check_kind(ids, shards.columns.id_type)
    return {shard: ids.take(pa.array(rows)) for shard, rows in shards.by_shard(ids).items()}


def seconds(value: Any, name: str = "timeout") -> float:
    """``value`` as a number of seconds above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"{name} must be a number of seconds above 0, got {value!r}")
    return float(value)
