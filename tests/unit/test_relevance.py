"""evaluate(relevant=): what users feel, beside exact MaxSim."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from lemur_ann import LemurIndex
from lemur_ann.cli import app

POOR = {"num_candidates": 12, "ef_search": 12, "shortlist": 0}


@pytest.fixture(scope="module")
def judged(demo_data):
    """An index, its queries, and the document that each was written for."""
    index = LemurIndex(num_features=128, epochs=0).fit(demo_data.documents, queries=demo_data.training_queries)
    return index, demo_data.queries, demo_data.queries["id"].to_pylist()


def by_ir_measures(index, queries, qrels, **how):
    measures = pytest.importorskip("ir_measures")
    hits = index.search(queries, k=10, **how)
    run = [measures.ScoredDoc(str(i), str(d), float(s)) for i, one in enumerate(hits) for d, s in one]
    judged = [measures.Qrel(str(q), str(d), int(g)) for q, own in qrels.items() for d, g in own.items()]
    wanted = [measures.Success @ 1, measures.Success @ 10, measures.RR @ 10, measures.nDCG @ 10, measures.R @ 10]
    found = measures.calc_aggregate(wanted, judged, run)
    return [found[measure] for measure in wanted]


def test_agrees_with_ir_measures(judged):
    index, queries, written_for = judged
    random = np.random.default_rng(0)
    others = index.ids().to_pylist()
    qrels = {
        str(i): {own: 3, **{others[j]: int(random.integers(0, 3)) for j in random.integers(0, 600, 3)}}
        for i, own in enumerate(written_for)
    }
    bare = [np.array(matrix, np.float32) for matrix in queries["tokens"].to_pylist()]  # whose names are numbers
    result = index.evaluate(bare, relevant=qrels, **POOR).relevance
    assert list(result.measures) == ["success@1", "success@10", "MRR@10", "nDCG@10", "recall of relevant@10"]
    np.testing.assert_allclose([m.found for m in result.measures.values()], by_ir_measures(index, bare, qrels, **POOR))
    np.testing.assert_allclose([m.exact for m in result.measures.values()], by_ir_measures(index, bare, qrels, exact=True))
    for measure in result.measures.values():
        low, high = measure.loss_interval
        assert low <= measure.loss <= high
        assert measure.loss == pytest.approx((measure.exact - measure.found) / measure.exact)


def test_every_form_says_the_same(judged, tmp_path):
    index, queries, written_for = judged
    names = [f"q{i}" for i in range(len(queries))]
    table = queries.select(["tokens"]).append_column("id", pa.array(names)).append_column("own", pa.array(written_for))
    lists = table.append_column("many", pa.array([[own] for own in written_for]))
    file = tmp_path / "judged.qrels"
    file.write_text("".join(f"{name} 0 {own} 1\n" for name, own in zip(names, written_for, strict=True)) + "\nother 0 x 1\n")
    expected = index.evaluate(table, relevant=written_for).relevance
    assert expected.num_queries == len(queries)
    for given in (
        [[own] for own in written_for],
        [{own} for own in written_for],
        np.array(written_for, object),
        pa.array(written_for),
        pa.chunked_array([pa.array(written_for)]),
        dict(zip(names, written_for, strict=True)),
        {name: {own: 1, "nobody": 0} for name, own in zip(names, written_for, strict=True)},
        "own",
        "many",
        str(file),
        file,
    ):
        assert index.evaluate(lists, relevant=given).relevance == expected
    (batch,) = lists.combine_chunks().to_batches()
    assert index.evaluate(batch, relevant="many").relevance == expected


def test_numbers_as_ids(make_matrices, tmp_path):
    documents = make_matrices(50)
    index = LemurIndex().add(documents)
    (tmp_path / "judged.qrels").write_text("0 0 7 1\n1 0 8 2\n2 0 999 1\n")
    result = index.evaluate(documents[7:11], k=3, relevant=tmp_path / "judged.qrels").relevance
    assert (result.num_queries, result.num_without, result.num_unknown) == (3, 1, 1)
    assert result.measures["success@1"].found == pytest.approx(2 / 3)
    assert "1 queries have no relevant document" in str(result)
    assert "1 relevant documents are not in the index" in str(result)
    assert index.evaluate(documents[7:9], k=3, relevant=np.array([7, 8])).relevance.measures["MRR@3"].found == 1


def test_no_difference_is_not_certainty(make_matrices):
    documents = make_matrices(40)
    measure = (
        LemurIndex().add(documents).evaluate(documents[:30], k=1, relevant=list(range(30))).relevance.measures["success@1"]
    )
    assert measure.loss == 0
    assert measure.loss_interval == pytest.approx((-0.1, 0.1))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (["a"], ValueError, "has 1 rows for 3 queries"),
        ("a word", FileNotFoundError, "no file 'a word', nor a column of the queries, which have id, tokens"),
        ({"x": "a"}, ValueError, r"names none of the queries: it has \['x'\], they are \['q0', 'q1', 'q2'\]"),
        ({"a", "b", "c"}, TypeError, "in the order of the queries"),
        (7, TypeError, "got int"),
        ([["a"], 1.5, ["b"]], TypeError, "float in row 1"),
        ({"q0": {"a": "good"}}, TypeError, "the grade 'good' in row 0"),
    ],
)
def test_what_is_refused(make_matrices, given, error, message):
    index = LemurIndex().add(make_matrices(10), ids=[f"doc {i}" for i in range(10)])
    tokens = pa.array([m.tolist() for m in make_matrices(3)], pa.list_(pa.list_(pa.float32(), 16)))
    with pytest.raises(error, match=message):
        index.evaluate(pa.table({"id": ["q0", "q1", "q2"], "tokens": tokens}), relevant=given)


def test_a_bad_line_is_named(make_matrices, tmp_path):
    index = LemurIndex().add(make_matrices(10))
    (tmp_path / "judged.qrels").write_text("0 0 1 1\n0 0 2\n")
    with pytest.raises(ValueError, match="line 2 of .*judged.qrels is '0 0 2', expected"):
        index.evaluate(make_matrices(1), relevant=tmp_path / "judged.qrels")


def test_on_the_command_line(judged, demo_data, tmp_path):
    index, queries, _ = judged
    index.save(tmp_path / "index")
    pq.write_table(queries, tmp_path / "queries.parquet")
    arguments = ["evaluate", str(tmp_path / "index"), str(tmp_path / "queries.parquet"), "--relevant", "id"]
    result = CliRunner().invoke(app, [*arguments, "--num-candidates", "12", "--ef-search", "12", "--shortlist", "0"])
    assert result.exit_code == 0, result.output
    assert "success@10" in result.output
    assert "relevance over 50 queries: the search, exact MaxSim, loss (95% interval)" in result.output


def test_tune_for_relevance(judged, tmp_path):
    index, queries, written_for = judged
    index.save(tmp_path / "index")
    with LemurIndex.open(tmp_path / "index") as own:
        loose = own.tune(queries, relevant="id", max_loss=0.3, num_threads=1)
        tight = own.tune(queries, relevant=written_for, target="relevance", num_threads=1)
        assert (loose.target_recall, loose.max_loss, tight.max_loss) == (None, 0.3, 0.01)
        for tuned in (loose, tight):
            low, high = tuned.loss_interval
            assert low <= tuned.loss <= high
            assert tuned.num_queries == len(queries) // 2
        assert own.evaluate(queries, relevant="id", max_loss=0.01).relevance.measures["success@10"].loss < 0.2
        assert "of the relevance of exact MaxSim lost" in str(tight)
        plain = own.tune(queries, 0.9, num_threads=1)
        assert plain.loss is plain.max_loss is None
    again = LemurIndex.load(tmp_path / "index")
    assert again.tuned == (loose, tight, plain)
    assert "tuned for a loss of 0.01 at k 10" in again._repr_html_()
    how = {"num_candidates": tight.num_candidates, "ef_search": tight.ef_search, "shortlist": tight.shortlist}
    for loss, k in ((0.01, 10), (0.2, 10), (0.02, 3)):
        wanted = again.search(queries[:5], **how)
        for hits, own in zip(again.search(queries[:5], k=k, max_loss=loss), wanted, strict=True):
            assert hits.ids.tolist() == own.ids[:k].tolist()
    assert again.evaluate(queries, max_loss=0.3).num_candidates == loose.num_candidates
    with pytest.raises(ValueError, match=r"not tuned for max_loss 0\.005 at k 10, but for: 0\.3 at k 10, 0\.01 at k 10"):
        again.search(queries, max_loss=0.005)
    with pytest.raises(TypeError, match="max_loss= takes the place of"):
        again.search(queries, max_loss=0.01, shortlist=3)
    with pytest.raises(TypeError, match="pass one of them"):
        again.search(queries, max_loss=0.01, target_recall=0.9)
    assert again.explain_miss(np.array(queries["tokens"][0].as_py()), written_for[0], max_loss=0.01).settings is not None


def test_tune_for_relevance_refuses_what_says_nothing(judged):
    index, queries, written_for = judged
    with pytest.raises(TypeError, match="needs relevant="):
        index.tune(queries, target="relevance")
    with pytest.raises(TypeError, match="max_loss= needs relevant="):
        index.tune(queries, max_loss=0.01)
    with pytest.raises(TypeError, match="target_recall= is for recall"):
        index.tune(queries, 0.5, relevant=written_for)
    with pytest.raises(TypeError, match="goes with target='relevance'"):
        index.tune(queries, target="recall", relevant=written_for)
    with pytest.raises(ValueError, match="'recall' or 'relevance', got 'speed'"):
        index.tune(queries, target="speed")
    with pytest.raises(ValueError, match="max_loss must be above 0 and at most 1"):
        index.tune(queries, relevant=written_for, max_loss=0)
    for few in ([[] for _ in written_for], [own if i < 5 else [] for i, own in enumerate(written_for)]):
        with pytest.raises(ValueError, match="have a relevant document in their exact top k, expected 10 at least"):
            index.tune(queries, relevant=few)
    assert index.tuned == ()


def test_relevance_of_nothing_is_not_certain(judged):
    index, queries, written_for = judged
    for wrong in ("text", ["nobody"] * len(written_for)):
        with pytest.raises(ValueError, match="names no document of the index"):
            index.evaluate(queries, relevant=wrong)
    for grade in (float("inf"), float("nan")):
        with pytest.raises(ValueError, match="a finite grade"):
            index.evaluate(queries, relevant=[{own: grade} for own in written_for])
    one = index.evaluate(queries, relevant=[None] * (len(written_for) - 1) + [written_for[-1]]).relevance
    for measure in one.measures.values():
        low, high = measure.loss_interval
        assert -1 <= low <= measure.loss <= high <= 1
        assert high - low >= 1


def test_queries_in_any_form_have_their_names(judged):
    """A frame's column names its queries as a table's does, whatever their order."""
    polars, pandas = pytest.importorskip("polars"), pytest.importorskip("pandas")
    index, queries, written_for = judged
    order = np.random.default_rng(0).permutation(len(written_for))
    table = pa.table({"id": pa.array(order), "own": written_for, "tokens": queries["tokens"]})
    qrels = {int(name): own for name, own in zip(order, written_for, strict=True)}
    expected = index.evaluate(table, relevant=written_for).relevance
    frame = pandas.DataFrame(
        {"id": order, "own": written_for, "tokens": [np.array(m, np.float32) for m in table["tokens"].to_pylist()]}
    )
    for form in (lambda: polars.from_arrow(table), lambda: table.to_reader(), lambda: frame):
        for relevant in (qrels, "own"):
            assert index.evaluate(form(), relevant=relevant).relevance == expected
            assert index.health(form(), relevant=relevant, num_queries=1000).relevance.num_queries == len(written_for)
    assert (
        index.evaluate((m for m in [*map(np.array, table["tokens"].to_pylist())]), relevant=written_for).relevance == expected
    )


def test_a_miss_at_tuned_widths_names_settings_that_a_search_takes(judged, tmp_path):
    index, queries, _ = judged
    index.save(tmp_path / "index")
    own = LemurIndex.load(tmp_path / "index")
    own.tune(queries, relevant="id", max_loss=0.3, num_threads=1)
    query = np.array(queries["tokens"][0].as_py(), np.float32)
    last = own.search(query, k=len(own), exact=True).ids[300]
    miss = own.explain_miss(query, last, max_loss=0.3)
    assert last in own.search(query, **miss.settings).ids
    assert own.health(queries, max_loss=0.3).num_candidates == own.tuned[0].num_candidates


def test_health_says_what_is_lost(judged):
    index, queries, written_for = judged
    health = index.health(queries, relevant="id", num_queries=50)
    assert health.relevance.num_queries == 50
    assert "relevance over 50 queries" in str(health)
    assert not any("relevant answers" in problem for problem in health.problems)
    expected = index.evaluate(queries, relevant=written_for, **POOR).relevance
    poor = index.health(queries, relevant=written_for, num_queries=len(queries), **POOR)
    assert poor.relevance == expected
    is_bad = expected.measures["success@10"].loss_interval[0] > 0.05
    assert any("relevant answers of exact MaxSim are lost" in problem for problem in poor.problems) == is_bad
    with pytest.raises(TypeError, match="goes with queries="):
        index.health(relevant=written_for)


def test_a_report_shows_it(judged):
    pytest.importorskip("matplotlib")
    from lemur_ann.report import report

    index, queries, _ = judged
    made = report(index, queries, relevant="id", num_queries=40)
    measures = made.data["relevance"]["measures"]
    assert set(measures) == {"success@1", "success@10", "MRR@10", "nDCG@10", "recall of relevant@10"}
    assert "Relevant documents" in made.html
    assert json.loads(made.json)["relevance"]["num_queries"] == 40
    assert "Relevant documents" not in report(index, queries, num_queries=5).html


def test_commands_tune_for_it(judged, tmp_path):
    index, queries, _ = judged
    index.save(tmp_path / "index")
    pq.write_table(queries, tmp_path / "queries.parquet")
    paths = [str(tmp_path / "index"), str(tmp_path / "queries.parquet")]
    result = CliRunner().invoke(app, ["tune", *paths, "--relevant", "id", "--max-loss", "0.2"])
    assert result.exit_code == 0, result.output
    assert "of the relevance" in result.output.replace("\n", " ")
    result = CliRunner().invoke(app, ["evaluate", *paths, "--max-loss", "0.2", "--relevant", "id"])
    assert result.exit_code == 0, result.output
    assert "success@10" in result.output
    result = CliRunner().invoke(app, ["health", paths[0], "--queries", paths[1], "--relevant", "id"])
    assert result.exit_code == 0, result.output
    assert "success@10" in result.output


def test_a_report_marks_what_was_tuned_for_relevance(judged, tmp_path):
    pytest.importorskip("matplotlib")
    from lemur_ann.report import report

    index, queries, _ = judged
    index.save(tmp_path / "index")
    own = LemurIndex.load(tmp_path / "index")
    own.tune(queries, relevant="id", max_loss=0.3, num_threads=1)
    made = report(own, queries, num_queries=5)
    assert [p["tuned_for"] for p in made.data["curve"] if p["tuned_for"]] == [[{"max_loss": 0.3, "k": 10}]]
    assert "tuned for a loss of 0.3" in made.html
