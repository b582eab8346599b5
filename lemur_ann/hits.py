"""What a search returns."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lemur_ann.notebook import table

SHOWN = 5  # hits that a repr names


@dataclass(frozen=True, eq=False)
class Hits:
    """The documents found for one query, best first.

    Attributes:
        ids: the caller's document ids, shape (num_hits,): int64, or object holding ``str``.
        scores: exact MaxSim scores, float32, shape (num_hits,), higher is better.
        exact: whether they are those of the documents' tokens; False where codes alone are kept, whose scores they are then.

    ``for doc_id, score in hits`` and ``len(hits)`` work too.

    Example:
        >>> hits = Hits(np.array(["fox", "whale"], object), np.array([2.5, 1], np.float32))
        >>> list(hits)
        [('fox', 2.5), ('whale', 1.0)]
    """

    ids: npt.NDArray[Any]
    scores: npt.NDArray[np.float32]
    exact: bool = True

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[tuple[Any, float]]:
        return zip(self.ids.tolist(), self.scores.tolist(), strict=True)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Hits):
            return NotImplemented
        return np.array_equal(self.ids, other.ids) and np.array_equal(self.scores, other.scores)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = [f"{doc_id!r}: {score:.4g}" for doc_id, score in itertools.islice(self, SHOWN)]
        more = ["..."] if len(self) > SHOWN else []
        return f"<Hits of {len(self)}: {', '.join(shown + more)}>" if shown else "<Hits of 0>"

    def _repr_html_(self) -> str:
        rows = [(str(doc_id), f"{score:.4f}") for doc_id, score in self]
        return table(("id", "score"), rows)

    def to_arrow(self) -> pa.Table:
        """Columns ``id`` (int64 or large_string) and ``score`` (float32), best first."""
        kind = pa.int64() if self.ids.dtype.kind in "iu" else pa.large_string()
        return pa.table({"id": pa.array(self.ids, kind), "score": pa.array(self.scores, pa.float32())})
