"""The token store: every document's tokens, in memory or memory-mapped, read in place by the reranker."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lemur_ann import _core
from lemur_ann.documents.arrow_files import open_arrow
from lemur_ann.documents.inputs import to_offsets, tokens_from_arrow
from lemur_ann.documents.rows import Rows, runs
from lemur_ann.errors import CorruptIndex
from lemur_ann.validate import Offsets, Tokens, cores

VALUES_PER_BATCH = 2**24  # of a token file: 64 MiB of float32, the memory it takes to write one
MAX_DIM = 131_072  # of a token file: int8 codes of more could not be multiplied
CODE_COLUMNS = ("codes", "scales", "sums")
BYTES_TO_MERGE = 2**24  # chunks below this may be merged, those above stay where they lie

Codes = tuple[npt.NDArray[np.int8], npt.NDArray[np.float32], npt.NDArray[np.int32]]


class Chunk(NamedTuple):
    """Documents laid end to end."""

    tokens: Tokens
    offsets: Offsets
    codes: Codes | None = None  # of each row of tokens: int8 codes, their scale, their sum


class Piece(Protocol):
    """Documents of a store that are together in memory and on disk."""

    @property
    def offsets(self) -> Offsets:
        """int64 (num_documents + 1,)."""


def without_gaps(tokens: Tokens, offsets: Offsets) -> tuple[Tokens, Offsets]:
    """The same documents, where offsets name a part of the tokens only."""
    return tokens[offsets[0] : offsets[-1]], offsets - offsets[0]


class TokenStore:
    """Documents as chunks, all of one dim and dtype. It never changes: more documents make a new one, with the same chunks.

    ``coded``: whether int8 codes of all tokens are kept beside them, for the first pass of a rerank.
    """

    def __init__(self, chunks: Sequence[Chunk | tuple[Tokens, Offsets]] = (), *, coded: bool = False) -> None:
        self.chunks = [chunk if isinstance(chunk, Chunk) else Chunk(*chunk) for chunk in chunks]
        self._coded = coded
        self._firsts = to_offsets([len(chunk.offsets) - 1 for chunk in self.chunks])
        self._documents: _core.Documents | None = None

    def __len__(self) -> int:
        return int(self._firsts[-1])

    @property
    def pieces(self) -> Sequence[Piece]:
        """What the documents are kept in, laid end to end."""
        return self.chunks

    @property
    def dim(self) -> int | None:
        """Dimension of the tokens; None while empty."""
        return self.chunks[0].tokens.shape[1] if self.chunks else None

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """float32 or float16; None while empty."""
        return self.chunks[0].tokens.dtype if self.chunks else None

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents together."""
        return sum(int(chunk.offsets[-1] - chunk.offsets[0]) for chunk in self.chunks)

    @property
    def coded(self) -> bool:
        """Whether int8 codes of all tokens are kept beside them."""
        return self._coded

    @property
    def documents(self) -> _core.Documents:
        """All documents, for the kernels."""
        if self._documents is None:
            codes = [chunk.codes for chunk in self.chunks if chunk.codes is not None]
            self._documents = _core.Documents([(chunk.tokens, chunk.offsets) for chunk in self.chunks], codes)
        return self._documents

    def with_small(self, small: _core.SmallDocuments) -> _core.Documents:
        """All documents, with small codes of them."""
        return _core.Documents([(chunk.tokens, chunk.offsets) for chunk in self.chunks], [], small)

    def __getitem__(self, row: int) -> Tokens:
        """The (num_tokens, dim) matrix of one document, a view."""
        if not 0 <= row < len(self):
            raise IndexError("document index outside the store")
        i = int(np.searchsorted(self._firsts, row, side="right")) - 1
        tokens, offsets, _ = self.chunks[i]
        row -= int(self._firsts[i])
        return tokens[offsets[row] : offsets[row + 1]]

    def select(self, rows: Rows) -> _core.Documents:
        """Some documents, by ascending rows, for the kernels; nothing is copied."""
        chunks = []
        cuts = np.searchsorted(rows, self._firsts)
        for i in np.flatnonzero(np.diff(cuts)).tolist():
            tokens, offsets, _ = self.chunks[i]
            inside = rows[cuts[i] : cuts[i + 1]] - self._firsts[i]
            # runs of neighbouring documents become one chunk each
            chunks += [(tokens, offsets[run[0] : run[-1] + 2]) for run in runs(inside)]
        return _core.Documents(chunks)

    def candidate_scores(
        self, tokens: Tokens, offsets: Offsets, candidates: npt.NDArray[np.int64], bounds: Offsets, *, num_threads: int
    ) -> npt.NDArray[np.float32]:
        """Exact MaxSim of queries and their own candidates, float32 (len(candidates),); -inf for one without tokens.

        Args:
            tokens, offsets: the queries, float32 (total_tokens, dim) and int64 (num_queries + 1,).
            candidates: indices of documents, those of the first query first.
            bounds: int64 (num_queries + 1,), where in these each query's begin and end.
            num_threads: at least 1.
        """
        return _core.candidate_scores(tokens, offsets, self.documents, candidates, bounds, num_threads)

    def gather(self, rows: Rows) -> tuple[Tokens, Offsets]:
        """Some documents' tokens, laid end to end, and their offsets."""
        matrices = [self[int(row)] for row in rows]
        return np.concatenate(matrices), np.concatenate([[0], np.cumsum([len(matrix) for matrix in matrices])])

    def to_arrow(self, rows: Rows) -> pa.Array:
        """Some documents as large_list<fixed_size_list<float32 or float16>[dim]>."""
        if self.dtype is None or self.dim is None:
            return pa.array([], pa.large_list(pa.list_(pa.float32(), 1)))
        matrices = [np.empty((0, self.dim), self.dtype), *(self[int(row)] for row in rows)]
        offsets = np.cumsum([len(matrix) for matrix in matrices])
        return tokens_column(np.concatenate(matrices), offsets)

    def extended(self, tokens: Tokens, offsets: Offsets, codes: Codes | None = None, *, num_threads: int = 1) -> TokenStore:
        """With more documents at the end, in the store's dtype; the arrays are kept, not copied."""
        if len(offsets) == 1:
            return self
        assert self.dtype in (None, tokens.dtype)
        if self._coded and codes is None:
            tokens, offsets = without_gaps(tokens, offsets)
            codes = _core.token_codes(tokens, num_threads)
        chunk = Chunk(tokens, offsets, codes if self._coded else None)
        chunks = list(self.chunks)
        # Small chunks at least halve in size from first to last, so many small additions cost few copies and few chunks.
        while chunks and len(chunks[-1].tokens) < 2 * len(chunk.tokens) and _is_small(chunk) and _is_small(chunks[-1]):
            chunk = _concatenate(chunks.pop(), chunk)
        return TokenStore([*chunks, chunk], coded=self._coded)

    def part(self, begin: int, end: int) -> list[Chunk]:
        """The documents from ``begin`` to ``end``, as views of the chunks."""
        found = []
        for chunk, first in zip(self.chunks, self._firsts.tolist(), strict=False):
            low, high = max(begin - first, 0), min(end - first, len(chunk.offsets) - 1)
            if (low, high) == (0, len(chunk.offsets) - 1):
                found.append(chunk)
            elif low < high:
                rows = slice(int(chunk.offsets[low]), int(chunk.offsets[high]))
                codes = chunk.codes and cast(Codes, tuple(array[rows] for array in chunk.codes))
                found.append(Chunk(chunk.tokens[rows], chunk.offsets[low : high + 1] - chunk.offsets[low], codes))
        return found

    def slice(self, begin: int, end: int) -> TokenStore:
        """The documents from ``begin`` to ``end``, as a store of views."""
        return TokenStore(self.part(begin, end), coded=self._coded)

    def recoded(self, coded: bool, directory: str | os.PathLike[str] | None = None) -> TokenStore:
        """With int8 codes, or without; made anew in a temporary file in ``directory``."""
        if coded == self._coded or not self.chunks:
            return TokenStore(self.chunks, coded=coded)
        if not coded:
            return TokenStore([Chunk(chunk.tokens, chunk.offsets) for chunk in self.chunks])
        with TokenFile(directory, coded=True) as file:
            for chunk in self.chunks:
                file.append(chunk.tokens, chunk.offsets)
            return TokenStore(file.mapped(), coded=True)

    def joined(self, other: TokenStore) -> TokenStore:
        """With the documents of another store of this kind at the end."""
        store = self
        for chunk in other.chunks:
            store = store.extended(*chunk)
        return store

    def without(self, dropped: npt.NDArray[np.bool_], directory: str | os.PathLike[str] | None = None) -> TokenStore:
        """The documents where ``dropped`` is not set, in the same order.

        Chunks that lose none stay where they lie; what is left of the others goes to a temporary file in ``directory``.
        """
        chunks: list[Chunk] = []
        owns = [
            dropped[first : first + len(chunk.offsets) - 1]
            for chunk, first in zip(self.chunks, self._firsts.tolist(), strict=False)
        ]
        for loses, run in itertools.groupby(zip(self.chunks, owns, strict=True), key=lambda pair: bool(pair[1].any())):
            if not loses:
                chunks += [chunk for chunk, _ in run]
                continue
            with TokenFile(directory, coded=self._coded) as file:
                for chunk, own in run:
                    for part in runs(np.flatnonzero(~own)):
                        file.append(chunk.tokens, chunk.offsets[part[0] : part[-1] + 2])
                chunks += file.mapped()
        return TokenStore(chunks, coded=self._coded)

    def write(self, path: Path) -> None:
        """Write an Arrow IPC file with a column ``tokens``, and columns of codes where there are codes."""
        with pa.OSFile(str(path), "wb") as sink:
            writer = TokenWriter(sink, self.dim or 1, self.dtype or np.dtype(np.float32), coded=self._coded)
            for chunk in self.chunks:
                writer.append(chunk.tokens, chunk.offsets)
            writer.close()

    @classmethod
    def open(cls, path: Path, *, coded: bool = False) -> TokenStore:
        """Map a file that :meth:`write` made; tokens are read from it when they are first used."""
        try:
            store = cls(_chunks(open_arrow(path), path.name, coded), coded=coded)
            if (store.dim or 1) > MAX_DIM or len({chunk.tokens.dtype for chunk in store.chunks}) > 1:
                raise ValueError(f"tokens have more than {MAX_DIM} components, or more than one dtype")
            _ = store.documents  # checks every offset
        except (pa.ArrowException, ValueError, TypeError, KeyError, OSError, AttributeError) as error:
            raise CorruptIndex(f"{path.name} is not a token file: {error}") from error
        return store


class TokenWriter:
    """Writes documents as an Arrow IPC file with a column ``tokens``, in batches of whole documents.

    One batch is held in memory, of VALUES_PER_BATCH values; a document longer than that is a batch of its own. ``coded`` adds
    the columns of CODE_COLUMNS.
    """

    def __init__(self, sink: pa.NativeFile, dim: int, dtype: np.dtype[Any], *, coded: bool = False) -> None:
        kinds = {"tokens": pa.list_(pa.from_numpy_dtype(dtype), dim)}
        if coded:
            kinds |= zip(CODE_COLUMNS, (pa.list_(pa.int8(), _core.int8_stride(dim)), pa.float32(), pa.int32()), strict=True)
        self._schema = pa.schema([pa.field(name, pa.large_list(kind), nullable=False) for name, kind in kinds.items()])
        self._coded = coded
        self._writer = pa.ipc.new_file(sink, self._schema)
        tokens_per_batch = max(VALUES_PER_BATCH // dim, 1)
        self._tokens = np.empty((tokens_per_batch, dim), dtype)
        self._offsets = np.zeros(tokens_per_batch + 1, np.int64)
        self._size = 0

    def append(self, tokens: Tokens, offsets: Offsets) -> None:
        """Documents to come after those before; the arrays may change afterwards."""
        assert tokens.dtype == self._tokens.dtype
        begin = 0
        while begin < len(offsets) - 1:
            used = self._offsets[self._size]
            # the last document whose tokens, and whose offset, have room in this batch
            end = int(np.searchsorted(offsets, offsets[begin] + len(self._tokens) - used, side="right")) - 1
            end = min(end, begin + len(self._offsets) - 1 - self._size)
            part = tokens[offsets[begin] : offsets[max(end, begin + 1)]]
            bounds = offsets[begin : max(end, begin + 1) + 1] - offsets[begin]
            if end > begin:
                self._tokens[used : used + len(part)] = part
                self._offsets[self._size + 1 : self._size + len(bounds)] = used + bounds[1:]
                self._size += end - begin
                begin = end
            elif self._size:
                self._flush()
            else:  # longer than a whole batch
                self._write(part, bounds)
                begin += 1

    def close(self) -> None:
        """Write what is left and the end of the file; the sink stays open."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._size:
            self._write(self._tokens[: self._offsets[self._size]], self._offsets[: self._size + 1])
            self._size = 0

    def _write(self, tokens: Tokens, offsets: Offsets) -> None:
        values = [tokens, *(_core.token_codes(np.ascontiguousarray(tokens), cores()) if self._coded else ())]
        columns = [tokens_column(array, offsets) for array in values]
        self._writer.write_batch(pa.record_batch(columns, schema=self._schema))


def tokens_column(tokens: npt.NDArray[Any], offsets: npt.NDArray[np.int64]) -> pa.LargeListArray:
    """Flat rows (num_tokens, dim) and offsets (num_documents + 1,) as one Arrow array of matrices."""
    return pa.LargeListArray.from_arrays(pa.array(offsets), _as_arrow(tokens))


def _as_arrow(array: npt.NDArray[Any]) -> pa.Array:
    """An element a row: a number, or a list of all its components."""
    flat = pa.array(array.reshape(-1))
    return flat if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, array.shape[1])


class TokenFile:
    """A temporary token file for documents that come in a stream: written first, then mapped.

    It has no name (on Windows: it goes when its last handle does), so that nothing is left behind by an error, an interrupt, a
    killed process or the end of the index, and there is nothing to clean up: its space is free once nothing maps it.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None, *, coded: bool = False) -> None:
        self._directory = directory
        self._coded = coded
        self._file = cast(BinaryIO, tempfile.TemporaryFile(dir=directory))  # noqa: SIM115 (closed by __exit__)
        self._writer: TokenWriter | None = None

    def __enter__(self) -> TokenFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer = None
        pa.default_memory_pool().release_unused()  # what decoding the stream took
        with suppress(OSError):  # a full disk refuses what is still to be written once more
            self._file.close()

    def append(self, tokens: Tokens, offsets: Offsets) -> None:
        """Documents to come after those before, all of one dim and dtype; the arrays may change afterwards."""
        with self._naming_the_folder():
            if self._writer is None:
                sink = pa.PythonFile(self._file, mode="w")
                self._writer = TokenWriter(sink, tokens.shape[1], tokens.dtype, coded=self._coded)
            self._writer.append(tokens, offsets)

    def mapped(self) -> list[Chunk]:
        """All documents, as views of the file, which needs this object no longer."""
        if self._writer is None:
            return []
        with self._naming_the_folder():
            self._writer.close()
            self._file.flush()
        try:
            with pa.memory_map(f"/dev/fd/{self._file.fileno()}") as source:  # keeps no descriptor, unlike Python's mmap
                whole = source.read_buffer()
        except OSError:  # Windows, or a system without /dev/fd
            whole = pa.py_buffer(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ))
        return _chunks(pa.ipc.open_file(whole), "the temporary token file", self._coded)

    @contextmanager
    def _naming_the_folder(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            folder = tempfile.gettempdir() if self._directory is None else os.fspath(self._directory)
            reason = f"{error.strerror or error}, writing streamed tokens to a temporary file in {folder}"
            raise OSError(error.errno or errno.EIO, f"{reason}; directory= names another folder") from error


def _chunks(reader: pa.RecordBatchFileReader, name: str, coded: bool) -> list[Chunk]:
    """The batches of a token file, as views."""
    batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    for batch in batches:
        batch.validate()  # that buffers are as long as their columns
    return [_chunk(batch, name, coded) for batch in batches if len(batch)]


def _chunk(batch: pa.RecordBatch, name: str, coded: bool) -> Chunk:
    tokens, offsets = tokens_from_arrow(batch.column("tokens"), name)
    if not coded:
        return Chunk(tokens, offsets)
    values = [batch.column(column).values for column in CODE_COLUMNS]
    codes = values[0].values.to_numpy().reshape(-1, values[0].type.list_size)
    return Chunk(tokens, offsets, (codes, values[1].to_numpy(), values[2].to_numpy()))


def _is_small(chunk: Chunk) -> bool:
    return chunk.tokens.nbytes < BYTES_TO_MERGE


def _concatenate(a: Chunk, b: Chunk) -> Chunk:
    a_tokens, a_offsets = without_gaps(a.tokens, a.offsets)
    b_tokens, b_offsets = without_gaps(b.tokens, b.offsets)
    codes = None
    if a.codes is not None and b.codes is not None:  # whose tokens have no gaps
        codes = cast(Codes, tuple(np.concatenate([x, y]) for x, y in zip(a.codes, b.codes, strict=True)))
    return Chunk(np.concatenate([a_tokens, b_tokens]), np.concatenate([a_offsets, b_offsets[1:] + len(a_tokens)]), codes)
