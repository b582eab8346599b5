"""Interrupted at any moment, fit leaves nothing or a usable index, never a broken one."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import random, signal, sys, threading, time, warnings
import numpy as np
import lemur_ann

rng = np.random.default_rng(0)
documents = [rng.normal(size=(20, 16)).astype(np.float32) for _ in range(1000)]
queries = [rng.normal(size=(8, 16)).astype(np.float32) for _ in range(300)]
options = dict(num_features=128, epochs=4, rank=15, num_sample_tokens=1000)
warnings.simplefilter("ignore")
start = time.perf_counter()
lemur_ann.LemurIndex(**options).fit(documents, queries)
whole = time.perf_counter() - start
outcomes = {}
for moment in np.random.default_rng(int(sys.argv[1])).uniform(0, 1.1 * whole, 25):
    index = lemur_ann.LemurIndex(**options)
    timer = threading.Timer(moment, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT))
    try:
        timer.start()
        index.fit(documents, queries)
        timer.cancel()
        timer.join()
        outcome = "fitted"
    except KeyboardInterrupt:
        outcome = "interrupted"
    timer.join()
    exact = [index.search(q, k=5, exact=True) for q in queries[:3]]
    found = [index.search(q, k=5) for q in queries[:3]]
    if index.is_fitted:
        assert len(index) == 1000
        assert all(len(hits) == 5 for hits in found)
        index.add(documents[:1], ids=[5000])
        assert index.search(documents[0], k=2).ids.tolist() == [0, 5000] or len(index) == 1001
    else:
        assert outcome == "interrupted" and len(index) == 0, (outcome, len(index))
        index.fit(documents, queries[:20])  # and it can be fitted after all
    outcomes[outcome] = outcomes.get(outcome, 0) + 1
print(outcomes)
"""


@pytest.mark.slow
def test_fit_interrupted_at_random_moments():
    result = subprocess.run([sys.executable, "-I", "-c", PROGRAM, "7"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "interrupted" in result.stdout
