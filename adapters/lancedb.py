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

import hashlib
import os
from collections.abc import Callable, Iterator
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
    from lancedb.index import HnswSq
except ImportError as error:
    raise ImportError("lemur_ann.adapters.lancedb needs lancedb and pylance: pip install lemur_ann[lancedb]") from error

from lemur_ann import Hits, LemurEncoder, maxsim
from lemur_ann import _validate as validate
from lemur_ann.documents.inputs import (
    DocumentBatch,
    ids_of,
    is_single_query,
    iterate_documents,
    read_queries,
    tokens_from_arrow,
)
from lemur_ann.documents.sources import opened

MADE_BY = b"lemur_ann encoder"  # in the metadata of the field vector, so that each version of a table names its own encoder
DOCUMENTS_PER_BATCH = 1024  # written at a time, of which LanceDB reads as many again when it learns a column


class LemurTable:
    """A LanceDB table with columns ``id``, ``vector`` and ``tokens``, and any others, searched by MaxSim.

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
        elif made_by not in (None, _digest(encoder)):
            raise ValueError(f"the vectors of table {name!r} were made by another encoder")
        expected = (encoder.dim, encoder.token_dim)
        found = (schema.field("vector").type.list_size, schema.field("tokens").type.value_type.list_size)
        if found != expected:
            raise ValueError(f"table {name!r} has vectors and tokens of dims {found}, the encoder is for {expected}")
        self.encoder = encoder
        self._made_by = made_by

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
            mode: "overwrite" takes the place of a table of this name.
        """
        stream = _batches(() if documents is None else documents, ids, offsets, encoder)
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
        _save(encoder, db, name, encoder_path)
        _write(schema, _encoded(batches, schema, encoder), lambda reader: db.create_table(name, reader, mode=mode))
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

        Where the column is there, it is dropped first, and its index with it.

        Args:
            db, name: a table with columns ``id`` (strings or integers) and ``tokens``
                (list<fixed_size_list<float32 or float16>[dim]>).
            queries: a few thousand like those to come, not those to measure with; as for :meth:`lemur_ann.LemurIndex.fit`.
            num_documents: size of the random sample that is read to learn from.
            encoder_path: as for :meth:`create`.
            seed: of the sample.
            **how: as for :meth:`lemur_ann.LemurEncoder.fit`.
        """
        table = db.open_table(name)
        _check_columns(table.schema)
        count = table.count_rows()
        chosen = np.random.default_rng(seed).choice(
            count, min(count, validate.positive_int(num_documents, "num_documents")), replace=False
        )
        sample = table.take_offsets(np.sort(chosen).tolist()).select(["tokens"]).to_arrow()
        encoder = LemurEncoder.fit(sample, queries, **how)
        _save(encoder, db, name, encoder_path)
        field = _vector_field(encoder)

        @lance.batch_udf(output_schema=pa.schema([field]))  # type: ignore[untyped-decorator,unused-ignore]
        def vectors(batch: pa.RecordBatch) -> pa.RecordBatch:
            encoded = encoder.encode_documents(pa.table({"tokens": batch.column("tokens")}))
            return pa.record_batch([_vector_array(encoded)], schema=pa.schema([field]))

        if "vector" in table.schema.names:
            table.drop_columns(["vector"])
        table.to_lance().add_columns(vectors, read_columns=["tokens"], batch_size=DOCUMENTS_PER_BATCH)
        return cls(db, name, encoder)

    def add(self, documents: Any, *, ids: Any = None, offsets: Any = None) -> None:
        """Append documents, in one version of the table. As LanceDB's own, it does not look whether an id is there already.

        Args:
            documents: in any form that :meth:`lemur_ann.LemurIndex.fit` takes, with ids and the table's other columns; columns
                left out become null, and a column ``vector`` is ignored. Tokens are stored in the table's type.
            ids, offsets: for documents that are not Arrow.

        Raises:
            ValueError, TypeError: bad documents. Nothing is added then.
        """
        batches = _batches(documents, ids, offsets, self._current_encoder())
        _write(self.table.schema, _encoded(batches, self.table.schema, self.encoder), self.table.add)

    def upsert(self, documents: Any, *, ids: Any = None, offsets: Any = None) -> None:
        """Add documents, in the place of those that have their ids; arguments and errors as for :meth:`add`."""
        batches = _batches(documents, ids, offsets, self._current_encoder())
        merge = self.table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        _write(self.table.schema, _encoded(batches, self.table.schema, self.encoder), merge.execute)

    def delete(self, ids: Any = None, *, filter: str | None = None) -> int:
        """Delete documents by ids, of which those that name none count for nothing, or by an SQL condition.

        Returns:
            how many were deleted.
        """
        if (ids is None) == (filter is None):
            raise TypeError("pass ids or filter=, one of them")
        if filter is None:
            literals = [_literal(doc_id) for doc_id in ids_of(ids).to_pylist()]
            if not literals:
                return 0
            filter = f"id IN ({', '.join(literals)})"
        deleted: Any = self.table.delete(filter)
        return int(deleted.num_deleted_rows)

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
        encoder = self._current_encoder()
        validate.positive_int(k, "k")
        count = max(k, validate.positive_int(num_candidates, "num_candidates"))
        if rerank not in ("kernel", "engine"):
            raise ValueError(f'rerank must be "kernel" or "engine", got {rerank!r}')
        threads = validate.num_threads(num_threads)
        single = offsets is None and is_single_query(queries)
        batch = read_queries([queries] if single else opened(queries), offsets=offsets, dim=encoder.token_dim)
        vectors = encoder.encode_batch(batch.tokens, batch.offsets, num_threads=threads)
        columns = ["id", "tokens"] if rerank == "kernel" else ["id"]
        found = []
        for row, vector in enumerate(vectors):
            query = np.ascontiguousarray(batch.tokens[batch.offsets[row] : batch.offsets[row + 1]], np.float32)
            chosen = self._candidates(vector, count, filter, columns, nprobes, ef, refine_factor)
            if len(chosen) < k:  # a graph may end early where few documents pass
                chosen = self._candidates(vector, count, filter, columns, None, None, None, scan=True)
            found.append(_reranked(query, chosen, k, threads) if rerank == "kernel" else self._scored(query, chosen, k))
        return found[0] if single else found

    def _candidates(
        self,
        vector: npt.NDArray[np.float32],
        count: int,
        filter: str | None,
        columns: list[str],
        nprobes: int | None,
        ef: int | None,
        refine_factor: int | None,
        *,
        scan: bool = False,
    ) -> pa.Table:
        """Tokens come with the candidates, from one version of the table, whatever is written meanwhile."""
        query: Any = self.table.search(vector, vector_column_name="vector").limit(count)
        query = query.select([*columns, "_distance"]).with_row_id(True)
        if filter is not None:
            query = query.where(filter, prefilter=True)
        if scan:
            query = query.bypass_vector_index()
        if nprobes is not None:
            query = query.nprobes(nprobes)
        elif filter is not None:
            query = query.maximum_nprobes(0)  # no limit
        if ef is not None:
            query = query.ef(ef)
        if refine_factor is not None:
            query = query.refine_factor(refine_factor)
        found: pa.Table = query.to_arrow()
        return found

    def _scored(self, query: npt.NDArray[np.float32], chosen: pa.Table, k: int) -> Hits:
        """By LanceDB, whose distance of two matrices is the number of query tokens less MaxSim."""
        if not len(chosen):
            return _hits(chosen.column("id"), np.empty(0, np.float32))
        rows = ", ".join(map(str, chosen.column("_rowid").to_pylist()))
        search: Any = self.table.search(query, vector_column_name="tokens")
        found = (
            search.distance_type("dot")
            .limit(k)
            .where(f"_rowid IN ({rows})", prefilter=True)
            .select(["id", "_distance"])
            .to_arrow()
        )
        return _hits(found.column("id"), np.float32(len(query)) - found.column("_distance").to_numpy())

    def _current_encoder(self) -> LemurEncoder:
        """The encoder; ValueError where the table was learned anew, or restored to another map, since it was opened."""
        if self._made_by != _made_by(self.table.schema):
            raise ValueError("the vectors of the table are another encoder's by now: open it again")
        return self.encoder


def _reranked(query: npt.NDArray[np.float32], chosen: pa.Table, k: int, num_threads: int) -> Hits:
    tokens, offsets = tokens_from_arrow(chosen.column("tokens").combine_chunks(), "column 'tokens'")
    best, scores = maxsim.rerank(query, tokens, offsets, np.arange(len(chosen)), k, num_threads=num_threads)
    return _hits(chosen.column("id").take(pa.array(best)), scores)


def _hits(ids: pa.ChunkedArray, scores: npt.NDArray[np.float32]) -> Hits:
    kind = np.int64 if pa.types.is_integer(ids.type) else object
    return Hits(np.array(ids.to_pylist(), dtype=kind), scores)


def _batches(documents: Any, ids: Any, offsets: Any, encoder: LemurEncoder) -> Iterator[DocumentBatch]:
    """Checked documents, each id once."""
    seen: set[Any] = set()
    for batch in iterate_documents(opened(documents), ids=ids, offsets=offsets, dim=encoder.token_dim):
        if batch.ids is None:
            raise ValueError("documents have no ids: pass ids=, or a column 'id' in Arrow data")
        for doc_id in batch.ids.to_pylist():
            if doc_id in seen:
                raise ValueError(f"id {doc_id!r} is repeated, expected each id once")
            seen.add(doc_id)
        yield batch


def _encoded(batches: Iterator[DocumentBatch], schema: pa.Schema, encoder: LemurEncoder) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for begin in range(0, len(batch), DOCUMENTS_PER_BATCH):
            yield _record_batch(batch, slice(begin, min(begin + DOCUMENTS_PER_BATCH, len(batch))), schema, encoder)


def _record_batch(batch: DocumentBatch, part: slice, schema: pa.Schema, encoder: LemurEncoder) -> pa.RecordBatch:
    """Some documents of a batch as rows of the table."""
    assert batch.ids is not None
    bounds = batch.offsets[part.start : part.stop + 1]
    tokens, bounds = batch.tokens[bounds[0] : bounds[-1]], bounds - bounds[0]
    kind = schema.field("tokens").type.value_type.value_type
    with np.errstate(over="ignore"):
        tokens = np.ascontiguousarray(tokens, kind.to_pandas_dtype())
    if validate.first_bad_row(tokens) is not None:
        raise ValueError(f"the table holds tokens of {kind}, and a value is beyond its range")
    flat = pa.FixedSizeListArray.from_arrays(pa.array(tokens.reshape(-1)), encoder.token_dim)
    given = {} if batch.metadata is None else {name: batch.metadata.column(name)[part] for name in batch.metadata.column_names}
    given |= {
        "id": batch.ids[part],
        "tokens": pa.LargeListArray.from_arrays(pa.array(bounds), flat),
        "vector": _vector_array(encoder.encode_documents(tokens, offsets=bounds)),
    }
    unknown = [name for name in given if name not in schema.names]
    if unknown:
        raise ValueError(f"documents have a column {unknown[0]!r}, the table has columns {schema.names}")
    columns = []
    for field in schema:
        column = given.get(field.name, pa.nulls(len(bounds) - 1, field.type))
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        try:
            columns.append(column if column.type == field.type else column.cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise TypeError(f"column {field.name!r} is {column.type}, the table has {field.type}: {error}") from error
    return pa.record_batch(columns, schema=schema)


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
    return pa.field("vector", pa.list_(pa.float32(), encoder.dim), metadata={MADE_BY: _digest(encoder)})


def _vector_array(vectors: npt.NDArray[np.float32]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


def _made_by(schema: pa.Schema) -> str | None:
    metadata = schema.field("vector").metadata if "vector" in schema.names else None
    digest = None if metadata is None else metadata.get(MADE_BY)
    return None if digest is None else digest.decode()


def _digest(encoder: LemurEncoder) -> str:
    """A name for the map: of all that it has learned."""
    state = hashlib.sha256()
    for name, array in sorted(encoder.arrays().items()):
        state.update(f"{name} {array.dtype} {array.shape}".encode())
        state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()[:16]


def _encoder_path(db: lancedb.DBConnection, name: str, digest: str) -> Path:
    """Beside the table, not in its folder, which LanceDB cleans up."""
    folder = str(getattr(db, "uri", ""))
    if "://" in folder or not folder:
        raise ValueError("the database is not in a local folder: pass encoder_path=, and the encoder when the table is opened")
    return Path(folder) / f"{name}.{digest}.safetensors"


def _save(encoder: LemurEncoder, db: lancedb.DBConnection, name: str, path: str | PathLike[str] | None) -> None:
    target = _encoder_path(db, name, _digest(encoder)) if path is None else Path(path)
    os.makedirs(target.parent, exist_ok=True)
    encoder.save(target)


def _literal(value: str | int) -> str:
    """As SQL writes it."""
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"
