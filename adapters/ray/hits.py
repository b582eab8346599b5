"""What a search over shards returns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lemur_ann import Hits


@dataclass(frozen=True, eq=False)
class ShardedHits(Hits):
    """Hits of several shards, best first.

    Attributes:
        missing_shards: numbers of those that did not answer; none unless the search said ``allow_partial=True``.
    """

    missing_shards: tuple[int, ...] = ()


def merged(
    found: Iterable[tuple[npt.NDArray[Any], npt.NDArray[np.float32]]], k: int, missing_shards: tuple[int, ...]
) -> ShardedHits:
    """The k best of what each shard has found for one query; where scores are equal, in the order of the shards."""
    parts = list(found)
    parts = [part for part in parts if len(part[0])] or parts[:1] or [(np.empty(0, np.int64), np.empty(0, np.float32))]
    ids, scores = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    best = np.argsort(-scores, kind="stable")[:k]
    return ShardedHits(ids[best], scores[best], missing_shards=missing_shards)
