"""An index of FAISS, by inner product: ``candidates="faiss"``, with ``pip install faiss-cpu``.

``candidates_options``: ``factory``, a string for ``faiss.index_factory`` ("HNSW32", with twice the option M, by itself;
"IVF1024,SQ8" for example), and ``nprobe`` for those that have lists (16). HNSW graphs take ef_construction and ef_search.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss  # type: ignore[import-untyped,unused-ignore]
import numpy as np

from lemur_ann.candidates import Vectors
from lemur_ann.documents.rows import Rows
from lemur_ann.events import lost_threads


def build(vectors: Vectors, M: int, ef_construction: int, own: dict[str, Any], num_threads: int) -> Any:
    """See :class:`~lemur_ann.candidates.library.Library`."""
    index = faiss.index_factory(vectors.shape[1], own.get("factory", f"HNSW{2 * M}"), faiss.METRIC_INNER_PRODUCT)
    if hasattr(index, "hnsw"):
        index.hnsw.efConstruction = ef_construction
    with _threads(num_threads):
        if not index.is_trained:
            index.train(vectors)
        index.add(vectors)
    return index


def find(index: Any, queries: Vectors, count: int, beam: int, own: dict[str, Any], num_threads: int) -> Rows:
    """See :class:`~lemur_ann.candidates.library.Library`."""
    params = None
    if hasattr(index, "hnsw"):
        params = faiss.SearchParametersHNSW(efSearch=beam)  # type: ignore[attr-defined,unused-ignore]
    elif hasattr(index, "nprobe"):
        params = faiss.SearchParametersIVF(nprobe=own.get("nprobe", 16))  # type: ignore[call-arg,unused-ignore]
    with _threads(num_threads):
        rows: Rows = index.search(np.ascontiguousarray(queries), count, params=params)[1]
    return rows


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """FAISS uses so many threads, and afterwards as many as its other users in this thread have asked for."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1 if lost_threads("faiss") else count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def write(index: Any, path: Path) -> None:
    """See :class:`~lemur_ann.candidates.library.Library`."""
    faiss.write_index(index, str(path))


def read(path: Path, dim: int) -> Any:
    """See :class:`~lemur_ann.candidates.library.Library`."""
    return faiss.read_index(str(path))
