"""LEMUR inside Qdrant: candidates by a learned vector, exact MaxSim over their tokens, both in the engine and in one request.

``pip install lemur_ann[qdrant]``::

    from lemur_ann import LemurEncoder
    from lemur_ann.adapters.qdrant import LemurCollection
    from qdrant_client import QdrantClient, models

    encoder = LemurEncoder.fit(sample, training_queries)
    encoder.save("map.safetensors")  # Qdrant keeps the points; the map is a file of yours

    collection = LemurCollection.create(QdrantClient("localhost"), "articles", encoder)
    collection.add(documents)  # a table with columns id, tokens and more, which become the payload
    recent = models.Filter(must=[models.FieldCondition(key="year", range=models.Range(gt=2020))])
    hits = collection.search(query, k=10, filter=recent)

A point has two named vectors: ``lemur``, with an HNSW graph, and the multi-vector ``tokens``, without. :class:`LemurShard` is
the same for a shard of Qdrant Edge, the engine within a process. A collection that has tokens already learns with ``fit``.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid5

import numpy as np
import numpy.typing as npt

from lemur_ann import Hits, LemurEncoder, maxsim
from lemur_ann import _validate as validate
from lemur_ann.documents.inputs import DocumentBatch, ids_of, is_single_query, iterate_documents, read_queries, to_offsets
from lemur_ann.documents.sources import opened

try:
    from qdrant_client import models
except ImportError:
    models = None  # type: ignore[assignment,unused-ignore]
try:
    import qdrant_edge as edge
except ImportError:
    edge = None  # type: ignore[assignment,unused-ignore]
if models is None and edge is None:
    raise ImportError(
        "lemur_ann.adapters.qdrant needs qdrant-client 1.18 or later, or qdrant-edge-py: pip install lemur_ann[qdrant]"
    )

PointId = int | str
Point = tuple[PointId, dict[str, Any], dict[str, Any]]  # id, vectors by name, payload
Names = tuple[str, str]  # of the vector and of the tokens

NAMESPACE = UUID("6c656d75-725f-5f61-8e6e-000000000001")  # of ids that are neither unsigned integers nor UUIDs
FLOATS_PER_REQUEST = 1_000_000  # some 20 MB as JSON; a server refuses more than 32
POINTS_PER_READ = 256
QUERIES_PER_REQUEST = 64
RERANKS = ("engine", "kernel")


def point_id(doc_id: Any) -> PointId:
    """The id of a document's point, for filters and for the engine's own calls.

    Args:
        doc_id: an unsigned integer or a UUID in its usual form, which stay as they are, or another string, whose point has
            the UUID made of it, and the string in the payload, as ``id``.

    Raises:
        ValueError, TypeError: a negative integer, or neither an integer nor a string.
    """
    if isinstance(doc_id, str):
        return doc_id if _is_uuid(doc_id) else str(uuid5(NAMESPACE, doc_id))
    return validate.integer(doc_id, "an id", least=0)


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def _document_id(point: Any) -> PointId:
    """The caller's id; a payload's ``id`` that has nothing to do with the point's is somebody else's."""
    own = point.id if isinstance(point.id, int) else str(point.id)
    given = (point.payload or {}).get("id")
    return given if isinstance(given, str) and point_id(given) == own else own


class _Points:
    """What a collection and a shard have in common: all but the engine's own calls."""

    def __init__(self, engine: _Client | _Shard, encoder: LemurEncoder, vector_name: str, tokens_name: str) -> None:
        if not isinstance(encoder, LemurEncoder):
            raise TypeError(f"encoder must be a LemurEncoder, got {type(encoder).__name__}")
        self.encoder = encoder
        self.vector_name = vector_name
        self.tokens_name = tokens_name
        self._engine = engine
        self._unit = engine.check({vector_name: encoder.dim, tokens_name: encoder.token_dim}, tokens_name)
        self._check_encoder()

    def __len__(self) -> int:
        """The number of points."""
        return self._engine.count()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} points>"

    def _check_encoder(self) -> None:
        """Whether the points were written with this encoder: all it encodes has the same norm, which is another for others."""
        points, _ = self._engine.scroll(None, 10, self.vector_name)
        norms = [float(np.linalg.norm(point.vector[self.vector_name])) for point in points]
        if norms and not np.any(np.isclose(norms, self.encoder.radius, rtol=3e-4)):
            raise ValueError(
                f"the vectors {self.vector_name!r} were written with another encoder: their norm is {norms[0]:.6g}, "
                f"and that of this encoder's is {self.encoder.radius:.6g}"
            )

    def add(self, documents: Any) -> None:
        """Add documents that are not there yet; all are checked before any is written.

        Args:
            documents: Arrow data, or anything with columns that :meth:`lemur_ann.LemurIndex.add` takes: ``id``, ``tokens``, and
                others, which become the payload. Times and dates are written as Qdrant reads them, in ISO 8601.

        Raises:
            ValueError, TypeError: bad documents, none of which was written; an id that is there already, or twice; a column of
                a type that a payload cannot hold.
        """
        self._put(documents, new=True)

    def upsert(self, documents: Any) -> None:
        """Add documents in the place of those with the same ids, as :meth:`add` takes them; their payload is replaced too."""
        self._put(documents, new=False)

    def delete(self, ids: Any = None, *, filter: Any = None) -> None:
        """Delete documents by their ids, of which unknown ones count for nothing, or by a filter of the engine's own.

        Raises:
            TypeError: neither or both of them.
            ValueError: ids that cannot be Qdrant's.
        """
        if (ids is None) == (filter is None):
            raise TypeError("delete takes either ids or filter=")
        self._engine.delete(None if ids is None else [point_id(i) for i in ids_of(ids).to_pylist()], filter)

    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        num_candidates: int = 200,
        filter: Any = None,
        rerank: str = "engine",
        params: Any = None,
    ) -> Any:
        """The k documents of highest MaxSim among the candidates that the engine finds by ``lemur``.

        Args:
            queries: one query, a matrix (num_tokens, token_dim); or a batch, as :meth:`lemur_ann.LemurIndex.search` takes it.
            k: how many to return, at least 1.
            num_candidates: documents to rerank; never fewer than k.
            filter: the engine's own; the candidates are searched for among the points that match.
            rerank: "engine" has Qdrant compare the tokens, in the same request; "kernel" fetches the candidates' tokens and
                compares them here, which costs their transfer.
            params: the engine's SearchParams for the candidates, with hnsw_ef, exact and quantization; None means a beam
                ``hnsw_ef`` of twice num_candidates.

        Returns:
            :class:`~lemur_ann.Hits` for one query, a list of them for a batch. Scores are exact MaxSim of the stored tokens.
            Fewer than k only where fewer documents match.

        Raises:
            ValueError, TypeError: bad queries, k, num_candidates or rerank.
        """
        k = validate.positive_int(k, "k")
        count = max(k, validate.positive_int(num_candidates, "num_candidates"))
        if rerank not in RERANKS:
            raise ValueError(f"rerank must be one of {RERANKS}, got {rerank!r}")
        single = is_single_query(queries)
        batch = read_queries([queries] if single else opened(queries), dim=self.encoder.token_dim)
        tokens = self._as_compared(np.asarray(batch.tokens, np.float32))
        vectors = self.encoder.encode_queries(tokens, offsets=batch.offsets)
        matrices = np.split(tokens, batch.offsets[1:-1])[: len(vectors)]
        in_engine = rerank == "engine"
        params = self._engine.params(count) if params is None else params
        hits: list[Hits] = []
        for begin in range(0, len(vectors), QUERIES_PER_REQUEST):
            part = slice(begin, begin + QUERIES_PER_REQUEST)
            requests = [
                self._engine.two_stages(
                    (self.vector_name, self.tokens_name), vector.tolist(), matrix.tolist(), k, count, filter, params
                )
                if in_engine
                else self._engine.candidates((self.vector_name, self.tokens_name), vector.tolist(), count, filter, params)
                for vector, matrix in zip(vectors[part], matrices[part], strict=True)
            ]
            found = self._engine.query(requests)
            if in_engine:
                hits += [_hits([_document_id(p) for p in points], [p.score for p in points]) for points in found]
            else:
                hits += [self._reranked(matrix, points, k) for matrix, points in zip(matrices[part], found, strict=True)]
        return hits[0] if single else hits

    def _reranked(self, query: npt.NDArray[np.float32], points: list[Any], k: int) -> Hits:
        if not points:
            return _hits([], [])
        matrices = _matrices(points, self.tokens_name)
        order, scores = maxsim.rerank(
            query, np.concatenate(matrices), to_offsets([len(m) for m in matrices]), np.arange(len(points)), k
        )
        return _hits([_document_id(points[i]) for i in order], scores)

    def _as_compared(self, tokens: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Tokens as the engine compares them: of unit length where their distance is Cosine."""
        return _unit_length(tokens) if self._unit else tokens

    def _put(self, documents: Any, *, new: bool) -> None:
        batches = list(iterate_documents(opened(documents), dim=self.encoder.token_dim))
        names = [_ids(batch) for batch in batches]
        points = [[point_id(name) for name in part] for part in names]
        payloads = [_payloads(batch, part) for batch, part in zip(batches, names, strict=True)]
        every = [p for part in points for p in part]
        seen: set[PointId] = set()
        for name, point in zip([name for part in names for name in part], every, strict=True):
            if point in seen:
                raise ValueError(f"id {name!r} is there more than once")
            seen.add(point)
        if new:
            for begin in range(0, len(every), POINTS_PER_READ):
                there = self._engine.retrieve(every[begin : begin + POINTS_PER_READ])
                if there:
                    raise ValueError(f"id {_document_id(there[0])!r} is there already; upsert replaces")
        for batch, ids, payload in zip(batches, points, payloads, strict=True):
            for part in self._parts(batch.offsets):
                first, last = batch.offsets[part.start], batch.offsets[part.stop]
                offsets = batch.offsets[part.start : part.stop + 1] - first
                tokens = batch.tokens[first:last]
                vectors = self.encoder.encode_documents(self._as_compared(tokens), offsets=offsets)
                matrices = np.split(tokens, offsets[1:-1])
                named = [
                    {self.vector_name: vector, self.tokens_name: matrix.tolist()}
                    for vector, matrix in zip(vectors.tolist(), matrices, strict=True)
                ]
                self._engine.write(list(zip(ids[part], named, payload[part], strict=True)))

    def _parts(self, offsets: npt.NDArray[np.int64]) -> Iterator[slice]:
        """Documents of one request each: as many as it may hold, at least one."""
        floats = np.cumsum(np.diff(offsets) * self.encoder.token_dim + self.encoder.dim)
        bounds = [0, *(np.flatnonzero(np.diff(floats // FLOATS_PER_REQUEST)) + 1).tolist(), len(floats)]
        yield from (slice(begin, end) for begin, end in pairwise(bounds))


def _hits(ids: list[PointId], scores: Any) -> Hits:
    integers = all(isinstance(i, int) for i in ids)
    return Hits(np.array(ids, np.int64 if integers else object), np.asarray(scores, np.float32))


def _unit_length(tokens: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    tokens = np.asarray(tokens, np.float32)
    unit: npt.NDArray[np.float32] = tokens / np.maximum(np.linalg.norm(tokens, axis=1, keepdims=True), np.float32(1e-12))
    return unit


def _matrices(points: list[Any], name: str) -> list[npt.NDArray[np.float32]]:
    return [np.asarray(point.vector[name], np.float32) for point in points]


def _ids(batch: DocumentBatch) -> list[Any]:
    if batch.ids is None:
        raise ValueError("documents must have ids, in a column 'id'")
    ids: list[Any] = batch.ids.to_pylist()
    return ids


def _payloads(batch: DocumentBatch, ids: list[Any]) -> list[dict[str, Any]]:
    rows = [{}] * len(ids) if batch.metadata is None else batch.metadata.to_pylist()
    named = [{"id": i} if isinstance(i, str) and not _is_uuid(i) else {} for i in ids]
    return [{**own, **json.loads(json.dumps(row, default=_iso))} for own, row in zip(named, rows, strict=True)]


def _iso(value: Any) -> str:
    if isinstance(value, (datetime.date, datetime.datetime)):
        return value.isoformat()
    raise TypeError(f"a payload cannot hold {type(value).__name__}")


class _Client:
    """A collection by qdrant-client: of a server, or of its local mode."""

    def __init__(self, client: Any, name: str) -> None:
        if models is None:
            raise ImportError("this needs qdrant-client: pip install lemur_ann[qdrant]")
        self.client = client
        self.name = name
        # of the tokens themselves, should they be quantised too; the local mode, which has no such thing, would warn
        local = client.init_options.get("location") == ":memory:" or client.init_options.get("path") is not None
        unquantized = models.QuantizationSearchParams(ignore=True)
        self.rerank_params = None if local else models.SearchParams(quantization=unquantized)
        self.local = local

    def vectors(self) -> dict[str, Any]:
        if not self.client.collection_exists(self.name):
            raise ValueError(f"there is no collection {self.name!r}; LemurCollection.create makes one")
        params = self.client.get_collection(self.name).config.params.vectors
        return params if isinstance(params, dict) else {"": params}

    def check(self, dims: dict[str, int], tokens_name: str) -> bool:
        """Whether the vectors are of these dims and kinds; returns whether tokens are compared at unit length."""
        params = self.vectors()
        for name, dim in dims.items():
            if name not in params:
                raise ValueError(f"{self.name!r} has no vector {name!r}, but {sorted(params)}; LemurCollection.fit adds it")
            if params[name].size != dim:
                raise ValueError(f"{name!r} of {self.name!r} has dim {params[name].size}, the encoder's have dim {dim}")
            if (params[name].multivector_config is not None) != (name == tokens_name):
                raise ValueError(f"{name!r} must {'' if name == tokens_name else 'not '}be a multi-vector")
            if name != tokens_name and params[name].distance != models.Distance.DOT:
                raise ValueError(f"{name!r} must have the distance Dot, and has {params[name].distance.value}")
        return self.unit(tokens_name)

    def unit(self, tokens_name: str) -> bool:
        tokens = self.vectors().get(tokens_name)
        if tokens is None or tokens.multivector_config is None:
            raise ValueError(f"{self.name!r} has no multi-vector {tokens_name!r}")
        if tokens.distance not in (models.Distance.DOT, models.Distance.COSINE):
            raise ValueError(f"{tokens_name!r} must have the distance Dot or Cosine, and has {tokens.distance.value}")
        return bool(tokens.distance == models.Distance.COSINE)

    def count(self) -> int:
        return int(self.client.count(self.name, exact=True).count)

    def write(self, points: list[Point]) -> None:
        self.client.upsert(self.name, [models.PointStruct(id=i, vector=v, payload=p) for i, v, p in points], wait=True)

    def write_vectors(self, name: str, ids: list[PointId], vectors: list[list[float]]) -> None:
        points = [models.PointVectors(id=i, vector={name: v}) for i, v in zip(ids, vectors, strict=True)]
        self.client.update_vectors(self.name, points, wait=True)

    def delete(self, ids: list[Any] | None, filter: Any) -> None:
        which = models.FilterSelector(filter=filter) if ids is None else models.PointIdsList(points=ids)
        self.client.delete(self.name, which, wait=True)

    def retrieve(self, ids: list[PointId], vector: str | None = None) -> list[Any]:
        found: list[Any] = self.client.retrieve(self.name, ids, with_payload=["id"], with_vectors=[vector] if vector else False)
        return found

    def scroll(self, offset: Any, limit: int, vector: str) -> tuple[list[Any], Any]:
        there = models.Filter(must=[models.HasVectorCondition(has_vector=vector)])
        found: tuple[list[Any], Any] = self.client.scroll(
            self.name, there, limit=limit, offset=offset, with_payload=False, with_vectors=[vector]
        )
        return found

    def sample(self, count: int, vector: str) -> list[PointId]:
        there = models.Filter(must=[models.HasVectorCondition(has_vector=vector)])
        query = models.SampleQuery(sample=models.Sample.RANDOM)
        return [point.id for point in self.client.query_points(self.name, query, query_filter=there, limit=count).points]

    def params(self, count: int) -> Any:
        return None if self.local else models.SearchParams(hnsw_ef=2 * count)

    def two_stages(
        self, names: Names, vector: list[float], tokens: list[list[float]], k: int, count: int, filter: Any, params: Any
    ) -> Any:
        first = models.Prefetch(query=vector, using=names[0], limit=count, filter=filter, params=params)
        return models.QueryRequest(
            prefetch=[first], query=tokens, using=names[1], limit=k, params=self.rerank_params, with_payload=["id"]
        )

    def candidates(self, names: Names, vector: list[float], count: int, filter: Any, params: Any) -> Any:
        return models.QueryRequest(
            query=vector,
            using=names[0],
            limit=count,
            filter=filter,
            params=params,
            with_payload=["id"],
            with_vector=[names[1]],
        )

    def query(self, requests: list[Any]) -> list[list[Any]]:
        return [found.points for found in self.client.query_batch_points(self.name, requests)]

    def new_vector(self, name: str, dim: int, *, replace: bool) -> None:
        if replace and name in self.vectors():
            self.client.delete_vector_name(self.name, name)
        config = models.DenseVectorConfig(size=dim, distance=models.Distance.DOT)
        self.client.create_vector_name(self.name, name, models.DenseVectorNameConfig(dense=config))

    def has_vector(self, name: str) -> bool:
        return name in self.vectors()


class _Shard:
    """A shard of Qdrant Edge."""

    def __init__(self, shard: Any) -> None:
        if edge is None:
            raise ImportError("this needs qdrant-edge-py: pip install lemur_ann[qdrant]")
        self.shard = shard

    def check(self, dims: dict[str, int], tokens_name: str) -> bool:
        """Whether vectors that are there have these dims; a shard does not tell its distances."""
        for name, dim in dims.items():
            try:
                points, _ = self.scroll(None, 1, name)
                self.shard.query(self._nearest_of(name, [[0.0] * dim] if name == tokens_name else [0.0] * dim))
            except Exception as error:  # the engine has no others
                raise ValueError(f"the shard has no vector {name!r} of dim {dim}: {error}") from error
            stored = np.shape(points[0].vector[name]) if points else ()
            if points and (len(stored) == 2) != (name == tokens_name):
                raise ValueError(f"{name!r} must {'' if name == tokens_name else 'not '}be a multi-vector")
        return False

    def _nearest_of(self, name: str, vector: Any) -> Any:
        return edge.QueryRequest(limit=1, query=edge.Query.Nearest(vector, using=name))

    def unit(self, tokens_name: str) -> bool:
        return False

    def count(self) -> int:
        return int(self.shard.count(edge.CountRequest(exact=True)))

    def _update(self, operation: Any) -> None:
        self.shard.update(operation)
        self.shard.flush()

    def write(self, points: list[Point]) -> None:
        self._update(edge.UpdateOperation.upsert_points([edge.Point(i, v, p) for i, v, p in points]))

    def write_vectors(self, name: str, ids: list[PointId], vectors: list[list[float]]) -> None:
        points = [edge.PointVectors(i, {name: v}) for i, v in zip(ids, vectors, strict=True)]
        self._update(edge.UpdateOperation.update_vectors(points))

    def delete(self, ids: list[Any] | None, filter: Any) -> None:
        operation = edge.UpdateOperation
        self._update(operation.delete_points_by_filter(filter) if ids is None else operation.delete_points(ids))

    def retrieve(self, ids: list[PointId], vector: str | None = None) -> list[Any]:
        found: list[Any] = self.shard.retrieve(ids, with_payload=["id"], with_vector=[vector] if vector else False)
        return found

    def scroll(self, offset: Any, limit: int, vector: str) -> tuple[list[Any], Any]:
        there = edge.Filter(must=[edge.HasVectorCondition(vector)])
        request = edge.ScrollRequest(offset=offset, limit=limit, filter=there, with_payload=False, with_vector=[vector])
        found: tuple[list[Any], Any] = self.shard.scroll(request)
        return found

    def sample(self, count: int, vector: str) -> list[PointId]:
        there = edge.Filter(must=[edge.HasVectorCondition(vector)])
        found = self.shard.query(edge.QueryRequest(limit=count, query=edge.Sample.Random, filter=there))
        return [point.id for point in found]

    def params(self, count: int) -> Any:
        return edge.SearchParams(hnsw_ef=2 * count)

    def two_stages(
        self, names: Names, vector: list[float], tokens: list[list[float]], k: int, count: int, filter: Any, params: Any
    ) -> Any:
        nearest = edge.Query.Nearest
        first = edge.Prefetch(limit=count, query=nearest(vector, using=names[0]), filter=filter, params=params)
        exact = edge.SearchParams(quantization=edge.QuantizationSearchParams(ignore=True))
        query = nearest(tokens, using=names[1])
        return edge.QueryRequest(limit=k, query=query, prefetches=[first], params=exact, with_payload=["id"])

    def candidates(self, names: Names, vector: list[float], count: int, filter: Any, params: Any) -> Any:
        query = edge.Query.Nearest(vector, using=names[0])
        return edge.QueryRequest(
            limit=count, query=query, filter=filter, params=params, with_payload=["id"], with_vector=[names[1]]
        )

    def query(self, requests: list[Any]) -> list[list[Any]]:
        found: list[list[Any]] = self.shard.query_batch(edge.QueryBatchRequest(requests))
        return found

    def new_vector(self, name: str, dim: int, *, replace: bool) -> None:
        if replace:
            self._update(edge.UpdateOperation.delete_vector_name(name))
        self._update(edge.UpdateOperation.create_dense_vector(name, dim, edge.Distance.Dot))

    def has_vector(self, name: str) -> bool:
        return bool(self.shard.count(edge.CountRequest(filter=edge.Filter(must=[edge.HasVectorCondition(name)]))))


def _learn(
    engine: _Client | _Shard,
    queries: Any,
    vector_name: str,
    tokens_name: str,
    num_documents: int,
    replace: bool,
    how: dict[str, Any],
) -> LemurEncoder:
    """Learn from a sample of the points' tokens, and write the vectors of all."""
    count = validate.positive_int(num_documents, "num_documents")
    unit = engine.unit(tokens_name)
    if not replace and engine.has_vector(vector_name):
        raise ValueError(f"there is a vector {vector_name!r} already; replace=True drops and makes it anew")
    ids = engine.sample(count, tokens_name)
    sample: list[npt.NDArray[np.float32]] = []
    for begin in range(0, len(ids), POINTS_PER_READ):
        sample += _matrices(engine.retrieve(ids[begin : begin + POINTS_PER_READ], tokens_name), tokens_name)
    if not sample:
        raise ValueError(f"no point has {tokens_name!r} to learn from")
    if unit and queries is not None:
        batch = read_queries(opened(queries), dim=sample[0].shape[1])
        queries = np.split(_unit_length(batch.tokens), batch.offsets[1:-1])
    encoder = LemurEncoder.fit(sample, queries, **how)
    engine.new_vector(vector_name, encoder.dim, replace=replace)
    offset: Any = None
    while True:
        points, offset = engine.scroll(offset, POINTS_PER_READ, tokens_name)
        if points:
            vectors = encoder.encode_documents(_matrices(points, tokens_name))
            engine.write_vectors(vector_name, [point.id for point in points], vectors.tolist())
        if offset is None:
            return encoder


class LemurCollection(_Points):
    """A collection of a Qdrant server, or of the client's local mode, which imitates one in NumPy.

    Args:
        client: a ``QdrantClient``.
        name: the collection's, which is there: :meth:`create` makes one, and :meth:`fit` takes one that has tokens only.
        encoder: what its vectors were written with.
        vector_name, tokens_name: its named vectors; the first has the distance Dot, the second is a multi-vector compared by
            MaxSim of Dot or of Cosine, which is Dot of tokens scaled to unit length.

    Raises:
        ValueError: there is no such collection, its vectors have other dims or distances, or another encoder wrote them.
        TypeError: encoder is not one.
    """

    def __init__(
        self, client: Any, name: str, encoder: LemurEncoder, *, vector_name: str = "lemur", tokens_name: str = "tokens"
    ) -> None:
        self.client = client
        self.name = name
        super().__init__(_Client(client, name), encoder, vector_name, tokens_name)

    @classmethod
    def create(
        cls,
        client: Any,
        name: str,
        encoder: LemurEncoder,
        *,
        vector_name: str = "lemur",
        tokens_name: str = "tokens",
        vector_params: dict[str, Any] | None = None,
        tokens_params: dict[str, Any] | None = None,
        **options: Any,
    ) -> LemurCollection:
        """Make a collection.

        Args:
            client, name, encoder, vector_name, tokens_name: as for the class.
            vector_params, tokens_params: more of qdrant-client's ``VectorParams`` for each of the two: ``hnsw_config``,
                ``quantization_config``, ``on_disk``, ``datatype``.
            **options: more for ``QdrantClient.create_collection``, such as ``optimizers_config`` and ``shard_number``.

        Raises:
            ValueError: a collection of this name is there already, or as the class raises it.
        """
        _Client(client, name)
        if client.collection_exists(name):
            raise ValueError(f"there is a collection {name!r} already")
        multi = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
        tokens = {"distance": models.Distance.DOT, "hnsw_config": models.HnswConfigDiff(m=0), **(tokens_params or {})}
        vectors = {
            vector_name: models.VectorParams(size=encoder.dim, distance=models.Distance.DOT, **(vector_params or {})),
            tokens_name: models.VectorParams(size=encoder.token_dim, multivector_config=multi, **tokens),
        }
        client.create_collection(name, vectors_config=vectors, **options)
        return cls(client, name, encoder, vector_name=vector_name, tokens_name=tokens_name)

    @classmethod
    def fit(
        cls,
        client: Any,
        name: str,
        queries: Any = None,
        *,
        vector_name: str = "lemur",
        tokens_name: str = "tokens",
        num_documents: int = 10_000,
        replace: bool = False,
        **how: Any,
    ) -> LemurCollection:
        """Learn from a collection that has tokens, add the named vector to it, and write that of every point that has tokens.

        A search finds a point once its vector is written. Save the encoder: ``collection.encoder.save(path)``.

        Args:
            client, name, vector_name, tokens_name: as for the class.
            queries: training queries, as for :meth:`lemur_ann.LemurIndex.fit`.
            num_documents: size of the random sample of points that it learns from.
            replace: drop a vector of this name first; else one that is there is an error.
            **how: options of :meth:`lemur_ann.LemurEncoder.fit`.

        Raises:
            ValueError: no such collection or multi-vector, nothing in it, or the vector is there already.
        """
        encoder = _learn(_Client(client, name), queries, vector_name, tokens_name, num_documents, replace, how)
        return cls(client, name, encoder, vector_name=vector_name, tokens_name=tokens_name)

    def create_index(self, *, hnsw: Any = None, quantization: Any = None, indexing_threshold: int | None = None) -> None:
        """Change how the engine indexes ``lemur``. A server does so by itself, and builds anew in the background after this.

        Args:
            hnsw: a ``models.HnswConfigDiff``, such as m=32, ef_construct=200.
            quantization: a ``models`` configuration of the vector's quantisation.
            indexing_threshold: kilobytes of vectors in a segment from which it gets a graph.
        """
        diff = models.VectorParamsDiff(hnsw_config=hnsw, quantization_config=quantization)
        optimizers = None if indexing_threshold is None else models.OptimizersConfigDiff(indexing_threshold=indexing_threshold)
        self.client.update_collection(self.name, vectors_config={self.vector_name: diff}, optimizers_config=optimizers)


class LemurShard(_Points):
    """A shard of Qdrant Edge, the engine within this process; one process at a time has it open.

    Every change is on disk when its call returns. A graph is built by :meth:`create_index`, never by itself.

    Args:
        shard: an ``EdgeShard``, such as one of :meth:`config`; its tokens must have the distance Dot, which it does not tell.
        encoder: what its vectors were written with.
        vector_name, tokens_name: its named vectors.

    Raises:
        ValueError: its vectors have other names or dims, or another encoder wrote them.
        TypeError: encoder is not one.
    """

    def __init__(self, shard: Any, encoder: LemurEncoder, *, vector_name: str = "lemur", tokens_name: str = "tokens") -> None:
        self.shard = shard
        super().__init__(_Shard(shard), encoder, vector_name, tokens_name)

    @staticmethod
    def config(
        encoder: LemurEncoder,
        *,
        vector_name: str = "lemur",
        tokens_name: str = "tokens",
        m: int = 16,
        ef_construct: int = 100,
        full_scan_threshold: int = 10_000,
        indexing_threshold: int = 10_000,
        quantization: Any = None,
        datatype: Any = None,
        tokens_datatype: Any = None,
        **options: Any,
    ) -> Any:
        """An ``EdgeConfig`` for ``EdgeShard.create``, or for ``EdgeShard.load`` to change the graph of one that is there.

        Args:
            encoder, vector_name, tokens_name: as for the class.
            m, ef_construct: of the graph over the vectors.
            full_scan_threshold: kilobytes of vectors up to which a search compares all of them, graph or not.
            indexing_threshold: kilobytes of vectors in a segment from which :meth:`create_index` builds a graph.
            quantization: an ``edge`` configuration of the vectors' quantisation, such as ``ScalarQuantizationConfig``.
            datatype, tokens_datatype: ``VectorStorageDatatype`` of the two; None is float32.
            **options: more for ``EdgeConfig``.
        """
        graph = edge.HnswIndexConfig(m=m, ef_construct=ef_construct, full_scan_threshold=full_scan_threshold)
        none = edge.HnswIndexConfig(m=0, ef_construct=ef_construct, full_scan_threshold=full_scan_threshold)
        dot, multi = edge.Distance.Dot, edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim)
        vectors = {
            vector_name: edge.EdgeVectorParams(
                encoder.dim, dot, hnsw_config=graph, quantization_config=quantization, datatype=datatype
            ),
            tokens_name: edge.EdgeVectorParams(
                encoder.token_dim, dot, multivector_config=multi, hnsw_config=none, datatype=tokens_datatype
            ),
        }
        optimizers = edge.EdgeOptimizersConfig(indexing_threshold=indexing_threshold)
        return edge.EdgeConfig(vectors=vectors, **{"optimizers": optimizers, **options})

    @classmethod
    def create(cls, path: str | os.PathLike[str], encoder: LemurEncoder, **config: Any) -> LemurShard:
        """Make a shard in an empty folder, with the options of :meth:`config`."""
        return cls(edge.EdgeShard.create(os.fspath(path), cls.config(encoder, **config)), encoder, **_names(config))

    @classmethod
    def load(cls, path: str | os.PathLike[str], encoder: LemurEncoder, **config: Any) -> LemurShard:
        """Open the shard in a folder; any options of :meth:`config` but names replace those it was made with."""
        changed = cls.config(encoder, **config) if config.keys() - {"vector_name", "tokens_name"} else None
        return cls(edge.EdgeShard.load(os.fspath(path), changed), encoder, **_names(config))

    @classmethod
    def fit(
        cls,
        shard: Any,
        queries: Any = None,
        *,
        vector_name: str = "lemur",
        tokens_name: str = "tokens",
        num_documents: int = 10_000,
        replace: bool = False,
        **how: Any,
    ) -> LemurShard:
        """Learn from a shard that has tokens, and write the vectors: see :meth:`LemurCollection.fit`."""
        encoder = _learn(_Shard(shard), queries, vector_name, tokens_name, num_documents, replace, how)
        return cls(shard, encoder, vector_name=vector_name, tokens_name=tokens_name)

    def create_index(self) -> bool:
        """Build the graph over what was added since, merge segments, clear away what was deleted; whether it did anything."""
        return bool(self.shard.optimize())

    def close(self) -> None:
        """Let other processes open it."""
        self.shard.close()

    def __enter__(self) -> LemurShard:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _names(config: dict[str, Any]) -> dict[str, Any]:
    return {name: config[name] for name in ("vector_name", "tokens_name") if name in config}
