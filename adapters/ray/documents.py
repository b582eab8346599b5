"""Documents on their way to the shards: checked as one index would check them, and shared out by their ids."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray

from lemur_ann.documents import (
    DocumentBatch,
    TokenStore,
    as_dtype,
    check_kind,
    check_new,
    joined_schema,
    next_ids,
    tokens_from_arrow,
)

from .calls import WRITER, Actors, Calls, gathered

BYTES_PER_PART = 2**22  # of tokens that go to a shard at a time,
PARTS_IN_FLIGHT = 2  # and so many of them to each shard before the first must have arrived

ROW = "lemur_ann row 5d20e7"  # a column of the parts: the number of the document among those that came with it


def shard_of(doc_id: int | str, num_shards: int) -> int:
    """The shard of a document, the same in every process and for ever."""
    kind, data = (b"s", doc_id.encode()) if isinstance(doc_id, str) else (b"i", doc_id.to_bytes(8, "little", signed=True))
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, person=kind).digest(), "little") % num_shards


def shards_of(ids: Iterable[Any], num_shards: int) -> npt.NDArray[np.int64]:
    """The shard of each document."""
    return np.array([shard_of(doc_id, num_shards) for doc_id in ids], np.int64)


@dataclass(frozen=True)
class Columns:
    """What all documents of all shards have in common: a shard cannot know what the others hold.

    Attributes:
        id_type: int64 or large_string; None before the first document, and so are the next two.
        dim, dtype: of tokens.
        schema: of the metadata, all columns there are.
    """

    id_type: pa.DataType | None = None
    dim: int | None = None
    dtype: np.dtype[Any] | None = None
    schema: pa.Schema = field(default_factory=lambda: pa.schema([]))

    @classmethod
    def of(cls, schema: pa.Schema | None) -> Columns:
        """Those of a table with columns ``id`` and ``tokens``, and others."""
        if schema is None:
            return cls()
        empty = schema.empty_table()
        tokens, _ = tokens_from_arrow(empty.column("tokens").combine_chunks(), "tokens")
        return cls(schema.field("id").type, tokens.shape[1], tokens.dtype, empty.drop_columns(["id", "tokens"]).schema)

    @classmethod
    def of_all(cls, schemas: Iterable[pa.Schema | None]) -> Columns:
        """The same of the tables of all shards."""
        columns = cls()
        for schema in schemas:
            columns = columns.merged(cls.of(schema))
        return columns

    def merged(self, other: Columns) -> Columns:
        """Both; TypeError or ValueError where they do not go together."""
        if other.id_type is None:
            return self
        if other.dim is not None and self.dim not in (None, other.dim):
            raise ValueError(f"documents have dim {other.dim}, index has dim {self.dim}")
        check_kind(pa.array([], other.id_type), self.id_type)
        return Columns(other.id_type, other.dim, self.dtype or other.dtype, joined_schema(self.schema, other.schema))

    def with_batch(self, batch: DocumentBatch, first_row: int) -> tuple[Columns, DocumentBatch]:
        """With the columns of a checked batch of which all have ids, and the batch in the dtype of all tokens."""
        assert batch.ids is not None
        check_kind(batch.ids, self.id_type)
        batch = as_dtype(batch, self.dtype or batch.tokens.dtype, first_row)
        schema = self.schema if batch.metadata is None else joined_schema(self.schema, batch.metadata.schema)
        assert batch.ids is not None
        return Columns(batch.ids.type, batch.tokens.shape[1], batch.tokens.dtype, schema), batch


@dataclass(frozen=True)
class Staged:
    """Documents that wait at the shards, where nothing has changed yet.

    Attributes:
        change: their name.
        num_parts: of each shard.
        num_documents: all together.
        largest: the largest integer id, -1 where there is none.
        columns: those of the index with these documents.
    """

    change: str
    num_parts: tuple[int, ...]
    num_documents: int
    largest: int
    columns: Columns

    @property
    def shards(self) -> list[int]:
        """Those that have some."""
        return [shard for shard, count in enumerate(self.num_parts) if count]


class Sender:
    """Takes documents batch by batch, and sends each shard its own, a few parts at a time.

    The same documents make the same parts again, so that what was sent before a failure is only replaced.
    """

    def __init__(self, actors: Actors, change: str, columns: Columns, *, next_id: int, replaces: bool, timeout: float) -> None:
        self._actors, self._change, self._columns, self._timeout = actors, change, columns, timeout
        self._next_id, self._replaces = next_id, replaces
        self._is_first = columns.dtype is None
        self._has_ids: bool | None = None
        self._num_documents, self._largest = 0, -1
        self._seen: set[Any] = set()
        self._held: list[list[pa.Table]] = [[] for _ in range(len(actors))]
        self._num_bytes = [0] * len(actors)
        self._num_parts = [0] * len(actors)
        self._in_flight: list[list[Calls]] = [[] for _ in range(len(actors))]

    def send(self, batch: DocumentBatch) -> None:
        """Check documents and send them on their way.

        Raises:
            ValueError, TypeError: as :meth:`lemur_ann.LemurIndex.add`.
            ShardUnavailable: a shard does not take them.
        """
        batch = self._named(batch)
        assert batch.ids is not None
        check_new(batch.ids.to_pylist(), self._seen)
        dtype = self._columns.dtype
        if self._is_first and dtype is not None and not np.can_cast(batch.tokens.dtype, dtype):
            raise ValueError(
                f"documents from row {self._num_documents} on are {batch.tokens.dtype}, those before are {dtype}, and the "
                f"first of a stream decide; convert all to one dtype ({batch.tokens.dtype} holds both)"
            )
        self._columns, batch = self._columns.with_batch(batch, self._num_documents)
        values = batch.ids.to_pylist() if batch.ids is not None else []
        if pa.types.is_integer(self._columns.id_type):
            self._largest = max(self._largest, *values)
        store, shards = TokenStore([(batch.tokens, batch.offsets)]), shards_of(values, len(self._actors))
        sizes = np.diff(batch.offsets) * batch.tokens.shape[1] * batch.tokens.dtype.itemsize
        for shard in np.unique(shards).tolist():
            own = np.flatnonzero(shards == shard)
            for rows in np.split(own, np.flatnonzero(np.diff(np.cumsum(sizes[own]) // BYTES_PER_PART)) + 1):
                self._held[shard].append(self._table(batch, store, rows))
                self._num_bytes[shard] += int(sizes[rows].sum())
                if self._num_bytes[shard] >= BYTES_PER_PART:
                    self._flush(shard)
        self._num_documents += len(batch)

    def _named(self, batch: DocumentBatch) -> DocumentBatch:
        has_ids = batch.ids is not None
        if self._has_ids not in (None, has_ids):
            raise TypeError(
                f"documents from row {self._num_documents} on have {'ids' if has_ids else 'no ids'}, unlike those before"
            )
        self._has_ids = has_ids
        if has_ids:
            return batch
        if self._replaces:
            raise TypeError(
                "upsert needs to know which documents to replace, and these have no ids; pass ids=, or a column 'id'"
            )
        return replace(batch, ids=next_ids(self._next_id + self._num_documents, len(batch), self._columns.id_type))

    def _table(self, batch: DocumentBatch, store: TokenStore, rows: npt.NDArray[np.int64]) -> pa.Table:
        assert batch.ids is not None
        chosen = pa.array(rows)
        columns = {"id": batch.ids.take(chosen), "tokens": store.to_arrow(rows), ROW: pa.array(rows + self._num_documents)}
        if batch.metadata is not None:
            columns |= {name: batch.metadata.column(name).take(chosen) for name in batch.metadata.column_names}
        return pa.table(columns)

    def _flush(self, shard: int) -> None:
        if not self._held[shard]:
            return
        part = pa.concat_tables(self._held[shard], promote_options="default").combine_chunks()
        self._held[shard], self._num_bytes[shard] = [], 0
        if len(self._in_flight[shard]) == PARTS_IN_FLIGHT:
            gathered(self._in_flight[shard].pop(0)).result()
        arguments = (self._change, self._num_parts[shard], ray.put(part))
        self._in_flight[shard].append(Calls(self._actors, "stage", {(shard, WRITER): arguments}, timeout=self._timeout))
        self._num_parts[shard] += 1

    def finish(self) -> Staged:
        """Send what is left, and wait until all has arrived."""
        for shard in range(len(self._actors)):
            self._flush(shard)
        for calls in (calls for own in self._in_flight for calls in own):
            gathered(calls).result()
        return Staged(self._change, tuple(self._num_parts), self._num_documents, self._largest, self._columns)


def matching_ids(table: pa.Table, expression: pc.Expression, columns: pa.Schema) -> pa.Array:
    """The ids of those documents, of a table without tokens, that a filter lets through.

    ``columns``: metadata that there is in the index; where only documents of other shards have it, it is null here.
    """
    import pyarrow.dataset as ds

    for column in columns:
        if column.name not in table.column_names:
            table = table.append_column(column, pa.nulls(len(table), column.type))
    try:
        ids = ds.dataset(table).to_table(columns=["id"], filter=expression).column("id")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowKeyError, pa.ArrowTypeError) as error:
        known = [f"{column.name} ({column.type})" for column in table.schema]
        reason = str(error).splitlines()[0]
        raise ValueError(f"filter {expression} does not fit the columns {', '.join(known)}: {reason}") from error
    return pa.concat_arrays(ids.chunks) if ids.num_chunks else pa.array([], table.schema.field("id").type)
