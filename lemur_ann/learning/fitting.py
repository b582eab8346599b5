"""What ``fit`` does: learn, from a corpus and queries, the map that a :class:`~lemur_ann.encoder.LemurEncoder` is."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lemur_ann import _core
from lemur_ann.documents.inputs import QueryBatch
from lemur_ann.documents.tokens import TokenStore
from lemur_ann.encoder import Encoded, LemurEncoder, composed, reduced_weights
from lemur_ann.learning import pseudo_queries
from lemur_ann.learning.distillation import MIN_DOCUMENTS, MIN_QUERIES, candidate_documents, distil
from lemur_ann.learning.features import FeatureMap, check_device
from lemur_ann.learning.memory import NUM_WEIGHED_DOCUMENTS, TEACHER_RANKS, plan
from lemur_ann.learning.query_features import FeatureWeights
from lemur_ann.learning.reduction import Reduction, augment, radius_for, random_rotation
from lemur_ann.learning.targets import Targets
from lemur_ann.learning.training import TARGET_ROWS, Training, train_feature_map
from lemur_ann.learning.weights import WeightSolver, draw_sample
from lemur_ann.options import Options
from lemur_ann.progress import Clock, Progress

MAX_POOL_TOKENS = 131_072  # of the training queries, from which the samples are drawn
VALIDATION_SHARE = 0.05  # of the training queries, at most
MAX_VALIDATION_QUERIES = 128
NUM_REDUCTION_QUERIES = 20_000

NO_QUERIES_WARNING = (
    "fit() has no queries and learns from document tokens, which finds far fewer of the right candidates: on 10,093 "
    "documents, candidate recall of the exact top 10 among 100 candidates fell from .99 to .58. Pass queries= with token "
    "embeddings from the query encoder, of any queries like those to come (a few thousand are plenty); or encode_query=, your "
    "query encoder, which is then given sentences of the documents' own texts."
)


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
        warnings.warn(NO_QUERIES_WARNING, UserWarning, stacklevel=4)
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
    if start is not None:
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
        warm_start=start is not None,
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
    if not distilled:
        reduction.rotate(random)
    clock.lap("reduction")
    projection, offset = solver.projection(reduction.document_map), reduction.mean @ reduction.document_map
    clock.lap("projection")
    task = progress.task("document weights", len(kept))
    wide = reduced_weights(store, kept, targets, projection, offset, num_threads, task)
    clock.lap("document weights")
    reduced, query_map = wide, reduction.query_map
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
        rotation = random_rotation(rank, random)
        document_map, query_map = document_map @ rotation, query_map @ rotation
        reduced = _core.products(wide, _core.Columns(document_map, num_threads), num_threads).astype(np.float32)
        projection, offset = composed(projection, offset, document_map)
    radius = radius_for(reduced)
    summary = {
        **_summary(training),
        "learned_from": learned_from,
        "distilled": distilled,
        "expected_peak_bytes": sizes.peak_bytes,
        "seconds": clock.seconds,
    }
    encoder = LemurEncoder(FeatureWeights.of(feature_map), targets, weights, projection, offset, query_map, radius, summary)
    return encoder, Encoded(kept, augment(reduced, radius))


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
