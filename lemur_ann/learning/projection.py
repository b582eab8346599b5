"""From token maxima to vectors: the linear map that every document goes through, while learning and ever after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lemur_ann import _core
from lemur_ann.candidates.look import LookWeights
from lemur_ann.documents.rows import Rows
from lemur_ann.documents.tokens import TokenStore
from lemur_ann.learning.query_features import FeatureWeights
from lemur_ann.learning.targets import Targets
from lemur_ann.progress import Task

ROWS_PER_PRODUCT = 4096  # bounds the float64 copy


@dataclass
class MapParts:
    """What learning gives: the arguments of a :class:`lemur_ann.LemurEncoder`, which says what each is."""

    feature_weights: FeatureWeights
    targets: Targets
    token_weights: npt.NDArray[np.float32]
    projection: npt.NDArray[np.float32]
    offset: npt.NDArray[np.float32]
    query_map: npt.NDArray[np.float32]
    radius: float
    training: dict[str, Any]
    look: LookWeights | None = None


@dataclass
class Encoded:
    """Documents encoded already: ascending indices int64 (n,), and their vectors float32 (n, dim)."""

    indices: Rows
    vectors: npt.NDArray[np.float32]


def reduced_weights(
    store: TokenStore,
    indices: Rows,
    targets: Targets,
    projection: npt.NDArray[np.float32] | _core.Columns,
    offset: npt.NDArray[np.float32],
    num_threads: int,
    task: Task | None = None,
) -> npt.NDArray[np.float32]:
    """The first reduction, float32 (num_documents, width): a document's the same to the last bit whatever stands beside it."""
    wide = np.empty((len(indices), len(offset)), np.float32)
    for block, part in targets.projected(store, indices, projection, num_threads):
        wide[block] = part - offset
        if task is not None:
            task.advance(len(part))
    return wide


def composed(
    projection: npt.NDArray[np.float32], offset: npt.NDArray[np.float32], document_map: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The projection and offset of both steps in one: (p(maxima) - offset) times ``document_map`` (width, rank)."""
    further = document_map.astype(np.float64)
    small = np.empty((len(projection), document_map.shape[1]), np.float32)
    for begin in range(0, len(small), ROWS_PER_PRODUCT):
        rows = slice(begin, begin + ROWS_PER_PRODUCT)
        small[rows] = projection[rows].astype(np.float64) @ further
    return small, (offset.astype(np.float64) @ further).astype(np.float32)
