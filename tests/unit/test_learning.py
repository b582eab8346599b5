"""Feature map, training, weights and reduction, each against what it should compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lemur_ann import LemurIndex, _core, reference
from lemur_ann.documents.tokens import TokenStore
from lemur_ann.learning import pseudo_queries
from lemur_ann.learning.distillation import candidate_documents, distil
from lemur_ann.learning.features import FeatureMap
from lemur_ann.learning.reduction import HEADROOM, Reduction, augment, radius_for
from lemur_ann.learning.targets import Targets
from lemur_ann.learning.torch_targets import torch_token_maxima
from lemur_ann.learning.training import train_feature_map
from lemur_ann.learning.weights import WeightSolver, draw_sample
from lemur_ann.progress import Progress


def store_of(matrices):
    offsets = np.concatenate([[0], np.cumsum([len(m) for m in matrices])])
    return TokenStore([(np.concatenate(matrices), offsets)])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_targets_on_a_device_are_those_of_the_kernels(make_matrices, rng, monkeypatch, dtype):
    """Run here on CPU tensors: the int8 codes and their sums are the same, so the maxima are, to the last bit."""
    monkeypatch.setattr("lemur_ann.learning.torch_targets.PRODUCTS_PER_STEP", 1000)
    x = rng.normal(size=(33, 16)).astype(np.float32)
    x[5] = 0
    matrices = [m.astype(dtype) for m in make_matrices(20, high=60)]
    matrices[3][1] = 0
    tokens, offsets = store_of(matrices).gather(np.arange(20))
    for precision, tolerance in (("int8", 0), ("float32", 1e-5)):
        expected = _core.token_maxima(x, store_of(matrices).documents, 1, precision, by_document=True)
        got = torch_token_maxima(torch.from_numpy(x), tokens, offsets, precision).numpy()
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)


def test_drawn_tokens_stand_for_all(rng):
    """Rare tokens are drawn more often than their share, and weigh less: weighted means are those of all tokens."""
    common = rng.normal(size=(1, 8)) + 0.01 * rng.normal(size=(9500, 8))
    tokens = np.concatenate([common, 3 * rng.normal(size=(500, 8))]).astype(np.float32)[rng.permutation(10_000)]
    psi = FeatureMap(8, 32, kind="random")
    rows, weights = draw_sample(psi, tokens, 1000, np.random.default_rng(0))
    assert len(np.unique(rows)) == len(rows) == 1000
    is_rare = np.linalg.norm(tokens - common.mean(0), axis=1) > 0.5
    assert is_rare[rows].mean() > 3 * is_rare.mean()
    assert np.average(is_rare[rows], weights=weights) == pytest.approx(is_rare.mean(), rel=0.15)
    np.testing.assert_allclose(np.average(tokens[rows], axis=0, weights=weights), tokens.mean(0), atol=0.15)
    np.testing.assert_array_equal(draw_sample(psi, tokens, 1000, np.random.default_rng(0))[0], rows)
    rows, weights = draw_sample(psi, tokens, 20_000, np.random.default_rng(0))
    assert len(rows) == 10_000
    assert np.all(weights == 1)


def test_a_repeated_token_counts_as_often_as_it_is_there(make_matrices, rng):
    """Weighted least squares over a sample is least squares over the tokens it stands for."""
    psi = FeatureMap(16, 12).requires_grad_(False)
    store, sample = store_of(make_matrices(7)), rng.normal(size=(60, 16)).astype(np.float32)
    counts = rng.integers(1, 4, size=60)
    repeated = WeightSolver(psi, Targets(np.repeat(sample, counts, axis=0), 0.3), 2.0)
    weighted = WeightSolver(psi, Targets(sample, 0.3), 2.0, token_weights=counts.astype(np.float32))
    ((_, expected),), ((_, got),) = (solver.solve(store, np.arange(7)) for solver in (repeated, weighted))
    np.testing.assert_allclose(got, expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("keep", ["after an epoch", "within the first"])
def test_an_interrupt_keeps_the_best_state(make_matrices, rng, keep):
    """Ctrl-C while training: a warning, and a map as good as training had made it."""
    tokens = rng.normal(size=(1000, 16)).astype(np.float32)
    store = store_of(make_matrices(30))
    steps = []

    class Interrupting(Progress):
        def task(self, description, total):
            task = super().task(description, total)
            if description == "training":

                def advance(count=1, note=None):
                    steps.append(count)
                    if count and sum(steps) == (40 if keep == "after an epoch" else 5):
                        raise KeyboardInterrupt

                task.advance = advance
            return task

    psi = FeatureMap(16, 32)
    with pytest.warns(UserWarning, match="training was interrupted in epoch"):
        result = train_feature_map(
            tokens, store, np.arange(30), psi, validation_tokens=tokens[:200], epochs=50, batch_size=64, progress=Interrupting()
        )
    assert len(result.training_loss) == len(result.validation_loss)
    assert len(result.validation_loss) < 5
    features = psi.token_features(tokens[:200]) @ result.output_layer.T
    targets = (_core.token_maxima(tokens[:200], store.documents, 1) - result.target_mean) / result.target_std
    loss = float(torch.mean((features - torch.from_numpy(targets)) ** 2))
    assert loss == pytest.approx(min(result.validation_loss), rel=0.03)


def test_a_warm_start_begins_where_training_ended(make_matrices, rng):
    tokens = rng.normal(size=(3000, 16)).astype(np.float32)
    store, psi = store_of(make_matrices(50)), FeatureMap(16, 64)
    call = {"validation_tokens": tokens[:200], "batch_size": 64, "learning_rate": 1e-4}
    before = train_feature_map(tokens, store, np.arange(50), psi, epochs=4, **call | {"learning_rate": 3e-3})
    psi.requires_grad_(True)
    after = train_feature_map(tokens, store, np.arange(50), psi, epochs=1, warm_start=True, **call)
    assert after.validation_loss[0] <= before.validation_loss[-1]


def test_a_warm_start_leaves_nothing_worse(make_matrices, rng):
    tokens = rng.normal(size=(1500, 16)).astype(np.float32)
    store, psi = store_of(make_matrices(40)), FeatureMap(16, 64)
    call = {"validation_tokens": tokens[:300], "batch_size": 64}
    train_feature_map(tokens[300:], store, np.arange(40), psi, epochs=6, **call)
    before = {name: value.clone() for name, value in psi.state_dict().items()}
    psi.requires_grad_(True)
    after = train_feature_map(tokens[300:], store, np.arange(40), psi, epochs=9, warm_start=True, learning_rate=1.0, **call)
    assert len(after.validation_loss) == 3, "it ends early"
    for name, value in psi.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    targets = (_core.token_maxima(tokens[:300], store.documents, 1) - after.target_mean) / after.target_std
    loss = float(torch.mean((psi.token_features(tokens[:300]) @ after.output_layer.T - torch.from_numpy(targets)) ** 2))
    assert loss < min(after.validation_loss)


def test_a_warm_start_that_diverges_is_an_error(make_matrices, rng, monkeypatch):
    losses = iter([0.5, float("nan")])
    monkeypatch.setattr("lemur_ann.learning.training._loss", lambda *_: next(losses))
    tokens = rng.normal(size=(300, 16)).astype(np.float32)
    call = {"validation_tokens": tokens[:10], "epochs": 1, "warm_start": True}
    with pytest.raises(FloatingPointError, match="diverged"):
        train_feature_map(tokens, store_of(make_matrices(5)), np.arange(5), FeatureMap(16, 8), **call)


def test_targets_on_disk_train_alike(make_matrices, rng, tmp_path):
    tokens = rng.normal(size=(1000, 16)).astype(np.float32)
    store = store_of(make_matrices(30))
    losses = []
    for on_disk in (False, True):
        torch.manual_seed(0)
        result = train_feature_map(
            tokens, store, np.arange(30), FeatureMap(16, 32), epochs=2, targets_on_disk=on_disk, directory=tmp_path
        )
        losses.append(result.training_loss)
    assert losses[0] == losses[1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_projected_targets_do_not_depend_on_blocks_or_threads(make_matrices, rng, precision):
    sample, matrix = (rng.normal(size=shape).astype(np.float32) for shape in ((100, 16), (100, 7)))
    targets = Targets(sample, 0.5, precision)
    store = store_of(make_matrices(20))
    ((_, together),) = targets.projected(store, np.arange(20), matrix, 2)
    parts = list(Targets(sample, 0.5, precision, documents_per_block=3).projected(store, np.arange(20), matrix, 1))
    assert [block.stop for block, _ in parts] == [3, 6, 9, 12, 15, 18, 20]
    np.testing.assert_array_equal(np.concatenate([part for _, part in parts]), together)


def test_int8_targets_are_close_to_float32(make_matrices, rng):
    sample = rng.normal(size=(200, 16)).astype(np.float32)
    store = store_of(make_matrices(50))
    ((_, exact),) = Targets(sample, 0.0, "float32").blocks(store, np.arange(50))
    ((_, int8),) = Targets(sample, 0.0).blocks(store, np.arange(50))
    assert 0 < (int8 - exact).std() < 0.01 * exact.std()


def test_all_zero_features_are_an_error():
    psi = FeatureMap(4, 8, kind="random")
    with pytest.raises(ValueError, match="all zero"):
        WeightSolver(psi, Targets(np.zeros((5, 4), np.float32), 0.0), 1.0).projection()


def gelu(x):
    from math import erf

    return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))


def layer_norm(x):
    return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)


def test_trained_map_is_linear_layernorm_gelu(rng):
    torch.manual_seed(0)
    psi = FeatureMap(6, 20)
    state = {k: v.numpy().astype(np.float64) for k, v in psi.state_dict().items()}
    x = rng.normal(size=(9, 6)).astype(np.float32)
    hidden = layer_norm(x @ state["layers.0.weight"].T + state["layers.0.bias"])
    expected = gelu(hidden * state["layers.1.weight"] + state["layers.1.bias"])
    np.testing.assert_allclose(psi.token_features(x).numpy(), expected, atol=1e-5)


def test_random_map_is_gelu_scaled_layernorm_without_parameters(rng):
    torch.manual_seed(0)
    psi = FeatureMap(6, 20, kind="random")
    assert [name for name, _ in psi.named_parameters()] == []
    x = rng.normal(size=(9, 6)).astype(np.float32)
    weight = psi.state_dict()["layers.0.weight"].numpy().astype(np.float64)
    np.testing.assert_allclose(psi.token_features(x).numpy(), layer_norm(np.sqrt(2 / 20) * gelu(x @ weight)), atol=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 8192])
def test_query_features_are_sums_over_tokens(make_matrices, monkeypatch, batch):
    monkeypatch.setattr("lemur_ann.learning.features.TOKENS_PER_BATCH", batch)
    psi = FeatureMap(16, 8).requires_grad_(False)
    queries = make_matrices(9)
    offsets = np.concatenate([[0], np.cumsum([len(q) for q in queries])])
    got = psi.query_features(np.concatenate(queries), offsets).numpy()
    for row, query in zip(got, queries, strict=True):
        np.testing.assert_allclose(row, psi(torch.from_numpy(query)).sum(0).numpy(), atol=1e-5)


def test_weights_are_ridge_regression_on_standardised_maxima(make_matrices, rng):
    """And a projection is a linear map of the weights, without solving for them."""
    psi = FeatureMap(16, 12).requires_grad_(False)
    store = store_of(make_matrices(7))
    sample = rng.normal(size=(200, 16)).astype(np.float32)
    solver = WeightSolver(psi, Targets(sample, 0.3, "float32"), 2.0, ridge=1e-3)
    ((_, got),) = solver.solve(store, np.arange(7))
    features = psi.token_features(sample).numpy().astype(np.float64)
    targets = (reference.token_maxima(sample, [store[i] for i in range(7)]) - 0.3) / 2.0
    gram = features.T @ features
    expected = np.linalg.solve(gram + 1e-3 * np.trace(gram) / 12 * np.eye(12), features.T @ targets).T
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)
    linear = rng.normal(size=(12, 5)).astype(np.float32)
    ((_, reduced),) = solver.targets.projected(store, np.arange(7), solver.projection(linear))
    np.testing.assert_allclose(reduced, expected @ linear, rtol=1e-3, atol=1e-4)


def test_more_features_than_sample_tokens_still_solve(make_matrices, rng):
    psi = FeatureMap(16, 64, kind="random")
    solver = WeightSolver(psi, Targets(rng.normal(size=(5, 16)).astype(np.float32), 0.0), 1.0)
    ((_, weights),) = solver.solve(store_of(make_matrices(3)), np.arange(3))
    assert np.all(np.isfinite(weights))


def test_training_lowers_the_loss_and_keeps_the_best_epoch(make_matrices, rng):
    tokens = rng.normal(size=(3000, 16)).astype(np.float32)
    psi = FeatureMap(16, 64)
    store, rows = store_of(make_matrices(50)), np.arange(50)
    result = train_feature_map(tokens[:2500], store, rows, psi, validation_tokens=tokens[2500:], epochs=6, batch_size=64)
    assert len(result.training_loss) == len(result.validation_loss) == 6
    assert result.validation_loss[-1] < 0.85 * result.validation_loss[0]
    # the state that is left predicts as well as the best epoch did
    targets = (_core.token_maxima(tokens[2500:], store.documents, 1) - result.target_mean) / result.target_std
    predicted = psi.token_features(tokens[2500:]) @ result.output_layer.T
    loss = float(torch.mean((predicted - torch.from_numpy(targets)) ** 2))
    assert loss == pytest.approx(min(result.validation_loss), rel=0.02)


def test_a_worse_last_epoch_is_not_kept(make_matrices, rng, monkeypatch):
    losses = iter([0.5, 0.1, 0.9])
    states = []

    def fake_loss(model, *_):
        states.append({k: v.clone() for k, v in model.state_dict().items()})
        return next(losses)

    monkeypatch.setattr("lemur_ann.learning.training._loss", fake_loss)
    psi = FeatureMap(16, 8)
    tokens = rng.normal(size=(300, 16)).astype(np.float32)
    train_feature_map(tokens, store_of(make_matrices(5)), np.arange(5), psi, validation_tokens=tokens[:10], epochs=3)
    torch.testing.assert_close(psi.state_dict()["layers.0.weight"], states[1]["0.layers.0.weight"])


def test_divergence_is_an_error(make_matrices, rng):
    tokens = rng.normal(size=(300, 16)).astype(np.float32)
    psi = FeatureMap(16, 8)
    with torch.no_grad():
        psi.layers[0].weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="diverged"):
        train_feature_map(tokens, store_of(make_matrices(5)), np.arange(5), psi, epochs=1)


@pytest.fixture
def skewed(rng):
    """Weights and query features whose energy lies in different directions."""
    mixing = rng.normal(size=(24, 24)) * np.geomspace(1, 0.01, 24)
    weights = (rng.normal(size=(500, 24)) @ mixing.T + 5).astype(np.float32)
    features = (rng.normal(size=(400, 24)) * np.geomspace(0.05, 2, 24) + 1).astype(np.float32)
    return weights, features


def reduced_by(reduction, weights):
    return (weights - reduction.mean) @ reduction.document_map


def errors(weights, features, reduction):
    exact = features @ (weights - weights.mean(0)).T
    return np.mean((exact - (features @ reduction.query_map) @ reduced_by(reduction, weights).T) ** 2)


def test_reduction_is_the_best_of_its_rank(skewed):
    """Eckart-Young: no map of rank r comes nearer to the matrix of scores than its truncated SVD."""
    weights, features = skewed
    exact = (features @ (weights - weights.mean(0)).T).astype(np.float64)
    singular = np.linalg.svd(exact, compute_uv=False)
    for rank in (1, 5, 12):
        best = np.sum(singular[rank:] ** 2) / exact.size
        assert errors(weights, features, Reduction.learn(weights, features, rank)) <= best * 1.02 + 1e-6


def test_reduction_beats_plain_pca(skewed):
    weights, features = skewed
    centred = weights - weights.mean(0)
    _, _, v = np.linalg.svd(centred, full_matrices=False)
    plain = Reduction(weights.mean(0), v[:5].T, v[:5].T)
    assert errors(weights, features, Reduction.learn(weights, features, 5)) < 0.8 * errors(weights, features, plain)


def test_full_rank_keeps_every_order(skewed):
    weights, features = skewed
    for rank in (None, 24, 99):
        reduction = Reduction.learn(weights, features, rank)
        got = (features @ reduction.query_map) @ reduced_by(reduction, weights).T
        np.testing.assert_array_equal(np.argsort(-got)[:, :5], np.argsort(-(features @ (weights - weights.mean(0)).T))[:, :5])


def test_distillation_finds_more_of_the_top(rng):
    """Each query cares for a few documents near it, in directions that hold little of the total energy."""
    documents = (rng.normal(size=(2000, 24)) * np.geomspace(1, 0.6, 24)).astype(np.float32)
    queries = (rng.normal(size=(600, 24)) * np.geomspace(1, 0.8, 24)).astype(np.float32)
    exact = np.argsort(-(queries @ documents.T), axis=1)[:, :10]

    def found(document_map, query_map):
        scores = (queries @ query_map) @ (documents @ document_map).T
        first = np.argsort(-scores, axis=1)[:, :50]
        return np.mean([np.isin(e, f).mean() for e, f in zip(exact, first, strict=True)])

    truncated = np.eye(24, 8, dtype=np.float32)
    before = found(truncated, truncated)
    candidates = candidate_documents(documents, queries)
    scores = np.take_along_axis(queries @ documents.T, candidates, axis=1) + 7  # a constant makes no difference
    after = found(*distil(documents, queries, candidates, scores, 8, steps=150))
    assert after > before
    again = distil(documents, queries, candidates, scores, 8, steps=5, seed=3)
    for a, b in zip(again, distil(documents, queries, candidates, scores, 8, steps=5, seed=3), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def enough_to_distil():
    """As few documents and queries as distillation takes, each about some of many subjects."""
    random = np.random.default_rng(2)
    centres = random.normal(size=(150, 16))

    def tokens(count):
        rows = centres[random.integers(0, len(centres), count)] + 0.3 * random.normal(size=(count, 16))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    return [tokens(4) for _ in range(5200)], [tokens(3) for _ in range(1100)]


@pytest.mark.parametrize("rank", [30, 60, 90, 127])
def test_distillation_at_large_ranks(enough_to_distil, rank):
    """Where three times the rank is more than the features, coordinates are still those that matter most first."""
    documents, queries = enough_to_distil
    options = {"num_features": 128, "epochs": 0, "rank": rank, "num_sample_tokens": 1000, "candidates": "exact"}
    found = {}
    for steps in (0, 100):
        index = LemurIndex(distillation_steps=steps, num_candidates=100, **options).fit(documents, queries[:1050])
        pairs = zip(index.search(queries[1050:], k=10), index.search(queries[1050:], k=10, exact=True), strict=True)
        found[steps] = np.mean([np.isin(b.ids, a.ids).mean() for a, b in pairs])
    held_out = index.encoder.training["held_out_found"]
    assert index.encoder.training["distilled"] == (held_out["distilled"] >= held_out["least squares"])
    assert found[100] > found[0] - 0.02


def test_a_distillation_that_finds_less_is_not_kept(enough_to_distil, monkeypatch, caplog):
    documents, queries = enough_to_distil

    def worse(documents, queries, candidates, scores, rank, **_):
        return tuple(np.random.default_rng(0).normal(size=(2, documents.shape[1], rank)).astype(np.float32))

    options = {"num_features": 64, "epochs": 0, "rank": 15, "num_sample_tokens": 500, "distillation_steps": 5}
    monkeypatch.setattr("lemur_ann.learning.fitting.distil", worse)
    kept = LemurIndex(**options).fit(documents, queries).encoder
    assert kept.training["distilled"] is False
    assert kept.training["held_out_found"]["distilled"] < kept.training["held_out_found"]["least squares"]
    assert [r.event for r in caplog.records if getattr(r, "event", None) == "distillation"] == ["distillation"]


def test_augmented_l2_order_is_inner_product_order(rng):
    reduced = rng.normal(size=(300, 7)).astype(np.float32) * rng.uniform(0.1, 3, size=(300, 1)).astype(np.float32)
    radius = radius_for(reduced)
    lifted = augment(reduced, radius)
    np.testing.assert_allclose(np.linalg.norm(lifted, axis=1), radius, rtol=1e-5)
    query = np.append(rng.normal(size=7), 0)
    by_distance = np.argsort(np.linalg.norm(lifted - query, axis=1))
    np.testing.assert_array_equal(by_distance, np.argsort(-(lifted @ query)))
    longer = reduced * (HEADROOM - 0.01)  # later documents, within the headroom
    np.testing.assert_allclose(np.linalg.norm(augment(longer, radius), axis=1), radius, rtol=1e-5)
    assert np.all(np.isfinite(augment(reduced * 100, radius)))


def test_few_queries_do_not_break_the_reduction(rng):
    weights = rng.normal(size=(50, 32)).astype(np.float32)
    reduction = Reduction.learn(weights, rng.normal(size=(2, 32)).astype(np.float32), 8)
    assert np.all(np.isfinite(reduced_by(reduction, weights)))


def test_pseudo_queries_come_from_one_document_each(make_matrices, monkeypatch):
    matrices = make_matrices(20, high=60)
    store = TokenStore([(np.concatenate(matrices), np.concatenate([[0], np.cumsum([len(m) for m in matrices])]))])
    monkeypatch.setattr(pseudo_queries, "NUM_DOCUMENTS", 10)
    batch = pseudo_queries.from_tokens(store, np.arange(20), np.random.default_rng(0))
    assert len(batch) == 10
    for i in range(10):
        query = batch.tokens[batch.offsets[i] : batch.offsets[i + 1]]
        assert 1 <= len(query) <= 32
        assert any(all((row == m).all(axis=1).any() for row in query) for m in matrices)


@pytest.mark.parametrize("options", [{"num_sample_tokens": 100}, {}])
def test_fewer_query_tokens_than_features(make_matrices, options):
    documents, queries = make_matrices(300), make_matrices(50, low=4, high=4)
    index = LemurIndex(num_features=512, epochs=0, rank=15, **options).fit(documents, queries=queries)
    assert index.evaluate(queries, num_candidates=100).recall > 0.8
