"""The recall and the speed of an index on given queries."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from lemur_ann.documents.inputs import QueryBatch, queries_of
from lemur_ann.hits import Hits
from lemur_ann.insight import metrics
from lemur_ann.insight.relevance import Grades, Relevance, relevance
from lemur_ann.progress import Progress
from lemur_ann.searching.searcher import Searcher
from lemur_ann.searching.settings import Settings
from lemur_ann.searching.snapshot import Snapshot
from lemur_ann.validate import Tokens


@dataclass(frozen=True)
class Evaluation:
    """What :meth:`lemur_ann.LemurIndex.evaluate` found.

    Attributes:
        recall: share of the exact MaxSim top k that the search found, mean over queries.
        k, num_candidates, ef_search, num_threads: how it searched; ef_search is never below num_candidates.
        num_queries, num_documents: how much it searched.
        latency_mean_ms, latency_p50_ms, latency_p95_ms: of one query at a time.
        exact_latency_mean_ms: of exact MaxSim over all documents, a query's share of one batch with the same threads.
        recall_interval: the 95% confidence interval of recall over queries, by :func:`lemur_ann.insight.metrics.share_found`.
        shortlist: documents that a second look chose the candidates from; 0 without one.
        relevance: of relevant documents, where these were given.
    """

    recall: float
    k: int
    num_candidates: int
    ef_search: int
    num_threads: int
    num_queries: int
    num_documents: int
    latency_mean_ms: float
    latency_p50_ms: float
    latency_p95_ms: float
    exact_latency_mean_ms: float
    recall_interval: tuple[float, float] = (0.0, 1.0)
    shortlist: int = 0
    relevance: Relevance | None = None


def timed_search(
    searcher: Searcher, snapshot: Snapshot, query: Tokens, settings: Settings, *, filter: Any = None, exact: bool = False
) -> tuple[Hits, float]:
    """The hits of one query (num_tokens, dim), and the milliseconds of all that a search of an index does for it alone."""
    start = time.perf_counter()
    (hits,) = searcher.search(snapshot, queries_of(query, snapshot.dim).batch, settings, filter=filter, exact=exact)
    return hits, (time.perf_counter() - start) * 1e3


def evaluate(
    snapshot: Snapshot,
    queries: QueryBatch,
    settings: Settings,
    searcher: Searcher,
    filter: Any,
    progress: Progress,
    grades: list[Grades] | None = None,
) -> Evaluation:
    """See :meth:`lemur_ann.LemurIndex.evaluate`: exact answers and hits are of one snapshot, whatever changes meanwhile."""
    task = progress.task("exact answers", 1)
    start = time.perf_counter()
    exact = searcher.search(snapshot, queries, settings, filter=filter, exact=True)
    exact_ms = (time.perf_counter() - start) / len(queries) * 1e3
    task.advance()

    task = progress.task("queries", len(queries))
    found, latencies = [], []
    timed_search(searcher, snapshot, queries.matrix(0), settings, filter=filter)  # warm up
    for number in range(len(queries)):
        hits, milliseconds = timed_search(searcher, snapshot, queries.matrix(number), settings, filter=filter)
        found.append(hits.ids.tolist())
        latencies.append(milliseconds)
        task.advance()
    wanted = [hits.ids.tolist() for hits in exact]
    share = metrics.share_found(
        [len(set(own) & set(best)) for own, best in zip(found, wanted, strict=True)], [len(best) for best in wanted]
    )
    return Evaluation(
        recall=metrics.recall(found, wanted),
        k=settings.k,
        num_candidates=settings.num_candidates,
        ef_search=settings.ef_search,
        num_threads=settings.num_threads,
        num_queries=len(queries),
        num_documents=snapshot.num_documents,
        latency_mean_ms=float(np.mean(latencies)),
        latency_p50_ms=float(np.percentile(latencies, 50)),
        latency_p95_ms=float(np.percentile(latencies, 95)),
        exact_latency_mean_ms=exact_ms,
        recall_interval=(1.0, 1.0) if share is None else share[1:],
        shortlist=settings.shortlist,
        relevance=None if grades is None else relevance(found, wanted, grades, settings.k, snapshot.ids),
    )
