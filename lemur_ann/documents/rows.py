"""Sets of rows: documents by their number in a snapshot, deleted ones included."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RowSet:
    """Some of the rows: ``mask`` (num_rows,), which nobody changes, and how many it holds."""

    mask: Mask
    count: int

    @classmethod
    def of(cls, mask: Mask) -> RowSet:
        """The rows where ``mask`` is true; the array is kept."""
        mask.flags.writeable = False
        return cls(mask, int(np.count_nonzero(mask)))

    @classmethod
    def none(cls, num_rows: int) -> RowSet:
        """No rows of so many."""
        return cls.of(np.zeros(num_rows, np.bool_))

    def __len__(self) -> int:
        return len(self.mask)

    @property
    def rows(self) -> Rows:
        """Ascending."""
        return np.flatnonzero(self.mask)

    @property
    def others(self) -> Rows:
        """The rows that are not in the set, ascending."""
        return np.flatnonzero(~self.mask)

    def with_rows(self, rows: Rows) -> RowSet:
        """These and some more."""
        if len(rows) == 0:
            return self
        mask = self.mask.copy()
        mask[rows] = True
        return RowSet.of(mask)

    def extended(self, num_rows: int) -> RowSet:
        """The same rows among more."""
        if num_rows == len(self.mask):
            return self
        mask = np.zeros(num_rows, np.bool_)
        mask[: len(self.mask)] = self.mask
        return RowSet.of(mask)


def runs(rows: Rows) -> list[Rows]:
    """Ascending rows, those that are neighbours together."""
    return np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1) if len(rows) else []
