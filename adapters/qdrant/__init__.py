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

from .collection import HAS_CLIENT, LemurCollection
from .points import NAMESPACE, PointId, point_id
from .shard import HAS_EDGE, LemurShard

if not HAS_CLIENT and not HAS_EDGE:
    raise ImportError(
        "lemur_ann.adapters.qdrant needs qdrant-client 1.18 or later, or qdrant-edge-py: pip install lemur_ann[qdrant]"
    )

__all__ = ["NAMESPACE", "LemurCollection", "LemurShard", "PointId", "point_id"]
