"""What ``fit`` learns: from a document's tokens to one vector, from a query's tokens to one vector."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lemur_ann.distillation import MIN_DOCUMENTS, MIN_QUERIES, distil
from lemur_ann.features import FeatureMap, check_device
from lemur_ann.inputs import QueryBatch, to_offsets
from lemur_ann.options import Options
from lemur_ann.progress import Clock, Progress
from lemur_ann.reduction import Reduction, augment, radius_for
from lemur_ann.targets import Targets
from lemur_ann.tokens import TokenStore
from lemur_ann.training import TARGET_ROWS, Training, train_feature_map
from lemur_ann.weights import WeightSolver, draw_sample

MAX_POOL_TOKENS = 262_144  # of the training queries, from which the samples are drawn
VALIDATION_SHARE = 0.05  # of the training queries, at most
MAX_VALIDATION_QUERIES = 128
NUM_REDUCTION_DOCUMENTS = 16_384  # whose weights decide the reduction
NUM_REDUCTION_QUERIES = 20_000
PSEUDO_QUERY_TOKENS = 32
TEACHER_RANKS = 4  # the vectors distilled from are so many times wider

NO_QUERIES_WARNING = (
    "fit() has no queries and learns from document tokens, which finds far fewer of the right candidates: on 60,558 "
    "documents, candidate recall of the exact top 10 among 100 candidates fell from .97 to .49. Pass queries= with token "
    "embeddings from the query encoder, of any queries like those to come (a few thousand are plenty)."
)


class LemurEncoder:
    """The learned map.

    ``<encode_queries(Q), encode_documents(D)>`` estimates MaxSim(Q, D) up to an affine map that is the same for all documents
    of a query. A document's vector is linear in its token maxima over a sample of query tokens, and depends on nothing else.

    Args:
        feature_map: psi.
        targets: token maxima over the sample of query tokens.
        projection: float32 (num_sample_tokens, rank), takes token maxima to reduced weights.
        offset: float32 (rank,), subtracted from them.
        query_map: float32 (num_features, rank), takes query features to reduced ones.
        radius: the norm of every encoded document, see reduction.py.
        training: what training showed, plain values for the manifest.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        targets: Targets,
        projection: npt.NDArray[np.float32],
        offset: npt.NDArray[np.float32],
        query_map: npt.NDArray[np.float32],
        radius: float,
        training: dict[str, Any],
    ) -> None:
        self.feature_map = feature_map
        self.targets = targets
        self.projection = projection
        self.offset = offset
        self.query_map = query_map
        self.radius = radius
        self.training = training
        # with a row of zeros, for the appended coordinate
        padded = np.pad(query_map.T, ((0, 1), (0, 0)))
        self._padded_query_map = torch.from_numpy(padded).to(feature_map.device)

    @property
    def dim(self) -> int:
        """Dimension of an encoded document or query: the rank, and the appended coordinate."""
        return len(self.offset) + 1

    def encode_blocks(
        self, store: TokenStore, indices: npt.NDArray[np.int64], *, num_threads: int = 1
    ) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """Some documents, block by block: (slice of ``indices``, float32 (block, dim))."""
        for block, reduced in self.targets.projected(store, indices, self.projection, num_threads):
            reduced -= self.offset
            yield block, augment(reduced, self.radius)

    def encode_documents(self, store: TokenStore, *, num_threads: int = 1) -> npt.NDArray[np.float32]:
        """float32 (num_documents, dim), all of norm ``radius``."""
        vectors = np.empty((len(store), self.dim), np.float32)
        for block, encoded in self.encode_blocks(store, np.arange(len(store)), num_threads=num_threads):
            vectors[block] = encoded
        return vectors

    def encode_queries(self, tokens: npt.NDArray[Any], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """float32 (num_queries, dim), the last coordinate 0."""
        # All in torch: a product in NumPy here would make two thread pools wait for each other's cores.
        with torch.inference_mode():
            features = self.feature_map.query_features(tokens, offsets)
            return torch.nn.functional.linear(features, self._padded_query_map).cpu().numpy()

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Everything learned, for storage; psi's parameters under their names in the module."""
        psi = {f"feature_map.{name}": value.cpu().numpy() for name, value in self.feature_map.state_dict().items()}
        return {
            **psi,
            "sample_tokens": self.targets.sample_tokens,
            "target_mean": np.float64(self.targets.mean).reshape(1),
            "projection": self.projection,
            "offset": self.offset,
            "query_map": self.query_map,
            "radius": np.float64(self.radius).reshape(1),
        }

    @classmethod
    def from_arrays(
        cls, arrays: dict[str, npt.NDArray[Any]], config: dict[str, Any], training: dict[str, Any], options: Options
    ) -> LemurEncoder:
        """What :meth:`arrays` gave; it encodes a document as the one before did."""
        check_device(options.device)
        config = {**config, "hidden_dims": tuple(config["hidden_dims"])}
        feature_map = FeatureMap(config.pop("dim"), config.pop("num_features"), **config)
        prefix = "feature_map."
        state = {n.removeprefix(prefix): torch.from_numpy(a) for n, a in arrays.items() if n.startswith(prefix)}
        feature_map.load_state_dict(state)
        feature_map = feature_map.to(options.device).freeze()
        if "cholesky" in arrays:
            arrays = _from_format_1(arrays, feature_map)
        return cls(
            feature_map,
            Targets(arrays["sample_tokens"], float(arrays["target_mean"][0]), options.target_precision),
            arrays["projection"],
            arrays["offset"],
            arrays["query_map"],
            float(arrays["radius"][0]),
            training,
        )


def _from_format_1(arrays: dict[str, npt.NDArray[Any]], feature_map: FeatureMap) -> dict[str, npt.NDArray[Any]]:
    """Arrays of the first format, which kept the factor of the solve and the reduction apart."""
    document_map = torch.from_numpy(arrays["document_map"])
    solved = torch.cholesky_solve(document_map.double(), torch.from_numpy(arrays["cholesky"]))
    features = feature_map.token_features(arrays["sample_tokens"]).cpu()
    projection = (features.double() @ solved / float(arrays["target_std"][0])).float().numpy()
    return {**arrays, "projection": projection, "offset": arrays["reduction_mean"] @ arrays["document_map"]}


def fit_encoder(
    store: TokenStore,
    live: npt.NDArray[np.int64],
    queries: QueryBatch | None,
    options: Options,
    *,
    num_threads: int,
    progress: Progress,
) -> LemurEncoder:
    """Learn from the ``live`` documents of a store."""
    check_device(options.device)
    random = np.random.default_rng(options.seed)
    real_queries = queries is not None and len(queries) > 0
    if queries is None or not real_queries:
        warnings.warn(NO_QUERIES_WARNING, UserWarning, stacklevel=3)
        queries = pseudo_queries(store, live, options.num_training_tokens, random)
    num_validation = min(int(len(queries) * VALIDATION_SHARE), MAX_VALIDATION_QUERIES)
    held_out = random.choice(len(queries), num_validation, replace=False)
    is_held_out = np.repeat(np.isin(np.arange(len(queries)), held_out), np.diff(queries.offsets))
    pool = queries.tokens[random.permutation(np.flatnonzero(~is_held_out))[:MAX_POOL_TOKENS]]
    sample_documents = _choose(live, options.num_training_documents, random)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        feature_map = FeatureMap(pool.shape[1], options.num_features, kind="trained" if options.epochs else "random")
    feature_map.to(options.device)
    clock = Clock()
    rows, weights = np.arange(min(len(pool), TARGET_ROWS)), None
    if options.epochs:
        rows, weights = draw_sample(feature_map, pool, options.num_training_tokens, random)
    clock.lap("draw training tokens")
    training = train_feature_map(
        _float32(pool[rows]),
        store.select(sample_documents),
        feature_map,
        validation_tokens=_float32(queries.tokens[is_held_out]),
        token_weights=weights,
        epochs=options.epochs,
        precision=options.target_precision,
        seed=options.seed,
        device=options.device,
        num_threads=num_threads,
        progress=progress,
    )
    clock.lap("train")
    feature_map.freeze()
    rows, weights = draw_sample(feature_map, pool, options.num_sample_tokens, random)
    clock.lap("draw sample tokens")
    targets = Targets(_float32(pool[rows]), training.target_mean, options.target_precision)
    solver = WeightSolver(feature_map, targets, training.target_std, token_weights=weights, ridge=options.ridge)
    reduction, radius = _reduce(store, live, queries, solver, options, random, num_threads, progress, clock, real_queries)
    projection = solver.projection(reduction.document_map)
    clock.lap("projection")
    return LemurEncoder(
        feature_map,
        targets,
        projection,
        reduction.mean @ reduction.document_map,
        reduction.query_map,
        radius,
        {**_summary(training), "seconds": clock.seconds},
    )


def _reduce(
    store: TokenStore,
    live: npt.NDArray[np.int64],
    queries: QueryBatch,
    solver: WeightSolver,
    options: Options,
    random: np.random.Generator,
    num_threads: int,
    progress: Progress,
    clock: Clock,
    distilled: bool,
) -> tuple[Reduction, float]:
    """Learn the reduction, and the radius, from the weights of a sample."""
    sample = _choose(live, NUM_REDUCTION_DOCUMENTS, random)
    task = progress.task("sample weights", len(sample))
    weights = np.empty((len(sample), solver.feature_map.num_features), np.float32)
    for block, solved in solver.solve(store, sample, num_threads):
        weights[block] = solved
        task.advance(len(solved))
    clock.lap("sample weights")
    used = _take_queries(queries, _choose(np.arange(len(queries)), NUM_REDUCTION_QUERIES, random))
    features = solver.feature_map.query_features(used.tokens, used.offsets)
    clock.lap("query features")
    reduction = _learn_reduction(weights, features.cpu().numpy(), options, progress, clock, distilled=distilled)
    return reduction, radius_for(reduction.reduce_documents(weights))


def _learn_reduction(
    weights: npt.NDArray[np.float32],
    features: npt.NDArray[np.float32],
    options: Options,
    progress: Progress,
    clock: Clock,
    *,
    distilled: bool,
) -> Reduction:
    rank = options.rank
    enough = len(weights) >= MIN_DOCUMENTS and len(features) >= MIN_QUERIES
    if rank is None or rank >= weights.shape[1] or not (distilled and enough and options.distillation_steps):
        reduction = Reduction.learn(weights, features, rank)
        clock.lap("reduction")
        return reduction
    wide = Reduction.learn(weights, features, min(TEACHER_RANKS * rank, weights.shape[1] - 1))
    clock.lap("reduction")
    maps = distil(
        wide.reduce_documents(weights),
        features @ wide.query_map,
        rank,
        steps=options.distillation_steps,
        seed=options.seed,
        device=options.device,
        progress=progress,
    )
    clock.lap("distillation")
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
