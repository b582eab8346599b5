"""One map for all shards, learned by one task from a sample of their documents."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lemur_ann import LemurEncoder
from lemur_ann import _validate as validate

from .calls import Actors, Calls, gathered
from .shard import to_bytes

DOCUMENTS_PER_CALL = 512


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
) -> tuple[npt.NDArray[np.uint8], list[tuple[str, type[Warning]]]]:
    """The map, as :func:`~lemur_ann.adapters.ray.shard.from_bytes` reads it, and the warnings. Runs as a task of Ray."""
    import torch

    threads = validate.num_threads(num_threads)
    torch.set_num_threads(threads)  # Ray gives each task one
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        encoder = LemurEncoder.fit(sample, tokens, query_offsets=offsets, num_threads=threads, progress=False, **how)
    return to_bytes(encoder), [(str(w.message), w.category) for w in caught]
