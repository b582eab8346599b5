"""Candidate indexes of other libraries: theirs over the first rows, and a scan of the rows after them.

A library's index does not grow: when many documents have come, it is made anew of all of them. Beside it lie all vectors in
float32, mapped once they are saved: what it finds is ordered by them, and where few documents pass a filter they are scanned.
"""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from lemur_ann import arrays
from lemur_ann.candidates import Kind, Structure, Vectors, joined, take_from, too_many
from lemur_ann.documents.rows import Rows, RowSet
from lemur_ann.errors import CorruptIndex

ROWS_PER_SCAN = 16_384
SCANNED_SHARE = 0.1  # where fewer of the rows than this pass a filter, those are scanned
MOST = {"HNSW": 1024}  # links a node; other numbers in what a stranger gives to a library
MOST_OF_OTHERS = 65_536
HEADROOM = 1.5  # times as many rows as should be needed are asked for behind a filter

log = logging.getLogger("lemur_ann")


class Library(Protocol):
    """A module of this package: what it takes to use a library's index.

    ``own`` is what the caller gave as ``candidates_options``, {} where that is nothing.
    """

    def build(self, vectors: Vectors, M: int, ef_construction: int, own: dict[str, Any], num_threads: int) -> Any:
        """An index of vectors of one norm, by inner product or L2; M and ef_construction are the options of that name."""

    def find(self, index: Any, queries: Vectors, count: int, beam: int, own: dict[str, Any], num_threads: int) -> Rows:
        """(num_queries, count) rows, best first, -1 where it finds no more.

        Several threads call it at once, with beams of their own: nothing is set on the index that another would see.
        """

    def write(self, index: Any, path: Path) -> None:
        """One file."""

    def read(self, path: Path, dim: int) -> Any:
        """What ``write`` wrote; any exception where it cannot be read."""


class LibraryStructure:
    """A library's index, and the vectors in it."""

    def __init__(self, library: Library, index: Any, vectors: Vectors) -> None:
        self.library, self.index, self.vectors = library, index, vectors

    @property
    def num_rows(self) -> int:
        return len(self.vectors)

    def save(self, paths: dict[str, Path]) -> None:
        self.library.write(self.index, paths["graph"])
        arrays.write_arrays(paths["vectors"], {"vectors": self.vectors})


class LibraryCandidates:
    """A structure over the first rows, and the vectors of those after them."""

    def __init__(
        self, library: Library, dim: int, structure: LibraryStructure | None, parts: list[Vectors], options: dict[str, Any]
    ) -> None:
        self._library, self._dim, self._options = library, dim, options
        self.structure = structure
        self.parts = parts

    @property
    def _num_linked(self) -> int:
        return 0 if self.structure is None else self.structure.num_rows

    @property
    def num_rows(self) -> int:
        return self._num_linked + sum(map(len, self.parts))

    @property
    def arrays(self) -> list[npt.NDArray[Any]]:
        return [*([] if self.structure is None else [self.structure.vectors]), *self.parts]

    def extended(self, vectors: Vectors, *, num_threads: int) -> LibraryCandidates:
        if len(vectors) == 0:
            return self
        parts = joined(self.parts, vectors)
        more = LibraryCandidates(self._library, self._dim, self.structure, parts, self._options)
        if not too_many(sum(map(len, parts)), self._num_linked):
            return more
        return _built(self._library, self._dim, more.take(np.arange(more.num_rows)), self._options, num_threads)

    def search(
        self, queries: Vectors, num_candidates: int, ef_search: int, *, num_threads: int, excluded: RowSet | None = None
    ) -> list[Rows]:
        mask = np.zeros(self.num_rows, np.bool_) if excluded is None else excluded.mask
        linked = self._num_linked
        passing = np.flatnonzero(~mask[:linked])
        recent = linked + np.flatnonzero(~mask[linked:])
        wanted = min(num_candidates, len(passing) + len(recent))
        if wanted <= 0:
            return [np.empty(0, np.int64) for _ in queries]
        from_graph = min(wanted, len(passing))
        found = self._found(queries, from_graph, max(ef_search, num_candidates), mask, len(passing), num_threads)
        out = []
        for query, rows in zip(queries, found, strict=True):
            if rows is None:  # the library found too few of those that pass
                rows = passing
            rows = np.concatenate([rows, recent])
            scores = np.concatenate(
                [self.take(rows[at : at + ROWS_PER_SCAN]) @ query for at in range(0, len(rows), ROWS_PER_SCAN)]
            )
            out.append(rows[np.argsort(-scores, kind="stable")[:wanted]])
        return out

    def _found(
        self, queries: Vectors, count: int, beam: int, mask: npt.NDArray[np.bool_], num_passing: int, num_threads: int
    ) -> list[Rows | None]:
        """For each query ``count`` rows of the structure that pass; None where they are better scanned."""
        if self.structure is None or count == 0:
            return [np.empty(0, np.int64) for _ in queries]
        linked = self.structure.num_rows
        if num_passing < SCANNED_SHARE * linked:
            return [None for _ in queries]
        share = linked / num_passing
        asked = count if num_passing == linked else min(int(count * share * HEADROOM) + 1, linked)
        rows = self._library.find(
            self.structure.index, queries, asked, max(int(beam * share), asked), _own(self._options), num_threads
        )
        out: list[Rows | None] = []
        for own in rows:
            own = own[(own >= 0) & (own < linked)]
            own = own[~mask[own]][:count]
            out.append(own if len(own) == count else None)
        return out

    def check(self) -> None:
        pass

    def take(self, rows: Rows) -> Vectors:
        first = [] if self.structure is None else [self.structure.vectors]
        return take_from([*first, *self.parts], self._dim, np.asarray(rows))


class LibraryBuilder:
    """Keeps the blocks it is given, and hands them to the library at the end."""

    def __init__(self, library: Library, dim: int, options: dict[str, Any]) -> None:
        self._library, self._dim, self._options = library, dim, options
        self._blocks: list[Vectors] = []
        self._num_threads = 1

    def add(self, vectors: Vectors, *, num_threads: int) -> None:
        self._blocks.append(vectors)
        self._num_threads = num_threads

    def finish(self) -> LibraryCandidates:
        vectors = np.concatenate([np.empty((0, self._dim), np.float32), *self._blocks])
        self._blocks = []
        if too_many(len(vectors), 0):
            return _built(self._library, self._dim, vectors, self._options, self._num_threads)
        return LibraryCandidates(self._library, self._dim, None, [vectors] if len(vectors) else [], self._options)


class LibraryKind(Kind):
    """The index of a library, and beside it all vectors."""

    files: ClassVar[dict[str, str]] = {"graph": ".bin", "vectors": ".safetensors"}
    is_checked: ClassVar[bool] = False

    def __init__(self, library: Library) -> None:
        self._library = library

    def builder(self, dim: int, options: dict[str, Any], capacity: int = 0, directory: str | None = None) -> LibraryBuilder:
        return LibraryBuilder(self._library, dim, options)

    def load_structure(self, paths: dict[str, Path], dim: int, num_rows: int) -> LibraryStructure:
        vectors = _vectors(paths["vectors"], dim, num_rows)
        try:
            index = self._library.read(paths["graph"], dim)
        except Exception as error:  # of whatever kind the library has
            raise CorruptIndex(f"{paths['graph']} cannot be read: {error}") from error
        return LibraryStructure(self._library, index, vectors)

    def rebuild(self, paths: dict[str, Path], dim: int, num_rows: int, options: dict[str, Any]) -> LibraryStructure:
        vectors = _vectors(paths["vectors"], dim, num_rows)
        log.warning(
            "%s was written elsewhere, and nobody can check what is in a file of %s: the graph is made anew of its vectors. "
            "Where you trust whoever wrote it, trusted=True reads it.",
            paths["graph"].resolve(),  # a folder that is open has another name in between
            options["candidates"],
        )
        try:
            built = _built(self._library, dim, vectors, options, 1).structure
        except Exception as error:  # of whatever kind the library has
            raise CorruptIndex(f"no graph can be made of the vectors in {paths['vectors']}: {error}") from error
        assert built is not None
        return built

    def assemble(
        self, dim: int, structure: Structure | None, parts: list[Vectors], options: dict[str, Any], directory: str | None = None
    ) -> LibraryCandidates:
        assert structure is None or isinstance(structure, LibraryStructure)
        return LibraryCandidates(self._library, dim, structure, parts, options)


def check_own(options: dict[str, Any]) -> None:
    """CorruptIndex unless what a library is to be given is small and plain: a stranger may have written it."""
    for key, value in _own(options).items():
        numbers = [(name, int(digits[:9])) for name, digits in re.findall(r"([A-Za-z]*)([0-9]+)", str(value))]
        is_plain = (
            (isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_,.()+-]{1,64}", value, re.ASCII) is not None)
            or (isinstance(value, int) and abs(value) <= MOST_OF_OTHERS)
            or (isinstance(value, float) and math.isfinite(value) and abs(value) <= MOST_OF_OTHERS)
        )
        if not is_plain or any(number > MOST.get(name, MOST_OF_OTHERS) for name, number in numbers):
            raise CorruptIndex(
                f"candidates_options has {key!r} as {str(value)[:80]!r}, which only trusted=True gives to a library"
            )


def _vectors(path: Path, dim: int, num_rows: int) -> Vectors:
    vectors: Vectors | None = arrays.map_arrays(path).get("vectors")
    if vectors is None or vectors.shape != (num_rows, dim) or vectors.dtype != np.float32 or num_rows == 0:
        raise CorruptIndex(f"{path} does not hold {num_rows} vectors of dim {dim}")
    for begin in range(0, num_rows, ROWS_PER_SCAN):
        if not np.isfinite(vectors[begin : begin + ROWS_PER_SCAN]).all():
            raise CorruptIndex(f"{path} has a vector that is not finite")
    return vectors


def _built(library: Library, dim: int, vectors: Vectors, options: dict[str, Any], num_threads: int) -> LibraryCandidates:
    vectors = np.ascontiguousarray(vectors)
    index = library.build(vectors, options["M"], options["ef_construction"], _own(options), num_threads)
    return LibraryCandidates(library, dim, LibraryStructure(library, index, vectors), [], options)


def _own(options: dict[str, Any]) -> dict[str, Any]:
    return options.get("candidates_options") or {}
