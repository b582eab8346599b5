"""The second look: the candidates of a shortlist, ranked anew by the centroids of their tokens; cpp/include/lemur/look.hpp.

A document's vector is a smooth estimate of its score. It underrates documents that match a few rare tokens exactly, and those
are often the very answers. So every token has the number of its nearest centroid, two bytes, and a document of the shortlist is
ranked by its token maxima over centroids and its place by estimate together, with a small network that learned how.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lemur_ann import _core
from lemur_ann.documents.coded import Codebook, Part, appended, taken
from lemur_ann.documents.coded_store import CodedStore
from lemur_ann.documents.inputs import QueryBatch, to_offsets
from lemur_ann.documents.rows import Rows, RowSet
from lemur_ann.documents.tokens import TokenStore
from lemur_ann.errors import CorruptIndex
from lemur_ann.events import cached_property
from lemur_ann.validate import Offsets

NUM_KNOWN = 5  # numbers that are known of a document
MAX_CENTROIDS = 65_536  # which two bytes can number
MIN_LOOK_DOCUMENTS = 500  # of fewer a search reranks nearly all
ENOUGH_FOR_CODES = 4096  # centroids: small codes gain from twice as many as usual up to here, and from no more
NUM_HIDDEN = 32  # units of a network that is learned
ROWS_PER_BLOCK = 1024  # of documents here and there, whose tokens are copied
RARE_SHARE = 1.5  # documents that match a rare token, for each on the shortlist, at most: they cost less than a wider walk


def usual_centroids(num_tokens: int) -> int:
    """How many centroids so many tokens are given: about twice the root, a power of two."""
    return int(np.clip(2 ** round(math.log2(2 * math.sqrt(max(num_tokens, 1)))), 1, MAX_CENTROIDS))


def num_centroids(asked: int | None, num_documents: int, num_tokens: int, *, are_coded: bool) -> int:
    """How many a map learns: those asked for, or what is usual; 0 for none, as of few documents without small codes."""
    if asked is not None:
        return asked
    usual = usual_centroids(num_tokens)
    if are_coded:
        return max(usual, min(2 * usual, ENOUGH_FOR_CODES))
    return usual if num_documents >= MIN_LOOK_DOCUMENTS else 0


class CodeMaps(NamedTuple):
    """What small codes are made with: float32 (dim, dim), (dim, dim) and (1,); see ``lemur_ann.documents.coded.Codebook``."""

    token_map: npt.NDArray[np.float32]
    query_map: npt.NDArray[np.float32]
    unit: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class LookWeights:
    """What a second look has learned.

    Attributes:
        centroids: float32 (num_centroids, dim), of length 1.
        hidden, bias, output: float32 (num_hidden, 5), (num_hidden,) and (num_hidden,): a score of what is known of a document
            is ``output @ max(0, hidden @ known + bias)``.
        codes: what small codes are made with; None in maps of formats before 7.
    """

    centroids: npt.NDArray[np.float32]
    hidden: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    output: npt.NDArray[np.float32]
    codes: CodeMaps | None = None

    def codebook(self, bits: int) -> Codebook:
        """What tokens are coded by, with so many bits a component, or with none."""
        return self._codebooks.setdefault(bits, self._codebook(bits))

    @cached_property
    def _codebooks(self) -> dict[int, Codebook]:
        return {}

    def _codebook(self, bits: int) -> Codebook:
        if bits == 0 or self.codes is None:
            return Codebook(self.centroids)
        token_map, query_map, unit = self.codes
        return Codebook(self.centroids, token_map, query_map, float(unit[0]), bits)

    @classmethod
    def of(cls, arrays: dict[str, npt.NDArray[Any]]) -> LookWeights | None:
        """Those among the arrays of a map; None where it has none."""
        if "centroids" not in arrays:
            return None
        network = arrays["look.hidden"], arrays["look.bias"], arrays["look.output"]
        codes = None
        if "codes.unit" in arrays:
            codes = CodeMaps(arrays["codes.token_map"], arrays["codes.query_map"], arrays["codes.unit"])
        return cls(arrays["centroids"], *network, codes)

    @property
    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """For storage."""
        found = {"centroids": self.centroids, "look.hidden": self.hidden, "look.bias": self.bias, "look.output": self.output}
        if self.codes is not None:
            found |= {f"codes.{name}": array for name, array in self.codes._asdict().items()}
        return found


class SecondLook:
    """Documents by the centroids of their tokens. It never changes: more documents make a new one, which shares what it can.

    ``bits`` of small codes are kept beside them, a component; 0: none.
    """

    def __init__(self, weights: LookWeights, parts: list[Part], bits: int = 0) -> None:
        self.weights, self.parts, self.bits = weights, parts, bits
        self.book = weights.codebook(bits)

    @property
    def num_rows(self) -> int:
        """How many documents it holds."""
        return sum(map(len, self.parts))

    @cached_property
    def _documents(self) -> _core.SecondLook:
        try:
            return _core.SecondLook(self.book.nearest, [part.listed for part in self.parts])
        except ValueError as error:  # ids are looked at when they are first used
            raise CorruptIndex(f"the centroids of documents cannot be read: {error}") from error

    @cached_property
    def small(self) -> _core.SmallDocuments | None:
        """The small codes of all documents, for the kernels; None where there are none."""
        if not self.bits:
            return None
        return self.book.small(self.parts)

    def extended(self, store: TokenStore, *, num_threads: int) -> SecondLook:
        """With the documents of a store at the end."""
        parts = self.parts
        if isinstance(store, CodedStore):
            if not store.book.is_like(self.book):  # what other codes stand for is coded anew
                return self.of_rows(store, np.arange(len(store)), num_threads=num_threads)
            for part in store.parts:
                parts = appended(parts, part)
        for chunk in store.chunks:
            parts = appended(parts, self.book.coded(chunk.tokens, chunk.offsets, num_threads=num_threads))
        return self._of(parts)

    def recoded(self, store: TokenStore, weights: LookWeights, bits: int, *, num_threads: int) -> SecondLook:
        """The same documents, which are those of a store, with small codes of other bits, or without any.

        Raises:
            ValueError: the weights have nothing to make small codes with.
        """
        empty = SecondLook(weights, [], bits)
        if bits and empty.book.bits == 0:
            raise ValueError("the learned map has nothing to make small codes with")
        if bits == self.bits:
            return SecondLook(weights, self.parts, bits)
        if not bits:
            return SecondLook(weights, [replace(part, small=None) for part in self.parts])
        if isinstance(store, CodedStore):
            parts = [empty.book.recoded(part, self.book, num_threads=num_threads) for part in self.parts]
            return SecondLook(weights, parts, bits)
        return empty.extended(store, num_threads=num_threads)

    def of_rows(self, store: TokenStore, rows: Rows, *, num_threads: int) -> SecondLook:
        """The same for some documents of a store, by ascending rows."""
        parts = self.parts
        for begin in range(0, len(rows), ROWS_PER_BLOCK):
            tokens, offsets = store.gather(rows[begin : begin + ROWS_PER_BLOCK])
            parts = appended(parts, self.book.coded(tokens, offsets, num_threads=num_threads))
        return self._of(parts)

    def with_part(self, part: Part) -> SecondLook:
        """With documents at the end that are coded already."""
        return self._of(appended(self.parts, part))

    def take(self, rows: Rows) -> Part:
        """Some documents, by ascending rows."""
        return taken(self.parts, rows, self.book)

    def check(self, store: TokenStore) -> None:
        """CorruptIndex unless it has the codes of these documents, in their order."""
        first = 0
        if any(part.ids.max(initial=0) >= part.num_centroids for part in self.parts):
            raise CorruptIndex("a token has a centroid that there is not")
        for part in [] if isinstance(store, CodedStore) else self.parts:
            begin, last = 0, first + len(part)
            for chunk in store.part(first, last):
                end = begin + len(chunk.offsets) - 1
                if not np.array_equal(np.diff(chunk.offsets), np.diff(part.offsets[begin : end + 1])):
                    raise CorruptIndex(f"the documents from row {first} on have more or fewer tokens than centroids")
                expected = self.book.coded(chunk.tokens, chunk.offsets, num_threads=1)
                own = part.slice(int(part.offsets[begin]), int(part.offsets[end]))
                if not np.array_equal(expected.ids, own.ids):
                    raise CorruptIndex(f"centroids of the documents from row {first} on are not those of their tokens")
                if expected.small is not None and own.small is not None:
                    (codes, scales, lengths), (own_codes, own_scales, own_lengths) = expected.small, own.small
                    ones = np.ones(len(scales), np.float32)
                    is_as_long = np.array_equal(
                        ones if lengths is None else lengths, ones if own_lengths is None else own_lengths
                    )
                    if not (is_as_long and np.array_equal(codes, own_codes) and np.array_equal(scales, own_scales)):
                        raise CorruptIndex(f"small codes of the documents from row {first} on are not those of their tokens")
                first, begin = first + end - begin, end

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

    def _of(self, parts: list[Part]) -> SecondLook:
        return SecondLook(self.weights, parts, self.bits)


def _flat(shortlists: list[Rows]) -> tuple[Rows, Offsets]:
    return np.concatenate([np.empty(0, np.int64), *shortlists]), to_offsets([len(rows) for rows in shortlists])


def _num_rare(shortlists: list[Rows]) -> int:
    return int(RARE_SHARE * max(map(len, shortlists), default=0))
