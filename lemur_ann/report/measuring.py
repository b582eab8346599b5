"""The figures of a report, as plain values that JSON can hold."""

from __future__ import annotations

import datetime
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from lemur_ann import validate
from lemur_ann.index import LemurIndex
from lemur_ann.progress import Show, progress_lines
from lemur_ann.report import about, findings
from lemur_ann.report.searches import Searches, curve, settings_to_measure
from lemur_ann.report.subject import Subject, read, truths
from lemur_ann.searching.settings import Settings


def subject_of(
    index: LemurIndex,
    queries: Any,
    *,
    k: int,
    num_queries: int,
    num_threads: int,
    relevant: Any,
    random: np.random.Generator,
) -> Subject:
    """The index as it is now, and at most so many of the queries; checked."""
    options, snapshot = index.options, index.snapshot
    learned, size = snapshot.learned, snapshot.num_documents
    options = options if learned is None else learned.options
    k = validate.positive_int(k, "k")
    threads = validate.num_threads(validate.positive_int(num_threads, "num_threads"))
    num_queries = validate.positive_int(num_queries, "num_queries")
    if size == 0:
        raise ValueError("report needs at least one document, and the index holds none")
    in_use = Settings.of(options, (), k, num_threads=threads, **snapshot.searched)
    if learned is None:  # then a search scores every document
        in_use = replace(in_use, num_candidates=size, ef_search=size)
    chosen, grades = read(queries, snapshot, num_queries, relevant, random)
    return Subject(snapshot, options, chosen, in_use.within(size, size), k, grades)


def figures(
    subject: Subject, *, title: str | None, text_column: str, random: np.random.Generator, progress: Show
) -> dict[str, Any]:
    """All of them; see :func:`lemur_ann.report.report` for the arguments."""
    snapshot, queries = subject.snapshot, subject.queries
    with progress_lines(progress) as lines:
        exact = truths(subject, random, lines.task("exact answers", len(queries)))
        settings, searches = settings_to_measure(subject), Searches(subject)
        timed, exact_ms = searches.timed(exact, settings, lines)
        time_of_a_query = searches.time_of_a_query(lines)
        relevance = searches.relevance(exact)
        codes = findings.codes(subject, exact, relevance, lines)
    points = curve(subject, settings, timed)
    used = timed[settings.index(subject.in_use)]
    ranks = findings.estimated_ranks(subject, exact, used)
    result = {
        "title": title or f"An index of {subject.size:,} documents",
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "index": about.index(snapshot),
        "queries": {
            "num_queries": len(queries),
            "num_given": queries.num_given,
            "num_tokens": int(queries.lengths.sum()),
        },
        "k": subject.k,
        "in_use": next(point for point in points if point["in_use"]),
        "exact_p50_ms": float(np.median(exact_ms)),
        "relevance": relevance,
        "curve": points,
        "time_of_a_query": time_of_a_query,
        "estimates": findings.estimates(subject, exact, random),
        "training": about.training(snapshot),
        "recall_by_query_length": findings.by_query_length(subject, used),
        "recall_by_document_length": findings.by_document_length(subject, exact, used),
        "sizes": about.sizes(snapshot),
        "codes": codes,
        "misses": findings.misses(used, ranks, max(subject.in_use.num_candidates, subject.in_use.shortlist)),
        "worst_queries": findings.worst(subject, exact, used, ranks, text_column),
        "environment": about.environment(subject.in_use.num_threads),
        "options": asdict(subject.options),
    }
    return {**result, "notes": about.notes(result)}
