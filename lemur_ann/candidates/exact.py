"""A scan of all vectors: the slow candidate index that misses nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from lemur_ann import _core
from lemur_ann.candidates import Kind, Structure, Vectors, joined, take_from
from lemur_ann.documents.rows import Rows, RowSet
from lemur_ann.errors import CorruptIndex

QUERIES_PER_SCAN = 64


class ExactCandidates:
    """All vectors, which a matrix product compares with the queries."""

    structure: Structure | None = None

    def __init__(self, dim: int, parts: list[Vectors]) -> None:
        self._dim = dim
        self.parts = parts

    @property
    def vectors(self) -> Vectors:
        """All of them, (num_rows, dim)."""
        return take_from(self.parts, self._dim, np.arange(self.num_rows))

    @property
    def num_rows(self) -> int:
        return sum(map(len, self.parts))

    @property
    def arrays(self) -> list[npt.NDArray[Any]]:
        return list(self.parts)

    def extended(self, vectors: Vectors, *, num_threads: int) -> ExactCandidates:
        return ExactCandidates(self._dim, joined(self.parts, vectors)) if len(vectors) else self

    def search(
        self, queries: Vectors, num_candidates: int, ef_search: int, *, num_threads: int, excluded: RowSet | None = None
    ) -> list[Rows]:
        if self.num_rows == 0:
            return [np.empty(0, np.int64) for _ in queries]
        found: list[Rows] = []
        for begin in range(0, len(queries), QUERIES_PER_SCAN):
            columns = _core.Columns(np.ascontiguousarray(queries[begin : begin + QUERIES_PER_SCAN].T), num_threads)
            products = np.concatenate([_core.products(part, columns, num_threads).astype(np.float32) for part in self.parts])
            if excluded is not None:
                products[excluded.mask] = -np.inf
            found += [_core.top_k(row, num_candidates) for row in np.ascontiguousarray(products.T)]
        return found

    def check(self) -> None:
        pass

    def take(self, rows: Rows) -> Vectors:
        return take_from(self.parts, self._dim, np.asarray(rows))


class ExactBuilder:
    """Keeps the blocks it is given."""

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._blocks: list[Vectors] = []

    def add(self, vectors: Vectors, *, num_threads: int) -> None:
        self._blocks.append(vectors)

    def finish(self) -> ExactCandidates:
        return ExactCandidates(self._dim, [np.concatenate(self._blocks)] if self._blocks else [])


class ExactKind(Kind):
    """A scan, which has no structure to save."""

    files: ClassVar[dict[str, str]] = {}

    def builder(self, dim: int, options: dict[str, Any], capacity: int = 0, directory: str | None = None) -> ExactBuilder:
        return ExactBuilder(dim)

    def load_structure(self, paths: dict[str, Path], dim: int, num_rows: int) -> Structure:
        raise CorruptIndex(f"{', '.join(map(str, paths.values()))}: a scan has no structure")

    def assemble(
        self, dim: int, structure: Structure | None, parts: list[Vectors], options: dict[str, Any], directory: str | None = None
    ) -> ExactCandidates:
        return ExactCandidates(dim, parts)
