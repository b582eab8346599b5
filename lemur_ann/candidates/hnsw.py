"""A graph that is searched with the vectors as int8 codes: hnswlib finds who is near whom, and links of our own are chosen.

Each document's links are chosen, as Vamana chooses them, among what a search of hnswlib's graph finds near it
(cpp/include/lemur/links.hpp). Then hnswlib's graph is done with, and so are the vectors: codes and links are all that is kept,
in memory and on disk, and all that searches read. Whoever asks for vectors gets what the codes say.

Documents that came since these links were made are scanned, which for a few thousand is as fast; until then they have their
float32 vectors. When they are many, they join the graph: each one's links are chosen among what a walk over the links there are
finds near it. So nothing that a search reads ever changes, and only what makes a graph needs hnswlib (hnswlib_file.py).

Of documents with the same codes, copies of one another, the first alone has links: many of them would fill each other's links,
and the view of a search. The graph lists the others, and finds them with the first.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from lemur_ann import _core, arrays
from lemur_ann.candidates import Kind, Structure, Vectors, joined, take_from, too_many
from lemur_ann.candidates.equals import EqualRows
from lemur_ann.candidates.hnswlib_file import ROWS_PER_BLOCK, read_links, saved
from lemur_ann.documents.rows import Rows, RowSet
from lemur_ann.errors import CorruptIndex

if TYPE_CHECKING:
    import hnswlib

# See links.hpp; hnswlib's graph need not be good for these links to be.
LINKS_PER_M, BEAM_PER_EF, ALPHA = 4, 3, 1.2
MAX_DEGREE = 2**15

log = logging.getLogger("lemur_ann")


class HnswGraph:
    """Rows in a graph: their codes, and the links between them."""

    def __init__(
        self,
        codes: npt.NDArray[np.int8],
        scales: npt.NDArray[np.float32],
        links: npt.NDArray[np.int32],
        entries: npt.NDArray[np.int32],
        next_equal: npt.NDArray[np.int32] | None = None,
    ) -> None:
        """``next_equal``: int32 (num_rows,), see equals.py, or empty."""
        self.codes, self.scales, self.links, self.entries = codes, scales, links, entries
        self.next_equal = np.empty(0, np.int32) if next_equal is None else next_equal

    @property
    def num_rows(self) -> int:
        return len(self.links)

    @property
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All of it, by the names in its file."""
        there: dict[str, npt.NDArray[Any]]
        there = {"codes": self.codes, "scales": self.scales, "links": self.links, "entries": self.entries}
        return there | ({"next_equal": self.next_equal} if len(self.next_equal) else {})

    def vectors(self, rows: Rows, dim: int) -> Vectors:
        """Of some rows, float32 (len(rows), dim): what the codes say."""
        with np.errstate(over="ignore"):
            vectors = self.codes[rows, :dim] * self.scales[rows, None]
        if not np.isfinite(vectors).all():
            raise CorruptIndex("a vector of the graph is not finite")
        return vectors

    def save(self, paths: dict[str, Path]) -> None:
        arrays.write_arrays(paths["links"], self.arrays)


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
        """``recent``: codes and scales of the parts' rows, where they are known; ``directory``: for temporary files."""
        self._dim = dim
        self.structure = structure
        self.parts = parts
        self._options = options
        self._directory = directory
        self._recent = recent or _codes_of(parts, dim)
        graph = structure or _no_graph(dim)
        linked = graph.codes, graph.scales, graph.links, graph.entries
        self._searched = _core.CodedGraph(dim, *linked, *self._recent, graph.next_equal)

    @property
    def num_rows(self) -> int:
        return len(self._searched)

    @property
    def arrays(self) -> list[npt.NDArray[Any]]:
        linked = [] if self.structure is None else self.structure.arrays.values()
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
        except OSError as error:  # a full disk does not keep documents from being added and found
            log.warning("new documents are scanned until there is room for a graph of them: %s", error)
            return more

    def _all_in_graph(self, num_threads: int) -> HnswCandidates:
        before, equal = self.structure, EqualRows(self._dim)
        if before is None:
            return self._anew(num_threads)
        if len(before.next_equal):
            equal.known(before.codes, before.scales, before.next_equal)
        elif not equal.add(before.codes, before.scales).all():  # an older version gave each copy links
            return self._anew(num_threads)
        equal.add(*self._recent)
        codes, scales = np.concatenate([before.codes, self._recent[0]]), np.concatenate([before.scales, self._recent[1]])
        next_equal = equal.next_equal
        try:
            links = _links(self._dim, codes, scales, before.links, before.entries, next_equal, self._options, num_threads)
        except ValueError as error:  # links are checked where they are read
            raise CorruptIndex(f"the graph that there is cannot be added to: {error}") from error
        entries = _more_entries(before.entries, codes[:, self._dim - 1], before.num_rows, next_equal)
        graph = HnswGraph(codes, scales, links, entries, next_equal)
        return HnswCandidates(self._dim, graph, [], None, self._options, self._directory)

    def _anew(self, num_threads: int) -> HnswCandidates:
        builder = HnswBuilder(self._dim, self._options, self.num_rows, self._directory)
        for begin in range(0, self.num_rows, ROWS_PER_BLOCK):
            builder.add(self.take(np.arange(begin, min(begin + ROWS_PER_BLOCK, self.num_rows))), num_threads=num_threads)
        return builder.finish()

    def search(
        self, queries: Vectors, num_candidates: int, ef_search: int, *, num_threads: int, excluded: RowSet | None = None
    ) -> list[Rows]:
        mask, count = (None, 0) if excluded is None or excluded.count == 0 else (excluded.mask, excluded.count)
        try:
            return list(self._searched.search(queries, mask, count, num_candidates, ef_search, num_threads))
        except ValueError as error:  # links are checked where they are read
            raise CorruptIndex(f"the graph cannot be searched: {error}") from error

    def check(self) -> None:
        graph = self.structure
        if graph is None:
            return
        for name, array in (("links", graph.links), ("entries", graph.entries), ("next_equal", graph.next_equal)):
            if array.max(initial=-1) >= graph.num_rows or array.min(initial=0) < (0 if name == "entries" else -1):
                raise CorruptIndex(f"{name} of the graph lead out of its {graph.num_rows} rows")

    def take(self, rows: Rows) -> Vectors:
        rows = np.asarray(rows)
        first = 0 if self.structure is None else self.structure.num_rows
        vectors = np.empty((len(rows), self._dim), np.float32)
        inside = rows < first
        if self.structure is not None and inside.any():
            vectors[inside] = self.structure.vectors(rows[inside], self._dim)
        vectors[~inside] = take_from(self.parts, self._dim, rows[~inside] - first)
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
        self._equal = EqualRows(dim)
        self._num_rows = self._num_linked = 0
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
        count = len(self._parts)
        for part, codes, scales in zip(self._parts, self._codes[-count:], self._scales[-count:], strict=True):
            rows = np.arange(self._num_linked, self._num_linked + len(part))
            is_first = self._equal.add(codes, scales)
            self._graph.add_items(part[is_first], rows[is_first], num_threads=num_threads)
            self._num_linked += len(part)
        self._parts = []

    def finish(self) -> HnswCandidates:
        stride = _core.int8_stride(self._dim)
        codes = np.concatenate([np.empty((0, stride), np.int8), *self._codes])
        scales = np.concatenate([np.empty(0, np.float32), *self._scales])
        self._codes, self._scales = [], []
        if self._graph is None:
            parts = [np.concatenate(self._parts)] if self._parts else []
            return HnswCandidates(self._dim, None, parts, (codes, scales), self._options, self._directory)
        with saved(self._graph, self._directory) as path:
            self._graph = None  # its memory is free before the links take theirs
            links, entries = read_links(path, self._dim, len(codes))
        next_equal = self._equal.next_equal
        links = _links(self._dim, codes, scales, links, entries, next_equal, self._options, self._num_threads)
        graph = HnswGraph(codes, scales, links, entries, next_equal)
        return HnswCandidates(self._dim, graph, [], None, self._options, self._directory)


class HnswKind(Kind):
    """Links of our own, which hnswlib's graph helps to choose."""

    files: ClassVar[dict[str, str]] = {"links": ".safetensors"}

    def builder(self, dim: int, options: dict[str, Any], capacity: int = 0, directory: str | None = None) -> HnswBuilder:
        return HnswBuilder(dim, options, capacity, directory)

    def load_structure(self, paths: dict[str, Path], dim: int, num_rows: int) -> HnswGraph:
        there = arrays.map_arrays(paths["links"])
        codes, scales, links, entries = (there[name] for name in ("codes", "scales", "links", "entries"))
        next_equal = there.get("next_equal", np.empty(0, np.int32))
        degree = links.shape[1] if links.ndim == 2 else 0
        if not (
            num_rows > 0
            and [array.dtype for array in (codes, scales)] == [np.int8, np.float32]
            and [array.dtype for array in (links, entries, next_equal)] == [np.int32] * 3
            and codes.shape == (num_rows, _core.int8_stride(dim))
            and scales.shape == (num_rows,)
            and links.shape == (num_rows, degree)
            and 0 < degree <= MAX_DEGREE
            and entries.ndim == 1
            and len(entries) <= num_rows
            and next_equal.shape in ((0,), (num_rows,))
            and _ascends(next_equal)
        ):
            raise CorruptIndex(f"{paths['links']} is no graph of {num_rows} rows")
        return HnswGraph(codes, scales, links, entries, next_equal)

    def assemble(
        self, dim: int, structure: Structure | None, parts: list[Vectors], options: dict[str, Any], directory: str | None = None
    ) -> HnswCandidates:
        assert structure is None or isinstance(structure, HnswGraph)
        try:
            return HnswCandidates(dim, structure, parts, None, options, directory)
        except ValueError as error:
            raise CorruptIndex(f"the graph cannot be searched: {error}") from error


def _new_graph(dim: int, options: dict[str, Any], capacity: int) -> hnswlib.Index:
    import hnswlib  # searches and additions do without it

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
    return HnswGraph(codes, scales, np.empty((0, 1), np.int32), np.empty(0, np.int32))


def _codes_of(parts: list[Vectors], dim: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    if not parts:
        graph = _no_graph(dim)
        return graph.codes, graph.scales
    coded = [_core.int8_codes(np.ascontiguousarray(part), 1) for part in parts]
    return np.concatenate([codes for codes, _ in coded]), np.concatenate([scales for _, scales in coded])


def _links(
    dim: int,
    codes: npt.NDArray[np.int8],
    scales: npt.NDArray[np.float32],
    known: npt.NDArray[np.int32],
    entries: npt.NDArray[np.int32],
    next_equal: npt.NDArray[np.int32],
    options: dict[str, Any],
    num_threads: int,
) -> npt.NDArray[np.int32]:
    """The links that are searched, int32 (len(codes), degree); ``known``: links of all rows, or of the first, which stay."""
    degree, beam = LINKS_PER_M * options["M"], BEAM_PER_EF * options["ef_construction"]
    if len(known) < len(codes):
        degree = max(degree, known.shape[1])
    return _core.better_links(dim, codes, scales, known, entries, degree, beam, ALPHA, num_threads, next_equal)


def _more_entries(
    entries: npt.NDArray[np.int32], last: npt.NDArray[np.int8], first: int, next_equal: npt.NDArray[np.int32]
) -> npt.NDArray[np.int32]:
    """Where searches begin once the rows from ``first`` on have joined; ``last``: codes of the last coordinate of all rows.

    Those beyond the radius are entries, as in read_links, and others at even distances where there are few for so many rows.
    """
    may_be = np.arange(len(last)) >= first
    may_be[next_equal[next_equal >= 0]] = False  # they have no links
    is_far = may_be & (last == 0)
    wanted = math.isqrt(len(last)) - np.count_nonzero(last[entries])
    others = np.flatnonzero(may_be & ~is_far)
    others = others[:: max(len(others) // wanted, 1)][:wanted] if wanted > 0 else others[:0]
    return np.sort(np.concatenate([entries, np.flatnonzero(is_far), others])).astype(np.int32)


def _ascends(next_equal: npt.NDArray[np.int32]) -> bool:
    """Whether each row that follows another comes after it, and follows no other."""
    following = next_equal[next_equal >= 0]
    inside = bool((next_equal < len(next_equal)).all() and (following > np.flatnonzero(next_equal >= 0)).all())
    return inside and len(np.unique(following)) == len(following)
