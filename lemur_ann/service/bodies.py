"""What travels: token matrices as JSON or Arrow, documents, hits; with the models that the OpenAPI page shows."""

from __future__ import annotations

import base64
import binascii
import io
import json
import struct
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, StrictInt

from lemur_ann.client import wire
from lemur_ann.documents.inputs import to_offsets
from lemur_ann.documents.tokens import tokens_column
from lemur_ann.hits import Hits

ARROW = wire.ARROW
PARQUET = "application/vnd.apache.parquet"
MAX_K = 10_000
SETTINGS = b"lemur_ann"  # in the metadata of a schema: the fields of a search, as JSON
IDS_AT_A_TIME = 65_536

MAX_UNPACKED = 2**28  # bytes of a compressed body once it is unpacked
ROWS_AT_A_TIME = 256  # of Parquet, whose sizes are known once they are read

Id = StrictInt | str  # true is no id 1


class TooLarge(ValueError):
    """A body that unpacks to more than is taken."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Encoded(_Strict):
    """A matrix (num_tokens, dim) as base64 of its rows, little-endian and C-contiguous: a quarter of the size of numbers."""

    data: str
    shape: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    dtype: Literal["float16", "float32"] = "float16"


Tokens = Encoded | list[list[float]]


class Query(_Strict):
    """One query, as text for the index's encoder or as the token embeddings that yours gives."""

    text: str | None = None
    tokens: Tokens | None = None


class Widths(_Strict):
    """How a search is asked; what is left out is the index's own, see ``LemurIndex.search``."""

    k: int = Field(10, ge=1, le=MAX_K, description="Hits to return.")
    num_candidates: int | None = Field(None, ge=1, description="Documents to rerank.")
    ef_search: int | None = Field(None, ge=1, description="Beam of the graph search.")
    shortlist: int | None = Field(None, ge=0, description="Documents that the second look chooses from; 0 for none.")
    target_recall: float | None = Field(None, description="Search as `tune` chose for this recall.")
    max_loss: float | None = Field(None, description="Search as `tune` chose for this loss of relevance.")
    exact: bool = Field(False, description="Score every document.")


class Search(Widths):
    """A search: of one query (``text`` or ``tokens``), or of several (``queries``)."""

    text: str | None = None
    tokens: Tokens | None = None
    queries: list[Query] | None = Field(None, min_length=1)
    filter: dict[str, Any] | None = Field(None, description='Such as {"year": {"$gte": 2020}}; see the page on the service.')
    columns: list[str] | None = Field(None, description='Metadata columns to return with each hit; ["*"] for all.')

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"text": "an editor for the terminal", "k": 3, "columns": ["text"]}]}
    )


class Documents(_Strict):
    """Documents as JSON objects: ``id``, ``tokens`` or ``text`` (or both), and any other keys, which are metadata."""

    documents: list[dict[str, Any]] = Field(min_length=1)

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"documents": [{"id": "vim", "text": "Vi IMproved, an editor", "year": 1991}]}]},
    )


class Deletion(_Strict):
    """Documents to delete: by ``ids``, each of which must be there, or by ``filter``."""

    ids: list[Id] | None = None
    filter: dict[str, Any] | None = None

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"ids": ["vim"]}]})


class Wanted(_Strict):
    """Documents to read back."""

    ids: list[Id] = Field(max_length=10_000)
    tokens: bool = Field(False, description="With the column tokens, as base64 float16.")

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"ids": ["vim"]}]})


class Explained(_Strict):
    """One query and one document, to be told why it has its score."""

    text: str | None = None
    tokens: Tokens | None = None
    id: Id
    k: int = Field(10, ge=1, le=MAX_K)


class Hit(BaseModel):
    """A document that was found, with the metadata columns that were asked for."""

    model_config = ConfigDict(extra="allow")
    id: Id
    score: float = Field(description="Exact MaxSim, higher is better.")


class Found(BaseModel):
    """What a search found. Of several queries there is ``results``, a list of hits for each, in the place of ``hits``."""

    hits: list[Hit] | None = None
    results: list[list[Hit]] | None = None
    exact: bool = Field(description="False where the index keeps codes alone: scores are those of codes.")
    version: int = Field(description="Of the index: it grows with every change.")


class Changed(BaseModel):
    """What a change did."""

    added: int | None = None
    replaced: int | None = None
    deleted: int | None = None
    num_documents: int
    version: int
    repeated: bool = Field(False, description="The Idempotency-Key was known: this is the first answer again.")


class About(BaseModel):
    """An index."""

    name: str
    num_documents: int
    num_tokens: int
    dim: int | None
    version: int
    is_fitted: bool
    takes_texts: bool
    read_only: bool
    columns: dict[str, str]


class Problem(BaseModel):
    """Why a request was refused."""

    error: str
    message: str
    type: str | None = Field(None, description="The class of the error that the library raised, such as TypeError.")


def matrix_of(tokens: Tokens) -> npt.NDArray[Any]:
    """The matrix (num_tokens, dim) that a request carries.

    Raises:
        ValueError: base64 that is none, or of another length than its shape; rows of different lengths.
    """
    if isinstance(tokens, Encoded):
        try:
            data = base64.b64decode(tokens.data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"data of tokens is not base64: {error}") from error
        kind = np.dtype(tokens.dtype).newbyteorder("<")
        expected = tokens.shape[0] * tokens.shape[1] * kind.itemsize
        if len(data) != expected:
            raise ValueError(
                f"data of tokens has {len(data)} bytes, expected {expected} of shape {list(tokens.shape)}, {kind.name}"
            )
        return np.frombuffer(data, kind).reshape(tokens.shape)
    widths = {len(row) for row in tokens}
    if len(widths) != 1 or widths == {0}:
        raise ValueError(
            f"tokens are rows of one length each, one a token; got {len(tokens)} rows of lengths {sorted(widths)[:5]}"
        )
    return np.array(tokens, np.float32)


def table_of(documents: Sequence[dict[str, Any]]) -> pa.Table:
    """JSON documents as a table, with ``tokens`` as Arrow where they have them.

    Raises:
        ValueError, TypeError: some have tokens and some have not, or a column has values of several kinds.
    """
    with_tokens = sum("tokens" in row for row in documents)
    if with_tokens not in (0, len(documents)):
        raise ValueError(f"{with_tokens} of {len(documents)} documents have tokens: all have them, or none has")
    rows = [{name: value for name, value in row.items() if name != "tokens"} for row in documents]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    arrays: dict[str, Any] = {}
    for name in columns:
        try:
            array = pa.array([row.get(name) for row in rows])
        except (pa.ArrowException, OverflowError) as error:
            raise ValueError(f"column {name!r} of the documents has values that do not go together: {error}") from error
        arrays[name] = array
    table = pa.table(arrays) if arrays else pa.table({"": pa.nulls(len(rows))}).select([])
    if not with_tokens:
        return table
    matrices = [_tokens_of(row["tokens"], number) for number, row in enumerate(documents)]
    return table.append_column("tokens", column_of(matrices))


def _tokens_of(value: Any, number: int) -> npt.NDArray[Any]:
    try:
        return matrix_of(Encoded.model_validate(value) if isinstance(value, dict) else value)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"tokens of document {number}: {str(error).splitlines()[0]}") from error


def column_of(matrices: Sequence[npt.NDArray[Any]]) -> pa.Array:
    """Matrices as a column large_list<fixed_size_list<float16 or float32>[dim]>."""
    dims = {matrix.shape[1] for matrix in matrices}
    if len(dims) != 1:
        raise ValueError(f"tokens have different dims: {sorted(dims)}")
    kind = np.result_type(*(matrix.dtype for matrix in matrices)).newbyteorder("=")
    flat = np.concatenate(matrices).astype(kind, copy=False)
    return tokens_column(flat, to_offsets([len(matrix) for matrix in matrices]))


def read_arrow(body: bytes, kind: str) -> pa.Table:
    """The table of an Arrow IPC stream or of a Parquet file.

    Raises:
        TooLarge: what it unpacks to has more than :data:`MAX_UNPACKED` bytes; a few kilobytes may say terabytes.
        ValueError: it is none.
    """
    try:
        if kind == PARQUET:
            return _read_parquet(body)
        _check_unpacked(body)
        with pa.ipc.open_stream(body) as reader:
            table = reader.read_all()
        table.validate(full=True)
        return table
    except TooLarge:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, struct.error) as error:
        raise ValueError(f"the body is no {kind}: {error}") from error


def _read_parquet(body: bytes) -> pa.Table:
    file = pq.ParquetFile(io.BytesIO(body))
    groups = file.metadata.num_row_groups
    size = sum(file.metadata.row_group(i).total_byte_size for i in range(groups))
    if size <= MAX_UNPACKED:
        size, batches = 0, []
        for batch in file.iter_batches(ROWS_AT_A_TIME):  # a value that is written once may be in all rows
            size += batch.nbytes
            if size > MAX_UNPACKED:
                break
            batches.append(batch)
        else:
            return pa.Table.from_batches(batches, file.schema_arrow)
    raise _too_large()


def _check_unpacked(body: bytes) -> None:
    """Raises where the buffers of an Arrow IPC stream have too many bytes, or are fewer bytes than it has rows.

    Arrow reads a compressed buffer into as many bytes as its first eight say; see Message.fbs of Arrow for the rest.
    """
    size = 0
    for message in pa.ipc.MessageReader.open_stream(body):
        head, data = memoryview(message.metadata), message.body
        table = _field(head, _target(head, 0), 2)
        if message.type == "dictionary" and table:
            table = _field(head, _target(head, table), 1)
        if message.type not in ("dictionary", "record batch") or not table:
            continue
        batch = _target(head, table)
        length, buffers, compressed = (_field(head, batch, number) for number in (0, 2, 3))
        rows = struct.unpack_from("<q", head, length)[0] if length else 0
        begin = _target(head, buffers) if buffers else 0
        own = 0
        for i in range(struct.unpack_from("<I", head, begin)[0] if buffers else 0):
            offset, count = struct.unpack_from("<qq", head, begin + 4 + 16 * i)
            unpacked = struct.unpack_from("<q", data, offset)[0] if compressed and count >= 8 else -1
            own += count if unpacked < 0 else unpacked
        size += own
        if size > max(MAX_UNPACKED, len(body)) or rows > own:
            raise _too_large()


def _target(head: memoryview, place: int) -> int:
    return place + int(struct.unpack_from("<I", head, place)[0])


def _field(head: memoryview, table: int, number: int) -> int:
    """Where a field of a FlatBuffers table is; 0 where it is not there."""
    fields = table - struct.unpack_from("<i", head, table)[0]
    if 4 + 2 * number >= struct.unpack_from("<H", head, fields)[0]:
        return 0
    offset = struct.unpack_from("<H", head, fields + 4 + 2 * number)[0]
    return table + offset if offset else 0


def _too_large() -> TooLarge:
    return TooLarge(f"the body unpacks to more than {MAX_UNPACKED:,} bytes, or has rows of nothing; send it in parts")


def loads(text: str | bytes, what: str) -> Any:
    """A value of JSON that no model reads.

    Raises:
        ValueError: it is none, or nested deeper than is read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{what} is nested too deep") from None
    except ValueError as error:
        raise ValueError(f"{what} is no JSON: {error}") from error


def settings_in(table: pa.Table) -> dict[str, Any]:
    """The fields of a search that a table of queries carries, as its parameters in the path may be too long; often none.

    Raises:
        ValueError: they are no JSON object.
    """
    given = loads((table.schema.metadata or {}).get(SETTINGS, b"{}"), f"the metadata {SETTINGS.decode()!r} of the schema")
    if not isinstance(given, dict):
        raise ValueError(f"the metadata {SETTINGS.decode()!r} of the schema is a JSON object of a search's fields")
    return given


def texts_in(table: pa.Table) -> list[str]:
    """The column ``text`` of a table.

    Raises:
        TypeError, ValueError: it has something else than strings.
    """
    column = table.column("text")
    if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
        raise TypeError(f"column 'text' has {column.type}, expected strings")
    if column.null_count:
        raise ValueError("column 'text' has a null, expected a string for each query")
    texts: list[str] = column.to_pylist()
    return texts


def relevant_in(table: pa.Table) -> list[Any] | None:
    """For each query of a table its relevant documents, as ``LemurIndex.evaluate`` takes them; None where it has none."""
    if "relevant" not in table.column_names:
        return None
    rows: list[Any] = table.column("relevant").to_pylist()
    graded = [isinstance(row, list) and all(isinstance(one, dict) for one in row) for row in rows]
    return [{one.get("id"): one.get("grade", 1) for one in row} if own else row for row, own in zip(rows, graded, strict=True)]


def ids_in_parts(ids: pa.Array) -> Iterator[bytes]:
    """Ids as an Arrow IPC stream with the column ``id``, part after part."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, pa.schema([("id", ids.type)])) as writer:
        for begin in range(0, len(ids), IDS_AT_A_TIME):
            writer.write_batch(pa.record_batch({"id": ids[begin : begin + IDS_AT_A_TIME]}))
            yield sink.getvalue()
            sink.seek(0)
            sink.truncate()
    yield sink.getvalue()


def rows_of(hits: Hits, table: pa.Table | None) -> list[dict[str, Any]]:
    """Hits as JSON objects, with their metadata where a table has it."""
    if table is None:
        return [{"id": doc_id, "score": score} for doc_id, score in hits]
    rows: list[dict[str, Any]] = table.drop_columns(["rank"]).to_pylist()
    return rows
