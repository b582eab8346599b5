"""The recall and the speed of an index on given queries."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Evaluation:
    """What :meth:`lemur_ann.LemurIndex.evaluate` found.

    Attributes:
        recall: share of the exact MaxSim top k that the search found, mean over queries.
        k, num_candidates, ef_search, num_threads: how it searched; ef_search is never below num_candidates.
        num_queries, num_documents: how much it searched.
        latency_mean_ms, latency_p50_ms, latency_p95_ms: of one query at a time.
        exact_latency_mean_ms: of exact MaxSim over all documents, a query's share of one batch with the same threads.
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
