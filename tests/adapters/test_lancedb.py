from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("lancedb", reason="pip install lemur_ann[lancedb]")
pytest.importorskip("lance", reason="pip install lemur_ann[lancedb]")

import lancedb
from lancedb.index import HnswFlat, IvfFlat, IvfSq
from lemur_ann.adapters.lancedb import LemurTable

from lemur_ann import LemurEncoder, LemurIndex

QUICK = {"num_features": 512, "epochs": 0, "num_sample_tokens": 1024}


@pytest.fixture
def table(tmp_path, encoder, documents) -> LemurTable:
    return LemurTable.create(lancedb.connect(tmp_path), "demo", encoder, documents)


@pytest.mark.parametrize("config", [None, HnswFlat(distance_type="l2"), IvfFlat(distance_type="cosine"), "none"])
def test_finds_what_exact_search_finds(table, documents, queries, exact, config, matrices_of, recall, maxsim):
    if config != "none":
        table.create_index(config)
        assert table.table.index_stats("vector_idx").num_indexed_rows == 600
    found = table.search(queries, k=10, num_candidates=200)
    assert recall(found, exact) >= 0.95
    by_id = dict(zip(documents.column("id").to_pylist(), matrices_of(documents), strict=True))
    for query, hits in zip(queries, found, strict=True):
        assert hits.scores.dtype == np.float32
        assert np.all(np.diff(hits.scores) <= 0)
        np.testing.assert_allclose(hits.scores, [maxsim(query, by_id[doc_id]) for doc_id in hits.ids], rtol=1e-3)


def test_engine_and_kernel_agree(table, queries):
    table.create_index()
    for query in queries[:10]:
        kernel, engine = (table.search(query, k=10, rerank=rerank) for rerank in ("kernel", "engine"))
        assert kernel.ids.tolist() == engine.ids.tolist()
        np.testing.assert_allclose(kernel.scores, engine.scores, rtol=1e-5)


def test_all_documents_as_candidates_are_exact_search(table, queries, exact):
    found = table.search(queries, k=10, num_candidates=600)
    assert [hits.ids.tolist() for hits in found] == [hits.ids.tolist() for hits in exact]


def test_search_without_lemur_agrees_with_exact(table, queries, exact):
    for query, hits in list(zip(queries, exact, strict=True))[:5]:
        own = table.table.search(query.astype(np.float32), vector_column_name="tokens").distance_type("dot").limit(10)
        own = own.select(["id", "_distance"]).to_arrow()
        assert own.column("id").to_pylist() == hits.ids.tolist()
        np.testing.assert_allclose(len(query) - own.column("_distance").to_numpy(), hits.scores, rtol=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_clusters(tmp_path, dtype, recall):
    random = np.random.default_rng(3)
    centres = random.normal(size=(60, 24))

    def near(cluster: int, count: int) -> np.ndarray:
        matrix = centres[cluster] + 0.8 * random.normal(size=(count, 24))
        return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(dtype)

    matrices = [near(i % 60, int(random.integers(3, 12))) for i in range(3000)]
    training, asked = ([near(int(random.integers(60)), 5) for _ in range(count)] for count in (600, 40))
    db = lancedb.connect(tmp_path)
    encoder = LemurEncoder.fit(matrices, training, num_features=512, epochs=0, num_sample_tokens=1024)
    table = LemurTable.create(db, "clusters", encoder, matrices, ids=np.arange(3000))
    table.create_index()
    exact = LemurIndex().add(matrices).search(asked, k=10)
    found = table.search(asked, k=10, num_candidates=300)
    assert table.table.schema.field("tokens").type.value_type.value_type == pa.from_numpy_dtype(dtype)
    assert found[0].ids.dtype == np.int64
    assert recall(found, exact) >= 0.95
    again = LemurTable(lancedb.connect(tmp_path), "clusters").search(asked, k=10, num_candidates=300)
    assert again == found


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("rerank", ["kernel", "engine"])
def test_filters(table, documents, queries, indexed, rerank, recall):
    if indexed:
        table.create_index(IvfSq(distance_type="dot", num_partitions=20))
    years = dict(zip(documents.column("id").to_pylist(), documents.column("year").to_pylist(), strict=True))
    for condition, test in (("year >= 2010", lambda year: year >= 2010), ("year = 1993", lambda year: year == 1993)):
        passing = [row for row, year in enumerate(years.values()) if test(year)]
        part = LemurIndex().add(documents.take(passing)).search(queries[:8], k=10)
        found = table.search(queries[:8], k=10, filter=condition, rerank=rerank)
        assert all(test(years[doc_id]) for hits in found for doc_id in hits.ids)
        assert recall(found, part) >= 0.95
    few = table.search(queries[0], k=50, filter="year = 1993", num_candidates=10, nprobes=1, rerank=rerank)
    assert len(few) == sum(year == 1993 for year in years.values())
    assert len(table.search(queries[0], filter="year = 1", rerank=rerank)) == 0
    with pytest.raises((ValueError, RuntimeError), match="nothing_of_the_kind"):
        table.search(queries[0], filter="nothing_of_the_kind = 1")


def test_changes_are_visible_and_versions_stay(table, documents, queries, tmp_path, maxsim):
    table.create_index()
    before = table.search(queries[0], k=3)
    version = table.table.version
    best = before.ids[0]
    assert table.delete([best, "not there"]) == 1
    assert table.delete([]) == 0
    assert len(table) == 599
    assert best not in table.search(queries[0], k=3).ids

    new = pa.table({"id": ["it's new"], "tokens": pa.array([queries[0].tolist()], documents.schema.field("tokens").type)})
    table.add(new)
    hits = table.search(queries[0], k=1)
    assert hits.ids.tolist() == ["it's new"]
    assert hits.scores[0] == pytest.approx(maxsim(queries[0], queries[0]), rel=1e-3)
    assert table.table.search().where("year IS NULL").to_arrow().column("id").to_pylist() == ["it's new"]

    table.upsert([queries[1], queries[2]], ids=["it's new", "newer"])
    assert len(table) == 601
    assert table.search(queries[1], k=1).ids.tolist() == ["it's new"]
    scores = dict(table.search(queries[0], k=601, num_candidates=601))
    assert scores["it's new"] == pytest.approx(maxsim(queries[0], queries[1]), rel=1e-3)
    assert len(scores) == 601
    table.optimize()
    assert table.table.index_stats("vector_idx").num_unindexed_rows == 0
    assert table.search(queries[2], k=1).ids.tolist() == ["newer"]
    assert table.delete(["it's new"]) == 1
    assert table.delete(filter="year < 1995") > 0
    assert table.table.count_rows("year < 1995") == 0

    past = LemurTable(lancedb.connect(tmp_path), "demo", version=version)
    assert past.search(queries[0], k=3) == before
    table.table.restore(version)
    assert len(table) == 600
    assert table.search(queries[0], k=3) == before


def test_fit_adds_the_column(tmp_path, demo_data, documents, queries, exact, recall):
    db = lancedb.connect(tmp_path)
    db.create_table("demo", documents)
    with pytest.raises(ValueError, match=r"no column 'vector': LemurTable\.fit"):
        LemurTable(db, "demo")
    table = LemurTable.fit(db, "demo", demo_data.training_queries, num_documents=400, **QUICK)
    assert table.table.schema.names == [*documents.schema.names, "vector"]
    rows = table.table.to_arrow()
    assert rows.select(documents.schema.names).equals(documents)
    stored = np.stack(rows.column("vector").to_pylist())
    np.testing.assert_array_equal(stored, table.encoder.encode_documents(documents))
    table.create_index()
    first, version = table.search(queries, k=10), table.table.version
    assert recall(first, exact) >= 0.95

    again = LemurTable.fit(db, "demo", demo_data.training_queries, seed=1, rank=31, **QUICK)
    assert again.encoder.dim == 32
    assert again.table.list_indices() == []
    assert recall(again.search(queries, k=10, num_candidates=300), exact) >= 0.95
    past = LemurTable(db, "demo", version=version)  # with the encoder of then
    assert past.search(queries, k=10) == first
    again.table.restore(version)
    with pytest.raises(ValueError, match="another encoder's by now: open it again"):
        again.search(queries[0])
    assert LemurTable(db, "demo").search(queries, k=10) == first


def test_another_process_finds_the_same(table, queries, tmp_path):
    table.create_index()
    np.save(tmp_path / "query.npy", queries[0])
    program = """
import json, sys
import lancedb, numpy as np
from lemur_ann.adapters.lancedb import LemurTable
hits = LemurTable(lancedb.connect(sys.argv[1]), "demo").search(np.load(sys.argv[1] + "/query.npy"), k=10)
print(json.dumps([hits.ids.tolist(), hits.scores.tolist()]))
"""
    command = [sys.executable, "-I", "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    hits = table.search(queries[0], k=10)
    assert json.loads(done.stdout) == [hits.ids.tolist(), hits.scores.tolist()]


def test_encoder_elsewhere(tmp_path, encoder, documents, queries):
    db = lancedb.connect(tmp_path / "db")
    path = tmp_path / "elsewhere" / "map.safetensors"
    schema = pa.schema([("id", pa.string()), ("tokens", documents.schema.field("tokens").type), ("year", pa.int64())])
    table = LemurTable.create(db, "demo", encoder, schema=schema, encoder_path=path)
    assert len(table) == 0
    assert len(table.search(queries[0])) == 0
    table.add(documents.select(["id", "tokens", "year"]).to_reader(max_chunksize=100))
    assert table.table.schema.field("id").type == pa.string()
    assert table.table.schema.field("year").type == pa.int64()
    with pytest.raises(FileNotFoundError):
        LemurTable(db, "demo")
    assert LemurTable(db, "demo", LemurEncoder.load(path)).search(queries[0]) == table.search(queries[0])


def test_bad_input_changes_nothing(table, encoder, documents, demo_data, queries, tmp_path, matrices_of):
    version = table.table.version
    good = matrices_of(documents)[:2]
    nan = good[1].copy()
    nan[0, 0] = np.nan
    for bad, ids, message in (
        ([good[0], np.ones((3, 7), np.float32)], ["a", "b"], "dim"),
        ([np.ones((3, 7), np.float32)], ["a"], "has dim 7, index has dim 128"),
        ([good[0], nan], ["a", "b"], "'b'"),
        (good, ["a", "a"], "id 'a' is repeated, expected each id once"),
        (good, None, "have no ids"),
        ([np.full((1, 128), 1e6, np.float32)], ["a"], "stored as float16, and a value is beyond its range, 65504"),
        (documents[:2].append_column("colour", pa.array(["red", "blue"])), None, "column 'colour', the table has columns"),
    ):
        for write in (table.add, table.upsert):
            with pytest.raises(ValueError, match=message):
                write(bad, ids=ids)
    with pytest.raises(TypeError, match="column 'year' is large_string, the table has int32"):
        table.add(documents[:2].drop_columns("year").append_column("year", pa.array(["then", "now"])))
    with pytest.raises(TypeError, match="delete takes either ids or filter=, one of them"):
        table.delete()
    for arguments, kind, message in (
        ({"k": 0}, ValueError, "k must be at least 1"),
        ({"num_candidates": 0}, ValueError, "num_candidates must be at least 1"),
        ({"rerank": "both"}, ValueError, "rerank must be"),
    ):
        with pytest.raises(kind, match=message):
            table.search(queries[0], **arguments)
    with pytest.raises(ValueError, match="has dim 7"):
        table.search(np.ones((3, 7), np.float32))
    assert table.table.version == version

    db = lancedb.connect(tmp_path)
    other = LemurEncoder.fit(documents[:300], demo_data.training_queries, num_features=64, epochs=0, rank=15)
    with pytest.raises(ValueError, match="made by another encoder"):
        LemurTable(db, "demo", other)
    with pytest.raises(ValueError, match="without documents pass schema="):
        LemurTable.create(db, "empty", encoder)
    db.create_table("texts", pa.table({"id": ["a"], "text": ["b"]}))
    with pytest.raises(ValueError, match="must have columns 'id' and 'tokens'"):
        LemurTable.fit(db, "texts", demo_data.training_queries)
    with pytest.raises(ValueError, match="already exists"):
        LemurTable.create(db, "demo", encoder, documents)
    assert len(LemurTable.create(db, "demo", encoder, documents[:20], mode="overwrite")) == 20


def everything(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../out", "/tmp/absolute", "it's", "a\\b", "nul\0", "line\nbreak", None, 5]
)
def test_a_name_leads_nowhere(tmp_path, encoder, documents, name):
    db = lancedb.connect(tmp_path / "deep" / "db")
    before = everything(tmp_path)
    with pytest.raises((ValueError, TypeError), match="name"):
        LemurTable.create(db, name, encoder, documents[:5])
    assert everything(tmp_path) == before


def test_a_table_of_somebody_else_is_not_overwritten(tmp_path, encoder, documents):
    db = lancedb.connect(tmp_path)
    db.create_table("thesis", pa.table({"id": ["1"], "text": ["ten years of work"], "vector": [[1.0, 2.0]]}))
    for mode, message in (
        ("overwrite", "is no LemurTable, and is not overwritten"),
        ("create", "already exists"),
        ("drop", "mode"),
    ):
        with pytest.raises(ValueError, match=message):
            LemurTable.create(db, "thesis", encoder, documents[:5], mode=mode)
    assert db.open_table("thesis").to_arrow().column("text").to_pylist() == ["ten years of work"]
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_column_of_somebody_else_is_not_dropped(tmp_path, documents, demo_data):
    db = lancedb.connect(tmp_path)
    tokens = documents.column("tokens").cast(pa.list_(pa.list_(pa.float32(), 128)))
    rows = documents.select(["id"]).append_column("tokens", tokens).append_column("vector", pa.array([[1.0, 2.0]] * 600))
    db.create_table("own", rows)
    with pytest.raises(ValueError, match="has a column 'vector' that no LemurTable wrote"):
        LemurTable.fit(db, "own", demo_data.training_queries, **QUICK)
    assert db.open_table("own").to_arrow().column("vector")[0].as_py() == [1.0, 2.0]
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_table_that_fails_leaves_nothing(tmp_path, encoder, documents, matrices_of):
    db = lancedb.connect(tmp_path / "db")
    matrices = matrices_of(documents[:3])
    bad = [*matrices[:2], np.full((2, 128), np.nan, np.float32)]
    kept = tmp_path / "map.safetensors"
    for path in (None, kept):
        with pytest.raises(ValueError, match="NaN"):
            LemurTable.create(db, "new", encoder, bad, ids=["a", "b", "c"], encoder_path=path)
        assert not list(tmp_path.rglob("*.safetensors"))
    kept.write_bytes(b"another map")
    with pytest.raises(ValueError, match="NaN"):
        LemurTable.create(db, "new", encoder, bad, ids=["a", "b", "c"], encoder_path=kept)
    assert kept.read_bytes() == b"another map"
    LemurTable.create(db, "new", encoder, matrices, ids=["a", "b", "c"])
    with pytest.raises(ValueError, match="NaN"):
        LemurTable.create(db, "new", encoder, bad, ids=["a", "b", "c"], mode="overwrite")
    assert len(LemurTable(db, "new")) == 3


def test_a_table_that_names_an_encoder_elsewhere_is_refused(tmp_path, encoder, documents):
    db = lancedb.connect(tmp_path)
    rows = LemurTable.create(db, "demo", encoder, documents[:5]).table.to_arrow()
    field = rows.schema.field("vector").with_metadata({b"lemur_ann encoder": b"../../etc/passwd"})
    schema = pa.schema([field if own.name == "vector" else own for own in rows.schema])
    db.create_table("altered", rows.cast(schema))
    with pytest.raises(ValueError, match="name"):
        LemurTable(db, "altered")


def test_an_upsert_sees_what_another_has_written(tmp_path, encoder, documents):
    """LanceDB changes the version that a table has seen last, so that an id would be there twice."""
    LemurTable.create(lancedb.connect(tmp_path), "demo", encoder, documents[:5])
    one, other = (LemurTable(lancedb.connect(tmp_path), "demo") for _ in range(2))
    one.upsert(documents[5:10])
    other.upsert(documents[3:12])
    assert other.delete(documents.column("id")[5].as_py()) == 1
    one.upsert(documents[:1])
    assert sorted(one.table.to_arrow().column("id").to_pylist()) == sorted(
        doc_id for row, doc_id in enumerate(documents.column("id").to_pylist()[:12]) if row != 5
    )
