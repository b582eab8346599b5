from __future__ import annotations

import os
import warnings
from functools import cache
from pathlib import Path

# Processes of tests that run beside each other share the cores; threads of OpenMP that wait for a core spin meanwhile.
NUM_PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if NUM_PROCESSES > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // NUM_PROCESSES)))

import numpy as np
import pytest

import lemur_ann
from lemur_ann import _core
from lemur_ann.demo import DemoData, fit_demo_index, load_demo_data
from lemur_ann.encoders import Encoder


def pytest_report_header() -> str:
    return f"lemur_ann {lemur_ann.__version__} from {Path(lemur_ann.__file__).parent}, isas {_core.supported_isas()}"


def pytest_itemcollected(item: pytest.Item) -> None:
    """Learning from the demo takes ten seconds: what asks for it is no part of `nox -s quick`."""
    if "demo_index" in getattr(item, "fixturenames", ()):
        item.add_marker("slow")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def make_matrices(rng):
    """(count, dim, min_tokens, max_tokens) -> random unit-length token matrices."""

    def make(count, dim=16, low=1, high=12, dtype=np.float32):
        matrices = []
        for _ in range(count):
            matrix = rng.normal(size=(int(rng.integers(low, high + 1)), dim))
            matrices.append((matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(dtype))
        return matrices

    return make


@pytest.fixture(params=_core.supported_isas())
def isa(request):
    """Runs the test once on every instruction set of this machine."""
    before = _core.active_isa()
    _core.force_isa(request.param)
    yield request.param
    _core.force_isa(before)


@pytest.fixture(scope="session")
def demo_data() -> DemoData:
    return load_demo_data()


@pytest.fixture(scope="session")
def demo_index(demo_data) -> lemur_ann.LemurIndex:
    """Fitted once; tests must not change it."""
    return fit_demo_index(demo_data, epochs=4)


@pytest.fixture
def small_index(make_matrices):
    """A fitted index of 200 random documents with ids doc-0 .. doc-199, cheap enough to make for each test."""

    def make(**options):
        documents = make_matrices(200, dim=16)
        queries = make_matrices(60, dim=16)
        settings = {"num_features": 64, "epochs": 1, "rank": 15, "num_candidates": 40, "ef_search": None, **options}
        index = lemur_ann.LemurIndex(**settings)
        index.fit(documents, queries=queries, ids=[f"doc-{i}" for i in range(len(documents))])
        return index, documents, queries

    return make


@pytest.fixture(scope="session")
def word_encoder() -> Encoder:
    """A fixed random unit vector for each word: MaxSim is then close to the number of words in common.

    The sides differ, as those of a model do: each ends in a marker of its own.
    """

    def encode(texts: list[str], marker: str) -> list[np.ndarray]:
        return [np.stack([_vector_of(word) for word in [*text.lower().split(), marker]]) for text in texts]

    return Encoder(lambda texts: encode(texts, "[Q]"), lambda texts: encode(texts, "[D]"))


@cache
def _vector_of(word: str) -> np.ndarray:
    vector = np.random.default_rng(list(word.encode())).normal(size=64)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


@pytest.fixture(scope="session")
def corpus() -> Path:
    folder = os.environ.get("LEMUR_ANN_CORPUS")
    if not folder:
        pytest.skip("set LEMUR_ANN_CORPUS to a folder with docs.parquet, queries_train.parquet and queries_dev.parquet")
    return Path(folder)


@pytest.fixture
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
