"""Documents of a snapshot as Arrow: some of them, those of a search's hits, or all as a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from lemur_ann.documents.inputs import ids_of, to_offsets
from lemur_ann.documents.rows import Rows
from lemur_ann.hits import Hits
from lemur_ann.searching.snapshot import Snapshot

ROWS_PER_BATCH = 1024  # of a stream that goes out


def metadata_of(snapshot: Snapshot, rows: Rows, columns: Sequence[str] | None = None) -> pa.Table:
    """The column ``id`` and metadata columns of some rows; None means all columns."""
    table = pa.table({"id": snapshot.ids.column.take_array(rows)})
    if snapshot.metadata is not None:
        chosen = snapshot.metadata if columns is None else snapshot.metadata.select(columns)
        taken = chosen.take(pa.array(rows))
        for name in taken.column_names:
            table = table.append_column(name, taken.column(name))
    return table


def documents_of(snapshot: Snapshot, rows: Rows) -> pa.Table:
    """The same with the column ``tokens`` after ``id``."""
    return metadata_of(snapshot, rows).add_column(1, "tokens", snapshot.store.to_arrow(rows))


def hits_table(snapshot: Snapshot, hits: Hits | Sequence[Hits], columns: Sequence[str] | None) -> pa.Table:
    """See :meth:`lemur_ann.LemurIndex.to_table`."""
    if isinstance(columns, (str, bytes)):
        raise TypeError(f"columns must be a list of names, got {columns!r}; one is columns=[{columns!r}]")
    columns = None if columns is None else list(columns)
    known = [] if snapshot.metadata is None else snapshot.metadata.column_names
    for name in known if columns is None else columns:
        if name not in known:
            raise KeyError(f"no metadata column {name!r}; there are {known}")
        if name in ("query", "rank", "score"):
            raise ValueError(f"metadata column {name!r} has the name of a column of the hits; columns= can leave it out")
    batch = [hits] if isinstance(hits, Hits) else list(hits)
    if not all(isinstance(one, Hits) for one in batch):
        raise TypeError(f"hits must be Hits or a sequence of them, got {type(hits).__name__}")
    rows = snapshot.ids.find(ids_of([doc_id for one in batch for doc_id in one.ids.tolist()]))
    offsets = to_offsets([len(one) for one in batch])
    query = np.repeat(np.arange(len(batch)), np.diff(offsets))
    scores = np.concatenate([np.empty(0, np.float32), *(one.scores for one in batch)])
    table = metadata_of(snapshot, rows, columns).add_column(1, "score", pa.array(scores))
    table = table.add_column(0, "rank", pa.array(np.arange(1, len(rows) + 1) - offsets[query]))
    return table if isinstance(hits, Hits) else table.add_column(0, "query", pa.array(query))


def stream_of(snapshot: Snapshot, *, tokens: bool, vectors: bool) -> pa.RecordBatchReader:
    """See :meth:`lemur_ann.LemurIndex.to_arrow`."""
    learned = snapshot.learned if vectors else None
    if learned is not None and snapshot.metadata is not None and "vector" in snapshot.metadata.column_names:
        raise ValueError("a metadata column is called 'vector'; vectors=False leaves out those that were learned")

    def block(rows: Rows) -> pa.RecordBatch:
        table = documents_of(snapshot, rows) if tokens else metadata_of(snapshot, rows)
        if learned is not None:
            flat = pa.array(np.ascontiguousarray(learned.candidates.take(rows)).reshape(-1))
            table = table.add_column(1, "vector", pa.FixedSizeListArray.from_arrays(flat, learned.encoder.dim))
        return pa.record_batch([column.combine_chunks() for column in table.columns], schema=table.schema)

    rows = snapshot.live
    return pa.RecordBatchReader.from_batches(block(rows[:0]).schema, _Blocks(rows, block))


class _Blocks:
    """Batches one after the other, each for the thread that asked for it: a generator cannot be asked by two at once."""

    def __init__(self, rows: Rows, block: Callable[[Rows], pa.RecordBatch]) -> None:
        self._rows, self._block = rows, block
        self._begins = iter(range(0, len(rows), ROWS_PER_BATCH))

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return self

    def __next__(self) -> pa.RecordBatch:
        begin = next(self._begins)
        return self._block(self._rows[begin : begin + ROWS_PER_BATCH])
