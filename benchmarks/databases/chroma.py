"""Chroma in this process: tokens in the records' uris, or in an index beside; see run.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chromadb
from chromadb.config import Settings
from lemur_ann.adapters.chroma import LemurCollection

from lemur_ann import LemurIndex

NAME, PACKAGES = "Chroma", ("chromadb",)
SETTINGS = {
    "200 candidates, tokens beside": {"num_candidates": 200, "beside": True},
    "400 candidates, tokens beside": {"num_candidates": 400, "beside": True},
    "200 candidates": {"num_candidates": 200},
    "400 candidates": {"num_candidates": 400},
}


def connect(folder: str) -> Any:
    return chromadb.PersistentClient(str(Path(folder) / "database"), settings=Settings(anonymized_telemetry=False))


def build(folder: str, encoder: Any, documents: Any) -> None:
    documents = documents.select(["id", "tokens"])
    with connect(folder) as client, LemurIndex.open(Path(folder) / "tokens", candidates="exact", token_codes=None) as tokens:
        LemurCollection.create(client, "documents", encoder).add(documents)
        LemurCollection.create(client, "documents-beside", encoder, tokens=tokens).add(documents)


class Opened:
    def __init__(self, folder: str, encoder: Any) -> None:
        self.client = connect(folder)
        self.tokens = LemurIndex.open(Path(folder) / "tokens")
        self.inside = LemurCollection(self.client, "documents", encoder)
        self.beside = LemurCollection(self.client, "documents-beside", encoder, tokens=self.tokens)

    def search(self, query: Any, k: int, *, beside: bool = False, **settings: Any) -> Any:
        return (self.beside if beside else self.inside).search(query, k, **settings)

    def close(self) -> None:
        self.tokens.close()
        self.client.close()


def open(folder: str, encoder: Any) -> Opened:
    return Opened(folder, encoder)


WITHOUT = None
WITHOUT_REASON = "no multi-vector search"
