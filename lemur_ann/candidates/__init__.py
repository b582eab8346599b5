"""Stage 1: the index that proposes candidate documents, behind one protocol; kinds.py has the names of those there are.

A :class:`Kind` gives a :class:`Builder` for new documents, which ends in a :class:`CandidateIndex`. Of that the
:class:`Structure` and the parts are saved, and the kind assembles it of them again. hnsw.py and exact.py are kinds of their
own; for the index of another library a file of four functions will do (library.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from lemur_ann.documents.rows import Rows, RowSet

Vectors = npt.NDArray[np.float32]

MIN_SCANNED = 1024  # fewer documents that are in no structure never make a new one
MAX_SCANNED = 16_384  # more do, which a search scans in about 0.1 ms, unless
SMALL_SHARE, LARGE_SHARE = 0.125, 0.01  # they are less than this of those in it; in small ones, more than that is enough
PART_VALUES_TO_MERGE = 2**22  # parts of vectors with fewer values may be merged: 16 MiB


class CandidateIndex(Protocol):
    """What the library asks of a candidate index. It never changes: more documents make a new one, which shares what it can.

    Vectors are float32 (n, dim), all document vectors of one norm and queries with a last coordinate of 0, so that the
    largest inner product and the smallest L2 distance name the same documents. The first rows may be in a structure that is
    saved as files of its own (``structure``); the vectors of those after them are at hand (``parts``).
    """

    @property
    def num_rows(self) -> int:
        """How many documents it holds."""

    @property
    def structure(self) -> Structure | None:
        """What the first rows are in; None where all are in ``parts``."""

    @property
    def parts(self) -> list[Vectors]:
        """The vectors of the other rows, one after the other."""

    @property
    def arrays(self) -> list[npt.NDArray[Any]]:
        """What searches read, and the vectors that are in no structure."""

    def extended(self, vectors: Vectors, *, num_threads: int) -> CandidateIndex:
        """With more documents at the end."""

    def search(
        self, queries: Vectors, num_candidates: int, ef_search: int, *, num_threads: int, excluded: RowSet | None = None
    ) -> list[Rows]:
        """For each query the rows of largest inner product, best first; ``excluded`` ones never (None: there are none).

        At most ``num_candidates``, and exactly so many where that many rows are not excluded. With a beam of fewer,
        ``ef_search``, a graph gives the best of all rows that it looked at.
        """

    def check(self) -> None:
        """CorruptIndex where something in it cannot be."""

    def take(self, rows: Rows) -> Vectors:
        """The vectors of some rows, float32 (len(rows), dim)."""


class Structure(Protocol):
    """What a candidate index keeps its first rows in."""

    @property
    def num_rows(self) -> int:
        """How many rows."""

    def save(self, paths: dict[str, Path]) -> None:
        """Write its files, one for each of the names in ``files`` of the kind."""


class Builder(Protocol):
    """Makes a candidate index from nothing, block by block."""

    def add(self, vectors: Vectors, *, num_threads: int) -> None:
        """The next documents."""

    def finish(self) -> CandidateIndex:
        """All documents are added."""


class Kind(Protocol):
    """What a value of the option ``candidates`` stands for."""

    files: ClassVar[dict[str, str]]  # the name and the suffix of each file of a structure
    is_checked: ClassVar[bool] = True  # whether all that a structure's files say can be held against what it must fit

    def builder(self, dim: int, options: dict[str, Any], capacity: int = 0, directory: str | None = None) -> Builder:
        """For vectors of this dimension.

        ``options`` are the library's. The others are for kinds that can use them: ``capacity``, the documents to expect, and
        ``directory``, the folder for temporary files, None that of Python's tempfile.
        """

    def load_structure(self, paths: dict[str, Path], dim: int, num_rows: int) -> Structure:
        """What ``save`` wrote; CorruptIndex where it is damaged. Files of older formats are for :mod:`lemur_ann.formats`."""

    def rebuild(self, paths: dict[str, Path], dim: int, num_rows: int, options: dict[str, Any]) -> Structure:
        """The same made anew, of what can be checked, for kinds whose files cannot be; CorruptIndex where it cannot be made."""
        return self.load_structure(paths, dim, num_rows)

    def assemble(
        self, dim: int, structure: Structure | None, parts: list[Vectors], options: dict[str, Any], directory: str | None = None
    ) -> CandidateIndex:
        """A candidate index of what was saved."""


def too_many(num_scanned: int, num_linked: int) -> bool:
    """Whether a structure is made anew, for rows that a search would scan."""
    return num_scanned > max(min(num_linked * SMALL_SHARE, MAX_SCANNED), num_linked * LARGE_SHARE, MIN_SCANNED)


def joined(parts: list[Vectors], vectors: Vectors) -> list[Vectors]:
    """Parts with another at the end, which takes in smaller ones before it: many small additions make few parts."""
    parts = list(parts)
    while parts and len(parts[-1]) < 2 * len(vectors) and parts[-1].size + vectors.size <= PART_VALUES_TO_MERGE:
        vectors = np.concatenate([parts.pop(), vectors])
    return [*parts, vectors]


def take_from(parts: list[Vectors], dim: int, rows: Rows) -> Vectors:
    """Rows of parts laid end to end."""
    out = np.empty((len(rows), dim), np.float32)
    first = 0
    for part in parts:
        inside = (rows >= first) & (rows < first + len(part))
        out[inside] = part[rows[inside] - first]
        first += len(part)
    return out
