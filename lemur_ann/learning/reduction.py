"""From learned weights to vectors a graph can search: centre, reduce for the queries' metric, augment.

Documents go through ``w -> (w - mean) B`` and queries through ``f -> f A``; with C_q the second moment of query features, C_w
the covariance of weights, R R' = C_q, and V the leading eigenvectors of R' C_w R, A = R'^-1 V and B = R V. Of all maps of that
rank this one keeps E[(<f, w - mean> - <f A, (w - mean) B>)^2] smallest.

Then a coordinate is appended: sqrt(radius^2 - |v|^2) to each document, 0 to each query. Inner products stay as they are, and
all documents lie on one sphere, so that the order by L2 distance, which graphs need, is the order by inner product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

HEADROOM = 1.1  # radius over the largest norm seen; later documents up to it keep the order exact
FLOOR = 1e-4  # of the mean diagonal of C_q: directions the queries hardly use are not amplified further


@dataclass
class Reduction:
    """A linear map for documents and one for queries.

    Attributes:
        mean: float32 (num_features,), subtracted from weights.
        document_map: float32 (num_features, rank), B above.
        query_map: float32 (num_features, rank), A above.
    """

    mean: npt.NDArray[np.float32]
    document_map: npt.NDArray[np.float32]
    query_map: npt.NDArray[np.float32]

    @classmethod
    def learn(
        cls,
        weights: npt.NDArray[np.float32],
        query_features: npt.NDArray[np.float32],
        rank: int | None,
        *,
        ordered: bool = False,
    ) -> Reduction:
        """The best map of ``rank`` for a sample of weights (n, num_features) and query features (q, num_features).

        ``rank=None``, or one not below num_features, only centres; unless coordinates are to be ``ordered``, the one that
        matters most first, as those of a map that reduces are.
        """
        import torch

        num_features = weights.shape[1]
        mean = weights.mean(axis=0, dtype=np.float64).astype(np.float32)
        if rank is None or (rank >= num_features and not ordered):
            identity = np.eye(num_features, dtype=np.float32)
            return cls(mean, identity, identity)
        centred = torch.from_numpy(weights - mean).double()
        covariance = centred.T @ centred / max(len(weights), 1)
        features = torch.from_numpy(query_features).double()
        moment = features.T @ features / max(len(features), 1)
        diagonal = moment.diagonal()
        diagonal += FLOOR * diagonal.mean().clamp_min(torch.finfo(torch.float64).tiny)
        root = torch.linalg.cholesky(moment)
        _, vectors = torch.linalg.eigh(root.T @ covariance @ root)
        leading = vectors.flip(1)[:, :rank]
        query_map = torch.linalg.solve_triangular(root.T, leading, upper=True)
        return cls(mean, (root @ leading).float().numpy(), query_map.float().numpy())

    def rotate(self, random: np.random.Generator) -> None:
        """Turn both sides, see :func:`random_rotation`; a map that does not reduce stays as it is."""
        rank = self.query_map.shape[1]
        if rank < self.query_map.shape[0]:
            rotation = random_rotation(rank, random)
            self.document_map, self.query_map = self.document_map @ rotation, self.query_map @ rotation


def random_rotation(rank: int, random: np.random.Generator) -> npt.NDArray[np.float32]:
    """An orthogonal matrix, float32 (rank, rank). It changes no inner product and no distance, and spreads what documents have
    in the leading directions over all of them, so that int8 codes with one scale a vector lose less."""
    orthogonal, _ = np.linalg.qr(random.normal(size=(rank, rank)))
    return orthogonal.astype(np.float32)


def radius_for(reduced: npt.NDArray[np.float32]) -> float:
    """The radius of the sphere for documents like these (n, rank), with headroom for others."""
    largest = float(np.sqrt(np.einsum("ij,ij->i", reduced, reduced).max(initial=0.0)))
    return HEADROOM * max(largest, 1e-6)


def augment(reduced: npt.NDArray[np.float32], radius: float) -> npt.NDArray[np.float32]:
    """(n, rank) vectors to (n, rank + 1) vectors of norm ``radius``; beyond the radius the coordinate is 0."""
    squares = np.einsum("ij,ij->i", reduced, reduced)
    last = np.sqrt(np.maximum(radius**2 - squares, 0.0)).astype(np.float32)
    return np.concatenate([reduced, last[:, None]], axis=1)
