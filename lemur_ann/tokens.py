"""The token store: every document's tokens, in memory or memory-mapped, read in place by the reranker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lemur_ann import _core
from lemur_ann._validate import Offsets, Tokens
from lemur_ann.errors import CorruptIndex
from lemur_ann.inputs import tokens_from_arrow

VALUES_PER_BATCH = 2**27  # of the file: small enough for every Arrow implementation, large enough to be one read


class TokenStore:
    """Documents as chunks of (tokens, offsets), all of one dim and dtype; document i keeps its index for ever."""

    def __init__(self, chunks: Sequence[tuple[Tokens, Offsets]] = ()) -> None:
        self._chunks = list(chunks)
        self._documents: _core.Documents | None = None

    def __len__(self) -> int:
        return sum(len(offsets) - 1 for _, offsets in self._chunks)

    @property
    def dim(self) -> int | None:
        """Dimension of the tokens; None while empty."""
        return self._chunks[0][0].shape[1] if self._chunks else None

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """float32 or float16; None while empty."""
        return self._chunks[0][0].dtype if self._chunks else None

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents together."""
        return sum(int(offsets[-1] - offsets[0]) for _, offsets in self._chunks)

    @property
    def documents(self) -> _core.Documents:
        """All documents, for the kernels."""
        if self._documents is None:
            self._documents = _core.Documents(self._chunks)
        return self._documents

    def __getitem__(self, index: int) -> Tokens:
        """The (num_tokens, dim) matrix of one document, a view."""
        for tokens, offsets in self._chunks:
            if index < len(offsets) - 1:
                return tokens[offsets[index] : offsets[index + 1]]
            index -= len(offsets) - 1
        raise IndexError("document index outside the store")

    def select(self, indices: npt.NDArray[np.int64]) -> _core.Documents:
        """Some documents, in ascending order of index, for the kernels; nothing is copied."""
        chunks = []
        first = 0
        for tokens, offsets in self._chunks:
            size = len(offsets) - 1
            inside = indices[(indices >= first) & (indices < first + size)] - first
            # runs of neighbouring documents become one chunk each
            runs = np.split(inside, np.flatnonzero(np.diff(inside) != 1) + 1)
            chunks += [(tokens, offsets[run[0] : run[-1] + 2]) for run in runs if len(run)]
            first += size
        return _core.Documents(chunks)

    def append(self, tokens: Tokens, offsets: Offsets) -> None:
        """Add documents at the end, in the store's dtype; the arrays are kept, not copied."""
        if len(offsets) == 1:
            return
        assert self.dtype in (None, tokens.dtype)
        chunk = (tokens, offsets)
        # Chunks at least halve in size from first to last, so many small additions cost few copies and few chunks.
        while self._chunks and len(self._chunks[-1][0]) < 2 * len(chunk[0]) and len(chunk[0]) < 2**20:
            chunk = _concatenate(self._chunks.pop(), chunk)
        self._chunks.append(chunk)
        self._documents = None

    def write(self, path: Path) -> None:
        """Write an Arrow IPC file with one column ``tokens``."""
        dim = self.dim or 1
        value_type = pa.from_numpy_dtype(self.dtype or np.dtype(np.float32))
        schema = pa.schema([pa.field("tokens", pa.large_list(pa.list_(value_type, dim)), nullable=False)])
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for tokens, offsets in self._chunks:
                for part_tokens, part_offsets in _parts(tokens, offsets, VALUES_PER_BATCH // dim):
                    vectors = pa.FixedSizeListArray.from_arrays(pa.array(part_tokens.reshape(-1)), dim)
                    column = pa.LargeListArray.from_arrays(pa.array(part_offsets), vectors)
                    writer.write_batch(pa.record_batch([column], schema=schema))

    @classmethod
    def open(cls, path: Path) -> TokenStore:
        """Map a file that :meth:`write` made; tokens are read from it when they are first used."""
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            store = cls([tokens_from_arrow(batch.column("tokens"), path.name) for batch in batches if len(batch)])
            _ = store.documents  # checks every offset
        except (pa.ArrowException, ValueError, TypeError, KeyError) as error:
            raise CorruptIndex(f"{path.name} is not a token file: {error}") from error
        return store


def _concatenate(a: tuple[Tokens, Offsets], b: tuple[Tokens, Offsets]) -> tuple[Tokens, Offsets]:
    a_tokens = a[0][a[1][0] : a[1][-1]]
    b_tokens = b[0][b[1][0] : b[1][-1]]
    offsets = np.concatenate([a[1] - a[1][0], b[1][1:] - b[1][0] + len(a_tokens)])
    return np.concatenate([a_tokens, b_tokens]), offsets


def _parts(tokens: Tokens, offsets: Offsets, tokens_per_part: int) -> Iterator[tuple[Tokens, Offsets]]:
    """The chunk cut into parts of whole documents with about ``tokens_per_part`` tokens each."""
    begin = 0
    while begin < len(offsets) - 1:
        end = int(np.searchsorted(offsets, offsets[begin] + tokens_per_part, side="right")) - 1
        end = max(end, begin + 1)
        yield tokens[offsets[begin] : offsets[end]], offsets[begin : end + 1] - offsets[begin]
        begin = end
