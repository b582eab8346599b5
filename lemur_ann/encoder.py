"""What ``fit`` learns: from a document's tokens to one vector, from a query's tokens to one vector."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lemur_ann import _core
from lemur_ann.options import Options
from lemur_ann.progress import Task
from lemur_ann.query_features import FeatureWeights
from lemur_ann.reduction import augment
from lemur_ann.targets import Targets
from lemur_ann.tokens import TokenStore

if TYPE_CHECKING:
    from lemur_ann.features import FeatureMap


@dataclass
class Encoded:
    """Documents encoded already: ascending indices int64 (n,), and their vectors float32 (n, dim)."""

    indices: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.float32]


class LemurEncoder:
    """The learned map.

    ``<encode_queries(Q), encode_documents(D)>`` estimates MaxSim(Q, D) up to an affine map that is the same for all documents
    of a query. A document's vector is linear in its token maxima over a sample of query tokens, and depends on nothing else.

    Args:
        feature_weights: the parameters of psi.
        targets: token maxima over the sample of query tokens.
        token_weights: float32 (num_sample_tokens,), what each of these counted in the solve.
        projection: float32 (num_sample_tokens, width), takes token maxima to reduced weights.
        offset: float32 (width,), subtracted from them.
        document_map: float32 (width, rank), reduces them further; None where the width is the rank.
        query_map: float32 (num_features, rank), takes query features to reduced ones.
        radius: the norm of every encoded document, see reduction.py.
        training: what training showed, plain values for the manifest.
    """

    def __init__(
        self,
        feature_weights: FeatureWeights,
        targets: Targets,
        token_weights: npt.NDArray[np.float32],
        projection: npt.NDArray[np.float32],
        offset: npt.NDArray[np.float32],
        document_map: npt.NDArray[np.float32] | None,
        query_map: npt.NDArray[np.float32],
        radius: float,
        training: dict[str, Any],
    ) -> None:
        self.feature_weights = feature_weights
        self.targets = targets
        self.token_weights = token_weights
        self.projection = projection
        self.offset = offset
        self.document_map = document_map
        self.query_map = query_map
        self.radius = radius
        self.training = training
        # with a column of zeros, for the appended coordinate
        self._padded_query_map = np.pad(query_map, ((0, 0), (0, 1)))
        self._packed: _core.Columns | None = None
        self._query_encoder = feature_weights.query_encoder(self._padded_query_map)

    @cached_property
    def feature_map(self) -> FeatureMap:
        """psi as a torch module, on the encoder's device."""
        return self.feature_weights.module(self.targets.device)

    @property
    def dim(self) -> int:
        """Dimension of an encoded document or query: the rank, and the appended coordinate."""
        return int(self.query_map.shape[1]) + 1

    @property
    def packed_bytes(self) -> int:
        """Memory of what query features are computed from, beside the arrays of :meth:`arrays`."""
        padded = self._padded_query_map.nbytes
        return (
            2 * padded
            + (0 if self._packed is None else self.projection.nbytes)
            + sum(array.nbytes for array in self.feature_weights.arrays.values())
        )

    def _columns(self, num_threads: int) -> npt.NDArray[np.float32] | _core.Columns:
        """The projection; packed once for all documents to come, where the kernels multiply by it."""
        if self.targets.device != "cpu":
            return self.projection
        if self._packed is None:
            self._packed = _core.Columns(self.projection, num_threads)
        return self._packed

    def encode_blocks(
        self, store: TokenStore, indices: npt.NDArray[np.int64], *, num_threads: int = 1, known: Encoded | None = None
    ) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """Some documents, block by block: (slice of ``indices``, float32 (block, dim)); ``known`` ones are not solved again."""
        known = known or Encoded(np.empty(0, np.int64), np.empty((0, self.dim), np.float32))
        step = self.targets.documents_per_block
        for begin in range(0, len(indices), step):
            block = slice(begin, min(begin + step, len(indices)))
            part = indices[block]
            is_known = np.isin(part, known.indices)
            vectors = np.empty((len(part), self.dim), np.float32)
            vectors[is_known] = known.vectors[np.searchsorted(known.indices, part[is_known])]
            reduced = reduced_further(
                reduced_weights(store, part[~is_known], self.targets, self._columns(num_threads), self.offset, num_threads),
                self.document_map,
                num_threads,
            )
            vectors[~is_known] = augment(reduced, self.radius)
            yield block, vectors

    def encode_documents(self, store: TokenStore, *, num_threads: int = 1) -> npt.NDArray[np.float32]:
        """float32 (num_documents, dim), all of norm ``radius``."""
        vectors = np.empty((len(store), self.dim), np.float32)
        for block, encoded in self.encode_blocks(store, np.arange(len(store)), num_threads=num_threads):
            vectors[block] = encoded
        return vectors

    def encode_queries(
        self, tokens: npt.NDArray[Any], offsets: npt.NDArray[np.int64], *, num_threads: int = 1
    ) -> npt.NDArray[np.float32]:
        """float32 (num_queries, dim), the last coordinate 0."""
        if self.targets.device == "cpu":
            return self._query_encoder.encode(np.ascontiguousarray(tokens, dtype=np.float32), offsets, num_threads)
        import torch

        with torch.inference_mode():
            features = self.feature_map.query_features(tokens, offsets)
            return (features @ torch.from_numpy(self._padded_query_map).to(features.device)).cpu().numpy()

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Everything learned, for storage; psi's parameters under their names in the module."""
        psi = {f"feature_map.{name}": array for name, array in self.feature_weights.arrays.items()}
        return {
            **psi,
            "sample_tokens": self.targets.sample_tokens,
            "token_weights": self.token_weights,
            "target_mean": np.float64(self.targets.mean).reshape(1),
            "projection": self.projection,
            "offset": self.offset,
            **({} if self.document_map is None else {"document_map": self.document_map}),
            "query_map": self.query_map,
            "radius": np.float64(self.radius).reshape(1),
        }

    @classmethod
    def from_arrays(
        cls, arrays: dict[str, npt.NDArray[Any]], config: dict[str, Any], training: dict[str, Any], options: Options
    ) -> LemurEncoder:
        """What :meth:`arrays` gave; it encodes a document as the one before did."""
        if options.device != "cpu":
            from lemur_ann.features import check_device

            check_device(options.device)
            arrays = {name: np.array(array) for name, array in arrays.items()}  # torch wants arrays that could be written
        prefix = "feature_map."
        psi = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        weights = FeatureWeights(config, psi)
        if "cholesky" in arrays:
            arrays = _from_format_1(arrays, weights.module("cpu"))
        return cls(
            weights,
            Targets(arrays["sample_tokens"], float(arrays["target_mean"][0]), options.target_precision, device=options.device),
            arrays["token_weights"],
            arrays["projection"],
            arrays["offset"],
            arrays.get("document_map"),
            arrays["query_map"],
            float(arrays["radius"][0]),
            training,
        )


def _from_format_1(arrays: dict[str, npt.NDArray[Any]], feature_map: FeatureMap) -> dict[str, npt.NDArray[Any]]:
    """Arrays of the first format, which kept the factor of the solve and the reduction apart."""
    import torch

    arrays = {name: np.array(array) for name, array in arrays.items()}  # torch wants arrays that could be written
    document_map = torch.from_numpy(arrays["document_map"])
    solved = torch.cholesky_solve(document_map.double(), torch.from_numpy(arrays["cholesky"]))
    features = feature_map.token_features(arrays["sample_tokens"]).cpu()
    projection = (features.double() @ solved / float(arrays["target_std"][0])).float().numpy()
    kept = {name: array for name, array in arrays.items() if name != "document_map"}
    weights = np.ones(len(projection), np.float32)
    return {
        **kept,
        "token_weights": weights,
        "projection": projection,
        "offset": arrays["reduction_mean"] @ arrays["document_map"],
    }


def reduced_weights(
    store: TokenStore,
    indices: npt.NDArray[np.int64],
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


def reduced_further(
    wide: npt.NDArray[np.float32], document_map: npt.NDArray[np.float32] | None, num_threads: int
) -> npt.NDArray[np.float32]:
    """The second, float32 (num_documents, rank), where there is one."""
    return (
        wide
        if document_map is None
        else _core.products(wide, _core.Columns(document_map, num_threads), num_threads).astype(np.float32)
    )
