"""A table of documents in Postgres, and what is asked of it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lemur_ann import Hits, LemurEncoder, maxsim, validate
from lemur_ann.documents import DocumentBatch, opened, queries_of

try:
    import psycopg
    from psycopg import sql
    from psycopg.rows import tuple_row
except ImportError as error:
    raise ImportError("lemur_ann.adapters.pgvector needs psycopg 3: pip install lemur_ann[pgvector]") from error

from .._two_stages import Found, Offsets, Part, Tokens, TwoStages, Wanted, check_encoder, check_maker, ids_in, learned
from . import definition, hybrid, wire
from .definition import named

ROWS_PER_FETCH = 1024
LARGEST_EF_SEARCH = 1000  # pgvector's
WITHOUT_INDEX = {"enable_indexscan": "off", "enable_seqscan": "on", "enable_sort": "on"}


class LemurTable(TwoStages):
    """A table of documents, and ``<name>_lemur``, which keeps the encoder, so that any process opens it by name.

    Columns: ``id`` (text or bigint, the primary key), ``tokens``, ``lemur`` (once there is an encoder), and the caller's. Those
    that documents leave out become null, and stay as they are with ``upsert``. A change is all or nothing, and documents are
    written by binary COPY as they are read.

    Args:
        connection: psycopg's, of any row factory and with autocommit or without.
        name: an identifier, taken as it is and quoted; the search path says where it is.
        encoder: None reads the one that is stored; a table may have none yet, see :meth:`fit`.

    Raises:
        ValueError: there is no such table, or the encoder is not the one of its vectors.
        psycopg.errors.UndefinedTable: the table is there, and ``<name>_lemur`` is not.
    """

    wants_all = True
    all_or_nothing = True  # by a transaction
    filter_types = (str, sql.Composable)
    _filter_form = 'a condition such as "year > %s", with params=[2020]'
    documents_per_request, bytes_per_request = 4096, 2**26
    ids_per_request = 2**20  # of one deletion, which is one statement

    def __init__(self, connection: psycopg.Connection[Any], name: str, encoder: LemurEncoder | None = None) -> None:
        definition.check_name(name)
        self.connection = connection
        self.name = name
        self._dumpers: list[Any] = []
        self._table, self._beside = named(name), named(f"{name}_lemur")
        with self._reading():
            rows = self._execute(
                "SELECT attname, atttypid, format_type(atttypid, atttypmod) FROM pg_attribute"
                " WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped",
                [sql.Identifier(name).as_string(connection)],
            ).fetchall()
            self._columns: dict[str, int] = {column: oid for column, oid, _ in rows}
            types = {column: kind for column, _, kind in rows}
            if types.get("id") not in ("text", "bigint") or "tokens" not in types:
                raise ValueError(
                    f"there is no table {name!r} with columns id (text or bigint) and tokens; see LemurTable.create"
                )
            kept = self._execute(
                sql.SQL("SELECT token_dim, {} FROM {}").format(sql.SQL("encoder" if encoder is None else "NULL"), self._beside)
            ).fetchall()
            if len(kept) != 1:
                raise ValueError(f"{name + '_lemur'!r} must have one row, which LemurTable.create writes, and has {len(kept)}")
            token_dim, stored = kept[0]
            oids = dict(
                self._execute(
                    "SELECT typname, oid FROM pg_type WHERE oid IN ('vector'::regtype, 'halfvec'::regtype)"
                ).fetchall()
            )
        self._lemur_type = types.get("lemur", "").partition("(")[0]
        self.form = wire.TokenForm(types["tokens"].partition("(")[0], token_dim, oids)
        if encoder is not None:
            check_encoder(encoder)
        encoder = encoder if stored is None else LemurEncoder.from_bytes(stored)
        how: dict[str, Any] = {"integer_ids": types["id"] == "bigint", "stored_as": self.form.stored_as}
        super().__init__(encoder, token_dim=token_dim, **how)
        expected = None if self.encoder is None else f"{self._lemur_type}({self.encoder.dim})"
        if self.encoder is not None and (self.encoder.token_dim != self.token_dim or types.get("lemur") != expected):
            raise ValueError(
                f"{name!r} has tokens of dim {self.token_dim} and column lemur of type {types.get('lemur')}; it is not a table "
                f"of {self.encoder!r}"
            )
        self._dumpers = wire.dumpers(self._columns)
        if encoder is not None and stored is None:
            with self._reading():
                asked = sql.SQL("SELECT lemur FROM {} WHERE lemur IS NOT NULL LIMIT 10").format(self._table)
                some = [wire.vector_of(row[0], self._lemur_type) for row in self._execute(asked).fetchall()]
            check_maker(encoder, some, f"table {name!r}")

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
        definition.check_name(name)
        definition.check_vector(vector)
        dim = validate.positive_int(token_dim if encoder is None else encoder.token_dim, "token_dim")
        columns = definition.columns(schema, encoder, dim, tokens, vector)
        beside = named(f"{name}_lemur")
        with _writing(connection):
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            connection.execute(sql.SQL("CREATE TABLE {} ({})").format(named(name), columns), ())
            connection.execute(
                sql.SQL("CREATE TABLE {} (token_dim integer NOT NULL, encoder bytea STORAGE EXTERNAL)").format(beside), ()
            )
            connection.execute(
                sql.SQL("INSERT INTO {} VALUES (%s, %b)").format(beside),
                [dim, None if encoder is None else encoder.to_bytes()],
            )
        return cls(connection, name, encoder)

    @classmethod
    def fit(
        cls,
        connection: psycopg.Connection[Any],
        name: str,
        queries: Any,
        *,
        num_documents: int = 10_000,
        vector: str = "halfvec",
        **how: Any,
    ) -> LemurTable:
        """Learn from a table's tokens, and write the vectors of all its documents and the encoder, in the place of others.

        The column ``lemur`` is made anew, and its index goes with it: call :meth:`create_index` after. The table is locked
        while vectors are written, not while it learns.

        Args:
            connection, name: as for the class.
            queries: to learn from, as for :meth:`lemur_ann.LemurIndex.fit`.
            num_documents: size of the sample to learn from.
            vector: as for :meth:`create`.
            **how: as for :meth:`lemur_ann.LemurEncoder.fit`.

        Raises:
            ValueError: the table is empty, or has a column ``lemur`` of the caller's own, or bad arguments.
        """
        definition.check_vector(vector)
        table = cls(connection, name)
        if table.encoder is None and "lemur" in table._columns:
            raise ValueError(f"{name!r} has a column 'lemur' that no LemurTable wrote: rename it, or drop it yourself")
        some = sql.SQL("SELECT id, {} FROM {} ORDER BY hashtext(id::text) LIMIT {}").format(
            table._tokens_sent, table._table, sql.Literal(validate.positive_int(num_documents, "num_documents"))
        )
        rows = table.read(some)
        encoder = learned([table.form.unpack([row[1] for row in rows])] if rows else [], queries, how)
        with _writing(connection):
            connection.execute(
                sql.SQL("ALTER TABLE {0} DROP COLUMN IF EXISTS lemur, ADD COLUMN lemur {1}({2})").format(
                    table._table, sql.SQL(vector), sql.Literal(encoder.dim)
                ),
                (),
            )
            connection.execute(sql.SQL("UPDATE {} SET encoder = %b").format(table._beside), [encoder.to_bytes()])
            table = cls(connection, name, encoder)
            table._encode_all()
        return table

    def __len__(self) -> int:
        with self._reading():
            return int(self._execute(sql.SQL("SELECT count(*) FROM {}").format(self._table)).fetchall()[0][0])

    def __repr__(self) -> str:
        return f"<LemurTable {self.name!r} of tokens of dim {self.token_dim}, {self.encoder!r}>"

    def delete(self, ids: Any = None, *, filter: str | sql.Composable | None = None, params: Any = None) -> int:
        """Delete documents, by ids (those that are not there are passed over) or by a filter; returns how many went.

        Args:
            ids: one or several.
            filter, params: as for :meth:`search`.

        Raises:
            TypeError: neither or both are given, or ids of another kind than the table's.
            ValueError: params without a filter.
        """
        where = self._where(filter, params)
        return self._delete(ids, None if filter is None else where)

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
            named(f"{self.name}_lemur_hnsw"),
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
        offsets: Any = None,
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
            offsets: int (num_queries + 1,), with a flat matrix only.
            ef_search: of pgvector, up to 1000; None means twice num_candidates, and no more than that.
            iterative_scan: of pgvector: "relaxed_order", "strict_order" or "off"; it goes on where a filter leaves too few.
            max_scan_tuples: where that gives up; None leaves the session's setting. Where it leaves fewer than num_candidates,
                the search is made again without the index, so that nothing that passes is missed.
            num_threads: of encoding and the kernel; None means all cores.

        Returns:
            :class:`lemur_ann.Hits`, or a list of them for a batch: fewer than k only where fewer pass.

        Raises:
            ValueError, TypeError: bad queries or settings.
            psycopg.Error: what Postgres says of the filter.
        """
        self._check_rerank(rerank)
        chosen = _chosen(ef_search, iterative_scan, max_scan_tuples)
        where = self._where(filter, params)
        if self.encoder is None or num_candidates is None:
            k, threads = validate.positive_int(k, "k"), validate.num_threads(num_threads)
            asked = queries_of(opened(query_tokens), self.token_dim, offsets)
            batch = asked.batch.as_float32
            return asked.answered([self._all(batch.matrix(i), where, k, rerank, threads) for i in range(len(batch))])
        how = {"where": where, "rerank": rerank, "chosen": chosen}
        return self._search(query_tokens, k, num_candidates, offsets=offsets, num_threads=num_threads, **how)

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
        if self.encoder is None:
            raise ValueError(f"{self.name!r} has no vectors yet: call LemurTable.fit")
        self._check_rerank(rerank)
        where = self._where(filter, params)
        how = (k, text_column, config, num_candidates, where, rerank, rrf_k, num_threads)
        return hybrid.search(self, query_tokens, query_text, *how)

    # ---------------------------------------------------------------- statements

    @contextmanager
    def _reading(self, settings: Mapping[str, str] | None = None) -> Iterator[None]:
        """A transaction, or a savepoint in the caller's, that is rolled back: so settings end with it, and locks."""
        with self.connection.transaction(force_rollback=True):
            if settings:
                calls = sql.SQL(", ").join([sql.SQL("set_config(%s, %s, true)")] * len(settings))
                self._execute(sql.SQL("SELECT {}").format(calls), [part for item in settings.items() for part in item])
            yield

    def read(self, statement: Any, values: Sequence[Any] = (), settings: Mapping[str, str] | None = None) -> list[Any]:
        """The rows of a statement that changes nothing."""
        with self._reading(settings):
            rows: list[Any] = self._execute(statement, values).fetchall()
        return rows

    def _execute(self, statement: Any, values: Sequence[Any] = (), *, name: str = "") -> Any:
        """Run it on a cursor of our own: binary, tuples whatever the connection's factories are, and planned every time."""
        if name:
            cursor: Any = psycopg.ServerCursor(self.connection, name, row_factory=tuple_row)
        else:
            cursor = psycopg.Cursor(self.connection, row_factory=tuple_row)
        wire.register(cursor, self._dumpers)
        if name:
            return cursor.execute(statement, values, binary=True)
        return cursor.execute(statement, values, binary=True, prepare=False)

    def _where(self, filter: str | sql.Composable | None, params: Any) -> sql.Composable:
        """The filter with its values bound, quoted by psycopg."""
        filter = self._filter(filter, deletes=True)  # an empty one is none
        if filter is None:
            if params is not None:
                raise ValueError("params come with a filter")
            return sql.SQL("")
        if isinstance(params, (str, bytes)):
            raise TypeError(f"params must be a list of values, or a dict by their names, got {type(params).__name__}")
        bound = psycopg.ClientCursor(self.connection).mogrify(filter, params)  # type: ignore[arg-type,unused-ignore]
        return sql.SQL(" WHERE ({}\n)").format(sql.SQL(bound.replace("%", "%%")))  # type: ignore[arg-type,unused-ignore]

    def _candidates(self, wanted: Wanted, *, where: sql.Composable, rerank: str, chosen: dict[str, str]) -> Found:
        candidates, values = self.nearest(wanted.count, where, wanted.vector)
        statement = sql.SQL(
            "WITH candidates AS MATERIALIZED ({}) SELECT id, {}, (SELECT count(*) FROM candidates) FROM candidates"
        ).format(candidates, self.ranked(rerank))
        if rerank == "engine":
            statement += sql.SQL(" ORDER BY 2 DESC LIMIT {}").format(sql.Literal(wanted.k))
        settings = WITHOUT_INDEX if wanted.too_few is not None else self.settings(wanted.count, chosen)
        rows = self.read(statement, values + self.ranked_values(rerank, wanted.query), settings)
        ids, found = [row[0] for row in rows], [row[1] for row in rows]
        if not rows:
            return Found([])
        if rerank == "engine":
            return Found(ids, scores=np.array(found, np.float32), count=rows[0][2])
        return Found(ids, *self.form.unpack(found))

    def nearest(self, num: int, where: sql.Composable, vector: Any) -> tuple[sql.Composed, list[Any]]:
        """The statement that finds candidates, and its values."""
        statement = sql.SQL("SELECT id, tokens FROM {}{} ORDER BY lemur <#> %s LIMIT {}").format(
            self._table, where, sql.Literal(num)
        )
        return statement, [wire.vector_bytes(vector, self._lemur_type)]

    def settings(self, num: int, chosen: dict[str, str]) -> dict[str, str]:
        """How pgvector looks for so many candidates."""
        return {"hnsw.ef_search": str(min(2 * num, LARGEST_EF_SEARCH)), "hnsw.iterative_scan": "relaxed_order", **chosen}

    @property
    def _tokens_sent(self) -> sql.SQL:
        return sql.SQL("tokens" if self.form.kind == "bytea" else "array_send(tokens)")

    def ranked(self, rerank: str) -> sql.SQL:
        """A document's tokens, or its MaxSim; WITH ORDINALITY numbers the query's tokens, of which two may be equal."""
        if rerank == "kernel":
            return self._tokens_sent
        return sql.SQL(
            "(SELECT sum(best) FROM (SELECT max(-(token <#> wanted)) AS best FROM unnest(tokens) AS token,"
            " unnest(%s) WITH ORDINALITY AS query(wanted, place) GROUP BY place) AS maxima)"
        )

    def ranked_values(self, rerank: str, query: npt.NDArray[Any]) -> list[Any]:
        """The values of :meth:`ranked`."""
        return [self.form.pack(query)] if rerank == "engine" else []

    def _all(self, query: npt.NDArray[Any], where: sql.Composable, k: int, rerank: str, threads: int) -> Hits:
        """Every document that passes, through a cursor on the server: no more than a few of them are here at a time."""
        statement = sql.SQL("SELECT id, {} FROM {}{}").format(self.ranked(rerank), self._table, where)
        values = self.ranked_values(rerank, query)
        ids: list[Any] = []
        scores = [np.empty(0, np.float32)]
        with self._reading():
            cursor = self._execute(statement, values, name="lemur_ann")
            while rows := cursor.fetchmany(ROWS_PER_FETCH):
                ids += [row[0] for row in rows]
                found = [row[1] for row in rows]
                engines = np.array(found, np.float32) if rerank == "engine" else None
                scores.append(
                    maxsim.scores(query, *self.form.unpack(found), num_threads=threads) if engines is None else engines
                )
            cursor.close()
        return self.best(ids, np.concatenate(scores), k)

    def best(self, ids: list[Any], scores: npt.NDArray[np.float32], k: int) -> Hits:
        """The k of highest score."""
        order = np.argsort(-scores, kind="stable")[:k]
        return Hits(np.array([ids[i] for i in order], np.int64 if self._integer_ids else object), scores[order])

    # ---------------------------------------------------------------- rows

    def _written(self, parts: Iterator[Part], new: bool) -> None:
        try:
            with _writing(self.connection):
                super()._written(parts, new)
        except psycopg.errors.UniqueViolation as error:  # a writer that was quicker than our question which ids are there
            if error.diag.constraint_name != f"{self.name}_pkey":
                raise
            raise ValueError(f"{error.diag.message_detail} Another writer has written it; upsert replaces") from error

    def _write(self, part: Part, *, new: bool) -> None:
        if new:
            self._copy(self._table, part)
            return
        columns = self._columns_of(part)
        names = sql.SQL(", ").join(map(named, columns))
        changes = sql.SQL(", ").join(sql.SQL("{0} = EXCLUDED.{0}").format(named(c)) for c in columns if c != "id")
        there = _temporary()
        self._execute(sql.SQL("CREATE TABLE {} (LIKE {})").format(there, self._table))
        self._copy(there, part)
        self._execute(
            sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {} ON CONFLICT (id) DO UPDATE SET {}").format(
                self._table, names, names, there, changes
            )
        )
        self._execute(sql.SQL("DROP TABLE {}").format(there))

    def _fields(self, batch: DocumentBatch, *, new: bool) -> pa.Table:
        """Ids and the other columns, which the table must have."""
        fields = pa.table(
            {"id": ids_in(batch)} if batch.metadata is None else {"id": ids_in(batch), **_columns(batch.metadata)}
        )
        unknown = [name for name in fields.column_names if name not in self._columns]
        if unknown:
            raise ValueError(f"{self.name!r} has no column {unknown[0]!r}; it has {list(self._columns)}")
        return fields

    def _encoded(self, tokens: Tokens, offsets: Offsets) -> npt.NDArray[np.float32]:
        return np.empty((len(offsets) - 1, 0), np.float32) if self.encoder is None else super()._encoded(tokens, offsets)

    def _there(self, ids: list[Any]) -> list[Any]:
        asked = sql.SQL("SELECT id FROM {} WHERE id = ANY(%s)").format(self._table)
        return [row[0] for row in self._execute(asked, [ids]).fetchall()]

    def _remove(self, ids: list[Any] | None, filter: Any) -> int:
        where = filter if ids is None else self._where("id = ANY(%s)", [ids])
        with _writing(self.connection):
            return int(self._execute(sql.SQL("DELETE FROM {}{}").format(self._table, where), []).rowcount)

    def _columns_of(self, part: Part) -> list[str]:
        return [*part.fields.column_names, "tokens", *([] if self.encoder is None else ["lemur"])]

    def _copy(self, table: sql.Composable, part: Part) -> None:
        values = [column.to_pylist() for column in part.fields.columns]
        values.append([self.form.pack(matrix) for matrix in part.matrices])
        if self.encoder is not None:
            values.append([wire.vector_bytes(vector, self._lemur_type) for vector in part.vectors])
        self._copy_rows(table, self._columns_of(part), zip(*values, strict=True))

    def _copy_rows(self, table: sql.Composable, columns: list[str], rows: Any) -> None:
        """Tokens and vectors are in their binary form, and go as they are, which is what "bytea" says."""
        statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(table, sql.SQL(", ").join(map(named, columns)))
        plain = statement.as_string(self.connection).replace("%%", "%")  # which is given no values
        with psycopg.Cursor(self.connection).copy(plain.encode()) as copy:
            copy.set_types(["bytea" if c in ("tokens", "lemur") else self._columns[c] for c in columns])
            for row in rows:
                copy.write_row(row)

    def _encode_all(self) -> None:
        """Write the vectors of all documents, batch by batch."""
        assert self.encoder is not None
        new = _temporary()
        self._execute(sql.SQL("CREATE TABLE {} AS SELECT id, lemur FROM {} LIMIT 0").format(new, self._table))
        cursor = self._execute(sql.SQL("SELECT id, {} FROM {}").format(self._tokens_sent, self._table), name="lemur_ann")
        while rows := cursor.fetchmany(ROWS_PER_FETCH):
            tokens, offsets = self.form.unpack([row[1] for row in rows])
            vectors = self.encoder.encode_documents(tokens, offsets=offsets)
            packed = (wire.vector_bytes(vector, self._lemur_type) for vector in vectors)
            self._copy_rows(new, ["id", "lemur"], zip((row[0] for row in rows), packed, strict=True))
        cursor.close()
        self._execute(
            sql.SQL("UPDATE {0} SET lemur = new.lemur FROM {1} AS new WHERE {0}.id = new.id").format(self._table, new)
        )
        self._execute(sql.SQL("DROP TABLE {}").format(new))

    # ---------------------------------------------------------------- checks

    def _check_rerank(self, rerank: str) -> None:
        if rerank not in ("kernel", "engine"):
            raise ValueError(f'rerank must be "kernel" or "engine", got {rerank!r}')
        if rerank == "engine" and self.form.kind == "bytea":
            raise ValueError('Postgres cannot rank tokens of type bytea: make the table with tokens="halfvec" or "vector"')


def _temporary() -> sql.Identifier:
    """The name of a temporary table, which no other has."""
    return sql.Identifier("pg_temp", f"lemur_new_{uuid.uuid4().hex[:12]}")


@contextmanager
def _writing(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """All or nothing, and no commit but where the connection commits by itself."""
    if not connection.autocommit:
        connection.execute("SELECT")  # begins the caller's transaction, so that what follows is a savepoint in it
    with connection.transaction():
        yield


def _chosen(ef_search: int | None, iterative_scan: str, max_scan_tuples: int | None) -> dict[str, str]:
    """The caller's settings of pgvector, checked."""
    if ef_search is not None and validate.positive_int(ef_search, "ef_search") > LARGEST_EF_SEARCH:
        raise ValueError(f"ef_search must be at most {LARGEST_EF_SEARCH}, got {ef_search}")
    if iterative_scan not in ("off", "relaxed_order", "strict_order"):
        raise ValueError(f'iterative_scan must be "off", "relaxed_order" or "strict_order", got {iterative_scan!r}')
    settings = {"hnsw.iterative_scan": iterative_scan}
    if ef_search is not None:
        settings["hnsw.ef_search"] = str(ef_search)
    if max_scan_tuples is not None:
        settings["hnsw.max_scan_tuples"] = str(validate.positive_int(max_scan_tuples, "max_scan_tuples"))
    return settings


def _columns(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return dict(zip(table.column_names, table.columns, strict=True))
