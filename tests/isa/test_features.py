"""Query features in C++ against their definition in torch, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lemur_ann import _core
from lemur_ann.learning.features import ACTIVATIONS, FeatureMap
from lemur_ann.learning.query_features import FeatureWeights

LENGTHS = [1, 2, 3, 11, 12, 13, 32, 48, 49, 100]


def feature_map(kind, dim=24, num_features=70, activation="gelu", hidden_dims=()):
    torch.manual_seed(0)
    psi = FeatureMap(dim, num_features, kind=kind, hidden_dims=hidden_dims, activation=activation)
    for parameter in psi.parameters():  # a new normalisation has weights of one and biases of zero
        parameter.data += 0.3 * torch.randn_like(parameter)
    return psi.freeze()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("kind", "hidden_dims"), [("random", ()), ("trained", ()), ("trained", (40,)), ("trained", (33, 17))])
def test_as_torch(isa, kind, activation, hidden_dims, rng):
    psi = feature_map(kind, activation=activation, hidden_dims=hidden_dims)
    tokens = rng.normal(size=(sum(LENGTHS), 24)).astype(np.float32)
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    query_map = rng.normal(size=(70, 9)).astype(np.float32)
    features = psi.double()(torch.from_numpy(tokens).double()).numpy()
    expected = np.add.reduceat(features, offsets[:-1]) @ query_map.astype(np.float64)
    psi.float()
    got = FeatureWeights.of(psi).query_encoder(query_map).encode(tokens, offsets, 2)
    scale = np.sqrt(np.mean(expected**2, axis=1, keepdims=True))
    np.testing.assert_allclose(got / scale, expected / scale, atol=3e-5)


def test_default_size(isa, rng):
    psi = feature_map("trained", dim=128, num_features=2048)
    tokens = rng.normal(size=(32, 128)).astype(np.float32)
    tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
    expected = psi.query_features(tokens, np.array([0, 32])).numpy()
    got = FeatureWeights.of(psi).query_encoder(np.eye(2048, dtype=np.float32)).encode(tokens, np.array([0, 32]), 1)
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_extreme_features(isa):
    psi = feature_map("trained", dim=2, num_features=16)
    tokens = np.array([[1e15, 0], [0, -1e15], [0, 0], [1e-30, 1e-30]], np.float32)
    expected = psi.query_features(tokens, np.arange(5)).numpy()
    got = FeatureWeights.of(psi).query_encoder(np.eye(16, dtype=np.float32)).encode(tokens, np.arange(5), 1)
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_module_is_the_map_again(rng):
    psi = feature_map("trained")
    tokens = rng.normal(size=(5, 24)).astype(np.float32)
    again = FeatureWeights.of(psi).module("cpu")
    assert torch.equal(again.token_features(tokens), psi.token_features(tokens))


def test_bad_sizes(rng):
    weight = np.ones((4, 3), np.float32)
    layer = _core.Layer(weight, None, None, None, "gelu", False, 1.0)
    with pytest.raises(ValueError, match="query_map must have a row for each feature"):
        _core.QueryEncoder([layer], np.ones((5, 2), np.float32))
    with pytest.raises(ValueError, match="at least one layer"):
        _core.QueryEncoder([], np.ones((4, 2), np.float32))
    with pytest.raises(ValueError, match="depth is not the width"):
        _core.QueryEncoder([layer, layer], np.ones((4, 2), np.float32))
    with pytest.raises(ValueError, match="activation must be"):
        _core.QueryEncoder([_core.Layer(weight, None, None, None, "tanh", False, 1.0)], np.ones((4, 2), np.float32))
    with pytest.raises(ValueError, match="differ in dim"):
        _core.QueryEncoder([layer], np.ones((4, 2), np.float32)).encode(np.ones((1, 2), np.float32), np.array([0, 1]), 1)
