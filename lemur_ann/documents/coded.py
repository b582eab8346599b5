"""Documents by what stands for their tokens: each token's nearest centroid, and small codes beside it where these are kept.

A small code has 1 to 4 bits for each component of what a token is beside its centroid; cpp/include/lemur/codec.hpp says how.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lemur_ann import _core
from lemur_ann.arrays import are_finite
from lemur_ann.documents.inputs import to_offsets
from lemur_ann.documents.rows import Rows, runs
from lemur_ann.errors import CorruptIndex
from lemur_ann.events import cached_property
from lemur_ann.validate import Offsets, Tokens

TOKENS_PER_BLOCK = 2**18  # that are coded together
TOKENS_TO_MERGE = 2**22  # parts with fewer may be merged: 8 MiB of centroids
CENTROID_BYTES, SCALE_BYTES, LENGTH_BYTES = 2, 2, 4  # of a token, beside its code
UNIT_LENGTH = 0.01  # lengths that differ no more from 1 are 1

Centroids = npt.NDArray[np.uint16]
Small = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int16], "npt.NDArray[np.float32] | None"]


@dataclass(frozen=True, eq=False)
class Codebook:
    """What tokens are coded by.

    Attributes:
        centroids: float32 (num_centroids, dim), of length 1.
        token_map: float32 (dim, dim), by whose rows tokens are turned before they are coded.
        query_map: float32 (dim, dim), its inverse transposed, for query tokens.
        unit: of the components of turned tokens.
        bits: of small codes, a component; 0 where there are none.
    """

    centroids: npt.NDArray[np.float32]
    token_map: npt.NDArray[np.float32] | None = None
    query_map: npt.NDArray[np.float32] | None = None
    unit: float = 1.0
    bits: int = 0

    @cached_property
    def nearest(self) -> _core.Centroids:
        """The centroids, for the kernels."""
        return _core.Centroids(self.centroids)

    @cached_property
    def codec(self) -> _core.Codec:
        """What makes and reads small codes."""
        assert self.token_map is not None
        assert self.query_map is not None
        return _core.Codec(self.centroids, self.token_map, self.query_map, self.unit, self.bits)

    def coded(self, tokens: Tokens, offsets: Offsets, *, num_threads: int) -> Part:
        """Documents laid end to end, tokens[offsets[0] : offsets[-1]]."""
        first, last = int(offsets[0]), int(offsets[-1])
        part = Part.empty(self)
        blocks = [part]
        for begin in range(first, last, TOKENS_PER_BLOCK):
            block = np.ascontiguousarray(tokens[begin : min(begin + TOKENS_PER_BLOCK, last)])
            ids, small = self.nearest.nearest(block, num_threads), None
            if self.bits:
                codes, scales, lengths = self.codec.encode(block, ids, num_threads)
                is_unit = np.abs(lengths - 1) <= UNIT_LENGTH
                lengths = np.where(is_unit, np.float32(1), lengths)  # token by token: whatever comes with it
                small = codes, scales, None if is_unit.all() else lengths
            blocks.append(replace(part, ids=ids, small=small))
        return replace(_laid_end_to_end(blocks), offsets=offsets - first)

    def recoded(self, part: Part, before: Codebook, *, num_threads: int) -> Part:
        """The same documents by these bits, made of what codes of another number of bits stand for."""
        blocks = [Part.empty(self)]
        for begin in range(0, len(part.ids), TOKENS_PER_BLOCK):
            end = min(begin + TOKENS_PER_BLOCK, len(part.ids))
            block = part.slice(begin, end)
            assert block.small is not None
            codes, scales, _ = self.codec.encode(before.decoded(part, begin, end), block.ids, num_threads)
            blocks.append(replace(block, small=(codes, scales, block.small[2])))
        return replace(_laid_end_to_end(blocks), offsets=part.offsets)

    def small(self, parts: Sequence[Part]) -> _core.SmallDocuments:
        """The small codes of documents, for the kernels."""
        columns = []
        for part in parts:
            assert part.small is not None
            codes, scales, lengths = part.small
            columns.append((codes, part.ids, scales, lengths, part.offsets))
        return _core.SmallDocuments(self.codec, columns)

    def is_like(self, other: Codebook) -> bool:
        """Whether codes of one are codes of the other."""
        pairs = (self.centroids, other.centroids), (self.token_map, other.token_map)
        same = all(a is b or (a is not None and b is not None and np.array_equal(a, b)) for a, b in pairs)
        return same and (self.unit, self.bits) == (other.unit, other.bits)

    def decoded(self, part: Part, begin: int, end: int) -> npt.NDArray[np.float32]:
        """The tokens from ``begin`` to ``end`` of a part, as its small codes have them."""
        assert part.small is not None
        codes, scales, lengths = part.small
        own = None if lengths is None else lengths[begin:end]
        try:
            tokens: npt.NDArray[np.float32] = self.codec.decode(codes[begin:end], part.ids[begin:end], scales[begin:end], own)
        except ValueError as error:
            raise CorruptIndex(f"codes of tokens cannot be read: {error}") from error
        return tokens


@dataclass(frozen=True, eq=False)
class Part:
    """Documents laid end to end.

    Attributes:
        ids: uint16 (num_tokens,), the number of each token's centroid.
        offsets: int64 (num_documents + 1,), from 0.
        num_centroids: that there are.
        small: small codes uint8 (num_tokens, num_bytes), their scales int16 (num_tokens,), and the lengths of tokens, float32
            (num_tokens,), or None where all are 1; None where no small codes are kept.
    """

    ids: Centroids
    offsets: Offsets
    num_centroids: int
    small: Small | None = None

    @classmethod
    def empty(cls, book: Codebook) -> Part:
        """No documents."""
        small = None
        if book.bits:
            small = np.empty((0, book.codec.num_bytes), np.uint8), np.empty(0, np.int16), None
        return cls(np.empty(0, np.uint16), np.zeros(1, np.int64), len(book.centroids), small)

    @cached_property
    def listed(self) -> _core.CentroidIds:
        """The centroids for searches, with the documents of rare ones."""
        return _core.CentroidIds(self.ids, self.offsets, self.num_centroids)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """For storage."""
        found: dict[str, npt.NDArray[Any]] = {"ids": self.ids, "offsets": self.offsets}
        if self.small is not None:
            found |= {"codes": self.small[0], "scales": self.small[1]}
            if self.small[2] is not None:
                found["lengths"] = self.small[2]
        return found

    def slice(self, begin: int, end: int) -> Part:
        """The tokens from ``begin`` to ``end``, of no documents."""
        small = None
        if self.small is not None:
            codes, scales, lengths = self.small
            small = codes[begin:end], scales[begin:end], None if lengths is None else lengths[begin:end]
        return replace(self, ids=self.ids[begin:end], offsets=np.zeros(1, np.int64), small=small)


def checked_part(arrays: dict[str, npt.NDArray[Any]], num_rows: int, book: Codebook, name: object) -> Part:
    """What a file has of so many documents; CorruptIndex where it cannot be. The kernels look at ids and offsets they read."""
    ids, offsets = arrays["ids"], arrays["offsets"]
    fits = ids.dtype == np.uint16 and ids.ndim == 1 and offsets.dtype == np.int64 and offsets.shape == (num_rows + 1,)
    if not fits or offsets[0] != 0 or offsets[-1] != len(ids) or (np.diff(offsets) < 0).any():
        raise CorruptIndex(f"{name} does not have the centroids of {num_rows} documents")
    small = None
    if book.bits:
        codes, scales, lengths = arrays["codes"], arrays["scales"], arrays.get("lengths")
        expected: list[tuple[npt.NDArray[Any], Any, tuple[int, ...]]] = [
            (codes, np.uint8, (len(ids), book.codec.num_bytes)),
            (scales, np.int16, (len(ids),)),
        ]
        expected += [] if lengths is None else [(lengths, np.float32, (len(ids),))]
        if any(array.dtype != dtype or array.shape != shape for array, dtype, shape in expected):
            raise CorruptIndex(f"{name} does not have the codes of {len(ids)} tokens")
        if scales.min(initial=0) < 0 or (lengths is not None and not (are_finite(lengths) and lengths.min(initial=0) >= 0)):
            raise CorruptIndex(f"{name} has a scale or a length of a token that is below 0, or no number")
        small = codes, scales, lengths
    return Part(ids, offsets, len(book.centroids), small)


def appended(parts: Sequence[Part], part: Part) -> list[Part]:
    """With a part at the end, which takes in smaller ones before it: many small additions make few parts."""
    parts = list(parts)
    while parts and len(parts[-1].ids) < 2 * len(part.ids) + 1 and len(parts[-1].ids) + len(part.ids) <= TOKENS_TO_MERGE:
        before = parts.pop()
        offsets = np.concatenate([before.offsets, part.offsets[1:] + before.offsets[-1]])
        part = replace(_laid_end_to_end([before, part]), offsets=offsets)
    return [*parts, part]


def taken(parts: Sequence[Part], rows: Rows, book: Codebook) -> Part:
    """Some documents, by ascending rows."""
    blocks, lengths, first = [Part.empty(book)], [np.empty(0, np.int64)], 0
    for part in parts:
        offsets = part.offsets
        inside = rows[(rows >= first) & (rows < first + len(part))] - first
        lengths.append(offsets[inside + 1] - offsets[inside])
        blocks += [part.slice(int(offsets[run[0]]), int(offsets[run[-1] + 1])) for run in runs(inside)]
        first += len(part)
    return replace(_laid_end_to_end(blocks), offsets=to_offsets(np.concatenate(lengths)))


def _laid_end_to_end(parts: Sequence[Part]) -> Part:
    """Their tokens; whose documents these are, the caller knows."""
    small = None
    smalls = [part.small for part in parts if part.small is not None]
    if smalls:
        lengths = None
        if any(own is not None for _, _, own in smalls):
            lengths = np.concatenate([np.ones(len(s), np.float32) if own is None else own for _, s, own in smalls])
        small = np.concatenate([codes for codes, _, _ in smalls]), np.concatenate([s for _, s, _ in smalls]), lengths
    return replace(parts[0], ids=np.concatenate([part.ids for part in parts]), small=small)
