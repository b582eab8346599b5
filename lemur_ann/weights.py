"""Document weights: for each document l, the w_l with <psi(x), w_l> closest to its standardised token maxima.

Ordinary least squares with a small ridge, over one fixed sample of tokens and one shared Cholesky factor, so that a document
is solved on its own: its weights do not depend on the others, nor on when it was added. They are linear in the document's
token maxima over the sample; followed by a linear reduction, the whole solve is one product with a fixed matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from lemur_ann.features import FeatureMap
from lemur_ann.targets import Targets
from lemur_ann.tokens import TokenStore

ROWS_PER_PRODUCT = 4096  # bounds the float64 copy of the features


class WeightSolver:
    """Solves document weights.

    Args:
        feature_map: psi.
        targets: token maxima over a sample of tokens from the queries' distribution, centred.
        target_std: divides the token maxima.
        ridge: added to the diagonal of the Gram matrix, relative to its mean.
    """

    def __init__(self, feature_map: FeatureMap, targets: Targets, target_std: float, *, ridge: float = 1e-6) -> None:
        self.feature_map = feature_map
        self.targets = targets
        self.target_std = target_std
        self.ridge = ridge

    @cached_property
    def _features(self) -> torch.Tensor:
        """psi of the sample tokens, float32 (num_sample_tokens, num_features)."""
        return self.feature_map.token_features(self.targets.sample_tokens)

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
        matrix = torch.from_numpy(self.projection())
        for block, maxima in self.targets.blocks(store, indices, num_threads):
            yield block, (torch.from_numpy(maxima) @ matrix).numpy()

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
            out[rows] = (self._features[rows].double() @ solved).float().cpu().numpy()
        return out
