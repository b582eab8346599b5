"""Arrow data batch by batch: tables, readers, datasets and paths, the last two in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import Any

import pyarrow as pa

VALUES_PER_READ = 2**19  # of a Parquet file; decoding them takes several times their size
ROWS_PER_READ = 64  # of other datasets, whose rows may be pages of a thousand tokens each
BYTES_PER_DISK_READ = 2**22

IPC_SUFFIXES = (".arrow", ".feather", ".ipc")


def open_path(path: str | os.PathLike[str]) -> Any:
    """A pyarrow dataset of a Parquet file, a folder of Parquet files, or an Arrow IPC file (.arrow, .feather, .ipc).

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ValueError: what is there is something else, or a folder without files.
    """
    import pyarrow.dataset as ds

    kind = "ipc" if PurePath(path).suffix in IPC_SUFFIXES else "parquet"
    try:
        dataset = ds.dataset(path, format=kind)
    except FileNotFoundError:
        raise FileNotFoundError(f"no Parquet file or folder of Parquet files at {os.fspath(path)!r}") from None
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} cannot be read as {kind}: {error}") from error
    if not dataset.files:
        raise ValueError(f"{path} is a folder without Parquet files")
    return dataset


def opened(data: Any) -> Any:
    """``data``, or the dataset at the path that it is."""
    return open_path(data) if isinstance(data, (str, os.PathLike)) else data


def is_stream(data: Any) -> bool:
    """Whether ``data`` comes piece by piece and need not be in memory: readers, datasets, scanners, iterators.

    Arrow tables, record batches, arrays and sequences are in memory already.
    """
    if isinstance(data, (pa.Table, pa.RecordBatch)):
        return False
    if hasattr(data, "__arrow_c_stream__") or hasattr(data, "to_batches"):
        return True
    in_memory = isinstance(data, (Sequence, dict)) or hasattr(data, "ndim") or hasattr(data, "__arrow_c_array__")
    return isinstance(data, Iterable) and not in_memory


def record_batches(data: Any, columns: list[str] | None = None) -> Iterator[pa.RecordBatch] | None:
    """The record batches of Arrow data; None where ``data`` is not Arrow.

    Of a dataset only ``columns`` are read; None reads all, as where a dataset lacks one of them.
    """
    batches: Iterable[pa.RecordBatch]
    if isinstance(data, pa.RecordBatch):
        batches = [data]
    elif isinstance(data, pa.RecordBatchReader):
        batches = data
    elif isinstance(data, pa.Table):
        batches = data.to_batches()
    elif hasattr(data, "to_batches"):
        batches = _dataset_batches(data, columns)
    elif hasattr(data, "__arrow_c_stream__"):
        batches = pa.RecordBatchReader.from_stream(data)
    elif hasattr(data, "__arrow_c_array__"):
        batches = [pa.record_batch(data)]
    else:
        return None
    return iter(batches)


def _dataset_batches(dataset: Any, columns: list[str] | None) -> Iterable[pa.RecordBatch]:
    import pyarrow.dataset as ds

    if not isinstance(dataset, ds.Dataset):  # a Scanner, which has settings of its own
        return dataset.to_batches()  # type: ignore[no-any-return]
    if columns is None or not set(columns) <= set(dataset.schema.names):
        columns = dataset.schema.names
    settings: dict[str, Any] = {}
    if isinstance(dataset, ds.FileSystemDataset) and isinstance(dataset.format, ds.ParquetFileFormat):
        try:
            return _parquet_batches(dataset, list(dataset.get_fragments()), columns)
        except ValueError:  # a dataset with a filter does not tell its fragments
            options = ds.ParquetFragmentScanOptions(use_buffered_stream=True, buffer_size=BYTES_PER_DISK_READ, pre_buffer=False)
            settings["fragment_scan_options"] = options
    # Of these (filtered, Arrow IPC) whole row groups or record batches of the file are in memory, but few at once.
    settings |= {"batch_size": ROWS_PER_READ, "batch_readahead": 0, "fragment_readahead": 0}
    return dataset.to_batches(columns=columns, **settings)  # type: ignore[no-any-return]


def _parquet_batches(dataset: Any, fragments: list[Any], columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The rows of Parquet files, a few at a time.

    ``Dataset.to_batches`` decodes whole row groups, several at once, and a row group may be all of a file.
    """
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    for fragment in fragments:
        partition = ds.get_partition_keys(fragment.partition_expression)
        try:
            with (
                fragment.open() as source,
                pq.ParquetFile(source, buffer_size=BYTES_PER_DISK_READ, pre_buffer=False) as file,
            ):
                names = [name for name in columns if name in file.schema_arrow.names]
                for group in fragment.row_groups:
                    rows = _rows_per_read(file.metadata.row_group(group.id))
                    for batch in file.iter_batches(rows, row_groups=[group.id], columns=names, use_threads=False):
                        yield _as_in_dataset(batch.select(names), dataset.schema, partition)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{fragment.path} cannot be read as parquet: {error}") from error


def _rows_per_read(row_group: Any) -> int:
    leaves = [row_group.column(i) for i in range(row_group.num_columns)]
    num_values = sum(leaf.num_values for leaf in leaves if leaf.path_in_schema.partition(".")[0] == "tokens")
    return int(max(VALUES_PER_READ * row_group.num_rows // max(num_values, 1), 1))


def _as_in_dataset(batch: pa.RecordBatch, schema: pa.Schema, partition: dict[str, Any]) -> pa.RecordBatch:
    """The batch of one file with the dataset's types and with the columns that stand in the file's path.

    Tokens keep the file's dtype: who takes them decides about mixed ones.
    """
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        columns[name] = column if name == "tokens" else column.cast(schema.field(name).type)
    for name, value in partition.items():
        if name not in columns and name in schema.names:
            kind = schema.field(name).type
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            columns[name] = pa.repeat(pa.scalar(value, kind), len(batch))
    return pa.record_batch(columns) if columns else batch
