"""What searches of several settings find and take, and where the time of one goes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lemur_ann.documents.inputs import queries_of
from lemur_ann.insight import metrics
from lemur_ann.insight.evaluation import timed_search
from lemur_ann.insight.relevance import relevance
from lemur_ann.progress import Progress
from lemur_ann.report.subject import Subject, Truth
from lemur_ann.searching.search import Candidates, Rerank
from lemur_ann.searching.searcher import Searcher
from lemur_ann.searching.settings import Settings, Tuned

ROUNDS = 2  # of all timings, some time apart; of each query the quicker counts, since what else the machine does only adds
SHARES = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)  # of the candidates in use: the settings of the curve
BEAMS = (1, 2, 4)  # times the candidates
MAX_EXACT = 10  # queries to time exact searches with


@dataclass(frozen=True)
class Timed:
    """What searches of one setting found and took.

    Attributes:
        found: for each query bool (num_wanted,): which of the exact top k, best first, are among its hits.
        milliseconds: of each query, the quicker of ROUNDS.
    """

    found: list[npt.NDArray[np.bool_]]
    milliseconds: list[float]


class Searches:
    """Searches of a subject, one query at a time, each timed."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._searcher = Searcher()  # not the index's own, which may be at another snapshot by now
        self._search(0, subject.in_use)  # warm up

    def _search(self, number: int, settings: Settings, *, exact: bool = False) -> tuple[set[Any], float]:
        """The ids found, and the milliseconds."""
        subject = self._subject
        query = subject.queries.batch.matrix(number)
        hits, milliseconds = timed_search(self._searcher, subject.snapshot, query, settings, exact=exact)
        return set(hits.ids.tolist()), milliseconds

    def timed(self, truths: list[Truth], settings: list[Settings], lines: Progress) -> tuple[list[Timed], list[float]]:
        """The searches of each setting; and the milliseconds of exact ones, which stand for settings that rerank everything."""
        subject, num_queries = self._subject, len(self._subject.queries)
        wanted = [subject.snapshot.ids.column.take(truth.top).tolist() for truth in truths]
        approximate = [own for own in settings if not _is_exact(subject, own)]
        num_exact = min(MAX_EXACT, num_queries)
        task = lines.task("searches", ROUNDS * (num_queries * len(approximate) + num_exact))
        found: dict[Settings, list[npt.NDArray[np.bool_]]] = {}
        took = {own: np.full(num_queries, np.inf) for own in approximate}
        exact_ms = np.full(num_exact, np.inf)
        for _ in range(ROUNDS):
            for own in approximate:
                found[own] = []
                for i, ids in enumerate(wanted):
                    hits, milliseconds = self._search(i, own)
                    took[own][i] = min(took[own][i], milliseconds)
                    found[own].append(np.array([doc_id in hits for doc_id in ids], np.bool_))
                    task.advance()
            for i in range(num_exact):
                exact_ms[i] = min(exact_ms[i], self._search(i, subject.in_use, exact=True)[1])
                task.advance()
        exactly = Timed([np.ones(len(ids), np.bool_) for ids in wanted], exact_ms.tolist())
        timed = [Timed(found[own], took[own].tolist()) if own in took else exactly for own in settings]
        return timed, exactly.milliseconds

    def relevance(self, truths: list[Truth]) -> dict[str, Any] | None:
        """What searches with the setting in use find of the relevant documents, and exact ones; None where none are known."""
        subject = self._subject
        if subject.grades is None:
            return None
        ids = subject.snapshot.ids
        hits = self._searcher.search(subject.snapshot, subject.queries.batch, subject.in_use)
        exact = [ids.column.take(truth.top).tolist() for truth in truths]
        return asdict(relevance([own.ids.tolist() for own in hits], exact, subject.grades, subject.k, ids))

    def time_of_a_query(self, lines: Progress) -> dict[str, Any] | None:
        """Median milliseconds of a whole search with the setting in use, and of its stages, one after the other.

        None where a search has no such stages: it scores every document, or works on a device.
        """
        subject, num_queries = self._subject, len(self._subject.queries)
        if _is_exact(subject, subject.in_use) or subject.on_device:
            return None
        look = ("second look",) if subject.in_use.shortlist else ()
        names = ("features", "graph" if subject.has_beam else "scan", *look, "rerank")
        whole, parts = np.full(num_queries, np.inf), np.full((num_queries, len(names)), np.inf)
        task = lines.task("stages", 2 * ROUNDS * num_queries)
        for _ in range(ROUNDS):
            for i in range(num_queries):
                whole[i] = min(whole[i], self._search(i, subject.in_use)[1])
                task.advance()
            for i in range(num_queries):
                parts[i] = np.minimum(parts[i], _stages(subject, i))
                task.advance()
        p50 = float(np.median(whole))
        medians = dict(zip(names, np.median(parts, axis=0).tolist(), strict=True))
        medians["the rest"] = max(p50 - sum(medians.values()), 0.0)
        return {"p50_ms": p50, "parts": [{"part": name, "p50_ms": ms} for name, ms in medians.items()]}


def _stages(subject: Subject, number: int) -> npt.NDArray[np.float64]:
    """Milliseconds of the features, the graph, the second look if there is one, and the rerank of one query."""
    snapshot, settings = subject.snapshot, subject.in_use
    query = queries_of(subject.queries.batch.matrix(number), snapshot.dim).batch.as_float32
    marks = [time.perf_counter()]
    candidates = Candidates(snapshot, query, settings, snapshot.deleted)
    marks.append(time.perf_counter())
    if settings.shortlist:
        shortlists = candidates.of_largest_estimate([0], settings.shortlist, settings.ef_search)
        marks.append(time.perf_counter())
        found = candidates.second_look([0], shortlists, settings.num_candidates)
    else:
        found = candidates([0], settings.num_candidates, settings.ef_search)
    marks.append(time.perf_counter())
    Rerank(snapshot, query, settings)(found)
    marks.append(time.perf_counter())
    return np.diff(marks) * 1e3


def _is_exact(subject: Subject, settings: Settings) -> bool:
    """Whether a search scores every document."""
    return subject.snapshot.learned is None or settings.num_candidates >= subject.size


def settings_to_measure(subject: Subject) -> list[Settings]:
    """Fewer and more candidates than the index uses, each with beams of its own, and what it is tuned for; the fewest first."""
    size, in_use = subject.size, subject.in_use
    if subject.snapshot.learned is None:
        return [in_use]
    settings = {in_use, *(_of(subject, t.num_candidates, t.ef_search, t.shortlist) for t in subject.tuned)}
    beams = BEAMS if subject.has_beam else BEAMS[:1]
    for share in SHARES:
        count = max(round(in_use.num_candidates * share), subject.k)
        settings |= {_of(subject, count, count * beam) for beam in beams}
    # A rerank of all documents is an exact search, whatever the beam
    kept = {own for own in settings if own.num_candidates < size or own == in_use}
    if in_use.num_candidates < size and len(kept) < len(settings):
        kept.add(_of(subject, size, size))
    return sorted(kept, key=lambda own: (own.num_candidates, own.ef_search))


def _of(subject: Subject, num_candidates: int, ef_search: int, shortlist: int | None = None) -> Settings:
    """So wide, and no wider than there are documents."""
    size = subject.size
    in_use = subject.in_use
    if shortlist is None:  # in the same proportion
        shortlist = in_use.shortlist * num_candidates // in_use.num_candidates
    beam = ef_search if shortlist > num_candidates else max(ef_search, num_candidates)
    wide = replace(in_use, num_candidates=num_candidates, ef_search=beam, shortlist=shortlist)
    return wide.within(size, size)


def curve(subject: Subject, settings: list[Settings], timed: list[Timed]) -> list[dict[str, Any]]:
    """A point for each setting, quickest first."""
    points: list[dict[str, Any]] = []
    for setting, own in zip(settings, timed, strict=True):
        recall, low, high = share(own.found)
        tuned = [t for t in subject.tuned if _of(subject, t.num_candidates, t.ef_search, t.shortlist) == setting]
        points.append(
            {
                "num_candidates": setting.num_candidates,
                "ef_search": setting.ef_search,
                "shortlist": setting.shortlist,
                "recall": recall,
                "recall_interval": [low, high],
                "p50_ms": float(np.percentile(own.milliseconds, 50)),
                "p95_ms": float(np.percentile(own.milliseconds, 95)),
                "exact": setting.num_candidates == subject.size,
                "in_use": setting == subject.in_use,
                "tuned_for": [_goal(t) for t in tuned],
            }
        )
    points.sort(key=lambda point: (point["p50_ms"], -point["recall"]))
    best = -1.0
    for point in points:
        point["quickest"] = point["recall"] > best  # no other finds as much in less time
        best = max(best, point["recall"])
    return points


def _goal(tuned: Tuned) -> dict[str, Any]:
    asked = {"target_recall": tuned.target_recall, "max_loss": tuned.max_loss, "k": tuned.k}
    return {name: value for name, value in asked.items() if value is not None}


def share(found: Sequence[npt.NDArray[np.bool_]]) -> tuple[float, float, float]:
    """Of the exact top k found, and its 95% interval."""
    return metrics.share_found([int(own.sum()) for own in found], [len(own) for own in found]) or (1.0, 0.0, 1.0)
