"""How wide to search and how many candidates to rerank for a wanted recall: measured on queries, chosen by time."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lemur_ann import _core, validate
from lemur_ann.documents.inputs import QueryBatch, queries_of
from lemur_ann.documents.rows import Rows
from lemur_ann.insight import metrics
from lemur_ann.insight.relevance import Grades, relevance_of_rows
from lemur_ann.progress import Progress, Task
from lemur_ann.searching.search import Candidates, Rerank, exact_scores
from lemur_ann.searching.settings import Settings, Tuned
from lemur_ann.searching.snapshot import Snapshot

RECALL, MAX_LOSS = 0.95, 0.01
MIN_ANSWERS = 10  # that can be lost, of the queries to choose on
FIRST_BEAM = 32
BEAM_STEP = math.sqrt(2.0)
MAX_TIMED_QUERIES = 100
ROUNDING = 1e-12  # of sums
SHORTLIST_PER_BEAM = 3  # of what a walk looks at on the way these are worth a second look


@dataclass(frozen=True)
class Goal:
    """What a search must find: a share of all that counts.

    Attributes:
        rows: for each query documents of its exact top k.
        counts: what each of them counts, float64 of the same lengths.
        share: of the sum of all, which is enough.
    """

    rows: list[Rows]
    counts: list[npt.NDArray[np.float64]]
    share: float


def checked_goal(target_recall: Any, target: Any, relevant: Any, max_loss: Any) -> dict[str, float]:
    """What to tune for: a target_recall, or a max_loss of relevance."""
    if target is None:
        target = "recall" if relevant is None else "relevance"
    if target not in ("recall", "relevance"):
        raise ValueError(f"target must be 'recall' or 'relevance', got {target!r}")
    if relevant is None and (target == "relevance" or max_loss is not None):
        name = "target='relevance'" if max_loss is None else "max_loss="
        raise TypeError(f"{name} needs relevant=, the relevant documents of each query, as evaluate takes them")
    if target == "recall":
        if relevant is not None:
            raise TypeError("relevant= goes with target='relevance', and target is 'recall'")
        return {"target_recall": validate.share(RECALL if target_recall is None else target_recall, "target_recall")}
    if target_recall is not None:
        raise TypeError("target_recall= is for recall, and relevant= tunes for relevance: pass max_loss= in its place")
    return {"max_loss": validate.share(MAX_LOSS if max_loss is None else max_loss, "max_loss")}


def tune(
    snapshot: Snapshot,
    queries: QueryBatch,
    k: int,
    *,
    target_recall: float | None = None,
    max_loss: float | None = None,
    grades: list[Grades] | None = None,
    random: np.random.Generator,
    num_threads: int,
    progress: Progress,
) -> Tuned:
    """The quickest search of a wanted recall, or one that loses no more of the relevance of exact MaxSim than ``max_loss``, of
    documents that ``grades`` say are relevant: chosen on a random half of the queries, measured on the other.

    Raises:
        ValueError: too few queries, no documents, or no relevant document in any exact top k of the half to choose on.
    """
    if len(queries) < 2:
        raise ValueError(f"tune needs at least two queries, to choose on and to measure on, got {len(queries)}")
    queries.check_not_zero("queries")
    if snapshot.num_documents == 0:
        raise ValueError("tune needs at least one document, and the index holds none")
    queries = queries.as_float32
    task = progress.task("exact answers", len(queries))
    exact = []
    for scores in exact_scores(snapshot, queries, num_threads, snapshot.deleted):
        exact.append(_core.top_k(scores, k))
        task.advance()
    tuner = Tuner(snapshot, queries, k, num_threads)
    order = random.permutation(len(queries))
    chosen_on, measured_on = order[: len(order) // 2], order[len(order) // 2 :]
    goals = (
        _of_relevance(snapshot, exact, grades, chosen_on, max_loss or 0.0)
        if grades
        else _of_recall(exact, target_recall or 1.0)
    )
    settings = tuner.choose(chosen_on, goals, progress.task("settings tried", None))
    found = tuner.hits(measured_on, settings)
    wanted = [exact[i] for i in measured_on]
    share = metrics.share_found(
        [int(np.isin(e, f).sum()) for e, f in zip(wanted, found, strict=True)], [len(e) for e in wanted]
    )
    recall, low, high = share or (1.0, 0.0, 1.0)
    loss, loss_interval = None, None
    if grades:
        own = [grades[i] for i in measured_on]
        measures = relevance_of_rows(snapshot, found, wanted, own, k).measures
        worst = max(
            (measures[name] for name in (f"success@{k}", f"MRR@{k}") if name in measures), key=lambda m: m.loss, default=None
        )
        loss, loss_interval = (0.0, (-1.0, 1.0)) if worst is None else (worst.loss, worst.loss_interval)
    return Tuned(
        target_recall=None if grades else target_recall,
        k=k,
        num_candidates=settings.num_candidates,
        ef_search=settings.ef_search,
        recall=recall,
        recall_interval=(low, high),
        num_queries=len(measured_on),
        shortlist=settings.shortlist,
        max_loss=max_loss if grades else None,
        loss=loss,
        loss_interval=loss_interval,
    )


def _of_recall(exact: list[Rows], target_recall: float) -> list[Goal]:
    return [Goal(exact, [np.ones(len(rows)) for rows in exact], target_recall)]


def _of_relevance(
    snapshot: Snapshot, exact: list[Rows], grades: list[Grades], chosen_on: npt.NDArray[np.int64], max_loss: float
) -> list[Goal]:
    """Of each query the relevant document that exact MaxSim ranks best: as success@k counts it, and as MRR@k does."""
    none = np.empty(0, np.int64)
    rows, ranks = [none] * len(exact), [np.empty(0)] * len(exact)
    for i in chosen_on:
        ids = snapshot.ids.column.take(exact[i]).tolist()
        place = next((place for place, doc_id in enumerate(ids) if doc_id in grades[i]), None)
        if place is not None:
            rows[i], ranks[i] = exact[i][place : place + 1], np.array([1.0 / (1 + place)])
    num_answers = sum(map(len, rows))
    if num_answers < MIN_ANSWERS:
        raise ValueError(
            f"of the half of the queries to choose on, {num_answers} have a relevant document in their exact top k, expected "
            f"{MIN_ANSWERS} at least: pass more queries, a larger k, or look at what relevant= names"
        )
    return [Goal(rows, [np.ones(len(own)) for own in ranks], 1.0 - max_loss), Goal(rows, ranks, 1.0 - max_loss)]


class Tuner:
    """Candidates and rerank of some queries."""

    def __init__(self, snapshot: Snapshot, queries: QueryBatch, k: int, num_threads: int) -> None:
        """``queries`` are float32; the snapshot has a learned map and documents."""
        self.snapshot, self._queries, self._k = snapshot, queries, k
        self._num_documents = size = snapshot.num_documents
        self._widest = Settings(min(k, size), size, size, num_threads)
        self._candidates = Candidates(snapshot, queries, self._widest, snapshot.deleted)
        self._looks = snapshot.fitted().looks

    def choose(self, chosen_on: npt.NDArray[np.int64], goals: list[Goal], task: Task) -> Settings:
        """The quickest that reaches all goals on some of the queries."""
        num_documents, k = self._num_documents, self._k
        candidate_seconds = self._candidate_seconds(chosen_on)
        best, best_seconds = self._widest, math.inf
        beam = max(FIRST_BEAM, k)
        while True:
            task.advance()
            shortlist = min(SHORTLIST_PER_BEAM * beam, num_documents) if self._looks else 0
            found, seconds = self._timed_search(chosen_on, beam, shortlist)
            if seconds > best_seconds:
                return best
            depths = [_depth(goal, chosen_on, found) for goal in goals]
            depth = max(k, *(math.inf if depth is None else depth for depth in depths))
            if seconds + depth * candidate_seconds < best_seconds:
                best_seconds = seconds + depth * candidate_seconds
                best = replace(self._widest, num_candidates=int(depth), ef_search=beam, shortlist=shortlist)
            if beam >= num_documents:
                return best
            beam = min(math.ceil(beam * BEAM_STEP), num_documents)

    def hits(self, queries: npt.NDArray[np.int64], settings: Settings) -> list[Rows]:
        """Of whole searches."""
        found = self._candidates(queries.tolist(), settings.num_candidates, settings.ef_search, settings.shortlist)
        rerank = Rerank(self.snapshot, self._queries.take(queries.tolist()), settings)
        return [rows for rows, _ in rerank(found)]

    def _timed_search(
        self, queries: npt.NDArray[np.int64], beam: int, shortlist: int
    ) -> tuple[list[npt.NDArray[np.int64]], float]:
        """Candidates of all the queries, as many as there are, and the seconds of one, alone."""
        count = shortlist or beam
        found = self._candidates(queries.tolist(), count, beam, shortlist)
        timed = queries[:MAX_TIMED_QUERIES].tolist()
        start = time.perf_counter()
        for i in timed:
            self._candidates([i], count, beam, shortlist)
        return found, (time.perf_counter() - start) / len(timed)

    def _candidate_seconds(self, queries: npt.NDArray[np.int64]) -> float:
        """What one candidate more costs the rerank: between few and many of them."""
        few, many = min(50, self._num_documents), min(400, self._num_documents)
        if few == many:
            return 0.0
        means = []
        for count in (few, many):
            seconds = 0.0
            timed = queries[:MAX_TIMED_QUERIES].tolist()
            for i in timed:
                found = self._candidates([i], count, count, 0)
                rerank = Rerank(self.snapshot, queries_of(self._queries.matrix(i), None).batch, self._widest)
                start = time.perf_counter()
                rerank(found)
                seconds += time.perf_counter() - start
            means.append(seconds / len(timed))
        return max(means[1] - means[0], 0.0) / (many - few)


def _depth(goal: Goal, queries: npt.NDArray[np.int64], found: list[Rows]) -> int | None:
    """How many of the candidates, best first, reach the goal; None where all do not."""
    places, counts = [], []
    for i, own in zip(queries.tolist(), found, strict=True):
        place = {row: depth for depth, row in enumerate(own.tolist(), start=1)}
        places += [place.get(row, math.inf) for row in goal.rows[i].tolist()]
        counts += goal.counts[i].tolist()
    if not places:
        return 1
    order = np.argsort(places, kind="stable")
    reached = np.cumsum(np.array(counts)[order])
    needed = int(np.searchsorted(reached, goal.share * reached[-1] * (1 - ROUNDING)))
    depth = places[order[needed]]
    return None if math.isinf(depth) else int(depth)
