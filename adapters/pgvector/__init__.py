"""LEMUR inside Postgres: documents, their tokens and their vectors in one table, found by pgvector's index.

``pip install lemur_ann[pgvector]``, and a server with pgvector 0.8 or newer. The connection is psycopg's::

    import psycopg

    from lemur_ann.adapters.pgvector import LemurTable

    with psycopg.connect("dbname=app", autocommit=True) as connection:
        table = LemurTable.create(connection, "documents", encoder, documents.schema)  # columns id, tokens, and others
        table.add(documents)
        table.create_index()
        hits = table.search(query_tokens, k=10, filter="year > %s", params=[2020])

An index scan over the column ``lemur`` finds candidates, and exact MaxSim ranks them: in this process over the candidates'
tokens, which come with them in one statement, or in that statement itself. Whatever is written belongs to the caller's
transaction: without autocommit it is committed by the caller, or rolled back.
"""

from __future__ import annotations

from .table import LemurTable

__all__ = ["LemurTable"]
