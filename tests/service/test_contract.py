"""What an index promises, of one that is here and of one that a service has: the same answers, to the last bit."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import lemur_ann
from lemur_ann import Hits, LemurIndex, NotFitted

SMALL = {"num_features": 64, "epochs": 1, "rank": 15}
WIDTHS = {"num_candidates": 30, "ef_search": 50}


def local(serve, tmp_path):
    with LemurIndex.open(tmp_path / "here", **SMALL) as index:
        yield index


def http(serve, tmp_path):
    LemurIndex.open(tmp_path / "index", **SMALL).close()
    with lemur_ann.connect(serve().address, "index", retries=0) as index:
        yield index


TRANSPORTS = {"local": local, "http": http}


@pytest.fixture(params=TRANSPORTS)
def index(request, serve, tmp_path):
    """An empty index, reached in each of the ways there are."""
    yield from TRANSPORTS[request.param](serve, tmp_path)


@pytest.fixture
def twin():
    """The same index in memory."""
    return LemurIndex(**SMALL)


def same(found, expected):
    assert len(found) == len(expected)
    for own, best in zip(found, expected, strict=True):
        assert isinstance(own, Hits)
        assert own.ids.dtype == best.ids.dtype
        assert own.ids.tolist() == best.ids.tolist()
        assert own.scores.dtype == np.float32
        assert own.scores.tobytes() == best.scores.tobytes()
        assert own.exact == best.exact


def table_of(matrices, ids, **columns):
    dim = matrices[0].shape[1]
    values = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(matrices).reshape(-1)), dim)
    offsets = pa.array(np.cumsum([0, *map(len, matrices)]), pa.int64())
    return pa.table({"id": ids, "tokens": pa.LargeListArray.from_arrays(offsets, values), **columns})


@pytest.fixture
def documents(make_matrices):
    matrices = make_matrices(120)
    years = pa.array([None if i % 10 == 9 else 1990 + i % 30 for i in range(120)], pa.int32())
    return table_of(matrices, [f"doc {i}" for i in range(120)], year=years, title=[f"the {i}th" for i in range(120)])


@pytest.fixture
def queries(make_matrices):
    return make_matrices(9, low=3)


@pytest.mark.parametrize("ids", ["str", "int"])
def test_hits_are_the_same_to_the_last_bit(index, twin, make_matrices, queries, ids):
    matrices = make_matrices(80)
    names = [f"doc {i}" for i in range(80)] if ids == "str" else [7 * i - 200 for i in range(80)]
    index.add(matrices, ids=names)
    twin.add(matrices, ids=names)
    expected = twin.search(queries, 5)
    same(index.search(queries, 5), expected)
    same([index.search(query, 5) for query in queries], expected)
    same([index.search(queries[0].tolist(), 5)], twin.search([queries[0]], 5))
    same(index.search(table_of(queries, list(range(9))), 5), expected)
    same(
        index.search([query.astype(np.float16) for query in queries], 5),
        twin.search([q.astype(np.float16) for q in queries], 5),
    )
    same(index.search(queries, 1000, exact=True), twin.search(queries, 1000, exact=True))
    chosen = {names[3], names[50], names[60]}
    same(index.search(queries, 10, filter=chosen), twin.search(queries, 10, filter=chosen))
    same(index.search(queries, 10, filter=[]), twin.search(queries, 10, filter=[]))
    assert index.search([], 3) == []


def test_a_map_finds_the_same_as_at_home(index, twin, make_matrices, queries, tmp_path):
    matrices, learned = make_matrices(150), make_matrices(60)
    for one in (index, twin):
        one.add(matrices, ids=[f"doc {i}" for i in range(150)])
        assert not one.is_fitted
        one.fit(queries=learned, num_threads=1, progress=False)
        assert one.is_fitted
    same(index.search(queries, 10, **WIDTHS), twin.search(queries, 10, **WIDTHS))
    with pytest.raises(ValueError, match="target_recall"):
        index.search(queries, target_recall=0.9)
    tuned = index.tune(learned, 0.8, 5, progress=False)
    assert tuned.k == 5
    assert tuned.num_queries == 30
    assert len(index.search(queries[0], 5, target_recall=0.8)) == 5
    index.refit(learned, rank=7, progress=False)
    index.recode(None, progress=False)
    assert len(index.search(queries[0], 5, **WIDTHS)) == 5
    with pytest.raises(TypeError, match="rnak"):
        index.refit(learned, rnak=31, progress=False)


def test_documents_go_in_and_come_out(index, twin, documents, tmp_path):
    index.add(documents)
    twin.add(documents)
    assert len(index) == 120
    assert index.dim == 16
    assert index.num_tokens == twin.num_tokens
    assert "doc 7" in index
    assert "doc 700" not in index
    assert 7 not in index
    assert None not in index
    wanted = ["doc 3", "doc 0", "doc 119"]
    assert index.get(wanted) == twin.get(wanted)
    assert index.get("doc 3") == twin.get("doc 3")
    assert index.metadata(pa.array(wanted)) == twin.metadata(wanted)
    assert index.metadata([]).schema == twin.metadata([]).schema
    assert index.ids() == twin.ids()
    assert list(index) == list(twin)

    version = index.version
    changed = table_of([np.eye(16, dtype=np.float32)], ["doc 3"], year=pa.array([2050], pa.int32()))
    index.upsert(changed)
    twin.upsert(changed)
    assert index.version > version
    assert len(index) == 120
    assert index.get(wanted) == twin.get(wanted)
    assert index.delete(["doc 3", "doc 4", "doc 4"]) == 2
    assert index.delete("doc 5") == 1
    assert index.delete(filter=["doc 6", "doc 700"]) == 1
    assert index.delete(filter=[]) == 0
    twin.delete([f"doc {i}" for i in range(3, 7)])
    assert index.ids() == twin.ids()
    index.compact(progress=False)
    assert index.ids() == twin.ids()
    assert "doc 3" not in index


def test_forms_of_documents(index, make_matrices, documents, tmp_path):
    matrices = make_matrices(6, dtype=np.float16)
    index.add(matrices)
    index.add(np.concatenate(matrices), offsets=np.cumsum([0, *map(len, matrices)]))
    index.add(iter(matrices))
    index.add(iter(()))
    index.add([])
    assert list(index) == list(range(18))
    assert index.get([17]).column("tokens")[0].as_py() == matrices[5].tolist()
    index.delete(filter=range(18))
    pq.write_table(documents, tmp_path / "documents.parquet")
    index.add(str(tmp_path / "documents.parquet"))
    assert len(index) == 120
    index.upsert(pa.RecordBatchReader.from_batches(documents.schema, documents.to_batches(max_chunksize=7)))
    index.upsert(documents.slice(0, 20).to_pandas())
    assert len(index) == 120
    assert index.metadata(["doc 8"]).to_pylist() == [{"id": "doc 8", "year": 1998, "title": "the 8th"}]


def test_tables_of_hits(index, twin, documents, queries):
    index.add(documents)
    twin.add(documents)
    found, expected = index.search(queries, 4), twin.search(queries, 4)
    assert index.to_table(found) == twin.to_table(expected)
    assert index.to_table(found[0], ["year"]) == twin.to_table(expected[0], ["year"])
    assert index.to_table(found, []) == twin.to_table(expected, [])
    assert index.to_table([]).num_rows == 0
    with pytest.raises(KeyError, match="yaer"):
        index.to_table(found, ["yaer"])
    with pytest.raises(TypeError, match="list of names"):
        index.to_table(found, "year")
    with pytest.raises(TypeError, match="Hits"):
        index.to_table([1])


def test_explanations(index, twin, documents, queries):
    index.add(documents)
    twin.add(documents)
    found, expected = index.explain(queries[0], "doc 11", k=3), twin.explain(queries[0], "doc 11", k=3)
    assert found.similarities.tobytes() == expected.similarities.tobytes()
    assert found.usual_similarities.tobytes() == expected.usual_similarities.tobytes()
    assert str(found) == str(expected)
    words = [f"word {i}" for i in range(len(queries[0]))]
    named = index.explain(queries[0], "doc 11", query_words=words)
    assert named.query_words == tuple(words)
    with pytest.raises(ValueError, match="query_words must have a string for each"):
        index.explain(queries[0], "doc 11", query_words=words[1:])
    with pytest.raises(KeyError, match="doc 700"):
        index.explain(queries[0], "doc 700")


def test_evaluations(index, twin, documents, queries):
    index.add(documents)
    twin.add(documents)
    exact = [hits.ids.tolist() for hits in twin.search(queries, 3)]
    found = index.evaluate(queries, 3)
    assert (found.recall, found.k, found.num_queries, found.num_documents) == (1.0, 3, 9, 120)
    assert found.recall_interval == (1.0, 1.0) or found.recall_interval[1] == 1.0
    assert found.relevance is None
    for relevant in (exact, [own[0] for own in exact], {str(i): dict.fromkeys(own, 2) for i, own in enumerate(exact)}):
        expected = twin.evaluate(queries, 3, relevant=relevant, progress=False).relevance
        assert index.evaluate(queries, 3, relevant=relevant).relevance == expected
    with_answers = table_of(queries, [f"q{i}" for i in range(9)]).append_column("answer", pa.array(exact))
    expected = twin.evaluate(with_answers, 3, relevant="answer", progress=False).relevance
    assert index.evaluate(with_answers, 3, relevant="answer").relevance == expected
    assert index.evaluate(queries, 3, filter=["doc 1", "doc 2"]).recall == 1.0
    with pytest.raises(ValueError, match="at least one query"):
        index.evaluate([], 3)
    with pytest.raises(ValueError, match="rows for 9 queries"):
        index.evaluate(queries, 3, relevant=exact[1:])


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (ValueError, lambda index, matrix: index.search(matrix, 0)),
        (TypeError, lambda index, matrix: index.search(matrix, "3")),
        (TypeError, lambda index, matrix: index.search(matrix, exact="yes")),
        (TypeError, lambda index, matrix: index.search(matrix, num_candidates=1.5)),
        (ValueError, lambda index, matrix: index.search(matrix, shortlist=-1)),
        (ValueError, lambda index, matrix: index.search(matrix[:, :5])),
        (ValueError, lambda index, matrix: index.search(matrix * np.nan)),
        (TypeError, lambda index, matrix: index.search(object())),
        (TypeError, lambda index, matrix: index.search(matrix, filter="doc 1")),
        (TypeError, lambda index, matrix: index.search(matrix, filter=3)),
        (TypeError, lambda index, matrix: index.search(matrix, wide=3)),
        (KeyError, lambda index, matrix: index.get(["doc 1", "doc 700"])),
        (KeyError, lambda index, matrix: index.metadata("doc 700")),
        (KeyError, lambda index, matrix: index.get(7)),
        (KeyError, lambda index, matrix: index.delete(["doc 1", "doc 700"])),
        (TypeError, lambda index, matrix: index.delete()),
        (TypeError, lambda index, matrix: index.delete(["doc 1"], filter=["doc 2"])),
        (TypeError, lambda index, matrix: index.get([1.5])),
        (ValueError, lambda index, matrix: index.add([matrix], ids=["doc 1"])),
        (ValueError, lambda index, matrix: index.add([matrix, matrix], ids=["new", "new"])),
        (ValueError, lambda index, matrix: index.add([matrix, matrix * np.nan], ids=["new", "newer"])),
        (ValueError, lambda index, matrix: index.add([matrix, matrix], ids=["new"])),
        (ValueError, lambda index, matrix: index.add([matrix[:, :5]], ids=["new"])),
        (TypeError, lambda index, matrix: index.add([matrix], ids=[7])),
        (TypeError, lambda index, matrix: index.add({"new": matrix})),
        (TypeError, lambda index, matrix: index.upsert([matrix])),
        (NotFitted, lambda index, matrix: index.tune([matrix, matrix], progress=False)),
        (NotFitted, lambda index, matrix: index.refit(progress=False)),
        (ValueError, lambda index, matrix: index.fit([matrix], [matrix], ids=["new"], progress=False)),
        (TypeError, lambda index, matrix: index.fit(ids=["new"], progress=False)),
        (ValueError, lambda index, matrix: index.recode("int9", progress=False)),
        (TypeError, lambda index, matrix: index.explain([matrix, matrix], "doc 1")),
    ],
)
def test_errors_are_of_the_same_class_and_change_nothing(index, documents, queries, kind, call):
    index.add(documents)
    version = index.version
    with pytest.raises(Exception) as error:  # noqa: PT011
        call(index, queries[0])
    assert type(error.value) is kind, error.value
    assert index.version == version
    assert len(index) == 120
