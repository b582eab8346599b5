"""Tables, frames, readers, datasets and paths as Arrow record batches; what is on disk in bounded memory.

Other libraries' objects are known by the methods they have, and none of these libraries is imported here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import pyarrow as pa

from lemur_ann import validate

VALUES_PER_READ = 2**19  # of a Parquet file; decoding them takes several times their size
ROWS_PER_READ = 64  # of other datasets, whose rows may be pages of a thousand tokens each
BYTES_PER_DISK_READ = 2**22
BYTES_READ_AHEAD = 2**25  # by Lance, which else reads gigabytes ahead

# What gives record batches piece by piece: datasets and scanners, DuckDB relations, LazyFrames, Hugging Face datasets, and all
# with the Arrow PyCapsule interface.
STREAMING_METHODS = (
    "to_batches",
    "to_arrow_reader",
    "fetch_record_batch",
    "collect_batches",
    "with_format",
    "__arrow_c_stream__",
)

IPC_SUFFIXES = (".arrow", ".feather", ".ipc")


def open_path(path: str | os.PathLike[str], *others: str | os.PathLike[str]) -> Any:
    """A pyarrow dataset of a Parquet file, a folder of Parquet files, or an Arrow IPC file (.arrow, .feather, .ipc).

    ``others`` are more files of the same format.

    Raises:
        FileNotFoundError: there is nothing at ``path``, or at one of the others.
        ValueError: what is there is something else, or a folder without files.
    """
    import pyarrow.dataset as ds

    kind = "ipc" if PurePath(path).suffix in IPC_SUFFIXES else "parquet"
    try:
        dataset = ds.dataset([os.fspath(file) for file in (path, *others)] if others else path, format=kind)
    except FileNotFoundError as error:
        where = f"{os.fspath(path)!r}" if not others else f"one of {1 + len(others)} paths: {error}"
        raise FileNotFoundError(f"no Parquet file or folder of Parquet files at {where}") from None
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} cannot be read as {kind}: {error}") from error
    if not dataset.files:
        raise ValueError(f"{path} is a folder without Parquet files")
    return dataset


def opened(data: Any) -> Any:
    """``data``, or the dataset at the path that it is."""
    if isinstance(data, (str, os.PathLike)):
        return open_path(os.path.expanduser(data))
    return as_column(data)


def as_column(data: Any) -> Any:
    """``data``, or what a Series or an array of objects holds: a list of matrices, or an Arrow column of them."""
    if isinstance(data, np.ndarray) and data.dtype == object and data.ndim == 1:
        return data.tolist()
    package = type(data).__module__.partition(".")[0]
    if package not in ("pandas", "polars") or type(data).__name__ != "Series":
        return data
    if str(data.dtype).lower() == "object":
        return data.to_list()
    return data.to_arrow() if package == "polars" else pa.array(data)


def is_stream(data: Any) -> bool:
    """Whether ``data`` comes piece by piece and need not be in memory: readers, datasets, scanners, relations, iterators.

    Arrow tables, record batches, arrays and sequences are in memory already.
    """
    if isinstance(data, (pa.Table, pa.RecordBatch)):
        return False
    if any(hasattr(data, method) for method in STREAMING_METHODS):
        return True
    in_memory = isinstance(data, (Sequence, dict)) or hasattr(data, "ndim") or hasattr(data, "__arrow_c_array__")
    return isinstance(data, Iterable) and not in_memory


def record_batches(data: Any, columns: list[str] | None = None) -> Iterator[pa.RecordBatch] | None:
    """The record batches of Arrow data; None where ``data`` is not Arrow.

    Of a dataset only ``columns`` are read; None reads all, as where a dataset lacks one of them.
    """
    batches: Iterable[pa.RecordBatch]
    if isinstance(data, (pa.Array, pa.ChunkedArray)) and not pa.types.is_struct(data.type):
        data = pa.table({"tokens": data})  # a column of matrices, by itself
    if isinstance(data, pa.RecordBatch):
        batches = [data]
    elif isinstance(data, pa.RecordBatchReader):
        batches = data
    elif isinstance(data, pa.Table):
        batches = data.to_batches()
    elif hasattr(data, "to_batches"):
        batches = _dataset_batches(data, columns)
    elif hasattr(data, "to_arrow_reader"):  # DuckDB, whose Arrow stream is in batches of 131,072 rows
        batches = data.to_arrow_reader(ROWS_PER_READ)
    elif hasattr(data, "fetch_record_batch"):  # DuckDB 1.4
        batches = data.fetch_record_batch(ROWS_PER_READ)
    elif hasattr(data, "collect_batches"):  # Polars' LazyFrame
        batches = _chained(data.collect_batches(chunk_size=ROWS_PER_READ))
    elif hasattr(data, "with_format") and hasattr(data, "iter"):  # Hugging Face's Dataset and IterableDataset
        batches = _chained(_as_arrow(data).iter(ROWS_PER_READ))
    elif _is_pandas_frame(data):
        batches = _pandas_batches(data)
    elif hasattr(data, "__arrow_c_stream__"):
        try:
            batches = pa.RecordBatchReader.from_stream(data)
        except pa.ArrowInvalid as error:  # a column without a name, or a type that pyarrow lacks
            raise TypeError(f"{type(data).__name__} cannot be read as an Arrow table of named columns: {error}") from error
    elif hasattr(data, "__arrow_c_array__"):
        batches = [pa.record_batch(data)]
    elif hasattr(data, "to_arrow"):  # LanceDB's tables
        return record_batches(data.to_arrow())
    else:
        return None
    return iter(batches)


def _chained(tables: Iterable[Any]) -> Iterator[pa.RecordBatch]:
    for table in tables:
        yield from record_batches(table) or ()


def _as_arrow(dataset: Any) -> Any:
    """A Hugging Face dataset that gives Arrow tables, of the columns that its own format shows."""
    shown = getattr(dataset, "format", None)
    if shown is None or shown["output_all_columns"]:
        return dataset.with_format("arrow")
    return dataset.with_format("arrow", columns=shown["columns"])


def _is_pandas_frame(data: Any) -> bool:
    packages = {base.__module__.partition(".")[0] for base in type(data).__mro__}
    return "pandas" in packages and data.ndim == 2


def _pandas_batches(frame: Any) -> Iterator[pa.RecordBatch]:
    """The columns of a pandas frame, without its index, but for one that is called ``id`` where no column is.

    pyarrow converts all kinds of columns but those of matrices, which are laid end to end, a few rows at a time.
    """
    if frame.index.name == "id" and "id" not in frame.columns:
        frame = frame.reset_index()
    matrices = _matrices_of(frame)
    if matrices is None:
        yield from pa.Table.from_pandas(frame, preserve_index=False).to_batches()
        return
    others = pa.Table.from_pandas(frame.drop(columns="tokens"), preserve_index=False)
    for row in range(0, len(frame), ROWS_PER_READ):
        columns = {name: others.column(name).slice(row, ROWS_PER_READ) for name in others.column_names}
        columns["tokens"] = _end_to_end(matrices[row : row + ROWS_PER_READ], row)
        yield from pa.table(columns).to_batches()


def _matrices_of(frame: Any) -> list[Any] | None:
    """The column ``tokens`` of a pandas frame, where it holds one matrix a row."""
    if list(frame.columns).count("tokens") != 1 or frame["tokens"].dtype != object:
        return None
    column = frame["tokens"]
    present = column.dropna()
    return column.tolist() if len(present) and getattr(present.iloc[0], "ndim", None) == 2 else None


def _end_to_end(matrices: list[Any], first_row: int) -> pa.Array:
    shapes = [np.shape(matrix) for matrix in matrices]
    bad = next((i for i, shape in enumerate(shapes) if len(shape) != 2 or shape[1] != shapes[0][-1]), None)
    if bad is not None:
        raise ValueError(
            f"column 'tokens' must hold matrices (num_tokens, dim) of one dim, got {type(matrices[bad]).__name__} of shape "
            f"{tuple(shapes[bad])} in row {first_row + bad}"
        )
    tokens = validate.token_matrix(np.concatenate(matrices), "column 'tokens'", allow_empty=True)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(tokens.reshape(-1)), tokens.shape[1])
    return pa.LargeListArray.from_arrays(pa.array(np.cumsum([0, *map(len, matrices)])), vectors)


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
    elif hasattr(dataset, "lance_schema"):
        return lance_scanner(dataset, columns).to_batches()  # type: ignore[no-any-return]
    # Of these (filtered, Arrow IPC) whole row groups or record batches of the file are in memory, but few at once.
    settings = {"batch_size": ROWS_PER_READ, "batch_readahead": 0, "fragment_readahead": 0, **settings}
    return dataset.to_batches(columns=columns, **settings)  # type: ignore[no-any-return]


def lance_scanner(dataset: Any, columns: list[str] | None = None, fragments: list[Any] | None = None) -> Any:
    """A scanner of a Lance dataset, or of some fragments of it, that reads a few rows at a time and not far ahead."""
    return dataset.scanner(
        columns=columns,
        fragments=fragments,
        batch_size=ROWS_PER_READ,
        batch_readahead=1,
        fragment_readahead=1,
        io_buffer_size=BYTES_READ_AHEAD,
    )


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
