"""A graph of USearch, by inner product: ``candidates="usearch"``, with ``pip install usearch``.

``candidates_options``: ``dtype`` of its vectors ("f16" by itself, "f32", "bf16", "i8"). It takes twice M as its connectivity,
ef_construction and ef_search. Searches with another ef_search wait for each other: it is the index's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from usearch.index import Index

from lemur_ann.candidates import Vectors
from lemur_ann.documents.rows import Rows
from lemur_ann.events import after_fork


class _Graph:
    def __init__(self, index: Any) -> None:
        self.index = index
        self._renew()
        after_fork(self, _Graph._renew)

    def _renew(self) -> None:
        self._turn, self._changing, self._num_searching = threading.Lock(), threading.Condition(), 0

    @contextmanager
    def searching(self, beam: int) -> Iterator[Any]:
        """The index with this beam, for as long as the block takes: beside others with the same, after those with another."""
        with self._turn, self._changing:  # who came first goes first
            while self._num_searching and self.index.expansion_search != beam:
                self._changing.wait()
            if self.index.expansion_search != beam:
                self.index.expansion_search = beam
            self._num_searching += 1
        try:
            yield self.index
        finally:
            with self._changing:
                self._num_searching -= 1
                self._changing.notify_all()


def build(vectors: Vectors, M: int, ef_construction: int, own: dict[str, Any], num_threads: int) -> Any:
    """See :class:`~lemur_ann.candidates.library.Library`."""
    index = Index(
        ndim=vectors.shape[1],
        metric="ip",
        dtype=own.get("dtype", "f16"),
        connectivity=2 * M,
        expansion_add=ef_construction,
    )
    index.add(np.arange(len(vectors), dtype=np.uint64), vectors / _norm(vectors), threads=num_threads)
    return _Graph(index)


def _norm(vectors: Vectors) -> float:
    """Of all of them: USearch's small types hold components up to 1."""
    return float(np.linalg.norm(vectors[0])) if len(vectors) else 1.0


def find(index: Any, queries: Vectors, count: int, beam: int, own: dict[str, Any], num_threads: int) -> Rows:
    """See :class:`~lemur_ann.candidates.library.Library`."""
    norms = np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-30)
    with index.searching(beam) as graph:
        matches = graph.search(queries / norms, count, threads=num_threads)
    rows = np.full((len(queries), count), -1, np.int64)
    if len(queries) == 1:
        rows[0, : len(matches)] = matches.keys
        return rows
    for row, keys, found in zip(rows, matches.keys, matches.counts, strict=True):
        row[:found] = keys[:found]
    return rows


def write(index: Any, path: Path) -> None:
    """See :class:`~lemur_ann.candidates.library.Library`."""
    index.index.save(str(path))


def read(path: Path, dim: int) -> Any:
    """See :class:`~lemur_ann.candidates.library.Library`."""
    index = Index.restore(str(path), view=True)
    if index is None or index.ndim != dim:
        raise ValueError(f"it is no graph of vectors of dim {dim}")
    return _Graph(index)
