"""Exact MaxSim on arrays: MaxSim(Q, D) = sum over query tokens q of max over document tokens d of <q, d>.

Documents are one flat matrix ``tokens`` (total_tokens, dim), float32 or float16, with ``offsets`` (num_documents + 1,) int64:
document l is ``tokens[offsets[l]:offsets[l + 1]]``. float16 is read as stored and multiplied in float32. No token buffer is
copied where it is C-contiguous, the GIL is released, and ``num_threads=None`` uses all cores. Tokens must be finite, and small
enough that their products are; that is not checked here, since a rerank would cost a pass over all tokens.

The instruction set is chosen once, at run time; the environment variable ``LEMUR_ANN_ISA`` forces one of
:func:`supported_isas`. Scores are the same bit for bit on avx2, avx512 and neon.

    >>> import numpy as np
    >>> tokens = np.array([[1, 0], [0, 1], [0.5, 0.5]], dtype=np.float32)
    >>> offsets = np.array([0, 2, 3])
    >>> scores(np.array([[1, 0], [0, 2]], dtype=np.float32), tokens, offsets)
    array([3. , 1.5], dtype=float32)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lemur_ann import _core, validate

active_isa = _core.active_isa
supported_isas = _core.supported_isas

__all__ = ["active_isa", "rerank", "scores", "supported_isas", "token_maxima"]


def scores(
    query: npt.ArrayLike, tokens: npt.ArrayLike, offsets: npt.ArrayLike, *, num_threads: int | None = None
) -> npt.NDArray[np.float32]:
    """The MaxSim score of every document.

    Args:
        query: (num_tokens, dim), float32 or float16, at least one token.
        tokens: (total_tokens, dim), float32 or float16.
        offsets: (num_documents + 1,), from 0 to total_tokens.
        num_threads: threads to use; None means all cores.

    Returns:
        float32, (num_documents,); -inf for a document without tokens.

    Raises:
        ValueError, TypeError: a wrong shape, dtype or dim, or offsets that run backwards.
    """
    q, documents = _query_and_documents(query, tokens, offsets)
    row: npt.NDArray[np.float32] = _core.scores(q, _one_query(q), documents, validate.num_threads(num_threads))[0]
    return row


def rerank(
    query: npt.ArrayLike,
    tokens: npt.ArrayLike,
    offsets: npt.ArrayLike,
    candidates: npt.ArrayLike,
    k: int | None = None,
    *,
    num_threads: int | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The k candidates of highest MaxSim score, best first; the candidate named earlier is first among equals.

    Args:
        query: (num_tokens, dim), float32 or float16, at least one token.
        tokens: (total_tokens, dim), float32 or float16.
        offsets: (num_documents + 1,), from 0 to total_tokens.
        candidates: (num_candidates,) document indices.
        k: how many to return; None returns all candidates that have tokens.
        num_threads: threads to use; None means all cores.

    Returns:
        (document indices int64, scores float32), both of shape (min(k, num_candidates),).

    Raises:
        IndexError: a candidate outside the documents.
        ValueError, TypeError: a wrong shape, dtype, dim or k, or offsets that run backwards.
    """
    q, documents = _query_and_documents(query, tokens, offsets)
    chosen = validate.as_array(candidates, "candidates")
    if chosen.ndim != 1:
        raise ValueError(f"candidates must have shape (num_candidates,), got shape {chosen.shape}")
    if chosen.size and chosen.dtype.kind not in "iu":
        raise TypeError(f"candidates must be integers, got {chosen.dtype}")
    chosen = np.ascontiguousarray(chosen, dtype=np.int64)
    limit = len(chosen) if k is None else validate.positive_int(k, "k")
    values = _core.candidate_scores(
        q, _one_query(q), documents, chosen, np.array([0, len(chosen)], dtype=np.int64), validate.num_threads(num_threads)
    )
    order = _core.top_k(values, limit)
    return chosen[order], values[order]


def token_maxima(
    x: npt.ArrayLike, tokens: npt.ArrayLike, offsets: npt.ArrayLike, *, num_threads: int | None = None
) -> npt.NDArray[np.float32]:
    """For each row of x and each document, the largest inner product with a token of the document.

    Args:
        x: (num_x, dim), float32 or float16.
        tokens: (total_tokens, dim), float32 or float16.
        offsets: (num_documents + 1,), from 0 to total_tokens.
        num_threads: threads to use; None means all cores.

    Returns:
        float32, (num_x, num_documents); -inf for a document without tokens.

    Raises:
        ValueError, TypeError: a wrong shape, dtype or dim, or offsets that run backwards.
    """
    q, documents = _query_and_documents(x, tokens, offsets, name="x", allow_empty=True)
    return _core.token_maxima(q, documents, validate.num_threads(num_threads))


def _query_and_documents(
    query: Any, tokens: Any, offsets: Any, *, name: str = "query", allow_empty: bool = False
) -> tuple[npt.NDArray[np.float32], _core.Documents]:
    q = validate.token_matrix(query, name, allow_empty=allow_empty)
    matrix = validate.token_matrix(tokens, "tokens", allow_empty=True)
    if q.shape[1] != matrix.shape[1]:
        raise ValueError(f"{name} has dim {q.shape[1]}, documents have dim {matrix.shape[1]}")
    bounds = validate.offsets_array(offsets, len(matrix))
    return np.ascontiguousarray(q, dtype=np.float32), _core.Documents([(matrix, bounds)])


def _one_query(q: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    return np.array([0, len(q)], dtype=np.int64)
