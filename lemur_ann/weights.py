"""Document weights: for each document l, the w_l with <psi(x), w_l> closest to its standardised token maxima.

Ordinary least squares with a small ridge, over one fixed sample of tokens and one shared Cholesky factor, so that a document
is solved on its own: its weights do not depend on the others, nor on when it was added.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lemur_ann import _core
from lemur_ann.features import FeatureMap
from lemur_ann.tokens import TokenStore

ROWS_PER_PRODUCT = 4096  # bounds the float64 copy of the features
DOCUMENTS_PER_SOLVE = 1024  # bounds the target matrix: 128 MiB for 32,768 sample tokens


class WeightSolver:
    """Solves document weights.

    Args:
        feature_map: psi.
        sample_tokens: float32 (num_sample_tokens, dim), drawn from the queries' distribution.
        target_mean, target_std: standardise the token maxima.
        ridge: added to the diagonal of the Gram matrix, relative to its mean.
        cholesky: the factor of an earlier solver, float64 (num_features, num_features); computed where None.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        sample_tokens: npt.NDArray[np.float32],
        target_mean: float,
        target_std: float,
        *,
        ridge: float = 1e-6,
        cholesky: npt.NDArray[np.float64] | None = None,
    ) -> None:
        self.feature_map = feature_map
        self.sample_tokens = np.ascontiguousarray(sample_tokens, dtype=np.float32)
        self.target_mean = target_mean
        self.target_std = target_std
        self.cholesky = torch.from_numpy(cholesky) if cholesky is not None else self._factorise(ridge)

    @cached_property
    def _features(self) -> npt.NDArray[np.float32]:
        """psi of the sample tokens, float32 (num_sample_tokens, num_features)."""
        return self.feature_map.token_features(self.sample_tokens).cpu().numpy()

    def _factorise(self, ridge: float) -> torch.Tensor:
        gram = torch.zeros((self.feature_map.num_features,) * 2, dtype=torch.float64)
        for begin in range(0, len(self._features), ROWS_PER_PRODUCT):
            wide = torch.from_numpy(self._features[begin : begin + ROWS_PER_PRODUCT]).double()
            gram.addmm_(wide.T, wide)
        diagonal = gram.diagonal()
        if not float(diagonal.mean()) > 0:
            raise ValueError("the features of the sample tokens are all zero: learn from other queries or with more features")
        diagonal += ridge * diagonal.mean()
        return torch.linalg.cholesky(gram)  # type: ignore[no-any-return]

    def solve(
        self, store: TokenStore, indices: npt.NDArray[np.int64], num_threads: int = 1
    ) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """Weights block by block: (slice of ``indices``, float32 (block, num_features)).

        Args:
            store: where the documents are.
            indices: ascending document indices.
            num_threads: threads to use.
        """
        for begin in range(0, len(indices), DOCUMENTS_PER_SOLVE):
            block = slice(begin, min(begin + DOCUMENTS_PER_SOLVE, len(indices)))
            yield block, self._solve_block(store.select(indices[block]), num_threads)

    def _solve_block(self, documents: _core.Documents, num_threads: int) -> npt.NDArray[np.float32]:
        targets = _core.token_maxima(self.sample_tokens, documents, num_threads)
        targets -= np.float32(self.target_mean)
        targets /= np.float32(self.target_std)
        # Not a BLAS product: its rounding depends on the shape, and the weak directions of the Gram matrix amplify that.
        moments = _core.products(np.ascontiguousarray(targets.T), self._features, num_threads)
        return torch.cholesky_solve(torch.from_numpy(moments.T), self.cholesky).T.float().contiguous().numpy()

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What a later solver needs to give the same weights."""
        return {
            "sample_tokens": self.sample_tokens,
            "cholesky": self.cholesky.numpy(),
            "target_mean": np.float64(self.target_mean).reshape(1),
            "target_std": np.float64(self.target_std).reshape(1),
        }
