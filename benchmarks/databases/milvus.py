"""Milvus Lite: the same client as a server's, on an engine in this process, written in Python over FAISS; see run.py."""

from __future__ import annotations

from pathlib import Path

from lemur_ann.adapters.milvus import LemurCollection
from pymilvus import MilvusClient

NAME, PACKAGES = "Milvus Lite", ("pymilvus", "milvus-lite")
SETTINGS = {
    "100 candidates": {"num_candidates": 100},
    "200 candidates": {"num_candidates": 200},
    "400 candidates": {"num_candidates": 400},
}
COLLECTION = "documents"


def build(folder, encoder, documents):
    client = MilvusClient(str(Path(folder) / "milvus.db"))
    documents = documents.select(["id", "tokens"])
    collection = LemurCollection.create(client, COLLECTION, encoder, documents.schema)
    collection.add(documents)
    collection.create_index()
    client.close()


class Opened:
    def __init__(self, folder, encoder):
        self.client = MilvusClient(str(Path(folder) / "milvus.db"))
        self.search = LemurCollection(self.client, COLLECTION, encoder).search

    def close(self):
        self.client.close()


def open(folder, encoder):
    return Opened(folder, encoder)


WITHOUT = None
WITHOUT_REASON = "Lite has no multi-vector search; a server's MAX_SIM was not run"
