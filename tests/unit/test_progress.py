"""Progress of every long job, log records, and what notebooks show."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from lemur_ann import LemurEncoder, LemurIndex, TextIndex
from lemur_ann.hits import Hits


class Told:
    """What a job called: for each stage, its total and the last count."""

    def __init__(self):
        self.stages = {}

    def __call__(self, stage, done, total):
        before = self.stages.get(stage, (0, None))[0]
        assert done >= before or done == 0  # a stage may come again
        self.stages[stage] = (done, total)


def test_fit_tells_each_stage_to_its_end(make_matrices):
    told = Told()
    documents, queries = make_matrices(200, dim=16), make_matrices(60, dim=16)
    LemurIndex(num_features=64, epochs=1, rank=15).fit(iter(documents), queries, progress=told)
    assert {"documents", "targets", "training", "document weights", "hnsw index"} <= set(told.stages)
    assert told.stages["documents"] == (200, None)  # of a stream nobody knows how many come
    for stage, (done, total) in told.stages.items():
        assert total is None or done == total, stage


def test_every_long_job_has_progress(small_index, tmp_path):
    index, documents, queries = small_index()
    jobs = {
        "add": lambda told: index.add(documents[:3], ids=[*"abc"], progress=told),
        "upsert": lambda told: index.upsert(documents[:3], ids=[*"abc"], progress=told),
        "compact": lambda told: index.compact(progress=told),
        "evaluate": lambda told: index.evaluate(queries, progress=told),
        "tune": lambda told: index.tune(queries, 0.5, progress=told),
        "health": lambda told: index.health(queries, progress=told),
        "refit": lambda told: index.refit(queries, progress=told),
        "encode": lambda told: index.encoder.encode_documents(documents, progress=told),
        "map": lambda told: LemurIndex().fit(documents, encoder=index.encoder, progress=told),
        "learn": lambda told: LemurEncoder.fit(documents, queries, num_features=32, epochs=1, rank=7, progress=told),
    }
    for name, job in jobs.items():
        told = Told()
        job(told)
        assert told.stages, name
        assert all(total is None or done == total for done, total in told.stages.values()), (name, told.stages)


def test_texts_too(word_encoder):
    told = Told()
    TextIndex(word_encoder).add(["one two", "three four five"], progress=told)
    assert told.stages["documents encoded"] == (2, 2)


def test_texts_show_one_set_of_bars(word_encoder, capsys):
    texts = TextIndex(word_encoder, index=LemurIndex(num_features=16, epochs=1, rank=3))
    texts.fit([f"word{i} and word{i + 1}" for i in range(40)], ["word1", "word2"], progress=True)
    shown = capsys.readouterr().err
    assert "documents encoded" in shown
    assert "training" in shown


def test_what_the_function_raises_stops_the_job_and_changes_nothing(small_index):
    index, documents, queries = small_index()
    before = index.search(queries[0])

    def stop(stage, done, total):
        if stage == "document weights":
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        index.add(documents[:5], ids=[*"abcde"], progress=stop)
    with pytest.raises(RuntimeError, match="enough"):
        index.refit(queries, progress=stop)
    assert len(index) == 200
    assert index.search(queries[0]) == before


def test_bars_are_for_terminals(small_index, capsys):
    index, _, queries = small_index()
    index.evaluate(queries)
    assert capsys.readouterr().err == ""
    index.evaluate(queries, progress=True)
    bars = capsys.readouterr().err
    assert "queries" in bars
    assert "60/60" in bars
    assert "/s" in bars


@pytest.mark.parametrize("bad", ["yes", 3, [print]])
def test_progress_is_a_bool_or_a_function(small_index, bad):
    index, _, queries = small_index()
    with pytest.raises(TypeError, match="progress must be a bool, None or a function"):
        index.evaluate(queries, progress=bad)


def test_log_records_say_what_happened(small_index, make_matrices, tmp_path, caplog):
    caplog.set_level(logging.DEBUG, logger="lemur_ann")
    index, _, queries = small_index()
    index.add(make_matrices(4, dim=16), ids=[*"abcd"])
    index.delete(["a"])
    index.save(tmp_path / "index")
    LemurIndex.load(tmp_path / "index")
    index.compact()
    index.tune(queries, 0.5)
    told = {record.event: record.values for record in caplog.records if record.levelno == logging.INFO}
    assert list(told) == ["fit", "add", "delete", "save", "load", "compact", "tune"]
    assert told["add"]["num_new"] == 4
    assert told["add"]["num_documents"] == 204
    assert told["delete"]["num_deleted"] == 1
    assert told["load"]["path"] == str(tmp_path / "index")
    assert told["fit"]["seconds"] > 0
    assert told["tune"]["target_recall"] == 0.5
    stages = [record.values["stage"] for record in caplog.records if record.event == "stage"]
    assert "training" in " ".join(stages)
    assert any(
        record.getMessage().startswith("add: num_new 4") or "num_new 4" in record.getMessage() for record in caplog.records
    )


def test_a_job_that_fails_leaves_no_record_of_success(small_index, caplog):
    caplog.set_level(logging.INFO, logger="lemur_ann")
    index, documents, _ = small_index()
    caplog.clear()
    with pytest.raises(ValueError, match="doc-0"):
        index.add(documents[:1], ids=["doc-0"])
    assert [record.event for record in caplog.records] == []


def test_reprs_name_what_there_is(small_index, word_encoder):
    hits = Hits(np.array(["a<b", *"cdefg"], object), np.arange(6, 0, -1, dtype=np.float32))
    assert repr(hits) == "<Hits of 6: 'a<b': 6, 'c': 5, 'd': 4, 'e': 3, 'f': 2, ...>"
    assert repr(Hits(np.empty(0, object), np.empty(0, np.float32))) == "<Hits of 0>"
    html = hits._repr_html_()
    assert "a&lt;b" in html
    assert html.count("<tr>") == 7
    index, _, queries = small_index()
    index.tune(queries, 0.5)
    html = index._repr_html_()
    assert "200" in html
    assert "tuned for 0.5" in html
    assert "not learned" in LemurIndex()._repr_html_()
    assert "not learned" in TextIndex(word_encoder)._repr_html_()
