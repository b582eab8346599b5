"""LEMUR inside Milvus: ``pip install lemur_ann[milvus]``. A server, or Milvus Lite, which is a file and this process.

::

    from lemur_ann import LemurEncoder
    from lemur_ann.adapters.milvus import LemurCollection
    from pymilvus import MilvusClient

    encoder = LemurEncoder.fit(documents, training_queries)
    encoder.save("map.safetensors")  # Milvus keeps the documents; the map is a file of yours

    client = MilvusClient("documents.db")  # or a server's address
    collection = LemurCollection.create(client, "articles", encoder, documents.schema)
    collection.add(documents)  # a table with columns id, tokens and more, which become fields
    hits = collection.search(query, k=10, filter="year > 2020")

Milvus's index finds candidates by the field ``vector``, and our kernel ranks them by the exact MaxSim of their tokens, which
come with them. Tokens are float16, as base64 text in an array of VARCHAR: the one kind of field that a server and Lite both
have and that is large enough.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

try:
    from pymilvus import DataType
except ImportError as error:
    raise ImportError("lemur_ann.adapters.milvus needs pymilvus: pip install lemur_ann[milvus]") from error

from lemur_ann import LemurEncoder
from lemur_ann.documents import DocumentBatch, to_offsets

from ._two_stages import (
    Found,
    Offsets,
    Part,
    Tokens,
    TwoStages,
    Wanted,
    check_encoder,
    check_maker,
    ids_in,
    largest_products,
    undone,
)

LARGEST_RESULT = 16_384  # Milvus returns no more rows
LONGEST_TEXT = 65_535  # bytes of a VARCHAR
PART = LONGEST_TEXT // 4 * 4  # of base64, which is in groups of four
MOST_PARTS = 1024  # of a document; a server refuses messages of 64 MB
# Milvus's types, and those that Arrow data is cast to for them
ARROW_TYPES = {
    DataType.BOOL: pa.bool_(),
    DataType.INT8: pa.int8(),
    DataType.INT16: pa.int16(),
    DataType.INT32: pa.int32(),
    DataType.INT64: pa.int64(),
    DataType.FLOAT: pa.float32(),
    DataType.DOUBLE: pa.float64(),
    DataType.VARCHAR: pa.large_string(),
}
MILVUS_TYPES = {str(arrow): milvus for milvus, arrow in ARROW_TYPES.items()} | {
    "uint8": DataType.INT16,
    "uint16": DataType.INT32,
    "uint32": DataType.INT64,
    "halffloat": DataType.FLOAT,
    "string": DataType.VARCHAR,
    "string_view": DataType.VARCHAR,
}


class LemurCollection(TwoStages):
    """A collection with the fields ``id``, ``vector`` and ``tokens``, and any others, searched by MaxSim.

    Other columns of documents are the collection's fields; those left out become null, with ``upsert`` too. Tokens are kept as
    float16.

    Args:
        client: a ``MilvusClient``; it stays the caller's, to be closed by the caller.
        name: of a collection that :meth:`create` or :meth:`fit` made. It is loaded where it is not.
        encoder: what its vectors were made with.

    Raises:
        ValueError: there is no such collection, its fields are others, or another encoder made its vectors.
        TypeError: encoder is not one.
    """

    ids_per_request = 256
    wants_all = True
    most_candidates = LARGEST_RESULT

    def __init__(self, client: Any, name: str, encoder: LemurEncoder) -> None:
        check_encoder(encoder)
        if not client.has_collection(name):
            raise ValueError(f"there is no collection {name!r}; LemurCollection.create makes one")
        self.client = client
        self.name = name
        fields = {field["name"]: field for field in client.describe_collection(name)["fields"]}
        types = {key: field["type"] for key, field in fields.items()}
        if types.get("id") not in (DataType.INT64, DataType.VARCHAR) or types.get("tokens") != DataType.ARRAY:
            raise ValueError(f"collection {name!r} must have fields 'id' and 'tokens', see create; got {[*types]}")
        dim = fields["vector"]["params"].get("dim") if "vector" in fields else None
        if dim is None or int(dim) != encoder.dim:
            raise ValueError(f"collection {name!r} has a field 'vector' of dim {dim}, the encoder's have dim {encoder.dim}")
        super().__init__(encoder, integer_ids=types["id"] == DataType.INT64)
        self._columns = {key: ARROW_TYPES.get(kind) for key, kind in types.items() if key not in ("vector", "tokens")}
        client.load_collection(name)
        some = client.query(name, filter="", limit=10, output_fields=["vector"])
        check_maker(encoder, [row["vector"] for row in some], f"collection {name!r}")

    def __repr__(self) -> str:
        return f"<LemurCollection {self.name!r} of {len(self)} documents>"

    def __len__(self) -> int:
        return int(self.client.query(self.name, filter="", output_fields=["count(*)"])[0]["count(*)"])

    @classmethod
    def create(cls, client: Any, name: str, encoder: LemurEncoder, schema: pa.Schema, **options: Any) -> LemurCollection:
        """Make an empty collection, with an index HNSW over ``vector`` by inner product, and load it.

        Args:
            client, name, encoder: as for the class.
            schema: of the documents to come: ``id``, strings or integers, and other columns, which become nullable fields of
                Milvus's types. ``tokens`` may be there or not.
            **options: more for ``MilvusClient.create_collection``; the consistency level is "Strong" unless given: what was
                written is found at once.

        Raises:
            ValueError, TypeError: a collection of this name is there, or a column's type has no counterpart.
        """
        if "id" not in schema.names or "vector" in schema.names:
            raise ValueError(f"the schema must have a column 'id' and no column 'vector', got {schema.names}")
        if client.has_collection(name):
            raise ValueError(f"there is a collection {name!r} already")
        fields = client.create_schema(auto_id=False, enable_dynamic_field=False)
        for field in schema:
            if field.name != "tokens":
                kind = _milvus_type(field)
                more: dict[str, Any] = {"is_primary": True} if field.name == "id" else {"nullable": True}
                more |= {"max_length": LONGEST_TEXT} if kind == DataType.VARCHAR else {}
                fields.add_field(field.name, kind, **more)
        fields.add_field("vector", DataType.FLOAT_VECTOR, dim=encoder.dim)
        text = {"element_type": DataType.VARCHAR, "max_length": LONGEST_TEXT}
        fields.add_field("tokens", DataType.ARRAY, max_capacity=MOST_PARTS, **text)
        options = {"consistency_level": "Strong", **options}
        client.create_collection(name, schema=fields, index_params=_index(client, "HNSW", "IP", None), **options)
        with undone(lambda: client.drop_collection(name)):
            return cls(client, name, encoder)

    def fit(self, name: str, queries: Any = None, *, num_documents: int = 10_000, seed: int = 0, **how: Any) -> LemurCollection:
        """Learn anew from this collection's tokens, and make another collection of the same documents.

        A Milvus collection takes no new vector field. Search this one meanwhile; when it is done, have an alias point to the
        other, or drop this one and rename. Save the new encoder: ``other.encoder.save(path)``.

        Args:
            name: of the collection to make.
            queries: training queries, as for :meth:`lemur_ann.LemurIndex.fit`.
            num_documents: size of the random sample that it learns from.
            seed: of the sample.
            **how: options of :meth:`lemur_ann.LemurEncoder.fit`.

        Raises:
            ValueError: a collection ``name`` is there, this one is empty, or a field is of a type that is not copied.
        """
        if self.client.has_collection(name):
            raise ValueError(f"there is a collection {name!r} already")
        for column, kind in self._columns.items():
            if kind is None:
                raise ValueError(f"field {column!r} is of a type that is not copied, expected one of {[*MILVUS_TYPES]}")
        ids = self._ids()
        encoder = self._learned(ids, queries, num_documents, seed, how)
        schema = pa.schema(list(self._columns.items()))
        other = type(self).create(self.client, name, encoder, schema)
        with undone(lambda: self.client.drop_collection(name)):
            for rows in self._rows(ids, [*self._columns, "tokens"]):
                tokens, offsets = self._unpacked(rows)
                fields = pa.Table.from_pylist([{column: row[column] for column in self._columns} for row in rows], schema)
                batch = DocumentBatch(fields.column("id"), tokens, offsets)
                other._written(other._parts([(batch, fields)]), new=False)
        return other

    def create_index(self, index_type: str = "HNSW", metric_type: str = "IP", params: dict[str, Any] | None = None) -> None:
        """Index the vectors anew; a collection has an index from the first.

        Args:
            index_type: Milvus's, such as HNSW, IVF_FLAT, FLAT.
            metric_type: IP, L2 and COSINE give the same order.
            params: of the index. None is M=16, efConstruction=200 for HNSW, and Milvus's own for others. Where Milvus refuses
                them, the collection has no index until the next call. Lite 3.2.2 ignores them, and takes its own.
        """
        index = _index(self.client, index_type, metric_type, params)
        self.client.flush(self.name)
        self.client.release_collection(self.name)
        for there in self.client.list_indexes(self.name, field_name="vector"):
            self.client.drop_index(self.name, there)
        self.client.create_index(self.name, index)
        self.client.load_collection(self.name)

    def optimize(self) -> None:
        """Milvus's flush and compact: what was added since comes into the index. It does so by itself too, when it sees fit."""
        self.client.flush(self.name)
        self.client.compact(self.name)

    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        num_candidates: int = 200,
        filter: str | None = None,
        offsets: Any = None,
        params: dict[str, Any] | None = None,
        num_threads: int | None = None,
    ) -> Any:
        """The k documents of highest MaxSim among the candidates that Milvus finds by ``vector``.

        Args:
            queries: one matrix (num_tokens, token_dim), or a batch, as for :meth:`lemur_ann.LemurIndex.search`.
            k: at least 1.
            num_candidates: documents reranked by exact MaxSim, at most 16,384; never fewer than k.
            filter: an expression of Milvus's; what it lets through is searched.
            offsets: int (num_queries + 1,), with a flat matrix only.
            params: of the index's search, such as ``{"ef": 800}`` or ``{"nprobe": 32}``. None is an ``ef`` of twice
                num_candidates.
            num_threads: of encoding and the kernel; None means all cores.

        Returns:
            Hits, or a list of them for a batch. Scores are exact MaxSim of the stored tokens. There are fewer than k only
            where fewer documents match.

        Raises:
            ValueError, TypeError: bad queries or arguments.
        """
        how = {"filter": self._filter(filter) or "", "params": params}
        return self._search(queries, k, num_candidates, offsets=offsets, num_threads=num_threads, **how)

    def _candidates(self, wanted: Wanted, *, filter: str, params: dict[str, Any] | None) -> Found:
        if wanted.too_few is not None:  # the vectors of what matches are compared here
            every = self.client.query(self.name, filter=filter, limit=LARGEST_RESULT, output_fields=["id", "vector"])
            if len(every) <= wanted.too_few.num:
                return wanted.too_few
            best = [every[i]["id"] for i in largest_products([row["vector"] for row in every], wanted)]
            rows = [row for part in self._rows(best, ["tokens"]) for row in part]
        else:
            params = {"ef": min(2 * wanted.count, 2 * LARGEST_RESULT)} if params is None else params
            how: dict[str, Any] = {"anns_field": "vector", "limit": wanted.count, "search_params": {"params": params}}
            found = self.client.search(self.name, [wanted.vector], filter=filter, output_fields=["tokens"], **how)[0]
            rows = [{"id": hit["id"], "tokens": hit["entity"]["tokens"]} for hit in found]
        return Found([row["id"] for row in rows], *self._unpacked(rows))

    def _there(self, ids: list[Any]) -> list[Any]:
        return [row["id"] for row in self.client.query(self.name, filter=_among(ids), output_fields=["id"])]

    def _remove(self, ids: list[Any] | None, filter: Any) -> int:
        chosen = filter if ids is None else _among(ids)
        count = int(self.client.query(self.name, filter=chosen, output_fields=["count(*)"])[0]["count(*)"])
        self.client.delete(self.name, filter=chosen)
        return count

    def _stored(self, ids: list[Any]) -> tuple[Tokens, Offsets]:
        return self._unpacked([row for part in self._rows(ids, ["tokens"]) for row in part])

    def _write(self, part: Part, *, new: bool) -> None:
        named = zip(part.fields.to_pylist(), part.vectors, part.matrices, strict=True)
        rows = [{**row, "vector": vector, "tokens": _packed(matrix)} for row, vector, matrix in named]
        self.client.upsert(self.name, rows)

    def _fields(self, batch: DocumentBatch, *, new: bool) -> pa.Table:
        """Ids and the other fields but vector and tokens, of their types."""
        longest, most = np.diff(batch.offsets).max(), PART // 4 * 3 * MOST_PARTS // (2 * self.encoder.token_dim)
        if longest > most:
            raise ValueError(f"a document has {longest} tokens, at most {most} fit")
        given = {"id": ids_in(batch)}
        given |= {} if batch.metadata is None else dict(zip(batch.metadata.column_names, batch.metadata.columns, strict=True))
        unknown = [name for name in given if name not in self._columns]
        if unknown:
            raise ValueError(f"documents have a column {unknown[0]!r}, the collection has fields {[*self._columns]}")
        columns = {}
        for name, kind in self._columns.items():
            column = given.get(name, pa.nulls(len(batch)))
            try:
                columns[name] = column if kind is None else column.cast(kind)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise TypeError(f"column {name!r} is {column.type}, the field takes {kind}: {error}") from error
            longest = pc.max(pc.binary_length(columns[name])).as_py() if kind == pa.large_string() else None
            if longest is not None and longest > LONGEST_TEXT:
                raise ValueError(f"column {name!r} has a text of {longest} bytes, a VARCHAR holds {LONGEST_TEXT}")
        return pa.table(columns)

    def _rows(self, ids: list[Any], fields: list[str]) -> Iterator[list[dict[str, Any]]]:
        """Of these ids, some at a time; a document's tokens may be megabytes."""
        for some in self._by_request(ids):
            rows = self.client.query(self.name, filter=_among(some), output_fields=["id", *fields])
            yield [{name: row.get(name) for name in ("id", *fields)} for row in rows]

    def _ids(self) -> list[Any]:
        iterator = self.client.query_iterator(self.name, batch_size=self.ids_per_request, output_fields=["id"])
        ids: list[Any] = []
        try:
            while rows := iterator.next():
                ids += [row["id"] for row in rows]
        finally:
            iterator.close()
        return ids

    def _unpacked(self, rows: list[dict[str, Any]]) -> tuple[Tokens, Offsets]:
        """The tokens of documents, laid end to end, and their offsets."""
        packed = [b64decode("".join(row["tokens"])) for row in rows]
        tokens = np.frombuffer(b"".join(packed), np.float16).reshape(-1, self.encoder.token_dim)
        return tokens, to_offsets([len(one) // (2 * self.encoder.token_dim) for one in packed])


def _packed(tokens: npt.NDArray[Any]) -> list[str]:
    text = b64encode(tokens.astype(np.float16).tobytes()).decode()
    return [text[begin : begin + PART] for begin in range(0, len(text), PART)]


def _among(ids: list[Any]) -> str:
    """The filter for these ids. (The client's own ``ids=`` does not escape quotes.)"""
    return f"id in [{', '.join(map(_literal, ids))}]"


def _literal(value: Any) -> str:
    if isinstance(value, int):
        return str(value)
    for character, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        value = value.replace(character, escaped)
    return f'"{value}"'


def _index(client: Any, index_type: str, metric_type: str, params: dict[str, Any] | None) -> Any:
    default = {"M": 16, "efConstruction": 200} if index_type == "HNSW" else {}
    index = client.prepare_index_params()
    index.add_index("vector", index_type=index_type, metric_type=metric_type, params=default if params is None else params)
    return index


def _milvus_type(field: pa.Field) -> Any:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    found = MILVUS_TYPES.get(str(kind))
    if field.name == "id":
        found = DataType.INT64 if pa.types.is_integer(kind) else found
        if found not in (DataType.INT64, DataType.VARCHAR):
            raise TypeError(f"column 'id' must be of strings or integers, got {kind}")
    if found is None:
        raise TypeError(f"column {field.name!r} of type {kind} has no counterpart in Milvus; cast it, or leave it out")
    return found
