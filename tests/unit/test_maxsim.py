"""Arguments of the public kernels; their results are tested in tests/isa and tests/property."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from lemur_ann import _core, maxsim

TOKENS = np.arange(12, dtype=np.float32).reshape(4, 3)
QUERY = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("query", "tokens", "offsets", "error", "message"),
    [
        (np.ones(3, np.float32), TOKENS, [0, 4], ValueError, r"query must be a matrix .* got shape \(3,\); a single token is"),
        (np.ones((2, 5), np.float32), TOKENS, [0, 4], ValueError, "query has dim 5, documents have dim 3"),
        (np.ones((0, 3), np.float32), TOKENS, [0, 4], ValueError, "query has no tokens"),
        (np.ones((2, 3), int), TOKENS, [0, 4], TypeError, "query must be float32 or float16, got int64"),
        (QUERY, TOKENS, [0, 3, 2, 4], ValueError, "run backwards, got 3 then 2 at position 1"),
        (QUERY, TOKENS, [0, 9], ValueError, "end at the number of tokens 4, got 9"),
        (QUERY, TOKENS, [], ValueError, r"shape \(num_documents \+ 1,\)"),
    ],
)
def test_bad_arguments(query, tokens, offsets, error, message):
    with pytest.raises(error, match=message):
        maxsim.scores(query, tokens, offsets)


@pytest.mark.parametrize("candidates", [[-1], [2], [0, 5]])
def test_candidates_outside(candidates):
    with pytest.raises(IndexError, match="outside 0 .. 1"):
        maxsim.rerank(QUERY, TOKENS, [0, 2, 4], candidates)


def test_bad_k_and_threads():
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        maxsim.rerank(QUERY, TOKENS, [0, 4], [0], k=0)
    with pytest.raises(TypeError, match="k must be an integer, got float"):
        maxsim.rerank(QUERY, TOKENS, [0, 4], [0], k=1.0)
    with pytest.raises(ValueError, match="num_threads must be at least 1"):
        maxsim.scores(QUERY, TOKENS, [0, 4], num_threads=0)


def test_no_documents_and_no_candidates():
    assert maxsim.scores(QUERY, np.empty((0, 3), np.float32), [0]).shape == (0,)
    indices, scores = maxsim.rerank(QUERY, TOKENS, [0, 4], [])
    assert indices.shape == scores.shape == (0,)
    assert maxsim.token_maxima(np.empty((0, 3), np.float32), TOKENS, [0, 4]).shape == (0, 1)


def test_layouts_that_need_a_copy_are_taken():
    transposed = np.asfortranarray(TOKENS)
    np.testing.assert_array_equal(maxsim.scores(QUERY, transposed, [0, 2, 4]), maxsim.scores(QUERY, TOKENS, [0, 2, 4]))
    strided = np.repeat(TOKENS, 2, axis=0)[::2]
    np.testing.assert_array_equal(maxsim.scores(QUERY, strided, [0, 4]), maxsim.scores(QUERY, TOKENS, [0, 4]))


def test_the_gil_is_released(rng):
    """Another Python thread runs on while a kernel works."""
    tokens = rng.normal(size=(400_000, 64)).astype(np.float32)
    ticks, done = [], threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    begin = time.perf_counter()
    maxsim.scores(rng.normal(size=(64, 64)), tokens, [0, 200_000, 400_000], num_threads=1)
    end = time.perf_counter()
    done.set()
    thread.join()
    assert len([t for t in ticks if begin < t < end]) >= 3


def test_documents_keep_their_buffers_alive(rng):
    def make():
        return _core.Documents([(rng.normal(size=(1000, 8)).astype(np.float32), np.array([0, 500, 1000]))])

    documents = make()
    _ = [np.full((1000, 8), 7, np.float32) for _ in range(50)]  # would land in freed memory
    scores = _core.scores(np.ones((1, 8), np.float32), np.array([0, 1]), documents, 1)
    assert scores.max() < 50


def test_the_core_checks_what_memory_safety_needs():
    with pytest.raises(ValueError, match="do not ascend within 0 .. 4"):
        _core.Documents([(TOKENS, np.array([0, 3, 2]))])
    with pytest.raises(ValueError, match="do not ascend within 0 .. 4"):
        _core.Documents([(TOKENS, np.array([0, 5]))])
    offsets = np.array([0, 2, 4])
    documents = _core.Documents([(TOKENS, offsets)])
    offsets[1] = 1 << 40  # changed behind the core's back
    with pytest.raises(ValueError, match="do not ascend"):
        _core.scores(QUERY, np.array([0, 2]), documents, 2)
    with pytest.raises(TypeError, match="float32 or float16"):
        _core.Documents([(TOKENS.astype(np.float64), np.array([0, 4]))])
    with pytest.raises(ValueError, match="query has dim 2, documents have dim 3"):
        _core.scores(np.ones((1, 2), np.float32), np.array([0, 1]), _core.Documents([(TOKENS, np.array([0, 4]))]), 1)


@pytest.mark.parametrize("size", [0, 1, 5, 100])
def test_top_k_breaks_ties_by_position(size, rng):
    values = rng.integers(0, 4, size=size).astype(np.float32)
    values[rng.random(size) < 0.2] = -np.inf
    for k in (1, 3, 200):
        expected = [i for i in np.argsort(-values, kind="stable") if values[i] > -np.inf][:k]
        assert _core.top_k(values, k).tolist() == expected
