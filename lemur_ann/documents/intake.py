"""From documents in any form to documents that may join an index: checked, with ids and metadata, in one token dtype.

What is in memory stays where it lies. What comes as a stream (see ``sources.is_stream``) goes batch by batch through the same
checks into a temporary token file, which is then mapped: of the tokens, memory holds one batch that came and one batch of the
file. Ids and metadata are held in memory either way. Pooling, where an index asks for it, happens here, in the dtype of the
index, so that a document has the same pooled tokens whichever way it comes. Nothing of the index changes here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from os import PathLike
from typing import Any

import numpy as np
import pyarrow as pa

from lemur_ann import validate
from lemur_ann.documents.ids import IdMap
from lemur_ann.documents.inputs import DocumentBatch, iterate_documents, plain_type, read_documents, to_offsets
from lemur_ann.documents.pooling import Pooling
from lemur_ann.documents.rows import Rows
from lemur_ann.documents.sources import is_stream, opened
from lemur_ann.documents.tokens import TokenFile, TokenStore
from lemur_ann.events import warn_caller
from lemur_ann.progress import Progress, Task

BATCHES_TO_JOIN = 256  # metadata of so many batches of a stream becomes one table
CHUNKS_TO_JOIN = 256  # a table of more is made one piece
TEXT_COLUMN = "text"  # the usual one
NO_POOLING = Pooling()

NO_TEXTS_WARNING = (
    "encode_query is given plain queries about everything, since the documents have no column {column!r} of texts (they have "
    "{names}): sentences of their own texts teach more. text_column= names another column, and text_column=None says that "
    "there is none."
)


def take_in(
    documents: Any,
    *,
    ids: Any,
    offsets: Any,
    directory: str | PathLike[str] | None,
    store: TokenStore,
    dim: int | None,
    id_map: IdMap,
    metadata: pa.Table | None,
    progress: Progress,
    replaces: bool = False,
    pooling: Pooling = NO_POOLING,
    num_threads: int = 1,
) -> tuple[list[DocumentBatch], pa.Table | None]:
    """Check documents that are to join a store, an id map and metadata, none of which changes.

    ``dim``: of tokens, where it is known; ``replaces``: they may have ids of documents there are; ``num_threads``: of pooling.

    Returns:
        the documents, all with ids and in the store's dtype, and the metadata of old and new documents together.

    Raises:
        ValueError, TypeError: what was expected and what came, with the row and the id of the document at fault.
        OSError: the temporary file cannot be written.
    """
    directory = validate.directory(directory)
    documents = opened(documents)
    pooled = partial(pooling.applied, num_threads=num_threads)
    if is_stream(documents):
        arrivals = _Arrivals(id_map, metadata, replaces)
        return _from_stream(
            documents, ids, offsets, directory, store, dim, arrivals, metadata, pooled, progress.task("documents", None)
        )
    batches = _with_dtype(read_documents(documents, ids=ids, offsets=offsets, dim=dim), store.dtype)
    batches = _named(batches, id_map, replaces)
    firsts = to_offsets([len(batch) for batch in batches]).tolist()
    batches = [part for batch, first in zip(batches, firsts, strict=False) for part in pooled(batch, first)]
    return batches, joined_metadata(metadata, len(store), [rows_of(batch.metadata, len(batch)) for batch in batches])


def tokens_alone(
    documents: Any,
    *,
    ids: Any,
    offsets: Any,
    directory: str | PathLike[str] | None,
    progress: Progress,
    pooling: Pooling = NO_POOLING,
    num_threads: int = 1,
) -> tuple[TokenStore, pa.Table | None]:
    """The tokens and metadata of checked documents that join no index, for what is learned from them; errors as above."""
    empty = TokenStore()
    batches, metadata = take_in(
        documents,
        ids=ids,
        offsets=offsets,
        directory=directory,
        store=empty,
        dim=None,
        id_map=IdMap(),
        metadata=None,
        progress=progress,
        pooling=pooling,
        num_threads=num_threads,
    )
    store = empty
    for batch in batches:
        store = store.extended(batch.tokens, batch.offsets, batch.codes, num_threads=1)
    return store, metadata


def _from_stream(
    documents: Any,
    ids: Any,
    offsets: Any,
    directory: str | PathLike[str] | None,
    store: TokenStore,
    dim: int | None,
    arrivals: _Arrivals,
    metadata: pa.Table | None,
    pooled: Callable[[DocumentBatch, int], Iterable[DocumentBatch]],
    task: Task,
) -> tuple[list[DocumentBatch], pa.Table | None]:
    dtype = store.dtype
    with TokenFile(directory, coded=store.coded) as file:
        for batch in iterate_documents(documents, ids=ids, offsets=offsets, dim=dim):
            if dtype is None:
                dtype = batch.tokens.dtype
            elif store.dtype is None and not np.can_cast(batch.tokens.dtype, dtype):
                raise ValueError(
                    f"documents from row {arrivals.num_rows} on are {batch.tokens.dtype}, those before are {dtype}, and the "
                    f"first of a stream decide; convert all to one dtype ({batch.tokens.dtype} holds both)"
                )
            (batch,) = _with_dtype([batch], dtype, arrivals.num_rows)
            for part in pooled(batch, arrivals.num_rows):
                arrivals.append(part)
                file.append(part.tokens, part.offsets)
            task.advance(len(batch))
        chunks = file.mapped()
    if not chunks:
        return [], metadata
    all_ids, tables = arrivals.finish()
    batches = []
    row = 0
    for tokens, bounds, codes in chunks:
        batches.append(DocumentBatch(all_ids[row : row + len(bounds) - 1], tokens, bounds, codes=codes))
        row += len(bounds) - 1
    return batches, joined_metadata(metadata, len(store), tables)


class _Arrivals:
    """Ids and metadata of a stream's documents, checked as they come, so that an hour's stream fails at its first bad row."""

    def __init__(self, id_map: IdMap, metadata: pa.Table | None, replaces: bool) -> None:
        self.num_rows = 0
        self._replaces = replaces
        self._id_map = id_map
        self._seen: set[Any] = set()
        self._id_type: pa.DataType | None = None
        self._kinds = {} if metadata is None else _merged_kinds({}, metadata.schema)
        self._recent: list[pa.Table] = []
        self._tables: list[pa.Table] = []

    def append(self, batch: DocumentBatch) -> None:
        """Check and copy the ids and metadata of the next documents."""
        kind = None if batch.ids is None else batch.ids.type
        if self.num_rows and kind != self._id_type:
            raise TypeError(
                f"documents from row {self.num_rows} on have {_ids_of(kind)}, those before {_ids_of(self._id_type)}"
            )
        self._id_type = kind
        if batch.ids is not None:
            self._id_map.check_new(batch.ids, self._seen, replaces=self._replaces)
        elif self.num_rows == 0:
            _check_ids_needed(self._replaces)
            self._id_map.column.next_ids(0)  # refuses where ids are needed
        rows = rows_of(batch.metadata, len(batch))
        self._kinds = _merged_kinds(self._kinds, rows.schema)
        if batch.ids is not None:
            rows = rows.append_column("id", batch.ids)
        self._recent.append(_copied(rows))
        self.num_rows += len(batch)
        if len(self._recent) == BATCHES_TO_JOIN:
            self._join()

    def finish(self) -> tuple[pa.Array, list[pa.Table]]:
        """All ids, and the metadata."""
        self._join()
        if self._id_type is None:
            return self._id_map.column.next_ids(self.num_rows), self._tables
        ids = pa.chunked_array([chunk for table in self._tables for chunk in table.column("id").chunks], self._id_type)
        return ids.combine_chunks(), [table.drop_columns("id") for table in self._tables]

    def _join(self) -> None:
        if self._recent:
            self._tables.append(_concatenated(self._recent).combine_chunks())
            self._recent = []


def _ids_of(kind: pa.DataType | None) -> str:
    return "no ids" if kind is None else "integer ids" if pa.types.is_integer(kind) else "string ids"


def _copied(table: pa.Table) -> pa.Table:
    """In buffers of its own: the columns of a batch may share one with its tokens, which would stay in memory with them."""
    if table.num_columns == 0:
        return table
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return pa.ipc.open_stream(sink.getvalue()).read_all()


def _named(batches: list[DocumentBatch], id_map: IdMap, replaces: bool) -> list[DocumentBatch]:
    """The batches with ids for all, after checking that each id is new."""
    if not batches:
        return []
    if batches[0].ids is None:
        _check_ids_needed(replaces)
        ids = id_map.column.next_ids(sum(len(batch) for batch in batches))
        begin = 0
        for batch in batches:
            batch.ids = ids.slice(begin, len(batch))
            begin += len(batch)
    id_map.check_new(pa.concat_arrays([batch.ids for batch in batches]), replaces=replaces)
    return batches


def _check_ids_needed(replaces: bool) -> None:
    if replaces:
        raise TypeError("upsert needs to know which documents to replace, and these have no ids; pass ids=, or a column 'id'")


def _with_dtype(batches: list[DocumentBatch], dtype: np.dtype[Any] | None, first_row: int = 0) -> list[DocumentBatch]:
    """All batches in one token dtype: the store's, or where it has none yet float32 if any batch is."""
    if dtype is None:
        dtype = np.result_type(*(batch.tokens.dtype for batch in batches)) if batches else np.dtype(np.float32)
    converted = []
    for batch in batches:
        converted.append(as_dtype(batch, dtype, first_row))
        first_row += len(batch)
    return converted


def as_dtype(batch: DocumentBatch, dtype: np.dtype[Any], first_row: int = 0) -> DocumentBatch:
    """Checked documents with tokens in the dtype of an index; ValueError, with the row, where one exceeds its range."""
    with np.errstate(over="ignore"):
        tokens = batch.tokens.astype(dtype, copy=False)
    row = validate.first_bad_row(tokens) if tokens.dtype != batch.tokens.dtype else None
    if row is not None:
        document = first_row + int(np.searchsorted(batch.offsets, row, side="right")) - 1
        raise ValueError(f"document {document} exceeds the range of {dtype}, in which the index holds tokens")
    return DocumentBatch(batch.ids, tokens, batch.offsets, batch.metadata)


def joined_metadata(existing: pa.Table | None, num_rows: int, new: list[pa.Table]) -> pa.Table | None:
    """The metadata of ``num_rows`` documents and of new ones; columns that a part lacks are null there."""
    table = _concatenated([rows_of(existing, num_rows), *new])
    if table.num_columns and table.column(0).num_chunks > CHUNKS_TO_JOIN:
        table = table.combine_chunks()
    return table if table.num_columns else None


def joined_schema(known: pa.Schema, new: pa.Schema) -> pa.Schema:
    """The metadata columns of documents there are and of new ones; TypeError where no type holds both of a column."""
    return pa.schema(list(_merged_kinds(_merged_kinds({}, known), new).items()))


def rows_of(metadata: pa.Table | None, num_rows: int) -> pa.Table:
    """The metadata of so many documents, without columns where there is none."""
    return pa.table({"row": pa.nulls(num_rows)}).select([]) if metadata is None else metadata


def _concatenated(tables: list[pa.Table]) -> pa.Table:
    kinds: dict[str, pa.DataType] = {}
    for table in tables:
        kinds = _merged_kinds(kinds, table.schema)
    if not kinds:
        return rows_of(None, sum(len(table) for table in tables))
    schema = pa.schema(list(kinds.items()))
    return pa.concat_tables([_with_columns(table, schema) for table in tables])


def _merged_kinds(known: dict[str, pa.DataType], schema: Iterable[pa.Field]) -> dict[str, pa.DataType]:
    """The types of metadata columns by name, each wide enough for both."""
    kinds = dict(known)
    for field in schema:
        before = kinds.get(field.name, field.type)
        kinds[field.name] = before if before == field.type else _wider(field.name, before, field.type)
    return kinds


def _wider(name: str, before: pa.DataType, new: pa.DataType) -> pa.DataType:
    """What Arrow widens two types to, where it keeps text as text and decimals exact.

    Raises:
        TypeError: there is no such type.
    """
    try:
        schemas = [pa.schema([pa.field(name, kind)]) for kind in (before, new)]
        wider = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        wider = None
    if wider is None or (_kept_kinds(before) | _kept_kinds(new)) - _kept_kinds(wider):
        spelled = _spelled(before) or f"index.metadata([]).schema.field({name!r}).type"
        hint = f"cast what you add, as table[{name!r}].cast({spelled}), or give the column another name"
        raise TypeError(f"metadata column {name!r} is {new}, index has it as {before}; {hint}")
    return plain_type(wider)


def _kept_kinds(kind: pa.DataType) -> set[str]:
    """Which kinds there are in a type, of those whose values Arrow would turn into bytes or floats."""
    if pa.types.is_nested(kind):
        return {name for i in range(kind.num_fields) for name in _kept_kinds(kind.field(i).type)}
    if pa.types.is_decimal(kind):
        return {"decimal"}
    return {"text"} if pa.types.is_string(kind) or pa.types.is_large_string(kind) else set()


def _spelled(kind: pa.DataType) -> str:
    """A type as ``cast`` takes it, where that is short; else nothing."""
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        return f"pa.timestamp({kind.unit!r}, {kind.tz!r})"
    if pa.types.is_decimal(kind):
        return f"pa.{kind}"
    try:
        return repr(str(kind)) if pa.type_for_alias(str(kind)) == kind else ""
    except ValueError:
        return ""


def _with_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        _cast(table.column(field.name), field) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _cast(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    if pa.types.is_null(column.type):
        return pa.chunked_array([pa.nulls(len(column), field.type)])
    try:
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise pa.ArrowInvalid(  # a ValueError, which of a saved index means that it is corrupt
            f"metadata column {field.name!r} is {column.type}, other documents need {field.type}, and not all values fit: "
            f"{error}; cast it to a type that holds all"
        ) from error


def texts_of(metadata: pa.Table | None, column: str | None, rows: Rows) -> list[str | None] | None:
    """A metadata column of strings, of some rows; for ``encode_query``. None where there is none, and none was named.

    Raises:
        ValueError, TypeError: there is no such column, or it holds something else.
    """
    if column is None:
        return None
    names = [] if metadata is None else metadata.column_names
    if metadata is None or column not in names:
        if column == TEXT_COLUMN:
            warn_caller(NO_TEXTS_WARNING.format(column=column, names=names))
            return None
        raise ValueError(
            f"encode_query needs the documents' texts in a column {column!r}; they have the columns {names}; text_column=None "
            "is for documents without texts"
        )
    values = metadata.column(column).take(pa.array(rows))
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise TypeError(f"column {column!r} must hold strings for encode_query, got {values.type}")
    texts: list[str | None] = values.to_pylist()
    return texts
