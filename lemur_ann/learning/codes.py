"""What small codes of tokens are made with: maps after which errors of all components cost the scores of queries alike.

Let C be the second moment of what tokens are beside their centroids, and S that of query tokens. Codes spread their error over
all components alike, in proportion to the mean square of what they code. After a map A of tokens, and its inverse transposed of
queries, the expected square of the error of a product is in proportion to tr(A C A') tr(A^-T S A^-1). That is least, and then
(tr (C^1/2 S C^1/2)^1/2)^2, where A'A is the geometric mean of C^-1 and S, C^-1/2 (C^1/2 S C^1/2)^1/2 C^-1/2 (R. Bhatia,
Positive Definite Matrices, 2007, chapter 4). A rotation after it makes the components alike, and nearly normal.

Encoders whose tokens have much in common need it most: queries then see one direction above all, in which a rotation alone
leaves as much error as in any other.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from lemur_ann import _core
from lemur_ann.candidates.look import CodeMaps
from lemur_ann.documents.rows import Rows
from lemur_ann.documents.tokens import TokenStore
from lemur_ann.learning.reduction import random_rotation
from lemur_ann.learning.second_look import sample_directions

NUM_TOKENS = 2**17  # of documents, that are looked at
ROWS_PER_BLOCK = 2**12
HEADROOM = 1.05  # of components larger than those of the sample
RIDGE = 1e-3  # of the mean eigenvalue, added to all: directions that no query of the sample has are coded too

Matrix = npt.NDArray[np.float64]


def learn_codes(
    store: TokenStore, rows: Rows, centroids: npt.NDArray[np.float32], queries: npt.NDArray[Any], seed: int
) -> CodeMaps:
    """The maps of tokens and of queries, and the unit of turned tokens.

    Args:
        store, rows: documents, and those to look at.
        centroids: float32 (num_centroids, dim), of length 1.
        queries: float32 or float16 (n, dim), tokens of queries; each counts by the square of its length.
        seed: for the rotation and the sample.
    """
    random = np.random.default_rng((seed, len(centroids)))
    tokens = sample_directions(store, rows, NUM_TOKENS, random)
    ids = _core.Centroids(centroids).nearest(tokens, 1)
    left = (block.astype(np.float32) - centroids[own] for block, own in zip(_blocks(tokens), _blocks(ids), strict=True))
    balanced = _root(_geometric_mean(_moment(left), _moment(_blocks(queries))), 0.5)
    token_map = random_rotation(store.dim or 1, random).astype(np.float64) @ balanced
    turned = (block.astype(np.float64) @ token_map.T for rows in (tokens, centroids) for block in _blocks(rows))
    largest = max((float(np.abs(block).max(initial=0.0)) for block in turned), default=0.0) or 1.0
    query_map = np.linalg.inv(token_map).T
    unit = np.array([largest * HEADROOM / 127], np.float32)
    return CodeMaps(np.ascontiguousarray(token_map, np.float32), np.ascontiguousarray(query_map, np.float32), unit)


def _blocks(rows: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """A few rows at a time, so that their float64 takes little memory; one block without rows, of none."""
    return (rows[begin : begin + ROWS_PER_BLOCK] for begin in range(0, max(len(rows), 1), ROWS_PER_BLOCK))


def _moment(blocks: Iterator[npt.NDArray[Any]]) -> Matrix:
    """The second moment of rows, of mean eigenvalue 1, which scales of codes make up for."""
    wide = (block.astype(np.float64) for block in blocks)
    moment = functools.reduce(operator.add, (rows.T @ rows for rows in wide))
    mean = float(np.trace(moment)) / len(moment)
    return (moment / mean if mean > 0 else np.zeros_like(moment)) + RIDGE * np.eye(len(moment))


def _geometric_mean(inverse: Matrix, other: Matrix) -> Matrix:
    """Of the inverse of one positive definite matrix, and another."""
    root, back = _root(inverse, 0.5), _root(inverse, -0.5)
    return back @ _root(root @ other @ root, 0.5) @ back


def _root(matrix: Matrix, power: float) -> Matrix:
    """A power of a positive definite matrix."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return np.asarray((vectors * np.maximum(values, 1e-12) ** power) @ vectors.T)
