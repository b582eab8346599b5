"""LemurIndex: fit, add, search, delete, save, load, open. The story of the library on one page."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lemur_ann import _core
from lemur_ann import _validate as validate
from lemur_ann.candidates import kind_of
from lemur_ann.documents.inputs import QueryBatch, ids_of, is_single_query, read_queries, to_offsets
from lemur_ann.documents.intake import take_in
from lemur_ann.documents.rows import Rows, RowSet
from lemur_ann.documents.sources import opened
from lemur_ann.documents.tokens import TokenStore
from lemur_ann.errors import NotFitted
from lemur_ann.events import event, log, timed
from lemur_ann.hits import Hits
from lemur_ann.insight import metrics
from lemur_ann.insight.evaluation import Evaluation
from lemur_ann.insight.health import Health, measure, own_queries
from lemur_ann.insight.stats import Stats, measured
from lemur_ann.insight.tuning import Tuner
from lemur_ann.learning.memory import parse_bytes, release
from lemur_ann.notebook import facts
from lemur_ann.options import Options
from lemur_ann.progress import Progress, Show
from lemur_ann.progress import progress as progress_lines
from lemur_ann.saved.directory import Directory
from lemur_ann.saved.directory import save as save_directory
from lemur_ann.saved.versions import read_version
from lemur_ann.searching.filters import excluded_by
from lemur_ann.searching.search import exact_scores, search, search_options
from lemur_ann.searching.settings import Tuned
from lemur_ann.searching.snapshot import Learned, Snapshot, check

if TYPE_CHECKING:
    from lemur_ann.encoder import Encoded, LemurEncoder
    from lemur_ann.insight.explanation import Case, Explanation
    from lemur_ann.insight.miss import Miss
    from lemur_ann.learning.features import FeatureMap
    from lemur_ann.searching.device import DeviceSearch

ROWS_PER_BATCH = 1024  # of a stream that goes out
MIN_DELETED = 1024  # fewer deleted documents never make an index compact itself


class LemurIndex:
    """A multi-vector index: learned weights in a graph find candidates, exact MaxSim reranks them.

    Documents and queries are matrices of token embeddings, (num_tokens, dim), float32 or float16. Before :meth:`fit` the index
    answers by exact MaxSim. Any number of threads may search while others change the index: a search sees it as it was at one
    moment, and changes wait for each other.

    An index made by this call, or by :meth:`load`, is in memory until :meth:`save`. One made by :meth:`open` is on disk, and
    every change is there for good when the call that made it returns.

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
        candidates: "hnsw" for a graph, "exact" for a scan of all vectors; or "faiss", "usearch" or "svs" for an index of
            that library, where it is installed. Theirs are made anew when many documents have come.
        candidates_options: what such a library is to be given, see its module in ``lemur_ann.candidates``; plain values, which
            are saved with the index.
        M, ef_construction: the graph's, as in hnswlib, which makes it. Searches walk links of their own, up to 4 M from each
            document, chosen among what a search with a beam of 3 ef_construction finds in hnswlib's.
        num_candidates: documents reranked per query, unless a search says otherwise.
        ef_search: beam of the graph search, widened to num_candidates where that is more; None means num_candidates. A beam
            wider than what the rerank reads is the cheaper way to a high recall.
        compact_at: share of deleted documents past which the index compacts itself, in a thread of its own (see
            :meth:`compact`); None leaves that to you.
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
        candidates_options: dict[str, Any] | None = None,
        M: int = 16,
        ef_construction: int = 100,
        num_candidates: int = 250,
        ef_search: int | None = 300,
        compact_at: float | None = 0.3,
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
            candidates_options=candidates_options,
            M=M,
            ef_construction=ef_construction,
            num_candidates=num_candidates,
            ef_search=ef_search,
            compact_at=compact_at,
            device=device,
            seed=seed,
        )
        self._set_up(Snapshot.empty(coded=token_codes is not None))

    def _set_up(self, snapshot: Snapshot, directory: Directory | None = None) -> None:
        self._snapshot = snapshot  # what a search reads, once
        self._version = 0
        self._directory = directory
        self._scratch: str | None = None  # a folder that the caller named for temporary files
        self._saved: tuple[Path, Snapshot] | None = None  # where this one can be loaded from
        self._writing = threading.RLock()  # held by one change at a time
        self._rebuilding = threading.Lock()  # and by what takes long and then joins the changes: fit, refit, compact
        self._compaction: threading.Thread | None = None
        self._is_closing = False
        self._device_search: tuple[Snapshot, DeviceSearch] | None = None
        self._last_filter: tuple[Snapshot, pc.Expression, RowSet] | None = None

    # What it holds

    def __len__(self) -> int:
        """The number of documents, without deleted ones."""
        return self._snapshot.num_documents

    def __contains__(self, doc_id: object) -> bool:
        return doc_id in self._snapshot.ids

    def __iter__(self) -> Iterator[Any]:
        """The ids of all documents, in the order of :meth:`ids`."""
        return iter(self.ids().to_pylist())

    def __repr__(self) -> str:
        state = f"{self.options.candidates}, fitted" if self.is_fitted else "not fitted: exact search"
        place = "" if self._directory is None else f", open on {self._directory.path}"
        return f"<LemurIndex of {len(self):,} documents, dim {self.dim}, {state}{place}>"

    def _repr_html_(self) -> str:
        options, place = self.options, "memory" if self._directory is None else str(self._directory.path)
        about = {
            "documents": f"{len(self):,}",
            "tokens": f"{self.num_tokens:,}",
            "dim": "none yet" if self.dim is None else str(self.dim),
            "map": f"{self.encoder.dim} numbers a document" if self.is_fitted else "not learned: exact search",
            "candidates": f"{options.num_candidates} by {options.candidates}",
            "place": place,
        }
        return facts("LemurIndex", about | {f"tuned for {t.target_recall:g} at {t.k}": f"{t.recall:.3f}" for t in self.tuned})

    @property
    def options(self) -> Options:
        """How it learns and searches."""
        learned = self._snapshot.learned
        return self._options if learned is None else learned.options

    @property
    def is_fitted(self) -> bool:
        """Whether a learned map is there; if not, searches are exact."""
        return self._snapshot.learned is not None

    @property
    def dim(self) -> int | None:
        """Dimension of tokens; None before the first document, unless a map was given."""
        return self._snapshot.dim

    @property
    def num_tokens(self) -> int:
        """Stored tokens, those of deleted documents included until they are compacted away."""
        return self._snapshot.store.num_tokens

    @property
    def version(self) -> int:
        """A number that grows with every change of this object: what was read of it after the number is not older than that.

        It tells whether something made of the documents, such as a mask for a filter, is still right. It starts at 0 with the
        object, and says nothing of what other processes do before :meth:`refresh`.
        """
        return self._version

    @property
    def encoder(self) -> LemurEncoder:
        """The learned map.

        Raises:
            NotFitted: before fit.
        """
        return _fitted(self._snapshot).encoder

    @property
    def tuned(self) -> tuple[Tuned, ...]:
        """What :meth:`tune` chose for the learned map."""
        learned = self._snapshot.learned
        return () if learned is None else learned.tuned

    def ids(self) -> pa.Array:
        """The ids of all documents, int64 or large_string: oldest first, a replaced one where its replacement came."""
        snapshot = self._snapshot
        return snapshot.ids.column.take_array(snapshot.live)

    def get(self, ids: Any) -> pa.Table:
        """Some documents as they are stored: columns ``id``, ``tokens`` and the metadata, a row for each id, in their order.

        What it returns may be added to another index as it is.

        Raises:
            KeyError: an id names no document.
        """
        snapshot = self._snapshot
        rows = snapshot.ids.find(ids_of(ids))
        table = _metadata(snapshot, rows)
        return table.add_column(1, "tokens", snapshot.store.to_arrow(rows))

    def metadata(self, ids: Any) -> pa.Table:
        """The column ``id`` and all metadata columns of some documents, one row for each id, in their order.

        Raises:
            KeyError: an id names no document.
        """
        snapshot = self._snapshot
        return _metadata(snapshot, snapshot.ids.find(ids_of(ids)))

    def to_table(self, hits: Hits | Sequence[Hits], columns: Sequence[str] | None = None) -> pa.Table:
        """What a search found, with metadata, as one Arrow table, which DuckDB, Polars and pandas take as it is.

        Args:
            hits: of one query, or a list of those of a batch.
            columns: names of the metadata columns to take; None means all, [] none.

        Returns:
            a row for each hit, in their order, with ``query`` (int64, its number in the batch, from 0; only for a list),
            ``rank`` (int64, from 1), ``id``, ``score`` (float32), and the metadata columns.

        Raises:
            KeyError: a document has been deleted since, or there is no such column.
            ValueError: a metadata column to take has the name of one of the others.
        """
        snapshot = self._snapshot
        known = [] if snapshot.metadata is None else snapshot.metadata.column_names
        for name in known if columns is None else columns:
            if name not in known:
                raise KeyError(f"no metadata column {name!r}; there are {known}")
            if name in ("query", "rank", "score"):
                raise ValueError(f"metadata column {name!r} has the name of a column of the hits; columns= can leave it out")
        batch = [hits] if isinstance(hits, Hits) else list(hits)
        if not all(isinstance(one, Hits) for one in batch):
            raise TypeError(f"hits must be Hits or a sequence of them, got {type(hits).__name__}")
        rows = snapshot.ids.find(ids_of([doc_id for one in batch for doc_id in one.ids.tolist()]))
        offsets = to_offsets([len(one) for one in batch])
        query = np.repeat(np.arange(len(batch)), np.diff(offsets))
        scores = np.concatenate([np.empty(0, np.float32), *(one.scores for one in batch)])
        table = _metadata(snapshot, rows, columns).add_column(1, "score", pa.array(scores))
        table = table.add_column(0, "rank", pa.array(np.arange(1, len(rows) + 1) - offsets[query]))
        return table if isinstance(hits, Hits) else table.add_column(0, "query", pa.array(query))

    def to_arrow(self, *, tokens: bool = True, vectors: bool = True) -> pa.RecordBatchReader:
        """All documents as a stream, for another index or another engine, in the order of :meth:`ids`.

        It is of one moment, whatever changes while it is read. With tokens and without vectors, it goes into ``fit`` or ``add``
        as it is; with vectors too, these become a metadata column there.

        Args:
            tokens: with the column ``tokens``, large_list<fixed_size_list<float32 or float16>[dim]>.
            vectors: with the column ``vector``, fixed_size_list<float32>[encoder.dim]: what the graph has, see
                :class:`~lemur_ann.LemurEncoder`; only where the index has learned its map.

        Returns:
            a reader of ``id``, ``vector``, ``tokens`` and the metadata columns, 1,024 documents a batch.

        Raises:
            ValueError: a metadata column is called ``vector``, and vectors are asked for.
        """
        snapshot = self._snapshot
        learned = snapshot.learned if vectors else None
        if learned is not None and snapshot.metadata is not None and "vector" in snapshot.metadata.column_names:
            raise ValueError("a metadata column is called 'vector'; vectors=False leaves out those that were learned")

        def block(rows: Rows) -> pa.RecordBatch:
            table = _metadata(snapshot, rows)
            if tokens:
                table = table.add_column(1, "tokens", snapshot.store.to_arrow(rows))
            if learned is not None:
                flat = pa.array(np.ascontiguousarray(learned.candidates.take(rows)).reshape(-1))
                table = table.add_column(1, "vector", pa.FixedSizeListArray.from_arrays(flat, learned.encoder.dim))
            return pa.record_batch([column.combine_chunks() for column in table.columns], schema=table.schema)

        rows = snapshot.live
        blocks = (block(rows[begin : begin + ROWS_PER_BATCH]) for begin in range(0, len(rows), ROWS_PER_BATCH))
        return pa.RecordBatchReader.from_batches(block(rows[:0]).schema, blocks)

    def stats(self) -> Stats:
        """How many documents, and the memory they take, by part; see :class:`~lemur_ann.insight.Stats`."""
        return measured(self._snapshot)

    def check(self) -> None:
        """Read all tokens, ids and links, and compare what belongs together: what checksums cannot tell.

        Raises:
            CorruptIndex: what does not fit.
        """
        check(self._snapshot)

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
        encoder: LemurEncoder | None = None,
        directory: str | PathLike[str] | None = None,
        memory_limit: int | str | None = None,
        num_threads: int | None = None,
        progress: Show = None,
    ) -> LemurIndex:
        """Learn the map for these documents and queries, and index the documents.

        Args:
            documents: Arrow data (table, record batches, reader, dataset, or anything with the Arrow PyCapsule interface) with
                a column ``tokens``, list<fixed_size_list<float32 or float16>[dim]>, an optional column ``id`` (string or
                integer), and other columns kept as metadata; the same as a DuckDB relation, a Polars or pandas frame, or a
                Hugging Face or Lance dataset; the path of a Parquet file or of a folder of them; a sequence or
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
            encoder: a map learned elsewhere, in the place of queries: nothing is learned, the documents are encoded by it and
                indexed. It fits documents and queries like those it was learned from. An index without documents may have
                one too, for those that :meth:`add` brings. What options of the index say of learning gives way to it.
            directory: the folder for the temporary file of a stream's tokens, on a disk with room for all of them; None means
                the index's own, if it is open on one, else that of Python's ``tempfile``, which on some systems is in memory.
                Compactions use it too. The file has no name there, and its space is
                free once the index is gone.
            memory_limit: bytes, or a string such as "3GB", that learning should stay below, the tokens themselves not counted:
                smaller blocks, training targets in a temporary file, and fewer documents for distillation. None means the usual
                sizes, about 1.8 GB; docs/architecture.md says of what.
            num_threads: None means all cores.
            progress: True shows bars, None does where standard error is a terminal; or a function that is called with (stage,
                steps done, steps in all or None), and may raise to stop the job.

        Returns:
            the index itself.

        Raises:
            ValueError, TypeError: bad documents, queries or ids, and nothing has changed.
            OSError: there is no such path, or no room for a stream's tokens; nothing has changed.
        """
        threads, limit = validate.num_threads(num_threads), parse_bytes(memory_limit)
        self._check_writable()
        if sum(given is not None for given in (queries, encode_query, encoder)) > 1:
            raise TypeError("encode_query= or encoder= takes the place of queries; pass one of them")
        if encoder is not None:
            _check_map(encoder, self._snapshot.store.dim)
        if documents is None and (ids is not None or offsets is not None):
            raise TypeError("ids= and offsets= go with documents, and documents is None")
        training = None if queries is None else read_queries(opened(queries), offsets=query_offsets)
        directory = self._temporary(directory)
        with self._rebuilding, progress_lines(progress) as lines, self._timed("fit"):
            if documents is None:
                base = self._snapshot
                if encoder is not None:
                    self._adopt(base, self._given(base, encoder, threads, lines, directory), threads)
                    return self
                encoder, encoded = self._learn(
                    base,
                    self.options,
                    training,
                    threads,
                    lines,
                    limit,
                    directory,
                    encode_query=encode_query,
                    text_column=text_column,
                )
                del queries, training  # the graph takes their place in memory
                learned = self._indexed(base, self.options, encoder, encoded, threads, lines, directory)
                self._adopt(base, learned, threads)
                return self
            with self._writing:
                if len(self):
                    raise ValueError(
                        f"the index holds {len(self)} documents already; add(documents) brings more, and "
                        "fit(queries=...) without documents learns anew from those it holds"
                    )
                empty = Snapshot.empty(coded=self._snapshot.store.coded)
                batches, metadata = take_in(
                    documents,
                    ids=ids,
                    offsets=offsets,
                    directory=directory,
                    store=empty.store,
                    dim=None if encoder is None else encoder.token_dim,
                    id_map=empty.ids,
                    metadata=None,
                    progress=lines,
                )
                taken = empty.with_documents(batches, metadata, _NO_ROWS, threads, lines)
                if encoder is not None:
                    learned = self._given(taken, encoder, threads, lines, directory)
                    self._publish(replace(taken, learned=learned))
                    return self
                encoder, encoded = self._learn(
                    taken,
                    self.options,
                    training,
                    threads,
                    lines,
                    limit,
                    directory,
                    encode_query=encode_query,
                    text_column=text_column,
                )
                del queries, training
                learned = self._indexed(taken, self.options, encoder, encoded, threads, lines, directory)
                self._publish(replace(taken, learned=learned))
        return self

    def _learn(
        self,
        base: Snapshot,
        options: Options,
        training: QueryBatch | None,
        num_threads: int,
        progress: Progress,
        memory_limit: int | None,
        directory: str | None,
        encode_query: Callable[[list[str]], Any] | None = None,
        text_column: str = "text",
        start: FeatureMap | None = None,
    ) -> tuple[LemurEncoder, Encoded]:
        """A map for the documents of a snapshot."""
        live, store = base.live, base.store
        if len(live) == 0:
            raise ValueError("fit needs at least one document, got none")
        if training is not None and len(training) and training.tokens.shape[1] != store.dim:
            raise ValueError(f"queries have dim {training.tokens.shape[1]}, documents have dim {store.dim}")
        texts = [] if encode_query is None else _texts(base.metadata, text_column, live)

        from lemur_ann.learning.fitting import fit_encoder

        return fit_encoder(
            store,
            live,
            training,
            options,
            num_threads=num_threads,
            progress=progress,
            encode_query=encode_query,
            texts=texts,
            start=start,
            memory_limit=memory_limit,
            directory=directory,
        )

    def _given(
        self, base: Snapshot, encoder: LemurEncoder, num_threads: int, progress: Progress, directory: str | None
    ) -> Learned:
        """All rows of a snapshot, for a map learned elsewhere."""
        options = replace(
            self.options,
            num_features=len(encoder.query_map),
            num_sample_tokens=len(encoder.targets.sample_tokens),
            rank=encoder.dim - 1,
            target_precision=encoder.targets.precision,
        )
        return self._indexed(base, options, encoder.copy(options), None, num_threads, progress, directory)

    def _indexed(
        self,
        base: Snapshot,
        options: Options,
        encoder: LemurEncoder,
        encoded: Encoded | None,
        num_threads: int,
        progress: Progress,
        directory: str | None,
    ) -> Learned:
        """Candidates of all rows of a snapshot; ``encoded``: those of them that learning has encoded already."""
        release()  # what learning held, before the graph takes its place
        begin = time.perf_counter()
        builder = kind_of(options.candidates).builder(encoder.dim, asdict(options), base.num_rows, directory)
        task = progress.task(f"{options.candidates} index", base.num_rows)
        every = np.arange(base.num_rows)  # deleted documents keep their row
        for _, vectors in encoder.encode_blocks(base.store, every, num_threads=num_threads, known=encoded):
            builder.add(vectors, num_threads=num_threads)
            task.advance(len(vectors))
        candidates = builder.finish()
        encoder.training["seconds"]["candidates"] = time.perf_counter() - begin
        return Learned(options, encoder, candidates, base.num_rows)

    def _adopt(self, base: Snapshot, learned: Learned, num_threads: int) -> None:
        """Let searches use what was learned of ``base``, with candidates of the documents that came since."""
        with self._writing:
            now = self._snapshot
            later = TokenStore(now.store.part(base.num_rows, now.num_rows), coded=now.store.coded)
            if len(later):
                vectors = learned.encoder.encode_store(later, num_threads=num_threads)
                learned = replace(learned, candidates=learned.candidates.extended(vectors, num_threads=num_threads))
            self._publish(replace(now, learned=learned))

    def _publish(self, snapshot: Snapshot) -> None:
        """Let searches see this one; on disk first, where the index is open on a directory."""
        if self._directory is not None:
            try:
                snapshot = self._directory.commit(snapshot, self._options)
            except BaseException:
                self._show(self._directory.snapshot)  # what is on disk: an interrupt may have come after the fact
                raise
        _ = snapshot.store.documents  # made now rather than by the next search
        self._show(snapshot)

    def _show(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._version += 1  # last: who has read this number reads nothing older than it

    @contextmanager
    def _timed(self, name: str, **values: Any) -> Iterator[dict[str, Any]]:
        """A log record of what the block did to the index, once it is done."""
        with timed(name, **values) as told:
            yield told
            told["num_documents"] = len(self)

    def _check_writable(self) -> None:
        if self._directory is not None:
            self._directory.check_writable()

    def _temporary(self, directory: str | PathLike[str] | None) -> str | None:
        """The folder for temporary files: the one given, that of the index, or the last one given."""
        if directory is not None:
            self._scratch = validate.directory(directory)
            return self._scratch
        return self._scratch if self._directory is None else str(self._directory.path)

    def refit(
        self,
        queries: Any = None,
        *,
        query_offsets: Any = None,
        resume: bool = False,
        encoder: LemurEncoder | None = None,
        memory_limit: int | str | None = None,
        num_threads: int | None = None,
        progress: Show = None,
        **options: Any,
    ) -> LemurIndex:
        """Learn anew from the stored documents; the old map answers searches until the new one is whole.

        Searches and changes in other threads go on meanwhile, and each search uses one map or the other, never parts of both;
        the new one has what was added in the meantime. If learning fails or is interrupted, the index is as it was; only an
        interrupt during training ends that early and goes on, with a warning, as in :meth:`fit`. The documents and their ids
        stay as they are. Both maps are in memory for a while. :meth:`health` says when it is time.

        Args:
            queries: token embeddings of training queries, as for :meth:`fit`. None learns from the query tokens the old map
                kept (at most its num_sample_tokens), each as a query of its own. They know nothing of queries that have
                changed and are a little worse than whole queries, but far better than the document tokens that fit() without
                queries learns from.
            query_offsets: int (num_queries + 1,), with a flat matrix only.
            resume: train on from the features of the old map, instead of from random ones: after an interrupted fit, or for
                documents and queries that have changed a little. It needs the same num_features, and epochs above 0.
            encoder: a map learned elsewhere, as for :meth:`fit`; nothing is learned.
            memory_limit, num_threads, progress: as for :meth:`fit`.
            **options: options of the index to change, as :class:`LemurIndex` takes them, such as num_features, epochs or rank.

        Returns:
            the index itself.

        Raises:
            NotFitted: before fit.
            TypeError: an option that there is not.
            ValueError: bad queries or values of options, or no documents.
        """
        threads, limit = validate.num_threads(num_threads), parse_bytes(memory_limit)
        self._check_writable()
        with self._rebuilding, self._timed("refit"):
            base = self._snapshot
            old = _fitted(base)
            known = [field.name for field in fields(Options) if field.name != "token_codes"]  # which the store has or has not
            unknown = [name for name in options if name not in known]
            if unknown:
                raise TypeError(f"refit got unknown options {', '.join(unknown)}; expected any of {', '.join(known)}")
            changed = replace(old.options, **options)
            if encoder is not None:
                if queries is not None or resume or options:
                    raise TypeError("encoder= takes the place of learning: no queries, resume or options beside it")
                _check_map(encoder, base.store.dim)
                with progress_lines(progress) as lines:
                    learned = self._given(base, encoder, threads, lines, self._temporary(None))
                self._adopt(base, learned, threads)
                return self
            if resume:
                _check_resume(old.encoder.feature_weights.config, changed)
            if base.num_documents == 0:
                raise ValueError("refit needs at least one document, and the index holds none")
            if queries is None:
                if query_offsets is not None:
                    raise TypeError("query_offsets= goes with queries, and queries is None")
                sample = np.array(old.encoder.targets.sample_tokens)  # torch wants what could be written
                training = QueryBatch(sample, np.arange(len(sample) + 1, dtype=np.int64))
            else:
                training = read_queries(opened(queries), offsets=query_offsets, dim=base.store.dim)
                if len(training) == 0:
                    raise ValueError("refit needs at least one query, got none; queries=None learns from the old map's sample")
            with progress_lines(progress) as lines:
                start = old.encoder.feature_map if resume else None
                directory = self._temporary(None)
                encoder, encoded = self._learn(base, changed, training, threads, lines, limit, directory, start=start)
                del queries, training
                learned = self._indexed(base, changed, encoder, encoded, threads, lines, directory)
            self._adopt(base, learned, threads)
        return self

    def add(
        self,
        documents: Any,
        *,
        ids: Any = None,
        offsets: Any = None,
        directory: str | PathLike[str] | None = None,
        num_threads: int | None = None,
        progress: Show = None,
    ) -> LemurIndex:
        """Add documents, in any form that :meth:`fit` takes, with the same arguments; the learned map stays as it is.

        Documents join in the index's token dtype: float32 tokens are rounded where it holds float16. Metadata columns that
        either side lacks are null there.

        Returns:
            the index itself.

        Raises:
            ValueError, TypeError: bad documents, or an id that names a document already (see :meth:`upsert`);
                nothing has changed.
            OSError: there is no such path, or no room for a stream's tokens; nothing has changed.
        """
        return self._add(documents, ids, offsets, directory, num_threads, progress, replaces=False)

    def upsert(
        self,
        documents: Any,
        *,
        ids: Any = None,
        offsets: Any = None,
        directory: str | PathLike[str] | None = None,
        num_threads: int | None = None,
        progress: Show = None,
    ) -> LemurIndex:
        """Add documents, and in the same step delete those that had their ids before; otherwise as :meth:`add`.

        Tokens and metadata of a replaced document are gone as a whole: what the new one lacks is null.

        Returns:
            the index itself.

        Raises:
            ValueError, TypeError: bad documents, an id twice among them, or documents without ids; nothing has changed.
            OSError: there is no such path, or no room; nothing has changed.
        """
        return self._add(documents, ids, offsets, directory, num_threads, progress, replaces=True)

    def _add(
        self,
        documents: Any,
        ids: Any,
        offsets: Any,
        directory: str | PathLike[str] | None,
        num_threads: int | None,
        progress: Show,
        *,
        replaces: bool,
    ) -> LemurIndex:
        threads = validate.num_threads(num_threads)
        directory = self._temporary(directory)
        self._check_writable()
        with progress_lines(progress) as lines, self._timed("upsert" if replaces else "add") as told, self._writing:
            now = self._snapshot
            batches, metadata = take_in(
                documents,
                ids=ids,
                offsets=offsets,
                directory=directory,
                store=now.store,
                dim=now.dim,
                id_map=now.ids,
                metadata=now.metadata,
                progress=lines,
                replaces=replaces,
            )
            if batches:
                new = pa.concat_arrays([batch.ids for batch in batches])
                replaced = now.ids.known(new) if replaces else _NO_ROWS
                self._publish(now.with_documents(batches, metadata, replaced, threads, lines))
            told["num_new"] = sum(map(len, batches))
        self._compact_if_due()
        return self

    def delete(self, ids: Any = None, *, filter: Any = None) -> int:
        """Delete documents; they never appear again, and their ids are free for new documents.

        Args:
            ids: those of the documents: one, or a sequence.
            filter: instead of ids, as for :meth:`search`.

        Returns:
            how many were deleted.

        Raises:
            KeyError: an id names no document; nothing has changed.
            TypeError, ValueError: neither ids nor filter, both, or a bad filter; nothing has changed.
        """
        if (ids is None) == (filter is None):
            raise TypeError("delete takes ids or filter=, one of the two")
        self._check_writable()
        with self._timed("delete") as told, self._writing:
            now = self._snapshot
            if filter is None:
                rows = np.unique(now.ids.find(ids_of(ids)))
            else:
                rows = excluded_by(filter, now).others
            if len(rows):
                self._publish(now.without(rows))
            told["num_deleted"] = len(rows)
        self._compact_if_due()
        return len(rows)

    def compact(self, *, num_threads: int | None = None, progress: Show = None) -> LemurIndex:
        """Take back the space of deleted documents, and make the candidate index anew without them.

        Searches and changes go on meanwhile. Tokens that share no file, or no piece of memory, with deleted ones stay where
        they are. The index does this by itself where ``compact_at`` says so.

        Returns:
            the index itself.

        Raises:
            OSError: no room; nothing has changed.
        """
        threads = validate.num_threads(num_threads)
        self._check_writable()
        with progress_lines(progress) as lines:
            self._compact(threads, lines)
        return self

    def _compact(self, num_threads: int, progress: Progress) -> None:
        with self._rebuilding:
            base = self._snapshot
            if base.deleted.count == 0:
                return
            with self._timed("compact"):
                task = progress.task("compact", base.num_documents)
                compacted = base.compacted(num_threads, task, self._temporary(None))
                with self._writing:
                    self._publish(compacted.with_changes(base, self._snapshot, num_threads))

    def _compact_if_due(self) -> None:
        deleted, share = self._snapshot.deleted, self.options.compact_at
        if share is None or deleted.count < max(MIN_DELETED, share * len(deleted)):
            return
        with self._writing:
            if self._compaction is None or not self._compaction.is_alive():
                self._compaction = threading.Thread(target=self._compact_in_background, name="lemur_ann compaction")
                self._compaction.start()

    def _compact_in_background(self) -> None:
        try:
            self._compact(1, _Stoppable(self))
        except _Stopped:
            pass
        except Exception as error:  # the next change tries again
            log.warning("the index could not compact itself: %s", error)

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
        filter: Any = None,
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
        filter: Any = None,
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
        filter: Any = None,
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
            filter: search only documents that it lets through: a pyarrow compute expression over ``id`` and the metadata
                columns (``pc.field("year") > 2020``); a collection of ids, of which unknown ones count for nothing; or a
                boolean for each document, in the order of :meth:`ids`. k hits are found wherever k documents pass.
            exact: score every document instead: the built-in oracle.
            num_threads: None means all cores.

        Returns:
            :class:`Hits` for one query, a list of them for a batch. Fewer than k only where fewer documents exist,
            or pass the filter.

        Raises:
            ValueError, TypeError: queries of a wrong shape, dtype or dim, without tokens or not finite; k below 1; a
                target_recall for which the index was not tuned; a filter that does not fit the documents.
        """
        snapshot = self._snapshot  # read once: a change in another thread may replace it
        k = validate.positive_int(k, "k")
        count, beam = search_options(snapshot.learned, self._options, k, num_candidates, ef_search, target_recall)
        threads = validate.num_threads(num_threads)
        dim = snapshot.dim
        single = is_single_query(queries)
        if single:
            matrix = validate.token_matrix(queries, "query", dim=dim)
            row = validate.first_bad_row(matrix)
            if row is not None:
                raise ValueError(f"query has {validate.BAD_VALUE} in token {row}")
            batch = QueryBatch(matrix, np.array([0, len(matrix)], dtype=np.int64))
        else:
            batch = read_queries(queries, dim=dim)
        hits = self._search(snapshot, batch, k, count, beam, threads, filter=filter, exact=exact)
        return hits[0] if single else hits

    def _search(
        self,
        snapshot: Snapshot,
        queries: QueryBatch,
        k: int,
        num_candidates: int,
        ef_search: int,
        num_threads: int,
        *,
        filter: Any = None,
        exact: bool = False,
    ) -> list[Hits]:
        excluded = snapshot.deleted if filter is None else self._excluded(filter, snapshot)
        device = None
        if not exact and snapshot.learned is not None and snapshot.learned.options.device != "cpu":
            device = self._on_device(snapshot, snapshot.learned)
        return search(
            snapshot,
            queries,
            k,
            num_candidates,
            ef_search,
            num_threads,
            excluded=excluded,
            exact=exact,
            device_search=device,
        )

    def _excluded(self, filter: Any, snapshot: Snapshot) -> RowSet:
        """What a filter keeps out; that of the last expression is kept, since queries come one by one with the same."""
        if not isinstance(filter, pc.Expression):
            return excluded_by(filter, snapshot)
        last = self._last_filter
        if last is None or last[0] is not snapshot or not last[1].equals(filter):
            self._last_filter = last = (snapshot, filter, excluded_by(filter, snapshot))
        return last[2]

    def _on_device(self, snapshot: Snapshot, learned: Learned) -> DeviceSearch:
        """The documents on the device, copied there when a search first needs them and again after every change."""
        from lemur_ann.searching.device import DeviceSearch

        known = self._device_search
        if known is None or known[0] is not snapshot:
            vectors = learned.candidates.take(snapshot.live)
            search = DeviceSearch(learned.encoder, vectors, snapshot.store, snapshot.live, learned.options.device)
            self._device_search = known = (snapshot, search)
        return known[1]

    def evaluate(
        self,
        queries: Any,
        k: int = 10,
        *,
        num_candidates: int | None = None,
        ef_search: int | None = None,
        target_recall: float | None = None,
        filter: Any = None,
        num_threads: int | None = None,
        progress: Show = None,
    ) -> Evaluation:
        """Recall@k against exact MaxSim, and the latency of single queries, on queries it did not learn from.

        Args:
            queries: a batch, as for :meth:`search`; at least one query.
            k, num_candidates, ef_search, target_recall, filter, num_threads: as for :meth:`search`.
            progress: as for :meth:`fit`.
        """
        k = validate.positive_int(k, "k")
        snapshot = self._snapshot
        count, beam = search_options(snapshot.learned, self._options, k, num_candidates, ef_search, target_recall)
        threads = validate.num_threads(num_threads)
        batch = read_queries([queries] if is_single_query(queries) else queries, dim=self.dim)
        if len(batch) == 0:
            raise ValueError("evaluate needs at least one query, got none")
        found, latencies = [], []
        with progress_lines(progress) as lines:
            task = lines.task("exact answers", 1)
            start = time.perf_counter()
            exact = self._search(snapshot, batch, k, count, beam, threads, filter=filter, exact=True)
            exact_ms = (time.perf_counter() - start) / len(batch) * 1e3
            task.advance()
            task = lines.task("queries", len(batch))
            matrices = [batch.tokens[batch.offsets[i] : batch.offsets[i + 1]] for i in range(len(batch))]
            how: dict[str, Any] = {"num_candidates": count, "ef_search": beam, "filter": filter, "num_threads": threads}
            self.search(matrices[0], k, **how)  # warm up
            for matrix in matrices:
                start = time.perf_counter()
                found.append(self.search(matrix, k, **how))
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
        progress: Show = None,
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
            progress: as for :meth:`fit`.

        Returns:
            :class:`~lemur_ann.searching.settings.Tuned`; print it.

        Raises:
            NotFitted: before fit.
            ValueError, TypeError: fewer than two queries, bad ones, or a bad target.
            RuntimeError: the index learned another map meanwhile.
        """
        self._check_writable()
        snapshot = self._snapshot
        learned = _fitted(snapshot)
        k = validate.positive_int(k, "k")
        target = validate.share(target_recall, "target_recall")
        threads = validate.num_threads(num_threads)
        random = np.random.default_rng(validate.integer(seed, "seed", least=0))
        batch = read_queries([queries] if is_single_query(queries) else queries, dim=self.dim)
        if len(batch) < 2:
            raise ValueError(f"tune needs at least two queries, to choose on and to measure on, got {len(batch)}")
        num_documents = snapshot.num_documents
        if num_documents == 0:
            raise ValueError("tune needs at least one document, and the index holds none")
        tokens = np.ascontiguousarray(batch.tokens, dtype=np.float32)
        with progress_lines(progress) as lines, self._timed("tune") as told:
            task = lines.task("exact answers", len(batch))
            exact = []
            for scores in exact_scores(snapshot, tokens, batch.offsets, threads, snapshot.deleted):
                exact.append(_core.top_k(scores, k))
                task.advance()
            queries = QueryBatch(tokens, batch.offsets)
            tuner = Tuner(learned.encoder, learned.candidates, snapshot.deleted, snapshot.store, queries, exact, threads)
            order = random.permutation(len(batch))
            chosen_on, measured_on = order[: len(order) // 2], order[len(order) // 2 :]
            count, beam = tuner.choose(chosen_on, target, k, num_documents, lines.task("settings tried", None))
            told |= {"target_recall": target, "num_candidates": count, "ef_search": beam}
        recall, low, high = tuner.recall(measured_on, count, beam) or (1.0, 0.0, 1.0)
        tuned = Tuned(target, k, count, beam, recall, (low, high), len(measured_on))
        with self._writing:
            now = self._snapshot
            if now.learned is None or now.learned.encoder is not learned.encoder:
                raise RuntimeError("the index learned another map while it was tuned: tune again")
            others = tuple(t for t in now.learned.tuned if (t.target_recall, t.k) != (target, k))
            self._publish(replace(now, learned=replace(now.learned, tuned=(*others, tuned))))
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
        progress: Show = None,
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
            progress: as for :meth:`fit`.

        Returns:
            :class:`Health`; print it, or read its ``verdict``.

        Raises:
            NotFitted: before fit.
            ValueError, TypeError: bad queries, none at all, or no documents.
        """
        snapshot = self._snapshot
        learned = _fitted(snapshot)
        k = validate.positive_int(k, "k")
        count, beam = search_options(learned, learned.options, k, num_candidates, ef_search)
        num_documents = validate.integer(num_documents, "num_documents", least=2)
        num_queries = validate.positive_int(num_queries, "num_queries")
        random = np.random.default_rng(validate.integer(seed, "seed", least=0))
        threads = validate.num_threads(num_threads)
        if snapshot.num_documents == 0:
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
                snapshot.deleted,
                QueryBatch(tokens, batch.offsets),
                exact_scores(snapshot, tokens, batch.offsets, threads, snapshot.deleted),
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
                them; None shows numbers.
            num_threads: None means all cores.

        Returns:
            :class:`~lemur_ann.insight.explanation.Explanation`; print it, show it in a notebook, or draw its ``picture``.
            Before :meth:`fit` it has no estimate.

        Raises:
            KeyError: there is no such document.
            ValueError, TypeError: a bad query, or more or fewer strings than tokens.
        """
        from lemur_ann.insight.explanation import explain

        case = self._case(query_tokens, doc_id, None, num_threads)
        k = validate.positive_int(k, "k")
        count, beam = search_options(case.snapshot.learned, self._options, k, None, None)
        return explain(case, k, count, beam, query_words=query_words, document_words=document_words)

    def explain_miss(
        self,
        query_tokens: Any,
        doc_id: Any,
        k: int = 10,
        *,
        num_candidates: int | None = None,
        ef_search: int | None = None,
        target_recall: float | None = None,
        filter: Any = None,
        num_threads: int | None = None,
    ) -> Miss:
        """Why a search does not find a document: which stage loses it, and with which settings it is found.

        It costs about as much as an exact search and a scan of all vectors, and some searches to try settings.

        Args:
            query_tokens: one query, a matrix (num_tokens, dim).
            doc_id: the id of the document.
            k, num_candidates, ef_search, target_recall, filter, num_threads: of that search, as for :meth:`search`.

        Returns:
            :class:`~lemur_ann.insight.miss.Miss`; print it, or search again with its ``settings``.

        Raises:
            KeyError: there is no such document, or no longer.
            ValueError, TypeError: a bad query, or bad settings.
        """
        from lemur_ann.insight.miss import explain_miss

        case = self._case(query_tokens, doc_id, filter, num_threads)
        k = validate.positive_int(k, "k")
        count, beam = search_options(case.snapshot.learned, self._options, k, num_candidates, ef_search, target_recall)
        asked = {"num_candidates": num_candidates, "ef_search": ef_search, "target_recall": target_recall, "filter": filter}
        return explain_miss(case, k, count, beam, asked)

    def _case(self, query_tokens: Any, doc_id: Any, filter: Any, num_threads: int | None) -> Case:
        from lemur_ann.insight.explanation import Case

        snapshot = self._snapshot
        learned = snapshot.learned
        return Case.of(
            snapshot,
            query_tokens,
            doc_id,
            excluded=snapshot.deleted if filter is None else self._excluded(filter, snapshot),
            device_search=self._on_device(snapshot, learned) if learned and learned.options.device != "cpu" else None,
            num_threads=validate.num_threads(num_threads),
        )

    # Keeping it

    def save(self, path: str | PathLike[str]) -> None:
        """Save as a directory; an index already there is replaced once the new one is whole.

        An index that is open on a directory is there already, and this makes a copy of it elsewhere.

        Raises:
            FileExistsError: something other than an index is there.
            IndexLocked: the index there is open for writing.
        """
        snapshot, target = self._snapshot, Path(path)
        if self._directory is not None and target.resolve() == self._directory.path.resolve():
            return
        with self._timed("save", path=str(target)):
            save_directory(target, snapshot, self._options)
        self._saved = (target.resolve(), snapshot)

    @classmethod
    def load(cls, path: str | PathLike[str], *, device: str | None = None, verify: bool = True) -> LemurIndex:
        """Load a saved index; tokens stay on disk, memory-mapped, and changes are in memory until :meth:`save`.

        Args:
            path: the directory.
            device: where to compute features; None means the device it was made with.
            verify: check the checksum of every file. False leaves out the token files, whose size is checked all the same.

        Raises:
            FileNotFoundError: there is no such directory.
            CorruptIndex: a file is missing, truncated, altered or of a newer format.
        """
        start = time.perf_counter()
        version = read_version(Path(path), verify=verify, device=device)
        index = cls.__new__(cls)
        index._options = version.options
        index._set_up(version.snapshot)
        index._saved = (Path(path).resolve(), version.snapshot)
        event("load", seconds=time.perf_counter() - start, path=str(path), num_documents=len(index))
        return index

    @classmethod
    def open(
        cls,
        path: str | PathLike[str],
        *,
        read_only: bool = False,
        device: str | None = None,
        verify: bool = False,
        **options: Any,
    ) -> LemurIndex:
        """Open an index on a directory, where every change is for good once the call that made it returns.

        A change that did not return, in a crash or a power cut, has happened as a whole or not at all. One index may have a
        directory open for writing, until :meth:`close` or the end of its process; any number may read it, in any number of
        processes, each the version that was there when it opened or last called :meth:`refresh`.

        Args:
            path: the directory; where there is none, or an empty one, an index is made with ``options``.
            read_only: never write, and take no lock: for more readers, and for folders that cannot be written.
            device: where to compute features; None means the device it was made with.
            verify: check the checksums of token files too.
            **options: of a new index, as :class:`LemurIndex` takes them.

        Raises:
            IndexLocked: it is open for writing already.
            FileNotFoundError: read_only, and there is no such directory.
            CorruptIndex: a file is missing, truncated, altered or of a newer format.
            TypeError: options for an index that is there already; :meth:`refit` takes some.
        """
        start = time.perf_counter()
        new = cls(**options)
        directory = Directory.open(
            Path(path), new._options, read_only=read_only, verify=verify, device=device, is_new_with=sorted(options)
        )
        new._options = directory.options
        new._set_up(directory.snapshot, directory)
        event("open", seconds=time.perf_counter() - start, path=str(path), read_only=read_only, num_documents=len(new))
        return new

    def refresh(self) -> bool:
        """Read the version that is on disk now, where another process has changed the index; whether there was a new one."""
        if self._directory is None:
            raise ValueError("the index is not open on a directory: LemurIndex.open(path) is what can be refreshed")
        with self._writing:
            changed = self._directory.refresh()
            if changed:
                self._options = self._directory.options
                self._show(self._directory.snapshot)
        return changed

    def close(self) -> None:
        """Let others write to the directory; the index can be searched still, and no longer be changed.

        A compaction in the background is given up. Without a directory there is nothing to do.
        """
        self._is_closing = True
        compaction = self._compaction
        if compaction is not None:
            compaction.join()
        with self._writing:
            if self._directory is not None:
                self._directory.close()
        self._is_closing = False

    def __enter__(self) -> LemurIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        """Pickled, an index travels as its path, and is opened there read-only, or loaded, in the version of that time."""
        if self._directory is not None:
            return _reopened, (str(self._directory.path.resolve()), self.options.device, True)
        if self._saved is None or self._saved[1] is not self._snapshot:
            raise TypeError("an index is pickled as the path it is at: save it first, or open it on a directory")
        return _reopened, (str(self._saved[0]), self.options.device, False)


class _Stopped(Exception):
    """The compaction in the background was given up."""


class _Stoppable(Progress):
    """Progress that ends in :class:`_Stopped` once the index is closed or the program ends."""

    def __init__(self, index: LemurIndex) -> None:
        super().__init__()
        self._index = index

    def task(self, description: str, total: int | None) -> Any:
        return self

    def advance(self, count: int = 1, note: str | None = None) -> None:
        if self._index._is_closing or not threading.main_thread().is_alive():
            raise _Stopped


_NO_ROWS: Rows = np.empty(0, np.int64)


def _reopened(path: str, device: str, is_open: bool) -> LemurIndex:
    if is_open:
        return LemurIndex.open(path, read_only=True, device=device)
    return LemurIndex.load(path, device=device, verify=False)


def _fitted(snapshot: Snapshot) -> Learned:
    if snapshot.learned is None:
        raise NotFitted("the index has no learned map yet: call fit(documents, queries=...) first")
    return snapshot.learned


def _metadata(snapshot: Snapshot, rows: Rows, columns: Sequence[str] | None = None) -> pa.Table:
    table = pa.table({"id": snapshot.ids.column.take_array(rows)})
    if snapshot.metadata is not None:
        chosen = snapshot.metadata if columns is None else snapshot.metadata.select(columns)
        taken = chosen.take(pa.array(rows))
        for name in taken.column_names:
            table = table.append_column(name, taken.column(name))
    return table


def _check_map(encoder: Any, dim: int | None) -> None:
    """That it is a learned map, for tokens of this dimension."""
    from lemur_ann.encoder import LemurEncoder

    if not isinstance(encoder, LemurEncoder):
        raise TypeError(f"encoder must be a LemurEncoder, got {type(encoder).__name__}")
    if dim not in (None, encoder.token_dim):
        raise ValueError(f"encoder takes tokens of dim {encoder.token_dim}, documents have dim {dim}")


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
