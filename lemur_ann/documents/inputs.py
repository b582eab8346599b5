"""Every form in which documents and queries may be passed, as flat token matrices with offsets.

Accepted: whatever ``sources.record_batches`` reads (Arrow tables, readers and datasets, frames and datasets of other libraries)
with a column ``tokens``; sequences and iterators of (num_tokens, dim) NumPy or torch matrices; one array of shape (n,
num_tokens, dim); one flat matrix with offsets. Arrow buffers and flat matrices are used where they lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MappingView, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lemur_ann import _core, validate
from lemur_ann.documents.ids import plain_id
from lemur_ann.documents.sources import as_column, is_stream, record_batches
from lemur_ann.validate import Offsets, Tokens

DOCUMENTS_PER_BATCH = 4096  # sequences of matrices are laid end to end this many at a time,
BYTES_PER_BATCH = 2**22  # and matrices of an iterator no more than this

TOKENS_TYPE = "list<fixed_size_list<float32 or float16>[dim]>"


@dataclass
class DocumentBatch:
    """Checked documents: ids (None where the caller gave none), flat tokens, offsets, and other columns as metadata.

    ``codes`` are those of the tokens where they are made already (see tokens.py).
    """

    ids: pa.Array | None
    tokens: Tokens
    offsets: Offsets
    metadata: pa.Table | None = None
    codes: Any = None

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass
class QueryBatch:
    """Checked queries: flat tokens (total_tokens, dim) and offsets (num_queries + 1,)."""

    tokens: Tokens
    offsets: Offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def as_float32(self) -> QueryBatch:
        """The same in the dtype that kernels take queries in."""
        return QueryBatch(np.ascontiguousarray(self.tokens, dtype=np.float32), self.offsets)

    def matrix(self, number: int) -> Tokens:
        """The tokens of one of the queries, (num_tokens, dim)."""
        return self.tokens[self.offsets[number] : self.offsets[number + 1]]

    @property
    def without_zero_rows(self) -> QueryBatch:
        """The same without rows that are all zero, as a padded batch has: they change no score. One is kept of a query of none
        but these."""
        if _core.num_zero_rows(self.tokens) == 0:
            return self
        kept: npt.NDArray[np.bool_] = np.asarray(self.tokens.any(axis=1))
        kept[self.offsets[:-1][np.add.reduceat(np.append(kept, False), self.offsets[:-1]) == 0]] = True
        ends = np.concatenate([[0], np.cumsum(kept)])
        return QueryBatch(np.ascontiguousarray(self.tokens[kept]), ends[self.offsets].astype(np.int64))

    def check_not_zero(self, name: str) -> None:
        """ValueError where no query has a token that is not zero: every ranking is as good as another then."""
        if _core.num_zero_rows(self.tokens) == len(self.tokens):
            raise ValueError(f"{name} are zeros alone, expected token embeddings; look at what the encoder gives")

    def sample(self, count: int, random: np.random.Generator) -> QueryBatch:
        """At most ``count`` of the queries, in their order."""
        return self if count >= len(self) else self.take(sampled(len(self), count, random).tolist())

    def joined(self, others: QueryBatch) -> QueryBatch:
        """With others of the same dtype at the end."""
        tokens = np.concatenate([self.tokens, others.tokens])
        return QueryBatch(tokens, np.concatenate([self.offsets, others.offsets[1:] + self.offsets[-1]]))

    def take(self, chosen: Sequence[int]) -> QueryBatch:
        """Some of the queries, by their numbers."""
        matrices = [self.tokens[:0], *(self.matrix(i) for i in chosen)]
        return QueryBatch(np.concatenate(matrices), to_offsets([len(matrix) for matrix in matrices[1:]]))


@dataclass(frozen=True)
class Asked:
    """Queries as a caller passed them: checked, and whether it was one query rather than a batch."""

    batch: QueryBatch
    is_one: bool

    def answered(self, found: Any) -> Any:
        """What was found of each query, in the form of the question: of one query its own alone."""
        return found[0] if self.is_one else found


def sampled(size: int, count: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """At most ``count`` of the numbers below ``size``, ascending."""
    return np.arange(size) if count >= size else np.sort(random.choice(size, count, replace=False))


def directions_of(tokens: Tokens) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Tokens (n, dim) over their lengths, and these, float32 (n, dim) and (n,); a row of zeros stays one."""
    lengths = np.sqrt(np.einsum("ij,ij->i", tokens, tokens, dtype=np.float64))
    directions = np.asarray(tokens, np.float32) / np.where(lengths > 0, lengths, 1).astype(np.float32)[:, None]
    return directions, lengths.astype(np.float32)


def queries_of(queries: Any, dim: int | None, offsets: Any = None) -> Asked:
    """One query, a matrix (num_tokens, dim), or a batch of them in any form; the one place that tells these apart.

    Args:
        queries: one matrix; or a sequence of matrices, an array of shape (num_queries, num_tokens, dim), Arrow data with a
            column ``tokens``, or one flat matrix with ``offsets``.
        dim: that tokens must have; None allows any.
        offsets: int (num_queries + 1,), with a flat matrix only.

    Raises:
        ValueError, TypeError: queries of a wrong shape, dtype or dim, without tokens or not finite.
    """
    if offsets is not None or not is_single_query(queries):
        return Asked(read_queries(queries, offsets=offsets, dim=dim), False)
    matrix = validate.token_matrix(queries, "query", dim=dim)
    row = validate.first_bad_row(matrix)
    if row is not None:
        raise ValueError(f"query has {validate.BAD_VALUE} in token {row}")
    return Asked(QueryBatch(matrix, np.array([0, len(matrix)], dtype=np.int64)), True)


def read_documents(documents: Any, *, ids: Any = None, offsets: Any = None, dim: int | None = None) -> list[DocumentBatch]:
    """All documents, checked. Nothing is returned unless everything is good.

    Raises:
        ValueError, TypeError: what was expected and what came, with the row and the id of the document at fault.
    """
    return list(iterate_documents(documents, ids=ids, offsets=offsets, dim=dim))


def iterate_documents(
    documents: Any, *, ids: Any = None, offsets: Any = None, dim: int | None = None
) -> Iterator[DocumentBatch]:
    """The same, one checked batch after the other; of a stream no more is read than that."""
    return _checked(_document_batches(documents, ids, offsets, "documents", "offsets", with_ids=True), "document", dim)


def read_queries(queries: Any, *, offsets: Any = None, dim: int | None = None) -> QueryBatch:
    """All queries, checked, as one batch; ids and other columns are ignored."""
    batches = _document_batches(queries, None, offsets, "queries", "query_offsets", with_ids=False)
    parts = list(_checked(batches, "query", dim))
    if len(parts) == 1:
        return QueryBatch(parts[0].tokens, parts[0].offsets)
    if not parts:
        return QueryBatch(np.empty((0, dim or 1), np.float32), np.zeros(1, np.int64))
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    return QueryBatch(np.concatenate([part.tokens for part in parts]), to_offsets(lengths))


def is_single_query(query: Any) -> bool:
    """Whether ``query`` is one matrix (or a vector, to be refused as one) rather than a batch of queries.

    A list or an array of objects is one where its items are vectors: what JSON and pandas have of a matrix.
    """
    if isinstance(query, (list, tuple)) or _holds_objects(query):
        return len(query) > 0 and _is_vector(query[0])
    if isinstance(query, pa.Scalar):
        return True
    return getattr(query, "ndim", None) in (1, 2) and not hasattr(query, "__arrow_c_stream__")


def _holds_objects(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype == object


def _is_vector(item: Any) -> bool:
    if isinstance(item, (list, tuple)):
        return len(item) > 0 and all(isinstance(value, (int, float, np.number)) for value in item)
    return getattr(item, "ndim", None) == 1 and not _holds_objects(item)


def _document_batches(
    documents: Any, ids: Any, offsets: Any, name: str, offsets_name: str, *, with_ids: bool
) -> Iterator[DocumentBatch]:
    documents = as_column(documents)
    if ids is not None and isinstance(documents, (pa.Array, pa.ChunkedArray)) and not pa.types.is_struct(documents.type):
        documents, ids = pa.table({"id": _ids_array(ids, len(documents)), "tokens": documents}), None
    arrow = record_batches(documents, None if with_ids else ["tokens"])
    if arrow is not None:
        if ids is not None or offsets is not None:
            raise TypeError(f"{name} in Arrow form carry ids and offsets as columns; ids= and {offsets_name}= must be None")
        row = 0
        for batch in arrow:
            yield from _from_arrow(pa.Table.from_batches([batch]), name, row, with_ids=with_ids)
            row += len(batch)
        return
    _refuse_others(documents, name)
    ndim = getattr(documents, "ndim", None)
    if ndim is not None and ndim != 3:
        if ndim == 2 and offsets is None:
            raise ValueError(
                f"{name} is one matrix of shape {tuple(documents.shape)}; pass {offsets_name}= with it, "
                "or a list of (num_tokens, dim) matrices"
            )
        tokens = validate.token_matrix(documents, name, allow_empty=True)
        bounds = validate.offsets_array(offsets, len(tokens)).copy()
        if tokens.flags.writeable:  # the caller may reuse the buffer
            tokens = tokens.copy()
        yield DocumentBatch(_ids_array(ids, len(bounds) - 1), tokens, bounds)
        return
    if offsets is not None:
        raise TypeError(f"{offsets_name}= goes with one flat matrix, got {name} of type {type(documents).__name__}")
    if not isinstance(documents, Iterable):
        raise TypeError(f"{name} must be Arrow data or a sequence of matrices, got {type(documents).__name__}")
    yield from _from_matrices(documents, ids, name)


def _refuse_others(documents: Any, name: str) -> None:
    """TypeError for what Python would take apart into something else than matrices in their order."""
    kind = type(documents).__name__
    first = documents[0] if isinstance(documents, (list, tuple)) and documents else None
    if isinstance(documents, Mapping) or isinstance(first, Mapping):
        what = kind if first is None else f"a {kind} of {type(first).__name__}s"
        by_id = ", and matrices by id as list(matrices.values()) with ids=list(matrices)" if name == "documents" else ""
        frame = f"pandas.DataFrame({name}) goes in where it has a column 'tokens'"
        raise TypeError(f"{name} must be token embeddings, got {what}; {frame}{by_id}")
    if isinstance(documents, (str, bytes)) or isinstance(first, (str, bytes)):
        what = kind if first is None else f"a {kind} of {type(first).__name__}"
        raise TypeError(f"{name} must be token embeddings, got {what}; TextIndex takes texts")
    if isinstance(documents, Set) and not isinstance(documents, MappingView):
        raise TypeError(f"{name} must come in an order, and a {kind} has none; pass a list")
    if isinstance(documents, (list, tuple)) and first is not None and _is_vector(first):
        raise ValueError(
            f"{name}[0] must be a matrix of shape (num_tokens, dim), got shape {np.shape(first)}; a {kind} of vectors "
            f"that is one matrix is [np.array({name})], and a single token is tokens[None, :]"
        )


def _from_matrices(matrices: Iterable[Any], ids: Any, name: str) -> Iterator[DocumentBatch]:
    streamed = is_stream(matrices)
    all_ids: Any = _ids_array(ids, None if streamed else len(matrices))  # type: ignore[arg-type]
    row = 0
    for part in _parts(matrices, name, streamed=streamed):
        own = None if all_ids is None else all_ids.slice(row, len(part))
        if own is not None and len(own) < len(part):
            raise ValueError(
                f"expected one id for each document, got {len(all_ids)} ids and at least {row + len(part)} documents"
            )
        yield DocumentBatch(own, np.concatenate(part), to_offsets([len(matrix) for matrix in part]))
        row += len(part)
    if all_ids is not None and len(all_ids) != row:
        raise ValueError(f"expected one id for each of {row} documents, got {len(all_ids)} ids")


def _parts(matrices: Iterable[Any], name: str, *, streamed: bool) -> Iterator[list[Tokens]]:
    """Checked matrices, as many as make a batch; those of a stream are of one dtype, which so depends on no block size."""
    part: list[Tokens] = []
    size_bytes = 0
    for row, item in enumerate(matrices):
        matrix = validate.token_matrix(item, f"{name}[{row}]", allow_empty=True)
        if row == 0:
            dim = matrix.shape[1]
        if matrix.shape[1] != dim:
            raise ValueError(f"{name}[{row}] has dim {matrix.shape[1]}, those before have dim {dim}")
        too_large = streamed and size_bytes + matrix.nbytes > BYTES_PER_BATCH
        if part and (len(part) == DOCUMENTS_PER_BATCH or too_large or (streamed and matrix.dtype != part[0].dtype)):
            yield part
            part, size_bytes = [], 0
        part.append(matrix)
        size_bytes += matrix.nbytes
    if part:
        yield part


def _from_arrow(table: pa.Table, name: str, first_row: int, *, with_ids: bool) -> Iterator[DocumentBatch]:
    if "tokens" not in table.column_names:
        raise ValueError(f"{name} must have a column 'tokens' ({TOKENS_TYPE}), got columns {table.column_names}")
    repeated = [c for c in table.column_names if table.column_names.count(c) > 1]
    if repeated:
        raise ValueError(f"{name} have more than one column {repeated[0]!r}")
    ids = metadata = None
    if with_ids:
        ids = _ids_array(table.column("id"), len(table), first_row) if "id" in table.column_names else None
        metadata = _plain(table.drop_columns([c for c in ("id", "tokens") if c in table.column_names]))
    row = 0
    for chunk in table.column("tokens").chunks:
        tokens, offsets = tokens_from_arrow(chunk, f"column 'tokens' of {name}", first_row + row)
        part = slice(row, row + len(chunk))
        yield DocumentBatch(
            None if ids is None else ids[part],
            tokens,
            offsets,
            metadata[part] if metadata is not None and metadata.num_columns else None,
        )
        row += len(chunk)


def _plain(metadata: pa.Table) -> pa.Table:
    """Without dictionaries, which differ from batch to batch, and with offsets of 64 bits, which do not overflow."""
    columns = {}
    for name, column in zip(metadata.column_names, metadata.columns, strict=True):
        if pa.types.is_run_end_encoded(column.type):
            column = pa.chunked_array([pc.run_end_decode(chunk) for chunk in column.chunks], column.type.value_type)
        if pa.types.is_dictionary(column.type):
            column = pa.chunked_array([_decoded(chunk) for chunk in column.chunks], plain_type(column.type))
        try:
            columns[name] = column.cast(plain_type(column.type))
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
            raise TypeError(f"metadata column {name!r} of type {column.type} cannot be kept: {error}") from error
    return pa.table(columns) if columns else metadata


def _decoded(array: pa.DictionaryArray) -> pa.Array:
    """Its values; pyarrow's own cast and dictionary_decode refuse string_view, which Polars' categories are."""
    return array.dictionary.cast(plain_type(array.type)).take(array.indices)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type in which a metadata column is kept."""
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if isinstance(kind, pa.ExtensionType):  # which only programs that import its library know
        return plain_type(kind.storage_type)
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, plain_type(field.type)) for field in kind])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.large_list(plain_type(kind.value_type))
    large = {"string": pa.large_string(), "string_view": pa.large_string()}
    return {**large, "binary": pa.large_binary(), "binary_view": pa.large_binary()}.get(str(kind), kind)


def tokens_from_arrow(array: pa.Array, name: str, first_row: int = 0) -> tuple[Tokens, Offsets]:
    """The tokens of an Arrow array of matrices, as views of its buffers where the layout allows (slices too).

    ``first_row`` is the number of its first row in error messages.
    """
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    kind = array.type
    if pa.types.is_null(kind) and len(array) == 0:
        raise TypeError(f"{name} must be {TOKENS_TYPE}, got {kind}")
    if pa.types.is_null(kind) or array.null_count:
        raise ValueError(f"{name} is null in row {first_row + int(np.flatnonzero(array.is_null().to_numpy(False))[0])}")
    if _is_list_view(kind):
        offsets = to_offsets(pc.list_value_length(array).to_numpy())  # a cast of concatenated ones goes wrong in pyarrow 26
        inner = array.flatten()
    elif pa.types.is_fixed_size_list(kind):
        offsets = np.arange(len(array) + 1, dtype=np.int64) * kind.list_size
        inner = array.flatten()
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        offsets = array.offsets.to_numpy().astype(np.int64) if len(array) else np.zeros(1, np.int64)
        inner = array.values.slice(offsets[0], max(offsets[-1] - offsets[0], 0))
        validate.offsets_array(offsets - offsets[0], len(inner), f"the offsets of {name}")
        offsets = offsets - offsets[0]
    else:
        raise TypeError(f"{name} must be {TOKENS_TYPE}, got {kind}")
    return _vectors_from_arrow(inner, name), offsets


def _is_list_view(kind: pa.DataType) -> bool:
    return str(kind).startswith(("list_view", "large_list_view"))


def _vectors_from_arrow(inner: pa.Array, name: str) -> Tokens:
    if isinstance(inner, pa.ExtensionArray):
        inner = inner.storage
    kind = inner.type
    if not (pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind) or _is_list_view(kind)):
        raise TypeError(f"{name} must be {TOKENS_TYPE}, got lists of {kind}")
    if not pa.types.is_floating(kind.value_type):
        raise TypeError(f"{name} must hold float32 or float16 values, got {kind.value_type}")
    if inner.null_count:
        raise ValueError(f"{name} has a null token vector")
    values = inner.flatten()
    if values.null_count:
        raise ValueError(f"{name} has a null value within a token vector")
    if pa.types.is_fixed_size_list(kind):
        dim = kind.list_size
    else:
        dims = pc.list_value_length(inner).to_numpy()
        dim = int(dims[0]) if len(dims) else 1
        if np.any(dims != dim):
            raise ValueError(f"{name} has token vectors of dim {dim} and {int(dims[dims != dim][0])}")
    if dim == 0:
        raise ValueError(f"{name} has token vectors of dim 0")
    return validate.token_matrix(values.to_numpy().reshape(-1, dim), name, allow_empty=True)


def _ids_array(ids: Any, expected: int | None, first_row: int = 0) -> pa.Array | None:
    """Ids of documents, in their order, as one large_string or int64 Arrow array without nulls.

    ``expected=None`` where documents are yet to be counted.
    """
    if ids is None:
        return None
    if _is_one_id(ids) or isinstance(ids, bytes):
        raise TypeError(f"ids must have one for each document, as ids=[...], got the one id {ids!r}")
    if isinstance(ids, Set) and not isinstance(ids, MappingView):
        raise TypeError(f"ids must be in the order of their documents, and a {type(ids).__name__} has none; pass a list")
    return _as_ids(ids, expected, first_row)


def _as_ids(ids: Any, expected: int | None = None, first_row: int = 0) -> pa.Array:
    """Ids in any collection as one large_string or int64 Arrow array without nulls."""
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks() if ids.num_chunks != 1 else ids.chunk(0)
    if not isinstance(ids, pa.Array):
        ids = _python_ids(ids)
    if pa.types.is_dictionary(ids.type):
        ids = _decoded(ids)
    if expected is not None and len(ids) != expected:
        raise ValueError(f"expected one id for each of {expected} documents, got {len(ids)} ids")
    if ids.null_count:
        raise ValueError(f"id is null in row {first_row + int(np.flatnonzero(ids.is_null().to_numpy(False))[0])}")
    if pa.types.is_integer(ids.type):
        try:
            return ids.cast(pa.int64())
        except pa.ArrowInvalid:
            raise ValueError("integer ids must fit in int64") from None
    if pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type) or str(ids.type) == "string_view":
        return ids.cast(pa.large_string())
    raise TypeError(f"ids must be strings or integers, got {ids.type}")


def _python_ids(ids: Any) -> pa.Array:
    is_other = isinstance(ids, (bytes, bytearray, Mapping, pa.Table, pa.RecordBatch)) or not isinstance(ids, Iterable)
    if is_other or len(getattr(ids, "shape", ())) > 1:
        raise TypeError(f"ids must be strings or integers, as a list or one column, got {type(ids).__name__}{_where_to(ids)}")
    values = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    kinds = {type(value) for value in values}
    if any(issubclass(of, pa.Scalar) or (hasattr(of, "item") and not issubclass(of, np.generic)) for of in kinds):
        values = [plain_id(value) for value in values]
        kinds = {type(value) for value in values}
    for of in kinds:
        if not issubclass(of, (str, int, np.integer, type(None))) or issubclass(of, bool):
            row = next(row for row, value in enumerate(values) if type(value) is of)
            raise TypeError(f"ids must be strings or integers, got {of.__name__} in row {row}{_where_to(values[row])}")
    strings = any(issubclass(of, str) for of in kinds)
    if strings and any(issubclass(of, (int, np.integer)) for of in kinds):
        raise TypeError("ids must be all strings or all integers, got both")
    try:
        return pa.array(values, pa.large_string() if strings else pa.int64())
    except OverflowError:
        raise ValueError("integer ids must fit in int64") from None


def _where_to(value: Any) -> str:
    """Where to put what is no id."""
    if isinstance(value, (bool, np.bool_, Mapping, pc.Expression)):
        return "; what documents must be is said by filter=, by booleans or an expression such as pc.field('year') == 2020"
    if isinstance(value, (pa.Table, pa.RecordBatch)) or len(getattr(value, "shape", ())) > 1:
        return "; pass the column"
    return "; of hits they are hits.ids" if isinstance(value, tuple) else ""


def ids_of(ids: Any) -> pa.Array:
    """Ids named by a caller (one id, or any collection of them), as one large_string or int64 Arrow array."""
    return _as_ids([plain_id(ids)] if _is_one_id(ids) else ids)


def _is_one_id(ids: Any) -> bool:
    return isinstance(ids, (str, int, pa.Scalar)) or getattr(ids, "shape", None) == ()


def ids_for(ids: Any, count: int) -> pa.Array | None:
    """The ids that a caller has for so many documents, in their order; errors as in ``fit``."""
    return _ids_array(ids, count)


def _checked(batches: Iterator[DocumentBatch], what: str, dim: int | None) -> Iterator[DocumentBatch]:
    """The batches that are not empty, each checked; the first decides the dim where there is none."""
    row = 0
    for batch in batches:
        if len(batch) == 0:
            continue
        _check_batch(batch, row, what, dim)
        dim = batch.tokens.shape[1]
        row += len(batch)
        yield batch


def _check_batch(batch: DocumentBatch, first_row: int, what: str, dim: int | None) -> None:
    def named(i: int) -> str:
        doc_id = "" if batch.ids is None else f" (id {batch.ids[i].as_py()!r})"
        return f"{what} {first_row + i}{doc_id}"

    if dim is not None and batch.tokens.shape[1] != dim:
        raise ValueError(f"{named(0)} has dim {batch.tokens.shape[1]}, index has dim {dim}")
    empty = np.flatnonzero(np.diff(batch.offsets) == 0)
    if len(empty):
        raise ValueError(f"{named(int(empty[0]))} has no tokens, expected at least one")
    row = validate.first_bad_row(batch.tokens)
    if row is not None:
        i = int(np.searchsorted(batch.offsets, row, side="right")) - 1
        raise ValueError(
            f"{named(i)} has {validate.BAD_VALUE} in token {row - int(batch.offsets[i])} (as {batch.tokens.dtype})"
        )


def to_offsets(lengths: Any) -> Offsets:
    """int64 offsets (n + 1,) of n matrices with these numbers of tokens."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
