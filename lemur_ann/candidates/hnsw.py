"""An HNSW graph: hnswlib builds it, by L2 distance; our own search reads its links, with the vectors as int8 codes.

The search works on a frozen copy of the links, with the codes a third of the size of hnswlib's graph. Documents that came since
the copy was made are scanned, which for a few thousand is as fast; :meth:`HnswCandidates.finish` makes a new copy where there
are more. So a search never meets a graph that is being changed, and a process that only searches never loads hnswlib's.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import hnswlib
import numpy as np
import numpy.typing as npt

from lemur_ann import _core, storage
from lemur_ann.candidates import Indices, Vectors
from lemur_ann.errors import CorruptIndex

MIN_SCANNED = 1024  # fewer documents without links never make a new copy
MAX_SCANNED = 16_384  # more do, which a search scans in about 0.1 ms, unless
SMALL_SHARE, LARGE_SHARE = 0.125, 0.01  # they are less than this of those with links; in small graphs, more than that is enough
ROWS_PER_BLOCK = 16_384
HEADER = np.dtype(
    [
        *((name, "<u8") for name in ("offset", "room", "count", "node_bytes", "label_offset", "vector_offset")),
        *((name, "<i4") for name in ("highest_level", "first_node")),
        *((name, kind) for name, kind in (("M", "<u8"), ("degree", "<u8"), ("M_again", "<u8"), ("mult", "<f8"), ("ef", "<u8"))),
    ]
)
FILES_BY_DESCRIPTOR = Path("/dev/fd")


class HnswCandidates:
    """The graph, with document indices as labels, and what searches read of it."""

    FILE = "graph.hnsw"
    FROZEN = "graph.safetensors"

    def __init__(self, dim: int, builder: hnswlib.Index | BinaryIO, capacity: int = 0, directory: str | None = None) -> None:
        self._dim = dim
        self._directory = directory
        self._builder = builder  # or, until it is needed, the open file to load it from
        self._deleted = np.empty(0, np.int64)
        self._codes = np.empty((capacity, _core.int8_stride(dim)), np.int8)  # with room for more rows than there are
        self._scales = np.empty(capacity, np.float32)
        self._links = np.empty((0, 1), np.int32)
        self._entries = np.empty(0, np.int32)
        self._publish(0)

    @classmethod
    def create(cls, dim: int, options: dict[str, Any], capacity: int = 0, directory: str | None = None) -> HnswCandidates:
        builder = hnswlib.Index("l2", dim)
        builder.init_index(
            max_elements=max(capacity, 1),
            M=options["M"],
            ef_construction=options["ef_construction"],
            random_seed=options["seed"],
        )
        return cls(dim, builder, capacity, directory)

    @property
    def num_rows(self) -> int:
        return len(self._published[0])

    def _publish(self, num_rows: int) -> None:
        """Let searches see so many rows. One assignment, so that a search in another thread sees all of it or nothing."""
        excluded = None
        if len(self._deleted):
            excluded = np.zeros(num_rows, dtype=bool)
            excluded[self._deleted] = True
        graph = _core.CodedGraph(self._codes[:num_rows], self._scales[:num_rows], self._dim, self._links, self._entries)
        self._published = (graph, excluded)

    def add(self, vectors: Vectors, *, first: int, num_threads: int) -> None:
        builder = self._loaded()
        needed = first + len(vectors)
        if needed > builder.get_max_elements():
            builder.resize_index(max(needed, first * 3 // 2))
        builder.add_items(vectors, np.arange(first, needed), num_threads=num_threads)  # brings deleted labels back
        if needed > len(self._codes):
            room = max(needed, len(self._codes) * 3 // 2)
            codes, scales = np.empty((room, self._codes.shape[1]), np.int8), np.empty(room, np.float32)
            codes[:first], scales[:first] = self._codes[:first], self._scales[:first]
            self._codes, self._scales = codes, scales
        self._codes[first:needed], self._scales[first:needed] = _core.int8_codes(vectors, num_threads)
        self._deleted = self._deleted[self._deleted < first]
        if first < len(self._links):
            self._freeze(needed)
        self._publish(needed)

    def finish(self) -> None:
        num_scanned = self.num_rows - len(self._links)
        linked = len(self._links)
        if num_scanned > max(min(linked * SMALL_SHARE, MAX_SCANNED), linked * LARGE_SHARE, MIN_SCANNED):
            self._freeze(self.num_rows)
            self._publish(self.num_rows)

    def _freeze(self, num_rows: int) -> None:
        """Copy the links of the first ``num_rows`` documents, by way of hnswlib's file, which then stands for its graph."""
        with tempfile.TemporaryDirectory(dir=self._directory) as folder:
            path = Path(folder) / self.FILE
            _save(self._loaded(), path)
            if FILES_BY_DESCRIPTOR.exists():  # an open file needs no name
                self._builder = file = path.open("rb")  # hnswlib's memory is free before the links take theirs
                weakref.finalize(self, file.close)
            self._links, self._entries = read_links(path, self._dim, num_rows)

    def delete(self, indices: Indices) -> None:
        indices = np.setdiff1d(indices[indices < self.num_rows], self._deleted)
        self._deleted = np.union1d(self._deleted, indices)
        if isinstance(self._builder, hnswlib.Index):
            _mark_deleted(self._builder, indices)
        self._publish(self.num_rows)

    def search(self, queries: Vectors, num_candidates: int, ef_search: int, *, num_threads: int) -> list[Indices]:
        graph, excluded = self._published
        return list(graph.search(queries, excluded, num_candidates, ef_search, num_threads))

    def take(self, indices: Indices) -> Vectors:
        if len(indices) == 0:
            return np.empty((0, self._dim), np.float32)
        vectors: Vectors = self._loaded().get_items(indices)
        return vectors

    def save(self, folder: Path) -> None:
        if isinstance(self._builder, hnswlib.Index):
            _save(self._builder, folder / self.FILE)
        else:
            self._builder.seek(0)
            with (folder / self.FILE).open("wb") as target:
                shutil.copyfileobj(self._builder, target)
        rows = self.num_rows
        arrays: dict[str, npt.NDArray[Any]]
        arrays = {"codes": self._codes[:rows], "scales": self._scales[:rows], "links": self._links, "entries": self._entries}
        storage.write_arrays(folder / self.FROZEN, arrays)

    @classmethod
    def load(cls, folder: Path, dim: int, deleted: Indices) -> HnswCandidates:
        file = (folder / cls.FILE).open("rb")
        index = cls(dim, file)
        weakref.finalize(index, file.close)
        index._deleted = deleted
        if (folder / cls.FROZEN).exists():
            arrays = storage.read_arrays(folder / cls.FROZEN)
            index._codes, index._scales = arrays["codes"], arrays["scales"]
            index._links, index._entries = arrays["links"], arrays["entries"]
            if not FILES_BY_DESCRIPTOR.exists():  # the file could be another one by the time it is needed
                index._loaded()
            index._publish(len(index._codes))
            return index
        builder = index._loaded()  # formats 1 and 2
        rows = builder.get_current_count()
        vectors = np.zeros((rows, dim), np.float32)
        live = np.setdiff1d(np.arange(rows), deleted)
        vectors[live] = index.take(live)
        index._codes, index._scales = _core.int8_codes(vectors, 1)
        index._freeze(rows)
        index._publish(rows)
        return index

    def _loaded(self) -> hnswlib.Index:
        if isinstance(self._builder, hnswlib.Index):
            return self._builder
        file = self._builder
        builder = hnswlib.Index("l2", self._dim)
        # By its descriptor: a save may have put another index at the path since.
        path = FILES_BY_DESCRIPTOR / str(file.fileno()) if FILES_BY_DESCRIPTOR.exists() else Path(file.name)
        try:
            builder.load_index(str(path))
        except RuntimeError as error:
            raise CorruptIndex(f"{file.name} cannot be read: {error}") from error
        file.close()
        _mark_deleted(builder, self._deleted)
        self._builder = builder
        return builder


def read_links(path: Path, dim: int, num_rows: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """The neighbours of the first ``num_rows`` labels, (num_rows, degree), -1 after the last; and where searches may begin.

    A file of hnswlib is a header, one block a node (the number of its links, room for them, its vector, its label), and for
    each node the size of its links on higher levels, and these.
    """
    with path.open("rb") as file:
        header = np.frombuffer(file.read(HEADER.itemsize), HEADER)[0]
        count, size, degree = (int(header[name]) for name in ("count", "node_bytes", "degree"))
        blocks = [(begin, min(begin + ROWS_PER_BLOCK, count)) for begin in range(0, count, ROWS_PER_BLOCK)]

        def nodes(begin: int, end: int) -> npt.NDArray[np.uint8]:
            file.seek(HEADER.itemsize + begin * size)
            return np.frombuffer(file.read((end - begin) * size), np.uint8).reshape(-1, size)

        def column(block: npt.NDArray[np.uint8], offset: int, width: int, kind: type) -> npt.NDArray[Any]:
            return block[:, offset : offset + width].copy().view(kind)

        rows, is_far = np.empty(count, np.int32), np.empty(count, bool)
        for begin, end in blocks:
            block = nodes(begin, end)
            labels = column(block, int(header["label_offset"]), 8, np.int64)[:, 0]
            rows[begin:end] = np.where(labels < num_rows, labels, -1)  # a broken-off call may have left others
            # Vectors beyond the radius (reduction.py) are near nobody: few links lead to them, and many queries want them.
            is_far[begin:end] = column(block, int(header["vector_offset"]) + 4 * (dim - 1), 4, np.float32)[:, 0] == 0
        links = np.full((num_rows, degree), -1, np.int32)
        for begin, end in blocks:
            block, own = nodes(begin, end), rows[begin:end]
            there = np.arange(degree) < column(block, 0, 2, np.uint16)
            found = np.where(there, rows[np.where(there, column(block, 4, 4 * degree, np.int32), 0)], -1)
            links[own[own >= 0]] = _without_gaps(found)[own >= 0]
        file.seek(HEADER.itemsize + count * size)
        levels = _levels(file.read(), count)
    few, level = 2 * int(count**0.5), 0  # so many entries, about, are looked at by every search
    while level < levels.max(initial=0) and np.count_nonzero(levels >= level) > few:
        level += 1
    chosen = rows[(levels >= level) | is_far]
    return links, np.sort(chosen[chosen >= 0])


def _levels(higher_links: bytes, count: int) -> npt.NDArray[np.int64]:
    """How many bytes of links each node has above the lowest level: more on more levels."""
    words = np.frombuffer(higher_links, np.uint32)
    sizes = np.empty(count, np.int64)
    place = 0
    for node in range(count):
        sizes[node] = words[place]
        place += 1 + int(sizes[node]) // 4
    _, levels = np.unique(sizes, return_inverse=True)
    return levels.astype(np.int64)


def _save(builder: hnswlib.Index, path: Path) -> None:
    """hnswlib does not notice when there is no room for its file."""
    builder.save_index(str(path))
    size, expected = path.stat().st_size, builder.index_file_size()
    if size != expected:
        raise OSError(errno.ENOSPC, f"the graph takes {expected:,} bytes and {size:,} were written: no room left", str(path))


def _mark_deleted(builder: hnswlib.Index, indices: Indices) -> None:
    for index in indices.tolist():
        with suppress(RuntimeError):  # it is marked in the file already
            builder.mark_deleted(index)


def _without_gaps(links: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """The same links of each row, those that are -1 last."""
    gaps = links < 0
    if not np.any(gaps[:, :-1] & ~gaps[:, 1:]):
        return links
    return np.take_along_axis(links, np.argsort(gaps, axis=1, kind="stable"), axis=1)
