"""How near documents come to the query tokens that a map learned from.

A map knows documents by the query tokens that they match. A document whose tokens are near to none of these looks to it like
any other such document: queries of a subject that came after ``fit`` hardly find its documents. So each document has a
nearness: the largest cosine of a token of it with one of a few sample tokens, mean over its tokens. What is below nearly all
documents that the map learned from is unfamiliar.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lemur_ann import _core
from lemur_ann.documents.inputs import directions_of
from lemur_ann.documents.rows import Rows
from lemur_ann.documents.tokens import TokenStore

NUM_TOKENS = 512  # of the sample
NUM_DOCUMENTS = 1024  # that the map learned from, whose nearness says what is usual
LOW_SHARE = 0.01  # of these are below what counts as familiar
TOKENS_PER_BLOCK = 16_384  # in memory together, or one document that has more
MANY, MANY_SHARE = 16, 0.1  # unfamiliar documents of those since learning: enough, and share enough, to speak of


def nearness(store: TokenStore, rows: Rows, sample_tokens: npt.NDArray[np.float32], num_threads: int = 1) -> npt.NDArray[Any]:
    """Of some documents, float64 (len(rows),); of one without tokens 1. ``sample_tokens``: float32 (n, dim) of length 1."""
    sample = np.ascontiguousarray(sample_tokens[:NUM_TOKENS])
    near_to = _core.Documents([(sample, np.array([0, len(sample)]))])
    parts = [np.empty(0)]
    lengths = [len(store[row]) for row in rows.tolist()]
    blocks = np.cumsum(lengths) // TOKENS_PER_BLOCK if len(rows) else np.empty(0, np.int64)
    for block in np.split(rows, np.flatnonzero(np.diff(blocks)) + 1):
        if not len(block):
            continue
        tokens, offsets = store.gather(block)
        directions, norms = directions_of(tokens)
        cosines = _core.token_maxima(directions, near_to, num_threads).reshape(-1) if len(tokens) else np.empty(0)
        owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        counts = np.bincount(owner, norms > 0, len(offsets) - 1)  # rows of zeros are padding
        sums = np.bincount(owner, np.where(norms > 0, cosines, 0), len(offsets) - 1)
        parts.append(np.where(counts > 0, sums / np.maximum(counts, 1), 1.0))
    return np.concatenate(parts)


def usual(store: TokenStore, rows: Rows, sample_tokens: npt.NDArray[np.float32], num_threads: int = 1) -> dict[str, float]:
    """What the nearness of documents that the map learns from is: their median, and ``low``, below which few are."""
    found = nearness(store, rows, sample_tokens, num_threads)
    return {"median": float(np.median(found)), "low": float(np.quantile(found, LOW_SHARE))} if len(found) else {}


def are_many(num_unfamiliar: int, num_documents: int) -> bool:
    """Whether so many of the documents since learning are unfamiliar that it should be said."""
    return num_unfamiliar >= MANY and num_unfamiliar >= MANY_SHARE * num_documents
