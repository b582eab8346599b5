"""What a search returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


@dataclass(frozen=True, eq=False)
class Hits:
    """The documents found for one query, best first.

    Attributes:
        ids: the caller's document ids, shape (num_hits,): int64, or object holding ``str``.
        scores: exact MaxSim scores, float32, shape (num_hits,), higher is better.

    ``for doc_id, score in hits`` and ``len(hits)`` work too.

    Example:
        >>> hits = Hits(np.array(["fox", "whale"], object), np.array([2.5, 1], np.float32))
        >>> list(hits)
        [('fox', 2.5), ('whale', 1.0)]
    """

    ids: npt.NDArray[Any]
    scores: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[tuple[Any, float]]:
        return zip(self.ids.tolist(), self.scores.tolist(), strict=True)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Hits):
            return NotImplemented
        return np.array_equal(self.ids, other.ids) and np.array_equal(self.scores, other.scores)

    __hash__ = None  # type: ignore[assignment]

    def to_arrow(self) -> pa.Table:
        """Columns ``id`` (int64 or large_string) and ``score`` (float32), best first."""
        kind = pa.int64() if self.ids.dtype.kind in "iu" else pa.large_string()
        return pa.table({"id": pa.array(self.ids, kind), "score": pa.array(self.scores, pa.float32())})
