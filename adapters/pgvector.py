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

import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lemur_ann import Hits, LemurEncoder, maxsim
from lemur_ann import _validate as validate
from lemur_ann.documents.inputs import DocumentBatch, ids_of, is_single_query, iterate_documents, read_queries, to_offsets
from lemur_ann.documents.sources import opened

try:
    import psycopg
    from psycopg import sql
    from psycopg.adapt import Dumper
    from psycopg.pq import Format
    from psycopg.rows import tuple_row
except ImportError as error:
    raise ImportError("lemur_ann.adapters.pgvector needs psycopg 3: pip install lemur_ann[pgvector]") from error

# Of a one-dimensional array on the wire: dimensions, whether it has nulls, element oid, length, lower bound.
ARRAY_HEADER = struct.Struct(">iiIii")
ROWS_PER_FETCH = 1024
LARGEST_EF_SEARCH = 1000  # pgvector's
LONGEST_NAME = 63 - len("_lemur_hnsw")  # Postgres cuts longer names off, and then two are one
SQL_TYPES = {
    "bool": "boolean",
    "int8": "smallint",
    "int16": "smallint",
    "uint8": "smallint",
    "int32": "integer",
    "uint16": "integer",
    "int64": "bigint",
    "uint32": "bigint",
    "halffloat": "real",
    "float": "real",
    "double": "double precision",
    "string": "text",
    "large_string": "text",
    "string_view": "text",
    "binary": "bytea",
    "large_binary": "bytea",
    "date32[day]": "date",
}


class _Vector(bytes):
    """A vector or halfvec in Postgres's binary form."""


class _Tokens(bytes):
    """An array of them."""


class _BinaryDumper(Dumper):  # type: ignore[misc,unused-ignore]
    format = Format.BINARY

    def dump(self, obj: bytes) -> bytes:
        return bytes(obj)


class LemurTable:
    """A table of documents, and ``<name>_lemur``, which keeps the encoder, so that any process opens it by name.

    Columns: ``id`` (text or bigint, the primary key), ``tokens``, ``lemur`` (once there is an encoder), and the caller's.

    Args:
        connection: psycopg's, of any row factory and with autocommit or without.
        name: an identifier, taken as it is and quoted; the search path says where it is.
        encoder: None reads the one that is stored; a table may have none yet, see :meth:`fit`.

    Raises:
        ValueError: there is no such table, or the encoder is not the one of its vectors.
        psycopg.errors.UndefinedTable: the table is there, and ``<name>_lemur`` is not.
    """

    def __init__(self, connection: psycopg.Connection[Any], name: str, encoder: LemurEncoder | None = None) -> None:
        _check_name(name)
        self.connection = connection
        self.name = name
        self._dumpers: list[tuple[type, type[Dumper]]] = []
        self._table, self._beside = sql.Identifier(name), sql.Identifier(f"{name}_lemur")
        with self._reading():
            rows = self._execute(
                "SELECT attname, atttypid, format_type(atttypid, atttypmod) FROM pg_attribute"
                " WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped",
                [self._table.as_string(connection)],
            ).fetchall()
            self._columns: dict[str, int] = {column: oid for column, oid, _ in rows}
            types = {column: kind for column, _, kind in rows}
            if types.get("id") not in ("text", "bigint") or "tokens" not in types:
                raise ValueError(
                    f"there is no table {name!r} with columns id (text or bigint) and tokens; see LemurTable.create"
                )
            self.token_dim, stored = self._execute(
                sql.SQL("SELECT token_dim, {} FROM {}").format(sql.SQL("encoder" if encoder is None else "NULL"), self._beside)
            ).fetchall()[0]
            self._element_oids = dict(
                self._execute(
                    "SELECT typname, oid FROM pg_type WHERE oid IN ('vector'::regtype, 'halfvec'::regtype)"
                ).fetchall()
            )
        self._integer_ids = types["id"] == "bigint"
        self._tokens_type = types["tokens"].partition("(")[0]  # bytea, halfvec or vector
        self._lemur_type = types.get("lemur", "").partition("(")[0]
        self.encoder = encoder if stored is None else _encoder_from(stored)
        expected = None if self.encoder is None else f"{self._lemur_type}({self.encoder.dim})"
        if self.encoder is not None and (self.encoder.token_dim != self.token_dim or types.get("lemur") != expected):
            raise ValueError(
                f"{name!r} has tokens of dim {self.token_dim} and column lemur of type {types.get('lemur')}; it is not a table "
                f"of {self.encoder!r}"
            )
        self._dumpers = [
            (kind, type("", (_BinaryDumper,), {"oid": oid}))
            for kind, oid in (
                (_Vector, self._columns.get("lemur", 0)),
                (_Tokens, self._columns["tokens"]),
            )
        ]

    @classmethod
    def create(
        cls,
        connection: psycopg.Connection[Any],
        name: str,
        encoder: LemurEncoder | None,
        schema: pa.Schema,
        *,
        token_dim: int | None = None,
        tokens: str = "bytea",
        vector: str = "halfvec",
    ) -> LemurTable:
        """Make the extension ``vector`` where it is not there, and the tables.

        Args:
            connection, name: as for the class.
            encoder: kept in the database; None makes a table that :meth:`fit` learns from, and searches without it are exact.
            schema: of the documents to come: ``id``, and other columns, which become columns of Postgres's types.
            token_dim: needed where there is no encoder.
            tokens: "bytea", float16 as they lie in memory, which is quickest to rank here; or "halfvec" or "vector", arrays of
                pgvector's type, which Postgres can rank too (``rerank="engine"``).
            vector: "halfvec" or "vector"; pgvector indexes up to 4000 and 2000 dimensions.

        Raises:
            ValueError, TypeError: a column whose type has no counterpart, or wrong arguments.
            psycopg.errors.DuplicateTable: it is there already.
        """
        _check_name(name)
        if tokens not in ("bytea", "halfvec", "vector"):
            raise ValueError(f'tokens must be "bytea", "halfvec" or "vector", got {tokens!r}')
        _check_vector(vector)
        dim = validate.positive_int(token_dim if encoder is None else encoder.token_dim, "token_dim")
        if "id" not in schema.names:
            raise ValueError(f"the schema must have a column id, got columns {schema.names}")
        if "lemur" in schema.names:
            raise ValueError("a column of documents must not have the name lemur, which is the vector's")
        columns = [
            sql.SQL("id {} PRIMARY KEY").format(sql.SQL("bigint" if pa.types.is_integer(schema.field("id").type) else "text"))
        ]
        columns += [
            sql.SQL("{} {}").format(sql.Identifier(field.name), sql.SQL(_sql_type(field)))
            for field in schema
            if field.name not in ("id", "tokens")
        ]
        # EXTERNAL: not compressed, which would cost time and gain nothing
        kind = "bytea" if tokens == "bytea" else f"{tokens}({dim})[]"
        columns.append(sql.SQL("tokens {} STORAGE EXTERNAL NOT NULL").format(sql.SQL(kind)))
        if encoder is not None:
            columns.append(sql.SQL("lemur {}({})").format(sql.SQL(vector), sql.Literal(encoder.dim)))
        beside = sql.Identifier(f"{name}_lemur")
        with _writing(connection):
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            connection.execute(sql.SQL("CREATE TABLE {} ({})").format(sql.Identifier(name), sql.SQL(", ").join(columns)))
            connection.execute(
                sql.SQL("CREATE TABLE {} (token_dim integer NOT NULL, encoder bytea STORAGE EXTERNAL)").format(beside)
            )
            connection.execute(
                sql.SQL("INSERT INTO {} VALUES (%s, %b)").format(beside),
                [dim, None if encoder is None else _encoder_bytes(encoder)],
            )
        return cls(connection, name, encoder)

    @classmethod
    def fit(
        cls,
        connection: psycopg.Connection[Any],
        name: str,
        queries: Any,
        *,
        sample: int = 10_000,
        vector: str = "halfvec",
        **how: Any,
    ) -> LemurTable:
        """Learn from a table's tokens, and write the vectors of all its documents and the encoder, in the place of others.

        The column ``lemur`` is made anew, and its index goes with it: call :meth:`create_index` after. The table is locked
        while vectors are written, not while it learns.

        Args:
            connection, name: as for the class.
            queries: to learn from, as for :meth:`lemur_ann.LemurIndex.fit`.
            sample: documents to learn from.
            vector: as for :meth:`create`.
            **how: as for :meth:`lemur_ann.LemurEncoder.fit`.

        Raises:
            ValueError: the table is empty, or bad arguments.
        """
        _check_vector(vector)
        table = cls(connection, name)
        some = sql.SQL("SELECT id, {} FROM {} ORDER BY hashtext(id::text) LIMIT {}").format(
            table._tokens_sent, table._table, sql.Literal(validate.positive_int(sample, "sample"))
        )
        with table._reading():
            rows = table._execute(some).fetchall()
        if not rows:
            raise ValueError(f"{name!r} has no documents to learn from")
        tokens, offsets = table._unpack([row[1] for row in rows])
        encoder = LemurEncoder.fit(tokens, queries, offsets=offsets, **how)
        with _writing(connection):
            connection.execute(
                sql.SQL("ALTER TABLE {0} DROP COLUMN IF EXISTS lemur, ADD COLUMN lemur {1}({2})").format(
                    table._table, sql.SQL(vector), sql.Literal(encoder.dim)
                )
            )
            connection.execute(sql.SQL("UPDATE {} SET encoder = %b").format(table._beside), [_encoder_bytes(encoder)])
            table = cls(connection, name, encoder)
            table._encode_all()
        return table

    def __len__(self) -> int:
        with self._reading():
            return int(self._execute(sql.SQL("SELECT count(*) FROM {}").format(self._table)).fetchall()[0][0])

    def __repr__(self) -> str:
        return f"<LemurTable {self.name!r} of tokens of dim {self.token_dim}, {self.encoder!r}>"

    def add(self, documents: Any, *, ids: Any = None, offsets: Any = None) -> None:
        """Add documents by binary COPY, all or none.

        Args:
            documents: Arrow data with columns id, tokens and others of the table, or what :meth:`lemur_ann.LemurIndex.add`
                takes, with ``ids``. Columns that are left out become null.
            ids, offsets: where they are no columns.

        Raises:
            ValueError, TypeError: bad documents, or columns that the table does not have.
            psycopg.errors.UniqueViolation: an id is there already.
        """
        with _writing(self.connection):
            for batch in self._batches(documents, ids, offsets):
                self._copy(self._table, batch)

    def upsert(self, documents: Any, *, ids: Any = None, offsets: Any = None) -> None:
        """Add documents, or put them in the place of those with their ids; other columns that are left out stay as they are.

        Args:
            documents, ids, offsets: as for :meth:`add`.

        Raises:
            ValueError, TypeError: as for :meth:`add`.
            psycopg.errors.CardinalityViolation: an id comes twice.
        """
        with _writing(self.connection):
            for batch in self._batches(documents, ids, offsets):
                columns = self._columns_of(batch)
                names = sql.SQL(", ").join(map(sql.Identifier, columns))
                changes = sql.SQL(", ").join(
                    sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(c)) for c in columns if c != "id"
                )
                new = sql.Identifier("pg_temp", "lemur_new")
                self._execute(sql.SQL("CREATE TEMP TABLE lemur_new (LIKE {})").format(self._table))
                self._copy(new, batch)
                self._execute(
                    sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {} ON CONFLICT (id) DO UPDATE SET {}").format(
                        self._table, names, names, new, changes
                    )
                )
                self._execute(sql.SQL("DROP TABLE {}").format(new))

    def delete(self, ids: Any = None, *, filter: str | sql.Composable | None = None, params: Any = None) -> int:
        """Delete documents, by ids (those that are not there are passed over) or by a filter; returns how many went.

        Args:
            ids: one or several.
            filter, params: as for :meth:`search`.

        Raises:
            ValueError, TypeError: neither or both are given, or ids of another kind than the table's.
        """
        if (ids is None) == (filter is None):
            raise ValueError("delete takes either ids or a filter")
        if filter is None:
            array = ids_of(ids)
            self._check_ids(array)
            filter, params = "id = ANY(%s)", [array.to_pylist()]
        with _writing(self.connection):
            gone = self._execute(sql.SQL("DELETE FROM {}{}").format(self._table, self._where(filter, params)), [])
            return int(gone.rowcount)

    def create_index(self, *, m: int = 16, ef_construction: int = 128) -> None:
        """Make pgvector's HNSW index ``<name>_lemur_hnsw`` over the vectors, by inner product, and let the planner look at it.

        Add the bulk of the documents before; it takes those that come later too. The session's ``maintenance_work_mem`` and
        ``max_parallel_maintenance_workers`` say how quick it is.

        Raises:
            ValueError: there is no encoder yet.
            psycopg.errors.DuplicateTable: there is one.
        """
        if self.encoder is None:
            raise ValueError(f"{self.name!r} has no vectors to index yet: call LemurTable.fit")
        statement = sql.SQL("CREATE INDEX {} ON {} USING hnsw (lemur {}) WITH (m = {}, ef_construction = {})").format(
            sql.Identifier(f"{self.name}_lemur_hnsw"),
            self._table,
            sql.SQL(f"{self._lemur_type}_ip_ops"),
            sql.Literal(validate.positive_int(m, "m")),
            sql.Literal(validate.positive_int(ef_construction, "ef_construction")),
        )
        with _writing(self.connection):
            self._execute(statement)
            self._execute(sql.SQL("ANALYZE {}").format(self._table))

    def search(
        self,
        query_tokens: Any,
        k: int = 10,
        *,
        num_candidates: int | None = 200,
        filter: str | sql.Composable | None = None,
        params: Sequence[Any] | Mapping[str, Any] | None = None,
        rerank: str = "kernel",
        ef_search: int | None = None,
        iterative_scan: str = "relaxed_order",
        max_scan_tuples: int | None = None,
        num_threads: int | None = None,
    ) -> Any:
        """The k documents of highest MaxSim among the candidates; one statement a query.

        Args:
            query_tokens: one matrix (num_tokens, token_dim), or a batch as for :meth:`lemur_ann.LemurIndex.search`.
            k: how many.
            num_candidates: how many documents the vectors choose; None scores every document that passes, without vectors.
            filter: a condition, as after WHERE, with placeholders (%s or %(name)s) for values, never with values written in.
            params: the values, bound by psycopg.
            rerank: "kernel" ranks here, over float16 or float32 tokens as they are stored; "engine" ranks in Postgres, where
                tokens are arrays, over query tokens rounded to the type of these.
            ef_search: of pgvector, up to 1000; None means twice num_candidates, and no more than that.
            iterative_scan: of pgvector: "relaxed_order", "strict_order" or "off"; it goes on where a filter leaves too few.
            max_scan_tuples: where that gives up; None leaves the session's setting. Where it leaves fewer than num_candidates,
                the search is made again without the index, so that nothing that passes is missed.
            num_threads: of the kernel; None means all cores.

        Returns:
            :class:`lemur_ann.Hits`, or a list of them for a batch: fewer than k only where fewer pass.

        Raises:
            ValueError, TypeError: bad queries or settings.
            psycopg.Error: what Postgres says of the filter.
        """
        k = validate.positive_int(k, "k")
        num = None if self.encoder is None else num_candidates
        if num is not None:
            num = max(k, validate.positive_int(num, "num_candidates"))
        self._check_rerank(rerank)
        threads = validate.num_threads(num_threads)
        ways = _ways(num, ef_search, iterative_scan, max_scan_tuples)
        where = self._where(filter, params)
        found = []
        queries, single = self._queries(query_tokens, threads)
        for query, vector in queries:
            if num is None:
                found.append(self._all(query, where, k, rerank, threads))
                continue
            candidates, values = self._candidates(num, where, vector)
            statement = sql.SQL(
                "WITH candidates AS MATERIALIZED ({}) SELECT id, {}, (SELECT count(*) FROM candidates) FROM candidates"
            ).format(candidates, self._ranked(rerank))
            if rerank == "engine":
                values.append(_Tokens(self._pack(query)))
                statement += sql.SQL(" ORDER BY 2 DESC LIMIT {}").format(sql.Literal(k))
            for how in ways:
                with self._reading(how):
                    rows = self._execute(statement, values).fetchall()
                if rows and rows[0][2] == num:
                    break
            scores = self._scores(query, [row[1] for row in rows], rerank, threads)
            found.append(self._best([row[0] for row in rows], scores, k))
        return found[0] if single else found

    def hybrid_search(
        self,
        query_tokens: Any,
        query_text: str,
        k: int = 10,
        *,
        text_column: str = "text",
        config: str = "english",
        num_candidates: int = 200,
        filter: str | sql.Composable | None = None,
        params: Sequence[Any] | Mapping[str, Any] | None = None,
        rerank: str = "kernel",
        rrf_k: int = 60,
        num_threads: int | None = None,
    ) -> Hits:
        """MaxSim's ranking and full-text search's (ts_rank, of documents with any of the words), fused by reciprocal rank.

        One statement finds both lists.

        Args:
            query_tokens: one matrix (num_tokens, token_dim).
            query_text: words, in any form.
            k: how many.
            text_column: a text column; an index ``USING gin (to_tsvector('english', text))`` makes it quick.
            config: of the text search.
            num_candidates: the length of either list.
            filter, params, rerank, num_threads: as for :meth:`search`.
            rrf_k: a document's score is the sum over both lists of 1 / (rrf_k + its place from 1).

        Returns:
            :class:`lemur_ann.Hits`, with these scores in the place of MaxSim.

        Raises:
            ValueError, TypeError, psycopg.Error: as for :meth:`search`.
        """
        k, num = validate.positive_int(k, "k"), validate.positive_int(num_candidates, "num_candidates")
        rrf_k = validate.integer(rrf_k, "rrf_k", least=0)
        if self.encoder is None:
            raise ValueError(f"{self.name!r} has no vectors yet: call LemurTable.fit")
        self._check_rerank(rerank)
        threads = validate.num_threads(num_threads)
        where = self._where(filter, params)
        ((query, vector),) = self._queries([query_tokens], threads)[0]
        candidates, values = self._candidates(num, where, vector)
        words = sql.SQL(
            "SELECT id, ts_rank(words, wanted) AS rank FROM (SELECT id, to_tsvector({0}, {1}) AS words FROM {2}{3}"
            ") AS d, (SELECT replace(plainto_tsquery({0}, %s)::text, ' & ', ' | ')::tsquery AS wanted) AS q"
            " WHERE words @@ wanted ORDER BY rank DESC, id LIMIT {4}"
        ).format(
            sql.SQL("{}::regconfig").format(sql.Literal(config)),
            sql.Identifier(text_column),
            self._table,
            where,
            sql.Literal(num),
        )
        statement = sql.SQL(
            "WITH candidates AS MATERIALIZED ({}), words AS ({}), scored AS (SELECT id, {} AS found FROM candidates)"
            " SELECT id, found, rank FROM scored FULL JOIN words USING (id)"
        ).format(candidates, words, self._ranked(rerank))
        values += [query_text, *([_Tokens(self._pack(query))] if rerank == "engine" else [])]
        for how in _ways(num, None, "relaxed_order", None):
            with self._reading(how):
                rows = self._execute(statement, values).fetchall()
            near = [row for row in rows if row[1] is not None]
            if len(near) == num:
                break
        scores = self._scores(query, [row[1] for row in near], rerank, threads)
        fused: dict[Any, float] = {row[0]: 0.0 for row in rows}
        worded = sorted((-row[2], row[0]) for row in rows if row[2] is not None)
        for ranking in ([near[i][0] for i in np.argsort(-scores, kind="stable")], [doc_id for _, doc_id in worded]):
            for place, doc_id in enumerate(ranking, 1):
                fused[doc_id] += 1 / (rrf_k + place)
        return self._best(list(fused), np.array(list(fused.values()), np.float32), k)

    # ---------------------------------------------------------------- statements

    @contextmanager
    def _reading(self, settings: Mapping[str, str] | None = None) -> Iterator[None]:
        """A transaction, or a savepoint in the caller's, that is rolled back: so settings end with it, and locks."""
        with self.connection.transaction(force_rollback=True):
            if settings:
                calls = sql.SQL(", ").join([sql.SQL("set_config(%s, %s, true)")] * len(settings))
                self._execute(sql.SQL("SELECT {}").format(calls), [part for item in settings.items() for part in item])
            yield

    def _execute(self, statement: Any, values: Sequence[Any] | None = None, *, name: str = "") -> Any:
        """Run it on a cursor of our own: binary, tuples whatever the connection's factories are, and planned every time."""
        if name:
            cursor: Any = psycopg.ServerCursor(self.connection, name, row_factory=tuple_row)
        else:
            cursor = psycopg.Cursor(self.connection, row_factory=tuple_row)
        for kind, dumper in self._dumpers:
            cursor.adapters.register_dumper(kind, dumper)
        if name:
            return cursor.execute(statement, values, binary=True)
        return cursor.execute(statement, values, binary=True, prepare=False)

    def _where(self, filter: str | sql.Composable | None, params: Any) -> sql.Composable:
        """The filter with its values bound, quoted by psycopg."""
        if filter is None:
            if params is not None:
                raise ValueError("params come with a filter")
            return sql.SQL("")
        bound = psycopg.ClientCursor(self.connection).mogrify(filter, params)  # type: ignore[arg-type,unused-ignore]
        return sql.SQL(" WHERE ({}\n)").format(sql.SQL(bound.replace("%", "%%")))  # type: ignore[arg-type,unused-ignore]

    def _candidates(self, num: int, where: sql.Composable, vector: Any) -> tuple[sql.Composed, list[Any]]:
        statement = sql.SQL("SELECT id, tokens FROM {}{} ORDER BY lemur <#> %s LIMIT {}").format(
            self._table, where, sql.Literal(num)
        )
        return statement, [_Vector(_vector_bytes(vector, self._lemur_type))]

    @property
    def _tokens_sent(self) -> sql.SQL:
        return sql.SQL("tokens" if self._tokens_type == "bytea" else "array_send(tokens)")

    def _ranked(self, rerank: str) -> sql.SQL:
        """A document's tokens, or its MaxSim; WITH ORDINALITY numbers the query's tokens, of which two may be equal."""
        if rerank == "kernel":
            return self._tokens_sent
        return sql.SQL(
            "(SELECT sum(best) FROM (SELECT max(-(token <#> wanted)) AS best FROM unnest(tokens) AS token,"
            " unnest(%s) WITH ORDINALITY AS query(wanted, place) GROUP BY place) AS maxima)"
        )

    def _all(self, query: npt.NDArray[Any], where: sql.Composable, k: int, rerank: str, threads: int) -> Hits:
        """Every document that passes, through a cursor on the server: no more than a few of them are here at a time."""
        statement = sql.SQL("SELECT id, {} FROM {}{}").format(self._ranked(rerank), self._table, where)
        values = [_Tokens(self._pack(query))] if rerank == "engine" else []
        ids: list[Any] = []
        scores = [np.empty(0, np.float32)]
        with self._reading():
            cursor = self._execute(statement, values, name="lemur_ann")
            while rows := cursor.fetchmany(ROWS_PER_FETCH):
                ids += [row[0] for row in rows]
                scores.append(self._scores(query, [row[1] for row in rows], rerank, threads))
            cursor.close()
        return self._best(ids, np.concatenate(scores), k)

    def _scores(self, query: npt.NDArray[Any], found: list[Any], rerank: str, threads: int) -> npt.NDArray[np.float32]:
        if rerank == "engine" or not found:
            return np.array(found, np.float32)
        return maxsim.scores(query, *self._unpack(found), num_threads=threads)

    def _best(self, ids: list[Any], scores: npt.NDArray[np.float32], k: int) -> Hits:
        order = np.argsort(-scores, kind="stable")[:k]
        return Hits(np.array([ids[i] for i in order], np.int64 if self._integer_ids else object), scores[order])

    # ---------------------------------------------------------------- rows

    def _queries(self, query_tokens: Any, threads: int) -> tuple[list[tuple[Any, Any]], bool]:
        single = is_single_query(query_tokens)
        batch = read_queries([query_tokens] if single else opened(query_tokens), dim=self.token_dim)
        matrices = [batch.tokens[a:b] for a, b in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)]
        if self.encoder is None:
            return [(matrix, None) for matrix in matrices], single
        vectors = self.encoder.encode_batch(batch.tokens, batch.offsets, num_threads=threads)
        return list(zip(matrices, vectors, strict=True)), single

    def _batches(self, documents: Any, ids: Any, offsets: Any) -> Iterator[DocumentBatch]:
        for batch in iterate_documents(opened(documents), ids=ids, offsets=offsets, dim=self.token_dim):
            if batch.ids is None:
                raise ValueError("documents must have ids: a column id, or ids=")
            self._check_ids(batch.ids)
            unknown = [c for c in self._columns_of(batch) if c not in self._columns]
            if unknown:
                raise ValueError(f"{self.name!r} has no column {unknown[0]!r}; it has {list(self._columns)}")
            yield batch

    def _columns_of(self, batch: DocumentBatch) -> list[str]:
        others = [] if batch.metadata is None else batch.metadata.column_names
        return ["id", *others, "tokens", *(["lemur"] if self.encoder is not None else [])]

    def _copy(self, table: sql.Identifier, batch: DocumentBatch) -> None:
        columns = self._columns_of(batch)
        assert batch.ids is not None
        values = [batch.ids.to_pylist()]
        values += [] if batch.metadata is None else [column.to_pylist() for column in batch.metadata.columns]
        values.append([self._pack(batch.tokens[a:b]) for a, b in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)])
        if self.encoder is not None:
            encoded = self.encoder.encode_documents(batch.tokens, offsets=batch.offsets)
            values.append([_vector_bytes(vector, self._lemur_type) for vector in encoded])
        self._copy_rows(table, columns, zip(*values, strict=True))

    def _copy_rows(self, table: sql.Identifier, columns: list[str], rows: Any) -> None:
        """Tokens and vectors are in their binary form, and go as they are, which is what "bytea" says."""
        statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
            table, sql.SQL(", ").join(map(sql.Identifier, columns))
        )
        with psycopg.Cursor(self.connection).copy(statement) as copy:
            copy.set_types(["bytea" if c in ("tokens", "lemur") else self._columns[c] for c in columns])
            for row in rows:
                copy.write_row(row)

    def _encode_all(self) -> None:
        """Write the vectors of all documents, batch by batch."""
        assert self.encoder is not None
        new = sql.Identifier("pg_temp", "lemur_new")
        self._execute(sql.SQL("CREATE TEMP TABLE lemur_new AS SELECT id, lemur FROM {} LIMIT 0").format(self._table))
        cursor = self._execute(sql.SQL("SELECT id, {} FROM {}").format(self._tokens_sent, self._table), name="lemur_ann")
        while rows := cursor.fetchmany(ROWS_PER_FETCH):
            tokens, offsets = self._unpack([row[1] for row in rows])
            vectors = self.encoder.encode_documents(tokens, offsets=offsets)
            packed = (_vector_bytes(vector, self._lemur_type) for vector in vectors)
            self._copy_rows(new, ["id", "lemur"], zip((row[0] for row in rows), packed, strict=True))
        cursor.close()
        self._execute(
            sql.SQL("UPDATE {0} SET lemur = new.lemur FROM {1} AS new WHERE {0}.id = new.id").format(self._table, new)
        )
        self._execute(sql.SQL("DROP TABLE {}").format(new))

    @property
    def _record(self) -> np.dtype[Any]:
        """A token as it is stored: in an array each has its length in bytes, its dim, and two bytes of nothing before it."""
        if self._tokens_type == "bytea":
            return np.dtype([("token", "<f2", (self.token_dim,))])
        value = ">f4" if self._tokens_type == "vector" else ">f2"
        return np.dtype([("length", ">i4"), ("dim", ">i2"), ("unused", ">i2"), ("token", value, (self.token_dim,))])

    def _pack(self, tokens: npt.NDArray[Any]) -> bytes:
        """A document's tokens as Postgres receives them; values beyond float16 become infinite, which it refuses in arrays."""
        records = np.zeros(len(tokens), self._record)
        with np.errstate(over="ignore"):
            records["token"] = tokens
        if self._tokens_type == "bytea":
            if not np.isfinite(records["token"]).all():
                raise ValueError('tokens have values beyond float16 (65504): make the table with tokens="vector"')
            return records.tobytes()
        records["length"], records["dim"] = self._record.itemsize - 4, self.token_dim
        return ARRAY_HEADER.pack(1, 0, self._element_oids[self._tokens_type], len(tokens), 1) + records.tobytes()

    def _unpack(self, packed: list[bytes]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """The tokens of documents, laid end to end, and their offsets."""
        record = self._record
        header = 0 if self._tokens_type == "bytea" else ARRAY_HEADER.size
        joined = b"".join([memoryview(one)[header:] for one in packed])
        tokens = np.frombuffer(joined, record)["token"]
        lengths = [(len(one) - header) // record.itemsize for one in packed]
        return tokens.astype(tokens.dtype.newbyteorder("="), copy=False), to_offsets(lengths)

    # ---------------------------------------------------------------- checks

    def _check_ids(self, ids: pa.Array) -> None:
        if pa.types.is_integer(ids.type) != self._integer_ids:
            raise TypeError(f"{self.name!r} has ids of type {'bigint' if self._integer_ids else 'text'}, got {ids.type}")

    def _check_rerank(self, rerank: str) -> None:
        if rerank not in ("kernel", "engine"):
            raise ValueError(f'rerank must be "kernel" or "engine", got {rerank!r}')
        if rerank == "engine" and self._tokens_type == "bytea":
            raise ValueError('Postgres cannot rank tokens of type bytea: make the table with tokens="halfvec" or "vector"')


@contextmanager
def _writing(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """All or nothing, and no commit but where the connection commits by itself."""
    if not connection.autocommit:
        connection.execute("SELECT")  # begins the caller's transaction, so that what follows is a savepoint in it
    with connection.transaction():
        yield


def _ways(
    num: int | None, ef_search: int | None, iterative_scan: str, max_scan_tuples: int | None
) -> tuple[dict[str, str], dict[str, str]]:
    """Settings to find candidates with, and those for when they were too few: without the index."""
    ef = min(2 * (num or 1), LARGEST_EF_SEARCH) if ef_search is None else validate.positive_int(ef_search, "ef_search")
    if ef > LARGEST_EF_SEARCH:
        raise ValueError(f"ef_search must be at most {LARGEST_EF_SEARCH}, got {ef}")
    if iterative_scan not in ("off", "relaxed_order", "strict_order"):
        raise ValueError(f'iterative_scan must be "off", "relaxed_order" or "strict_order", got {iterative_scan!r}')
    settings = {"hnsw.ef_search": str(ef), "hnsw.iterative_scan": iterative_scan}
    if max_scan_tuples is not None:
        settings["hnsw.max_scan_tuples"] = str(validate.positive_int(max_scan_tuples, "max_scan_tuples"))
    return settings, {"enable_indexscan": "off", "enable_seqscan": "on", "enable_sort": "on"}


def _vector_bytes(vector: npt.NDArray[np.float32], kind: str) -> bytes:
    """dim, two bytes of nothing, and the values."""
    return struct.pack(">HH", len(vector), 0) + vector.astype(">f4" if kind == "vector" else ">f2").tobytes()


def _encoder_bytes(encoder: LemurEncoder) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder"
        encoder.save(path)
        return path.read_bytes()


def _encoder_from(stored: bytes) -> LemurEncoder:
    # it maps the file, which Windows then does not remove
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "encoder"
        path.write_bytes(stored)
        return LemurEncoder.load(path)


def _sql_type(field: pa.Field) -> str:
    kind = field.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_timestamp(kind):
        return "timestamp" if kind.tz is None else "timestamptz"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"{_sql_type(kind.value_field)}[]"
    if str(kind) not in SQL_TYPES:
        raise TypeError(f"column {field.name!r} of type {kind} has no counterpart in Postgres; cast it")
    return SQL_TYPES[str(kind)]


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not 0 < len(name.encode()) <= LONGEST_NAME or "\0" in name:
        raise ValueError(f"a table's name must be a string of 1 to {LONGEST_NAME} bytes, got {name!r}")


def _check_vector(kind: str) -> None:
    if kind not in ("halfvec", "vector"):
        raise ValueError(f'vector must be "halfvec" or "vector", got {kind!r}')
