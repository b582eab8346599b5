"""The maps that small codes are made with, and what each width loses."""

from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner

from lemur_ann import LemurIndex, _core
from lemur_ann.cli import app
from lemur_ann.documents.coded import Codebook
from lemur_ann.documents.tokens import TokenStore
from lemur_ann.learning import codes as code_maps
from lemur_ann.learning.codes import learn_codes
from lemur_ann.learning.second_look import learn_centroids

SMALL = {"num_features": 128, "epochs": 0, "rank": 31}


def alike(rng, count, dim, common):
    """Directions that have much in common, as those of many encoders."""
    rows = rng.normal(size=(count, dim)) / np.sqrt(dim) + common
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def made(rng):
    dim = 64
    common = rng.normal(size=dim) / np.sqrt(dim) * 1.5
    store = TokenStore([(alike(rng, 8000, dim, common), np.arange(0, 8001, 20))])
    centroids = learn_centroids(store, np.arange(400), 64, np.random.default_rng(0))
    return store, centroids, alike(rng, 2000, dim, common)


def squared_error(store, centroids, maps, queries, bits):
    """Of products of coded tokens with sums of 25 query tokens, in mean: what they have in common moves whole scores."""
    tokens = store.chunks[0].tokens
    codec = Codebook(centroids, *maps[:2], float(maps[2][0]), bits).codec
    ids = _core.Centroids(centroids).nearest(tokens, 1)
    codes, scales, _ = codec.encode(tokens, ids, 1)
    asked = queries.reshape(-1, 25, 64).sum(axis=1)
    return np.mean((asked @ (codec.decode(codes, ids, scales, None) - tokens).T) ** 2)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_errors_are_balanced_by_what_queries_ask(made, bits):
    store, centroids, queries = made
    maps = learn_codes(store, np.arange(400), centroids, queries[:1000], 0)
    np.testing.assert_allclose(maps.token_map.T @ maps.query_map, np.eye(64), atol=1e-4)
    rotation = np.linalg.qr(np.random.default_rng(5).normal(size=(64, 64)))[0].astype(np.float32)
    largest = np.abs(store.chunks[0].tokens @ rotation.T).max()
    plain = rotation, rotation, np.array([largest / 120], np.float32)
    balanced = squared_error(store, centroids, maps, queries[1000:], bits)
    share = {1: 1.0, 2: 0.7, 4: 0.7}[bits]  # one bit leaves much of what is along the token itself, whatever the map
    assert balanced < share * squared_error(store, centroids, plain, queries[1000:], bits)


def test_the_product_of_both_traces_is_the_least(rng):
    """As the docstring says: of the geometric mean, and of no map near it."""
    a, b = (np.cov(rng.normal(size=(6, 40)) * rng.uniform(0.2, 3, size=(6, 1))) for _ in range(2))

    def product(square):
        return np.trace(square @ a) * np.trace(np.linalg.inv(square) @ b)

    best = code_maps._geometric_mean(a, b)
    root = code_maps._root(a, 0.5)
    assert product(best) == pytest.approx(np.trace(code_maps._root(root @ b @ root, 0.5)) ** 2)
    for _ in range(50):
        change = rng.normal(size=(6, 6)) * 0.05
        near = best + change @ best + best @ change.T + change @ best @ change.T
        assert product(near) >= product(best) * (1 - 1e-12)


def test_few_tokens_and_queries_of_one_direction(rng):
    tokens = np.tile(np.eye(8, dtype=np.float32)[:1], (5, 1))
    store = TokenStore([(tokens, np.array([0, 5]))])
    maps = learn_codes(store, np.arange(1), tokens[:1], tokens[:1], 0)
    assert all(np.isfinite(array).all() for array in maps)
    codec = Codebook(tokens[:1], *maps[:2], float(maps[2][0]), 4).codec
    codes, scales, _ = codec.encode(tokens, np.zeros(5, np.uint16), 1)
    np.testing.assert_allclose(codec.decode(codes, np.zeros(5, np.uint16), scales, None), tokens, atol=0.05)


@pytest.fixture(scope="module")
def index(demo_data):
    return LemurIndex(**SMALL).fit(demo_data.documents, demo_data.training_queries)


def test_tune_codes(index, demo_data):
    found = index.tune_codes(demo_data.queries, relevant="id", max_loss=0.2)
    assert [width.token_codes for width in found.widths] == ["int4", "int3", "int2", "int1"]
    assert [width.bytes_per_token for width in found.widths] == [68, 52, 36, 20]
    recalls = [width.recall for width in found.widths]
    assert recalls == sorted(recalls, reverse=True)
    for width in found.widths:
        assert width.recall_interval[0] <= width.recall <= width.recall_interval[1]
        assert width.recall_of_several >= width.recall
        assert width.relevance.measures["success@10"].exact > 0.5
        coded = LemurIndex(**SMALL, token_codes=width.token_codes, keep_tokens="none")
        coded.fit(demo_data.documents, encoder=index.encoder)
        alone = coded.search(demo_data.queries)
        exact = index.search(demo_data.queries, exact=True)
        own = np.mean([len(set(a.ids) & set(b.ids)) / 10 for a, b in zip(alone, exact, strict=True)])
        assert own == pytest.approx(width.recall)
    held = [width for width in found.widths if width.loss <= 0.2]
    assert found.token_codes == (held[-1].token_codes if held else None)
    assert (found.token_codes or "keep the tokens") in str(found)
    certain = index.tune_codes(demo_data.queries, relevant="id", max_loss=0.2, certain=True)
    assert all(w.loss_interval[1] <= 0.2 for w in certain.widths if w.token_codes == certain.token_codes)
    by_recall = index.tune_codes(demo_data.queries, max_loss=1e-9)
    assert by_recall.token_codes is None
    assert "keep the tokens" in str(by_recall)


def test_what_tune_codes_refuses(index, demo_data):
    with pytest.raises(ValueError, match="at least one query"):
        index.tune_codes(demo_data.queries.slice(0, 0))
    with pytest.raises(ValueError, match="nothing tells what codes lose"):
        index.tune_codes(demo_data.queries.slice(0, 3), relevant=[[], [], []])
    emptied = LemurIndex(**SMALL).fit(demo_data.documents, encoder=index.encoder)
    emptied.delete(emptied.ids())
    with pytest.raises(ValueError, match="at least one document"):
        emptied.tune_codes(demo_data.queries)
    with pytest.raises((TypeError, ValueError), match="max_loss"):
        index.tune_codes(demo_data.queries, max_loss=0)
    alone = LemurIndex(**SMALL, token_codes="int4", keep_tokens="none").fit(demo_data.documents, encoder=index.encoder)
    with pytest.raises(ValueError, match="nothing tells what these lose"):
        alone.tune_codes(demo_data.queries)
    without = LemurIndex(**SMALL, num_centroids=0).fit(demo_data.documents, demo_data.training_queries)
    with pytest.raises(ValueError, match="nothing to make small codes with"):
        without.tune_codes(demo_data.queries)


def test_the_command_line(index, demo_data, tmp_path):
    import pyarrow.parquet as pq

    index.save(tmp_path / "index")
    pq.write_table(demo_data.queries, tmp_path / "queries.parquet")
    runner = CliRunner()
    asked = ["tune", str(tmp_path / "index"), str(tmp_path / "queries.parquet"), "--codes", "--relevant", "id"]
    found = runner.invoke(app, [*asked, "--max-loss", "0.5"])
    assert found.exit_code == 0, found.output
    assert "recode(" in found.output
    assert runner.invoke(app, [*asked, "--target-recall", "0.9"]).exit_code != 0
    done = runner.invoke(app, ["recode", str(tmp_path / "index"), "int2", "--keep-tokens", "none"])
    assert done.exit_code == 0, done.output
    assert "token codes" in done.output
    assert LemurIndex.load(tmp_path / "index").options.token_codes == "int2"
    assert runner.invoke(app, ["recode", str(tmp_path / "index"), "int4"]).exit_code != 0
