"""Documents of which small codes alone are kept."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt

from lemur_ann import _core
from lemur_ann.documents.coded import Codebook, Part, appended, taken
from lemur_ann.documents.rows import Rows
from lemur_ann.documents.tokens import Chunk, Piece, TokenStore
from lemur_ann.validate import Offsets, Tokens


class CodedStore(TokenStore):
    """A token store whose tokens are what small codes stand for; it has no chunks.

    Args:
        book: what codes are made and read with.
        parts: the documents, with their small codes.
        dtype: of the tokens that it gives, which is that of the tokens it was made of.
    """

    def __init__(self, book: Codebook, parts: Sequence[Part], dtype: np.dtype[Any] | None) -> None:
        super().__init__()
        self.book, self.parts, self._dtype = book, list(parts), dtype
        self._firsts = np.cumsum([0, *map(len, self.parts)])

    @property
    def pieces(self) -> Sequence[Piece]:
        """Its parts."""
        return self.parts

    @property
    def dim(self) -> int | None:
        """Dimension of the tokens, known while empty too."""
        return int(self.book.centroids.shape[1])

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """float32 or float16, of the tokens that it gives."""
        return self._dtype

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents together."""
        return sum(len(part.ids) for part in self.parts)

    @property
    def documents(self) -> _core.Documents:
        """All documents, for the kernels, which decode what they read."""
        if self._documents is None:
            self._documents = self._for_kernels(self.parts)
        return self._documents

    def __getitem__(self, row: int) -> Tokens:
        if not 0 <= row < len(self):
            raise IndexError("document index outside the store")
        i = int(np.searchsorted(self._firsts, row, side="right")) - 1
        offsets = self.parts[i].offsets[row - int(self._firsts[i]) :]
        tokens = self.book.decoded(self.parts[i], int(offsets[0]), int(offsets[1]))
        if self._dtype in (None, tokens.dtype):
            return tokens
        most = np.finfo(self._dtype).max  # a code may stand for a little more than the token that it is of
        return np.clip(tokens, -most, most, out=tokens).astype(self._dtype)

    def select(self, rows: Rows) -> _core.Documents:
        """Some documents, by ascending rows, for the kernels; their codes are copied."""
        return self._for_kernels([taken(self.parts, rows, self.book)])

    def slice(self, begin: int, end: int) -> CodedStore:
        """The documents from ``begin`` to ``end``; their codes are copied."""
        return CodedStore(self.book, [taken(self.parts, np.arange(begin, end), self.book)], self._dtype)

    def recoded(self, coded: bool, directory: str | PathLike[str] | None = None) -> CodedStore:
        """Itself: int8 codes are of tokens, which are not kept."""
        assert not coded
        return self

    def joined(self, other: TokenStore) -> CodedStore:
        """With the documents of another coded store at the end."""
        assert isinstance(other, CodedStore)
        parts = self.parts
        for part in other.parts:
            parts = appended(parts, part)
        return CodedStore(self.book, parts, self._dtype)

    def without(self, dropped: npt.NDArray[np.bool_], directory: str | PathLike[str] | None = None) -> CodedStore:
        """The documents where ``dropped`` is not set, in memory: a folder for temporary files is not needed."""
        return CodedStore(self.book, [taken(self.parts, np.flatnonzero(~dropped), self.book)], self._dtype)

    def extended(self, tokens: Tokens, offsets: Offsets, codes: Any = None, *, num_threads: int = 1) -> CodedStore:
        """With more documents at the end, which are coded."""
        return CodedStore(
            self.book, appended(self.parts, self.book.coded(tokens, offsets, num_threads=num_threads)), self._dtype
        )

    def part(self, begin: int, end: int) -> list[Chunk]:
        """There are no chunks to take from: see :meth:`slice`."""
        raise NotImplementedError("a coded store has no chunks")

    def _for_kernels(self, parts: Sequence[Part]) -> _core.Documents:
        return _core.Documents([], [], self.book.small(parts))
