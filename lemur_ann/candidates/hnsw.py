"""An HNSW graph: the hnswlib package, searched by L2 distance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hnswlib
import numpy as np

from lemur_ann import _core
from lemur_ann.candidates import Indices, Vectors
from lemur_ann.errors import CorruptIndex


class HnswCandidates:
    """hnswlib with document indices as labels."""

    FILE = "graph.hnsw"

    def __init__(self, graph: hnswlib.Index, deleted: Indices) -> None:
        self._graph = graph
        self._deleted = deleted

    @classmethod
    def create(cls, dim: int, options: dict[str, Any], capacity: int = 0) -> HnswCandidates:
        graph = hnswlib.Index("l2", dim)
        graph.init_index(
            max_elements=max(capacity, 1),
            M=options["M"],
            ef_construction=options["ef_construction"],
            random_seed=options["seed"],
        )
        return cls(graph, np.empty(0, np.int64))

    @property
    def num_rows(self) -> int:
        return int(self._graph.get_current_count())

    def add(self, vectors: Vectors, *, first: int, num_threads: int) -> None:
        needed = first + len(vectors)
        if needed > self._graph.get_max_elements():
            self._graph.resize_index(max(needed, first * 3 // 2))
        self._graph.add_items(vectors, np.arange(first, needed), num_threads=num_threads)  # brings deleted labels back
        self._deleted = self._deleted[self._deleted < first]

    def delete(self, indices: Indices) -> None:
        indices = np.setdiff1d(indices[indices < self.num_rows], self._deleted)
        for index in indices.tolist():
            self._graph.mark_deleted(index)
        self._deleted = np.union1d(self._deleted, indices)

    def search(self, queries: Vectors, num_candidates: int, ef_search: int, *, num_threads: int) -> list[Indices]:
        # hnswlib searches with a beam of max(ef, k). Asking for k = the beam leaves its ef alone, which all threads share.
        left = self.num_rows - len(self._deleted)
        beam = min(max(num_candidates, ef_search), left)
        if beam == 0:
            return [np.empty(0, np.int64) for _ in queries]
        try:
            labels, _ = self._graph.knn_query(queries, k=beam, num_threads=num_threads)
        except RuntimeError:  # some query reached fewer than `beam` documents: parts of the graph are cut off
            return self._scan(queries, num_candidates)
        return list(labels[:, :num_candidates].astype(np.int64))

    def _scan(self, queries: Vectors, num_candidates: int) -> list[Indices]:
        """The same answer without the graph, from the vectors it holds."""
        live = np.setdiff1d(np.arange(self.num_rows, dtype=np.int64), self._deleted)
        products = queries @ self.take(live).T
        return [live[_core.top_k(row, num_candidates)] for row in products]

    def take(self, indices: Indices) -> Vectors:
        if len(indices) == 0:
            return np.empty((0, self._graph.dim), np.float32)
        vectors: Vectors = self._graph.get_items(indices)
        return vectors

    def save(self, folder: Path) -> None:
        self._graph.save_index(str(folder / self.FILE))

    @classmethod
    def load(cls, folder: Path, dim: int, deleted: Indices) -> HnswCandidates:
        graph = hnswlib.Index("l2", dim)
        try:
            graph.load_index(str(folder / cls.FILE))
        except RuntimeError as error:
            raise CorruptIndex(f"{folder / cls.FILE} cannot be read: {error}") from error
        return cls(graph, deleted)  # the file marks them too
