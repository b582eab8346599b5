"""A query and a document in what is searched: the scores, estimates and searches that explanations are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lemur_ann import _core
from lemur_ann.documents.ids import plain_id
from lemur_ann.documents.inputs import QueryBatch, ids_of, is_single_query, queries_of
from lemur_ann.documents.rows import Rows, RowSet
from lemur_ann.events import cached_property
from lemur_ann.insight.estimates import all_estimates, place_of, ranks_by_estimate
from lemur_ann.searching.search import Candidates, exact_scores, search
from lemur_ann.searching.searcher import Searcher
from lemur_ann.searching.settings import Settings
from lemur_ann.searching.snapshot import Snapshot

if TYPE_CHECKING:
    from lemur_ann.searching.device import DeviceSearch

ROWS_PER_BLOCK = 16_384  # of documents, when the token maxima of all are computed


@dataclass(frozen=True, eq=False)
class Case:
    """A query and a document, in a snapshot that is searched."""

    snapshot: Snapshot
    query: QueryBatch  # of one, float32
    doc_id: Any
    row: int
    excluded: RowSet
    device_search: DeviceSearch | None
    settings: Settings  # of the search in question

    @classmethod
    def of(
        cls, snapshot: Snapshot, searcher: Searcher, query_tokens: Any, doc_id: Any, settings: Settings, filter: Any = None
    ) -> Case:
        """Checked; a ``filter`` is as a search takes it."""
        row = int(snapshot.ids.find(ids_of([doc_id]))[0])
        if not is_single_query(query_tokens):
            raise TypeError(
                f"query_tokens must be one query, a matrix (num_tokens, dim), got {type(query_tokens).__name__}; "
                "of a batch, explain one query at a time"
            )
        query = queries_of(query_tokens, snapshot.store.dim).batch.as_float32
        excluded, device_search = searcher.excluded(snapshot, filter), searcher.device_search(snapshot)
        return cls(snapshot, query, plain_id(doc_id), row, excluded, device_search, settings)

    @property
    def num_threads(self) -> int:
        """Of all that is computed."""
        return self.settings.num_threads

    @property
    def num_matching(self) -> int:
        """Documents that are not excluded."""
        return len(self.excluded) - self.excluded.count

    @cached_property
    def scores(self) -> npt.NDArray[np.float32]:
        """Exact, of every document, (num_rows,); -inf where it is excluded."""
        (scores,) = exact_scores(self.snapshot, self.query, self.num_threads, self.excluded)
        return scores

    def usual_similarities(self) -> npt.NDArray[np.float32]:
        """The largest similarity of each query token to a token of a document, mean over those not excluded: (num_tokens,)."""
        total = np.zeros(len(self.query.tokens))
        rows = self.excluded.others
        for begin in range(0, len(rows), ROWS_PER_BLOCK):
            documents = self.snapshot.store.select(rows[begin : begin + ROWS_PER_BLOCK])
            total += _core.token_maxima(self.query.tokens, documents, self.num_threads).sum(axis=1, dtype=np.float64)
        return (total / len(rows)).astype(np.float32)

    @property
    def rank(self) -> int:
        """Of the document's exact score, from 1, in the order of a search."""
        return place_of(self.row, self.scores)

    @cached_property
    def encoded(self) -> npt.NDArray[np.float32]:
        """The query for the candidate index, (1, dim); only of an index that has learned."""
        encoder = self.snapshot.fitted().encoder
        return encoder.encode_batch(self.query.tokens, self.query.offsets, num_threads=self.num_threads)

    @cached_property
    def estimates(self) -> npt.NDArray[np.float32]:
        """Inner products of vectors, of every document, (num_rows,); -inf where it is excluded."""
        return all_estimates(self.snapshot.fitted(), self.encoded[0], self.excluded)

    @cached_property
    def estimate_rank(self) -> int:
        """The document's rank by estimate, from 1: in how many candidates a search has it that scans all vectors."""
        (rank,) = ranks_by_estimate(
            self.snapshot.fitted(),
            self.encoded[0],
            np.array([self.row]),
            self.excluded,
            num_threads=self.num_threads,
            on_device=self.device_search is not None,
        )
        return int(rank)

    def is_shortlisted(self) -> bool:
        """Whether the document is on the shortlist that a second look chooses candidates from."""
        settings = self.settings.within(len(self.excluded), self.num_matching)
        if settings.shortlist == 0 or self.device_search is not None:
            return False
        candidates = Candidates(self.snapshot, self.query, settings, self.excluded)
        return bool(np.isin(self.row, candidates.of_largest_estimate([0], settings.shortlist, settings.ef_search)[0]))

    def searched(self, settings: Settings) -> tuple[int | None, Rows]:
        """Where a search finds the document, from 1, and the rows that it reranked; none where it scored all documents."""
        seen: list[Rows] = [np.empty(0, np.int64)]
        (hits,) = search(
            self.snapshot,
            self.query,
            settings,
            self.excluded,
            device_search=self.device_search,
            watch=lambda candidates: seen.extend(candidates),
        )
        if self.device_search is not None and settings.num_candidates < self.num_matching:
            seen = [np.argsort(-self.estimates, kind="stable")[: settings.num_candidates]]
        places = np.flatnonzero(hits.ids == self.doc_id)
        return int(places[0]) + 1 if len(places) else None, np.unique(np.concatenate(seen))
