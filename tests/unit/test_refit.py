"""Learning anew while the old map answers."""

from __future__ import annotations

import threading
import warnings
import weakref
from contextlib import contextmanager

import numpy as np
import pytest

from lemur_ann import LemurIndex, NotFitted
from lemur_ann.progress import Task


def bits(hits):
    return [(h.ids.tolist(), h.scores.tobytes()) for h in hits]


@contextmanager
def searching(work, num_threads=3):
    """Runs ``work`` over and over in threads, at least once before and once after the body; what they raise is raised here."""
    stop, failures, rounds = threading.Event(), [], [0] * num_threads

    def loop(i):
        try:
            while not stop.is_set():
                work()
                rounds[i] += 1
        except BaseException as error:  # asserted below, in the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=loop, args=(i,)) for i in range(num_threads)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: all(rounds) or failures)
        yield
        before = list(rounds)
        wait_for(lambda: all(now > then for now, then in zip(rounds, before, strict=True)) or failures)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures, failures[0]


def wait_for(condition):
    pause = threading.Event()
    for _ in range(6000):
        if condition():
            return
        pause.wait(0.01)
    raise TimeoutError("the searching threads do not move")


@pytest.mark.parametrize("candidates", ["hnsw", "exact"])
def test_searches_meanwhile_use_the_old_map_or_the_new_one(small_index, make_matrices, candidates):
    """Another width and rank, so that a search which mixed the two would fail; few candidates, so that the two differ."""
    index, _, queries = small_index(candidates=candidates, num_candidates=12)
    old = [index.search(query, k=10) for query in queries]
    seen = []

    def work():
        for i, query in enumerate(queries):
            seen.append((i, index.search(query, k=10)))

    with searching(work):
        index.refit(make_matrices(80), num_features=96, rank=23, num_candidates=14, epochs=2)
    new = [index.search(query, k=10) for query in queries]
    assert sum(a != b for a, b in zip(old, new, strict=True)) > 5
    assert all(hits in (old[i], new[i]) for i, hits in seen)
    assert any(hits == old[i] != new[i] for i, hits in seen)
    assert any(hits == new[i] != old[i] for i, hits in seen)
    assert index.search(queries, k=10) == new


def test_ids_and_documents_stay(small_index, make_matrices, tmp_path):
    index, documents, queries = small_index()
    more = make_matrices(30)
    index.add(more, ids=[f"more-{i}" for i in range(30)])
    index.delete(["doc-3", "more-4"])
    exact = bits(index.search(queries, k=228, exact=True))
    assert index.refit(make_matrices(50)) is index
    assert len(index) == 228
    assert bits(index.search(queries, k=228, exact=True)) == exact
    assert index.search(more[7], k=1, num_candidates=200).ids[0] == "more-7"
    for query in (documents[3], more[4]):
        assert not {"doc-3", "more-4"} & set(index.search(query, k=227, num_candidates=227).ids.tolist())
    index.save(tmp_path / "i")
    loaded = LemurIndex.load(tmp_path / "i")
    assert loaded.options == index.options
    assert bits(loaded.search(queries)) == bits(index.search(queries))
    assert loaded.health().recent.num_documents == 0
    for changed in (index, loaded):
        changed.add([documents[3]], ids=["doc-3"])
        assert changed.search(documents[3], k=1, num_candidates=200).ids[0] == "doc-3"
    assert loaded.health().recent.num_documents == 1


def test_it_learns_what_a_fit_would(small_index, make_matrices):
    """The same documents, queries, options and seed: the same map."""
    documents, training, queries = make_matrices(120), make_matrices(60), make_matrices(30)
    options = {"num_features": 48, "epochs": 1, "rank": 15, "num_candidates": 20, "candidates": "exact"}
    index = LemurIndex(**{**options, "epochs": 0, "rank": 7, "seed": 5})
    index.fit(documents[:70], queries=make_matrices(20), num_threads=1).add(documents[70:])
    index.refit(training, num_threads=1, **options, seed=0)
    fresh = LemurIndex(**options).fit(documents, queries=training, num_threads=1)
    assert index.options == fresh.options
    np.testing.assert_array_equal(index.snapshot.learned.candidates.vectors, fresh.snapshot.learned.candidates.vectors)
    assert bits(index.search(queries)) == bits(fresh.search(queries))


@pytest.mark.parametrize(
    ("options", "dim"), [({"rank": 7}, 8), ({"rank": None}, 65), ({"num_features": 24, "rank": None}, 25), ({}, 16)]
)
def test_options_change_the_map(small_index, make_matrices, options, dim):
    index, _, queries = small_index()
    index.refit(make_matrices(40), **options)
    assert index.encoder.dim == dim
    assert {name: getattr(index.options, name) for name in options} == options
    assert index.options.num_candidates == 40  # the others stay
    assert len(index.search(queries[0])) == 10


def test_resume_trains_on_from_the_old_features(small_index, make_matrices):
    index, _, queries = small_index(epochs=3)
    before = index.encoder.training["validation_loss"] or index.encoder.training["training_loss"]
    index.refit(queries, resume=True, epochs=1)
    after = index.encoder.training["validation_loss"] or index.encoder.training["training_loss"]
    scratch = small_index(epochs=1)[0].encoder.training
    assert after[0] < (scratch["validation_loss"] or scratch["training_loss"])[0]
    assert after[0] < before[0]
    for options, message in (({"epochs": 0}, "epochs above 0"), ({"num_features": 50}, "needs the same num_features")):
        with pytest.raises(ValueError, match=message):
            index.refit(queries, resume=True, **options)


def test_another_kind_of_candidates(small_index, make_matrices, tmp_path):
    index, _, queries = small_index(candidates="hnsw")
    index.refit(make_matrices(40), candidates="exact", ef_search=77)
    index.save(tmp_path / "i")
    assert list((tmp_path / "i").glob("vectors-*.safetensors"))
    assert bits(LemurIndex.load(tmp_path / "i").search(queries)) == bits(index.search(queries))
    assert index.health(queries).ef_search == 77


def test_without_queries_it_learns_from_the_tokens_it_kept(small_index):
    index, _, queries = small_index()
    sample = index.encoder.targets.sample_tokens
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # not from document tokens, as fit() without queries does
        index.refit()
    kept = index.encoder.targets.sample_tokens
    nearest = np.abs(kept[:, None] - sample).max(2).min(1)
    assert nearest.max() < 1e-6
    assert len(kept) >= 0.95 * len(sample)
    assert index.evaluate(queries, k=5, num_candidates=80).recall > 0.8


def test_its_own_tokens_are_better_than_document_tokens(demo_data):
    """On real embeddings, where queries and documents are not alike."""
    options = {"epochs": 0, "num_features": 256, "rank": 63, "num_candidates": 60, "candidates": "exact"}
    index = LemurIndex(**options).fit(demo_data.documents, queries=demo_data.training_queries)
    before = index.evaluate(demo_data.queries).recall
    after = index.refit().evaluate(demo_data.queries).recall
    with pytest.warns(UserWarning, match="Pass queries="):
        from_documents = index.fit().evaluate(demo_data.queries).recall
    assert abs(before - after) < 0.05
    assert after > from_documents + 0.1


STAGES = [
    "lemur_ann.learning.fitting.train_feature_map",
    "lemur_ann.learning.fitting.Reduction.learn",
    "lemur_ann.changes.kind_of",
    "lemur_ann.candidates.hnsw.HnswBuilder.add",
    "lemur_ann.candidates.hnsw.HnswBuilder.finish",
    "lemur_ann.changes.Changes.publish",
]


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupted_refit_leaves_the_old_map(small_index, make_matrices, monkeypatch, tmp_path, stage):
    index, _, queries = small_index()
    before, learned, options = bits(index.search(queries)), index.snapshot.learned, index.options

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, interrupt)
        with pytest.raises(KeyboardInterrupt):
            index.refit(make_matrices(50), rank=9, num_features=32)
    assert index.snapshot.learned is learned
    assert index.options == options
    assert bits(index.search(queries)) == before
    index.save(tmp_path / "i")
    assert bits(LemurIndex.load(tmp_path / "i").search(queries)) == before
    index.refit(make_matrices(50), rank=9)  # and the next one succeeds
    assert index.encoder.dim == 10


@pytest.mark.filterwarnings("ignore:training was interrupted")  # it goes on, and the next interrupt gives up
def test_interrupted_at_every_step_of_progress(small_index, make_matrices, monkeypatch):
    """Wherever it reports progress, an interrupt there changes nothing."""
    index, _, queries = small_index(epochs=1)
    before = bits(index.search(queries))
    steps, limit = [0], [10**9]
    advance = Task.advance

    def count(self, *arguments, **named):
        steps[0] += 1
        if steps[0] > limit[0]:
            raise KeyboardInterrupt
        advance(self, *arguments, **named)

    monkeypatch.setattr(Task, "advance", count)
    training = make_matrices(30)
    probe, _, _ = small_index()
    steps[0] = 0
    probe.refit(training)
    total = steps[0]
    assert total > 3
    for stop in range(total):
        steps[0], limit[0] = 0, stop
        with pytest.raises(KeyboardInterrupt):
            index.refit(training, rank=9)
        assert bits(index.search(queries)) == before


def test_one_interrupt_during_training_ends_only_that(small_index, make_matrices, monkeypatch):
    index, _, queries = small_index()
    advance, training = Task.advance, [0]

    def once(self, *arguments, **named):
        if "epoch" in str(named.get("note")):
            training[0] += 1
            if training[0] == 3:
                raise KeyboardInterrupt
        advance(self, *arguments, **named)

    monkeypatch.setattr(Task, "advance", once)
    with pytest.warns(UserWarning, match="training was interrupted in epoch"):
        index.refit(make_matrices(60), rank=9, epochs=50)
    assert index.encoder.dim == 10
    assert index.evaluate(queries, k=5, num_candidates=80).recall > 0.6


@pytest.mark.parametrize("candidates", ["hnsw", "exact"])
def test_a_document_deleted_meanwhile_stays_deleted(small_index, make_matrices, monkeypatch, candidates):
    index, documents, _ = small_index(candidates=candidates)
    import lemur_ann.learning.fitting

    learn = lemur_ann.learning.fitting.fit_map

    def fit_and_delete(*arguments, **named):
        result = learn(*arguments, **named)
        worker = threading.Thread(target=index.delete, args=(["doc-8", "doc-9"],))
        worker.start()
        worker.join()
        return result

    monkeypatch.setattr(lemur_ann.learning.fitting, "fit_map", fit_and_delete)
    index.refit(make_matrices(40))
    assert len(index) == 198
    for i in (8, 9):
        assert f"doc-{i}" not in index.search(documents[i], k=197, num_candidates=197).ids.tolist()
    assert index.health().documents.num_documents == 198
    index.add([documents[8]], ids=["doc-8"])
    assert index.search(documents[8], k=1, num_candidates=150).ids[0] == "doc-8"


def test_documents_added_meanwhile_are_in_the_new_map(small_index, make_matrices, monkeypatch):
    import lemur_ann.learning.fitting

    index, documents, _ = small_index()
    learn = lemur_ann.learning.fitting.fit_map
    late = make_matrices(2)

    def fit_and_change(*arguments, **named):
        result = learn(*arguments, **named)
        worker = threading.Thread(target=lambda: index.add(late, ids=["a", "b"]).delete(["b", "doc-4"]))
        worker.start()
        worker.join()
        return result

    with monkeypatch.context() as patch:
        patch.setattr(lemur_ann.learning.fitting, "fit_map", fit_and_change)
        index.refit(make_matrices(40), rank=7)
    assert (index.encoder.dim, len(index)) == (8, 200)
    assert index.search(late[0], k=1, num_candidates=150).ids[0] == "a"
    assert not {"b", "doc-4"} & set(index.search(documents[4], k=199, num_candidates=199).ids.tolist())
    assert index.health().recent.num_documents == 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"epoch": 3, "ranks": 4}, TypeError, "unknown options epoch, ranks; expected any of num_features, epochs, "),
        ({"epochs": -1}, ValueError, "epochs must be at least 0, got -1"),
        ({"rank": 0}, ValueError, "rank must be at least 1, got 0"),
        ({"candidates": "lsh"}, ValueError, "candidates must be one of hnsw, exact, faiss, usearch, svs, got 'lsh'"),
        ({"num_threads": 0}, ValueError, "num_threads must be at least 1, got 0"),
        ({"queries": []}, ValueError, "refit needs at least one query, got none; queries=None learns from"),
        ({"queries": [np.ones((2, 8), np.float32)]}, ValueError, "query 0 has dim 8, index has dim 16"),
        ({"queries": [np.full((1, 16), np.nan, np.float32)]}, ValueError, "query 0 has a NaN"),
        ({"query_offsets": [0, 1]}, TypeError, "query_offsets= goes with queries"),
    ],
)
def test_bad_arguments_start_nothing(small_index, monkeypatch, arguments, error, message):
    index, _, queries = small_index()
    before, learned = bits(index.search(queries)), index.snapshot.learned
    monkeypatch.setattr("lemur_ann.learning.fitting.fit_map", lambda *_, **__: pytest.fail("it began to learn"))
    with pytest.raises(error, match=message):
        index.refit(**arguments)
    assert index.snapshot.learned is learned
    assert bits(index.search(queries)) == before


def test_before_fit_and_without_documents(small_index, make_matrices):
    with pytest.raises(NotFitted, match="no learned map yet: call fit"):
        LemurIndex().add(make_matrices(3)).refit(make_matrices(3))
    index, _, _ = small_index()
    index.delete([f"doc-{i}" for i in range(200)])
    with pytest.raises(ValueError, match="refit needs at least one document, and the index holds none"):
        index.refit(make_matrices(3))


def test_flat_queries(small_index, make_matrices):
    index, _, _ = small_index()
    flat = np.concatenate(make_matrices(30, low=4, high=4))
    index.refit(flat, query_offsets=np.arange(0, 121, 4))
    assert len(index.encoder.targets.sample_tokens) == 116  # a query of thirty is held out


@pytest.mark.parametrize("how", ["fit", "refit"])
def test_queries_are_let_go_before_the_graph_is_built(small_index, make_matrices, how):
    index, _, _ = small_index()
    alive = []

    def asked():
        matrices = make_matrices(40)
        asked.first = weakref.ref(matrices[0])
        return matrices

    def watch(stage, done, total):
        if stage == "hnsw index" and done == 0:
            alive.append(asked.first() is not None)

    if how == "fit":
        index.fit(queries=asked(), progress=watch)
    else:
        index.refit(asked(), progress=watch)
    assert alive
    assert not any(alive)
