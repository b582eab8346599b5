"""How a snapshot is searched: candidates, then exact MaxSim."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lemur_ann import _core
from lemur_ann import _validate as validate
from lemur_ann.documents.inputs import QueryBatch, to_offsets
from lemur_ann.documents.rows import Rows, RowSet
from lemur_ann.hits import Hits
from lemur_ann.searching.snapshot import Learned, Snapshot

if TYPE_CHECKING:
    from lemur_ann.options import Options
    from lemur_ann.searching.device import DeviceSearch
    from lemur_ann.searching.settings import Tuned

Scored = tuple[Rows, npt.NDArray[np.float32]]  # best first

SCORES_PER_BLOCK = 2**24  # of an exact search: 64 MiB
FEW = 0.1  # of the hits of a filtered search, among the later half of its candidates, are no sign that these are too few
MORE = 4  # times as many candidates, where those of a filtered search were too few
MANY = 0.25  # of the documents: that many of them are scored all together, with those that a filter keeps out


def search(
    snapshot: Snapshot,
    queries: QueryBatch,
    k: int,
    num_candidates: int,
    ef_search: int,
    num_threads: int,
    *,
    excluded: RowSet,
    exact: bool = False,
    device_search: DeviceSearch | None = None,
    watch: Callable[[list[Rows]], None] | None = None,
) -> list[Hits]:
    """The hits of each query among the rows that are not excluded; by their exact scores all, where ``exact``.

    ``watch`` is given the candidates of all queries each time that some are reranked on the CPU.
    """
    tokens = np.ascontiguousarray(queries.tokens, dtype=np.float32)
    num_matching = len(excluded) - excluded.count
    if num_matching == 0 or len(queries) == 0:
        return [_hits(snapshot, np.empty(0, np.int64), np.empty(0, np.float32)) for _ in range(len(queries))]
    k, num_candidates = min(k, num_matching), min(num_candidates, num_matching)
    ef_search = min(ef_search, len(excluded))
    learned = snapshot.learned
    if exact or learned is None or (num_candidates >= num_matching and excluded is snapshot.deleted):
        rows = None if num_matching >= MANY * len(excluded) else excluded.others
        hits = []
        for scores in exact_scores(snapshot, tokens, queries.offsets, num_threads, excluded, rows):
            first = _core.top_k(scores, k)
            hits.append(_hits(snapshot, first if rows is None else rows[first], scores[first]))
        return hits
    documents, bounds = snapshot.store.documents, queries.offsets

    def rerank(candidates: list[Rows]) -> list[Scored]:
        if watch is not None:
            watch(candidates)
        candidates = [np.sort(found) for found in candidates]  # read tokens in the order they lie
        ends = to_offsets([len(found) for found in candidates])
        rows, scores, counts = _core.rerank(tokens, bounds, documents, np.concatenate(candidates), ends, k, num_threads)
        return [(rows[i, :count], scores[i, :count]) for i, count in enumerate(counts.tolist())]

    if num_candidates >= num_matching:
        return [_hits(snapshot, *own) for own in rerank([excluded.others] * len(queries))]
    if device_search is not None:
        batch = QueryBatch(tokens, bounds)
        return [_hits(snapshot, *own) for own in device_search.search(batch, k, num_candidates, excluded)]
    encoded = learned.encoder.encode_batch(tokens, bounds, num_threads=num_threads)
    find = functools.partial(learned.candidates.search, num_threads=num_threads, excluded=excluded)
    if excluded is snapshot.deleted:
        return [_hits(snapshot, *own) for own in rerank(find(encoded, num_candidates, ef_search))]
    # A filter may keep out all that is near a query. Far from it the estimates tell less, and more candidates are wanted:
    # as long as the later ones have more than a few of the hits, still more.
    nobody: Rows = np.empty(0, np.int64)
    best: list[Scored] = [(nobody, np.empty(0, np.float32)) for _ in range(len(queries))]
    known = [nobody] * len(queries)  # reranked: a wider walk may find others among its first than the one before
    seen, wanted, open_queries = 0, num_candidates, set(range(len(queries)))
    while open_queries and seen < num_matching:
        order = sorted(open_queries)
        found = dict(zip(order, find(encoded[order], wanted, max(ef_search, wanted)), strict=True))
        for begin, end in ((0, wanted // 2), (wanted // 2, wanted)) if seen == 0 else ((0, wanted),):
            fresh = [nobody] * len(queries)
            for i in order:
                fresh[i] = found[i][begin:end][~np.isin(found[i][begin:end], known[i])]
            new = rerank(fresh)
            for i in sorted(open_queries):
                known[i] = np.concatenate([known[i], fresh[i]])
                best[i] = _merged(best[i], new[i], k)
                if end == wanted and np.isin(best[i][0], new[i][0]).sum() <= FEW * k:
                    open_queries.remove(i)
        seen, wanted = wanted, min(MORE * wanted, num_matching)
    return [_hits(snapshot, *own) for own in best]


def _merged(one: Scored, other: Scored, k: int) -> Scored:
    rows, scores = np.concatenate([one[0], other[0]]), np.concatenate([one[1], other[1]])
    order = np.lexsort((rows, -scores))[:k]
    return rows[order], scores[order]


def exact_scores(
    snapshot: Snapshot,
    tokens: npt.NDArray[np.float32],
    offsets: npt.NDArray[np.int64],
    num_threads: int,
    excluded: RowSet,
    rows: npt.NDArray[np.int64] | None = None,
) -> Iterator[npt.NDArray[np.float32]]:
    """For each query float32 (num_rows,): the score of every document, -inf for excluded ones; or of some ``rows`` only."""
    documents = snapshot.store.documents if rows is None else snapshot.store.select(rows)
    out = excluded.rows if rows is None else np.empty(0, np.int64)
    step = max(SCORES_PER_BLOCK // (len(excluded) if rows is None else len(rows)), 1)
    for begin in range(0, len(offsets) - 1, step):
        scores = _core.scores(tokens, offsets[begin : begin + step + 1], documents, num_threads)
        scores[:, out] = -np.inf
        yield from scores


def search_options(
    learned: Learned | None,
    options: Options,
    k: int,
    num_candidates: int | None,
    ef_search: int | None,
    target_recall: float | None = None,
) -> tuple[int, int]:
    """How many candidates to rerank, and the beam to find them with; ``options`` are those before fit."""
    if target_recall is not None:
        if num_candidates is not None or ef_search is not None:
            raise TypeError("target_recall= takes the place of num_candidates= and ef_search=; pass one or the other")
        num_candidates, ef_search = _tuned_for(() if learned is None else learned.tuned, target_recall, k)
    options = options if learned is None else learned.options
    count = options.num_candidates if num_candidates is None else num_candidates
    count = max(validate.positive_int(count, "num_candidates"), k)
    beam = options.ef_search if ef_search is None else ef_search
    return count, count if beam is None else max(validate.positive_int(beam, "ef_search"), count)


def _tuned_for(tuned: tuple[Tuned, ...], target_recall: float, k: int) -> tuple[int, int]:
    """(num_candidates, ef_search) of the least that was tuned for this recall."""
    target = validate.share(target_recall, "target_recall")
    enough = [t for t in tuned if t.target_recall >= target and t.k >= k]
    if not enough:
        known = ", ".join(f"{t.target_recall} at k {t.k}" for t in tuned) or "nothing yet"
        raise ValueError(
            f"the index is not tuned for target_recall {target} at k {k}, but for: {known}; call tune(queries, {target}, k={k})"
        )
    best = min(enough, key=lambda t: (t.k, t.target_recall))
    return best.num_candidates, best.ef_search


def _hits(snapshot: Snapshot, rows: npt.NDArray[np.int64], scores: npt.NDArray[np.float32]) -> Hits:
    return Hits(snapshot.ids.column.take(rows), scores)
