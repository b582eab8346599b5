"""LEMUR inside LanceDB: ``pip install lemur_ann[lancedb]``. Documents stay in the LanceDB table, and so does their vector.

::

    from lemur_ann.adapters.lancedb import LemurTable

    table = LemurTable.fit(db, "documents", training_queries)  # a table with columns id and tokens: adds the column vector
    table.create_index()
    hits = table.search(query_tokens, k=10, filter="year > 2020")
    table = LemurTable(db, "documents")  # in another process

LanceDB's index finds candidates by the vector, and their exact MaxSim orders them. ``table.table`` is LanceDB's own table.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

try:
    import lance
    import lancedb
    from lancedb.expr import Expr
    from lancedb.index import HnswSq
except ImportError as error:
    raise ImportError("lemur_ann.adapters.lancedb needs lancedb and pylance: pip install lemur_ann[lancedb]") from error

from lemur_ann import LemurEncoder
from lemur_ann.documents import DocumentBatch, iterate_documents, opened, tokens_from_arrow
from lemur_ann.saved import in_place_of

from ._two_stages import (
    Found,
    Offsets,
    Part,
    Tokens,
    TwoStages,
    Wanted,
    as_stored,
    check_encoder,
    check_once,
    ids_in,
    learned,
    part_of,
    requests,
    sample_of,
)

MADE_BY = b"lemur_ann encoder"  # in the metadata of the field vector, so that each version of a table names its own encoder
NAME, DIGEST = re.compile(r"(?!\.\.?$)[A-Za-z0-9_.-]+"), re.compile(r"[0-9a-f]+")  # of tables, and of encoders in names
DOCUMENTS_PER_BATCH = 1024  # written at a time, of which LanceDB reads as many again when it learns a column
BYTES_PER_BATCH = 2**26


class LemurTable(TwoStages):
    """A LanceDB table with columns ``id``, ``vector`` and ``tokens``, and any others, searched by MaxSim.

    Other columns of documents are the table's; those left out become null, and a column ``vector`` is ignored. Tokens are kept
    in the table's type. Each change is one version of the table, and a stream is written as it is read. (Two writers at once
    may both add an id; upsert does not.)

    Args:
        db: what ``lancedb.connect`` gave.
        name: of a table that :meth:`create` or :meth:`fit` made.
        encoder: None reads the one stored beside the table.
        version: open the table as it was, to be searched only. None is the newest.

    Raises:
        ValueError: the table is none of these, or its vectors are another encoder's.
        FileNotFoundError: no encoder is stored beside the table.

    Attributes:
        table: LanceDB's own table.
        encoder: the learned map.
    """

    all_or_nothing = True  # an error on the way leaves the version there was
    documents_per_request, bytes_per_request = DOCUMENTS_PER_BATCH, BYTES_PER_BATCH
    ids_per_request = 2**20  # of one deletion, which is one version
    filter_types = (str, Expr)

    def __init__(
        self, db: lancedb.DBConnection, name: str, encoder: LemurEncoder | None = None, *, version: int | None = None
    ) -> None:
        self.table = db.open_table(name, version=version)
        schema = self.table.schema
        _check_columns(schema)
        if "vector" not in schema.names:
            raise ValueError(f"table {name!r} has no column 'vector': LemurTable.fit learns it")
        made_by = _made_by(schema)
        if encoder is None:
            if made_by is None:
                raise ValueError(f"table {name!r} does not name its encoder: pass it")
            encoder = LemurEncoder.load(_encoder_path(db, name, made_by))
        check_encoder(encoder)
        if made_by not in (None, encoder.fingerprint):
            raise ValueError(f"the vectors of table {name!r} were made by another encoder")
        expected = (encoder.dim, encoder.token_dim)
        found = (schema.field("vector").type.list_size, schema.field("tokens").type.value_type.list_size)
        if found != expected:
            raise ValueError(f"table {name!r} has vectors and tokens of dims {found}, the encoder is for {expected}")
        super().__init__(encoder, integer_ids=pa.types.is_integer(schema.field("id").type), stored_as=_stored_as(schema))
        self._made_by = made_by
        self._is_old = version is not None

    def __repr__(self) -> str:
        return f"<LemurTable {self.table.name!r} of {len(self)} documents>"

    def __len__(self) -> int:
        return int(self.table.count_rows())

    @classmethod
    def create(
        cls,
        db: lancedb.DBConnection,
        name: str,
        encoder: LemurEncoder,
        documents: Any = None,
        *,
        ids: Any = None,
        offsets: Any = None,
        schema: pa.Schema | None = None,
        encoder_path: str | PathLike[str] | None = None,
        mode: Literal["create", "overwrite"] = "create",
    ) -> LemurTable:
        """Make a table of documents, or an empty one.

        Args:
            db, name: where.
            encoder: the learned map.
            documents, ids, offsets: as for :meth:`add`.
            schema: the columns but ``vector``, for other types than those of the first documents; needed where there are none.
            encoder_path: the file to save the encoder to, to be loaded and passed when the table is opened. None is a file
                beside the table in the database's folder, which is found then.
            mode: "overwrite" takes the place of a LemurTable of this name.

        Raises:
            ValueError, TypeError: bad documents or names; "overwrite" where a table has this name that is no LemurTable, or
                "create" where there is one. What was there before is there still.
        """
        _check_free(db, name, mode)
        stream = _batches(() if documents is None else documents, ids, offsets, encoder.token_dim)
        first = next(stream, None)
        if schema is None:
            if first is None:
                raise ValueError("without documents pass schema=, the columns id, tokens and others")
            schema = _schema_of(first)
        _check_columns(schema)
        if schema.field("tokens").type.value_type.list_size != encoder.token_dim:
            raise ValueError(f"schema has tokens of {schema.field('tokens').type}, the encoder is for dim {encoder.token_dim}")
        without = [field for field in schema if field.name != "vector"]
        schema = pa.schema([*without, _vector_field(encoder)], metadata=schema.metadata)
        batches = stream if first is None else chain([first], stream)
        rows = (_record_batch(part, schema) for part in _parts(batches, schema, encoder))
        with _saved(encoder, db, name, encoder_path):
            _write(schema, rows, lambda reader: db.create_table(name, reader, mode=mode))
        return cls(db, name, encoder)

    @classmethod
    def fit(
        cls,
        db: lancedb.DBConnection,
        name: str,
        queries: Any,
        *,
        num_documents: int = 10_000,
        encoder_path: str | PathLike[str] | None = None,
        seed: int = 0,
        **how: Any,
    ) -> LemurTable:
        """Learn from a table that is there, and add the column ``vector`` to it, which rewrites no other.

        Where the column is there from another map, it is dropped first, and its index with it.

        Args:
            db, name: a table with columns ``id`` (strings or integers) and ``tokens``
                (list<fixed_size_list<float32 or float16>[dim]>).
            queries: a few thousand like those to come, not those to measure with; as for :meth:`lemur_ann.LemurIndex.fit`.
            num_documents: size of the random sample that is read to learn from.
            encoder_path: as for :meth:`create`.
            seed: of the sample.
            **how: as for :meth:`lemur_ann.LemurEncoder.fit`.

        Raises:
            ValueError, TypeError: there is no such table, its columns are others, or ``vector`` holds something else.
        """
        table = db.open_table(name)
        _check_columns(table.schema)
        if "vector" in table.schema.names and _made_by(table.schema) is None:
            raise ValueError(f"table {name!r} has a column 'vector' that no LemurTable wrote: rename it, or drop it yourself")
        chosen = sample_of(table.count_rows(), num_documents, seed)
        sample = [table.take_offsets(chosen).select(["tokens"]).to_arrow()] if chosen else []
        encoder = learned(map(_tokens_in, sample), queries, how)
        field = _vector_field(encoder)

        @lance.batch_udf(output_schema=pa.schema([field]))  # type: ignore[untyped-decorator,unused-ignore]
        def vectors(batch: pa.RecordBatch) -> pa.RecordBatch:
            encoded = encoder.encode_documents(pa.table({"tokens": batch.column("tokens")}))
            return pa.record_batch([_vector_array(encoded)], schema=pa.schema([field]))

        with _saved(encoder, db, name, encoder_path):
            if "vector" in table.schema.names:
                table.drop_columns(["vector"])
            table.to_lance().add_columns(vectors, read_columns=["tokens"], batch_size=DOCUMENTS_PER_BATCH)
        return cls(db, name, encoder)

    def create_index(self, config: Any = None, **options: Any) -> None:
        """Index the vectors; searches scan them all until then, which is right for a few thousand documents.

        Args:
            config: of ``lancedb.index``: IvfFlat, IvfSq, HnswFlat, ... of any distance. None is HnswSq(distance_type="dot").
            **options: of LanceDB's ``create_index``, such as name and replace.
        """
        self.table.create_index("vector", config=HnswSq(distance_type="dot") if config is None else config, **options)

    def optimize(self, **options: Any) -> None:
        """LanceDB's own: compacts files, and takes documents that came since into the index (they are scanned until then)."""
        self.table.optimize(**options)

    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        num_candidates: int = 200,
        filter: str | None = None,
        rerank: Literal["kernel", "engine"] = "kernel",
        offsets: Any = None,
        nprobes: int | None = None,
        ef: int | None = None,
        refine_factor: int | None = None,
        num_threads: int | None = None,
    ) -> Any:
        """The k documents of highest MaxSim among the candidates.

        Args:
            queries: one matrix (num_tokens, token_dim), or a batch, as for :meth:`lemur_ann.LemurIndex.search`.
            k: at least 1.
            num_candidates: documents reranked by exact MaxSim.
            filter: an SQL condition of LanceDB over the columns; what it lets through is searched.
            rerank: "kernel" fetches the candidates' tokens and scores them here; "engine" has LanceDB score them.
            offsets: int (num_queries + 1,), with a flat matrix only.
            nprobes, ef, refine_factor: of LanceDB's vector search. None leaves them to LanceDB; with a filter, it then searches
                as many partitions as it must.
            num_threads: of encoding and the kernel; None means all cores.

        Returns:
            Hits, or a list of them for a batch. There are fewer than k only where fewer documents match.
        """
        if rerank not in ("kernel", "engine"):
            raise ValueError(f'rerank must be "kernel" or "engine", got {rerank!r}')
        self._check_current()
        how = {"filter": self._filter(filter), "rerank": rerank, "nprobes": nprobes, "ef": ef, "refine_factor": refine_factor}
        return self._search(queries, k, num_candidates, offsets=offsets, num_threads=num_threads, **how)

    def _candidates(self, wanted: Wanted, *, filter: str | None, rerank: str, **how: int | None) -> Found:
        """Tokens come with the candidates, from one version of the table, whatever is written meanwhile."""
        query: Any = self.table.search(wanted.vector, vector_column_name="vector").limit(wanted.count)
        query = query.select(["id", "tokens", "_distance"] if rerank == "kernel" else ["id", "_distance"]).with_row_id(True)
        if filter is not None:
            query = query.where(filter, prefilter=True)
        if wanted.too_few is not None:
            query = query.bypass_vector_index()
        else:
            if how["nprobes"] is None and filter is not None:
                query = query.maximum_nprobes(0)  # no limit
            for name, value in how.items():
                query = query if value is None else getattr(query, name)(value)
        found: pa.Table = query.to_arrow()
        if rerank == "engine":
            return self._scored(wanted, found)
        return Found(found.column("id").to_pylist(), *_tokens_in(found)) if len(found) else Found([])

    def _scored(self, wanted: Wanted, chosen: pa.Table) -> Found:
        """By LanceDB, whose distance of two matrices is the number of query tokens less MaxSim."""
        if not len(chosen):
            return Found([])
        rows = ", ".join(map(str, chosen.column("_rowid").to_pylist()))
        search: Any = self.table.search(wanted.query, vector_column_name="tokens")
        found = (
            search.distance_type("dot")
            .limit(wanted.k)
            .where(f"_rowid IN ({rows})", prefilter=True)
            .select(["id", "_distance"])
            .to_arrow()
        )
        scores = np.float32(len(wanted.query)) - found.column("_distance").to_numpy()
        return Found(found.column("id").to_pylist(), scores=scores, count=len(chosen))

    def _put(self, documents: Any, ids: Any, offsets: Any, *, new: bool) -> None:
        self._newest()
        self._check_current()
        super()._put(documents, ids, offsets, new=new)

    def _written(self, parts: Iterator[Part], new: bool) -> None:
        """All parts as one version of the table."""
        schema = self.table.schema
        rows = (_record_batch(part, schema) for part in parts)
        merge = self.table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        _write(schema, rows, self.table.add if new else merge.execute)

    def _fields(self, batch: DocumentBatch, *, new: bool) -> pa.Table:
        return _columns(batch, self.table.schema)

    def _there(self, ids: list[Any]) -> list[Any]:
        there: list[Any] = []
        for begin in range(0, len(ids), DOCUMENTS_PER_BATCH):
            query: Any = self.table.search().where(_among(ids[begin : begin + DOCUMENTS_PER_BATCH]))
            there += query.select(["id"]).to_arrow().column("id").to_pylist()
        return there

    def _remove(self, ids: list[Any] | None, filter: Any) -> int:
        self._newest()
        deleted: Any = self.table.delete(filter if ids is None else _among(ids))
        return int(deleted.num_deleted_rows)

    def _newest(self) -> None:
        """See what others have written: LanceDB changes the version that it has seen, and an id would be there twice."""
        if not self._is_old:
            self.table.checkout_latest()  # type: ignore[no-untyped-call,unused-ignore]

    def _check_current(self) -> None:
        """ValueError where the table was learned anew, or restored to another map, since it was opened."""
        if self._made_by != _made_by(self.table.schema):
            raise ValueError("the vectors of the table are another encoder's by now: open it again")


def _batches(documents: Any, ids: Any, offsets: Any, dim: int) -> Iterator[DocumentBatch]:
    """Checked documents of a table to be made, each id once."""
    seen: set[Any] = set()
    for batch in iterate_documents(opened(documents), ids=ids, offsets=offsets, dim=dim):
        check_once(ids_in(batch).to_pylist(), seen)
        yield batch


def _parts(batches: Iterable[DocumentBatch], schema: pa.Schema, encoder: LemurEncoder) -> Iterator[Part]:
    def encoded(tokens: Tokens, offsets: Offsets) -> npt.NDArray[np.float32]:
        return encoder.encode_documents(tokens, offsets=offsets)

    for batch in batches:
        stored = replace(batch, tokens=as_stored(batch.tokens, _stored_as(schema)))
        columns = _columns(batch, schema)
        sizes = np.diff(batch.offsets) * encoder.token_dim * stored.tokens.itemsize
        for some in requests(sizes.tolist(), BYTES_PER_BATCH, DOCUMENTS_PER_BATCH):
            yield part_of(stored, some, columns[some], encoded)


def _columns(batch: DocumentBatch, schema: pa.Schema) -> pa.Table:
    """All columns of a table but tokens and vector, of its types."""
    given = {} if batch.metadata is None else {name: batch.metadata.column(name) for name in batch.metadata.column_names}
    given["id"] = ids_in(batch)
    unknown = [name for name in given if name not in schema.names]
    if unknown:
        raise ValueError(f"documents have a column {unknown[0]!r}, the table has columns {schema.names}")
    columns = {}
    for field in schema:
        if field.name not in ("tokens", "vector"):
            column = given.get(field.name, pa.nulls(len(batch), field.type))
            try:
                columns[field.name] = column if column.type == field.type else column.cast(field.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise TypeError(f"column {field.name!r} is {column.type}, the table has {field.type}: {error}") from error
    return pa.table(columns)


def _record_batch(part: Part, schema: pa.Schema) -> pa.RecordBatch:
    """Documents as rows of the table."""
    flat = pa.FixedSizeListArray.from_arrays(pa.array(part.tokens.reshape(-1)), part.tokens.shape[1])
    columns = {name: part.fields.column(name).combine_chunks() for name in part.fields.column_names}
    columns["tokens"] = pa.LargeListArray.from_arrays(pa.array(part.offsets), flat)
    columns["vector"] = _vector_array(part.vectors)
    arrays = [columns[field.name] for field in schema]
    typed = [array if array.type == field.type else array.cast(field.type) for array, field in zip(arrays, schema, strict=True)]
    return pa.record_batch(typed, schema=schema)


def _write(schema: pa.Schema, batches: Iterator[pa.RecordBatch], write: Callable[[pa.RecordBatchReader], Any]) -> None:
    """Stream batches to LanceDB, which makes one version of them or none; an error on the way is raised as it was."""
    failed: list[Exception] = []

    def watched() -> Iterator[pa.RecordBatch]:
        try:
            yield from batches
        except Exception as error:
            failed.append(error)
            raise

    try:
        write(pa.RecordBatchReader.from_batches(schema, watched()))
    except Exception:
        if failed:
            raise failed[0] from None
        raise


def _schema_of(batch: DocumentBatch) -> pa.Schema:
    """The columns of the first documents, but the vector."""
    assert batch.ids is not None
    kind = pa.from_numpy_dtype(batch.tokens.dtype)
    tokens = pa.list_(pa.list_(kind, batch.tokens.shape[1]))
    others = [] if batch.metadata is None else list(batch.metadata.schema)
    return pa.schema([pa.field("id", batch.ids.type), pa.field("tokens", tokens), *others])


def _check_columns(schema: pa.Schema) -> None:
    missing = [name for name in ("id", "tokens") if name not in schema.names]
    if missing:
        raise ValueError(f"a table must have columns 'id' and 'tokens', got {schema.names}")
    id_type, kind = schema.field("id").type, schema.field("tokens").type
    if not (pa.types.is_integer(id_type) or pa.types.is_string(id_type) or pa.types.is_large_string(id_type)):
        raise TypeError(f"column 'id' must be of strings or integers, got {id_type}")
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not (lists and pa.types.is_fixed_size_list(kind.value_type)) or kind.value_type.value_type not in (
        pa.float16(),
        pa.float32(),
    ):
        raise TypeError(f"column 'tokens' must be list<fixed_size_list<float32 or float16>[dim]>, got {kind}")


def _vector_field(encoder: LemurEncoder) -> pa.Field:
    return pa.field("vector", pa.list_(pa.float32(), encoder.dim), metadata={MADE_BY: encoder.fingerprint})


def _vector_array(vectors: npt.NDArray[np.float32]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


def _made_by(schema: pa.Schema) -> str | None:
    metadata = schema.field("vector").metadata if "vector" in schema.names else None
    digest = None if metadata is None else metadata.get(MADE_BY)
    return None if digest is None else digest.decode()


def _stored_as(schema: pa.Schema) -> np.dtype[Any]:
    kind: np.dtype[Any] = np.dtype(schema.field("tokens").type.value_type.value_type.to_pandas_dtype())
    return kind


def _tokens_in(table: pa.Table) -> tuple[Tokens, Offsets]:
    return tokens_from_arrow(table.column("tokens").combine_chunks(), "column 'tokens'")


def _encoder_path(db: lancedb.DBConnection, name: str, digest: str) -> Path:
    """Beside the table, not in its folder, which LanceDB cleans up."""
    if not isinstance(name, str) or not NAME.fullmatch(name) or not DIGEST.fullmatch(digest):
        raise ValueError(f"table's name must be letters, digits, and any of _ . - between them, got {name!r}")
    folder = str(getattr(db, "uri", ""))
    if "://" in folder or not folder:
        raise ValueError("the database is not in a local folder: pass encoder_path=, and the encoder when the table is opened")
    return Path(folder) / f"{name}.{digest}.safetensors"


@contextmanager
def _saved(encoder: LemurEncoder, db: lancedb.DBConnection, name: str, path: str | PathLike[str] | None) -> Iterator[None]:
    """The encoder is in its file while the table is written; where that fails, the file is as it was before."""
    target = _encoder_path(db, name, encoder.fingerprint) if path is None else Path(path)
    os.makedirs(target.parent, exist_ok=True)
    before = target.read_bytes() if target.exists() else None
    encoder.save(target)
    try:
        yield
    except BaseException:
        if before is None:
            target.unlink(missing_ok=True)
        else:
            with in_place_of(target) as file:
                file.write(before)
        raise


def _check_free(db: lancedb.DBConnection, name: str, mode: str) -> None:
    """ValueError where a table that is not ours would make way for a new one."""
    if mode not in ("create", "overwrite"):
        raise ValueError(f'mode must be "create" or "overwrite", got {mode!r}')
    try:
        schema = db.open_table(name).schema
    except (ValueError, FileNotFoundError):  # there is none, or such a name is not allowed, as create_table says
        return
    if mode == "create":
        raise ValueError(f'Table {name!r} already exists; mode="overwrite" takes its place')
    if _made_by(schema) is None:
        raise ValueError(f"table {name!r} is no LemurTable, and is not overwritten: drop_table drops it")


def _among(ids: list[Any]) -> str:
    """The condition that a row has one of these ids."""
    return f"id IN ({', '.join(map(_literal, ids))})"


def _literal(value: str | int) -> str:
    """As SQL writes it."""
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"
