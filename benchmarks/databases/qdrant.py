"""Qdrant Edge, Qdrant's own segment engine in this process; the client's local mode is an emulation, and no measure."""

from __future__ import annotations

from pathlib import Path

import qdrant_edge as edge
from lemur_ann.adapters.qdrant import LemurShard

NAME, PACKAGES = "Qdrant Edge", ("qdrant-edge-py",)
SETTINGS = {
    "100 candidates": {"num_candidates": 100},
    "200 candidates": {"num_candidates": 200},
    "400 candidates": {"num_candidates": 400},
    "400 candidates by scan": {"num_candidates": 400, "params": edge.SearchParams(exact=True)},
    "100 candidates, our kernel": {"num_candidates": 100, "rerank": "kernel"},
}


def build(folder, encoder, documents):
    with LemurShard.create(Path(folder) / "shard", encoder) as shard:
        shard.add(documents.select(["id", "tokens"]))
        shard.create_index()


def open(folder, encoder):
    return LemurShard.load(Path(folder) / "shard", encoder)


def without(collection, query, k):
    nearest = edge.Query.Nearest(query.tolist(), using="tokens")
    points = collection.shard.query(edge.QueryRequest(limit=k, query=nearest, with_payload=["id"]))
    return [point.payload.get("id", point.id) for point in points]


WITHOUT = without
