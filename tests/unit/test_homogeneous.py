"""MaxSim orders documents alike whatever the length of a query's tokens, and so do candidates."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lemur_ann import LemurEncoder, LemurIndex
from lemur_ann.documents.inputs import QueryBatch, directions_of, to_offsets
from lemur_ann.learning.features import FeatureMap
from lemur_ann.learning.query_features import FeatureWeights


def unit(tokens):
    return (tokens / np.linalg.norm(tokens, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def learned():
    """Documents about a few subjects, a map of them, and queries that it was not learned from."""
    random = np.random.default_rng(5)
    centres = unit(random.normal(size=(60, 16)))

    def tokens(low, high):
        count = int(random.integers(low, high))
        return unit(centres[random.integers(0, 60, count)] + 0.4 * random.normal(size=(count, 16)) / 4)

    documents = [tokens(4, 12) for _ in range(1200)]
    training, queries = [tokens(4, 9) for _ in range(400)], [tokens(4, 9) for _ in range(40)]
    return documents, training, queries


def fitted(documents, training, **options):
    return LemurIndex(**{"num_features": 128, "epochs": 1, "rank": 31, "num_candidates": 40, **options}).fit(
        documents, training
    )


def recall(index, queries):
    pairs = zip(index.search(queries, k=10), index.search(queries, k=10, exact=True), strict=True)
    return np.mean([np.isin(b.ids, a.ids).mean() for a, b in pairs])


def padded(queries, more=20):
    batch = np.zeros((len(queries), max(map(len, queries)) + more, 16), np.float32)
    for row, query in zip(batch, queries, strict=True):
        row[: len(query)] = query
    return batch


@pytest.mark.parametrize("epochs", [0, 1])
def test_scaled_and_padded_queries_find_the_same(learned, epochs):
    documents, training, queries = learned
    index = fitted(documents, training, epochs=epochs)
    expected = [hits.ids.tolist() for hits in index.search(queries, k=10)]
    variants = {
        "times 2": [2 * q for q in queries],
        "over the number of tokens": [q / np.float32(len(q)) for q in queries],
        "tiny": [np.float32(1e-18) * q for q in queries],
        "huge": [np.float32(1e13) * q for q in queries],
        "padded": padded(queries),
        "zeros first": [np.concatenate([np.zeros((3, 16), np.float32), q]) for q in queries],
    }
    for name, asked in variants.items():
        found = [hits.ids.tolist() for hits in index.search(asked, k=10)]
        same = np.mean([np.isin(a, b).mean() for a, b in zip(expected, found, strict=True)])
        assert same > 0.99, (name, same)


@pytest.mark.parametrize("prepare", [lambda q: 7 * q, lambda q: np.concatenate([q, np.zeros((30, 16), np.float32)])])
def test_learned_from_scaled_or_padded_queries(learned, prepare):
    documents, training, queries = learned
    plain, other = fitted(documents, training), fitted(documents, [prepare(q) for q in training])
    assert recall(other, queries) > recall(plain, queries) - 0.05


def test_token_weights_by_scaling_rows(learned):
    """Weights of tokens, learned with and searched with: the ranking is that of weighted MaxSim."""
    documents, training, queries = learned
    random = np.random.default_rng(0)
    weighed = [q * random.uniform(0, 2, (len(q), 1)).astype(np.float32) for q in queries]
    learned_weighed = [q * random.uniform(0, 2, (len(q), 1)).astype(np.float32) for q in training]
    assert recall(fitted(documents, learned_weighed), weighed) > recall(fitted(documents, training), queries) - 0.08


def test_features_are_homogeneous_in_torch_and_in_the_core():
    random = np.random.default_rng(1)
    tokens = random.normal(size=(9, 8)).astype(np.float32)
    tokens[4] = 0
    for kind in ("trained", "random"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            psi = FeatureMap(8, 32, kind=kind, homogeneous=True).freeze()
        directions, lengths = directions_of(tokens)
        network = FeatureMap(8, 32, kind=kind).freeze()
        network.load_state_dict(psi.state_dict())
        expected = network.token_features(directions).numpy().astype(np.float64) * lengths[:, None]
        np.testing.assert_allclose(psi.token_features(tokens).numpy(), expected, rtol=1e-4, atol=1e-6)
        assert not psi.token_features(tokens).numpy()[4].any()
        encoder = FeatureWeights.of(psi).query_encoder(np.eye(32, dtype=np.float32))
        for scale in (1e-12, 1.0, 3.0, 1e12):
            scaled = (tokens * np.float32(scale)).astype(np.float32)
            found = encoder.encode(scaled, np.array([0, 5, 9]), 1)
            wanted = np.array([expected[:5].sum(0), expected[5:].sum(0)]) * scale
            np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5 * scale)


def test_zero_rows_of_a_batch():
    tokens = np.array([[0, 0], [1, 0], [0, 0], [0, 0], [0, 0], [0, 2], [-0.0, 0]], np.float32)
    batch = QueryBatch(tokens, to_offsets([3, 2, 2])).without_zero_rows
    assert [batch.matrix(i).tolist() for i in range(3)] == [[[1, 0]], [[0, 0]], [[0, 2]]]
    same = QueryBatch(tokens[5:6], to_offsets([1]))
    assert same.without_zero_rows is same


def test_a_query_of_zeros_alone_is_answered(learned):
    documents, training, queries = learned
    index = fitted(documents, training)
    first, zeros = index.search([queries[0], np.zeros((3, 16), np.float32)], k=5)
    assert first.ids.tolist() == index.search(queries[0], k=5).ids.tolist()
    assert len(zeros) == 5
    assert not zeros.scores.any()


def test_a_map_says_that_it_is_homogeneous_and_keeps_it(learned, tmp_path):
    documents, training, queries = learned
    index = fitted(documents, training)
    assert index.encoder.feature_weights.config["homogeneous"] is True
    index.encoder.save(tmp_path / "map")
    loaded = LemurEncoder.load(tmp_path / "map")
    thrice, once = loaded.encode_queries(3 * queries[0]), loaded.encode_queries(queries[0])
    np.testing.assert_allclose(thrice, 3 * once, rtol=1e-4, atol=1e-6 * np.abs(thrice).max())  # one of them may cancel out
