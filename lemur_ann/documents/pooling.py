"""Fewer tokens of a document: like ones are merged on the way in, and which these were is kept as metadata.

A column ``token_groups`` has for each token as it came the number of the pooled one that it is part of. Documents that come
with it are pooled already, and stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lemur_ann import _core, validate
from lemur_ann.documents.inputs import DocumentBatch, iterate_documents, to_offsets
from lemur_ann.documents.sources import opened
from lemur_ann.validate import Offsets, Tokens

GROUPS_COLUMN = "token_groups"
GROUPS_TYPE = pa.large_list(pa.uint16())
PIECES = {"ward": _core.MAX_POOLING_PIECE, "sequential": 256}  # tokens that are pooled together
MAX_TOKENS = _core.MAX_POOLED_TOKENS  # of a pooled document, whose numbers are uint16
VALUES_PER_BLOCK = 2**24  # of documents that are pooled at a time: what comes of them stays where it lies (see tokens.py)

Groups = npt.NDArray[np.uint16]  # (num_tokens,), of the tokens as they came


class Pooled(NamedTuple):
    """What :func:`lemur_ann.pool` gives, in the order of the documents.

    Attributes:
        documents: the pooled tokens of each, (num_pooled_tokens, dim), in the dtype that came.
        groups: of each, uint16 (num_tokens,): for each token as it came the number of the pooled one that it is part of. Pooled
            tokens are in the order of the first that is part of them, so that protected ones stay the first.
    """

    documents: list[Tokens]
    groups: list[Groups]


@dataclass(frozen=True)
class Pooling:
    """How documents are pooled; see :class:`lemur_ann.LemurIndex` for each one's meaning."""

    pool_factor: int = 1
    pooling: str = "ward"
    protected_tokens: int = 1

    def __post_init__(self) -> None:
        for name, least in (("pool_factor", 1), ("protected_tokens", 0)):
            object.__setattr__(self, name, validate.integer(getattr(self, name), name, least=least, most=MAX_TOKENS))
        if self.pooling not in PIECES:
            raise ValueError(f"pooling must be 'ward' or 'sequential', got {self.pooling!r}")

    def applied(self, batch: DocumentBatch, first_row: int, num_threads: int) -> Iterator[DocumentBatch]:
        """Checked documents in parts, with pooled tokens and the column ``token_groups``; without pooling as they are.

        ``first_row`` is the number of the first document, in messages.

        Raises:
            TypeError, ValueError: a column ``token_groups`` holds something else, or does not fit the tokens; or a document has
                too many.
        """
        if self.pool_factor == 1:
            yield batch
        else:
            yield from self.in_parts(batch, first_row, num_threads)

    def in_parts(self, batch: DocumentBatch, first_row: int, num_threads: int) -> Iterator[DocumentBatch]:
        """The same, with the column where nothing is merged too."""
        known = _known_groups(batch, first_row)
        for begin, end in _parts(batch):
            part = _part(batch, begin, end)
            groups = None if known is None else known.slice(begin, end - begin)
            yield self._applied(part, groups, first_row + begin, num_threads)

    def _applied(self, batch: DocumentBatch, known: pa.Array | None, first_row: int, num_threads: int) -> DocumentBatch:
        to_pool = np.ones(len(batch), np.bool_) if known is None else np.asarray(known.is_null().to_numpy(False))
        if to_pool.all():
            tokens, offsets, groups = self.pooled(batch.tokens, batch.offsets, num_threads, first_row)
            column = pa.LargeListArray.from_arrays(pa.array(batch.offsets), pa.array(groups))
        else:
            tokens, offsets, column = self._mixed(batch, known, to_pool, first_row, num_threads)
        metadata = pa.table({GROUPS_COLUMN: column})
        if batch.metadata is not None and batch.metadata.column_names != [GROUPS_COLUMN]:
            others = batch.metadata
            if GROUPS_COLUMN in others.column_names:
                others = others.drop_columns([GROUPS_COLUMN])
            metadata = others.append_column(GROUPS_COLUMN, column)
        return DocumentBatch(batch.ids, tokens, offsets, metadata)

    def _mixed(
        self, batch: DocumentBatch, known: pa.Array | None, to_pool: npt.NDArray[np.bool_], first_row: int, num_threads: int
    ) -> tuple[Tokens, Offsets, pa.Array]:
        """Documents of which some are pooled already."""
        matrices: list[Tokens] = []
        groups: list[Any] = [None] * len(batch) if known is None else known.to_pylist()
        for row in range(len(batch)):
            bounds = batch.offsets[row : row + 2]
            if to_pool[row]:
                tokens, _, groups[row] = self.pooled(batch.tokens, bounds, num_threads, first_row + row)
            else:
                tokens = batch.tokens[bounds[0] : bounds[1]]
            matrices.append(tokens)
        return np.concatenate(matrices), to_offsets([len(m) for m in matrices]), pa.array(groups, GROUPS_TYPE)

    def pooled(self, tokens: Tokens, offsets: Offsets, num_threads: int, first_row: int = 0) -> tuple[Tokens, Offsets, Groups]:
        """Pooled tokens of documents, in their dtype; their offsets; and groups of all tokens, laid end to end.

        Each document by itself: it has the same pooled tokens alone and among others, whatever ``num_threads`` is.

        Raises:
            ValueError: a document would have more pooled tokens than have numbers.
        """
        room = self.protected_tokens + self.pool_factor * (MAX_TOKENS - self.protected_tokens)
        long = np.flatnonzero(np.diff(offsets) > room)
        if len(long):
            row, size = int(long[0]), int(offsets[long[0] + 1] - offsets[long[0]])
            raise ValueError(
                f"document {first_row + row} has {size:,} tokens, of which pool_factor={self.pool_factor} may leave more than "
                f"{MAX_TOKENS:,}; cut it into several, or choose a larger factor"
            )
        how = (self.pool_factor, self.protected_tokens, PIECES[self.pooling])
        offsets = np.ascontiguousarray(offsets)
        found, bounds, groups = _core.pool(np.ascontiguousarray(tokens), offsets, *how, num_threads)
        found = found[: bounds[-1]]
        if tokens.dtype != found.dtype:
            most = np.finfo(tokens.dtype).max  # the mean may be longer in one component than any of its members
            found = np.clip(found, -most, most, out=found).astype(tokens.dtype)
        return found, bounds, groups


def pool(
    documents: Any,
    pool_factor: int,
    *,
    pooling: str = "ward",
    protected_tokens: int = 1,
    offsets: Any = None,
    num_threads: int | None = None,
) -> Pooled:
    """Fewer tokens of each document, as :class:`~lemur_ann.LemurIndex` makes them with these options.

    For where tokens are pooled elsewhere: before they go to a database, or to another machine. An index with a ``pool_factor``
    takes what comes of it as it is where its groups are in the column ``token_groups``; so does this.

    Args:
        documents: float32 or float16, in any form that :meth:`lemur_ann.LemurIndex.fit` takes: a list of (num_tokens, dim)
            matrices, Arrow data with a column ``tokens``, a path.
        pool_factor: of n tokens that are not protected max(1, n // pool_factor) are left, or fewer where distances are equal;
            of those that are pooled in pieces at least one of each. 1 merges none.
        pooling: "ward" merges any tokens that are alike, by Ward's method over cosine distances; it takes documents of more
            than 2,048 tokens in pieces of one length. "sequential" does so within runs of 256 neighbours at most, each by
            itself: the same of shorter documents, and in linear time of long ones.
        protected_tokens: the first tokens of each document, which are never merged.
        offsets: int (num_documents + 1,), with one flat matrix only.
        num_threads: None means all cores.

    Returns:
        :class:`~lemur_ann.documents.pooling.Pooled`: ``documents, groups = lemur_ann.pool(...)``.

    Raises:
        ValueError, TypeError: bad documents or options.

    Example:
        >>> tokens = np.array([[1, 0], [0, 1], [1, 0], [0.6, 0.8]], np.float32)
        >>> (pooled,), (groups,) = pool([tokens], 2, protected_tokens=0)
        >>> pooled.shape, groups.tolist()
        ((2, 2), [0, 1, 0, 1])
    """
    chosen, threads = Pooling(pool_factor, pooling, protected_tokens), validate.num_threads(num_threads)
    made = Pooled([], [])
    row = 0
    for batch in iterate_documents(opened(documents), offsets=offsets):
        for part in chosen.in_parts(batch, row, threads):
            assert part.metadata is not None
            made.documents.extend(np.split(part.tokens, part.offsets[1:-1]))
            for groups in part.metadata.column(GROUPS_COLUMN).combine_chunks():
                made.groups.append(groups.values.to_numpy(zero_copy_only=False))
        row += len(batch)
    return made


def _parts(batch: DocumentBatch) -> Iterator[tuple[int, int]]:
    """Where parts of a batch begin and end, each of VALUES_PER_BLOCK values or of one document."""
    tokens_at_once = max(VALUES_PER_BLOCK // batch.tokens.shape[1], 1)
    begin = 0
    while begin < len(batch):
        end = int(np.searchsorted(batch.offsets, batch.offsets[begin] + tokens_at_once, side="right")) - 1
        end = max(end, begin + 1)
        yield begin, end
        begin = end


def _part(batch: DocumentBatch, begin: int, end: int) -> DocumentBatch:
    """Documents of a batch, with offsets from 0 on."""
    bounds = batch.offsets[begin : end + 1]
    return DocumentBatch(
        None if batch.ids is None else batch.ids.slice(begin, end - begin),
        batch.tokens[bounds[0] : bounds[-1]],
        bounds - bounds[0],
        None if batch.metadata is None else batch.metadata.slice(begin, end - begin),
    )


def _known_groups(batch: DocumentBatch, first_row: int) -> pa.Array | None:
    """The column ``token_groups`` of a batch, null where a document is yet to be pooled; None where there is none."""
    if batch.metadata is None or GROUPS_COLUMN not in batch.metadata.column_names:
        return None
    column = batch.metadata.column(GROUPS_COLUMN)
    if not (pa.types.is_null(column.type) or is_groups(column.type)):
        raise TypeError(
            f"column {GROUPS_COLUMN!r} must be list<uint16>, for each token as it came the number of its pooled one, got "
            f"{column.type}; rename it, or leave it out to have documents pooled here"
        )
    try:
        groups: pa.Array = column.cast(GROUPS_TYPE).combine_chunks()
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"column {GROUPS_COLUMN!r} of documents {first_row} to {first_row + len(batch) - 1} has numbers that are not of "
            f"pooled tokens, which are from 0 to {MAX_TOKENS - 1:,}: {error}; leave the column out, or null, to have documents "
            "pooled here"
        ) from error
    if isinstance(groups, pa.ChunkedArray):
        groups = groups.chunk(0) if groups.num_chunks else pa.array([], GROUPS_TYPE)
    row = _first_misfit(groups, np.diff(batch.offsets))
    if row is not None:
        doc_id = "" if batch.ids is None else f" (id {batch.ids[row].as_py()!r})"
        raise ValueError(
            f"column {GROUPS_COLUMN!r} of document {first_row + row}{doc_id} does not fit: it has "
            f"{int(batch.offsets[row + 1] - batch.offsets[row])} tokens, and so expected that all numbers below that are there "
            "and no others; leave the column out, or null, to have it pooled here"
        )
    return groups


def is_groups(kind: pa.DataType) -> bool:
    """Whether a metadata column of this type may be one of groups."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(is_list and pa.types.is_integer(kind.value_type))


def _first_misfit(groups: pa.Array, sizes: npt.NDArray[np.int64]) -> int | None:
    """The first row whose groups are not the numbers of so many tokens, each there at least once."""
    given = np.flatnonzero(~np.asarray(groups.is_null().to_numpy(False)))
    values, ends = groups.values, groups.offsets.to_numpy()
    for row in given.tolist():
        own = values.slice(ends[row], ends[row + 1] - ends[row])
        if own.null_count or not fits(own.to_numpy(zero_copy_only=False), int(sizes[row])):
            return int(row)
    return None


def fits(groups: npt.NDArray[Any], num_tokens: int) -> bool:
    """Whether groups are numbers of so many pooled tokens, each there at least once."""
    return len(groups) > 0 and int(groups.max()) == num_tokens - 1 and len(np.unique(groups)) == num_tokens
