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
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

try:
    from pymilvus import DataType
except ImportError as error:
    raise ImportError("lemur_ann.adapters.milvus needs pymilvus: pip install lemur_ann[milvus]") from error

from lemur_ann import Hits, LemurEncoder, maxsim
from lemur_ann import _validate as validate
from lemur_ann.documents.inputs import DocumentBatch, ids_of, is_single_query, iterate_documents, read_queries, to_offsets
from lemur_ann.documents.sources import opened

LARGEST_RESULT = 16_384  # Milvus returns no more rows
LONGEST_TEXT = 65_535  # bytes of a VARCHAR
PART = LONGEST_TEXT // 4 * 4  # of base64, which is in groups of four
MOST_PARTS = 1024  # of a document; a server refuses messages of 64 MB
BYTES_PER_REQUEST = 2**23
IDS_PER_REQUEST = 256
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


class LemurCollection:
    """A collection with the fields ``id``, ``vector`` and ``tokens``, and any others, searched by MaxSim.

    Args:
        client: a ``MilvusClient``; it stays the caller's, to be closed by the caller.
        name: of a collection that :meth:`create` or :meth:`fit` made. It is loaded where it is not.
        encoder: what its vectors were made with.

    Raises:
        ValueError: there is no such collection, its fields are others, or another encoder made its vectors.
        TypeError: encoder is not one.
    """

    def __init__(self, client: Any, name: str, encoder: LemurEncoder) -> None:
        if not isinstance(encoder, LemurEncoder):
            raise TypeError(f"encoder must be a LemurEncoder, got {type(encoder).__name__}")
        if not client.has_collection(name):
            raise ValueError(f"there is no collection {name!r}; LemurCollection.create makes one")
        self.client = client
        self.name = name
        self.encoder = encoder
        fields = {field["name"]: field for field in client.describe_collection(name)["fields"]}
        types = {key: field["type"] for key, field in fields.items()}
        if types.get("id") not in (DataType.INT64, DataType.VARCHAR) or types.get("tokens") != DataType.ARRAY:
            raise ValueError(f"collection {name!r} must have fields 'id' and 'tokens', see create; got {[*types]}")
        dim = fields["vector"]["params"].get("dim") if "vector" in fields else None
        if dim is None or int(dim) != encoder.dim:
            raise ValueError(f"collection {name!r} has a field 'vector' of dim {dim}, the encoder's have dim {encoder.dim}")
        self._integer_ids = types["id"] == DataType.INT64
        self._columns = {key: ARROW_TYPES.get(kind) for key, kind in types.items() if key not in ("vector", "tokens")}
        client.load_collection(name)
        some = np.array([row["vector"] for row in client.query(name, filter="", limit=10, output_fields=["vector"])])
        # all that an encoder encodes has the same norm, which is another for others
        if len(some) and not np.isclose(np.linalg.norm(some, axis=1), encoder.radius, rtol=3e-4).any():
            raise ValueError(f"the vectors of collection {name!r} were made by another encoder")

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
        if not ids:
            raise ValueError(f"collection {self.name!r} has no documents to learn from")
        count = min(len(ids), validate.positive_int(num_documents, "num_documents"))
        chosen = np.sort(np.random.default_rng(seed).choice(len(ids), count, replace=False))
        sample = self._unpacked([row for part in self._rows([ids[i] for i in chosen], ["tokens"]) for row in part])
        encoder = LemurEncoder.fit(sample[0], queries, offsets=sample[1], **how)
        other = type(self).create(self.client, name, encoder, pa.schema(list(self._columns.items())))
        for rows in self._rows(ids, [*self._columns, "tokens"]):
            tokens, offsets = self._unpacked(rows)
            vectors = encoder.encode_documents(tokens, offsets=offsets)
            other._write([{**row, "vector": vector} for row, vector in zip(rows, vectors, strict=True)], offsets)
        return other

    def add(self, documents: Any, *, ids: Any = None, offsets: Any = None) -> None:
        """Add documents that are not there yet; all are checked before any is written.

        Args:
            documents: in any form that :meth:`lemur_ann.LemurIndex.fit` takes, with ids. Columns are the collection's fields;
                those left out become null. Tokens are stored as float16.
            ids, offsets: for documents that are not Arrow.

        Raises:
            ValueError, TypeError: bad documents, none of which was written; an id that is there already, or twice.
        """
        self._put(documents, ids, offsets, new=True)

    def upsert(self, documents: Any, *, ids: Any = None, offsets: Any = None) -> None:
        """Add documents, in the place of those that have their ids; arguments and errors as for :meth:`add`."""
        self._put(documents, ids, offsets, new=False)

    def delete(self, ids: Any = None, *, filter: str | None = None) -> None:
        """Delete documents by ids, of which unknown ones count for nothing, or by a filter of Milvus's own.

        Raises:
            TypeError: neither or both of them, or ids of another kind than the collection's.
            ValueError: an empty filter.
        """
        if (ids is None) == (filter is None):
            raise TypeError("pass ids or filter=, one of them")
        if filter is not None and not filter.strip():
            raise ValueError("filter must not be empty")
        for chosen in _among(self._checked_ids(ids_of(ids))) if filter is None else [filter]:
            self.client.delete(self.name, filter=chosen)

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
        k = validate.positive_int(k, "k")
        count = max(k, validate.positive_int(num_candidates, "num_candidates"))
        if count > LARGEST_RESULT:
            raise ValueError(f"k and num_candidates must be at most {LARGEST_RESULT}, got {count}")
        threads = validate.num_threads(num_threads)
        single = offsets is None and is_single_query(queries)
        batch = read_queries([queries] if single else opened(queries), offsets=offsets, dim=self.encoder.token_dim)
        vectors = self.encoder.encode_batch(batch.tokens, batch.offsets, num_threads=threads)
        params = {"ef": min(2 * count, 2 * LARGEST_RESULT)} if params is None else params
        hits = []
        for vector, (begin, end) in zip(vectors, pairwise(batch.offsets), strict=True):
            rows = self._candidates(vector, count, filter or "", params)
            best, scores = np.empty(0, np.int64), np.empty(0, np.float32)
            if rows:
                query = batch.tokens[begin:end]
                best, scores = maxsim.rerank(query, *self._unpacked(rows), np.arange(len(rows)), k, num_threads=threads)
            ids = [rows[i]["id"] for i in best]
            hits.append(Hits(np.array(ids, np.int64 if self._integer_ids else object), scores))
        return hits[0] if single else hits

    def _candidates(
        self, vector: npt.NDArray[np.float32], count: int, filter: str, params: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Rows with id and tokens."""
        how: dict[str, Any] = {"anns_field": "vector", "limit": count, "filter": filter, "search_params": {"params": params}}
        found = self.client.search(self.name, [vector], output_fields=["tokens"], **how)[0]
        if len(found) == count:
            return [{"id": hit["id"], "tokens": hit["entity"]["tokens"]} for hit in found]
        # few match, of which a graph may have missed some: their vectors are compared here
        rows = self.client.query(self.name, filter=filter, limit=LARGEST_RESULT, output_fields=["id", "vector"])
        if not rows:
            return []
        products = np.array([row["vector"] for row in rows], np.float32) @ vector
        best = np.argsort(-products, kind="stable")[:count]
        return [row for part in self._rows([rows[i]["id"] for i in best], ["tokens"]) for row in part]

    def _put(self, documents: Any, ids: Any, offsets: Any, *, new: bool) -> None:
        stream = iterate_documents(opened(documents), ids=ids, offsets=offsets, dim=self.encoder.token_dim)
        batches = [(self._checked(batch), batch.tokens, batch.offsets) for batch in stream]
        every = [doc_id for columns, _, _ in batches for doc_id in columns["id"].to_pylist()]
        seen = set()
        for doc_id in every:
            if doc_id in seen:
                raise ValueError(f"id {doc_id!r} is repeated, expected each id once")
            seen.add(doc_id)
        for chosen in _among(every) if new else ():
            there = self.client.query(self.name, filter=chosen, limit=1, output_fields=["id"])
            if there:
                raise ValueError(f"id {there[0]['id']!r} is there already; upsert replaces")
        for columns, tokens, bounds in batches:
            vectors = self.encoder.encode_documents(tokens, offsets=bounds)
            matrices = [tokens[begin:end] for begin, end in pairwise(bounds)]
            rows = [
                {**row, "vector": vector, "tokens": _packed(matrix)}
                for row, vector, matrix in zip(columns.to_pylist(), vectors, matrices, strict=True)
            ]
            self._write(rows, bounds)

    def _write(self, rows: list[dict[str, Any]], offsets: npt.NDArray[np.int64]) -> None:
        """In requests of some megabytes of tokens each."""
        sizes = np.cumsum(np.diff(offsets) * self.encoder.token_dim * 3 + self.encoder.dim * 4)
        bounds = [0, *(np.flatnonzero(np.diff(sizes // BYTES_PER_REQUEST)) + 1).tolist(), len(rows)]
        for begin, end in pairwise(bounds):
            self.client.upsert(self.name, rows[begin:end])

    def _checked(self, batch: DocumentBatch) -> pa.Table:
        """Ids and the other fields but vector and tokens, of their types."""
        if batch.ids is None:
            raise ValueError("documents have no ids: pass ids=, or a column 'id' in Arrow data")
        self._checked_ids(batch.ids)
        with np.errstate(over="ignore"):
            if np.isinf(batch.tokens.astype(np.float16)).any():
                raise ValueError("tokens are stored as float16, and a value is beyond its range, 65504")
        longest, most = np.diff(batch.offsets).max(), PART // 4 * 3 * MOST_PARTS // (2 * self.encoder.token_dim)
        if longest > most:
            raise ValueError(f"a document has {longest} tokens, at most {most} fit")
        given = {"id": batch.ids}
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
        for chosen in _among(ids):
            rows = self.client.query(self.name, filter=chosen, output_fields=["id", *fields])
            yield [{name: row.get(name) for name in ("id", *fields)} for row in rows]

    def _ids(self) -> list[Any]:
        iterator = self.client.query_iterator(self.name, batch_size=IDS_PER_REQUEST, output_fields=["id"])
        ids: list[Any] = []
        try:
            while rows := iterator.next():
                ids += [row["id"] for row in rows]
        finally:
            iterator.close()
        return ids

    def _unpacked(self, rows: list[dict[str, Any]]) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.int64]]:
        """The tokens of documents, laid end to end, and their offsets."""
        packed = [b64decode("".join(row["tokens"])) for row in rows]
        tokens = np.frombuffer(b"".join(packed), np.float16).reshape(-1, self.encoder.token_dim)
        return tokens, to_offsets([len(one) // (2 * self.encoder.token_dim) for one in packed])

    def _checked_ids(self, ids: pa.Array) -> list[Any]:
        """Of the kind that the collection has."""
        if len(ids) and pa.types.is_integer(ids.type) != self._integer_ids:
            expected = "integers" if self._integer_ids else "strings"
            raise TypeError(f"the ids of collection {self.name!r} are {expected}, got {ids.type}")
        return ids.to_pylist()  # type: ignore[no-any-return,unused-ignore]


def _packed(tokens: npt.NDArray[Any]) -> list[str]:
    text = b64encode(tokens.astype(np.float16).tobytes()).decode()
    return [text[begin : begin + PART] for begin in range(0, len(text), PART)]


def _among(ids: list[Any]) -> Iterator[str]:
    """Filters for these ids, some at a time. (The client's own ``ids=`` does not escape quotes.)"""
    for begin in range(0, len(ids), IDS_PER_REQUEST):
        yield f"id in [{', '.join(map(_literal, ids[begin : begin + IDS_PER_REQUEST]))}]"


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
