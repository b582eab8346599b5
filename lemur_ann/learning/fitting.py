"""What ``fit`` does, in five steps: from a corpus and queries to the parts of a :class:`~lemur_ann.LemurEncoder`.

1. Queries to learn from: those given, or what stands for them.
2. Features psi of a query token, trained to predict token maxima.
3. A solver of document weights, by least squares over a sample of query tokens.
4. A reduction of the weights to the directions that queries use.
5. Where there are enough queries and documents, a further one, distilled from exact scores.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lemur_ann import _core
from lemur_ann.candidates.look import MIN_LOOK_DOCUMENTS, LookWeights, SecondLook, num_centroids
from lemur_ann.documents.inputs import QueryBatch, directions_of, to_offsets
from lemur_ann.documents.rows import Rows
from lemur_ann.documents.tokens import TokenStore
from lemur_ann.events import event, warn_caller
from lemur_ann.learning import pseudo_queries
from lemur_ann.learning.codes import learn_codes
from lemur_ann.learning.distillation import MIN_DOCUMENTS, MIN_QUERIES, candidate_documents, distil, top_found
from lemur_ann.learning.familiarity import NUM_DOCUMENTS, usual
from lemur_ann.learning.features import FeatureMap, check_device
from lemur_ann.learning.memory import NUM_WEIGHED_DOCUMENTS, TEACHER_RANKS, Plan, plan
from lemur_ann.learning.projection import Encoded, MapParts, composed, reduced_weights
from lemur_ann.learning.query_features import FeatureWeights
from lemur_ann.learning.reduction import Reduction, augment, radius_for, random_rotation
from lemur_ann.learning.second_look import UNLEARNED, learn_centroids, ranking
from lemur_ann.learning.targets import Targets
from lemur_ann.learning.training import TARGET_ROWS, Training, train_feature_map
from lemur_ann.learning.weights import WeightSolver, draw_sample
from lemur_ann.options import Options
from lemur_ann.progress import Clock, Progress

MAX_POOL_TOKENS = 131_072  # of the training queries, from which the samples are drawn
VALIDATION_SHARE = 0.05  # of the training queries, at most
MAX_VALIDATION_QUERIES = 128
NUM_REDUCTION_QUERIES = 20_000
DISTILLATION_SHARE, MAX_DISTILLATION_QUERIES = 0.05, 256  # of these, held out from distillation to judge it
LOOK_SHARE, MAX_LOOK_QUERIES = 0.1, 512  # of the queries, held back from the map for the second look
FEW_LOOK_QUERIES, MIN_LOOK_QUERIES = 40, 30  # as many of a few hundred, and too few to learn from
TOKEN_QUERIES = 0.25  # made of document tokens, for each of these
LOOK_SHORTLIST = 1000  # of each of these queries

NO_QUERIES_WARNING = (
    "fit() has no queries and learns from document tokens: searches are wider, take about twice as long, and find fewer of the "
    "exact top k: .76 of the top 10 of 60,558 documents, where a map that learned from queries found .99. Pass queries= with "
    "token embeddings from the query encoder, of any queries like those to come (a few thousand are plenty); or encode_query=, "
    "your query encoder, which is then given sentences of the documents' own texts."
)


def fit_map(
    store: TokenStore,
    live: Rows,
    queries: QueryBatch | None,
    options: Options,
    *,
    num_threads: int,
    progress: Progress,
    encode_query: Callable[[list[str]], Any] | None = None,
    texts: Sequence[str | None] | None = None,
    start: FeatureMap | None = None,
    look: LookWeights | None = None,
    codes: LookWeights | None = None,
    memory_limit: int | None = None,
    directory: str | PathLike[str] | None = None,
) -> tuple[MapParts, Encoded]:
    """Learn from the ``live`` documents of a store, the feature map beginning as a copy of ``start`` where there is one.

    A ``look`` that is given stays as it is, and all queries teach the map. Of ``codes`` the centroids stay, and what small
    codes are made with.

    Without queries, sentences of ``texts`` through ``encode_query`` take their place, where there are no texts plain queries,
    and without ``encode_query`` document tokens. The order of the steps, and of the random draws in them, decides the bits of
    the map.

    Returns:
        the parts of the map, and the documents it was given to see while learning.
    """
    check_device(options.device)
    job = _Job(store, live, options, np.random.default_rng(options.seed), num_threads, progress)
    queries, learned_from = _queries_to_learn_from(job, queries, encode_query, texts)
    queries = queries.without_zero_rows
    queries.check_not_zero(f"what to learn from, {learned_from},")
    job.clock = Clock()  # the caller's encoder is no stage of learning
    sizes = plan(options, queries.tokens.shape[1], len(live), len(queries.tokens), memory_limit)
    unseen = queries.take(())
    if look is None:
        queries, unseen = _held_back(job, queries)
    pool, held_out = _split(job, queries)
    feature_map, training = _trained_features(job, pool, held_out, start, sizes, directory)
    solver, token_weights = _solver(job, feature_map, pool, training, sizes)
    reduced = _reduced(job, solver, queries, sizes.num_kept_documents, has_queries=learned_from != "document tokens")
    if reduced.is_to_be_distilled:
        reduced = _distilled(job, reduced, training.target_std)
    look_found: dict[str, float] = {}
    if look is None:
        if learned_from == "plain queries" and len(unseen):  # whose best documents are nobody's answers
            unseen = _token_queries(job, 2 * MAX_LOOK_QUERIES)
        elif learned_from != "document tokens" and len(unseen):
            unseen = unseen.as_float32.joined(_token_queries(job, math.ceil(TOKEN_QUERIES * len(unseen))))
        look, look_found = _second_look(job, reduced, solver.feature_map, unseen, codes)
    radius = radius_for(reduced.documents)
    some = _choose(live, NUM_DOCUMENTS, job.random)
    summary = {
        **_summary(training),
        "learned_from": learned_from,
        "distilled": reduced.is_distilled,
        "held_out_found": reduced.found,
        "look_found": look_found,
        "nearness": usual(store, some, solver.targets.sample_tokens, num_threads),
        "expected_peak_bytes": sizes.peak_bytes,
        "seconds": job.clock.seconds,
    }
    parts = MapParts(
        feature_weights=FeatureWeights.of(feature_map),
        targets=solver.targets,
        token_weights=token_weights,
        projection=reduced.projection,
        offset=reduced.offset,
        query_map=reduced.query_map,
        radius=radius,
        training=summary,
        look=look,
    )
    return parts, Encoded(reduced.kept, augment(reduced.documents, radius))


@dataclass
class _Job:
    """What all steps share."""

    store: TokenStore
    live: Rows
    options: Options
    random: np.random.Generator  # each draw moves it on: a draw more, or in another place, is another map
    num_threads: int
    progress: Progress
    clock: Clock = field(default_factory=Clock)


@dataclass
class _Reduced:
    """Some documents, and the way to them, after a reduction."""

    kept: Rows
    documents: npt.NDArray[np.float32]  # (len(kept), width)
    projection: npt.NDArray[np.float32]
    offset: npt.NDArray[np.float32]
    query_map: npt.NDArray[Any]
    queries: QueryBatch
    query_features: npt.NDArray[np.float32]
    is_to_be_distilled: bool
    is_distilled: bool = False
    found: dict[str, float] = field(default_factory=dict)  # by distillation.top_found, before and after it


def _queries_to_learn_from(
    job: _Job,
    queries: QueryBatch | None,
    encode_query: Callable[[list[str]], Any] | None,
    texts: Sequence[str | None] | None,
) -> tuple[QueryBatch, str]:
    """The queries, or what stands for them, and what that is."""
    learned_from = "queries"
    dim = job.store.dim or 1
    if queries is None and encode_query is not None and texts is not None:
        learned_from = "sentences"
        queries = pseudo_queries.from_sentences(texts, encode_query, job.random, job.progress, dim=dim)
    elif queries is None and encode_query is not None:
        learned_from = "plain queries"
        plain = pseudo_queries.from_plain_queries(encode_query, job.progress, dim=dim)
        queries = plain.as_float32.joined(_token_queries(job))  # plain ones alone teach nothing of what the documents say
    if queries is None or len(queries) == 0:
        learned_from = "document tokens"
        warn_caller(NO_QUERIES_WARNING)
        queries = pseudo_queries.from_tokens(job.store, job.live, job.random)
    return queries, learned_from


def _held_back(job: _Job, queries: QueryBatch) -> tuple[QueryBatch, QueryBatch]:
    """Queries for the map, and those that the second look learns from, whose estimates must not be too good."""
    is_whole = len(queries.tokens) > len(queries)  # and not the tokens of others, one by one
    count = max(int(len(queries) * LOOK_SHARE), min(FEW_LOOK_QUERIES, len(queries) // 4))
    count = min(count, MAX_LOOK_QUERIES)
    looks = job.options.num_centroids != 0 and len(job.live) >= MIN_LOOK_DOCUMENTS
    if not looks or not is_whole or count < MIN_LOOK_QUERIES:
        return queries, queries.take(())
    order = job.random.permutation(len(queries))
    return queries.take(np.sort(order[count:]).tolist()), queries.take(np.sort(order[:count]).tolist())


def _token_queries(job: _Job, count: int | None = None) -> QueryBatch:
    """Queries made of document tokens, to go with others.

    The exact top 10 of a real query has many documents that match all its tokens a little, and few that match some exactly.
    The answer is often one of these, so that they must not be drowned.
    """
    return pseudo_queries.from_tokens(job.store, job.live, job.random, count).as_float32.without_zero_rows


def _split(job: _Job, queries: QueryBatch) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Tokens to learn from, in random order, and those of a few queries that are held out to validate."""
    num_validation = min(int(len(queries) * VALIDATION_SHARE), MAX_VALIDATION_QUERIES)
    held_out = job.random.choice(len(queries), num_validation, replace=False)
    is_held_out = np.repeat(np.isin(np.arange(len(queries)), held_out), np.diff(queries.offsets))
    pool = queries.tokens[job.random.permutation(np.flatnonzero(~is_held_out))[:MAX_POOL_TOKENS]]
    return pool, queries.tokens[is_held_out]


def _trained_features(
    job: _Job,
    pool: npt.NDArray[Any],
    held_out: npt.NDArray[Any],
    start: FeatureMap | None,
    sizes: Plan,
    directory: str | PathLike[str] | None,
) -> tuple[FeatureMap, Training]:
    """psi: random features, or features trained to predict the token maxima of some documents."""
    options = job.options
    sample_documents = _choose(job.live, options.num_training_documents, job.random)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        kind = "trained" if options.epochs else "random"
        feature_map = FeatureMap(pool.shape[1], options.num_features, kind=kind, homogeneous=True)
    if start is not None:
        feature_map.load_state_dict(start.state_dict())
    feature_map.to(options.device)
    rows = np.arange(min(len(pool), TARGET_ROWS))
    weights = np.ones(len(rows), np.float32)
    if options.epochs:
        rows, weights = draw_sample(feature_map, pool, options.num_training_tokens, job.random)
    directions, weights = _weighed(pool[rows], weights)
    job.clock.lap("draw training tokens")
    training = train_feature_map(
        directions,
        job.store,
        sample_documents,
        feature_map,
        validation_tokens=directions_of(held_out)[0],
        token_weights=weights,
        warm_start=start is not None,
        epochs=options.epochs,
        precision=options.target_precision,
        seed=options.seed,
        device=options.device,
        num_threads=job.num_threads,
        progress=job.progress,
        targets_on_disk=sizes.targets_on_disk,
        directory=directory,
    )
    job.clock.lap("train")
    return feature_map.freeze(), training


def _solver(
    job: _Job, feature_map: FeatureMap, pool: npt.NDArray[Any], training: Training, sizes: Plan
) -> tuple[WeightSolver, npt.NDArray[np.float32]]:
    """Document weights by least squares over a sample of tokens; and what each of these counts in it."""
    options = job.options
    rows, weights = draw_sample(feature_map, pool, options.sample_tokens, job.random)
    directions, weights = _weighed(pool[rows], weights)
    job.clock.lap("draw sample tokens")
    targets = Targets(directions, training.target_mean, options.target_precision, sizes.documents_per_block, options.device)
    solver = WeightSolver(feature_map, targets, training.target_std, token_weights=weights, ridge=options.ridge)
    return solver, weights


def _reduced(job: _Job, solver: WeightSolver, queries: QueryBatch, num_kept: int, *, has_queries: bool) -> _Reduced:
    """The directions of the weights that queries use: as many as the rank, or more for distillation to choose among."""
    options, clock = job.options, job.clock
    weighed = _choose(job.live, NUM_WEIGHED_DOCUMENTS, job.random)
    sample_weights = np.concatenate([part for _, part in solver.solve(job.store, weighed, job.num_threads)])
    clock.lap("sample weights")
    used = queries.sample(NUM_REDUCTION_QUERIES, job.random)
    features = solver.feature_map.query_features(used.tokens, used.offsets).cpu().numpy()
    clock.lap("query features")
    kept = _choose(job.live, num_kept, job.random)
    enough = has_queries and len(kept) >= MIN_DOCUMENTS and len(used) >= MIN_QUERIES
    width, distilled = options.rank, False
    if options.rank is not None and enough and options.steps > 0 and options.rank < options.num_features:
        width, distilled = min(TEACHER_RANKS * options.rank, options.num_features), True
    reduction = Reduction.learn(sample_weights, features, width, ordered=distilled)
    if not distilled:
        reduction.rotate(job.random)
    clock.lap("reduction")
    projection, offset = solver.projection(reduction.document_map), reduction.mean @ reduction.document_map
    clock.lap("projection")
    task = job.progress.task("document weights", len(kept))
    documents = reduced_weights(job.store, kept, solver.targets, projection, offset, job.num_threads, task)
    clock.lap("document weights")
    return _Reduced(kept, documents, projection, offset, reduction.query_map, used, features, distilled)


def _distilled(job: _Job, wide: _Reduced, target_std: float) -> _Reduced:
    """A further reduction to the rank, tuned on the exact scores of each query's best candidates; then a random rotation.

    Some queries are held out: where the tuned maps find fewer of their best documents than the first coordinates of what was
    there before, these are kept. The rotation spreads what the leading directions have over all, so that int8 codes of the
    vectors lose little.
    """
    options, clock = job.options, job.clock
    assert options.rank is not None
    x_queries = wide.query_features @ wide.query_map
    candidates = candidate_documents(wide.documents, x_queries, options.device)
    clock.lap("candidate documents")
    used, bounds = wide.queries, np.arange(len(wide.queries) + 1) * candidates.shape[1]
    rows = wide.kept[candidates.reshape(-1)]
    exact = job.store.candidate_scores(_float32(used.tokens), used.offsets, rows, bounds, num_threads=job.num_threads)
    scores = exact.reshape(candidates.shape) / np.float32(target_std)
    clock.lap("exact scores")
    is_held_out = np.zeros(len(used), np.bool_)
    num_held_out = min(int(len(used) * DISTILLATION_SHARE), MAX_DISTILLATION_QUERIES)
    is_held_out[job.random.choice(len(used), num_held_out, replace=False)] = True
    document_map, further = distil(
        wide.documents,
        x_queries[~is_held_out],
        candidates[~is_held_out],
        scores[~is_held_out],
        options.rank,
        steps=options.steps,
        seed=options.seed,
        device=options.device,
        progress=job.progress,
    )
    first = np.eye(len(document_map), options.rank, dtype=np.float32)
    measure = partial(top_found, wide.documents, x_queries[is_held_out], candidates[is_held_out], scores[is_held_out])
    found = {"least squares": measure(first, first), "distilled": measure(document_map, further)}
    is_better = found["distilled"] >= found["least squares"]
    event("distillation", logging.INFO if is_better else logging.WARNING, kept=is_better, **found)
    if not is_better:
        document_map = further = first
    query_map = wide.query_map @ further
    clock.lap("distillation")
    rotation = random_rotation(options.rank, job.random)
    document_map, query_map = document_map @ rotation, query_map @ rotation
    columns = _core.Columns(document_map, job.num_threads)
    documents = _core.products(wide.documents, columns, job.num_threads).astype(np.float32)
    projection, offset = composed(wide.projection, wide.offset, document_map)
    reduced = replace(wide, documents=documents, projection=projection, offset=offset, query_map=query_map)
    return replace(reduced, is_distilled=is_better, found=found)


def _second_look(
    job: _Job, reduced: _Reduced, feature_map: FeatureMap, unseen: QueryBatch, kept: LookWeights | None
) -> tuple[LookWeights | None, dict[str, float]]:
    """Centroids of document tokens, and how to rank a shortlist by them, learned from queries that the map has not seen."""
    options, clock = job.options, job.clock
    are_coded = options.small_bits > 0
    count = num_centroids(options.num_centroids, len(job.live), job.store.num_tokens, are_coded=are_coded)
    if count == 0:
        return None, {}
    unlearned = kept
    if unlearned is None:
        centroids = learn_centroids(job.store, job.live, count, job.random, job.num_threads)
        if len(centroids) == 0:
            return None, {}
        codes = learn_codes(job.store, job.live, centroids, reduced.queries.tokens[:MAX_POOL_TOKENS], options.seed)
        unlearned = LookWeights(centroids, *UNLEARNED, codes)
        clock.lap("centroids")
    size = min(LOOK_SHORTLIST, len(reduced.kept))
    if len(unseen) == 0:
        return unlearned, {}
    encoded = feature_map.query_features(unseen.tokens, unseen.offsets).cpu().numpy() @ reduced.query_map
    shortlists = [_core.top_k(reduced.documents @ query, size) for query in encoded]
    look = SecondLook(unlearned, []).of_rows(job.store, reduced.kept, num_threads=job.num_threads)
    asked = unseen.as_float32
    longer = look.with_rare(asked, shortlists, num_threads=job.num_threads)
    known = look.known(asked, longer, size, num_threads=job.num_threads)
    rows, bounds = reduced.kept[np.concatenate(longer)], to_offsets([len(own) for own in longer])
    exact = job.store.candidate_scores(asked.tokens, asked.offsets, rows, bounds, num_threads=job.num_threads)
    weights, found = ranking(known, exact, bounds, seed=options.seed)
    event("second look", logging.INFO, **found)
    clock.lap("second look")
    hidden, bias, output = weights
    return replace(unlearned, hidden=hidden, bias=bias, output=output), found


def _choose(indices: Rows, count: int, random: np.random.Generator) -> Rows:
    """At most ``count`` of the indices, ascending."""
    if count >= len(indices):
        return indices
    return np.sort(random.choice(indices, count, replace=False))


def _weighed(
    tokens: npt.NDArray[Any], weights: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Directions of tokens and their weights in least squares, of mean 1: an error there counts by the token's length."""
    directions, lengths = directions_of(tokens)
    weights = weights * lengths**2
    return directions, (weights / weights.mean()).astype(np.float32)


def _float32(tokens: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(tokens, dtype=np.float32)


def _summary(training: Training) -> dict[str, Any]:
    return {
        "target_mean": training.target_mean,
        "target_std": training.target_std,
        "training_loss": training.training_loss,
        "validation_loss": training.validation_loss,
    }
