"""An HNSW graph: hnswlib builds it, by L2 distance; our own search walks it, with the vectors as int8 codes.

The search works on links of its own, which are better than hnswlib's: each document's are chosen, as Vamana chooses them, among
what a search of hnswlib's graph finds near it (cpp/include/lemur/links.hpp). Documents that came since
the copy was made are scanned, which for a few thousand is as fast; when they are many, hnswlib takes them into the graph, and a
new copy is made. So nothing that a search reads ever changes, and a process that only searches never loads hnswlib's graph.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import tempfile
import weakref
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import hnswlib
import numpy as np
import numpy.typing as npt

from lemur_ann import _core, arrays
from lemur_ann.candidates import Indices, Structure, Vectors, joined, take_from, too_many
from lemur_ann.documents.rows import RowSet
from lemur_ann.errors import CorruptIndex

ROWS_PER_BLOCK = 16_384
# Of the links that are searched, see links.hpp; hnswlib's graph need not be good for these to be.
LINKS_PER_M, BEAM_PER_EF, ALPHA = 4, 3, 1.2
HEADER = np.dtype(
    [
        *((name, "<u8") for name in ("offset", "room", "count", "node_bytes", "label_offset", "vector_offset")),
        *((name, "<i4") for name in ("highest_level", "first_node")),
        *((name, kind) for name, kind in (("M", "<u8"), ("degree", "<u8"), ("M_again", "<u8"), ("mult", "<f8"), ("ef", "<u8"))),
    ]
)
FILES = {"graph": ".hnsw", "links": ".safetensors"}  # hnswlib's own, and what searches read

log = logging.getLogger("lemur_ann")


class GraphFile:
    """hnswlib's file, open, so that it can be read whatever becomes of its name."""

    def __init__(self, path: Path, *, temporary: bool = False) -> None:
        self._file = path.open("rb")
        by_descriptor = Path(f"/dev/fd/{self._file.fileno()}")
        self.path = by_descriptor if by_descriptor.exists() else path
        if temporary and self.path != path:
            path.unlink()
            temporary = False
        weakref.finalize(self, _close, self._file, path if temporary else None)

    def copy_to(self, path: Path) -> None:
        self._file.seek(0)
        with path.open("wb") as target:
            shutil.copyfileobj(self._file, target, 1 << 22)

    @property
    def read(self) -> list[npt.NDArray[Any]]:
        """What of it is mapped by now."""
        return [self.nodes[0]] if "nodes" in self.__dict__ else []

    @cached_property
    def nodes(self) -> tuple[npt.NDArray[np.uint8], int]:
        """One row a node, mapped, and where its vector begins."""
        header = _header(self.path)
        shape = header["count"], header["node_bytes"]
        nodes = np.memmap(self._file, np.uint8, "r", HEADER.itemsize, shape) if shape[0] else np.empty(shape, np.uint8)
        return nodes, header["vector_offset"]

    @cached_property
    def node_of_row(self) -> npt.NDArray[np.int64]:
        labels = _labels(self.nodes[0], self.path)
        order = np.full(labels.max(initial=-1) + 1, -1, np.int64)
        order[labels] = np.arange(len(labels))
        return order


def _close(file: Any, path: Path | None) -> None:
    file.close()
    if path is not None:
        with suppress(OSError):
            path.unlink()


class HnswGraph:
    """Rows in a graph: hnswlib's file, and what searches read of it."""

    def __init__(
        self,
        file: GraphFile,
        codes: npt.NDArray[np.int8],
        scales: npt.NDArray[np.float32],
        links: npt.NDArray[np.int32],
        entries: npt.NDArray[np.int32],
    ) -> None:
        self.file = file
        self.codes, self.scales, self.links, self.entries = codes, scales, links, entries

    @property
    def num_rows(self) -> int:
        return len(self.links)

    def take(self, rows: Indices, dim: int) -> Vectors:
        nodes, offset = self.file.nodes
        block = nodes[self.file.node_of_row[rows], offset : offset + 4 * dim]
        return block.copy().view(np.float32).reshape(len(rows), dim)

    def save(self, paths: dict[str, Path]) -> None:
        self.file.copy_to(paths["graph"])
        searched: dict[str, npt.NDArray[Any]]
        searched = {"codes": self.codes, "scales": self.scales, "links": self.links, "entries": self.entries}
        arrays.write_arrays(paths["links"], searched)

    def load(self, dim: int, max_elements: int) -> hnswlib.Index:
        """hnswlib's own graph, with room for more."""
        _check_file(self.file.path, dim)
        graph = hnswlib.Index("l2", dim)
        try:
            graph.load_index(str(self.file.path), max_elements=max_elements)
        except RuntimeError as error:
            raise CorruptIndex(f"{self.file.path} cannot be read: {error}") from error
        return graph


class HnswCandidates:
    """A graph over the first rows, and the vectors of those after them."""

    def __init__(
        self,
        dim: int,
        structure: HnswGraph | None,
        parts: list[Vectors],
        recent: tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]] | None,
        options: dict[str, Any],
        directory: str | None = None,
    ) -> None:
        """``recent``: codes and scales of the parts' rows, where they are known."""
        self._dim = dim
        self.structure = structure
        self.parts = parts
        self._options = options
        self._directory = directory
        self._recent = recent or _codes_of(parts, dim)
        graph = structure or _no_graph(dim)
        self._searched = _core.CodedGraph(dim, graph.codes, graph.scales, graph.links, graph.entries, *self._recent)

    @property
    def num_rows(self) -> int:
        return len(self._searched)

    @property
    def arrays(self) -> list[npt.NDArray[Any]]:
        graph = self.structure
        linked: list[npt.NDArray[Any]]
        linked = [] if graph is None else [graph.codes, graph.scales, graph.links, graph.entries, *graph.file.read]
        return [*linked, *self._recent, *self.parts]

    def extended(self, vectors: Vectors, *, num_threads: int) -> HnswCandidates:
        if len(vectors) == 0:
            return self
        codes, scales = _core.int8_codes(vectors, num_threads)
        recent = np.concatenate([self._recent[0], codes]), np.concatenate([self._recent[1], scales])
        parts = joined(self.parts, vectors)
        more = HnswCandidates(self._dim, self.structure, parts, recent, self._options, self._directory)
        if not too_many(len(recent[0]), 0 if self.structure is None else self.structure.num_rows):
            return more
        try:
            return more._all_in_graph(num_threads)
        except OSError as error:
            log.warning("new documents are scanned until there is room for a graph of them: %s", error)
            return more

    def _all_in_graph(self, num_threads: int) -> HnswCandidates:
        first = 0 if self.structure is None else self.structure.num_rows
        if self.structure is None:
            graph = _new_graph(self._dim, self._options, self.num_rows)
        else:
            graph = self.structure.load(self._dim, self.num_rows)
        row = first
        for part in self.parts:
            graph.add_items(part, np.arange(row, row + len(part)), num_threads=num_threads)
            row += len(part)
        path = _saved(graph, self._directory)
        del graph  # its memory is free before the links take theirs
        before = self.structure or _no_graph(self._dim)
        codes = np.concatenate([before.codes, self._recent[0]]), np.concatenate([before.scales, self._recent[1]])
        frozen = _frozen(path, self._dim, *codes, self._options, num_threads, before.links)
        return HnswCandidates(self._dim, frozen, [], None, self._options, self._directory)

    def search(
        self, queries: Vectors, num_candidates: int, ef_search: int, *, num_threads: int, excluded: RowSet | None = None
    ) -> list[Indices]:
        mask, count = (None, 0) if excluded is None or excluded.count == 0 else (excluded.mask, excluded.count)
        return list(self._searched.search(queries, mask, count, num_candidates, ef_search, num_threads))

    def check(self) -> None:
        graph = self.structure
        if graph is None:
            return
        for name, array in (("links", graph.links), ("entries", graph.entries)):
            if array.max(initial=-1) >= graph.num_rows or array.min(initial=0) < (-1 if name == "links" else 0):
                raise CorruptIndex(f"{name} of the graph lead out of its {graph.num_rows} rows")

    def take(self, indices: Indices) -> Vectors:
        indices = np.asarray(indices)
        first = 0 if self.structure is None else self.structure.num_rows
        vectors = np.empty((len(indices), self._dim), np.float32)
        inside = indices < first
        if self.structure is not None and inside.any():
            vectors[inside] = self.structure.take(indices[inside], self._dim)
        vectors[~inside] = take_from(self.parts, self._dim, indices[~inside] - first)
        return vectors


class HnswBuilder:
    """hnswlib's graph while documents come."""

    def __init__(self, dim: int, options: dict[str, Any], capacity: int, directory: str | None) -> None:
        self._dim = dim
        self._options = options
        self._directory = directory
        self._capacity = capacity
        self._parts: list[Vectors] = []  # until they are too many to be scanned
        self._graph: hnswlib.Index | None = None
        self._codes: list[npt.NDArray[np.int8]] = []
        self._scales: list[npt.NDArray[np.float32]] = []
        self._num_rows = 0
        self._num_threads = 1

    def add(self, vectors: Vectors, *, num_threads: int) -> None:
        self._num_threads = num_threads
        codes, scales = _core.int8_codes(vectors, num_threads)
        self._codes.append(codes)
        self._scales.append(scales)
        self._parts.append(vectors)
        self._num_rows += len(vectors)
        if self._graph is None and not too_many(self._num_rows, 0):
            return
        if self._graph is None:
            self._graph = _new_graph(self._dim, self._options, max(self._capacity, self._num_rows))
        if self._num_rows > self._graph.get_max_elements():
            self._graph.resize_index(max(self._num_rows, self._graph.get_max_elements() * 3 // 2))
        for part in self._parts:
            first = self._graph.get_current_count()
            self._graph.add_items(part, np.arange(first, first + len(part)), num_threads=num_threads)
        self._parts = []

    def finish(self) -> HnswCandidates:
        stride = _core.int8_stride(self._dim)
        codes = np.concatenate([np.empty((0, stride), np.int8), *self._codes])
        scales = np.concatenate([np.empty(0, np.float32), *self._scales])
        self._codes, self._scales = [], []
        if self._graph is None:
            parts = [np.concatenate(self._parts)] if self._parts else []
            return HnswCandidates(self._dim, None, parts, (codes, scales), self._options, self._directory)
        path = _saved(self._graph, self._directory)
        self._graph = None  # its memory is free before the links take theirs
        frozen = _frozen(path, self._dim, codes, scales, self._options, self._num_threads)
        return HnswCandidates(self._dim, frozen, [], None, self._options, self._directory)


def builder(dim: int, options: dict[str, Any], capacity: int = 0, directory: str | None = None) -> HnswBuilder:
    """See :class:`~lemur_ann.candidates.Kind`."""
    return HnswBuilder(dim, options, capacity, directory)


def load_structure(paths: dict[str, Path], dim: int, num_rows: int) -> HnswGraph:
    """See :class:`~lemur_ann.candidates.Kind`."""
    file = GraphFile(paths["graph"])
    searched = arrays.map_arrays(paths["links"]) if "links" in paths else {}
    if searched and len(searched["links"]) == num_rows:
        graph = HnswGraph(file, *(searched[name] for name in ("codes", "scales", "links", "entries")))
        if _dim_of(_header(paths["graph"])) != dim:
            raise CorruptIndex(f"{paths['graph']} has vectors of another dimension")
        return graph
    # Formats 1 to 3: no links, or none yet of the last rows
    if np.count_nonzero(file.node_of_row[:num_rows] >= 0) < num_rows:
        raise CorruptIndex(f"{paths['graph']} does not have all of {num_rows} documents")
    _check_file(paths["graph"], dim)
    links, entries = read_links(paths["graph"], dim, num_rows)
    graph = HnswGraph(file, np.empty((0, 1), np.int8), np.empty(0, np.float32), links, entries)
    graph.codes, graph.scales = _core.int8_codes(graph.take(np.arange(num_rows), dim), 1)
    return graph


def assemble(
    dim: int, structure: Structure | None, parts: list[Vectors], options: dict[str, Any], directory: str | None = None
) -> HnswCandidates:
    """See :class:`~lemur_ann.candidates.Kind`."""
    assert structure is None or isinstance(structure, HnswGraph)
    return HnswCandidates(dim, structure, parts, None, options, directory)


def _new_graph(dim: int, options: dict[str, Any], capacity: int) -> hnswlib.Index:
    graph = hnswlib.Index("l2", dim)
    graph.init_index(
        max_elements=max(capacity, 1),
        M=options["M"],
        ef_construction=options["ef_construction"],
        random_seed=options["seed"],
    )
    return graph


def _no_graph(dim: int) -> HnswGraph:
    codes, scales = np.empty((0, _core.int8_stride(dim)), np.int8), np.empty(0, np.float32)
    none: Any = None
    return HnswGraph(none, codes, scales, np.empty((0, 1), np.int32), np.empty(0, np.int32))


def _codes_of(parts: list[Vectors], dim: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    if not parts:
        graph = _no_graph(dim)
        return graph.codes, graph.scales
    coded = [_core.int8_codes(np.ascontiguousarray(part), 1) for part in parts]
    return np.concatenate([codes for codes, _ in coded]), np.concatenate([scales for _, scales in coded])


def _saved(graph: hnswlib.Index, directory: str | None) -> Path:
    """A temporary file of hnswlib's graph."""
    descriptor, name = tempfile.mkstemp(prefix=".building-", dir=directory)
    os.close(descriptor)
    path = Path(name)
    try:
        _save(graph, path)
    except BaseException:
        path.unlink()
        raise
    return path


def _frozen(
    path: Path,
    dim: int,
    codes: npt.NDArray[np.int8],
    scales: npt.NDArray[np.float32],
    options: dict[str, Any],
    num_threads: int,
    before: npt.NDArray[np.int32] | None = None,
) -> HnswGraph:
    """What searches read of the graph in a temporary file, which is kept in its place.

    ``before``: the links of the first rows, which stay, but for links to the rows after them.
    """
    try:
        links, entries = read_links(path, dim, len(codes))
        first, degree, beam = 0, LINKS_PER_M * options["M"], BEAM_PER_EF * options["ef_construction"]
        if before is not None and len(before):
            first, degree = len(before), max(degree, before.shape[1])
            links = np.concatenate([_padded(before, degree), _padded(links[first:], degree)])
        links = _core.better_links(dim, codes, scales, links, entries, first, degree, beam, ALPHA, num_threads)
        file = GraphFile(path, temporary=True)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return HnswGraph(file, codes, scales, links, entries)


def _padded(links: npt.NDArray[np.int32], degree: int) -> npt.NDArray[np.int32]:
    return np.pad(links[:, :degree], ((0, 0), (0, max(degree - links.shape[1], 0))), constant_values=-1)


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


def _header(path: Path) -> dict[str, int]:
    """The header of hnswlib's file; CorruptIndex where it does not fit the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        raw = file.read(HEADER.itemsize)
    if len(raw) < HEADER.itemsize:
        raise CorruptIndex(f"{path} cannot be read: it has no header")
    header = {name: int(value) for name, value in zip(HEADER.names or (), np.frombuffer(raw, HEADER)[0], strict=True)}
    link_bytes = 4 + 4 * header["degree"]
    if not (
        header["offset"] == 0
        and header["count"] <= header["room"] < 2**31
        and HEADER.itemsize + header["count"] * header["node_bytes"] <= size
        and 0 < header["M"] == header["M_again"] <= header["degree"] < 2**15
        and 0 < header["ef"] < 2**31
        and header["vector_offset"] == link_bytes < header["label_offset"] == header["node_bytes"] - 8
    ):
        raise CorruptIndex(f"{path} cannot be read: its header does not fit it")
    return header


def _dim_of(header: dict[str, int]) -> float:
    return (header["label_offset"] - header["vector_offset"]) / 4


def _labels(nodes: npt.NDArray[np.uint8], path: Path) -> npt.NDArray[np.int64]:
    labels = nodes[:, -8:].copy().view(np.int64)[:, 0]
    if len(labels) and (labels.min() < 0 or labels.max() >= 2**31 or len(np.unique(labels)) < len(labels)):
        raise CorruptIndex(f"{path} cannot be read: its labels are not rows")
    return labels


def _check_file(path: Path, dim: int) -> None:
    """CorruptIndex where hnswlib, which checks nothing, would read outside of its file or of its graph."""
    header = _header(path)
    count, degree, M = header["count"], header["degree"], header["M"]
    if _dim_of(header) != dim:
        raise CorruptIndex(f"{path} has vectors of another dimension")
    if count == 0:
        return
    nodes = np.memmap(path, np.uint8, "r", HEADER.itemsize, (count, header["node_bytes"]))
    _labels(nodes, path)
    level_words = 1 + M
    higher = np.fromfile(path, np.uint32, offset=HEADER.itemsize + nodes.size)
    links = nodes[:, 4 : header["vector_offset"]].copy().view(np.uint32)
    used = nodes[:, :2].copy().view(np.uint16)[:, 0]
    good = bool(used.max() <= degree and (links[np.arange(degree) < used[:, None]] < count).all())
    levels, place = np.zeros(count, np.int64), 0
    begins = np.empty(count, np.int64)
    for node in range(count):
        if place >= len(higher) or int(higher[place]) % (4 * level_words):
            raise CorruptIndex(f"{path} cannot be read: its links of higher levels are cut off")
        levels[node], begins[node] = int(higher[place]) // (4 * level_words), place + 1
        place += 1 + int(higher[place]) // 4
    good = good and place == len(higher) and levels.max() == header["highest_level"]
    good = good and 0 <= header["first_node"] < count and levels[header["first_node"]] == header["highest_level"]
    for node in np.flatnonzero(levels).tolist() if good else ():
        lists = higher[begins[node] : begins[node] + levels[node] * level_words].reshape(-1, level_words)
        for level, words in enumerate(lists, start=1):
            number = int(words[0]) & 0xFFFF
            found = words[1 : 1 + number]
            good = good and number <= M and bool((found < count).all()) and bool((levels[found] >= level).all())
    if not good:
        raise CorruptIndex(f"{path} cannot be read: its links lead out of it")


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


def _without_gaps(links: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """The same links of each row, those that are -1 last."""
    gaps = links < 0
    if not np.any(gaps[:, :-1] & ~gaps[:, 1:]):
        return links
    return np.take_along_axis(links, np.argsort(gaps, axis=1, kind="stable"), axis=1)
