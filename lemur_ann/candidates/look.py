"""The second look: the candidates of a shortlist, ranked anew by the centroids of their tokens; cpp/include/lemur/look.hpp.

A document's vector is a smooth estimate of its score. It underrates documents that match a few rare tokens exactly, and those
are often the very answers. So every token has the number of its nearest centroid, two bytes, and a document of the shortlist is
ranked by its token maxima over centroids and its place by estimate together, with a small network that learned how.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lemur_ann import _core
from lemur_ann.documents.inputs import QueryBatch, to_offsets
from lemur_ann.documents.rows import Rows, RowSet
from lemur_ann.documents.tokens import TokenStore
from lemur_ann.errors import CorruptIndex
from lemur_ann.events import cached_property
from lemur_ann.validate import Offsets

NUM_KNOWN = 5  # numbers that are known of a document
MAX_CENTROIDS = 65_536  # which two bytes can number
TOKENS_PER_BLOCK = 2**18  # whose centroids are looked for together
ROWS_PER_BLOCK = 1024  # of documents here and there, whose tokens are copied
RARE_SHARE = 1.5  # documents that match a rare token, for each on the shortlist, at most: they cost less than a wider walk
IDS_TO_MERGE = 2**22  # parts with fewer ids may be merged: 8 MiB

Ids = npt.NDArray[np.uint16]


@dataclass(frozen=True, eq=False)
class LookWeights:
    """What a second look has learned.

    Attributes:
        centroids: float32 (num_centroids, dim), of length 1.
        hidden, bias, output: float32 (num_hidden, 5), (num_hidden,) and (num_hidden,): a score of what is known of a document
            is ``output @ max(0, hidden @ known + bias)``.
    """

    centroids: npt.NDArray[np.float32]
    hidden: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    output: npt.NDArray[np.float32]

    @cached_property
    def coded(self) -> _core.Centroids:
        """The centroids, for the kernels."""
        return _core.Centroids(self.centroids)

    @classmethod
    def of(cls, arrays: dict[str, npt.NDArray[Any]]) -> LookWeights | None:
        """Those among the arrays of a map; None where it has none."""
        if "centroids" not in arrays:
            return None
        return cls(arrays["centroids"], arrays["look.hidden"], arrays["look.bias"], arrays["look.output"])

    @property
    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """For storage."""
        return {"centroids": self.centroids, "look.hidden": self.hidden, "look.bias": self.bias, "look.output": self.output}


@dataclass(frozen=True, eq=False)
class Part:
    """The centroids of documents laid end to end: uint16 (num_tokens,) and int64 (num_documents + 1,)."""

    ids: Ids
    offsets: Offsets
    num_centroids: int

    @cached_property
    def listed(self) -> _core.CentroidIds:
        """The same for searches, with the documents of rare centroids."""
        return _core.CentroidIds(self.ids, self.offsets, self.num_centroids)

    def __len__(self) -> int:
        return len(self.offsets) - 1


def checked_part(ids: npt.NDArray[Any], offsets: npt.NDArray[Any], num_rows: int, num_centroids: int, name: object) -> Part:
    """What a file has of so many documents; CorruptIndex where it cannot be. The kernels look at ids and offsets they read."""
    fits = ids.dtype == np.uint16 and ids.ndim == 1 and offsets.dtype == np.int64 and offsets.shape == (num_rows + 1,)
    if not fits or offsets[0] != 0 or offsets[-1] != len(ids) or (np.diff(offsets) < 0).any():
        raise CorruptIndex(f"{name} does not have the centroids of {num_rows} documents")
    return Part(ids, offsets, num_centroids)


class SecondLook:
    """Documents by the centroids of their tokens. It never changes: more documents make a new one, which shares what it can."""

    def __init__(self, weights: LookWeights, parts: list[Part]) -> None:
        self.weights, self.parts = weights, parts

    @property
    def num_rows(self) -> int:
        """How many documents it holds."""
        return sum(map(len, self.parts))

    @cached_property
    def _documents(self) -> _core.SecondLook:
        try:
            return _core.SecondLook(self.weights.coded, [part.listed for part in self.parts])
        except ValueError as error:  # ids are looked at when they are first used
            raise CorruptIndex(f"the centroids of documents cannot be read: {error}") from error

    def extended(self, store: TokenStore, *, num_threads: int) -> SecondLook:
        """With the documents of a store at the end."""
        parts = list(self.parts)
        for chunk in store.chunks:
            first, last = int(chunk.offsets[0]), int(chunk.offsets[-1])
            blocks = [np.empty(0, np.uint16)]
            for begin in range(first, last, TOKENS_PER_BLOCK):
                tokens = chunk.tokens[begin : min(begin + TOKENS_PER_BLOCK, last)]
                blocks.append(self.weights.coded.nearest(tokens, num_threads))
            _append(parts, self._part(np.concatenate(blocks), chunk.offsets - first))
        return SecondLook(self.weights, parts)

    def of_rows(self, store: TokenStore, rows: Rows, *, num_threads: int) -> SecondLook:
        """The same for some documents of a store, by ascending rows."""
        parts = list(self.parts)
        for begin in range(0, len(rows), ROWS_PER_BLOCK):
            tokens, offsets = store.gather(rows[begin : begin + ROWS_PER_BLOCK])
            _append(parts, self._part(self.weights.coded.nearest(tokens, num_threads), offsets))
        return SecondLook(self.weights, parts)

    def with_part(self, part: Part) -> SecondLook:
        """With documents at the end whose centroids are known."""
        parts = list(self.parts)
        _append(parts, part)
        return SecondLook(self.weights, parts)

    def take(self, rows: Rows) -> Part:
        """The centroids of some documents, by ascending rows."""
        blocks, lengths, first = [np.empty(0, np.uint16)], [np.empty(0, np.int64)], 0
        for part in self.parts:
            ids, offsets = part.ids, part.offsets
            inside = rows[(rows >= first) & (rows < first + len(offsets) - 1)] - first
            lengths.append(offsets[inside + 1] - offsets[inside])
            blocks += [ids[offsets[run[0]] : offsets[run[-1] + 1]] for run in _runs(inside)]
            first += len(offsets) - 1
        return self._part(np.concatenate(blocks), to_offsets(np.concatenate(lengths)))

    def check(self, store: TokenStore) -> None:
        """CorruptIndex unless it has the centroids of these documents, in their order."""
        first = 0
        for part in self.parts:
            ids, offsets = part.ids, part.offsets
            last = first + len(offsets) - 1
            for chunk in store.part(first, last):
                if not np.array_equal(np.diff(chunk.offsets), np.diff(offsets[: len(chunk.offsets)])):
                    raise CorruptIndex(f"the documents from row {first} on have more or fewer tokens than centroids")
                expected = self.weights.coded.nearest(chunk.tokens[chunk.offsets[0] : chunk.offsets[-1]], 1)
                if not np.array_equal(expected, ids[offsets[0] : offsets[len(chunk.offsets) - 1]]):
                    raise CorruptIndex(f"centroids of the documents from row {first} on are not those of their tokens")
                first, offsets = first + len(chunk.offsets) - 1, offsets[len(chunk.offsets) - 1 :]

    def with_rare(self, queries: QueryBatch, shortlists: list[Rows], *, num_threads: int) -> list[Rows]:
        """Shortlists with documents of rare centroids at their ends."""
        rows, ends = self._documents.with_rare(
            queries.tokens, queries.offsets, *_flat(shortlists), _num_rare(shortlists), num_threads
        )
        return np.split(rows, ends[1:-1])

    def known(
        self, queries: QueryBatch, shortlists: list[Rows], num_estimated: int, *, num_threads: int
    ) -> npt.NDArray[np.float32]:
        """What is known of the documents on each query's shortlist, those of the first query first.

        ``num_estimated`` of each are in the order of estimates, best first; the others have none.

        Returns:
            float32 (n, NUM_KNOWN), as cpp/include/lemur/look.hpp lists them.
        """
        return self._documents.features(queries.tokens, queries.offsets, *_flat(shortlists), num_estimated, num_threads)

    def best(
        self, queries: QueryBatch, shortlists: list[Rows], count: int, *, num_threads: int, excluded: RowSet | None = None
    ) -> list[Rows]:
        """The best documents for each query, ``count`` at most, best first: of its shortlist, which has those of best estimate
        first, and of those that are in no shortlist, but match a rare token, unless they are ``excluded``."""
        weights = self.weights.hidden, self.weights.bias, self.weights.output
        mask = None if excluded is None or excluded.count == 0 else excluded.mask
        rows, ends = _flat(shortlists)
        rows, counts = self._documents.best(
            queries.tokens, queries.offsets, rows, ends, _num_rare(shortlists), mask, weights, count, num_threads
        )
        return [own[:size] for own, size in zip(rows, counts.tolist(), strict=True)]

    def _part(self, ids: Ids, offsets: Offsets) -> Part:
        return Part(ids, offsets, len(self.weights.centroids))


def _append(parts: list[Part], part: Part) -> None:
    """At the end, taking in smaller ones before it: many small additions make few parts."""
    while parts and len(parts[-1].ids) < 2 * len(part.ids) + 1 and len(parts[-1].ids) + len(part.ids) <= IDS_TO_MERGE:
        before = parts.pop()
        offsets = np.concatenate([before.offsets, part.offsets[1:] + before.offsets[-1]])
        part = Part(np.concatenate([before.ids, part.ids]), offsets, part.num_centroids)
    parts.append(part)


def _runs(rows: Rows) -> list[Rows]:
    """Neighbouring rows together."""
    return np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1) if len(rows) else []


def _flat(shortlists: list[Rows]) -> tuple[Rows, Offsets]:
    return np.concatenate([np.empty(0, np.int64), *shortlists]), to_offsets([len(rows) for rows in shortlists])


def _num_rare(shortlists: list[Rows]) -> int:
    return int(RARE_SHARE * max(map(len, shortlists), default=0))
