"""What an index is asked about itself: the methods of :class:`lemur_ann.LemurIndex` that measure and explain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lemur_ann import validate
from lemur_ann.insight.code_tuning import POOL_FACTORS, TunedCodes, tune_codes
from lemur_ann.insight.evaluation import Evaluation, evaluate
from lemur_ann.insight.health import Health, health_of
from lemur_ann.insight.relevance import judged
from lemur_ann.insight.tuning import checked_goal, tune
from lemur_ann.progress import Show, progress_lines
from lemur_ann.searching.searcher import Searcher
from lemur_ann.searching.settings import Settings, Tuned
from lemur_ann.searching.snapshot import Snapshot

if TYPE_CHECKING:
    from lemur_ann.insight.explanation import Explanation
    from lemur_ann.insight.miss import Miss


class MeasuredIndex:
    """The half of :class:`lemur_ann.LemurIndex` that only reads; ``_changes`` keeps what :meth:`tune` chose."""

    _changes: Any
    _searcher: Searcher

    @property
    def snapshot(self) -> Snapshot:
        """All that a search reads, as it is at this moment."""
        raise NotImplementedError

    def _settings(self, snapshot: Snapshot, k: int, *asked: Any, **named: Any) -> Settings:
        raise NotImplementedError

    def evaluate(
        self,
        queries: Any,
        k: int = 10,
        *,
        num_candidates: int | None = None,
        ef_search: int | None = None,
        shortlist: int | None = None,
        target_recall: float | None = None,
        max_loss: float | None = None,
        filter: Any = None,
        relevant: Any = None,
        num_threads: int | None = None,
        progress: Show = None,
    ) -> Evaluation:
        """Recall@k against exact MaxSim, and the latency of single queries, on queries it did not learn from.

        Args:
            queries: a batch, as for :meth:`search`; at least one query.
            k, num_candidates, ef_search, shortlist, target_recall, max_loss, filter, num_threads: as for :meth:`search`.
            relevant: also measure success@k, MRR and nDCG beside exact MaxSim's, with paired intervals. For each query an id or
                a collection of ids; or qrels, {query id: {document id: grade}}; or the path of a TREC qrels file; or the name
                of a column of the queries. A table's column ``id`` names its queries, others are 0, 1, 2, ....
            progress: as for :meth:`fit`.
        """
        snapshot = self.snapshot
        settings = self._settings(snapshot, k, num_candidates, ef_search, target_recall, num_threads, shortlist, max_loss)
        batch, grades = judged(queries, relevant, snapshot)
        if len(batch) == 0:
            raise ValueError("evaluate needs at least one query, got none")
        batch.check_not_zero("queries")
        with progress_lines(progress) as lines:
            return evaluate(snapshot, batch, settings, self._searcher, filter, lines, grades)

    def tune(
        self,
        queries: Any,
        target_recall: float | None = None,
        k: int = 10,
        *,
        target: str | None = None,
        relevant: Any = None,
        max_loss: float | None = None,
        seed: int = 0,
        num_threads: int | None = None,
        progress: Show = None,
    ) -> Tuned:
        """Find the quickest search of a wanted recall or relevance; searches then take ``target_recall`` or ``max_loss``.

        A random half of the queries chooses, by the exact answers and by the time that searches take here and now; the other
        half says what to expect. The choice is kept, and saved, with the learned map.

        Args:
            queries: a batch, as for :meth:`search`, of queries like those to come that the index did not learn from; some
                hundred for a narrow interval.
            target_recall: for "recall", the share of the exact MaxSim top k to find, above 0 and at most 1; None means 0.95.
            k, num_threads: as for :meth:`search`; tune with the threads to search with.
            target: "recall", or "relevance": of the ``relevant`` documents that exact MaxSim finds lose no more than
                ``max_loss``. None means the second where these are given.
            relevant: as for :meth:`evaluate`, for "relevance"; it takes a thousand queries to tell one percent from two.
            max_loss: for "relevance", the share of success@k and of MRR@k to lose, above 0 and at most 1; None means 0.01.
            seed: for the halves.
            progress: as for :meth:`fit`.

        Returns:
            :class:`~lemur_ann.searching.Tuned`; print it.

        Raises:
            NotFitted: before fit.
            ValueError, TypeError: fewer than two queries, bad ones, or a bad target.
            RuntimeError: the index learned another map meanwhile.
        """
        self._changes.check_writable()
        snapshot = self.snapshot
        encoder = snapshot.fitted().encoder
        goal = checked_goal(target_recall, target, relevant, max_loss)
        k, threads = validate.positive_int(k, "k"), validate.num_threads(num_threads)
        random = np.random.default_rng(validate.integer(seed, "seed", least=0))
        batch, grades = judged(queries, relevant, snapshot)
        with progress_lines(progress) as lines, self._changes.timed("tune", **goal) as told:
            tuned = tune(snapshot, batch, k, **goal, grades=grades, random=random, num_threads=threads, progress=lines)
            told |= {"num_candidates": tuned.num_candidates, "ef_search": tuned.ef_search, "shortlist": tuned.shortlist}
        self._changes.keep_tuned(encoder, tuned)
        return tuned

    def tune_codes(
        self,
        queries: Any,
        k: int = 10,
        *,
        relevant: Any = None,
        max_loss: float = 0.01,
        certain: bool = False,
        pool_factors: Sequence[int] = POOL_FACTORS,
        num_threads: int | None = None,
        progress: Show = None,
    ) -> TunedCodes:
        """Measure what small codes lose where the tokens are not kept, for each width, and find the smallest that will do.

        It codes the candidates of these queries, in memory, and ranks them by codes alone. Nothing of the index changes:
        ``index.recode(found.token_codes, keep_tokens="none")`` does it. Beside that it says what pooled tokens lose, coded or
        not, as an index that is made anew with a ``pool_factor`` would have them.

        Args:
            queries: a batch, as for :meth:`search`, of queries like those to come; a thousand tell one percent from two.
            k, num_threads: as for :meth:`search`.
            relevant: as for :meth:`evaluate`: the loss is then of success@k and MRR@k. Without, it is of the exact top k, which
                is far larger: codes exchange documents of nearly equal scores.
            max_loss: the share that may be lost, above 0 and at most 1.
            certain: whether the upper end of the 95% interval must be within that too.
            pool_factors: integers above 1, of which pooled tokens are measured too, by the index's own ``pooling`` and
                ``protected_tokens``; () for none. An index that pools already is measured as it is.
            progress: as for :meth:`fit`.

        Returns:
            :class:`~lemur_ann.insight.code_tuning.TunedCodes`; print it.

        Raises:
            NotFitted: before fit.
            ValueError, TypeError: bad queries; tokens that are not kept; or a map without centroids.
        """
        snapshot = self.snapshot
        snapshot.fitted()
        max_loss, certain = validate.share(max_loss, "max_loss"), validate.boolean(certain, "certain")
        factors = tuple(validate.integer(factor, "pool_factors", least=2) for factor in pool_factors)
        settings = self._settings(snapshot, k, num_threads=num_threads).within(snapshot.num_rows, snapshot.num_documents)
        batch, grades = judged(queries, relevant, snapshot)
        with progress_lines(progress) as lines:
            how: dict[str, Any] = {"max_loss": max_loss, "certain": certain, "pool_factors": factors}
            return tune_codes(snapshot, batch, settings, grades, **how, progress=lines)

    def health(
        self,
        queries: Any = None,
        *,
        k: int = 10,
        num_candidates: int | None = None,
        ef_search: int | None = None,
        shortlist: int | None = None,
        target_recall: float | None = None,
        max_loss: float | None = None,
        relevant: Any = None,
        num_documents: int = 1000,
        num_queries: int = 200,
        seed: int = 0,
        num_threads: int | None = None,
        progress: Show = None,
    ) -> Health:
        """How well the learned map still fits: rank correlation and candidate recall, for recent documents apart.

        Recent documents are those added since the map was learned. It costs about as much as ``num_queries`` exact searches.

        Args:
            queries: a batch, as for :meth:`search`, of queries like those of today that the index did not learn from. None
                takes the query tokens that the map kept, in random groups of 16: the figures are optimistic then (see
                :class:`Health`), and know nothing of queries that have changed.
            k, num_candidates, ef_search, shortlist, target_recall, max_loss, num_threads: as for :meth:`search`.
            relevant: documents of each query, as for :meth:`evaluate`: it then also says how many of them are lost.
            num_documents: documents sampled for the rank correlation, at most: of all, of the older, and of the recent ones.
            num_queries: queries sampled, at most.
            seed: for the samples.
            progress: as for :meth:`fit`.

        Returns:
            :class:`Health`; print it, or read its ``verdict``.

        Raises:
            NotFitted: before fit.
            ValueError, TypeError: bad queries, none at all, or no documents.
        """
        snapshot = self.snapshot
        snapshot.fitted()
        settings = self._settings(snapshot, k, num_candidates, ef_search, target_recall, num_threads, shortlist, max_loss)
        random = np.random.default_rng(validate.integer(seed, "seed", least=0))
        if queries is None and relevant is not None:
            raise TypeError("relevant= goes with queries=, and queries is None")
        batch, grades = (None, None) if queries is None else judged(queries, relevant, snapshot)
        sizes = {"num_documents": num_documents, "num_queries": num_queries}
        with progress_lines(progress) as lines:
            return health_of(snapshot, batch, settings, **sizes, grades=grades, random=random, progress=lines)

    def explain(
        self,
        query_tokens: Any,
        doc_id: Any,
        *,
        k: int = 10,
        query_words: Sequence[str] | None = None,
        document_words: Sequence[str] | None = None,
        num_threads: int | None = None,
    ) -> Explanation:
        """Why a document has its score for a query: which tokens carry it, and where it stands among all documents.

        It costs about as much as two exact searches and a scan of all vectors.

        Args:
            query_tokens: one query, a matrix (num_tokens, dim).
            doc_id: the id of the document.
            k: how many hits of a search, at the index's own settings, to look for it in.
            query_words, document_words: the strings of their tokens, one for each row of the matrices, as a tokenizer names
                them; None shows numbers. Of a document that was pooled as it came, of the tokens as they came.
            num_threads: None means all cores.

        Returns:
            :class:`~lemur_ann.insight.explanation.Explanation`; print it, show it in a notebook, or draw its ``picture``.
            Before :meth:`fit` it has no estimate.

        Raises:
            KeyError: there is no such document.
            ValueError, TypeError: a bad query, or more or fewer strings than tokens.
        """
        from lemur_ann.insight.case import Case
        from lemur_ann.insight.explanation import explain

        snapshot = self.snapshot
        settings = self._settings(snapshot, k, num_threads=num_threads)
        case = Case.of(snapshot, self._searcher, query_tokens, doc_id, settings)
        return explain(case, query_words=query_words, document_words=document_words)

    def explain_miss(
        self,
        query_tokens: Any,
        doc_id: Any,
        k: int = 10,
        *,
        num_candidates: int | None = None,
        ef_search: int | None = None,
        shortlist: int | None = None,
        target_recall: float | None = None,
        max_loss: float | None = None,
        filter: Any = None,
        num_threads: int | None = None,
    ) -> Miss:
        """Why a search does not find a document: which stage loses it, and with which settings it is found.

        It costs about as much as an exact search and a scan of all vectors, and some searches to try settings.

        Args:
            query_tokens: one query, a matrix (num_tokens, dim).
            doc_id: the id of the document.
            k, num_candidates, ef_search, shortlist, target_recall, max_loss, filter, num_threads: of that search.

        Returns:
            :class:`~lemur_ann.insight.miss.Miss`; print it, or search again with its ``settings``.

        Raises:
            KeyError: there is no such document, or no longer.
            ValueError, TypeError: a bad query, or bad settings.
        """
        from lemur_ann.insight.case import Case
        from lemur_ann.insight.miss import explain_miss

        snapshot = self.snapshot
        settings = self._settings(snapshot, k, num_candidates, ef_search, target_recall, num_threads, shortlist, max_loss)
        case = Case.of(snapshot, self._searcher, query_tokens, doc_id, settings, filter)
        asked: dict[str, Any] = {"num_candidates": num_candidates, "ef_search": ef_search, "shortlist": shortlist}
        asked |= {"target_recall": target_recall, "max_loss": max_loss, "filter": filter}
        return explain_miss(case, asked)
