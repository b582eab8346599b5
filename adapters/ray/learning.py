"""One map for all shards, learned by one task from a sample of their documents."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import RayTaskError

from lemur_ann import LemurEncoder, validate
from lemur_ann.documents import QueryBatch
from lemur_ann.options import Options
from lemur_ann.progress import Progress

from .calls import Actors, Calls, gathered
from .shards import Shards

DOCUMENTS_PER_CALL = 512

# what a map is learned with; other options are of the index that uses it
LEARNING = {
    *("num_features", "epochs", "num_training_tokens", "num_training_documents", "num_sample_tokens", "target_precision"),
    *("ridge", "rank", "distillation_steps", "num_centroids", "device", "seed"),
}


def of_learning(options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that a map is learned with."""
    return {name: value for name, value in options.items() if name in LEARNING}


def learned(
    shards: Shards,
    training: QueryBatch | None,
    num_documents: int,
    num_threads: int | None,
    how: dict[str, Any],
    task_options: dict[str, Any],
    lines: Progress,
) -> Any:
    """A map for the documents there are, as a reference to its bytes.

    Args:
        training: queries to learn from.
        num_documents: to learn from, of all shards together.
        num_threads: of the task that learns; None means all cores of its machine.
        how: options of learning, of the index and of the caller.
        task_options: Ray's, of that task.
    """
    sizes = np.array(shards.each("size"))
    if sizes.sum() == 0:
        raise ValueError("fit needs at least one document, got none")
    counts = np.ceil(sizes * min(1.0, num_documents / sizes.sum())).astype(int).tolist()
    seed = how.get("seed", Options.seed)
    drawn = shards.call("draw", {(shard, None): (count, seed + shard) for shard, count in enumerate(counts)})
    sample = Sample(shards.actors, list(drawn.values()), shards.timeout)
    queries = (None, None) if training is None else (training.tokens, training.offsets)
    task: Any = ray.remote(**{**task_options, "num_returns": 2})(learn)
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


class Sample:
    """Some documents of each shard, fetched a few at a time.

    Args:
        actors: the shards.
        ids: of the documents of each.
        timeout: of a call.
    """

    def __init__(self, actors: Actors, ids: list[pa.Array], timeout: float) -> None:
        self._actors, self._ids, self._timeout = actors, ids, timeout

    def to_batches(self) -> Iterator[pa.RecordBatch]:
        """All of them, but those deleted meanwhile."""
        before: Calls | None = None
        for shard, ids in enumerate(self._ids):
            for begin in range(0, len(ids), DOCUMENTS_PER_CALL):
                arguments = (ids.slice(begin, DOCUMENTS_PER_CALL),)
                calls = Calls(self._actors, "some", {(shard, None): arguments}, timeout=self._timeout)
                yield from _batches(before)
                before = calls
        yield from _batches(before)


def _batches(calls: Calls | None) -> Iterator[pa.RecordBatch]:
    if calls is not None:
        for table in gathered(calls).result().values():
            if table is not None:
                yield from table.to_batches()


def learn(
    sample: Sample, tokens: Any, offsets: Any, num_threads: int | None, how: dict[str, Any]
) -> tuple[bytes, list[tuple[str, type[Warning]]]]:
    """The map's bytes, and the warnings. Runs as a task of Ray."""
    import torch

    threads, before = validate.num_threads(num_threads), torch.get_num_threads()
    torch.set_num_threads(threads)  # Ray gives each task one, and learning takes no more than torch has
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            encoder = LemurEncoder.fit(sample, tokens, query_offsets=offsets, num_threads=threads, progress=False, **how)
    finally:
        torch.set_num_threads(before)
    return encoder.to_bytes(), [(str(w.message), w.category) for w in caught]
