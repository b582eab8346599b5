"""An HNSW graph: hnswlib builds it, by L2 distance; our own search reads its links, with the vectors as int8 codes.

The search works on a frozen copy of the links, a fifth of the graph's size with the codes. Documents that came since it was made
are scanned, which for a few thousand is as fast; :meth:`HnswCandidates.finish` makes a new copy where there are more. So
a search never meets a graph that is being changed, and a process that only searches never loads hnswlib's.
"""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path
from typing import Any, BinaryIO

import hnswlib
import numpy as np
import numpy.typing as npt

from lemur_ann import _core, storage
from lemur_ann.candidates import Indices, Vectors
from lemur_ann.errors import CorruptIndex

MAX_SCANNED = 16_384  # documents without links that a search scans, about 0.1 ms
MIN_SCANNED = 1024  # fewer never make a new copy of the links
MAX_SCANNED_SHARE = 0.125  # of those with links
ROWS_PER_BLOCK = 65_536
FILES_BY_DESCRIPTOR = Path("/dev/fd")


class HnswCandidates:
    """The graph, with document indices as labels, and what searches read of it."""

    FILE = "graph.hnsw"
    FROZEN = "graph.safetensors"

    def __init__(self, dim: int, builder: hnswlib.Index | BinaryIO, capacity: int = 0) -> None:
        self._dim = dim
        self._builder = builder  # or, until it is needed, the open file to load it from
        self._deleted = np.empty(0, np.int64)
        self._codes = np.empty((capacity, _core.int8_stride(dim)), np.int8)  # with room for more rows than there are
        self._scales = np.empty(capacity, np.float32)
        self._links = np.empty((0, 1), np.int32)
        self._entries = np.empty(0, np.int32)
        self._publish(0)

    @classmethod
    def create(cls, dim: int, options: dict[str, Any], capacity: int = 0) -> HnswCandidates:
        builder = hnswlib.Index("l2", dim)
        builder.init_index(
            max_elements=max(capacity, 1),
            M=options["M"],
            ef_construction=options["ef_construction"],
            random_seed=options["seed"],
        )
        return cls(dim, builder, capacity)

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
        if num_scanned > np.clip(len(self._links) * MAX_SCANNED_SHARE, MIN_SCANNED, MAX_SCANNED):
            self._freeze(self.num_rows)
            self._publish(self.num_rows)

    def _freeze(self, num_rows: int) -> None:
        """Copy the links of the first ``num_rows`` documents; hnswlib hands out its whole state, a copy of it, for a while."""
        state = self._loaded().__getstate__()[0]
        count, degree = state["cur_element_count"], state["max_M0"]
        nodes = state["data_level0"].reshape(-1, state["size_data_per_element"])[:count]
        labels = nodes[:, state["label_offset"] :][:, :8].copy().view(np.int64)[:, 0]
        rows = np.where(labels < num_rows, labels, -1).astype(np.int32)  # a broken-off call may have left others
        links = np.full((num_rows, degree), -1, np.int32)
        for begin in range(0, count, ROWS_PER_BLOCK):
            block = nodes[begin : begin + ROWS_PER_BLOCK]
            num_links = block[:, :2].copy().view(np.uint16)
            neighbours = block[:, 4 : 4 + 4 * degree].copy().view(np.int32)
            there = np.arange(degree) < num_links
            found = np.where(there, rows[np.where(there, neighbours, 0)], -1)
            own = rows[begin : begin + ROWS_PER_BLOCK]
            links[own[own >= 0]] = _without_gaps(found)[own >= 0]
        levels = state["element_levels"][:count]
        few, level = 2 * int(count**0.5), 0  # so many entries, about, are looked at by every search
        while level < levels.max() and np.count_nonzero(levels >= level) > few:
            level += 1
        # Vectors beyond the radius (reduction.py) are near nobody, so that few links lead to them, and the best of many queries.
        last = nodes[:, state["offset_data"] + 4 * (self._dim - 1) :][:, :4].copy().view(np.float32)[:, 0]
        chosen = rows[(levels >= level) | (last == 0)]
        self._links, self._entries = links, np.sort(chosen[chosen >= 0])

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
            self._builder.save_index(str(folder / self.FILE))
        else:
            self._builder.seek(0)
            with (folder / self.FILE).open("wb") as target:
                shutil.copyfileobj(self._builder, target)
        rows = self.num_rows
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


def _mark_deleted(builder: hnswlib.Index, indices: Indices) -> None:
    for index in indices.tolist():
        try:
            builder.mark_deleted(index)
        except RuntimeError:  # it is marked in the file already
            continue


def _without_gaps(links: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """The same links of each row, those that are -1 last."""
    gaps = links < 0
    if not np.any(gaps[:, :-1] & ~gaps[:, 1:]):
        return links
    return np.take_along_axis(links, np.argsort(gaps, axis=1, kind="stable"), axis=1)
