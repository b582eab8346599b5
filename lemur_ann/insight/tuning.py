"""How wide to search and how many candidates to rerank for a wanted recall: measured on queries, chosen by time."""

from __future__ import annotations

import functools
import math
import time
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lemur_ann import _core
from lemur_ann.candidates import CandidateIndex
from lemur_ann.documents.inputs import QueryBatch, to_offsets
from lemur_ann.documents.rows import RowSet
from lemur_ann.documents.tokens import TokenStore
from lemur_ann.insight import metrics
from lemur_ann.progress import Task

if TYPE_CHECKING:
    from lemur_ann.encoder import LemurEncoder

FIRST_BEAM = 32
BEAM_STEP = math.sqrt(2.0)
MAX_TIMED_QUERIES = 100


class Tuner:
    """Candidates and rerank of some queries whose exact answers are known."""

    def __init__(
        self,
        encoder: LemurEncoder,
        candidates: CandidateIndex,
        deleted: RowSet,
        store: TokenStore,
        queries: QueryBatch,
        exact: list[npt.NDArray[np.int64]],
        num_threads: int,
    ) -> None:
        """``queries`` are float32; ``exact`` the rows of their exact top k."""
        self._encoded = encoder.encode_batch(queries.tokens, queries.offsets, num_threads=num_threads)
        self._search = functools.partial(candidates.search, num_threads=num_threads, excluded=deleted)
        self._store = store
        self._queries = queries
        self._exact = exact
        self._num_threads = num_threads

    def choose(
        self, chosen_on: npt.NDArray[np.int64], target_recall: float, k: int, num_documents: int, task: Task
    ) -> tuple[int, int]:
        """The quickest (num_candidates, ef_search) that finds ``target_recall`` of the exact top k on some of the queries."""
        candidate_seconds = self._candidate_seconds(chosen_on, num_documents)
        best, best_seconds = (num_documents, num_documents), math.inf
        beam = max(FIRST_BEAM, k)
        while True:
            task.advance()
            found, seconds = self._timed_search(chosen_on, beam)
            if seconds > best_seconds:
                return best
            depth = self._depth(chosen_on, found, target_recall)
            if depth is not None and seconds + max(depth, k) * candidate_seconds < best_seconds:
                best, best_seconds = (max(depth, k), beam), seconds + max(depth, k) * candidate_seconds
            if beam >= num_documents:
                return best
            beam = min(math.ceil(beam * BEAM_STEP), num_documents)

    def recall(
        self, measured_on: npt.NDArray[np.int64], num_candidates: int, ef_search: int
    ) -> tuple[float, float, float] | None:
        """Share found, and its confidence interval. The rerank is exact, so a candidate of the exact top k is found."""
        found = self._search(self._encoded[measured_on], num_candidates, ef_search)
        exact = [self._exact[i] for i in measured_on]
        hits = [int(np.isin(e, f).sum()) for e, f in zip(exact, found, strict=True)]
        return metrics.share_found(hits, [len(e) for e in exact])

    def _timed_search(self, queries: npt.NDArray[np.int64], beam: int) -> tuple[list[npt.NDArray[np.int64]], float]:
        """Candidates of all the queries, and the seconds of one, alone."""
        found = self._search(self._encoded[queries], beam, beam)
        timed = queries[:MAX_TIMED_QUERIES]
        start = time.perf_counter()
        for i in timed:
            self._search(self._encoded[i : i + 1], beam, beam)
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

    def _candidate_seconds(self, queries: npt.NDArray[np.int64], num_documents: int) -> float:
        """What one candidate more costs the rerank: between few and many of them."""
        few, many = min(50, num_documents), min(400, num_documents)
        if few == many:
            return 0.0
        means = []
        for count in (few, many):
            seconds = 0.0
            timed = queries[:MAX_TIMED_QUERIES].tolist()
            for i in timed:
                found = self._search(self._encoded[i : i + 1], count, count)[0]
                own = self._queries.tokens[self._queries.offsets[i] : self._queries.offsets[i + 1]]
                bounds, candidates, ends = to_offsets([len(own)]), np.sort(found), to_offsets([len(found)])
                start = time.perf_counter()
                _core.rerank(own, bounds, self._store.documents, candidates, ends, len(self._exact[i]) or 1, self._num_threads)
                seconds += time.perf_counter() - start
            means.append(seconds / len(timed))
        return max(means[1] - means[0], 0.0) / (many - few)
