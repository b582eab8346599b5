"""How wide to search and how many candidates to rerank for a wanted recall: measured on queries, chosen by time."""

from __future__ import annotations

import math
import time

import numpy as np
import numpy.typing as npt

from lemur_ann import _core
from lemur_ann.documents.inputs import QueryBatch, queries_of
from lemur_ann.documents.rows import Rows
from lemur_ann.insight import metrics
from lemur_ann.progress import Progress, Task
from lemur_ann.searching.search import Candidates, Rerank, exact_scores
from lemur_ann.searching.settings import Settings, Tuned
from lemur_ann.searching.snapshot import Snapshot

FIRST_BEAM = 32
BEAM_STEP = math.sqrt(2.0)
MAX_TIMED_QUERIES = 100
SHORTLIST_PER_BEAM = 3  # of what a walk looks at on the way these are worth a second look


def tune(
    snapshot: Snapshot,
    queries: QueryBatch,
    target_recall: float,
    k: int,
    *,
    random: np.random.Generator,
    num_threads: int,
    progress: Progress,
) -> Tuned:
    """The quickest search of a wanted recall: chosen on a random half of the queries, measured on the other."""
    queries = queries.as_float32
    task = progress.task("exact answers", len(queries))
    exact = []
    for scores in exact_scores(snapshot, queries, num_threads, snapshot.deleted):
        exact.append(_core.top_k(scores, k))
        task.advance()
    tuner = Tuner(snapshot, queries, exact, k, num_threads)
    order = random.permutation(len(queries))
    chosen_on, measured_on = order[: len(order) // 2], order[len(order) // 2 :]
    count, beam, shortlist = tuner.choose(chosen_on, target_recall, progress.task("settings tried", None))
    recall, low, high = tuner.recall(measured_on, count, beam, shortlist) or (1.0, 0.0, 1.0)
    return Tuned(target_recall, k, count, beam, recall, (low, high), len(measured_on), shortlist)


class Tuner:
    """Candidates and rerank of some queries whose exact answers are known."""

    def __init__(
        self,
        snapshot: Snapshot,
        queries: QueryBatch,
        exact: list[Rows],
        k: int,
        num_threads: int,
    ) -> None:
        """``queries`` are float32, ``exact`` the rows of their exact top k; the snapshot has a learned map and documents."""
        self.snapshot, self._queries, self._exact, self._k = snapshot, queries, exact, k
        self._num_documents = size = snapshot.num_documents
        self._widest = Settings(min(k, size), size, size, num_threads)
        self._candidates = Candidates(snapshot, queries, self._widest, snapshot.deleted)
        self._looks = snapshot.fitted().looks

    def choose(self, chosen_on: npt.NDArray[np.int64], target_recall: float, task: Task) -> tuple[int, int, int]:
        """The quickest (num_candidates, ef_search, shortlist) that finds so much of the exact top k on some of the queries."""
        num_documents, k = self._num_documents, self._k
        candidate_seconds = self._candidate_seconds(chosen_on)
        best, best_seconds = (num_documents, num_documents, 0), math.inf
        beam = max(FIRST_BEAM, k)
        while True:
            task.advance()
            shortlist = min(SHORTLIST_PER_BEAM * beam, num_documents) if self._looks else 0
            found, seconds = self._timed_search(chosen_on, beam, shortlist)
            if seconds > best_seconds:
                return best
            depth = self._depth(chosen_on, found, target_recall)
            if depth is not None and seconds + max(depth, k) * candidate_seconds < best_seconds:
                best, best_seconds = (max(depth, k), beam, shortlist), seconds + max(depth, k) * candidate_seconds
            if beam >= num_documents:
                return best
            beam = min(math.ceil(beam * BEAM_STEP), num_documents)

    def recall(
        self, measured_on: npt.NDArray[np.int64], num_candidates: int, ef_search: int, shortlist: int = 0
    ) -> tuple[float, float, float] | None:
        """Share found, and its confidence interval. The rerank is exact, so a candidate of the exact top k is found."""
        found = self._candidates(measured_on.tolist(), num_candidates, ef_search, shortlist)
        exact = [self._exact[i] for i in measured_on]
        hits = [int(np.isin(e, f).sum()) for e, f in zip(exact, found, strict=True)]
        return metrics.share_found(hits, [len(e) for e in exact])

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

    def _depth(self, queries: npt.NDArray[np.int64], found: list[npt.NDArray[np.int64]], target_recall: float) -> int | None:
        """How many of the candidates, best first, hold that share of the exact answers; None where all do not."""
        places = []
        for i, own in zip(queries.tolist(), found, strict=True):
            place = {document: depth for depth, document in enumerate(own.tolist(), start=1)}
            places += [place.get(document, math.inf) for document in self._exact[i].tolist()]
        needed = max(math.ceil(target_recall * len(places)), 1) if places else 0
        depth = sorted(places)[needed - 1] if places else 1
        return None if math.isinf(depth) else int(depth)

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
