"""How a snapshot is searched: candidates, then exact MaxSim."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lemur_ann import _core
from lemur_ann.documents.coded_store import CodedStore
from lemur_ann.documents.inputs import QueryBatch, to_offsets
from lemur_ann.documents.rows import Rows, RowSet
from lemur_ann.hits import Hits
from lemur_ann.searching.settings import Settings
from lemur_ann.searching.snapshot import Snapshot

if TYPE_CHECKING:
    from lemur_ann.searching.device import DeviceSearch

Scored = tuple[Rows, npt.NDArray[np.float32]]  # rows and their exact scores, best first
Watch = Callable[[list[Rows]], None]

SCORES_PER_BLOCK = 2**24  # of an exact search: 64 MiB
FEW = 0.1  # of the hits of a filtered search, among the later half of its candidates, are no sign that these are too few
MORE = 4  # times as many candidates, where those of a filtered search were too few
MANY = 0.25  # of the documents: that many of them are scored all together, with those that a filter keeps out

_NOBODY: Rows = np.empty(0, np.int64)
_NOTHING: Scored = (_NOBODY, np.empty(0, np.float32))


def search(
    snapshot: Snapshot,
    queries: QueryBatch,
    settings: Settings,
    excluded: RowSet,
    *,
    exact: bool = False,
    device_search: DeviceSearch | None = None,
    watch: Watch | None = None,
) -> list[Hits]:
    """The hits of each query among the rows that are not excluded; by their exact scores all, where ``exact``.

    ``watch`` is given the candidates of all queries each time that some are reranked on the CPU.
    """
    queries = queries.as_float32.without_zero_rows
    num_matching = len(excluded) - excluded.count
    if num_matching == 0 or len(queries) == 0:
        return [_hits(snapshot, _NOTHING) for _ in range(len(queries))]
    settings = settings.within(len(excluded), num_matching)
    is_filtered = excluded is not snapshot.deleted
    reranks_all = settings.num_candidates >= num_matching
    if exact or snapshot.learned is None or (reranks_all and not is_filtered):
        found = exactly(snapshot, queries, settings, excluded)
    elif device_search is not None and not reranks_all:
        found = device_search.search(queries, settings.k, settings.num_candidates, excluded)
    else:
        rerank = Rerank(snapshot, queries, settings, watch)
        if reranks_all:  # the few that a filter lets through
            found = rerank([excluded.others] * len(queries))
        elif is_filtered:
            found = behind_filter(snapshot, queries, settings, excluded, rerank)
        else:
            found = among_candidates(snapshot, queries, settings, excluded, rerank)
    return [_hits(snapshot, own) for own in found]


def exactly(snapshot: Snapshot, queries: QueryBatch, settings: Settings, excluded: RowSet) -> list[Scored]:
    """Score every document. Where a filter lets few through, only these are read."""
    num_matching = len(excluded) - excluded.count
    rows = None if num_matching >= MANY * len(excluded) else excluded.others
    found = []
    for scores in exact_scores(snapshot, queries, settings.num_threads, excluded, rows):
        first = _core.top_k(scores, settings.k)
        found.append((first if rows is None else rows[first], scores[first]))
    return found


def among_candidates(
    snapshot: Snapshot, queries: QueryBatch, settings: Settings, excluded: RowSet, rerank: Rerank
) -> list[Scored]:
    """What LEMUR is: the candidates of largest estimate, by exact MaxSim."""
    candidates = Candidates(snapshot, queries, settings, excluded)
    return rerank(candidates(range(len(queries)), settings.num_candidates, settings.ef_search))


def behind_filter(
    snapshot: Snapshot, queries: QueryBatch, settings: Settings, excluded: RowSet, rerank: Rerank
) -> list[Scored]:
    """The same, with more candidates as long as more help.

    A filter may keep out all that is near a query. Far from it the estimates tell less, and more candidates are wanted: as long
    as the later ones have more than a few of the hits, still more.
    """
    candidates = Candidates(snapshot, queries, settings, excluded)
    k, num_matching = settings.k, len(excluded) - excluded.count
    best = [_NOTHING] * len(queries)
    known = [_NOBODY] * len(queries)  # reranked: a wider walk may find others among its first than the one before
    seen, wanted, is_open = 0, settings.num_candidates, set(range(len(queries)))
    while is_open and seen < num_matching:
        order = sorted(is_open)
        found = dict(zip(order, candidates(order, wanted, settings.ef_search * wanted // settings.num_candidates), strict=True))
        for begin, end in ((0, wanted // 2), (wanted // 2, wanted)) if seen == 0 else ((0, wanted),):
            fresh = [_NOBODY] * len(queries)
            for i in order:
                fresh[i] = found[i][begin:end][~np.isin(found[i][begin:end], known[i])]
            new = rerank(fresh)
            for i in sorted(is_open):
                known[i] = np.concatenate([known[i], fresh[i]])
                best[i] = merged(best[i], new[i], k)
                if end == wanted and np.isin(best[i][0], new[i][0]).sum() <= FEW * k:
                    is_open.remove(i)
        seen, wanted = wanted, min(MORE * wanted, num_matching)
    return best


class Candidates:
    """Stage 1: the rows to rerank, of some queries of a batch, which are ``encoded``, float32 (num_queries, dim).

    They are those of largest estimate; or, where the settings have a shortlist and the map a second look, the best of this
    by estimate and centroids together.
    """

    def __init__(self, snapshot: Snapshot, queries: QueryBatch, settings: Settings, excluded: RowSet) -> None:
        assert snapshot.learned is not None
        self._learned = snapshot.learned
        self._queries, self._settings, self._excluded = queries.as_float32, settings, excluded
        encoder = snapshot.learned.encoder
        self.encoded = encoder.encode_batch(queries.tokens, queries.offsets, num_threads=settings.num_threads)

    def __call__(self, chosen: Sequence[int], num_candidates: int, ef_search: int, shortlist: int | None = None) -> list[Rows]:
        """Of the queries with these numbers, best first; the shortlist grows with them, unless its length is given."""
        settings = self._settings
        if shortlist is None:
            shortlist = settings.shortlist * max(num_candidates, settings.num_candidates) // settings.num_candidates
        if self._learned.look is None or shortlist < num_candidates:
            return self.of_largest_estimate(chosen, num_candidates, max(ef_search, num_candidates))
        return self.second_look(chosen, self.of_largest_estimate(chosen, shortlist, ef_search), num_candidates)

    def second_look(self, chosen: Sequence[int], shortlists: list[Rows], num_candidates: int) -> list[Rows]:
        """The best of each query's shortlist, and of documents that match a rare token."""
        look, settings = self._learned.look, self._settings
        assert look is not None
        queries = self._queries if len(chosen) == len(self._queries) else self._queries.take(chosen)
        return look.best(queries, shortlists, num_candidates, num_threads=settings.num_threads, excluded=self._excluded)

    def of_largest_estimate(self, chosen: Sequence[int], count: int, ef_search: int) -> list[Rows]:
        """So many rows of each of these queries, best first; without a second look these are the candidates."""
        how: dict[str, Any] = {"num_threads": self._settings.num_threads, "excluded": self._excluded}
        return self._learned.candidates.search(self.encoded[list(chosen)], count, ef_search, **how)


class Rerank:
    """Stage 2: exact MaxSim of candidates, by C++ over the tokens."""

    def __init__(self, snapshot: Snapshot, queries: QueryBatch, settings: Settings, watch: Watch | None = None) -> None:
        self._documents = snapshot.documents
        self._queries, self._settings, self._watch = queries, settings, watch

    def __call__(self, candidates: list[Rows]) -> list[Scored]:
        """The best k of each query's candidates."""
        if self._watch is not None:
            self._watch(candidates)
        candidates = [np.sort(found) for found in candidates]  # read tokens in the order they lie
        ends = to_offsets([len(found) for found in candidates])
        rows, scores, counts = _core.rerank(
            self._queries.tokens,
            self._queries.offsets,
            self._documents,
            np.concatenate(candidates),
            ends,
            self._settings.k,
            self._settings.num_threads,
        )
        return [(rows[i, :count], scores[i, :count]) for i, count in enumerate(counts.tolist())]


def merged(one: Scored, other: Scored, k: int) -> Scored:
    """The best k of both, equal ones by ascending row."""
    rows, scores = np.concatenate([one[0], other[0]]), np.concatenate([one[1], other[1]])
    order = np.lexsort((rows, -scores))[:k]
    return rows[order], scores[order]


def exact_scores(
    snapshot: Snapshot, queries: QueryBatch, num_threads: int, excluded: RowSet, rows: Rows | None = None
) -> Iterator[npt.NDArray[np.float32]]:
    """For each query, float32, (num_rows,): the score of every document, -inf for excluded ones; or of some ``rows`` only."""
    documents = snapshot.store.documents if rows is None else snapshot.store.select(rows)
    out = excluded.rows if rows is None else _NOBODY
    step = max(SCORES_PER_BLOCK // (len(excluded) if rows is None else len(rows)), 1)
    for begin in range(0, len(queries), step):
        scores = _core.scores(queries.tokens, queries.offsets[begin : begin + step + 1], documents, num_threads)
        scores[:, out] = -np.inf
        yield from scores


def _hits(snapshot: Snapshot, found: Scored) -> Hits:
    rows, scores = found
    return Hits(snapshot.ids.column.take(rows), scores, exact=not isinstance(snapshot.store, CodedStore))
