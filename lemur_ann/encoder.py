"""What ``fit`` learns: from a document's tokens to one vector, from a query's tokens to one vector."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lemur_ann.distillation import MIN_DOCUMENTS, MIN_QUERIES, distil
from lemur_ann.features import FeatureMap, check_device
from lemur_ann.inputs import QueryBatch, to_offsets
from lemur_ann.options import Options
from lemur_ann.progress import Progress
from lemur_ann.reduction import Reduction
from lemur_ann.tokens import TokenStore
from lemur_ann.training import Training, train_feature_map
from lemur_ann.weights import WeightSolver

VALIDATION_SHARE = 0.05  # of the training queries, at most
MAX_VALIDATION_QUERIES = 128
NUM_REDUCTION_DOCUMENTS = 32_768  # whose weights decide the reduction
NUM_REDUCTION_QUERIES = 20_000
PSEUDO_QUERY_TOKENS = 32
TEACHER_RANKS = 4  # the vectors distilled from are so many times wider

NO_QUERIES_WARNING = (
    "fit() has no queries and learns from document tokens, which finds far fewer of the right candidates: on 60,558 "
    "documents, candidate recall of the exact top 10 among 100 candidates fell from .97 to .49. Pass queries= with token "
    "embeddings from the query encoder, of any queries like those to come (a few thousand are plenty)."
)


class LemurEncoder:
    """The learned map: feature map, weight solver and reduction.

    ``<encode_queries(Q), encode_documents(D)>`` estimates MaxSim(Q, D) up to an affine map that is the same for all documents
    of a query.
    """

    def __init__(self, solver: WeightSolver, reduction: Reduction, training: dict[str, Any]) -> None:
        self.solver = solver
        self.reduction = reduction
        self.training = training
        # with a row of zeros, for the appended coordinate
        padded = np.pad(reduction.query_map.T, ((0, 1), (0, 0)))
        self._query_map = torch.from_numpy(padded).to(solver.feature_map.device)

    @property
    def feature_map(self) -> FeatureMap:
        """psi."""
        return self.solver.feature_map

    @property
    def dim(self) -> int:
        """Dimension of an encoded document or query."""
        return self.reduction.rank + 1

    def encode_documents(self, store: TokenStore, *, num_threads: int = 1) -> npt.NDArray[np.float32]:
        """float32 (num_documents, dim), all of one norm."""
        reduced = np.empty((len(store), self.reduction.rank), np.float32)
        for block, weights in self.solver.solve(store, np.arange(len(store)), num_threads):
            reduced[block] = self.reduction.reduce_documents(weights)
        return self.reduction.augment(reduced)

    def encode_queries(self, tokens: npt.NDArray[Any], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """float32 (num_queries, dim), the last coordinate 0."""
        # All in torch: a product in NumPy here would make two thread pools wait for each other's cores.
        with torch.inference_mode():
            return torch.nn.functional.linear(self.feature_map.query_features(tokens, offsets), self._query_map).cpu().numpy()

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Everything learned, for storage; psi's parameters under their names in the module."""
        psi = {f"feature_map.{name}": value.cpu().numpy() for name, value in self.feature_map.state_dict().items()}
        return {**psi, **self.solver.arrays(), **self.reduction.arrays()}

    @classmethod
    def from_arrays(
        cls, arrays: dict[str, npt.NDArray[Any]], config: dict[str, Any], training: dict[str, Any], device: str
    ) -> LemurEncoder:
        """What :meth:`arrays` gave; it encodes a document as the one before did."""
        check_device(device)
        config = {**config, "hidden_dims": tuple(config["hidden_dims"])}
        feature_map = FeatureMap(config.pop("dim"), config.pop("num_features"), **config)
        prefix = "feature_map."
        state = {n.removeprefix(prefix): torch.from_numpy(a) for n, a in arrays.items() if n.startswith(prefix)}
        feature_map.load_state_dict(state)
        solver = WeightSolver(
            feature_map.to(device).freeze(),
            arrays["sample_tokens"],
            float(arrays["target_mean"][0]),
            float(arrays["target_std"][0]),
            cholesky=arrays["cholesky"],
        )
        reduction = Reduction(arrays["reduction_mean"], arrays["document_map"], arrays["query_map"], float(arrays["radius"][0]))
        return cls(solver, reduction, training)


def fit_encoder(
    store: TokenStore,
    live: npt.NDArray[np.int64],
    queries: QueryBatch | None,
    options: Options,
    *,
    num_threads: int,
    progress: Progress,
) -> tuple[LemurEncoder, npt.NDArray[np.float32]]:
    """Learn from the ``live`` documents of a store, and encode them all.

    Returns:
        the encoder, and float32 (len(live), encoder.dim) vectors in the order of ``live``.
    """
    check_device(options.device)
    random = np.random.default_rng(options.seed)
    real_queries = queries is not None and len(queries) > 0
    if queries is None or not real_queries:
        warnings.warn(NO_QUERIES_WARNING, UserWarning, stacklevel=3)
        queries = pseudo_queries(store, live, options.num_training_tokens, random)
    num_validation = min(int(len(queries) * VALIDATION_SHARE), MAX_VALIDATION_QUERIES)
    held_out = random.choice(len(queries), num_validation, replace=False)
    is_held_out = np.repeat(np.isin(np.arange(len(queries)), held_out), np.diff(queries.offsets))
    learned_from = random.permutation(np.flatnonzero(~is_held_out))
    training_tokens = _float32(queries.tokens[learned_from[: options.num_training_tokens]])
    sample_documents = _choose(live, options.num_training_documents, random)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        feature_map = FeatureMap(queries.tokens.shape[1], options.num_features, kind="trained" if options.epochs else "random")
    training = train_feature_map(
        training_tokens,
        store.select(sample_documents),
        feature_map.to(options.device),
        validation_tokens=_float32(queries.tokens[is_held_out]),
        epochs=options.epochs,
        seed=options.seed,
        device=options.device,
        num_threads=num_threads,
        progress=progress,
    )
    solver = WeightSolver(
        feature_map.freeze(),
        _float32(queries.tokens[learned_from[: options.num_sample_tokens]]),
        training.target_mean,
        training.target_std,
        ridge=options.ridge,
    )
    reduction, vectors = _reduce(store, live, queries, solver, options, random, num_threads, progress, real_queries)
    return LemurEncoder(solver, reduction, _summary(training)), vectors


def _reduce(
    store: TokenStore,
    live: npt.NDArray[np.int64],
    queries: QueryBatch,
    solver: WeightSolver,
    options: Options,
    random: np.random.Generator,
    num_threads: int,
    progress: Progress,
    distilled: bool,
) -> tuple[Reduction, npt.NDArray[np.float32]]:
    """Learn the reduction from a sample's weights, then encode everything block by block."""
    task = progress.task("document weights", len(live))
    sample = _choose(live, NUM_REDUCTION_DOCUMENTS, random)
    weights = np.empty((len(sample), solver.feature_map.num_features), np.float32)
    for block, solved in solver.solve(store, sample, num_threads):
        weights[block] = solved
        task.advance(len(solved))
    used = _take_queries(queries, _choose(np.arange(len(queries)), NUM_REDUCTION_QUERIES, random))
    features = solver.feature_map.query_features(used.tokens, used.offsets)
    reduction = _learn_reduction(weights, features.cpu().numpy(), options, progress, distilled=distilled)
    reduced = np.empty((len(live), reduction.rank), np.float32)
    in_sample = np.isin(live, sample, assume_unique=True)
    reduced[in_sample] = reduction.reduce_documents(weights)
    rest = np.flatnonzero(~in_sample)
    for block, solved in solver.solve(store, live[rest], num_threads):
        reduced[rest[block]] = reduction.reduce_documents(solved)
        task.advance(len(solved))
    reduction.set_radius(reduced)
    return reduction, reduction.augment(reduced)


def _learn_reduction(
    weights: npt.NDArray[np.float32],
    features: npt.NDArray[np.float32],
    options: Options,
    progress: Progress,
    *,
    distilled: bool,
) -> Reduction:
    rank = options.rank
    enough = len(weights) >= MIN_DOCUMENTS and len(features) >= MIN_QUERIES
    if rank is None or rank >= weights.shape[1] or not (distilled and enough and options.distillation_steps):
        return Reduction.learn(weights, features, rank)
    wide = Reduction.learn(weights, features, min(TEACHER_RANKS * rank, weights.shape[1] - 1))
    maps = distil(
        wide.reduce_documents(weights),
        features @ wide.query_map,
        rank,
        steps=options.distillation_steps,
        seed=options.seed,
        device=options.device,
        progress=progress,
    )
    return wide.then(*maps)


def pseudo_queries(store: TokenStore, live: npt.NDArray[np.int64], num_tokens: int, random: np.random.Generator) -> QueryBatch:
    """Queries made of random tokens of one document each, for want of real ones."""
    chosen = _choose(live, max(num_tokens // PSEUDO_QUERY_TOKENS, 1), random)
    matrices = []
    for index in chosen:
        tokens = store[int(index)]
        rows = random.choice(len(tokens), min(len(tokens), PSEUDO_QUERY_TOKENS), replace=False)
        matrices.append(tokens[np.sort(rows)])
    return QueryBatch(np.concatenate(matrices), to_offsets([len(matrix) for matrix in matrices]))


def _choose(indices: npt.NDArray[np.int64], count: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """At most ``count`` of the indices, ascending."""
    if count >= len(indices):
        return indices
    return np.sort(random.choice(indices, count, replace=False))


def _take_queries(queries: QueryBatch, chosen: npt.NDArray[np.int64]) -> QueryBatch:
    if len(chosen) == len(queries):
        return queries
    matrices = [queries.tokens[queries.offsets[i] : queries.offsets[i + 1]] for i in chosen]
    return QueryBatch(np.concatenate(matrices), to_offsets([len(matrix) for matrix in matrices]))


def _float32(tokens: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(tokens, dtype=np.float32)


def _summary(training: Training) -> dict[str, Any]:
    return {
        "target_mean": training.target_mean,
        "target_std": training.target_std,
        "training_loss": training.training_loss,
        "validation_loss": training.validation_loss,
    }
