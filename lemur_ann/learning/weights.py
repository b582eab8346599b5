"""Document weights: for each document l, the w_l with <psi(x), w_l> closest to its standardised token maxima.

Ordinary least squares with a small ridge, over one fixed sample of tokens and one shared Cholesky factor, so that a document
is solved on its own: its weights do not depend on the others, nor on when it was added. They are linear in the document's
token maxima over the sample; followed by a linear reduction, the whole solve is one product with a fixed matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lemur_ann.documents.tokens import TokenStore
from lemur_ann.events import cached_property
from lemur_ann.learning.features import FeatureMap
from lemur_ann.learning.targets import Targets

ROWS_PER_PRODUCT = 4096  # bounds the float64 copy of the features
LEVERAGE_TOKENS = 32_768  # whose features decide the leverage of all
LEVERAGE_RIDGE = 1e-6
SKETCH_ROWS = 64


class WeightSolver:
    """Solves document weights.

    Args:
        feature_map: psi.
        targets: token maxima over a sample of tokens from the queries' distribution, centred.
        target_std: divides the token maxima.
        token_weights: float32 (num_sample_tokens,), how many tokens each one of the sample stands for; None for one each.
        ridge: added to the diagonal of the Gram matrix, relative to its mean.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        targets: Targets,
        target_std: float,
        *,
        token_weights: npt.NDArray[np.float32] | None = None,
        ridge: float = 1e-6,
    ) -> None:
        self.feature_map = feature_map
        self.targets = targets
        self.target_std = target_std
        self.ridge = ridge
        weights = np.ones(len(targets.sample_tokens), np.float32) if token_weights is None else token_weights
        self._root_weights = torch.from_numpy(np.sqrt(weights))[:, None]

    @cached_property
    def _features(self) -> torch.Tensor:
        """psi of the sample tokens times the roots of their weights, float32 (num_sample_tokens, num_features)."""
        features = self.feature_map.token_features(self.targets.sample_tokens)
        return features * self._root_weights.to(features.device)

    @cached_property
    def _cholesky(self) -> torch.Tensor:
        gram = torch.zeros((self.feature_map.num_features,) * 2, dtype=torch.float64, device=self._features.device)
        for rows in torch.split(self._features, ROWS_PER_PRODUCT):
            wide = rows.double()
            gram.addmm_(wide.T, wide)
        diagonal = gram.diagonal()
        if not float(diagonal.mean()) > 0:
            raise ValueError("the features of the sample tokens are all zero: learn from other queries or with more features")
        diagonal += self.ridge * diagonal.mean()
        return torch.linalg.cholesky(gram)  # type: ignore[no-any-return]

    def solve(
        self, store: TokenStore, indices: npt.NDArray[np.int64], num_threads: int = 1
    ) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """Weights block by block: (slice of ``indices``, float32 (block, num_features))."""
        matrix = torch.from_numpy(self.projection()).to(self.targets.device)
        for block, maxima in self.targets.blocks(store, indices, num_threads):
            yield block, (maxima @ matrix).cpu().numpy()

    def projection(self, document_map: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
        """The matrix that takes centred token maxima to weights, or to weights times ``document_map``.

        Args:
            document_map: float32 (num_features, rank); None for the weights themselves.

        Returns:
            float32 (num_sample_tokens, rank or num_features).
        """
        size = self.feature_map.num_features
        columns = torch.eye(size) if document_map is None else torch.from_numpy(document_map)
        solved = torch.cholesky_solve(columns.double().to(self._features.device), self._cholesky) / self.target_std
        out = np.empty((len(self._features), solved.shape[1]), np.float32)
        for begin in range(0, len(out), ROWS_PER_PRODUCT):
            rows = slice(begin, begin + ROWS_PER_PRODUCT)
            product = (self._features[rows].double() @ solved).float().cpu()
            out[rows] = (product * self._root_weights[rows]).numpy()
        return out


@torch.inference_mode()
def draw_sample(
    feature_map: FeatureMap, tokens: npt.NDArray[Any], count: int, random: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Tokens to solve over, drawn by their statistical leverage: f (F'F)^-1 f for a token of features f.

    Most query tokens resemble many others and say little; few say much. A token's chance is proportional to the mean of its
    leverage and the average one, and its weight the inverse of its chance, so that weighted least squares over the sample
    estimates least squares over all tokens (Drineas, Mahoney and Muthukrishnan, SIAM J. Matrix Anal. Appl. 30(2), 2008).

    Args:
        feature_map: psi.
        tokens: (num_tokens, dim) to draw from, in random order.
        count: how many to draw.
        random: for the draw.

    Returns:
        int64 (count,) rows of tokens in random order, and float32 (count,) weights of mean 1; all rows, with weights of 1,
        where there are not more than count.
    """
    if count >= len(tokens):
        return np.arange(len(tokens)), np.ones(len(tokens), np.float32)
    size = feature_map.num_features
    gram = torch.zeros((size, size), dtype=torch.float64, device=feature_map.device)
    for begin in range(0, min(len(tokens), LEVERAGE_TOKENS), ROWS_PER_PRODUCT):
        features = feature_map.token_features(tokens[begin : min(begin + ROWS_PER_PRODUCT, LEVERAGE_TOKENS)])
        gram += (features.T @ features).double()
    # Products in float32 may leave the matrix of few tokens a little below positive; any ridge that lifts it will do.
    scale, ridge = gram.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny), LEVERAGE_RIDGE
    while True:
        factor, failed = torch.linalg.cholesky_ex(gram + ridge * scale * torch.eye(size, dtype=gram.dtype, device=gram.device))
        if not int(failed):
            break
        ridge *= 10
    # |S L^-1 f|^2 for a random S of few rows is f (L L')^-1 f, near enough (Johnson-Lindenstrauss).
    sketch = torch.from_numpy(random.normal(size=(SKETCH_ROWS, size)) / np.sqrt(SKETCH_ROWS)).to(gram.device)
    sketch = torch.linalg.solve_triangular(factor, sketch, upper=False, left=False).float()
    leverage = np.empty(len(tokens))
    for begin in range(0, len(tokens), ROWS_PER_PRODUCT):
        features = feature_map.token_features(tokens[begin : begin + ROWS_PER_PRODUCT])
        leverage[begin : begin + len(features)] = (features @ sketch.T).square().sum(1).cpu().numpy()
    chance = _inclusion(leverage / max(leverage.mean(), np.finfo(float).tiny) + 1.0, count)
    # Systematic sampling: one draw in each unit of the running sum takes exactly `count` rows.
    order = random.permutation(len(tokens))
    marks = np.floor(np.cumsum(chance[order]) + random.uniform())
    rows = order[np.diff(marks, prepend=0.0) > 0][:count]
    weights = 1.0 / chance[rows]
    return rows, (weights / weights.mean()).astype(np.float32)


def _inclusion(size: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
    """Chances in proportion to ``size`` that sum to ``count``, none above 1."""
    chance: npt.NDArray[np.float64] = count * size / size.sum()
    while np.any(chance > 1):
        certain = chance >= 1
        rest = ~certain
        chance[certain] = 1.0
        chance[rest] = (count - certain.sum()) * size[rest] / size[rest].sum()
    return chance
