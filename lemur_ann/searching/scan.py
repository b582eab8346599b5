"""Hits one after the other, best first, for those who do not know beforehand how many they want."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from lemur_ann.documents.inputs import QueryBatch
from lemur_ann.documents.rows import RowSet
from lemur_ann.searching.search import MORE, Candidates, Rerank, merged
from lemur_ann.searching.settings import GROWTH, Settings
from lemur_ann.searching.snapshot import Snapshot

FIRST = 10  # hits of the first stage; each further one doubles them
MOST_CANDIDATES = 0.5  # of the documents: where a stage would rerank more, it reranks all that are left


def scan(
    snapshot: Snapshot, query: QueryBatch, widths: Callable[[int], Settings], excluded: RowSet
) -> Iterator[tuple[Any, float]]:
    """(id, score) of the rows that are not excluded.

    By stages: the first is a search for 10, the next for 20, 40, and so on, as wide as ``widths`` says for so many. Each
    reranks documents that none before it did, and yields the best of all that were reranked and not yielded. The last one
    reranks what is left.
    """
    query = QueryBatch(query.tokens.copy(), query.offsets).as_float32.without_zero_rows  # the caller may use the array again
    return _stages(snapshot, query, widths, excluded)


def _stages(
    snapshot: Snapshot, query: QueryBatch, widths: Callable[[int], Settings], excluded: RowSet
) -> Iterator[tuple[Any, float]]:
    num_rows, num_matching = len(excluded), len(excluded) - excluded.count
    if num_matching == 0 or len(query.tokens) == 0:
        return
    is_seen = excluded.mask.copy()
    waiting = np.empty(0, np.int64), np.empty(0, np.float32)
    candidates: Candidates | None = None
    wider = 1 if excluded is snapshot.deleted else MORE  # as a search behind a filter, far from the query
    num_yielded, k = 0, FIRST
    while num_yielded < num_matching:
        settings = _stage(widths, k, wider).within(num_rows, num_matching)
        count = settings.num_candidates
        if snapshot.learned is None or count >= MOST_CANDIDATES * num_matching:
            fresh, k = np.flatnonzero(~is_seen), num_matching
        else:
            if candidates is None:
                candidates = Candidates(snapshot, query, settings, excluded)
            (found,) = candidates([0], count, settings.ef_search, settings.shortlist)
            fresh = found[~is_seen[found]]
        is_seen[fresh] = True
        if len(fresh):
            new = Rerank(snapshot, query, Settings(len(fresh), len(fresh), len(fresh), settings.num_threads))([fresh])
            waiting = merged(waiting, new[0], len(waiting[0]) + len(fresh))
        count = k - num_yielded
        rows, scores = waiting[0][:count], waiting[1][:count]
        waiting = waiting[0][count:], waiting[1][count:]
        num_yielded += len(rows)
        yield from zip(snapshot.ids.column.take(rows).tolist(), scores.tolist(), strict=True)
        k *= 2


def _stage(widths: Callable[[int], Settings], k: int, wider: int) -> Settings:
    """As wide as is usual for k; and where the index names a number of candidates, so many times as many as is usual."""
    first, own = widths(FIRST), widths(k)
    count = max(own.num_candidates, math.ceil(first.num_candidates * math.pow(k / FIRST, GROWTH)))
    times = wider * count / own.num_candidates
    beam, shortlist = (math.ceil(times * width) for width in (own.ef_search, own.shortlist))
    return Settings(k, wider * count, beam, own.num_threads, shortlist)
