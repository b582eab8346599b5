"""What ``fit`` learns: from a document's tokens to one vector, from a query's tokens to one vector."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lemur_ann import _core, pseudo_queries
from lemur_ann.distillation import MIN_DOCUMENTS, MIN_QUERIES, candidate_documents, distil
from lemur_ann.features import FeatureMap, check_device
from lemur_ann.inputs import QueryBatch
from lemur_ann.memory import NUM_WEIGHED_DOCUMENTS, TEACHER_RANKS, plan
from lemur_ann.options import Options
from lemur_ann.progress import Clock, Progress, Task
from lemur_ann.reduction import Reduction, augment, radius_for
from lemur_ann.targets import Targets
from lemur_ann.tokens import TokenStore
from lemur_ann.training import TARGET_ROWS, Training, train_feature_map
from lemur_ann.weights import WeightSolver, draw_sample

MAX_POOL_TOKENS = 131_072  # of the training queries, from which the samples are drawn
VALIDATION_SHARE = 0.05  # of the training queries, at most
MAX_VALIDATION_QUERIES = 128
NUM_REDUCTION_QUERIES = 20_000

NO_QUERIES_WARNING = (
    "fit() has no queries and learns from document tokens, which finds far fewer of the right candidates: on 60,558 "
    "documents, candidate recall of the exact top 10 among 100 candidates fell from .97 to .49. Pass queries= with token "
    "embeddings from the query encoder, of any queries like those to come (a few thousand are plenty)."
)


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
        feature_map: psi.
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
        feature_map: FeatureMap,
        targets: Targets,
        token_weights: npt.NDArray[np.float32],
        projection: npt.NDArray[np.float32],
        offset: npt.NDArray[np.float32],
        document_map: npt.NDArray[np.float32] | None,
        query_map: npt.NDArray[np.float32],
        radius: float,
        training: dict[str, Any],
    ) -> None:
        self.feature_map = feature_map
        self.targets = targets
        self.token_weights = token_weights
        self.projection = projection
        self.offset = offset
        self.document_map = document_map
        self.query_map = query_map
        self.radius = radius
        self.training = training
        # with a row of zeros, for the appended coordinate
        padded = np.pad(query_map.T, ((0, 1), (0, 0)))
        self._padded_query_map = torch.from_numpy(padded).to(feature_map.device)

    @property
    def dim(self) -> int:
        """Dimension of an encoded document or query: the rank, and the appended coordinate."""
        return int(self.query_map.shape[1]) + 1

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
            reduced = _reduced(
                _wide(store, part[~is_known], self.targets, self.projection, self.offset, num_threads),
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


def fit_encoder(
    store: TokenStore,
    live: npt.NDArray[np.int64],
    queries: QueryBatch | None,
    options: Options,
    *,
    num_threads: int,
    progress: Progress,
    encode_query: Callable[[list[str]], Any] | None = None,
    texts: Sequence[str | None] = (),
    start: FeatureMap | None = None,
    memory_limit: int | None = None,
    directory: str | PathLike[str] | None = None,
) -> tuple[LemurEncoder, Encoded]:
    """Learn from the ``live`` documents of a store, the feature map beginning as a copy of ``start`` where there is one.

    Without queries, sentences of ``texts`` through ``encode_query`` take their place, and without that document tokens.

    Returns:
        the encoder, and the documents it was given to see while learning.
    """
    check_device(options.device)
    random = np.random.default_rng(options.seed)
    learned_from = "queries"
    if queries is None and encode_query is not None:
        learned_from = "sentences"
        queries = pseudo_queries.from_sentences(texts, encode_query, random, progress, dim=store.dim or 1)
    if queries is None or len(queries) == 0:
        learned_from = "document tokens"
        warnings.warn(NO_QUERIES_WARNING, UserWarning, stacklevel=3)
        queries = pseudo_queries.from_tokens(store, live, options.num_training_tokens, random)
    sizes = plan(options, queries.tokens.shape[1], len(live), len(queries.tokens), memory_limit)
    num_validation = min(int(len(queries) * VALIDATION_SHARE), MAX_VALIDATION_QUERIES)
    held_out = random.choice(len(queries), num_validation, replace=False)
    is_held_out = np.repeat(np.isin(np.arange(len(queries)), held_out), np.diff(queries.offsets))
    pool = queries.tokens[random.permutation(np.flatnonzero(~is_held_out))[:MAX_POOL_TOKENS]]
    sample_documents = _choose(live, options.num_training_documents, random)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        feature_map = FeatureMap(pool.shape[1], options.num_features, kind="trained" if options.epochs else "random")
    warm_start = start is not None and start.config == feature_map.config
    if start is not None and warm_start:
        feature_map.load_state_dict(start.state_dict())
    feature_map.to(options.device)
    clock = Clock()
    rows, weights = np.arange(min(len(pool), TARGET_ROWS)), None
    if options.epochs:
        rows, weights = draw_sample(feature_map, pool, options.num_training_tokens, random)
    clock.lap("draw training tokens")
    training = train_feature_map(
        _float32(pool[rows]),
        store,
        sample_documents,
        feature_map,
        validation_tokens=_float32(queries.tokens[is_held_out]),
        token_weights=weights,
        warm_start=warm_start,
        epochs=options.epochs,
        precision=options.target_precision,
        seed=options.seed,
        device=options.device,
        num_threads=num_threads,
        progress=progress,
        targets_on_disk=sizes.targets_on_disk,
        directory=directory,
    )
    clock.lap("train")
    feature_map.freeze()
    rows, weights = draw_sample(feature_map, pool, options.sample_tokens, random)
    clock.lap("draw sample tokens")
    targets = Targets(
        _float32(pool[rows]), training.target_mean, options.target_precision, sizes.documents_per_block, options.device
    )
    solver = WeightSolver(feature_map, targets, training.target_std, token_weights=weights, ridge=options.ridge)
    weighed = _choose(live, NUM_WEIGHED_DOCUMENTS, random)
    sample_weights = np.concatenate([part for _, part in solver.solve(store, weighed, num_threads)])
    clock.lap("sample weights")
    used = queries.sample(NUM_REDUCTION_QUERIES, random)
    features = feature_map.query_features(used.tokens, used.offsets).cpu().numpy()
    clock.lap("query features")
    kept = _choose(live, sizes.num_kept_documents, random)
    rank, steps = options.rank, options.steps
    enough = learned_from != "document tokens" and len(kept) >= MIN_DOCUMENTS and len(used) >= MIN_QUERIES
    distilled = enough and steps > 0 and rank is not None and rank < options.num_features
    width = min(TEACHER_RANKS * rank, options.num_features) if distilled and rank is not None else rank
    reduction = Reduction.learn(sample_weights, features, width)
    clock.lap("reduction")
    projection, offset = solver.projection(reduction.document_map), reduction.mean @ reduction.document_map
    clock.lap("projection")
    task = progress.task("document weights", len(kept))
    wide = _wide(store, kept, targets, projection, offset, num_threads, task)
    clock.lap("document weights")
    document_map, query_map = None, reduction.query_map
    if distilled and rank is not None:
        x_queries = features @ reduction.query_map
        candidates = candidate_documents(wide, x_queries, options.device)
        clock.lap("candidate documents")
        bounds = np.arange(len(used) + 1) * candidates.shape[1]
        exact = _core.candidate_scores(
            _float32(used.tokens), used.offsets, store.documents, kept[candidates.reshape(-1)], bounds, num_threads
        )
        scores = exact.reshape(candidates.shape) / np.float32(training.target_std)
        clock.lap("exact scores")
        document_map, further = distil(
            wide, x_queries, candidates, scores, rank, steps=steps, seed=options.seed, device=options.device, progress=progress
        )
        query_map = query_map @ further
        clock.lap("distillation")
    reduced = _reduced(wide, document_map, num_threads)
    radius = radius_for(reduced)
    summary = {
        **_summary(training),
        "learned_from": learned_from,
        "distilled": distilled,
        "expected_peak_bytes": sizes.peak_bytes,
        "seconds": clock.seconds,
    }
    encoder = LemurEncoder(feature_map, targets, weights, projection, offset, document_map, query_map, radius, summary)
    return encoder, Encoded(kept, augment(reduced, radius))


def _wide(
    store: TokenStore,
    indices: npt.NDArray[np.int64],
    targets: Targets,
    projection: npt.NDArray[np.float32],
    offset: npt.NDArray[np.float32],
    num_threads: int,
    task: Task | None = None,
) -> npt.NDArray[np.float32]:
    """Reduced weights, float32 (num_documents, width), a document's the same to the last bit whatever stands beside it."""
    wide = np.empty((len(indices), len(offset)), np.float32)
    for block, part in targets.projected(store, indices, projection, num_threads):
        wide[block] = part - offset
        if task is not None:
            task.advance(len(part))
    return wide


def _reduced(
    wide: npt.NDArray[np.float32], document_map: npt.NDArray[np.float32] | None, num_threads: int
) -> npt.NDArray[np.float32]:
    return wide if document_map is None else _core.products(wide, document_map, num_threads).astype(np.float32)


def _choose(indices: npt.NDArray[np.int64], count: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """At most ``count`` of the indices, ascending."""
    if count >= len(indices):
        return indices
    return np.sort(random.choice(indices, count, replace=False))


def _float32(tokens: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(tokens, dtype=np.float32)


def _summary(training: Training) -> dict[str, Any]:
    return {
        "target_mean": training.target_mean,
        "target_std": training.target_std,
        "training_loss": training.training_loss,
        "validation_loss": training.validation_loss,
    }
