"""A real Postgres server of our own, on a Unix socket: two-stage search against exact MaxSim, and the caller's transactions."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow as pa
import pytest

psycopg = pytest.importorskip("psycopg", reason="pip install lemur_ann[pgvector]")

from lemur_ann.adapters.pgvector import LemurTable  # noqa: E402
from psycopg import sql  # noqa: E402
from psycopg.rows import dict_row  # noqa: E402

from lemur_ann import LemurEncoder, maxsim  # noqa: E402
from lemur_ann.documents.inputs import tokens_from_arrow  # noqa: E402


@pytest.fixture(scope="module")
def server(postgres_server):
    return postgres_server


@pytest.fixture
def connection(server):
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        yield connection


@pytest.fixture
def caller(server):
    """Without autocommit, as psycopg connects where nothing is said."""
    with psycopg.connect(server.get_uri()) as connection:
        yield connection
        connection.rollback()


@pytest.fixture(scope="module")
def encoder(demo_data):
    return LemurEncoder.fit(
        demo_data.documents, demo_data.training_queries, epochs=0, num_features=512, num_sample_tokens=1024, rank=127
    )


@pytest.fixture(scope="module")
def documents(demo_data):
    years = pa.array([1990 + i % 30 for i in range(600)], pa.int32())
    return demo_data.documents.append_column("year", years)


@pytest.fixture(scope="module")
def queries(demo_data):
    return [np.array(tokens.values.to_pylist(), np.float32) for tokens in demo_data.queries.column("tokens")]


@pytest.fixture(scope="module")
def exact(documents, queries):
    """MaxSim of every document: query -> {id: score}."""
    tokens, offsets = tokens_from_arrow(documents.column("tokens").combine_chunks(), "tokens")
    ids = documents.column("id").to_pylist()
    return [dict(zip(ids, maxsim.scores(query, tokens, offsets).tolist(), strict=True)) for query in queries]


def best(scores, k=10, among=None):
    return sorted((i for i in scores if among is None or i in among), key=lambda i: -scores[i])[:k]


def recall(found, exact, k=10):
    return np.mean([len(set(hits.ids.tolist()) & set(best(scores, k))) / k for hits, scores in zip(found, exact, strict=True)])


def is_scored(hits, scores):
    np.testing.assert_allclose(hits.scores, [scores[i] for i in hits.ids.tolist()], rtol=1e-3)
    assert hits.scores.dtype == np.float32
    assert np.all(np.diff(hits.scores) <= 0)


@pytest.fixture(scope="module")
def tables(server, documents, encoder):
    """By type of tokens; tests that write make their own."""
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        tables = {}
        for tokens, vector in (("bytea", "halfvec"), ("halfvec", "vector"), ("vector", "halfvec")):
            table = LemurTable.create(connection, f"demo {tokens}", encoder, documents.schema, tokens=tokens, vector=vector)
            table.add(documents)
            table.create_index()
            tables[tokens] = table
        yield tables


@pytest.mark.parametrize(
    ("tokens", "rerank"),
    [("bytea", "kernel"), ("halfvec", "kernel"), ("halfvec", "engine"), ("vector", "kernel"), ("vector", "engine")],
)
def test_two_stages(tables, queries, exact, tokens, rerank):
    table = tables[tokens]
    assert len(table) == 600
    found = table.search(queries, num_candidates=120, rerank=rerank)
    assert recall(found, exact) >= 0.95
    for hits, scores in zip(found, exact, strict=True):
        assert len(hits) == 10
        is_scored(hits, scores)
    alone = table.search(queries[0], num_candidates=120, rerank=rerank)
    assert alone == found[0]
    np.testing.assert_allclose(
        table.search(queries[0], k=600, num_candidates=None, rerank=rerank).scores,
        sorted(exact[0].values(), reverse=True),
        rtol=1e-3,
    )


def test_through_the_index(tables, queries, exact):
    """600 documents Postgres would rather read through, so it is told not to."""
    table = tables["bytea"]
    with table.connection.transaction(force_rollback=True):
        table.connection.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")
        plan = table.connection.execute(
            sql.SQL("EXPLAIN SELECT id FROM {0} ORDER BY lemur <#> (SELECT lemur FROM {0} LIMIT 1) LIMIT 5").format(
                sql.Identifier(table.name)
            )
        ).fetchall()
        assert "demo bytea_lemur_hnsw" in str(plan)
        assert recall(table.search(queries, num_candidates=120), exact) >= 0.95
        some = table.search(queries[0], k=20, num_candidates=20, filter="year = 2000", max_scan_tuples=1, ef_search=1)
        years = table.connection.execute(
            sql.SQL("SELECT id FROM {} WHERE year = 2000").format(sql.Identifier(table.name))
        ).fetchall()
        assert some.ids.tolist() == best(exact[0], 20, {row[0] for row in years})
        assert table.connection.execute("SHOW enable_indexscan").fetchone() == ("on",)


def test_random_clusters(connection, rng):
    """3,000 documents around 60 centres, integer ids, and learning from the table."""
    centres = rng.normal(size=(60, 32))

    def made(count, low, high):
        matrices = []
        for _ in range(count):
            around = centres[rng.choice(60, 3)][rng.integers(3, size=rng.integers(low, high))]
            matrix = around + 0.5 * rng.normal(size=around.shape)
            matrices.append((matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32))
        return matrices

    documents, training, queries = made(3000, 8, 20), made(500, 8, 9), made(40, 8, 9)
    tokens, offsets = np.concatenate(documents), np.cumsum([0, *map(len, documents)])
    exact = [dict(enumerate(maxsim.scores(query, tokens, offsets).tolist())) for query in queries]
    schema = pa.schema({"id": pa.int64()})
    table = LemurTable.create(connection, "clusters", None, schema, token_dim=32, tokens="vector")
    assert len(table.search(queries[0])) == 0
    table.add(documents, ids=range(3000))
    assert recall(table.search(queries[:5]), exact[:5]) == 1  # every document, nothing being learned
    with pytest.raises(ValueError, match=r"LemurTable\.fit"):
        table.create_index()
    table = LemurTable.fit(
        connection, "clusters", training, num_documents=1000, epochs=0, num_features=512, num_sample_tokens=1024, rank=127
    )
    table.create_index()
    found = table.search(queries, num_candidates=500)
    assert found[0].ids.dtype == np.int64
    assert recall(found, exact) >= 0.95
    for hits, scores in zip(found, exact, strict=True):
        is_scored(hits, scores)
    again = LemurTable.fit(
        connection,
        "clusters",
        training,
        num_documents=100,
        epochs=0,
        num_features=64,
        num_sample_tokens=512,
        rank=31,
        vector="vector",
    )
    assert again.encoder.dim == 32
    assert recall(LemurTable(connection, "clusters").search(queries, num_candidates=1500), exact) >= 0.95


def test_filters(tables, queries, exact, documents):
    table = tables["halfvec"]
    year = dict(zip(documents.column("id").to_pylist(), documents.column("year").to_pylist(), strict=True))
    new = {i for i, y in year.items() if y > 2010}
    for how in (
        {"filter": "year > %s", "params": [2010]},
        {"filter": "year > %(least)s", "params": {"least": 2010}},
        {"filter": sql.SQL("{} > {}").format(sql.Identifier("year"), sql.Literal(2010))},
        {"filter": "year > 2010 AND text LIKE '%' -- all"},
    ):
        for rerank in ("kernel", "engine"):
            hits = table.search(queries[3], num_candidates=150, rerank=rerank, **how)
            assert len(hits) == 10
            assert set(hits.ids) <= new
            assert len(set(hits.ids) & set(best(exact[3], 10, new))) >= 9
    few = table.search(queries[3], filter="id = ANY(%s)", params=[best(exact[3], 3)])
    assert few.ids.tolist() == best(exact[3], 3)
    text = "' OR true; DROP TABLE documents; --"
    assert len(table.search(queries[3], filter="text = %s", params=[text])) == 0
    with pytest.raises(psycopg.errors.UndefinedColumn):
        table.search(queries[3], filter="colour = 1")
    with pytest.raises(ValueError, match="params come with a filter"):
        table.search(queries[3], params=[1])


def test_hybrid(tables, queries, demo_data):
    query, text = queries[5], demo_data.queries.column("text")[5].as_py()
    for tokens, rerank in (("bytea", "kernel"), ("halfvec", "engine")):
        table = tables[tokens]
        near = table.search(query, k=50, num_candidates=50, rerank=rerank).ids.tolist()
        words = table.connection.execute(
            sql.SQL(
                "SELECT id FROM {}, (SELECT replace(plainto_tsquery('english', %s)::text, '&', '|')::tsquery AS q) AS x"
                " WHERE to_tsvector('english', text) @@ q ORDER BY ts_rank(to_tsvector('english', text), q) DESC, id LIMIT 50"
            ).format(sql.Identifier(table.name)),
            [text],
        ).fetchall()
        fused = {}
        for ranking in (near, [row[0] for row in words]):
            for place, doc_id in enumerate(ranking, 1):
                fused[doc_id] = fused.get(doc_id, 0) + 1 / (60 + place)
        hits = table.hybrid_search(query, text, 10, num_candidates=50, rerank=rerank)
        np.testing.assert_allclose(hits.scores, sorted(fused.values(), reverse=True)[:10], rtol=1e-5)
        assert all(abs(fused[doc_id] - score) < 1e-6 for doc_id, score in hits)
    assert len(words) > 5
    only = tables["bytea"].hybrid_search(query, text, filter="year = %s", params=[2000])
    assert 0 < len(only) <= 20
    assert len(tables["bytea"].hybrid_search(query, "", 10)) == 10  # no words: MaxSim's list alone


def test_upsert_and_delete(connection, encoder, documents, queries, exact):
    name = 'odd "name"; drop'
    table = LemurTable.create(connection, name, encoder, documents.schema)
    table.add(documents[:300])
    table.upsert(documents[200:])
    assert len(table) == 600
    table.create_index()
    first = best(exact[0], 1)[0]
    assert table.search(queries[0]).ids[0] == first
    changed = documents.filter(pa.compute.equal(documents.column("id"), first)).set_column(
        documents.column_names.index("tokens"),
        "tokens",
        pa.array([[np.full(128, -0.01, np.float16)]], documents.schema.field("tokens").type),
    )
    table.upsert(changed.drop_columns(["text"]))
    assert first not in table.search(queries[0]).ids
    text = connection.execute(sql.SQL("SELECT text FROM {} WHERE id = %s").format(sql.Identifier(name)), [first]).fetchone()
    assert text == (changed.column("text")[0].as_py(),)
    second = best(exact[0], 2)[1]
    assert table.delete([second, "not there", "'; DROP TABLE x; --"]) == 1
    assert second not in table.search(queries[0]).ids
    assert table.delete(filter="year >= %s", params=[2000]) == len(table.search(queries[0], k=600, filter="year < 0")) + (
        599 - len(table)
    )
    assert 0 < len(table) < 599
    with pytest.raises(TypeError, match="delete takes either ids or filter=, one of them"):
        table.delete()
    with pytest.raises(TypeError, match="ids must be strings, got int64"):
        table.delete([7])


def test_the_callers_transaction(caller, server, encoder, documents, queries):
    table = LemurTable.create(caller, "uncommitted", encoder, documents.schema)
    caller.commit()
    table.add(documents[:50])
    assert len(table.search(queries[0], k=50)) == 50
    caller.execute("SET LOCAL hnsw.ef_search = 77")
    table.search(queries[0])
    assert caller.execute("SHOW hnsw.ef_search").fetchone() == ("77",)
    caller.rollback()
    assert len(table) == 0
    with pytest.raises(ValueError, match="is repeated, expected each id once"):
        table.add(pa.concat_tables([documents[:5], documents[:1]]))
    table.add(documents[:7])  # the error undid its own statement and left the transaction as it was
    caller.commit()
    with psycopg.connect(server.get_uri(), row_factory=dict_row) as other:  # another client's own habits
        assert len(LemurTable(other, "uncommitted")) == 7
        assert len(LemurTable(other, "uncommitted", encoder).search(queries[0])) == 7
    with caller.transaction(force_rollback=True):
        table.delete(filter="true")
        assert len(table) == 0
    assert len(table) == 7
    assert caller.info.transaction_status == psycopg.pq.TransactionStatus.IDLE  # reading leaves no transaction open


def test_another_process(tables, server, queries, tmp_path):
    np.save(tmp_path / "query.npy", queries[0])
    program = (
        "import sys, numpy, psycopg\n"
        "from lemur_ann.adapters.pgvector import LemurTable\n"
        "with psycopg.connect(sys.argv[1]) as connection:\n"
        "    for doc_id, score in LemurTable(connection, 'demo bytea').search(numpy.load(sys.argv[2]), num_candidates=60):\n"
        "        print(doc_id, score)\n"
    )
    command = [sys.executable, "-I", "-c", program, server.get_uri(), str(tmp_path / "query.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    here = tables["bytea"].search(queries[0], num_candidates=60)
    assert done.stdout.splitlines() == [f"{doc_id} {score}" for doc_id, score in here]


def test_column_types(connection, rng):
    columns = {
        "id": pa.array(["a", "b"]),
        "tokens": pa.array([[[1.0, 0.0]], [[0.0, 1.0], [0.5, 0.5]]], pa.list_(pa.list_(pa.float32(), 2))),
        "flag": pa.array([True, None]),
        "size": pa.array([2.5, 3.5]),
        "tags": pa.array([["x", "y"], []], pa.list_(pa.string())),
        "day": pa.array([0, 1], pa.date32()),
        "when": pa.array([0, 1], pa.timestamp("us", "UTC")),
        "kind": pa.array(["p", "q"]).dictionary_encode(),
        "raw": pa.array([b"\0", b"\1"]),
    }
    documents = pa.table(columns)
    table = LemurTable.create(connection, "types", None, documents.schema, token_dim=2)
    table.add(documents)
    others = [name for name in columns if name != "tokens"]
    rows = connection.execute(
        sql.SQL("SELECT {} FROM types").format(sql.SQL(", ").join(map(sql.Identifier, others)))
    ).fetchall()
    assert rows == [tuple(row.values()) for row in documents.select(others).to_pylist()]
    query = np.array([[0, 1], [1, 0]], np.float32)
    assert list(table.search(query, filter="'y' = ANY(tags)")) == [("a", 1.0)]
    assert list(table.search(query)) == [("b", 1.5), ("a", 1.0)]


def test_errors(connection, tables, encoder, documents, queries):
    table = tables["bytea"]
    with pytest.raises(ValueError, match="no table 'nowhere'"):
        LemurTable(connection, "nowhere")
    with pytest.raises(psycopg.errors.DuplicateTable):
        LemurTable.create(connection, "demo bytea", encoder, documents.schema)
    with pytest.raises(ValueError, match="1 to 52 bytes"):
        LemurTable.create(connection, "x" * 53, encoder, documents.schema)
    with pytest.raises(TypeError, match="no counterpart"):
        LemurTable.create(connection, "structs", encoder, pa.schema({"id": pa.int64(), "s": pa.struct({"x": pa.int64()})}))
    with pytest.raises(ValueError, match="column id"):
        LemurTable.create(connection, "no_id", encoder, pa.schema({"text": pa.string()}))
    with pytest.raises(ValueError, match="dim"):
        table.add([np.ones((2, 4), np.float32)], ids=["new"])
    with pytest.raises(ValueError, match="documents have no ids"):
        table.add([np.ones((2, 128), np.float32)])
    with pytest.raises(TypeError, match="ids must be strings, got int64"):
        table.add([np.ones((2, 128), np.float32)], ids=[1])
    with pytest.raises(ValueError, match="no column 'colour'"):
        table.upsert(documents[:1].append_column("colour", pa.array(["red"])))
    with pytest.raises(ValueError, match="stored as float16, and a value is beyond its range, 65504"):
        table.add([np.full((1, 128), 1e6, np.float32)], ids=["large"])
    assert len(table) == 600
    with pytest.raises(ValueError, match="dim"):
        table.search(np.ones((2, 4), np.float32))
    with pytest.raises(ValueError, match="rerank must be"):
        table.search(queries[0], rerank="other")
    with pytest.raises(ValueError, match="cannot rank tokens of type bytea"):
        table.search(queries[0], rerank="engine")
    with pytest.raises(ValueError, match="at most 1000"):
        table.search(queries[0], ef_search=2000)
    with pytest.raises(ValueError, match="iterative_scan"):
        table.search(queries[0], iterative_scan="on")
    with pytest.raises(ValueError, match="at least 1"):
        table.search(queries[0], k=0)
    small = LemurEncoder.fit(
        [np.eye(4, dtype=np.float32)] * 20, [np.eye(4, dtype=np.float32)] * 20, epochs=0, rank=3, num_features=16
    )
    with pytest.raises(ValueError, match="not a table of"):
        LemurTable(connection, "demo bytea", small)


def test_two_writers_at_once(connection, caller, server, encoder, documents):
    """A writer that has not committed holds another back, who then is told that an id is there, and writes nothing."""
    table = LemurTable.create(connection, "two writers", encoder, documents.schema)
    first = LemurTable(caller, "two writers", encoder)
    first.add(documents[3:4])
    failed = []

    def add_more() -> None:
        try:
            table.add(documents[:10])
        except ValueError as error:
            failed.append(str(error))

    second = threading.Thread(target=add_more)
    second.start()
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with psycopg.connect(server.get_uri(), autocommit=True) as watcher:
        for _ in range(600):
            if watcher.execute(waiting).fetchone() == (1,):
                break
            time.sleep(0.05)
    caller.commit()
    second.join(60)
    assert len(failed) == 1
    assert documents.column("id")[3].as_py() in failed[0]
    assert "upsert replaces" in failed[0]
    assert len(table) == 1
    table.upsert(documents[:10])
    assert len(table) == 10


@pytest.mark.parametrize("name", ["100%", "a%b", "%s", "%(x)s", 'q"x', "it's", "a;b", "a\nb", "select", "{}", "../x", "\u00fc"])
def test_names_of_any_characters(connection, encoder, documents, queries, name):
    """Of tables, and of columns, in every statement there is."""
    rows = documents.select(["id", "tokens"]).append_column(name, documents.column("id"))[:50]
    made = LemurTable.create(connection, name, encoder, rows.schema)
    made.add(rows[:40])
    made.upsert(rows[30:])
    made.create_index()
    again = LemurTable(connection, name)
    assert len(again) == 50
    assert len(again.search(queries[0], 50)) == 50
    assert len(again.search(queries[0], 50, num_candidates=None, filter="id <> %s", params=["100%"])) == 50
    assert len(again.hybrid_search(queries[0], "a", 5, text_column=name)) == 5
    assert again.delete(rows.column("id")[0].as_py()) == 1
    learned = LemurTable.fit(connection, name, queries, num_features=64, epochs=0, num_sample_tokens=256, rank=15)
    assert len(learned.search(queries[0], 100)) == 49


def test_what_is_the_callers_own_stays(connection, encoder, documents, queries):
    rows = documents.select(["id", "tokens"])[:50]
    connection.execute("CREATE TEMP TABLE lemur_new (thesis text)")
    connection.execute("INSERT INTO lemur_new VALUES ('ten years of work')")
    for name in ("theirs", "beside_lemur"):
        connection.execute(sql.SQL("CREATE TABLE {} (id text, thesis text)").format(sql.Identifier(name)))
    for name in ("theirs", "beside"):
        with pytest.raises(psycopg.errors.DuplicateTable):
            LemurTable.create(connection, name, encoder, rows.schema)
    assert connection.execute("SELECT to_regclass('beside'), to_regclass('theirs_lemur')").fetchone() == (None, None)
    table = LemurTable.create(connection, "own_lemur_column", None, rows.schema, token_dim=128)
    table.add(rows)
    table.upsert(rows[:10])
    connection.execute("ALTER TABLE own_lemur_column ADD COLUMN lemur text DEFAULT 'an animal'")
    with pytest.raises(ValueError, match="has a column 'lemur' that no LemurTable wrote"):
        LemurTable.fit(connection, "own_lemur_column", queries, num_features=64, epochs=0, rank=15)
    assert connection.execute("SELECT DISTINCT lemur FROM own_lemur_column").fetchall() == [("an animal",)]
    assert connection.execute("SELECT thesis FROM lemur_new").fetchall() == [("ten years of work",)]
    connection.execute("DELETE FROM own_lemur_column_lemur")
    with pytest.raises(ValueError, match="must have one row, which LemurTable.create writes, and has 0"):
        LemurTable(connection, "own_lemur_column")


def test_names_that_postgres_would_cut_off(connection, encoder):
    for name in ("x" * 64, "nul\0", ""):
        with pytest.raises(ValueError, match="a column's name must be of 1 to 63 bytes"):
            LemurTable.create(connection, "cut", encoder, pa.schema([("id", pa.string()), (name, pa.string())]))
    table = LemurTable.create(connection, "parameters", encoder, pa.schema([("id", pa.string())]))
    with pytest.raises(TypeError, match="params must be a list of values"):
        table.search(np.ones((2, 128), np.float32), filter="id = %s", params="x")
