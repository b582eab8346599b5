"""How small tokens can be, and how few: what codes and pooling lose on the user's own documents and queries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from lemur_ann import _core
from lemur_ann.candidates.look import SecondLook
from lemur_ann.documents.coded import CENTROID_BYTES, SCALE_BYTES
from lemur_ann.documents.coded_store import CodedStore
from lemur_ann.documents.inputs import QueryBatch, to_offsets
from lemur_ann.documents.pooling import Pooling
from lemur_ann.documents.rows import Rows
from lemur_ann.documents.tokens import TokenStore
from lemur_ann.insight import metrics
from lemur_ann.insight.relevance import Grades, Relevance, relevance_of_rows
from lemur_ann.options import SMALL_BITS
from lemur_ann.progress import Progress, Task
from lemur_ann.searching.search import Candidates, exact_scores
from lemur_ann.searching.settings import Settings
from lemur_ann.searching.snapshot import Learned, Snapshot

POOL_FACTORS = (2, 3, 4)  # that are measured beside the widths
DOCUMENTS_AT_ONCE = 1024  # whose tokens are in memory before they are pooled
SEVERAL = 4  # times k: so many of the best by codes have the exact top k, if exact tokens order them


@dataclass(frozen=True)
class Width:
    """What one width of small codes finds without the tokens; or what pooled tokens do, coded or not.

    Attributes:
        token_codes: its name; of pooled tokens that are not coded their dtype, "float16" or "float32".
        bytes_per_token: of the code, its scale and the centroid, for each token as it came, of which pooled ones are fewer; the
            tokens' own lengths take four more where they are not 1.
        recall, recall_interval: share of the exact MaxSim top k among the k best by codes, and its 95% interval over queries.
        recall_of_several: the same among the 4 k best, which the tokens would order if they were kept.
        relevance: of relevant documents beside exact MaxSim's, where these were given.
        loss, loss_interval: the larger loss of success@k and MRR@k, with its 95% interval; without relevant documents that of
            recall.
    """

    token_codes: str
    bytes_per_token: float
    recall: float
    recall_interval: tuple[float, float]
    recall_of_several: float
    relevance: Relevance | None
    loss: float
    loss_interval: tuple[float, float]


@dataclass(frozen=True)
class TunedCodes:
    """What :meth:`lemur_ann.LemurIndex.tune_codes` found; print it.

    Attributes:
        widths: from the widest to the smallest.
        token_codes: the smallest that loses no more than was allowed, for :meth:`lemur_ann.LemurIndex.recode`; None where all
            lose more.
        max_loss, certain: what was allowed, and whether the whole interval had to be within it.
        k, num_queries: how it was measured.
        pooled: (pool factor, :class:`Width`) of pooled tokens, beside ``widths`` of the tokens as they came; of each factor the
            tokens themselves come first. Empty where the index pools already.
    """

    widths: tuple[Width, ...]
    token_codes: str | None
    max_loss: float
    certain: bool
    k: int
    num_queries: int
    pooled: tuple[tuple[int, Width], ...] = ()

    @property
    def smallest(self) -> tuple[int, Width] | None:
        """(pool factor, :class:`Width`) of the fewest bytes that loses no more than was allowed; None where all lose more.

        Among equals it is the one of the smallest factor, and of the most bits.
        """
        holding = [(factor, width) for factor, width in self._measured if self._holds(width)]
        return min(holding, key=lambda found: (round(found[1].bytes_per_token), found[0])) if holding else None

    @property
    def _measured(self) -> tuple[tuple[int, Width], ...]:
        return (*((1, width) for width in self.widths), *self.pooled)

    def _holds(self, width: Width) -> bool:
        return (width.loss_interval[1] if self.certain else width.loss) <= self.max_loss

    def __str__(self) -> str:
        what = "relevance" if self.widths[0].relevance is not None else f"the exact top {self.k}"
        lines = [f"codes without tokens, {self.num_queries:,} queries: bytes a token, recall@{self.k}, loss of {what} (95%)"]
        if self.pooled:
            lines[0] = lines[0].replace("a token", "an original token")
        for factor, width in self._measured:
            low, high = width.loss_interval
            name = f"{width.token_codes}{f', pool_factor={factor}' if factor > 1 else ''}"
            found = f"{name:{22 if self.pooled else 4}}  {width.bytes_per_token:5.0f}  {width.recall:.3f}"
            lines.append(f"{found}  {width.loss:+.1%} ({low:+.1%} to {high:+.1%})")
        return "\n".join([*lines, *self._advice])

    @property
    def _advice(self) -> list[str]:
        lines = []
        if self.token_codes is None:
            lines.append(f"none loses {self.max_loss:.1%} at most: keep the tokens (keep_tokens='exact'), which loses nothing")
        else:
            measured = "its whole interval" if self.certain else "what was measured of it"
            lines.append(f"{self.token_codes} is the smallest of which {measured} is within {self.max_loss:.1%}:")
            lines.append(f"recode({self.token_codes!r}, keep_tokens='none')")
        smallest = self.smallest
        if smallest is not None and smallest[0] > 1:
            factor, width = smallest
            coded = f", token_codes={width.token_codes!r}, keep_tokens='none'" if width.token_codes in SMALL_BITS else ""
            lines.append(
                f"the smallest of all takes {width.bytes_per_token:.0f} bytes an original token: fit anew with "
                f"pool_factor={factor}{coded}"
            )
        return lines


def why_not(learned: Learned, store: TokenStore) -> str:
    """Why widths of codes cannot be measured; empty where they can."""
    if isinstance(store, CodedStore):
        return f"the tokens are not kept, only codes {learned.options.token_codes!r}: nothing tells what these lose"
    if learned.look is None or learned.look.weights.codes is None:
        return "the learned map has nothing to make small codes with: refit(num_centroids=64), or another number, learns it"
    return ""


def tune_codes(
    snapshot: Snapshot,
    queries: QueryBatch,
    settings: Settings,
    grades: list[Grades] | None,
    *,
    max_loss: float,
    certain: bool,
    pool_factors: tuple[int, ...] = POOL_FACTORS,
    exact: list[Rows] | None = None,
    progress: Progress,
) -> TunedCodes:
    """Rank the candidates of each query by codes of each width, and compare with exact MaxSim.

    Only the candidates are pooled and coded, in memory; nothing of the index changes. ``exact``: the rows of each query's exact
    top k, where they are known.

    Raises:
        ValueError: the tokens are not kept, or the map has nothing to make codes with; or there are no queries.
    """
    learned = snapshot.fitted()
    if reason := why_not(learned, snapshot.store):
        raise ValueError(reason)
    if snapshot.num_documents == 0:
        raise ValueError("tune_codes needs at least one document, and the index holds none")
    if len(queries) == 0:
        raise ValueError("tune_codes needs at least one query, got none")
    queries.check_not_zero("queries")
    queries, k, num_threads = queries.as_float32, settings.k, settings.num_threads
    if exact is None:
        exact = _exact_top(snapshot, queries, k, num_threads, progress.task("exact answers", len(queries)))
    candidates = Candidates(snapshot, queries, settings, snapshot.deleted)
    found = candidates(range(len(queries)), settings.num_candidates, settings.ef_search)
    trial = _Trial(snapshot, queries, np.unique(np.concatenate(found)), found, exact, grades, k, num_threads)
    pooling = learned.options.pooled_by
    factors = pool_factors if pooling.pool_factor == 1 else ()
    task = progress.task("widths of codes", len(SMALL_BITS) + len(factors) * (len(SMALL_BITS) + 1))
    widths = []
    for name in SMALL_BITS:
        widths.append(trial.coded(name, snapshot.store, trial.used))
        task.advance()
    pooled = []
    for factor in factors:
        for width in trial.pooled(replace(pooling, pool_factor=factor)):
            pooled.append((factor, width))
            task.advance()
    made = TunedCodes(tuple(widths), None, max_loss, certain, k, len(queries), tuple(pooled))
    holding = [width for width in widths if made._holds(width)]
    # of widths that take as much, as codes of few components do, the widest
    chosen = min(holding, key=lambda width: width.bytes_per_token).token_codes if holding else None
    return replace(made, token_codes=chosen)


def _exact_top(snapshot: Snapshot, queries: QueryBatch, k: int, num_threads: int, task: Task) -> list[Rows]:
    found = []
    for scores in exact_scores(snapshot, queries, num_threads, snapshot.deleted):
        found.append(_core.top_k(scores, k))
        task.advance()
    return found


@dataclass(frozen=True)
class _Trial:
    """Queries and their candidates, to be ranked by what may stand for their tokens."""

    snapshot: Snapshot
    queries: QueryBatch
    used: Rows  # of all queries' candidates, ascending
    candidates: list[Rows]
    exact: list[Rows]
    grades: list[Grades] | None
    k: int
    num_threads: int

    def coded(self, name: str, store: TokenStore, rows: Rows, share: float = 1.0) -> Width:
        """Small codes of rows of a store, which are ``used`` in the snapshot, with so many tokens for each original one."""
        look = self.snapshot.fitted().look
        assert look is not None
        look = SecondLook(look.weights, [], SMALL_BITS[name]).of_rows(store, rows, num_threads=self.num_threads)
        num_bytes = look.book.codec.num_bytes + CENTROID_BYTES + SCALE_BYTES
        return self.measured(name, share * num_bytes, CodedStore(look.book, look.parts, self.snapshot.store.dtype).documents)

    def pooled(self, pooling: Pooling) -> Iterator[Width]:
        """Pooled tokens, and each width of their small codes."""
        store, num_originals = TokenStore(), 0
        for begin in range(0, len(self.used), DOCUMENTS_AT_ONCE):
            tokens, offsets = self.snapshot.store.gather(self.used[begin : begin + DOCUMENTS_AT_ONCE])
            num_originals += len(tokens)
            store = store.extended(*pooling.pooled(tokens, offsets, self.num_threads)[:2])
        share = store.num_tokens / num_originals
        assert store.dtype is not None
        assert store.dim is not None
        yield self.measured(str(store.dtype), share * store.dim * store.dtype.itemsize, store.documents)
        for name in SMALL_BITS:
            yield self.coded(name, store, np.arange(len(store)), share)

    def measured(self, name: str, num_bytes: float, documents: _core.Documents) -> Width:
        """What documents, which are ``used`` in the snapshot, find in the place of these."""
        places = [np.searchsorted(self.used, rows) for rows in self.candidates]
        best = _best(self.queries, documents, places, SEVERAL * self.k, self.num_threads)
        several = [self.used[own] for own in best]
        return _measured(self.snapshot, name, num_bytes, several, self.exact, self.grades, self.k)


def _best(queries: QueryBatch, documents: _core.Documents, candidates: list[Rows], count: int, num_threads: int) -> list[Rows]:
    """The best of each query's candidates by codes."""
    ends = to_offsets([len(rows) for rows in candidates])
    flat = np.concatenate([np.sort(rows) for rows in candidates])
    rows, _, counts = _core.rerank(queries.tokens, queries.offsets, documents, flat, ends, count, num_threads)
    return [own[:size] for own, size in zip(rows, counts.tolist(), strict=True)]


def _measured(
    snapshot: Snapshot,
    name: str,
    num_bytes: float,
    several: list[Rows],
    exact: list[Rows],
    grades: list[Grades] | None,
    k: int,
) -> Width:
    first = [rows[:k] for rows in several]
    shares = []
    for found in (first, several):
        hit = [int(np.isin(wanted, own).sum()) for wanted, own in zip(exact, found, strict=True)]
        shares.append(metrics.share_found(hit, [len(wanted) for wanted in exact]) or (1.0, 0.0, 1.0))
    (recall, low, high), (recall_of_several, _, _) = shares
    relevance, loss, interval = None, 1.0 - recall, (1.0 - high, 1.0 - low)
    if grades is not None:
        relevance = relevance_of_rows(snapshot, first, exact, grades, k)
        measures = [relevance.measures[m] for m in (f"success@{k}", f"MRR@{k}") if m in relevance.measures]
        if not any(measure.exact for measure in measures):
            raise ValueError(
                f"no query has a relevant document in its exact top {k}: nothing tells what codes lose of these; look at what "
                "relevant= names"
            )
        worst = max(measures, key=lambda measure: measure.loss)
        loss, interval = worst.loss, worst.loss_interval
    return Width(name, num_bytes, recall, (low, high), recall_of_several, relevance, loss, interval)
