"""lemur_ann's exact float32 rerank, which contenders that find candidates only are given."""

from __future__ import annotations

from collections.abc import Callable

import common
import numpy as np


def over(stored: common.Ragged) -> Callable[[np.ndarray, np.ndarray, int], np.ndarray]:
    """A function of (query, candidates, k) to the indices of the k candidates of highest MaxSim, on one thread."""
    from lemur_ann import _core

    documents = _core.Documents([(stored.tokens, stored.offsets)])

    def best(query: np.ndarray, candidates: np.ndarray, k: int) -> np.ndarray:
        found = np.sort(candidates.astype(np.int64, copy=False))
        bounds, ends = np.array([0, len(query)]), np.array([0, len(found)])
        indices, _, counts = _core.rerank(query, bounds, documents, found, ends, k, 1)
        return indices[0, : counts[0]]

    return best
