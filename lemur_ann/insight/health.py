"""How well a learned map still fits the documents and queries of today."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lemur_ann import _core, validate
from lemur_ann.documents.inputs import QueryBatch, directions_of, sampled, to_offsets
from lemur_ann.insight import metrics
from lemur_ann.insight.relevance import Grades, Relevance, relevance_of_rows
from lemur_ann.learning.familiarity import are_many
from lemur_ann.progress import Progress
from lemur_ann.searching.search import Candidates, exact_scores
from lemur_ann.searching.settings import Settings
from lemur_ann.searching.snapshot import Snapshot

if TYPE_CHECKING:
    from lemur_ann.candidates import CandidateIndex
    from lemur_ann.encoder import LemurEncoder

LOW_RECALL = 0.9
MAX_LOST = 0.05  # of the answers that exact MaxSim finds
LOWER_RECALL = 0.05  # on recent documents than on older ones
LOWER_CORRELATION = 0.1
MANY_BEYOND = 0.05  # of the documents, beyond the radius
MAX_RELATIVE_LENGTH = 1.25  # of query tokens, where the map depends on it
FEW_WANTED = 30  # places in the exact top k, too few for their recall to say much

OWN_QUERY_TOKENS = 16  # of a query made from the map's own sample; Health says why
ROWS_PER_STEP = 4096  # vectors looked at together


@dataclass(frozen=True)
class MapFit:
    """How the map fits some of the documents.

    Attributes:
        num_documents: how many they are, without deleted ones.
        correlation: Spearman's rank correlation of estimated and exact scores over a sample of these documents, mean over
            queries; None where it is not defined: fewer than two documents, or equal scores.
        num_wanted: how many places of the queries' exact top k these documents hold: what ``recall`` rests on.
        recall: share of those that are among the candidates; None where num_wanted is 0. The rerank is exact, so this is also
            recall@k of whole searches.
        recall_interval: its 95% confidence interval over queries, by :func:`lemur_ann.insight.metrics.share_found`; None with
            recall.
        num_beyond_radius: documents whose vector is longer than the radius chosen when the map was learned. A graph has few
            links to them, so every search looks at all of them.
    """

    num_documents: int
    correlation: float | None
    num_wanted: int
    recall: float | None
    recall_interval: tuple[float, float] | None
    num_beyond_radius: int

    def __str__(self) -> str:
        parts = [f"{self.num_documents:,}"]
        if self.correlation is not None:
            parts.append(f"rank correlation {self.correlation:.3f}")
        if self.recall is not None and self.recall_interval is not None:
            low, high = self.recall_interval
            parts.append(f"recall {self.recall:.3f} ({low:.3f} to {high:.3f}) of {self.num_wanted:,} in the exact top k")
        elif self.num_documents:
            parts.append("none in the exact top k")
        if self.num_beyond_radius:
            parts.append(f"{self.num_beyond_radius:,} beyond the radius")
        return ", ".join(parts)


@dataclass(frozen=True)
class Health:
    """What :meth:`lemur_ann.LemurIndex.health` found.

    Recent documents are those added since the map was learned, older ones the others. An index saved before
    that was kept counts all that it held as older.

    Attributes:
        documents: the fit on all documents.
        older, recent: the fit on a part of them.
        queries: "given", or "own sample": random groups of 16 of the query tokens that the map kept. It keeps no whole queries,
            so these are stand-ins. The tokens of one query resemble each other, and 16 unrelated ones are about as hard for the
            map as a query of 32: on 6,000 real documents candidate recall was .92 with them and .91 with new queries, on 600
            .94 and .91, of a sample that all tokens had the same chance to be in. (With 32 it was .99 and .97: what tells
            documents apart averages out.) Of more tokens than it keeps, the map keeps uncommon ones sooner, which shifts the
            level by as much as has not been measured. And it was learned from these very tokens: take the figures as
            optimistic, and as saying nothing of queries that have changed. They serve to compare recent documents with older
            ones; for a fair level pass queries that the map was not learned from.
        num_queries: how many of them.
        k, candidates, num_candidates, ef_search: how it searched; candidates is "hnsw" or "exact", and ef_search is never below
            num_candidates.
        shortlist: documents that a second look chose the candidates from; 0 without one.
        num_unfamiliar: recent documents, deleted ones included, that are unlike those the map learned from: the measure that
            ``add`` takes, see learning/familiarity.py.

        relative_length: the median length of the queries' tokens over that of those the map was learned from, where the map's
            features depend on it: maps of older versions that were learned from tokens of other lengths than 1. Else 1.
        relevance: what searches lose of the relevant documents that exact MaxSim finds, where these were given.

    ``str(health)`` is the verdict and a few lines of figures.
    """

    documents: MapFit
    older: MapFit
    recent: MapFit
    queries: str
    num_queries: int
    k: int
    candidates: str
    num_candidates: int
    ef_search: int
    num_unfamiliar: int = 0
    relative_length: float = 1.0
    shortlist: int = 0
    relevance: Relevance | None = None

    @property
    def share_recent(self) -> float:
        """The share of recent documents."""
        return self.recent.num_documents / self.documents.num_documents

    @property
    def problems(self) -> list[str]:
        """What speaks against the map, and what to do about it; empty where it fits.

        - Recall on recent documents is more than 0.05 lower than on older ones, and the two intervals do not overlap.
        - The queries want recent documents in fewer than 30 places of their exact top k, so that recall says little of these,
          and the rank correlation on recent documents is more than 0.1 lower than on older ones. (Where the queries want them,
          recall alone decides: documents that are much alike are harder to rank, and that does no harm by itself.)
        - More than 0.05 of the documents are beyond the radius, and the candidates come from a graph: every search looks at all
          of these.
        - Recall on all documents is below 0.9 with its whole interval.
        - Relevant documents were given, and more than 0.05 of those that exact MaxSim has in its top k are lost, with the whole
          interval.
        - Query tokens are more than 1.25 times as long as those the map was learned from, or as short, and its features depend
          on that.
        - At least 16 recent documents, and a tenth of them, are unlike those the map learned from. Only queries for such
          documents tell how well they are found; where those are given, or another of these speaks of recent documents,
          that decides.
        """
        found = []
        older, recent = self.older, self.recent
        if older.recall is not None and recent.recall is not None and older.recall_interval and recent.recall_interval:
            lower = older.recall - recent.recall
            if lower > LOWER_RECALL and recent.recall_interval[1] < older.recall_interval[0]:
                found.append(f"recall on recent documents is {lower:.2f} lower: refit")
        if older.correlation is not None and recent.correlation is not None and recent.num_wanted < FEW_WANTED:
            lower = older.correlation - recent.correlation
            if lower > LOWER_CORRELATION:
                found.append(
                    f"rank correlation on recent documents is {lower:.2f} lower, and few are in these queries' top {self.k}: "
                    "refit, with queries for them"
                )
        num_beyond = self.documents.num_beyond_radius
        if num_beyond > MANY_BEYOND * self.documents.num_documents and self.candidates != "exact":
            beyond = f"{num_beyond:,} of {self.documents.num_documents:,}"
            found.append(f"documents beyond the radius, which every search scans: {beyond}: refit")
        if self.documents.recall_interval is not None and self.documents.recall_interval[1] < LOW_RECALL:
            found.append(
                f"recall is {self.documents.recall:.2f}: raise num_candidates or ef_search, or refit with queries like these"
            )
        success = None if self.relevance is None else self.relevance.measures.get(f"success@{self.k}")
        if success is not None and success.loss_interval[0] > MAX_LOST:
            found.append(
                f"{success.loss:.0%} of the relevant answers of exact MaxSim are lost: raise num_candidates or shortlist, "
                "tune(relevant=...), or refit with queries like these"
            )
        if not 1 / MAX_RELATIVE_LENGTH <= self.relative_length <= MAX_RELATIVE_LENGTH:
            found.append(
                f"query tokens are {self.relative_length:.2g} times as long as those that this map, of an older version, was "
                "learned from: refit, or scale queries as the training queries were"
            )
        is_known = any("recent" in problem for problem in found) or (
            self.queries == "given" and recent.num_wanted >= FEW_WANTED
        )
        if are_many(self.num_unfamiliar, recent.num_documents) and not is_known:
            found.append(
                f"{self.num_unfamiliar:,} recent documents are unlike those the map learned from: queries for them may "
                "miss them; refit, with such queries"
            )
        return found

    @property
    def verdict(self) -> str:
        """What speaks against the map and what to do about it, or "the map fits"; ``problems`` has the rules."""
        return "; ".join(self.problems) or "the map fits"

    def __str__(self) -> str:
        queries = f"{self.num_queries:,} queries"
        if self.queries == "own sample":
            queries += " made of tokens the map was learned from: optimistic, pass queries for a fair figure"
        lines = [
            self.verdict,
            f"{queries}; k {self.k}, num_candidates {self.num_candidates}, ef_search {self.ef_search}"
            + (f", shortlist {self.shortlist}" if self.shortlist else ""),
            f"all documents: {self.documents}",
        ]
        if self.recent.num_documents:
            lines += [f"older: {self.older}", f"recent ({self.share_recent:.1%}): {self.recent}"]
        if self.relevance is not None:
            lines.append(str(self.relevance))
        return "\n".join(lines)


def own_queries(tokens: npt.NDArray[np.float32], num_queries: int, random: np.random.Generator) -> QueryBatch:
    """At most ``num_queries`` queries, each a random group of 16 of the map's sample tokens (num_tokens, dim)."""
    size = min(OWN_QUERY_TOKENS, len(tokens))
    count = min(len(tokens) // size, num_queries)
    return QueryBatch(tokens[random.permutation(len(tokens))[: count * size]], to_offsets([size] * count))


def health_of(
    snapshot: Snapshot,
    queries: QueryBatch | None,
    settings: Settings,
    *,
    num_documents: int,
    num_queries: int,
    grades: list[Grades] | None,
    random: np.random.Generator,
    progress: Progress,
) -> Health:
    """Compare what the map says with the exact scores; the snapshot has learned a map.

    Args:
        snapshot, settings: what is searched, and how.
        queries: of more than ``num_queries`` a sample. None takes the map's own sample of query tokens.
        num_documents, num_queries: as in :meth:`lemur_ann.LemurIndex.health`.
        grades: of each query the relevant documents, if they are known.
        random: for the samples.
        progress: where to report.

    Raises:
        ValueError, TypeError: no query, or no document, or numbers out of range.
    """
    assert snapshot.learned is not None
    num_documents = validate.integer(num_documents, "num_documents", least=2)
    num_queries = validate.positive_int(num_queries, "num_queries")
    learned, live = snapshot.learned, snapshot.live
    if len(live) == 0:
        raise ValueError("health needs at least one document, and the index holds none")
    if queries is None:
        asked = own_queries(learned.encoder.targets.sample_tokens, num_queries, random).as_float32
    elif len(queries) == 0:
        raise ValueError("health needs at least one query, got none; queries=None takes the map's own sample")
    else:
        queries.check_not_zero("queries")
        chosen = sampled(len(queries), num_queries, random)
        asked = queries.take(chosen.tolist()).as_float32.without_zero_rows
        grades = None if grades is None else [grades[i] for i in chosen]
    task = progress.task("queries", len(asked))
    split = int(np.searchsorted(live, learned.num_rows))
    parts = [_Part(rows, learned.candidates, num_documents, random) for rows in (live, live[:split], live[split:])]
    candidates = Candidates(snapshot, asked, settings, snapshot.deleted)
    found = [live] * len(asked)  # of a search that scores every document
    if settings.num_candidates < snapshot.num_documents:
        found = candidates(range(len(asked)), settings.num_candidates, settings.ef_search)
    every_score = exact_scores(snapshot, asked, settings.num_threads, snapshot.deleted)
    tops, hits = [], []
    for query, scores, own in zip(candidates.encoded, every_score, found, strict=True):
        top = _core.top_k(scores, settings.k)
        tops.append(top)
        hits.append(own[np.lexsort((own, -scores[own]))[: settings.k]])
        is_found = np.isin(top, own)
        for part in parts:
            part.count(query, scores, top, is_found)
        task.advance()
    documents, older, recent = (part.fit() for part in parts)
    return Health(
        documents=documents,
        older=older,
        recent=recent,
        queries="own sample" if queries is None else "given",
        num_queries=len(asked),
        k=settings.k,
        candidates=learned.options.candidates,
        num_candidates=settings.num_candidates,
        ef_search=settings.ef_search,
        num_unfamiliar=learned.num_unfamiliar,
        relative_length=_relative_length(learned.encoder, asked),
        shortlist=settings.shortlist,
        relevance=None if grades is None else relevance_of_rows(snapshot, hits, tops, grades, settings.k),
    )


def _relative_length(encoder: LemurEncoder, queries: QueryBatch) -> float:
    learned_from = float(np.median(directions_of(encoder.targets.sample_tokens)[1]))
    if encoder.feature_weights.is_homogeneous or not learned_from:
        return 1.0
    return float(np.median(directions_of(queries.tokens)[1])) / learned_from


class _Part:
    """Some documents, a sample of them, and what the queries showed of them so far."""

    def __init__(
        self, rows: npt.NDArray[np.int64], candidates: CandidateIndex, num_documents: int, random: np.random.Generator
    ) -> None:
        self._rows = rows
        self._sample = np.sort(random.choice(rows, min(num_documents, len(rows)), replace=False)) if len(rows) else rows
        self._vectors = candidates.take(self._sample)
        blocks = (candidates.take(rows[begin : begin + ROWS_PER_STEP]) for begin in range(0, len(rows), ROWS_PER_STEP))
        self._num_beyond = sum(int(np.count_nonzero(block[:, -1] == 0)) for block in blocks)  # see Reduction.augment
        self._correlations: list[float] = []
        self._found: list[int] = []
        self._wanted: list[int] = []

    def count(
        self,
        query: npt.NDArray[np.float32],
        scores: npt.NDArray[np.float32],
        top: npt.NDArray[np.int64],
        is_found: npt.NDArray[np.bool_],
    ) -> None:
        """Take one encoded query into account, its exact scores, its exact top k, and which of those are candidates."""
        correlation = metrics.rank_correlation(self._vectors @ query, scores[self._sample])
        if correlation is not None:
            self._correlations.append(correlation)
        is_own = np.isin(top, self._rows) if len(self._rows) else np.zeros(len(top), np.bool_)
        self._found.append(int(np.count_nonzero(is_own & is_found)))
        self._wanted.append(int(np.count_nonzero(is_own)))

    def fit(self) -> MapFit:
        """What all queries showed."""
        share = metrics.share_found(self._found, self._wanted)
        return MapFit(
            num_documents=len(self._rows),
            correlation=float(np.mean(self._correlations)) if self._correlations else None,
            num_wanted=sum(self._wanted),
            recall=None if share is None else share[0],
            recall_interval=None if share is None else share[1:],
            num_beyond_radius=self._num_beyond,
        )
