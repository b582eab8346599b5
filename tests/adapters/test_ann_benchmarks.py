"""What the runner of ann-benchmarks does with an algorithm's folder, over small data; the harness itself is not on PyPI."""

from __future__ import annotations

from importlib import import_module
from importlib.resources import files
from itertools import product

import numpy as np
import pytest

yaml = pytest.importorskip("yaml", reason="pip install pyyaml")

from lemur_ann.adapters.ann_benchmarks.module import LemurANN  # noqa: E402

FOLDER = "lemur_ann.adapters.ann_benchmarks"
QUICK = {"epochs": 0, "num_features": 64, "rank": 15, "num_sample_tokens": 500}


@pytest.fixture(scope="module")
def data():
    """(train, test): 40 loose clusters, far from the origin, of vectors that are not of unit length."""
    random = np.random.default_rng(3)
    centres = random.normal(size=(40, 12))
    points = centres[random.integers(40, size=1250)] + 0.5 * random.normal(size=(1250, 12))
    return (3 * points[:1200] + 5).astype(np.float32), (3 * points[1200:] + 5).astype(np.float32)


def nearest(metric, train, queries, k):
    """Brute force, by the harness's own distances."""
    train, queries = train.astype(np.float64), queries.astype(np.float64)
    if metric == "angular":
        train, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, queries))
        distances = 1 - queries @ train.T
    else:
        distances = np.linalg.norm(queries[:, None] - train[None], axis=2)
    return np.argsort(distances, axis=1)[:, :k]


def recall(found, exact):
    return np.mean([len({*a} & {*b}) / len(b) for a, b in zip(found, exact.tolist(), strict=True)])


def definitions(metric):
    """(constructor, arguments, query argument groups) of each run group, as the harness's definitions.py reads them."""
    config = yaml.safe_load((files(FOLDER) / "config.yml").read_text())
    for algorithm in config["float"][metric]:
        assert algorithm["module"] == "ann_benchmarks.algorithms.lemur_ann"
        assert {"docker_tag", "name"} <= algorithm.keys()
        constructor = getattr(import_module(f"{FOLDER}.module"), algorithm["constructor"])
        for group in algorithm["run_groups"].values():
            for arguments in product(*([argument] for argument in group["arg_groups"])):
                base = [metric if argument == "@metric" else argument for argument in algorithm["base_args"]]
                yield constructor, [*base, *arguments], [list(values) for values in product(*group["query_args"])]


@pytest.mark.parametrize("metric", ["angular", "euclidean"])
def test_the_harness_builds_it_and_asks_it(metric, data):
    train, queries = data
    exact = nearest(metric, train, queries, 10)
    constructor, (*base, options), query_arguments = next(definitions(metric))  # the quick one, made quicker
    algorithm = constructor(*base, {**options, "num_features": 256, "rank": 63})
    algorithm.fit(train)
    recalls, names = {}, set()
    for group in query_arguments:
        algorithm.set_query_arguments(*group)
        names.add(str(algorithm))
        found = [algorithm.query(query, 10) for query in queries]
        assert all(len(ids) == len({*ids}) == 10 for ids in found)
        recalls[tuple(group)] = recall([ids.tolist() for ids in found], exact)
        algorithm.batch_query(queries, 10)
        np.testing.assert_array_equal(algorithm.get_batch_results(), found)
    assert len(names) == len(query_arguments)  # the harness tells runs apart by them
    assert recalls[250, 600] > 0.9
    assert recalls[1000, 600] > 0.99
    assert recalls[10, 600] < recalls[100, 600] <= recalls[1000, 600]


@pytest.mark.parametrize("metric", ["angular", "euclidean"])
def test_every_definition_can_be_constructed(metric):
    made = [constructor(*arguments) for constructor, arguments, _ in definitions(metric)]
    assert [algorithm.index.options.M for algorithm in made] == [16, 24]
    assert len({str(algorithm) for algorithm in made}) == 2


@pytest.mark.parametrize("metric", ["angular", "euclidean"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_order_is_that_of_the_metric(metric, dtype, data):
    train, queries = (x.astype(dtype) for x in data)
    train[7] = 0  # has no direction, and must not spoil the others
    exact = nearest("euclidean", train, queries, 10) if metric == "euclidean" else None
    algorithm = LemurANN(metric, QUICK)
    algorithm.fit(train)
    algorithm.set_query_arguments(len(train), len(train))
    algorithm.batch_query(queries, 10)
    if exact is None:
        others = np.delete(np.arange(len(train)), 7)
        exact = others[nearest("angular", train[others], queries, 10)]
    assert recall([ids.tolist() for ids in algorithm.get_batch_results()], exact) == 1
    np.testing.assert_array_equal(train[7], 0)  # the data is the harness's own


def test_it_learns_from_a_sample_of_the_data(data):
    algorithm = LemurANN("angular", {**QUICK, "num_training_queries": 100})
    algorithm.fit(data[0])
    assert algorithm.index.encoder.training["learned_from"] == "queries"
    assert len(algorithm.index.encoder.targets.sample_tokens) <= 100
    assert len(algorithm.index) == 1200


def test_other_metrics_are_refused():
    with pytest.raises(ValueError, match="angular"):
        LemurANN("hamming", {})
