"""A shard of Qdrant Edge: the engine within this process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from lemur_ann import LemurEncoder

from .points import Names, Point, PointId, Points, learn

try:
    import qdrant_edge as edge
except ImportError:
    edge = None  # type: ignore[assignment,unused-ignore]
HAS_EDGE = edge is not None


class _Edge:
    """A shard of Qdrant Edge."""

    compares_all = False

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

    def made_by(self, vector_name: str) -> str | None:
        return None  # a shard has no place for it

    def name_maker(self, vector_name: str, fingerprint: str) -> None:
        pass

    def filter_of(self, filter: Any) -> Any:
        return filter if isinstance(filter, edge.Filter) else None

    def count(self, filter: Any = None) -> int:
        return int(self.shard.count(edge.CountRequest(exact=True, filter=filter)))

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

    def params(self, count: int, *, exact: bool) -> Any:
        return edge.SearchParams(hnsw_ef=2 * count, exact=exact)

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


class LemurShard(Points):
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
        super().__init__(_Edge(shard), encoder, vector_name, tokens_name)

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
        """Make a shard in a folder, with the options of :meth:`config`.

        Raises:
            FileExistsError: the folder is not empty. The engine deletes what it does not know.
        """
        folder = Path(path)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"{folder} is not empty; choose another path, or move away what is there")
        return cls(edge.EdgeShard.create(os.fspath(path), cls.config(encoder, **config)), encoder, **_names(config))

    @classmethod
    def load(cls, path: str | os.PathLike[str], encoder: LemurEncoder, **config: Any) -> LemurShard:
        """Open the shard in a folder; any options of :meth:`config` but names replace those it was made with.

        Raises:
            FileNotFoundError: there is none.
        """
        folder = Path(path)
        if not (folder / "edge_config.json").exists() and not any(folder.glob("segments/*/segment.json")):
            raise FileNotFoundError(f"no shard in {folder}; LemurShard.create makes one")
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
        encoder = learn(_Edge(shard), queries, vector_name, tokens_name, num_documents, replace, how)
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
