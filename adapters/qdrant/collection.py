"""A collection of a Qdrant server, or of the client's local mode."""

from __future__ import annotations

from typing import Any

from lemur_ann import LemurEncoder

from .._two_stages import undone
from .points import Names, Point, PointId, Points, learn

try:
    from qdrant_client import models
except ImportError:
    models = None  # type: ignore[assignment,unused-ignore]
HAS_CLIENT = models is not None


def maker_key(vector_name: str) -> str:
    """What a collection's metadata call the map that made its vectors."""
    return f"lemur_encoder {vector_name}"


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
        self.compares_all = local

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

    def made_by(self, vector_name: str) -> str | None:
        metadata = getattr(self.client.get_collection(self.name).config, "metadata", None) or {}
        return metadata.get(maker_key(vector_name))

    def name_maker(self, vector_name: str, fingerprint: str) -> None:
        self.client.update_collection(self.name, metadata={maker_key(vector_name): fingerprint})

    def filter_of(self, filter: Any) -> Any:
        if isinstance(filter, dict):
            try:
                return models.Filter(**filter)
            except ValueError:  # pydantic's is one
                return None
        return filter if isinstance(filter, models.Filter) else None

    def count(self, filter: Any = None) -> int:
        return int(self.client.count(self.name, count_filter=filter, exact=True).count)

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

    def params(self, count: int, *, exact: bool) -> Any:
        return None if self.compares_all else models.SearchParams(hnsw_ef=2 * count, exact=exact)

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


class LemurCollection(Points):
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
        metadata = {**(options.pop("metadata", None) or {}), maker_key(vector_name): encoder.fingerprint}
        client.create_collection(name, vectors_config=vectors, metadata=metadata, **options)
        with undone(lambda: client.delete_collection(name)):
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
        encoder = learn(_Client(client, name), queries, vector_name, tokens_name, num_documents, replace, how)
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
