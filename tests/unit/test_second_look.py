"""The second look in an index: learned by fit, kept through changes and files, and used by searches."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import load_file, save_file

from lemur_ann import CorruptIndex, LemurEncoder, LemurIndex
from lemur_ann.candidates.look import LookWeights, SecondLook, usual_centroids
from lemur_ann.documents.coded import Part
from lemur_ann.learning.second_look import UNLEARNED, learn_centroids
from lemur_ann.saved import storage


@pytest.fixture(scope="module")
def looked(demo_data):
    return LemurIndex(num_features=256, epochs=0).fit(demo_data.documents, queries=demo_data.training_queries)


def ids_of_all(index):
    return np.concatenate([part.ids for part in index.snapshot.learned.look.parts])


def test_fit_learns_it(looked, demo_data):
    look = looked.encoder.look
    assert look.centroids.shape == (usual_centroids(looked.num_tokens), 128)
    np.testing.assert_allclose(np.linalg.norm(look.centroids, axis=1), 1, rtol=1e-5)
    assert set(looked.encoder.training["look_found"]) == {"estimate", "unlearned", "learned"}
    assert len(ids_of_all(looked)) == looked.num_tokens
    looked.check()


def test_it_finds_what_is_to_be_found(looked, demo_data):
    assert looked.evaluate(demo_data.queries, k=10).recall > 0.99


def test_changes_keep_it(demo_data, tmp_path):
    documents, late = demo_data.documents.slice(0, 550), demo_data.documents.slice(550)
    index = LemurIndex.open(tmp_path / "index", num_features=256, epochs=0)
    index.fit(documents, queries=demo_data.training_queries)
    for row in range(len(late)):
        index.add(late.slice(row, 1))
    index.check()
    at_once = index.encoder.look.codebook(0).nearest.nearest(
        np.concatenate([chunk.tokens for chunk in index.snapshot.store.chunks]), 2
    )
    np.testing.assert_array_equal(ids_of_all(index), at_once)
    before = [hits.ids.tolist() for hits in index.search(demo_data.queries)]
    reader = LemurIndex.open(tmp_path / "index", read_only=True)
    reader.check()
    assert [hits.ids.tolist() for hits in reader.search(demo_data.queries)] == before
    index.delete(index.ids().to_pylist()[::10])
    index.compact()
    index.check()
    assert len(ids_of_all(index)) == index.num_tokens
    look = index.encoder.look
    index.refit()  # from tokens of queries, which say nothing of shortlists
    for name, array in index.encoder.look.arrays.items():
        np.testing.assert_array_equal(array, look.arrays[name])
    index.refit(demo_data.training_queries, seed=1)
    assert not np.array_equal(index.encoder.look.centroids[:100], look.centroids[:100])
    index.check()
    index.delete(index.ids())
    index.add(late)
    index.check()
    assert len(index.search(demo_data.queries[:1], k=3)[0]) == 3
    index.close()


def test_a_filter_holds_for_rare_tokens_too(looked, demo_data):
    mask = np.arange(len(looked)) % 2 == 0
    allowed = set(np.array(looked.ids().to_pylist())[mask])
    for hits in looked.search(demo_data.queries, k=20, filter=mask, num_candidates=25, shortlist=60):
        assert set(hits.ids) <= allowed


def test_documents_that_the_estimate_ranks_last_are_found_by_a_rare_token(rng):
    """One document has a token that no other has, and a query asks for it, which no training query did."""
    common = rng.normal(size=(30, 32)).astype(np.float32)

    def matrix(size):
        rows = common[rng.integers(0, 30, size)] + 0.3 * rng.normal(size=(size, 32)).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    documents = [matrix(12) for _ in range(3000)]
    rare = rng.normal(size=32).astype(np.float32)
    rare /= np.linalg.norm(rare)
    documents[1234][3] = rare
    index = LemurIndex(num_features=128, epochs=0, rank=31, num_centroids=2048).fit(
        documents, queries=[matrix(6) for _ in range(300)]
    )
    query = np.concatenate([matrix(2), np.tile(rare, (4, 1))])
    wide = {"k": 1, "num_candidates": 40, "ef_search": 100}
    assert index.search(query, exact=True, k=1).ids.tolist() == [1234]
    assert index.search(query, shortlist=0, **wide).ids.tolist() != [1234]
    assert index.search(query, shortlist=200, **wide).ids.tolist() == [1234]


def test_without_one(demo_data):
    index = LemurIndex(num_features=64, epochs=0, num_centroids=0).fit(demo_data.documents, queries=demo_data.training_queries)
    assert index.encoder.look is index.snapshot.learned.look is None
    assert index.evaluate(demo_data.queries[:5]).shortlist == 0
    small = LemurIndex(num_features=64, epochs=0).fit(demo_data.documents[:400], queries=demo_data.training_queries)
    assert small.encoder.look is None


def test_document_tokens_teach_it_where_there_are_no_queries(demo_data):
    with pytest.warns(UserWarning, match="Pass queries="):
        index = LemurIndex(num_features=64, epochs=0).fit(demo_data.documents)
    assert index.encoder.training["learned_from"] == "document tokens"
    assert index.encoder.look.hidden.shape == (32, 5)
    found = index.encoder.training["look_found"]
    assert found["learned"] >= found["unlearned"]
    how = {"num_candidates": 30, "ef_search": 100}
    with_it = index.evaluate(demo_data.queries, shortlist=200, **how).recall
    assert with_it > index.evaluate(demo_data.queries, shortlist=0, **how).recall


def test_where_nothing_can_teach_it_a_line_ranks(demo_data):
    tokens = [np.array(matrix[:1], np.float32) for matrix in demo_data.training_queries["tokens"].to_pylist()]
    index = LemurIndex(num_features=64, epochs=0).fit(demo_data.documents, queries=tokens)  # of one token each
    look = index.encoder.look
    for learned, given in zip((look.hidden, look.bias, look.output), UNLEARNED, strict=True):
        np.testing.assert_array_equal(learned, given)


def test_a_map_in_a_file_has_it(looked, demo_data, tmp_path):
    looked.encoder.save(tmp_path / "map.safetensors")
    encoder = LemurEncoder.load(tmp_path / "map.safetensors")
    other = LemurIndex().fit(demo_data.documents, encoder=encoder)
    assert [h.ids.tolist() for h in other.search(demo_data.queries)] == [
        h.ids.tolist() for h in looked.search(demo_data.queries)
    ]


def test_centroids_are_few_where_tokens_are(rng):
    from lemur_ann.documents.tokens import TokenStore

    tokens = np.zeros((20, 8), np.float32)
    tokens[:7] = rng.normal(size=(7, 8))
    store = TokenStore([(tokens, np.array([0, 10, 20]))])
    centroids = learn_centroids(store, np.arange(2), 100, np.random.default_rng(0))
    assert len(centroids) <= 7
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, rtol=1e-3)
    assert learn_centroids(store, np.array([1]), 100, np.random.default_rng(0)).shape == (0, 8)


def test_small_parts_are_merged(rng):
    rows = rng.normal(size=(10, 8)).astype(np.float32)
    look = SecondLook(LookWeights(rows / np.linalg.norm(rows, axis=1, keepdims=True), *UNLEARNED), [])
    for _ in range(100):
        look = look.with_part(Part(np.zeros(3, np.uint16), np.array([0, 3]), 10))
    assert look.num_rows == 100
    assert len(look.parts) < 10


@pytest.mark.parametrize("damage", ["ids", "offsets", "short", "gone"])
def test_damaged_files_are_refused(looked, demo_data, tmp_path, damage):
    looked.save(tmp_path / "index")
    manifest = json.loads((tmp_path / "index/manifest.json").read_text())
    (entry,) = manifest["centroids"]
    path = tmp_path / "index" / entry["file"]
    arrays = load_file(path)
    if damage == "ids":
        arrays["ids"][:] = 65_535
    elif damage == "offsets":
        arrays["offsets"][5:7] = arrays["offsets"][5:7][::-1].copy()
    elif damage == "short":
        arrays["offsets"] = arrays["offsets"][:-1]
    if damage == "gone":
        manifest["centroids"] = []
    else:
        save_file(arrays, path)
        manifest["files"][entry["file"]] = storage.describe(path)
    del manifest["manifest_sha256"]
    swap = storage.Swap(tmp_path / "index", manifest)
    swap.prepare()
    swap.do()
    swap.tidy()
    with pytest.raises(CorruptIndex):
        LemurIndex.load(tmp_path / "index").search(demo_data.queries)


def test_arrow_batches_of_queries(looked, demo_data):
    table = pa.Table.from_batches(demo_data.queries.select(["tokens"]).to_batches(max_chunksize=7))
    one_by_one = [looked.search(table.slice(i, 1), k=5, shortlist=200)[0].ids.tolist() for i in range(10)]
    assert [hits.ids.tolist() for hits in looked.search(table[:10], k=5, shortlist=200)] == one_by_one


def test_a_refit_from_kept_tokens_is_of_what_the_map_was_of(demo_data):
    with pytest.warns(UserWarning, match="Pass queries="):
        index = LemurIndex(num_features=64, epochs=0).fit(demo_data.documents)
    index.refit()
    assert index.encoder.training["learned_from"] == "document tokens"
    assert index.evaluate(demo_data.queries).num_candidates == 600
    index.refit(demo_data.training_queries)
    assert index.encoder.training["learned_from"] == "queries"
    assert index.evaluate(demo_data.queries).num_candidates == 240  # of few documents, and not five times 120
