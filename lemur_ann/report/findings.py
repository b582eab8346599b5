"""What the map estimates, and what searches with the setting in use miss: because of what, and for whom."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lemur_ann.documents.rows import Rows
from lemur_ann.insight import metrics
from lemur_ann.insight.code_tuning import tune_codes, why_not
from lemur_ann.insight.estimates import ranks_by_estimate
from lemur_ann.progress import Progress
from lemur_ann.report.searches import Timed, share
from lemur_ann.report.subject import Subject, Truth, shortened
from lemur_ann.searching.snapshot import Snapshot

MAX_POINTS = 200  # of the plot of estimates, of a kind
MAX_BINS, QUERIES_PER_BIN = 6, 10
MAX_WORST, MAX_MISSED = 10, 5  # queries shown, and documents of each
CODES_POOL_FACTORS = (2,)  # measured beside the widths of codes

Place = tuple[int, int, float, float]  # number of a query, row of a document, its exact and its estimated score per query token


def estimates(subject: Subject, truths: list[Truth], random: np.random.Generator) -> dict[str, Any] | None:
    """Estimated beside exact scores, per query token, so that queries of all lengths may stand in one plot.

    An estimate is of a score up to an affine map, which is the same for all documents of a query: the one of least squares on
    this query's documents.
    """
    if subject.snapshot.learned is None:
        return None
    correlations, kinds = _compared(subject, truths)
    errors = {kind: np.array([estimate - exact for _, _, exact, estimate in places]) for kind, places in kinds.items()}
    return {
        "rank_correlation": float(np.mean(correlations)) if correlations else None,
        "error": {kind: float(np.sqrt(np.mean(own**2))) for kind, own in errors.items()},  # root mean square
        "bias": {kind: float(np.mean(own)) for kind, own in errors.items()},
        "num_documents": {kind: len(own) for kind, own in errors.items()},
        "points": [point for kind, places in kinds.items() for point in _points(subject, kind, places, random)],
    }


def _compared(subject: Subject, truths: list[Truth]) -> tuple[list[float], dict[str, list[Place]]]:
    """The rank correlation over each query's random documents, and all places, of random documents and of the exact top k."""
    candidates, encoded = subject.snapshot.fitted().candidates, _encoded(subject)
    correlations: list[float] = []
    kinds: dict[str, list[Place]] = {"random": [], "top": []}
    for i, (truth, query, length) in enumerate(zip(truths, encoded, subject.queries.lengths.tolist(), strict=True)):
        rows, num_random = np.concatenate([truth.sample, truth.top]), len(truth.sample)
        raw = candidates.take(rows) @ query
        exact = np.concatenate([truth.sample_scores, truth.top_scores]).astype(np.float64) / length
        correlation = metrics.rank_correlation(raw[:num_random], exact[:num_random])
        if correlation is not None:
            correlations.append(correlation)
        fitted = metrics.fitted(raw, exact)
        places = list(zip([i] * len(rows), rows.tolist(), exact.tolist(), fitted.tolist(), strict=True))
        kinds["random"] += places[:num_random]
        kinds["top"] += places[num_random:]
    return correlations, kinds


def _points(subject: Subject, kind: str, places: list[Place], random: np.random.Generator) -> list[dict[str, Any]]:
    chosen = np.sort(random.choice(len(places), min(MAX_POINTS, len(places)), replace=False)).tolist()
    ids = subject.snapshot.ids.column.take(np.array([places[c][1] for c in chosen], np.int64)).tolist()
    points = []
    for c, doc_id in zip(chosen, ids, strict=True):
        i, _, exact, estimate = places[c]
        row = int(subject.queries.rows[i])
        points.append({"kind": kind, "query": row, "id": doc_id, "exact": exact, "estimate": estimate})
    return points


def _encoded(subject: Subject) -> npt.NDArray[np.float32]:
    queries = subject.queries.batch
    encoder = subject.snapshot.fitted().encoder
    return encoder.encode_batch(queries.tokens, queries.offsets, num_threads=subject.in_use.num_threads)


def estimated_ranks(subject: Subject, truths: list[Truth], used: Timed) -> list[npt.NDArray[np.int64]] | None:
    """For each query the ranks by estimate of the documents that it missed, best exact first; None without a map.

    They are what :meth:`lemur_ann.LemurIndex.explain_miss` says of each.
    """
    snapshot = subject.snapshot
    if snapshot.learned is None:
        return None
    return [
        ranks_by_estimate(
            snapshot.learned,
            query,
            truth.top[~found],
            snapshot.deleted,
            num_threads=subject.in_use.num_threads,
            on_device=subject.on_device,
        )
        for query, truth, found in zip(_encoded(subject), truths, used.found, strict=True)
    ]


def codes(subject: Subject, truths: list[Truth], relevance: dict[str, Any] | None, lines: Progress) -> dict[str, Any] | None:
    """What small codes would lose in the place of the tokens; None where these are not kept, or no codes can be made."""
    learned, queries = subject.snapshot.learned, subject.queries.batch
    if learned is None or subject.on_device or why_not(learned, subject.snapshot.store):
        return None
    if not all(queries.matrix(i).any() for i in range(len(queries))):  # a query of zeros has no best documents
        return None
    is_known = relevance is not None and relevance["measures"].get(f"success@{subject.k}", {}).get("exact", 0) > 0
    grades = subject.grades if is_known else None
    found = tune_codes(
        subject.snapshot,
        queries,
        subject.in_use,
        grades,
        max_loss=1.0,
        certain=False,
        pool_factors=CODES_POOL_FACTORS,
        exact=[truth.top for truth in truths],
        progress=lines,
    )
    measured = [(1, width) for width in found.widths] + list(found.pooled)
    return {
        "loss_of": "relevance" if is_known else "recall",
        "widths": [
            {
                "token_codes": width.token_codes,
                "pool_factor": factor,
                "bytes_per_token": width.bytes_per_token,
                "recall": width.recall,
                "recall_interval": list(width.recall_interval),
                "loss": width.loss,
                "loss_interval": list(width.loss_interval),
            }
            for factor, width in measured
        ],
    }


def misses(used: Timed, ranks: list[npt.NDArray[np.int64]] | None, num_listed: int) -> dict[str, Any] | None:
    """Why documents of the exact top k were missed: behind all that a search lists by estimate, or lost by what follows."""
    if ranks is None:
        return None
    places = np.concatenate([np.empty(0, np.int64), *ranks])
    behind = int(np.count_nonzero(places > num_listed))
    wanted = sum(len(own) for own in used.found)
    return {"num_wanted": wanted, "num_missed": len(places), "by_map": behind, "by_graph": len(places) - behind}


def by_query_length(subject: Subject, used: Timed) -> list[dict[str, Any]]:
    """Recall of queries of so many tokens."""
    queries = subject.queries
    lengths = queries.lengths
    bins = []
    for low, high in _bins(lengths, min(MAX_BINS, max(len(queries) // QUERIES_PER_BIN, 1))):
        inside = np.flatnonzero((lengths >= low) & (lengths <= high)).tolist()
        recall, least, most = share([used.found[i] for i in inside])
        bins.append({"tokens": [low, high], "num_queries": len(inside), "recall": recall, "recall_interval": [least, most]})
    return bins


def by_document_length(subject: Subject, truths: list[Truth], used: Timed) -> list[dict[str, Any]]:
    """Recall of the documents that queries want, the same document counted for each of these queries."""
    lengths = np.concatenate([np.diff(piece.offsets) for piece in subject.snapshot.store.pieces])
    wanted = [lengths[truth.top] for truth in truths]
    together = np.concatenate(wanted)
    bins = []
    for low, high in _bins(together, min(MAX_BINS, max(len(truths) // QUERIES_PER_BIN, 1))):
        inside = [(own >= low) & (own <= high) for own in wanted]
        recall, least, most = share([found[here] for found, here in zip(used.found, inside, strict=True)])
        bins.append(
            {
                "tokens": [low, high],
                "num_wanted": sum(int(here.sum()) for here in inside),
                "recall": recall,
                "recall_interval": [least, most],
            }
        )
    return bins


def _bins(lengths: npt.NDArray[np.int64], count: int) -> list[tuple[int, int]]:
    """At most ``count`` ranges, ends included, of about as many lengths each."""
    ends = np.unique(np.quantile(lengths, np.linspace(0, 1, count + 1), method="lower")).tolist()
    if len(ends) == 1:
        return [(ends[0], ends[0])]
    return [(low if i == 0 else low + 1, high) for i, (low, high) in enumerate(itertools.pairwise(ends))]


def worst(
    subject: Subject, truths: list[Truth], used: Timed, ranks: list[npt.NDArray[np.int64]] | None, text_column: str
) -> list[dict[str, Any]]:
    """The queries that miss most of their exact top k, and the best of what they miss."""
    queries = subject.queries
    shares = [float(found.mean()) if len(found) else 1.0 for found in used.found]
    order = [i for i in np.argsort(shares, kind="stable").tolist() if shares[i] < 1]
    return [
        {
            **queries.named(i),
            "num_tokens": int(queries.lengths[i]),
            "num_found": int(used.found[i].sum()),
            "num_wanted": len(used.found[i]),
            "missed": _missed(subject.snapshot, truths[i], used.found[i], None if ranks is None else ranks[i], text_column),
        }
        for i in order[:MAX_WORST]
    ]


def _missed(
    snapshot: Snapshot,
    truth: Truth,
    found: npt.NDArray[np.bool_],
    ranks: npt.NDArray[np.int64] | None,
    text_column: str,
) -> list[dict[str, Any]]:
    places = np.flatnonzero(~found)[:MAX_MISSED]
    rows = truth.top[places]
    ids, texts = snapshot.ids.column.take(rows).tolist(), _texts(snapshot, rows, text_column)
    return [
        {
            "id": doc_id,
            "text": text,
            "rank": int(place) + 1,
            "score": float(truth.top_scores[place]),
            "estimated_rank": None if ranks is None else int(ranks[at]),
        }
        for at, (place, doc_id, text) in enumerate(zip(places, ids, texts, strict=True))
    ]


def _texts(snapshot: Snapshot, rows: Rows, column: str) -> list[str | None]:
    if snapshot.metadata is None or column not in snapshot.metadata.column_names:
        return [None] * len(rows)
    values = snapshot.metadata.column(column).take(pa.array(rows)).to_pylist()
    return [None if value is None else shortened(str(value)) for value in values]
