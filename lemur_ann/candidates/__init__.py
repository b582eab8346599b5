"""Stage 1: the index that proposes candidate documents. One file per kind, behind one protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


class CandidateIndex(Protocol):
    """What the library asks of a candidate index.

    Vectors are float32 (n, dim), all document vectors of one norm and queries with a last coordinate of 0, so that the
    largest inner product and the smallest L2 distance name the same documents. Documents arrive in ascending order of
    index without gaps.
    """

    @classmethod
    def create(cls, dim: int, options: dict[str, Any], capacity: int = 0, directory: str | None = None) -> CandidateIndex:
        """An empty index for vectors of this dimension.

        ``options`` are the library's, ``capacity`` the documents to expect, ``directory`` the folder for temporary files, None
        that of Python's tempfile.
        """

    def add(self, vectors: Vectors, *, first: int, num_threads: int) -> None:
        """Put documents at the indices from ``first`` on; what a broken-off call left there is replaced."""

    def finish(self) -> None:
        """The documents of one call to the library are all added: time for what would be wasteful after each block of them."""

    @property
    def num_rows(self) -> int:
        """One more than the largest document index, deleted ones included."""

    def delete(self, indices: Indices) -> None:
        """Never return these documents again; those that are not there, or deleted already, are passed over."""

    def search(self, queries: Vectors, num_candidates: int, ef_search: int, *, num_threads: int) -> list[Indices]:
        """For each query the document indices of largest inner product, best first.

        At most ``num_candidates``, and exactly so many where that many documents are left.
        """

    def take(self, indices: Indices) -> Vectors:
        """The vectors of some documents that are not deleted, float32 (len(indices), dim)."""

    def save(self, folder: Path) -> None:
        """Write files into ``folder``."""

    @classmethod
    def load(cls, folder: Path, dim: int, deleted: Indices) -> CandidateIndex:
        """Read what :meth:`save` wrote."""


KINDS = ("hnsw", "exact")


def kind_of(name: str) -> type[CandidateIndex]:
    """The class for a value of the option ``candidates``."""
    if name == "hnsw":
        from lemur_ann.candidates.hnsw import HnswCandidates

        return HnswCandidates
    if name == "exact":
        from lemur_ann.candidates.exact import ExactCandidates

        return ExactCandidates
    raise ValueError(f"candidates must be one of {', '.join(KINDS)}, got {name!r}")
