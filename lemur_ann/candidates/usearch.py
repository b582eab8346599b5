"""A graph of USearch, by inner product: ``candidates="usearch"``, with ``pip install usearch``.

``candidates_options``: ``dtype`` of its vectors ("f16" by itself, "f32", "bf16", "i8"). It takes twice M as its connectivity,
ef_construction and ef_search.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from usearch.index import Index

from lemur_ann.candidates import Vectors
from lemur_ann.documents.rows import Rows


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
    return index


def _norm(vectors: Vectors) -> float:
    """Of all of them: USearch's small types hold components up to 1."""
    return float(np.linalg.norm(vectors[0])) if len(vectors) else 1.0


def find(index: Any, queries: Vectors, count: int, beam: int, own: dict[str, Any], num_threads: int) -> Rows:
    """See :class:`~lemur_ann.candidates.library.Library`."""
    if index.expansion_search != beam:
        index.expansion_search = beam
    norms = np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-30)
    matches = index.search(queries / norms, count, threads=num_threads)
    rows = np.full((len(queries), count), -1, np.int64)
    if len(queries) == 1:
        rows[0, : len(matches)] = matches.keys
        return rows
    for row, keys, found in zip(rows, matches.keys, matches.counts, strict=True):
        row[:found] = keys[:found]
    return rows


def write(index: Any, path: Path) -> None:
    """See :class:`~lemur_ann.candidates.library.Library`."""
    index.save(str(path))


def read(path: Path, dim: int) -> Any:
    """See :class:`~lemur_ann.candidates.library.Library`."""
    index = Index.restore(str(path), view=True)
    if index is None or index.ndim != dim:
        raise ValueError(f"it is no graph of vectors of dim {dim}")
    return index
