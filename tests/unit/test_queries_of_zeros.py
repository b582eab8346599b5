"""Queries of zeros alone rank nothing: a search takes them, and what would learn from them or measure by them says so."""

import numpy as np
import pytest

from lemur_ann import LemurIndex

RANDOM = np.random.default_rng(0)
DOCUMENTS = RANDOM.normal(size=(40, 4, 8)).astype(np.float32)
ZEROS = np.zeros((3, 4, 8), np.float32)


def new_index():
    return LemurIndex(num_features=32, epochs=1, rank=15, num_sample_tokens=100)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_nothing_is_learned_from_zeros(dtype):
    index = new_index()
    with pytest.raises(ValueError, match="queries, are zeros alone"):
        index.fit(DOCUMENTS, queries=ZEROS.astype(dtype))
    assert len(index) == 0
    with pytest.raises(ValueError, match="zeros alone"), pytest.warns(UserWarning, match="no queries"):
        index.fit(ZEROS)


def test_nothing_is_measured_by_zeros():
    index = new_index().fit(DOCUMENTS, queries=DOCUMENTS[:20, :2])
    for measure in (index.evaluate, index.tune, index.health):
        with pytest.raises(ValueError, match="queries are zeros alone"):
            measure(ZEROS)
    assert [len(hits) for hits in index.search(ZEROS)] == [10, 10, 10]
    assert index.evaluate(np.concatenate([ZEROS, DOCUMENTS[:2]])).recall > 0
