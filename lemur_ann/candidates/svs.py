"""A Vamana graph of Intel's Scalable Vector Search, by L2: ``candidates="svs"``, with ``pip install scalable-vs`` (x86-64).

``candidates_options``: ``alpha`` (1.2), ``dtype`` of its vectors ("float32" by itself, or "float16"). It takes 4 M as its
degree, twice ef_construction as its window, and ef_search. Searches wait for each other: their settings are the index's.
"""

from __future__ import annotations

import ctypes
import tarfile
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import svs

from lemur_ann.candidates import Vectors
from lemur_ann.documents.rows import Rows
from lemur_ann.events import after_fork

PARTS = ("config", "graph", "data")  # the folders that it saves


class _Graph:
    def __init__(self, index: Any, dtype: str) -> None:
        self.index, self.dtype, self.lock = index, dtype, threading.Lock()
        self.has_threads = True
        after_fork(self, _Graph._lose_threads)

    def _lose_threads(self) -> None:
        """In a forked child: to search, and to end, the index would wait for its threads, which are the parent's."""
        self.lock, self.has_threads = threading.Lock(), False
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.index))  # so it never ends


def build(vectors: Vectors, M: int, ef_construction: int, own: dict[str, Any], num_threads: int) -> Any:
    """See :class:`~lemur_ann.candidates.library.Library`."""
    dtype = own.get("dtype", "float32")
    parameters = svs.VamanaBuildParameters(graph_max_degree=4 * M, window_size=2 * ef_construction, alpha=own.get("alpha", 1.2))
    index = svs.Vamana.build(parameters, vectors.astype(dtype), svs.DistanceType.L2, num_threads=num_threads)
    return _Graph(index, dtype)


def find(index: Any, queries: Vectors, count: int, beam: int, own: dict[str, Any], num_threads: int) -> Rows:
    """See :class:`~lemur_ann.candidates.library.Library`."""
    if not index.has_threads:
        raise RuntimeError(
            "a graph of scalable-vs cannot be searched in a forked process, which does not have its threads: open or load the "
            "index in that process, or start it by spawn"
        )
    with index.lock:
        if index.index.num_threads != num_threads:
            index.index.num_threads = num_threads
        if index.index.search_window_size != beam:
            index.index.search_window_size = beam
        rows: Rows = index.index.search(np.ascontiguousarray(queries), count)[0].astype(np.int64)
    return rows


def write(index: Any, path: Path) -> None:
    """See :class:`~lemur_ann.candidates.library.Library`."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".building-") as folder:
        folders = [Path(folder) / part for part in PARTS]
        with index.lock:
            index.index.save(*map(str, folders))
        with tarfile.open(path, "w") as archive:
            for part in folders:
                archive.add(part, part.name)


def read(path: Path, dim: int) -> Any:
    """See :class:`~lemur_ann.candidates.library.Library`."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")
        config, graph, data = (str(Path(folder) / part) for part in PARTS)
        dtype = "float16" if "float16" in (Path(data) / "svs_config.toml").read_text() else "float32"
        loader = svs.VectorDataLoader(data, getattr(svs.DataType, dtype), dims=dim)
        index = svs.Vamana(config, svs.GraphLoader(graph), loader, svs.DistanceType.L2, num_threads=1)
    return _Graph(index, dtype)
