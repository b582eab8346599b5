"""Small codes of tokens, beside the tokens or alone, through all that an index does."""

from __future__ import annotations

import json
import os
import threading

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lemur_ann import CorruptIndex, LemurEncoder, LemurIndex
from lemur_ann.saved import storage
from lemur_ann.searching.snapshot import Learned

SMALL = {"num_features": 128, "epochs": 0, "rank": 31}
WIDTHS = ["int4", "int3", "int2", "int1"]
ALIKE = {**SMALL, "num_centroids": 512}  # of which small codes have more by themselves: one map for all


def queries_of(data):
    return [np.array(tokens, np.float32) for tokens in data.queries["tokens"].to_pylist()]


def ids_of(hits):
    return [own.ids.tolist() for own in hits]


def shared(one, other):
    """How much of the one's hits the other has."""
    return np.mean([len(set(a.ids) & set(b.ids)) / len(a) for a, b in zip(one, other, strict=True)])


@pytest.fixture(scope="module")
def exact(demo_data):
    """The same index with tokens alone."""
    return LemurIndex(**ALIKE, token_codes=None).fit(demo_data.documents, demo_data.training_queries)


@pytest.fixture(scope="module", params=WIDTHS)
def with_tokens(request, demo_data):
    return LemurIndex(**ALIKE, token_codes=request.param).fit(demo_data.documents, demo_data.training_queries)


@pytest.fixture(scope="module", params=WIDTHS)
def alone(request, demo_data):
    return LemurIndex(**ALIKE, token_codes=request.param, keep_tokens="none").fit(
        demo_data.documents, demo_data.training_queries
    )


def test_with_tokens_the_hits_are_the_same(exact, with_tokens, demo_data):
    queries = queries_of(demo_data)
    assert ids_of(with_tokens.search(queries)) == ids_of(exact.search(queries))
    for one, other in zip(with_tokens.search(queries), exact.search(queries), strict=True):
        np.testing.assert_array_equal(one.scores, other.scores)
        assert one.exact


def test_codes_alone_are_as_good_as_they_are_wide(exact, alone, demo_data):
    queries = queries_of(demo_data)
    hits, best = alone.search(queries), exact.search(queries, exact=True)
    least = {"int4": 0.75, "int3": 0.6, "int2": 0.5, "int1": 0.35}[alone.options.token_codes]
    assert shared(best, hits) > least
    assert not any(own.exact for own in hits)
    for own, every in zip(hits, alone.search(queries, k=len(alone), exact=True), strict=True):  # by the same scores
        known = dict(every)
        assert [known[doc_id] for doc_id, _ in own] == own.scores.tolist()


def test_scores_are_those_of_what_get_gives(alone, demo_data):
    query = queries_of(demo_data)[0]
    hits = alone.search(query, k=5)
    table = alone.get(hits.ids.tolist())
    assert table.schema.field("tokens").type == demo_data.documents.schema.field("tokens").type or len(table) == 5
    for row, score in enumerate(hits.scores):
        tokens = np.array(table["tokens"][row].as_py(), np.float32)
        assert (query @ tokens.T).max(1).sum() == pytest.approx(score, rel=2e-3)  # tokens are given as float16
    explained = alone.explain(query, hits.ids[0])
    assert explained.score == pytest.approx(float(hits.scores[0]), rel=1e-5)


def test_sizes(exact, alone, with_tokens, tmp_path):
    bits = {"int4": 4, "int3": 3, "int2": 2, "int1": 1}
    for index in (alone, with_tokens):
        size = index.stats().parts["token codes"].size
        assert size == index.num_tokens * (bits[index.options.token_codes] * 16 + 2)
    assert "tokens" not in alone.stats().parts
    alone.save(tmp_path / "alone")
    exact.save(tmp_path / "exact")
    sizes = [sum(file.stat().st_size for file in (tmp_path / name).iterdir()) for name in ("alone", "exact")]
    assert sizes[0] < sizes[1] - exact.num_tokens * (256 - 68)
    assert not list((tmp_path / "alone").glob("tokens-*"))


@pytest.mark.parametrize("keep_tokens", ["exact", "none"])
def test_it_lives(demo_data, tmp_path, keep_tokens):
    """Added to, deleted from, compacted, learned anew, saved, opened: it answers as one made at once does."""
    documents, queries = demo_data.documents, queries_of(demo_data)
    options = {**SMALL, "token_codes": "int4", "keep_tokens": keep_tokens}
    with LemurIndex.open(tmp_path / "index", **options) as index:
        index.fit(documents.slice(0, 520), demo_data.training_queries)
        for begin in range(520, 600, 8):
            index.add(documents.slice(begin, 8))
        index.check()
        assert len(index) == 600
        assert index.num_tokens == sum(len(tokens) for tokens in documents["tokens"])
        before = index.search(queries)
        index.upsert(documents.slice(590, 5))
        index.delete(documents["id"].to_pylist()[:60])
        index.compact()
        index.check()
        after = index.search(queries)
        assert not {doc_id for own in after for doc_id in own.ids} & set(documents["id"].to_pylist()[:60])
        assert shared(after, before) > 0.7  # a tenth of the documents is gone
        index.refit(demo_data.training_queries)
        index.check()
        again = index.search(queries)
        assert shared(again, after) > 0.95
        reader = LemurIndex.open(tmp_path / "index", read_only=True)
        reader.check()
        assert ids_of(reader.search(queries)) == ids_of(again)
        index.delete(index.ids())
        assert len(index) == 0
        index.add(documents.slice(0, 30))
        assert ids_of(index.search(queries[:1], exact=True)) == ids_of(index.search(queries[:1]))
        assert reader.refresh()
        assert len(reader) == 30
        index.save(tmp_path / "copy")
    copy = LemurIndex.load(tmp_path / "copy")
    copy.check()
    assert ids_of(copy.search(queries)) == ids_of(reader.search(queries))
    assert copy.options.keep_tokens == keep_tokens


def test_a_late_document_is_coded_as_one_that_was_there(demo_data):
    documents = demo_data.documents
    options = {**SMALL, "token_codes": "int2", "keep_tokens": "none"}
    index = LemurIndex(**options).fit(documents.slice(0, 560), demo_data.training_queries)
    index.add(documents.slice(560, 20)).add(documents.slice(580, 20))
    at_once = LemurIndex(**options).fit(documents, encoder=index.encoder)
    for one, other in zip(index.get(index.ids())["tokens"], at_once.get(index.ids())["tokens"], strict=True):
        assert one == other


def test_vectors_longer_than_one(rng):
    """Lengths of tokens are kept, and count."""
    documents = [rng.normal(size=(12, 16)).astype(np.float32) * rng.uniform(0.5, 4) for _ in range(700)]
    queries = [own[:4] + 0.1 for own in documents[::3]]
    options = {**SMALL, "rank": 15, "token_codes": "int4"}
    exact = LemurIndex(**{**options, "token_codes": None}).fit(documents, queries)
    for keep_tokens in ("exact", "none"):
        index = LemurIndex(**options, keep_tokens=keep_tokens).fit(documents, queries)
        best = exact.search(queries[:40], exact=True)
        assert shared(best, index.search(queries[:40], exact=True)) > (0.999 if keep_tokens == "exact" else 0.8)
        assert index.stats().parts["token codes"].size == index.num_tokens * (16 + 2 + 4)  # 16 bytes at least


def test_recode(demo_data, tmp_path):
    queries = queries_of(demo_data)
    with LemurIndex.open(tmp_path / "index", **SMALL) as index:
        index.fit(demo_data.documents, demo_data.training_queries)
        before = ids_of(index.search(queries))
        for codes in ("int4", None, "int2", "int8", "int1", "int4"):
            assert index.recode(codes) is index
            index.check()
            assert index.options.token_codes == codes
            assert ids_of(index.search(queries)) == before
            assert ids_of(LemurIndex.open(tmp_path / "index", read_only=True).search(queries)) == before
        with pytest.raises(ValueError, match="keep_tokens='none' keeps small codes alone"):
            index.recode("int8", keep_tokens="none")
        index.recode("int4", keep_tokens="none")
        index.check()
        fresh = LemurIndex(**SMALL, token_codes="int4", keep_tokens="none")
        fresh.fit(demo_data.documents, encoder=index.encoder)
        assert ids_of(index.search(queries)) == ids_of(fresh.search(queries))
        for codes, keep in (("int8", "exact"), (None, "exact"), ("int4", "exact")):
            with pytest.raises(ValueError, match="tokens are not kept"):
                index.recode(codes, keep_tokens=keep)
        index.recode("int2")
        assert shared(fresh.search(queries), index.search(queries)) > 0.4
        with pytest.raises(ValueError, match="can become smaller"):
            index.recode("int4")
    assert LemurIndex.load(tmp_path / "index").options.token_codes == "int2"


def test_recode_before_fit(demo_data, tmp_path):
    with LemurIndex.open(tmp_path / "index", **SMALL) as index:
        index.add(demo_data.documents.slice(0, 300))
        before = ids_of(index.search(queries_of(demo_data)))
        index.recode("int4")
        index.check()
        assert ids_of(index.search(queries_of(demo_data))) == before
        index.recode("int8")
        index.check()
    with LemurIndex.open(tmp_path / "index") as index:
        assert index.options.token_codes == "int8"
        index.recode("int4", keep_tokens="none")
        index.fit(queries=demo_data.training_queries)
        assert not list((tmp_path / "index").glob("tokens-*"))
        index.check()


def test_an_interrupt_of_recode_changes_nothing(demo_data, tmp_path, monkeypatch):
    index = LemurIndex.open(tmp_path / "index", **SMALL).fit(demo_data.documents, demo_data.training_queries)
    before, options = ids_of(index.search(queries_of(demo_data))), index.options
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        index.recode("int4", keep_tokens="none")
    monkeypatch.undo()
    assert index.options == options
    assert ids_of(index.search(queries_of(demo_data))) == before
    index.check()
    index.close()
    assert ids_of(LemurIndex.load(tmp_path / "index").search(queries_of(demo_data))) == before


def test_maps_of_older_versions_take_small_codes(demo_data, tmp_path):
    """Which have centroids, and nothing to make small codes with."""
    index = LemurIndex(**SMALL, token_codes="int8").fit(demo_data.documents, demo_data.training_queries)
    look = index.encoder.look
    object.__setattr__(look, "codes", None)
    index.save(tmp_path / "old")
    old = LemurIndex.load(tmp_path / "old")
    assert old.encoder.look.codes is None
    before = ids_of(old.search(queries_of(demo_data)))
    old.recode("int4")
    old.check()
    assert ids_of(old.search(queries_of(demo_data))) == before
    old.save(tmp_path / "new")
    assert ids_of(LemurIndex.load(tmp_path / "new").search(queries_of(demo_data))) == before
    without = LemurIndex(**SMALL, num_centroids=0).fit(demo_data.documents, demo_data.training_queries)
    with pytest.raises(ValueError, match="num_centroids=0 has none"):
        without.recode("int4")
    with pytest.raises(ValueError, match="learned without any"):
        LemurIndex(**SMALL, token_codes="int4").fit(demo_data.documents, encoder=without.encoder)


def test_few_documents(demo_data):
    index = LemurIndex(**SMALL, token_codes="int4", keep_tokens="none").fit(
        demo_data.documents.slice(0, 40), demo_data.training_queries
    )
    assert "tokens" not in index.stats().parts
    assert len(index.search(queries_of(demo_data)[0], k=50)) == 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token_codes": "int5"}, "token_codes must be 'int8', 'int4', 'int3', 'int2', 'int1' or None"),
        ({"keep_tokens": "some"}, "keep_tokens must be 'exact' or 'none'"),
        ({"keep_tokens": "none"}, "keeps small codes alone: token_codes must be"),
        ({"token_codes": "int4", "num_centroids": 0}, "num_centroids=0 has none"),
        ({"token_codes": "int4", "keep_tokens": "none", "device": "cuda"}, "device must be 'cpu'"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        LemurIndex(**options)


@pytest.mark.parametrize("damage", ["codes", "scales", "lengths", "gone", "tokens", "negative", "nan", "dtype"])
def test_damaged_files_are_refused(demo_data, tmp_path, damage):
    index = LemurIndex(**SMALL, token_codes="int4", keep_tokens="none")
    index.fit(demo_data.documents, demo_data.training_queries).save(tmp_path / "index")
    manifest = json.loads((tmp_path / "index/manifest.json").read_text())
    file = tmp_path / "index" / manifest["centroids"][0]["file"]
    arrays = load_file(file)
    if damage == "codes":
        arrays["codes"] = arrays["codes"][:, :32].copy()
    elif damage == "scales":
        arrays["scales"] = arrays["scales"][:-1].copy()
    elif damage == "lengths":
        arrays["lengths"] = np.ones(3, np.float32)
    elif damage == "negative":
        arrays["scales"][5] = -32768
    elif damage == "nan":
        arrays["lengths"] = np.full(len(arrays["ids"]), np.nan, np.float32)
    elif damage == "dtype":
        manifest["token_dtype"] = "object"
    elif damage == "gone":
        del arrays["codes"]
    else:
        manifest["segments"][0]["tokens"] = manifest["segments"][0]["documents"]
    save_file(arrays, file)
    manifest["files"][file.name] = storage.describe(file)
    del manifest["manifest_sha256"]
    swap = storage.Swap(tmp_path / "index", manifest)
    swap.prepare()
    swap.do()
    swap.tidy()
    with pytest.raises(CorruptIndex):
        LemurIndex.load(tmp_path / "index")


def test_a_map_in_a_file_makes_the_same_codes(alone, demo_data, tmp_path):
    alone.encoder.save(tmp_path / "map")
    encoder = LemurEncoder.load(tmp_path / "map")
    again = LemurIndex(token_codes=alone.options.token_codes, keep_tokens="none").fit(demo_data.documents, encoder=encoder)
    queries = queries_of(demo_data)
    assert ids_of(again.search(queries, exact=True)) == ids_of(alone.search(queries, exact=True))


def test_tokens_of_any_length(rng):
    """Lengths are kept as float32, token by token: a document is coded alike whatever comes with it."""
    documents = [rng.normal(size=(6, 16)).astype(np.float32) for _ in range(600)]
    for row, length in ((0, 3e5), (1, 1e-6), (2, 1e9)):
        documents[row] *= np.float32(length)
    options = {**SMALL, "rank": 15, "token_codes": "int4", "keep_tokens": "none"}
    index = LemurIndex(**options).fit(documents, documents[10:110])
    tokens = np.array(index.get([0])["tokens"][0].as_py(), np.float32)
    np.testing.assert_allclose(np.linalg.norm(tokens, axis=1), np.linalg.norm(documents[0], axis=1), rtol=0.1)
    hits = index.search(documents[5], k=600, exact=True)
    assert len(hits) == 600
    assert np.isfinite(hits.scores).all()
    near = documents[7] / np.linalg.norm(documents[7], axis=1, keepdims=True) * np.float32(1.008)
    index.add([near], ids=[1000])
    index.add([near, near * 2], ids=[1001, 1002])
    alone, beside = (index.get([doc_id])["tokens"][0].as_py() for doc_id in (1000, 1001))
    assert alone == beside


def test_learning_anew_codes_nothing_twice(demo_data):
    options = {**SMALL, "token_codes": "int4", "keep_tokens": "none"}
    index = LemurIndex(**options).fit(demo_data.documents, demo_data.training_queries)
    before = index.get(index.ids())["tokens"].to_pylist()
    index.fit(queries=demo_data.training_queries)
    index.refit(demo_data.training_queries)
    assert index.get(index.ids())["tokens"].to_pylist() == before
    with pytest.raises(ValueError, match="num_centroids stays"):
        index.refit(demo_data.training_queries, num_centroids=32)
    with pytest.raises(TypeError, match="recode changes them"):
        index.refit(token_codes="int2")


def test_changes_wait_for_recode(demo_data, monkeypatch):
    """What is deleted and added meanwhile comes after it."""
    index = LemurIndex(**SMALL).fit(demo_data.documents.slice(0, 550), demo_data.training_queries)
    tuned = index.tune(demo_data.queries, target_recall=0.5)
    changed, recoded = [], Learned.recoded

    def change():
        index.delete(index.ids())
        index.add(demo_data.documents.slice(550, 25))
        changed.append(len(index))

    def beside(self, *arguments):
        thread = threading.Thread(target=change)
        thread.start()
        thread.join(0.5)
        threads.append(thread)
        assert not changed
        return recoded(self, *arguments)

    threads: list[threading.Thread] = []
    monkeypatch.setattr(Learned, "recoded", beside)
    index.recode("int2")
    threads[0].join()
    assert changed == [25]
    assert len(index.search(queries_of(demo_data)[0], k=50)) == 25
    index.check()
    assert index.tuned == (tuned,)


def test_few_documents_are_recoded_once_they_have_centroids(demo_data):
    index = LemurIndex(**SMALL).fit(demo_data.documents.slice(0, 60), demo_data.training_queries)
    with pytest.raises(ValueError, match=r"refit\(num_centroids=64\)"):
        index.recode("int4")
    index.refit(num_centroids=64)
    before = ids_of(index.search(queries_of(demo_data)))
    index.recode("int4")
    assert ids_of(index.search(queries_of(demo_data))) == before


def test_float16_tokens_near_the_largest(rng):
    """What a code stands for may be beyond what its token's dtype holds: it ends there, and is no infinity."""
    documents = [(rng.normal(size=(3, 130)) * 3e4).clip(-6e4, 6e4).astype(np.float16) for _ in range(520)]
    options = {"num_features": 64, "epochs": 0, "rank": 7, "num_sample_tokens": 200}
    queries = [own[:2] for own in documents[:50]]
    index = LemurIndex(**options, token_codes="int1", keep_tokens="none").fit(documents, queries)
    tokens = index.get(index.ids()[:50])["tokens"].combine_chunks().values.values.to_numpy()
    assert np.abs(tokens.astype(np.float32)).max() == np.finfo(np.float16).max
    assert str(index.explain(documents[0], 0))
    assert len(LemurIndex(**options).fit(index.to_arrow(vectors=False), queries)) == 520
