"""Rows that their codes cannot tell apart, as copies of a document are: which stands for them, and which come after it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

TABLES, BITS = 6, 24  # keys of a row, each the signs of so many random projections: copies share one, nearly always


class EqualRows:
    """Rows as they come, by their codes. Each is the first of its kind, or nearer to one than the codes' own error.

    Those that are nearly equal are found by keys (Charikar, STOC 2002): a sign of a random projection differs between two
    vectors with a chance of their angle over pi. What is found is compared.
    """

    def __init__(self, dim: int) -> None:
        self._dim = dim
        # Without the last coordinate, which the others decide (see reduction.py), and which all rows have large. Of 1 and -1,
        # so that sums of codes are whole numbers, the same on every machine.
        self._projections = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), (max(dim - 1, 1), TABLES * BITS))
        self._tables: list[dict[int, int]] = [{} for _ in range(TABLES)]  # a key, and the place in the lists of its first row
        self._rows: list[int] = []
        self._codes: list[npt.NDArray[np.int8]] = []
        self._squares: list[float] = []
        self._scales: list[float] = []
        self._firsts: list[npt.NDArray[np.int64]] = []  # for each row the one that stands for it, itself for most
        self._num_rows = 0

    def add(self, codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """The next rows, int8 (n, stride) and float32 (n,): whether each is the first of its kind."""
        return self._added(codes, scales, None)

    def known(
        self, codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float32], next_equal: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.bool_]:
        """The next rows, of which is known already which follow each other (``next_equal``, empty where none does)."""
        firsts = np.arange(len(codes))
        for row in np.flatnonzero(next_equal >= 0).tolist():  # ascending, so that each has its own already
            firsts[next_equal[row]] = firsts[row]
        return self._added(codes, scales, firsts)

    def _added(
        self, codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float32], known: npt.NDArray[np.int64] | None
    ) -> npt.NDArray[np.bool_]:
        wide = codes[:, : self._dim].astype(np.float32)
        signs = wide[:, : len(self._projections)] @ self._projections > 0
        keys = np.packbits(signs.reshape(-1, TABLES, BITS), axis=2).astype(np.int64) @ (256 ** np.arange(BITS // 8))
        squares = np.einsum("ij,ij->i", wide, wide, dtype=np.float64) * scales.astype(np.float64) ** 2
        firsts = np.arange(self._num_rows, self._num_rows + len(codes)) if known is None else known + self._num_rows
        for i, own in enumerate(keys.tolist()):
            row = self._num_rows + i
            square, scale = float(squares[i]), float(scales[i])
            if known is None:
                firsts[i] = self._nearest(row, own, codes[i, : self._dim], square, scale)
            if firsts[i] == row:
                self._remember(row, own, codes[i, : self._dim], square, scale)
        self._firsts.append(firsts)
        self._num_rows += len(codes)
        return firsts >= self._num_rows - len(codes) + np.arange(len(codes))

    def _nearest(self, row: int, keys: list[int], codes: npt.NDArray[np.int8], square: float, scale: float) -> int:
        """The row that stands for this one."""
        for place in sorted({table[key] for table, key in zip(self._tables, keys, strict=True) if key in table}):
            product = float(codes.astype(np.int32) @ self._codes[place].astype(np.int32)) * scale * self._scales[place]
            # the mean square of a coordinate's rounding is a twelfth of the step
            if square + self._squares[place] - 2 * product <= self._dim * self._scales[place] ** 2 / 12:
                return self._rows[place]
        return row

    def _remember(self, row: int, keys: list[int], codes: npt.NDArray[np.int8], square: float, scale: float) -> None:
        for table, key in zip(self._tables, keys, strict=True):
            table.setdefault(key, len(self._rows))
        self._rows.append(row)
        self._codes.append(codes)
        self._squares.append(square)
        self._scales.append(scale)

    @property
    def next_equal(self) -> npt.NDArray[np.int32]:
        """int32 (num_rows,): the next row of the same kind, -1 where there is none; empty where no two are of one kind."""
        firsts = np.concatenate([np.empty(0, np.int64), *self._firsts])
        order = np.argsort(firsts, kind="stable")
        same = firsts[order[1:]] == firsts[order[:-1]]
        if not same.any():
            return np.empty(0, np.int32)
        following = np.full(len(firsts), -1, np.int32)
        following[order[:-1][same]] = order[1:][same]
        return following
