"""LemurIndex: fit, add, search, save, load. The story of the library on one page."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lemur_ann import _core, metrics, storage
from lemur_ann import _validate as validate
from lemur_ann.candidates import CandidateIndex, kind_of
from lemur_ann.errors import CorruptIndex, NotFitted
from lemur_ann.evaluation import Evaluation
from lemur_ann.health import Health, measure, own_queries
from lemur_ann.hits import Hits
from lemur_ann.ids import IdMap
from lemur_ann.inputs import DocumentBatch, QueryBatch, ids_of, is_single_query, read_queries, to_offsets
from lemur_ann.intake import take_in
from lemur_ann.memory import parse_bytes, release
from lemur_ann.options import Options
from lemur_ann.progress import Progress
from lemur_ann.progress import progress as progress_lines
from lemur_ann.sources import opened
from lemur_ann.tokens import TokenStore
from lemur_ann.tuning import Tuned, Tuner

if TYPE_CHECKING:
    from lemur_ann.device_search import DeviceSearch
    from lemur_ann.encoder import Encoded, LemurEncoder

SCORES_PER_BLOCK = 2**24  # of an exact search: 64 MiB


@dataclass(frozen=True)
class _Learned:
    """A learned map and the candidates it made: what a search reads once, and a refit replaces at once."""

    options: Options
    encoder: LemurEncoder
    candidates: CandidateIndex
    tuned: tuple[Tuned, ...] = ()

    @property
    def num_rows(self) -> int:
        """Rows of the index when it learned, those of deleted documents included; documents after them are recent."""
        return int(self.encoder.training["num_rows"])


class LemurIndex:
    """A multi-vector index: learned weights in a graph find candidates, exact MaxSim reranks them.

    Documents and queries are matrices of token embeddings, (num_tokens, dim), float32 or float16. Before :meth:`fit` the index
    answers by exact MaxSim. Searches may run in several threads at once; a change must not run beside anything else.

    Args:
        num_features: width of the learned features; more is more accurate and slower to fit.
        epochs: passes of training; 0 uses random features, and is the quick way: see num_sample_tokens and distillation_steps.
        num_training_tokens: query tokens to train on, at most.
        num_training_documents: documents whose token maxima training predicts, at most.
        num_sample_tokens: query tokens over which document weights are solved, at most; None means 24,576, and 8,192 where
            epochs is 0.
        target_precision: "int8" computes the token maxima that are learned from in int8, with the same bits on every machine;
            "float32" exactly, in three to four times the time. int8 fits tokens of unit length; where a few dimensions are
            far larger than all others, compare both.
        ridge: regularisation of that solve, relative to the mean diagonal of its Gram matrix.
        rank: dimension of the vectors in the candidate index (plus one appended coordinate, so one less than a multiple of 16
            is fastest); None keeps all num_features.
        distillation_steps: steps that tune the reduction for the top of the ranking, where there are at least 1,000 queries
            and 5,000 documents; 0 leaves the least-squares map. None means 1,000, and 0 where epochs is 0.
        token_codes: "int8" keeps int8 codes of all tokens beside them, a byte a component. A search then reads the tokens
            of its best few candidates only, with the same hits but for a document in ten thousand, several times faster.
            None keeps the tokens alone.
        candidates: "hnsw" for a graph, "exact" for a scan of all vectors.
        M, ef_construction: the graph's, as in hnswlib.
        num_candidates: documents reranked per query, unless a search says otherwise.
        ef_search: beam of the graph search, widened to num_candidates where that is more; None means num_candidates. A beam
            wider than what the rerank reads is the cheaper way to a high recall.
        device: where to learn and to search: "cpu", "cuda" or "mps". Beside a CPU, a search scans the vectors of all documents
            on the device and reranks there: fastest for batches, and ef_search counts for nothing.
        seed: for everything random. On a CPU the learned map is the same for the same seed, data and number of threads.

    Example:
        >>> import numpy as np
        >>> random = np.random.default_rng(0)
        >>> documents = [random.normal(size=(20, 8)).astype(np.float32) for _ in range(100)]
        >>> index = LemurIndex(num_features=64, epochs=1, rank=15)
        >>> _ = index.fit(documents, queries=[d[:4] for d in documents], ids=[f"doc {i}" for i in range(100)])
        >>> hits = index.search(documents[7], k=3)
        >>> hits.ids[0]
        'doc 7'
    """

    def __init__(
        self,
        *,
        num_features: int = 2048,
        epochs: int = 3,
        num_training_tokens: int = 50_000,
        num_training_documents: int = 4096,
        num_sample_tokens: int | None = None,
        target_precision: str = "int8",
        ridge: float = 1e-6,
        rank: int | None = 255,
        distillation_steps: int | None = None,
        token_codes: str | None = "int8",
        candidates: str = "hnsw",
        M: int = 24,
        ef_construction: int = 200,
        num_candidates: int = 250,
        ef_search: int | None = 600,
        device: str = "cpu",
        seed: int = 0,
    ) -> None:
        self._options = Options(
            num_features=num_features,
            epochs=epochs,
            num_training_tokens=num_training_tokens,
            num_training_documents=num_training_documents,
            num_sample_tokens=num_sample_tokens,
            target_precision=target_precision,
            ridge=ridge,
            rank=rank,
            distillation_steps=distillation_steps,
            token_codes=token_codes,
            candidates=candidates,
            M=M,
            ef_construction=ef_construction,
            num_candidates=num_candidates,
            ef_search=ef_search,
            device=device,
            seed=seed,
        )
        self._store = TokenStore(coded=token_codes is not None)
        self._ids = IdMap()
        self._metadata: pa.Table | None = None
        self._learned: _Learned | None = None
        self._device_search: tuple[_Learned, tuple[int, int], DeviceSearch] | None = None

    # What it holds

    def __len__(self) -> int:
        """The number of documents, without deleted ones."""
        return self._ids.num_live

    def __contains__(self, doc_id: object) -> bool:
        return doc_id in self._ids.index

    def __repr__(self) -> str:
        state = f"{self.options.candidates}, fitted" if self.is_fitted else "not fitted: exact search"
        return f"<LemurIndex of {len(self):,} documents, dim {self.dim}, {state}>"

    @property
    def options(self) -> Options:
        """How it learns and searches."""
        learned = self._learned
        return self._options if learned is None else learned.options

    @property
    def is_fitted(self) -> bool:
        """Whether a learned map is there; if not, searches are exact."""
        return self._learned is not None

    @property
    def dim(self) -> int | None:
        """Dimension of tokens; None before the first document."""
        return self._store.dim

    @property
    def num_tokens(self) -> int:
        """Stored tokens, those of deleted documents included."""
        return self._store.num_tokens

    @property
    def encoder(self) -> LemurEncoder:
        """The learned map.

        Raises:
            NotFitted: before fit.
        """
        return self._fitted().encoder

    @property
    def tuned(self) -> tuple[Tuned, ...]:
        """What :meth:`tune` chose for the learned map."""
        learned = self._learned
        return () if learned is None else learned.tuned

    def _fitted(self) -> _Learned:
        learned = self._learned
        if learned is None:
            raise NotFitted("the index has no learned map yet: call fit(documents, queries=...) first")
        return learned

    def metadata(self, ids: Any) -> pa.Table:
        """The column ``id`` and all metadata columns of some documents, one row for each id, in their order.

        Raises:
            KeyError: an id names no document.
        """
        wanted = ids_of(ids)
        rows = self._ids.indices(wanted)
        table = pa.table({"id": wanted.cast(self._ids.type)})
        if self._metadata is not None:
            taken = self._metadata.take(pa.array(rows))
            for name in taken.column_names:
                table = table.append_column(name, taken.column(name))
        return table

    # Changing it

    def fit(
        self,
        documents: Any = None,
        queries: Any = None,
        *,
        ids: Any = None,
        offsets: Any = None,
        query_offsets: Any = None,
        encode_query: Callable[[list[str]], Any] | None = None,
        text_column: str = "text",
        directory: str | PathLike[str] | None = None,
        memory_limit: int | str | None = None,
        num_threads: int | None = None,
        progress: bool | None = None,
    ) -> LemurIndex:
        """Learn the map for these documents and queries, and index the documents.

        Args:
            documents: Arrow data (table, record batches, reader, dataset, or anything with the Arrow PyCapsule interface) with
                a column ``tokens``, list<fixed_size_list<float32 or float16>[dim]>, an optional column ``id`` (string or
                integer), and other columns kept as metadata; the path of a Parquet file or of a folder of them; a sequence or
                an iterator of (num_tokens, dim) NumPy or torch matrices; or one flat matrix with ``offsets``. None learns from
                the documents that :meth:`add` brought. Tables, sequences and arrays stay in memory where they lie. Of a stream
                (path, dataset, reader or other Arrow stream, iterator) the tokens go to a temporary file, mapped and never held
                in memory whole; its ids and metadata are held in memory, and its first documents decide the token dtype.
            queries: token embeddings of training queries, in the same forms: from the query encoder, of queries like those to
                come, and not the ones to measure with. A few thousand are plenty, and all are held in memory. Without them
                recall is far lower, and a warning says so.
            ids: one string or integer for each document; 0, 1, 2, ... where None. Arrow data has a column for it.
            offsets, query_offsets: int (num_documents + 1,) and (num_queries + 1,), with flat matrices only.
            encode_query: the next best thing where there are no queries: your query encoder, which takes a list of strings and
                gives their token embeddings, in any form that ``queries`` may have. It is given up to 8,192 sentences of the
                documents' own texts.
            text_column: the metadata column that holds these texts.
            directory: the folder for the temporary file of a stream's tokens, on a disk with room for all of them; None means
                that of Python's ``tempfile``, which on some systems is in memory. The file has no name there, and its space is
                free once the index is gone.
            memory_limit: bytes, or a string such as "3GB", that learning should stay below, the tokens themselves not counted:
                smaller blocks, training targets in a temporary file, and fewer documents for distillation. None means the usual
                sizes, about 1.7 GB; docs/architecture.md says of what.
            num_threads: None means all cores.
            progress: show progress bars; None means when standard error is a terminal.

        Returns:
            the index itself.

        Raises:
            ValueError, TypeError: bad documents, queries or ids, and nothing has changed.
            OSError: there is no such path, or no room for a stream's tokens; nothing has changed.
        """
        threads, limit = validate.num_threads(num_threads), parse_bytes(memory_limit)
        store, id_map, metadata = self._store, self._ids, self._metadata
        if queries is not None and encode_query is not None:
            raise TypeError("encode_query= takes the place of queries; pass one of them")
        training = None if queries is None else read_queries(opened(queries), offsets=query_offsets)
        if documents is not None:
            if len(self):
                raise ValueError(
                    f"the index holds {len(self)} documents already; add(documents) brings more, and "
                    "fit(queries=...) without documents learns anew from those it holds"
                )
            store, id_map = TokenStore(coded=store.coded), IdMap()
            batches, metadata = take_in(
                documents, ids=ids, offsets=offsets, directory=directory, store=store, id_map=id_map, metadata=None
            )
            _append(store, id_map, batches, threads)
        elif ids is not None or offsets is not None:
            raise TypeError("ids= and offsets= go with documents, and documents is None")
        live = _live(store, id_map)
        if len(live) == 0:
            raise ValueError("fit needs at least one document, got none")
        if training is not None and len(training) and training.tokens.shape[1] != store.dim:
            raise ValueError(f"queries have dim {training.tokens.shape[1]}, documents have dim {store.dim}")
        texts = [] if encode_query is None else _texts(metadata, text_column, live)

        from lemur_ann.learning import fit_encoder

        with progress_lines(progress) as lines:
            encoder, encoded = fit_encoder(
                store,
                live,
                training,
                self.options,
                num_threads=threads,
                progress=lines,
                encode_query=encode_query,
                texts=texts,
                memory_limit=limit,
                directory=directory,
            )
            del queries, training  # the graph takes their place in memory
            learned = _with_candidates(
                encoder, encoded, self.options, store, len(store), id_map, threads, lines, validate.directory(directory)
            )
        self._store, self._ids, self._metadata = store, id_map, metadata
        self._learned = learned
        return self

    def refit(
        self,
        queries: Any = None,
        *,
        query_offsets: Any = None,
        resume: bool = False,
        memory_limit: int | str | None = None,
        num_threads: int | None = None,
        progress: bool | None = None,
        **options: Any,
    ) -> LemurIndex:
        """Learn anew from the stored documents; the old map answers searches until the new one is whole.

        Searches in other threads go on meanwhile, and each uses one map or the other, never parts of both. If learning fails or
        is interrupted, the index is as it was; only an interrupt during training ends that early and goes on, with a warning,
        as in :meth:`fit`. The documents and their ids stay as they are. Both maps are in memory for a while. :meth:`health`
        says when it is time.

        Args:
            queries: token embeddings of training queries, as for :meth:`fit`. None learns from the query tokens the old map
                kept (at most its num_sample_tokens), each as a query of its own. They know nothing of queries that have
                changed and are a little worse than whole queries, but far better than the document tokens that fit() without
                queries learns from.
            query_offsets: int (num_queries + 1,), with a flat matrix only.
            resume: train on from the features of the old map, instead of from random ones: after an interrupted fit, or for
                documents and queries that have changed a little. It needs the same num_features, and epochs above 0.
            memory_limit, num_threads, progress: as for :meth:`fit`.
            **options: options of the index to change, as :class:`LemurIndex` takes them, such as num_features, epochs or rank.

        Returns:
            the index itself.

        Raises:
            NotFitted: before fit.
            TypeError: an option that there is not.
            ValueError: bad queries or values of options, or no documents.
            RuntimeError: documents were added meanwhile, which the new map would not have; the old map stays.
        """
        threads, limit = validate.num_threads(num_threads), parse_bytes(memory_limit)
        learned = self._fitted()
        known = [field.name for field in fields(Options) if field.name != "token_codes"]  # which the store has or has not
        unknown = [name for name in options if name not in known]
        if unknown:
            raise TypeError(f"refit got unknown options {', '.join(unknown)}; expected any of {', '.join(known)}")
        changed = replace(learned.options, **options)
        if resume:
            _check_resume(learned.encoder.feature_weights.config, changed)
        store, rows = self._store, len(self._store)
        live = _live(store, self._ids)
        if len(live) == 0:
            raise ValueError("refit needs at least one document, and the index holds none")
        if queries is None:
            if query_offsets is not None:
                raise TypeError("query_offsets= goes with queries, and queries is None")
            sample = learned.encoder.targets.sample_tokens
            training = QueryBatch(sample, np.arange(len(sample) + 1, dtype=np.int64))
        else:
            training = read_queries(opened(queries), offsets=query_offsets, dim=store.dim)
            if len(training) == 0:
                raise ValueError("refit needs at least one query, got none; queries=None learns from the old map's sample")

        from lemur_ann.learning import fit_encoder

        with progress_lines(progress) as lines:
            start = learned.encoder.feature_map if resume else None
            encoder, encoded = fit_encoder(
                store, live, training, changed, num_threads=threads, progress=lines, start=start, memory_limit=limit
            )
            learned = _with_candidates(encoder, encoded, changed, store, rows, self._ids, threads, lines)
        if len(self._store) != rows:
            raise RuntimeError(
                f"the index held {rows} rows when refit began and holds {len(self._store)} now; the old map stays: "
                "add documents before or after refit"
            )
        self._learned = learned
        return self

    def add(
        self,
        documents: Any,
        *,
        ids: Any = None,
        offsets: Any = None,
        directory: str | PathLike[str] | None = None,
        num_threads: int | None = None,
    ) -> LemurIndex:
        """Add documents, in any form that :meth:`fit` takes, with the same arguments; the learned map stays as it is.

        Documents join in the index's token dtype: float32 tokens are rounded where it holds float16. Metadata columns that
        either side lacks are null there.

        Returns:
            the index itself.

        Raises:
            ValueError, TypeError: bad documents, or an id that names a document already; nothing has changed.
            OSError: there is no such path, or no room for a stream's tokens; nothing has changed.
        """
        threads = validate.num_threads(num_threads)
        rows = len(self._store)
        batches, metadata = take_in(
            documents,
            ids=ids,
            offsets=offsets,
            directory=directory,
            store=self._store,
            id_map=self._ids,
            metadata=self._metadata,
        )
        if self._learned is not None and batches:
            new = TokenStore([(batch.tokens, batch.offsets) for batch in batches])
            candidates = self._learned.candidates
            vectors = self._learned.encoder.encode_documents(new, num_threads=threads)
            try:
                candidates.add(vectors, first=rows, num_threads=threads)
                _append(self._store, self._ids, batches, threads)
            except BaseException:  # out of memory, or the user's interrupt: no candidates without tokens
                candidates.delete(np.arange(rows, candidates.num_rows))
                raise
            with suppress(OSError):  # no room for a temporary file: new documents are scanned until there is
                candidates.finish()
        else:
            _append(self._store, self._ids, batches, threads)
        self._metadata = metadata
        return self

    def delete(self, ids: Any) -> int:
        """Delete documents by id (one, or a sequence); they never appear again, and their ids are free for new documents.

        Returns:
            how many were deleted.

        Raises:
            KeyError: an id names no document; nothing has changed.
        """
        removed = self._ids.remove(ids_of(ids))
        if self._learned is not None:
            self._learned.candidates.delete(removed)
        return len(removed)

    # Searching it

    @overload
    def search(
        self,
        queries: Sequence[Any],
        k: int = 10,
        *,
        num_candidates: int | None = None,
        ef_search: int | None = None,
        target_recall: float | None = None,
        exact: bool = False,
        num_threads: int | None = None,
    ) -> list[Hits]: ...

    @overload
    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        num_candidates: int | None = None,
        ef_search: int | None = None,
        target_recall: float | None = None,
        exact: bool = False,
        num_threads: int | None = None,
    ) -> Any: ...

    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        num_candidates: int | None = None,
        ef_search: int | None = None,
        target_recall: float | None = None,
        exact: bool = False,
        num_threads: int | None = None,
    ) -> Any:
        """The k documents of highest exact MaxSim score among the candidates.

        Args:
            queries: one query, a matrix (num_tokens, dim); or a batch: a sequence of matrices, an array of shape
                (num_queries, num_tokens, dim), or Arrow data with a column ``tokens``.
            k: how many to return, at least 1.
            num_candidates: documents to rerank; None means the index's own. Never fewer than k.
            ef_search: beam of the graph search, never below num_candidates; None means the index's own.
            target_recall: search as :meth:`tune` chose for this recall, or for a higher one, instead of the two above.
            exact: score every document instead: the built-in oracle.
            num_threads: None means all cores.

        Returns:
            :class:`Hits` for one query, a list of them for a batch. Fewer than k only where fewer documents exist.

        Raises:
            ValueError, TypeError: queries of a wrong shape, dtype or dim, without tokens or not finite; k below 1; a
                target_recall for which the index was not tuned.
        """
        learned = self._learned  # read once: a refit in another thread may replace it
        k = validate.positive_int(k, "k")
        count, beam = _search_options(learned, self._options, k, num_candidates, ef_search, target_recall)
        threads = validate.num_threads(num_threads)
        if exact:
            learned = None
        if is_single_query(queries):
            matrix = validate.token_matrix(queries, "query", dim=self.dim)
            row = validate.first_bad_row(matrix)
            if row is not None:
                raise ValueError(f"query has {validate.BAD_VALUE} in token {row}")
            batch = QueryBatch(matrix, np.array([0, len(matrix)], dtype=np.int64))
            return self._search(batch, k, count, beam, learned, threads)[0]
        return self._search(read_queries(queries, dim=self.dim), k, count, beam, learned, threads)

    def evaluate(
        self,
        queries: Any,
        k: int = 10,
        *,
        num_candidates: int | None = None,
        ef_search: int | None = None,
        target_recall: float | None = None,
        num_threads: int | None = None,
        progress: bool | None = None,
    ) -> Evaluation:
        """Recall@k against exact MaxSim, and the latency of single queries, on queries it did not learn from.

        Args:
            queries: a batch, as for :meth:`search`; at least one query.
            k, num_candidates, ef_search, target_recall, num_threads: as for :meth:`search`.
            progress: show a progress bar; None means when standard error is a terminal.
        """
        k = validate.positive_int(k, "k")
        count, beam = _search_options(self._learned, self._options, k, num_candidates, ef_search, target_recall)
        threads = validate.num_threads(num_threads)
        batch = read_queries([queries] if is_single_query(queries) else queries, dim=self.dim)
        if len(batch) == 0:
            raise ValueError("evaluate needs at least one query, got none")
        start = time.perf_counter()
        exact = self._search(batch, k, count, beam, None, threads)
        exact_ms = (time.perf_counter() - start) / len(batch) * 1e3
        found, latencies = [], []
        with progress_lines(progress) as lines:
            task = lines.task("queries", len(batch))
            matrices = [batch.tokens[batch.offsets[i] : batch.offsets[i + 1]] for i in range(len(batch))]
            self.search(matrices[0], k, num_candidates=count, ef_search=beam, num_threads=threads)  # warm up
            for matrix in matrices:
                start = time.perf_counter()
                found.append(self.search(matrix, k, num_candidates=count, ef_search=beam, num_threads=threads))
                latencies.append((time.perf_counter() - start) * 1e3)
                task.advance()
        return Evaluation(
            recall=metrics.recall([h.ids.tolist() for h in found], [h.ids.tolist() for h in exact]),
            k=k,
            num_candidates=count,
            ef_search=beam,
            num_threads=threads,
            num_queries=len(batch),
            num_documents=len(self),
            latency_mean_ms=float(np.mean(latencies)),
            latency_p50_ms=float(np.percentile(latencies, 50)),
            latency_p95_ms=float(np.percentile(latencies, 95)),
            exact_latency_mean_ms=exact_ms,
        )

    def tune(
        self,
        queries: Any,
        target_recall: float = 0.95,
        k: int = 10,
        *,
        seed: int = 0,
        num_threads: int | None = None,
        progress: bool | None = None,
    ) -> Tuned:
        """Find the quickest search of a wanted recall; :meth:`search` then takes ``target_recall``.

        A random half of the queries chooses num_candidates and ef_search, by the exact answers and by the time that searches
        take here and now; the other half says what recall to expect. The choice is kept, and saved, with the learned map.

        Args:
            queries: a batch, as for :meth:`search`, of queries like those to come that the index did not learn from; some
                hundred for a narrow interval.
            target_recall: share of the exact MaxSim top k to find, above 0 and at most 1.
            k, num_threads: as for :meth:`search`; tune with the threads to search with.
            seed: for the halves.
            progress: show a progress bar; None means when standard error is a terminal.

        Returns:
            :class:`~lemur_ann.tuning.Tuned`; print it.

        Raises:
            NotFitted: before fit.
            ValueError, TypeError: fewer than two queries, bad ones, or a bad target.
        """
        learned = self._fitted()
        k = validate.positive_int(k, "k")
        target = validate.share(target_recall, "target_recall")
        threads = validate.num_threads(num_threads)
        random = np.random.default_rng(validate.integer(seed, "seed", least=0))
        batch = read_queries([queries] if is_single_query(queries) else queries, dim=self.dim)
        if len(batch) < 2:
            raise ValueError(f"tune needs at least two queries, to choose on and to measure on, got {len(batch)}")
        if len(self) == 0:
            raise ValueError("tune needs at least one document, and the index holds none")
        tokens = np.ascontiguousarray(batch.tokens, dtype=np.float32)
        with progress_lines(progress) as lines:
            task = lines.task("exact answers", len(batch))
            exact = []
            for scores in self._exact_scores(tokens, batch.offsets, threads):
                exact.append(_core.top_k(scores, k))
                task.advance()
            tuner = Tuner(learned.encoder, learned.candidates, self._store, QueryBatch(tokens, batch.offsets), exact, threads)
            order = random.permutation(len(batch))
            chosen_on, measured_on = order[: len(order) // 2], order[len(order) // 2 :]
            count, beam = tuner.choose(chosen_on, target, k, len(self), lines.task("settings tried", None))
        recall, low, high = tuner.recall(measured_on, count, beam) or (1.0, 0.0, 1.0)
        tuned = Tuned(target, k, count, beam, recall, (low, high), len(measured_on))
        others = tuple(t for t in learned.tuned if (t.target_recall, t.k) != (target, k))
        self._learned = replace(learned, tuned=(*others, tuned))
        return tuned

    def health(
        self,
        queries: Any = None,
        *,
        k: int = 10,
        num_candidates: int | None = None,
        ef_search: int | None = None,
        num_documents: int = 1000,
        num_queries: int = 200,
        seed: int = 0,
        num_threads: int | None = None,
        progress: bool | None = None,
    ) -> Health:
        """How well the learned map still fits: rank correlation and candidate recall, for recent documents apart.

        Recent documents are those added since the map was learned. It costs about as much as ``num_queries`` exact searches.

        Args:
            queries: a batch, as for :meth:`search`, of queries like those of today that the index did not learn from. None
                takes the query tokens that the map kept, in random groups of 16: the figures are optimistic then (see
                :class:`Health`), and know nothing of queries that have changed.
            k, num_candidates, ef_search, num_threads: as for :meth:`search`.
            num_documents: documents sampled for the rank correlation, at most: of all, of the older, and of the recent ones.
            num_queries: queries sampled, at most.
            seed: for the samples.
            progress: show a progress bar; None means when standard error is a terminal.

        Returns:
            :class:`Health`; print it, or read its ``verdict``.

        Raises:
            NotFitted: before fit.
            ValueError, TypeError: bad queries, none at all, or no documents.
        """
        learned = self._fitted()
        k = validate.positive_int(k, "k")
        count, beam = _search_options(learned, learned.options, k, num_candidates, ef_search)
        num_documents = validate.integer(num_documents, "num_documents", least=2)
        num_queries = validate.positive_int(num_queries, "num_queries")
        random = np.random.default_rng(validate.integer(seed, "seed", least=0))
        threads = validate.num_threads(num_threads)
        live = _live(self._store, self._ids)
        if len(live) == 0:
            raise ValueError("health needs at least one document, and the index holds none")
        if queries is None:
            batch = own_queries(learned.encoder.targets.sample_tokens, num_queries, random)
        else:
            batch = read_queries([queries] if is_single_query(queries) else queries, dim=self.dim)
            if len(batch) == 0:
                raise ValueError("health needs at least one query, got none; queries=None takes the map's own sample")
            batch = batch.sample(num_queries, random)
        tokens = np.ascontiguousarray(batch.tokens, dtype=np.float32)
        with progress_lines(progress) as lines:
            return measure(
                learned.encoder,
                learned.candidates,
                QueryBatch(tokens, batch.offsets),
                self._exact_scores(tokens, batch.offsets, threads),
                live,
                learned.num_rows,
                k=k,
                kind=learned.options.candidates,
                num_candidates=count,
                ef_search=beam,
                num_documents=num_documents,
                own_sample=queries is None,
                random=random,
                num_threads=threads,
                task=lines.task("queries", len(batch)),
            )

    def _search(
        self, queries: QueryBatch, k: int, num_candidates: int, ef_search: int, learned: _Learned | None, num_threads: int
    ) -> list[Hits]:
        """The hits of each query; by exact MaxSim over all documents where ``learned`` is None."""
        tokens = np.ascontiguousarray(queries.tokens, dtype=np.float32)
        if len(self) == 0 or len(queries) == 0:
            return [self._hits(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in range(len(queries))]
        if learned is None or num_candidates >= len(self):
            exact = self._exact_scores(tokens, queries.offsets, num_threads)
            return [self._hits(order := _core.top_k(row, k), row[order]) for row in exact]
        if learned.options.device != "cpu":
            found = self._on_device(learned).search(QueryBatch(tokens, queries.offsets), k, num_candidates)
            return [self._hits(documents, scores) for documents, scores in found]
        encoded = learned.encoder.encode_queries(tokens, queries.offsets, num_threads=num_threads)
        candidates = learned.candidates.search(encoded, num_candidates, ef_search, num_threads=num_threads)
        candidates = [np.sort(found) for found in candidates]  # read tokens in the order they lie
        bounds = to_offsets([len(found) for found in candidates])
        documents, scores, counts = _core.rerank(
            tokens, queries.offsets, self._store.documents, np.concatenate(candidates), bounds, k, num_threads
        )
        return [self._hits(documents[i, :count], scores[i, :count]) for i, count in enumerate(counts.tolist())]

    def _on_device(self, learned: _Learned) -> DeviceSearch:
        """The documents on the device, copied there when a search first needs them and again after every change."""
        from lemur_ann.device_search import DeviceSearch

        state = (len(self._store), len(self._ids.deleted))
        known = self._device_search
        if known is None or known[0] is not learned or known[1] != state:
            live = _live(self._store, self._ids)
            search = DeviceSearch(learned.encoder, learned.candidates.take(live), self._store, live, learned.options.device)
            self._device_search = known = (learned, state, search)
        return known[2]

    def _exact_scores(
        self, tokens: npt.NDArray[np.float32], offsets: npt.NDArray[np.int64], num_threads: int
    ) -> Iterator[npt.NDArray[np.float32]]:
        """For each query float32 (num_rows,): the score of every document, -inf for deleted ones."""
        deleted = self._ids.deleted
        step = max(SCORES_PER_BLOCK // len(self._store), 1)
        for begin in range(0, len(offsets) - 1, step):
            part = offsets[begin : begin + step + 1]
            scores = _core.scores(tokens, part, self._store.documents, num_threads)
            scores[:, deleted] = -np.inf
            yield from scores

    def _hits(self, indices: npt.NDArray[np.int64], scores: npt.NDArray[np.float32]) -> Hits:
        return Hits(self._ids.take(indices), scores)

    # Keeping it

    def save(self, path: str | PathLike[str]) -> None:
        """Save as a directory; an index already there is replaced once the new one is whole.

        Raises:
            FileExistsError: something other than an index is there.
        """
        learned = self._learned

        def write_files(folder: Path) -> None:
            storage.write_documents(folder / storage.DOCUMENTS, self._ids.array, self._ids.deleted, self._metadata)
            self._store.write(folder / storage.TOKENS)
            if learned is not None:
                storage.write_arrays(folder / storage.LEARNED, learned.encoder.arrays())
                learned.candidates.save(folder)

        manifest = {
            "num_documents": len(self),
            "num_rows": len(self._store),
            "num_tokens": self._store.num_tokens,
            "dim": self._store.dim,
            "token_dtype": None if self._store.dtype is None else str(self._store.dtype),
            "options": asdict(self._options if learned is None else learned.options),
            "feature_map": None if learned is None else learned.encoder.feature_weights.config,
            "training": None if learned is None else learned.encoder.training,
            "tuned": [] if learned is None else [asdict(tuned) for tuned in learned.tuned],
        }
        storage.write_directory(Path(path), manifest, write_files)

    @classmethod
    def load(cls, path: str | PathLike[str], *, device: str | None = None, verify: bool = True) -> LemurIndex:
        """Open a saved index; tokens stay on disk, memory-mapped.

        Args:
            path: the directory.
            device: where to compute features; None means the device it was made with.
            verify: check the checksum of every file. False leaves out the token file, whose size is checked all the same.

        Raises:
            FileNotFoundError: there is no such directory.
            CorruptIndex: a file is missing, truncated, altered or of a newer format.
        """
        folder = Path(path)
        manifest = storage.read_manifest(folder)
        storage.check_files(folder, manifest, verify=verify)
        try:
            options = manifest["options"]
            if manifest["format_version"] == 1:  # which learned from float32 targets
                options = {**options, "target_precision": "float32"}
            if manifest["format_version"] <= 2:
                options = {**options, "token_codes": None}
            index = cls(**options)
        except (TypeError, ValueError) as error:
            raise CorruptIndex(f"{folder} has options this version cannot read: {error}") from error
        if device is not None:
            index._options = replace(index._options, device=device)
        ids, deleted, metadata = storage.read_documents(folder / storage.DOCUMENTS)
        index._store = TokenStore.open(folder / storage.TOKENS, coded=index._store.coded)
        if len(ids) != len(index._store):
            raise CorruptIndex(f"{folder} has {len(ids)} ids and tokens of {len(index._store)} documents")
        index._ids = IdMap(ids, deleted)
        index._metadata = metadata
        if manifest["feature_map"] is not None:
            from lemur_ann.encoder import LemurEncoder

            arrays = storage.read_arrays(folder / storage.LEARNED)
            training = {"num_rows": len(index._store), **manifest["training"]}  # older indexes have no num_rows
            encoder = LemurEncoder.from_arrays(arrays, manifest["feature_map"], training, index._options)
            candidates = kind_of(index._options.candidates).load(folder, encoder.dim, deleted)
            if candidates.num_rows < len(index._store):
                raise CorruptIndex(f"{folder} has candidates for {candidates.num_rows} of {len(index._store)} documents")
            candidates.delete(np.arange(len(index._store), candidates.num_rows))
            tuned = (Tuned(**{**t, "recall_interval": tuple(t["recall_interval"])}) for t in manifest.get("tuned", ()))
            index._learned = _Learned(index._options, encoder, candidates, tuple(tuned))
        return index


def _live(store: TokenStore, id_map: IdMap) -> npt.NDArray[np.int64]:
    """Document indices of the documents that are not deleted, ascending."""
    return np.setdiff1d(np.arange(len(store)), id_map.deleted)


def _with_candidates(
    encoder: LemurEncoder,
    encoded: Encoded,
    options: Options,
    store: TokenStore,
    num_rows: int,
    id_map: IdMap,
    num_threads: int,
    progress: Progress,
    directory: str | None = None,
) -> _Learned:
    """A new candidate index of the first ``num_rows`` documents, for the map that was just learned."""
    release()  # what learning held, before the graph takes its place
    candidates = kind_of(options.candidates).create(encoder.dim, asdict(options), num_rows, directory)
    task = progress.task(f"{options.candidates} index", num_rows)
    start = time.perf_counter()
    for block, vectors in encoder.encode_blocks(store, np.arange(num_rows), num_threads=num_threads, known=encoded):
        candidates.add(vectors, first=block.start, num_threads=num_threads)  # deleted documents keep their row
        task.advance(len(vectors))
    candidates.delete(id_map.deleted)
    candidates.finish()
    encoder.training["num_rows"] = num_rows
    encoder.training["seconds"]["candidates"] = time.perf_counter() - start
    return _Learned(options, encoder, candidates)


def _search_options(
    learned: _Learned | None,
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


def _check_resume(config: dict[str, Any], options: Options) -> None:
    if options.epochs == 0 or config["kind"] != "trained":
        raise ValueError("resume=True trains on from learned features: it needs epochs above 0, before and now")
    if config["num_features"] != options.num_features:
        raise ValueError(f"resume=True needs the same num_features, {config['num_features']}, got {options.num_features}")


def _texts(metadata: pa.Table | None, column: str, indices: npt.NDArray[np.int64]) -> list[str | None]:
    names = [] if metadata is None else metadata.column_names
    if metadata is None or column not in names:
        raise ValueError(f"encode_query needs the documents' texts in a column {column!r}; they have the columns {names}")
    values = metadata.column(column).take(pa.array(indices))
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise TypeError(f"column {column!r} must hold strings for encode_query, got {values.type}")
    texts: list[str | None] = values.to_pylist()
    return texts


def _append(store: TokenStore, id_map: IdMap, batches: list[DocumentBatch], num_threads: int) -> None:
    """Put checked batches into a store and an id map."""
    for batch in batches:
        assert batch.ids is not None
        store.append(batch.tokens, batch.offsets, batch.codes, num_threads=num_threads)
        id_map.append(batch.ids)
