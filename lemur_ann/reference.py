"""MaxSim in plain NumPy and float64: slow, obvious, and what every kernel is tested against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def token_maxima(tokens: npt.ArrayLike, documents: Sequence[npt.ArrayLike]) -> npt.NDArray[np.float64]:
    """The largest inner product of each token with a token of each document.

    Args:
        tokens: (num_tokens, dim).
        documents: matrices of (num_tokens, dim) each.

    Returns:
        float64, (num_tokens, num_documents).
    """
    x = np.asarray(tokens, dtype=np.float64)
    columns = [(x @ np.asarray(document, dtype=np.float64).T).max(axis=1) for document in documents]
    return np.stack(columns, axis=1) if columns else np.empty((len(x), 0))


def maxsim(query: npt.ArrayLike, documents: Sequence[npt.ArrayLike]) -> npt.NDArray[np.float64]:
    """MaxSim(Q, D) = sum over query tokens q of max over document tokens d of <q, d>, for each document.

    Args:
        query: (num_tokens, dim).
        documents: matrices of (num_tokens, dim) each.

    Returns:
        float64, (num_documents,).
    """
    return token_maxima(query, documents).sum(axis=0)  # type: ignore[no-any-return]


def top_k(scores: npt.NDArray[Any], k: int) -> npt.NDArray[np.int64]:
    """Positions of the k largest scores, best first, the earlier position first among equals."""
    return np.argsort(-np.asarray(scores), kind="stable")[:k]
