"""A scan of all vectors: the slow candidate index that misses nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lemur_ann import _core, storage
from lemur_ann.candidates import Indices, Vectors

QUERIES_PER_SCAN = 64


class ExactCandidates:
    """All vectors in one matrix; a matrix product finds the candidates."""

    FILE = "vectors.safetensors"

    def __init__(self, vectors: Vectors, deleted: Indices) -> None:
        self._parts = [vectors]
        self._deleted = deleted

    @classmethod
    def create(cls, dim: int, options: dict[str, Any], capacity: int = 0, directory: str | None = None) -> ExactCandidates:
        return cls(np.empty((0, dim), np.float32), np.empty(0, np.int64))

    @property
    def vectors(self) -> Vectors:
        """float32 (num_documents, dim)."""
        if len(self._parts) > 1:
            self._parts = [np.concatenate(self._parts)]
        return self._parts[0]

    @property
    def num_rows(self) -> int:
        return sum(map(len, self._parts))

    def add(self, vectors: Vectors, *, first: int, num_threads: int) -> None:
        self._parts = [*self._parts, vectors] if self.num_rows == first else [self.vectors[:first], vectors]
        self._deleted = self._deleted[self._deleted < first]

    def finish(self) -> None:
        pass

    def delete(self, indices: Indices) -> None:
        self._deleted = np.union1d(self._deleted, indices[indices < self.num_rows])

    def search(self, queries: Vectors, num_candidates: int, ef_search: int, *, num_threads: int) -> list[Indices]:
        found: list[Indices] = []
        for begin in range(0, len(queries), QUERIES_PER_SCAN):
            columns = np.ascontiguousarray(queries[begin : begin + QUERIES_PER_SCAN].T)
            products = _core.products(self.vectors, columns, num_threads).astype(np.float32)
            products[self._deleted] = -np.inf
            found += [_core.top_k(row, num_candidates) for row in np.ascontiguousarray(products.T)]
        return found

    def take(self, indices: Indices) -> Vectors:
        return self.vectors[indices]

    def save(self, folder: Path) -> None:
        storage.write_arrays(folder / self.FILE, {"vectors": self.vectors})

    @classmethod
    def load(cls, folder: Path, dim: int, deleted: Indices) -> ExactCandidates:
        return cls(storage.read_arrays(folder / cls.FILE)["vectors"], deleted)
