"""TREC run files, as `lemur-ann evaluate --run` writes them and ir-measures reads them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lemur_ann import Hits, LemurIndex
from lemur_ann.insight import run_files


def hits(*pairs):
    return Hits(np.array([doc_id for doc_id, _ in pairs], object), np.array([score for _, score in pairs], np.float32))


def test_lines(tmp_path):
    found = [hits(("a", 2.5), ("b/1", 1 / 3)), hits(), hits(("a", -1e-7))]
    assert run_files.write_run(tmp_path / "run.trec", ["q1", "q2", "ü"], found) == 3
    assert (tmp_path / "run.trec").read_text("utf-8").splitlines() == [
        "q1 Q0 a 1 2.5 lemur_ann",
        "q1 Q0 b/1 2 0.333333343 lemur_ann",
        "ü Q0 a 1 -1.00000001e-07 lemur_ann",
    ]


def test_scores_come_back_as_they_were(tmp_path, rng):
    scores = np.sort(rng.normal(size=1000).astype(np.float32) * 100)[::-1]
    scores[1] = np.nextafter(scores[0], np.float32(0))  # a reader sorts by score: the nearest two must differ
    ids = np.arange(1000)
    run_files.write_run(tmp_path / "run.trec", ["q"], [Hits(ids, scores)])
    fields = [line.split() for line in (tmp_path / "run.trec").read_text().splitlines()]
    assert np.array_equal(np.array([line[4] for line in fields], np.float32), scores)
    assert [line[2] for line in fields] == ids.astype(str).tolist()


@pytest.mark.parametrize(
    ("column", "names"),
    [
        (pa.array(["x", "y"]), ["x", "y"]),
        (pa.array(["x", "y"], pa.large_string()), ["x", "y"]),
        (pa.chunked_array([["x"], ["y"]]), ["x", "y"]),
        (pa.array([7, 8], pa.int32()), ["7", "8"]),
        (pa.array(["x", "y"]).dictionary_encode(), ["x", "y"]),
    ],
)
def test_query_ids(column, names):
    assert run_files.query_ids(pa.table({"id": column, "text": ["a", "b"]})) == names
    assert run_files.query_ids(pa.table({"text": ["a", "b"]})) == ["0", "1"]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "b c"], "query id 'b c' has white space"),
        (["a", "b\u00a0c"], "query id 'b\\xa0c' has white space"),
        (["a", "b\n"], "query id 'b\\n' has white space"),
        (["a", ""], "query id '' is empty or blank"),
        (["a", " "], "query id ' ' is empty or blank"),
        (["a", "a"], "query id 'a' is repeated in row 1"),
        (["a", None], "id is null in row 1"),
        ([1.0, 2.0], "ids must be strings or integers, got double"),
    ],
)
def test_bad_query_ids(ids, message):
    with pytest.raises((ValueError, TypeError)) as error:
        run_files.query_ids(pa.table({"id": ids}))
    assert message in str(error.value)


def test_bad_document_ids(tmp_path):
    with pytest.raises(ValueError, match="document id 'b c' has white space, which a run file cannot hold"):
        run_files.write_run(tmp_path / "run.trec", ["q"], [hits(("a", 2), ("b c", 1))])
    assert not list(tmp_path.iterdir()), "no half a file"


def evaluate(*arguments, cwd):
    script = Path(sys.executable).parent / "lemur-ann"
    command = [str(script), "evaluate", "index", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, demo_data, demo_index):
    folder = tmp_path_factory.mktemp("run")
    demo_index.save(folder / "index")
    asked = demo_data.queries
    pq.write_table(asked, folder / "queries.parquet")
    pq.write_table(asked.drop_columns(["id"]), folder / "unnamed.parquet")
    spaced = pa.array([f"{name} query" for name in asked.column("id").to_pylist()])
    pq.write_table(asked.set_column(0, "id", spaced), folder / "spaced.parquet")
    return folder


def read(path):
    run = {}
    for line in path.read_text().splitlines():
        query, q0, document, rank, score, tag = line.split()
        assert (q0, tag) == ("Q0", "lemur_ann")
        assert int(rank) == len(run.setdefault(query, [])) + 1
        run[query].append((document, np.float32(score)))
    return run


def test_evaluate_writes_a_run(workplace, demo_data):
    result = evaluate("queries.parquet", "-k", 20, "--run", "run.trec", cwd=workplace)
    assert result.returncode == 0, result.stderr
    assert "recall@20 against exact MaxSim" in result.stdout
    assert "1,000 hits of 50 queries written to run.trec" in result.stdout
    found = LemurIndex.load(workplace / "index").search(demo_data.queries, k=20)
    expected = zip(demo_data.queries.column("id").to_pylist(), found, strict=True)
    assert read(workplace / "run.trec") == {query: list(one) for query, one in expected}


def test_options_are_those_of_the_evaluation(workplace, demo_data):
    how = ["--limit", 7, "--num-candidates", 12, "--ef-search", 12]
    result = evaluate("unnamed.parquet", *how, "--run", "few.trec", cwd=workplace)
    assert result.returncode == 0, result.stderr
    index = LemurIndex.load(workplace / "index")
    found = index.search(demo_data.queries[:7], k=10, num_candidates=12, ef_search=12)
    assert read(workplace / "few.trec") == {str(row): list(one) for row, one in enumerate(found)}


def test_ids_with_white_space_are_refused_first(workplace):
    result = evaluate("spaced.parquet", "--run", "no.trec", cwd=workplace)
    assert result.returncode == 1
    assert "error: query id 'librte-rcu23 query' has white space" in result.stderr
    assert result.stdout == ""
    assert not (workplace / "no.trec").exists()
    assert evaluate("spaced.parquet", "--limit", 3, cwd=workplace).returncode == 0, "without a run file they are fine"


def test_ir_measures_reads_it(workplace, demo_data):
    ir_measures = pytest.importorskip("ir_measures")
    assert evaluate("queries.parquet", "--run", "read.trec", cwd=workplace).returncode == 0
    asked = demo_data.queries.column("id").to_pylist()
    run = list(ir_measures.read_trec_run(str(workplace / "read.trec")))
    assert [(doc.query_id, doc.doc_id) for doc in run[:10]] == [
        (asked[0], doc_id) for doc_id in LemurIndex.load(workplace / "index").search(demo_data.queries[:1])[0].ids
    ]
    qrels = [ir_measures.Qrel(name, name, 1) for name in asked]  # query i was written for the document of its id
    measured = ir_measures.calc_aggregate([ir_measures.nDCG @ 10, ir_measures.R @ 10], qrels, run)
    ranks = [
        next((rank for rank, (doc_id, _) in enumerate(found, start=1) if doc_id == name), None)
        for name, found in read(workplace / "read.trec").items()
    ]
    gains = [0.0 if rank is None else 1 / np.log2(rank + 1) for rank in ranks]
    assert measured[ir_measures.nDCG @ 10] == pytest.approx(np.mean(gains), abs=1e-6)
    assert measured[ir_measures.R @ 10] == pytest.approx(np.mean([rank is not None for rank in ranks]))
    assert 0.2 < np.mean(gains) < 1
