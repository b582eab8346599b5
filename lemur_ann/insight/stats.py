"""What an index takes in memory and on disk, by part."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lemur_ann.documents.coded_store import CodedStore
from lemur_ann.searching.snapshot import Snapshot

MAPS, PAGEMAP = Path("/proc/self/maps"), Path("/proc/self/pagemap")


@dataclass(frozen=True)
class Part:
    """A part of an index, in bytes.

    Attributes:
        size: of all of it.
        mapped: of that, what is in mapped files and is read when it is first used; the rest is in memory.
        resident: what of ``size`` is in memory now. The system may take back what is mapped at any time.

    The last two are asked of the operating system, and None where that is not Linux.
    """

    size: int
    mapped: int | None
    resident: int | None


@dataclass(frozen=True)
class Stats:
    """What :meth:`lemur_ann.LemurIndex.stats` found.

    Attributes:
        num_documents, num_deleted, num_tokens: documents, those deleted and not yet compacted away, and tokens of both.
        num_recent, num_unfamiliar: of a learned map, the documents that came since, and those of them that are unlike what it
            learned from (learning/familiarity.py); deleted ones included.
        parts: by name: tokens, token codes, candidates (codes, links and vectors), learned map, ids, metadata.
    """

    num_documents: int
    num_deleted: int
    num_tokens: int
    parts: dict[str, Part]
    num_recent: int = 0
    num_unfamiliar: int = 0

    @property
    def resident(self) -> int | None:
        """Bytes in memory now, of all parts."""
        known = [part.resident for part in self.parts.values()]
        return None if None in known else sum(r for r in known if r is not None)

    def __str__(self) -> str:
        lines = [f"{self.num_documents:,} documents, {self.num_deleted:,} deleted, {self.num_tokens:,} tokens"]
        for name, part in self.parts.items():
            mapped = "" if part.mapped is None else f", {part.mapped / 1e6:,.1f} MB of it mapped"
            resident = "" if part.resident is None else f", {part.resident / 1e6:,.1f} MB in memory"
            lines.append(f"{name}: {part.size / 1e6:,.1f} MB{mapped}{resident}")
        if self.num_unfamiliar:
            share = f"{self.num_recent:,} documents, {self.num_unfamiliar:,} of them unlike what it knows"
            lines.append(f"since the map was learned: {share}")
        return "\n".join(lines)


def stats_of(snapshot: Snapshot) -> Stats:
    """The parts of a snapshot."""
    memory, learned = _Memory(), snapshot.learned
    more = {"ids": snapshot.ids.size_of_rows, "learned map": 0 if learned is None else learned.encoder.packed_bytes}
    parts = {name: memory.part(arrays, more.get(name, 0)) for name, arrays in arrays_by_part(snapshot).items()}
    recent = (0, 0) if learned is None else (snapshot.num_rows - learned.num_rows, learned.num_unfamiliar)
    return Stats(snapshot.num_documents, snapshot.deleted.count, snapshot.store.num_tokens, parts, *recent)


def arrays_by_part(snapshot: Snapshot) -> dict[str, list[npt.NDArray[Any]]]:
    """What the parts of a snapshot consist of, by the names of :class:`Stats`."""
    chunks, learned = snapshot.store.chunks, snapshot.learned
    parts: dict[str, list[npt.NDArray[Any]]] = {}
    if not isinstance(snapshot.store, CodedStore):
        parts["tokens"] = [array for chunk in chunks for array in (chunk.tokens, chunk.offsets)]
    codes: list[npt.NDArray[Any]] = [array for chunk in chunks if chunk.codes is not None for array in chunk.codes]
    look = None if learned is None else learned.look
    codes += [array for part in look.parts for array in part.small or () if array is not None] if look is not None else []
    if codes:
        parts["token codes"] = codes
    if learned is not None:
        parts["candidates"] = list(learned.candidates.arrays)
        if look is not None:
            parts["token centroids"] = [array for part in look.parts for array in (part.ids, part.offsets)]
        parts["learned map"] = list(learned.encoder.arrays().values())
    parts["ids"] = _buffers(snapshot.ids.column.array)
    if snapshot.metadata is not None:
        parts["metadata"] = [b for column in snapshot.metadata.columns for b in _buffers(column)]
    return parts


def _buffers(column: pa.ChunkedArray) -> list[npt.NDArray[Any]]:
    return [np.frombuffer(b, np.uint8) for chunk in column.chunks for b in chunk.buffers() if b is not None and b.size]


class MappedFiles:
    """Which addresses of this process are mapped files, as Linux tells it."""

    def __init__(self) -> None:
        self._begins, self._ends = np.empty(0, np.uint64), np.empty(0, np.uint64)
        self.are_known = MAPS.exists()
        if self.are_known:
            lines = [line.split() for line in MAPS.read_text().splitlines()]
            ranges = [line[0].split("-") for line in lines if line[4] != "0"]  # which have an inode
            self._begins, self._ends = (np.array([int(r[i], 16) for r in ranges], np.uint64) for i in (0, 1))

    def have(self, array: npt.NDArray[Any]) -> bool:
        """Whether an array without gaps lies in one; where the system does not tell, any may."""
        if not self.are_known:
            return array.nbytes > 0
        address = array.__array_interface__["data"][0]
        place = int(np.searchsorted(self._begins, address, side="right")) - 1
        return bool(array.nbytes and place >= 0 and address < self._ends[place])


class _Memory:
    """What of arrays is in mapped files, and which pages of this process are in memory, as Linux tells it."""

    def __init__(self) -> None:
        self._page, self._files = mmap.PAGESIZE, MappedFiles()
        self._is_known = self._files.are_known and PAGEMAP.exists()

    def part(self, arrays: list[npt.NDArray[Any]], more: int = 0) -> Part:
        """Of arrays without gaps, and ``more`` bytes that lie in memory elsewhere."""
        size = mapped = resident = more
        mapped -= more
        for array in arrays:
            size += array.nbytes
            if array.nbytes == 0:
                continue
            address = array.__array_interface__["data"][0]
            if self._is_known:
                mapped += array.nbytes * self._files.have(array)
                resident += min(self._resident(address, array.nbytes), array.nbytes)
        return Part(size, mapped if self._is_known else None, resident if self._is_known else None)

    def _resident(self, address: int, size: int) -> int:
        first, last = address // self._page, (address + size - 1) // self._page
        with PAGEMAP.open("rb", buffering=0) as file:
            file.seek(8 * first)
            entries = np.frombuffer(file.read(8 * (last - first + 1)), np.uint64)
        return int(np.count_nonzero(entries >> np.uint64(63))) * self._page
