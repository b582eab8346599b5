"""LanceDB: what is stored, and how it is searched; see run.py."""

from __future__ import annotations

from typing import Any

import lancedb
from lemur_ann.adapters.lancedb import LemurTable

NAME, PACKAGES = "LanceDB", ("lancedb", "pylance")
SETTINGS = {
    "200 candidates, kernel": {"num_candidates": 200},
    "400 candidates, kernel": {"num_candidates": 400},
    "200 candidates, engine": {"num_candidates": 200, "rerank": "engine"},
}
TABLE = "documents"


def build(folder: str, encoder: Any, documents: Any) -> None:
    LemurTable.create(lancedb.connect(folder), TABLE, encoder, documents).create_index()


class Opened:
    def __init__(self, folder: str, encoder: Any) -> None:
        self.documents = LemurTable(lancedb.connect(folder), TABLE, encoder)
        self.search = self.documents.search

    def close(self) -> None:
        del self.documents, self.search  # LanceDB has no files open between searches that need closing


def open(folder: str, encoder: Any) -> Opened:
    return Opened(folder, encoder)


def without(collection: Opened, query: Any, k: int) -> list[Any]:
    found = collection.documents.table.search(query, vector_column_name="tokens").distance_type("dot").limit(k)
    return found.select(["id", "_distance"]).to_arrow().column("id").to_pylist()


WITHOUT = without
