"""LemurIndex: fit, add, search, delete, save, load, open. The story of the library on one page."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lemur_ann import validate
from lemur_ann.changes import Changes, Documents, Lesson, check_map
from lemur_ann.documents.inputs import ids_of, queries_of, read_queries
from lemur_ann.documents.sources import opened
from lemur_ann.events import event
from lemur_ann.hits import Hits
from lemur_ann.insight.measured import MeasuredIndex
from lemur_ann.insight.stats import Stats, stats_of
from lemur_ann.insight.warming import warm
from lemur_ann.learning.memory import parse_bytes
from lemur_ann.notebook import facts
from lemur_ann.options import Options
from lemur_ann.progress import Show, progress_lines
from lemur_ann.saved.directory import Directory
from lemur_ann.saved.directory import read as read_directory
from lemur_ann.saved.directory import save as save_directory
from lemur_ann.searching.scan import scan
from lemur_ann.searching.searcher import Searcher
from lemur_ann.searching.settings import Settings, Tuned
from lemur_ann.searching.snapshot import Snapshot, check
from lemur_ann.searching.tables import documents_of, hits_table, metadata_of, stream_of

if TYPE_CHECKING:
    from lemur_ann.encoder import LemurEncoder


class LemurIndex(MeasuredIndex):
    """A multi-vector index: learned weights in a graph find candidates, exact MaxSim reranks them.

    Documents and queries are matrices of token embeddings, (num_tokens, dim), float32 or float16. Before :meth:`fit` the index
    answers by exact MaxSim. Any number of threads may search while others change the index: a search sees it as it was at one
    moment, and changes wait for each other.

    An index made by this call, or by :meth:`load`, is in memory until :meth:`save`. One made by :meth:`open` is on disk, with
    every change once the call that made it returns.

    Args:
        num_features: width of the learned features; more is more accurate and slower to fit.
        epochs: passes of training; 0 uses random features, and is the quick way: see num_sample_tokens and distillation_steps.
        candidates: "hnsw" for a graph, "exact" for a scan of all vectors; or "faiss", "usearch" or "svs" for an index of
            that library, where it is installed. Theirs are made anew when many documents have come.
        num_candidates: documents reranked per query, unless a search says otherwise; None means what is usual for k.
        ef_search: beam of the graph search; None means what is usual for the others, or num_candidates where these are given
            and there is no second look.
        shortlist: documents of largest estimate, from which a second look by the centroids of their tokens chooses the
            candidates; None means what is usual for num_candidates, and 0 that the estimate chooses them.
        device: where to learn and to search: "cpu", "cuda" or "mps". On any device but a CPU, a search scans the vectors of all
            documents there and reranks there: fastest for batches, and ef_search counts for nothing.

    Rarely:
        rank: dimension of the vectors in the candidate index (plus one appended coordinate, so one less than a multiple of 16
            is fastest); None keeps all num_features.
        token_codes: "int8" keeps int8 codes of all tokens beside them, a byte a component. A search then reads the tokens
            of its best few candidates only, with the same hits but for a document in ten thousand, several times faster.
            "int4", "int3", "int2" and "int1" do so with small codes, of so many bits a component, which ``fit`` makes: with
            the same hits, in less memory. None keeps the tokens alone.
        keep_tokens: "none" keeps small codes in the place of the tokens once the map is learned: scores are those of codes, see
            :meth:`tune_codes`. "exact" keeps the tokens.
        pool_factor: documents are pooled as they come: of n tokens max(1, n // pool_factor) are kept, like ones merged into
            their mean, and in the metadata column ``token_groups`` which these were. 1 merges none. Queries are never pooled.
        pooling: "ward" merges any tokens that are alike; "sequential" those within runs of 256 neighbours, which of long pages
            takes less time. See :func:`lemur_ann.pool`.
        protected_tokens: the first tokens of each document, which are never merged, and not counted as n.
        compact_at: share of deleted documents past which the index compacts itself, in a thread of its own (see
            :meth:`compact`); None leaves that to you.
        candidates_options: what a library for candidates is to be given, see its module in ``lemur_ann.candidates``; plain
            values, which are saved with the index.
        M, ef_construction: the graph's, as in hnswlib, which makes it. Searches walk links of their own, up to 4 M from each
            document, chosen among what a search with a beam of 3 ef_construction finds in hnswlib's.
        num_training_tokens: query tokens to train on, at most.
        num_training_documents: documents whose token maxima training predicts, at most. More buy nothing that we measured.
        num_sample_tokens: query tokens over which document weights are solved, at most; None means 24,576, and 8,192 where
            epochs is 0.
        target_precision: "int8" computes the token maxima that are learned from in int8, with the same bits on every machine;
            "float32" exactly, in three to four times the time, which buys nothing for tokens of unit length. Where a few
            dimensions are far larger than all others, compare both.
        ridge: regularisation of that solve, relative to the mean diagonal of its Gram matrix.
        distillation_steps: steps that tune the reduction for the top of the ranking, where there are at least 1,000 queries
            and 5,000 documents; 0 leaves the least-squares map. None means 1,000, and 0 where epochs is 0.
        num_centroids: that document tokens are represented by in the second look, two bytes a token; None means about twice the
            root of the number of tokens, with small codes four times up to 4,096, and 0 that there is no second look.
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

    _changes: Changes

    def __init__(
        self,
        *,
        num_features: int = 2048,
        epochs: int = 3,
        candidates: str = "hnsw",
        num_candidates: int | None = None,
        ef_search: int | None = None,
        shortlist: int | None = None,
        device: str = "cpu",
        rank: int | None = 255,
        token_codes: str | None = "int8",
        keep_tokens: str = "exact",
        pool_factor: int = 1,
        pooling: str = "ward",
        protected_tokens: int = 1,
        compact_at: float | None = 0.3,
        candidates_options: dict[str, Any] | None = None,
        M: int = 16,
        ef_construction: int = 100,
        num_training_tokens: int = 50_000,
        num_training_documents: int = 4096,
        num_sample_tokens: int | None = None,
        target_precision: str = "int8",
        ridge: float = 1e-6,
        distillation_steps: int | None = None,
        num_centroids: int | None = None,
        seed: int = 0,
    ) -> None:
        options = Options(
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
            keep_tokens=keep_tokens,
            pool_factor=pool_factor,
            pooling=pooling,
            protected_tokens=protected_tokens,
            candidates=candidates,
            candidates_options=candidates_options,
            M=M,
            ef_construction=ef_construction,
            num_candidates=num_candidates,
            ef_search=ef_search,
            shortlist=shortlist,
            num_centroids=num_centroids,
            compact_at=compact_at,
            device=device,
            seed=seed,
        )
        self._set_up(Changes(options, Snapshot.empty(coded=options.keeps_int8)))

    def _set_up(self, changes: Changes) -> None:
        self._changes = changes
        self._searcher = Searcher()
        self._saved: tuple[Path, Snapshot] | None = None  # where this one can be loaded from
        self._trusted = False

    @property
    def snapshot(self) -> Snapshot:
        """All that a search reads, as it is at this moment: a change makes another. For reports and adapters.

        What is in it may differ from version to version of the library.
        """
        return self._changes.snapshot  # read once for each use: a change in another thread may replace it

    # What it holds

    def __len__(self) -> int:
        """The number of documents, without deleted ones."""
        return self.snapshot.num_documents

    def __contains__(self, doc_id: object) -> bool:
        return doc_id in self.snapshot.ids

    def __iter__(self) -> Iterator[Any]:
        """The ids of all documents, in the order of :meth:`ids`."""
        return iter(self.ids().to_pylist())

    def __repr__(self) -> str:
        state = f"{self.options.candidates}, fitted" if self.is_fitted else "not fitted: exact search"
        directory = self._changes.directory
        place = "" if directory is None else f", open on {directory.path}"
        return f"<LemurIndex of {len(self):,} documents, dim {self.dim}, {state}{place}>"

    def _repr_html_(self) -> str:
        options, directory = self.options, self._changes.directory
        place = "memory" if directory is None else str(directory.path)
        about = {
            "documents": f"{len(self):,}",
            "tokens": f"{self.num_tokens:,}",
            "dim": "none yet" if self.dim is None else str(self.dim),
            "map": f"{self.encoder.dim} numbers a document" if self.is_fitted else "not learned: exact search",
            "candidates": f"{options.num_candidates or 'as usual,'} by {options.candidates}",
            "place": place,
        }
        return facts("LemurIndex", about | {f"tuned for {t.goal}": f"recall {t.recall:.3f}" for t in self.tuned})

    @property
    def options(self) -> Options:
        """How it learns and searches."""
        return self._changes.options

    @property
    def is_fitted(self) -> bool:
        """Whether a learned map is there; if not, searches are exact."""
        return self.snapshot.learned is not None

    @property
    def dim(self) -> int | None:
        """Dimension of tokens; None before the first document, unless a map was given."""
        return self.snapshot.dim

    @property
    def num_tokens(self) -> int:
        """Stored tokens, those of deleted documents included until they are compacted away."""
        return self.snapshot.store.num_tokens

    @property
    def version(self) -> int:
        """A number that grows with every change of this object: what was read of it after the number is not older than that.

        It tells whether something made of the documents, such as a mask for a filter, is still right. It starts at 0 with the
        object, and says nothing of what other processes do before :meth:`refresh`.
        """
        return self._changes.version

    @property
    def note(self) -> str | None:
        """The text that the last change with one brought, see :meth:`add`; None before the first. It is saved with the index.

        After a crash it tells which of a program's changes are in: the note and its change are there, or neither is.
        """
        return self.snapshot.note

    @property
    def encoder(self) -> LemurEncoder:
        """The learned map.

        Raises:
            NotFitted: before fit.
        """
        return self.snapshot.fitted().encoder

    @property
    def tuned(self) -> tuple[Tuned, ...]:
        """What :meth:`tune` chose for the learned map."""
        learned = self.snapshot.learned
        return () if learned is None else learned.tuned

    def ids(self) -> pa.Array:
        """The ids of all documents, int64 or large_string: oldest first, a replaced one where its replacement came."""
        snapshot = self.snapshot
        return snapshot.ids.column.take_array(snapshot.live)

    def get(self, ids: Any) -> pa.Table:
        """Some documents as they are stored: columns ``id``, ``tokens`` and the metadata, a row for each id, in their order.

        What it returns may be added to another index as it is.

        Raises:
            KeyError: an id names no document.
        """
        snapshot = self.snapshot
        return documents_of(snapshot, snapshot.ids.find(ids_of(ids)))

    def metadata(self, ids: Any) -> pa.Table:
        """The column ``id`` and all metadata columns of some documents, one row for each id, in their order.

        Raises:
            KeyError: an id names no document.
        """
        snapshot = self.snapshot
        return metadata_of(snapshot, snapshot.ids.find(ids_of(ids)))

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
        return hits_table(self.snapshot, hits, columns)

    def to_arrow(self, *, tokens: bool = True, vectors: bool = True) -> pa.RecordBatchReader:
        """All documents as a stream, for another index or another engine, in the order of :meth:`ids`.

        It is of one moment, whatever changes while it is read. With tokens and without vectors, it goes into ``fit`` or ``add``
        as it is; with vectors too, these become a metadata column there.

        Args:
            tokens: with the column ``tokens``, large_list<fixed_size_list<float32 or float16>[dim]>.
            vectors: with the column ``vector``, fixed_size_list<float32>[encoder.dim], see
                :class:`~lemur_ann.LemurEncoder`; only where the index has learned its map. Of documents in the default's graph
                they are what its int8 codes say; ``encoder.encode_documents`` gives them to the last bit.

        Returns:
            a reader of ``id``, ``vector``, ``tokens`` and the metadata columns, 1,024 documents a batch.

        Raises:
            ValueError: a metadata column is called ``vector``, and vectors are asked for.
        """
        tokens, vectors = validate.boolean(tokens, "tokens"), validate.boolean(vectors, "vectors")
        return stream_of(self.snapshot, tokens=tokens, vectors=vectors)

    def stats(self) -> Stats:
        """How many documents, and the memory they take, by part; see :class:`~lemur_ann.insight.Stats`."""
        return stats_of(self.snapshot)

    def warm(self, parts: str | Collection[str] | None = None, *, pin: bool = False) -> int:
        """Read parts of a mapped index into memory now, so that searches need not wait for the disk.

        They stay there until the system needs the room, or for good where they are pinned. What is read is shared with other
        processes that map the same files. Parts that come with a later change are not among them.

        Args:
            parts: a name, or a collection of names, as ``stats().parts`` has them: "candidates", "token centroids",
                "token codes" and others. None means all but "tokens", of which a search reads those of a dozen documents.
            pin: keep them in memory as long as this process has them mapped, whatever else needs the room. "candidates" and
                "token centroids" are read most, and are small.

        Returns:
            bytes of the parts that are in mapped files, which have been read: 0 for an index in memory. Where the system does
            not tell what is mapped (any but Linux), bytes of the parts.

        Raises:
            ValueError, TypeError: there is no such part, and nothing was read.
            OSError: the system does not let the process pin so much; what was pinned before stays so.
        """
        return warm(self.snapshot, parts, pin=validate.boolean(pin, "pin"))

    def check(self) -> None:
        """Read all tokens, ids and links, and compare what belongs together: what checksums cannot tell.

        Raises:
            CorruptIndex: what does not fit.
        """
        check(self.snapshot)

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
        text_column: str | None = "text",
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
                Hugging Face or Lance dataset; the path of a Parquet file or of a folder of them; a sequence, an iterator or a
                column (a Series, an array of objects) of (num_tokens, dim) NumPy or torch matrices; or one flat matrix with
                ``offsets``. None learns from the documents that :meth:`add` brought. Tables, sequences and arrays stay in
                memory where they lie. Of a stream (path, dataset, reader or other Arrow stream, iterator) the tokens go to a
                temporary file, mapped and never held in memory whole; its ids and metadata are held in memory, and its first
                documents decide the token dtype.
            queries: token embeddings of training queries, in the same forms: from the query encoder, of queries like those to
                come, and not the ones to measure with. A few thousand are plenty, and all are held in memory. Without them
                recall is far lower, and a warning says so.
            ids: one string or integer for each document, in a list, an array, or whatever else keeps an order; 0, 1, 2, ...
                where None. Arrow data has a column for it.
            offsets, query_offsets: int (num_documents + 1,) and (num_queries + 1,), with flat matrices only.
            encode_query: the next best thing where there are no queries: your query encoder, which takes a list of strings and
                gives their token embeddings, in any form that ``queries`` may have. It is given up to 8,192 sentences of the
                documents' own texts; or, of documents without texts, some 3,000 plain queries that ship with the package.
            text_column: the metadata column that holds these texts. None, or no column ``text``, means that there are none.
            encoder: a map learned elsewhere, in the place of queries: nothing is learned, the documents are encoded by it and
                indexed. It fits documents and queries like those it was learned from. An index without documents may have
                one too, for those that :meth:`add` brings. What options of the index say of learning gives way to it.
            directory: the folder for the temporary file of a stream's tokens, which compactions use too, on a disk with room
                for all of them; None means the index's own, if it is open on one, else that of Python's ``tempfile``, which on
                some systems is in memory. The file has no name there, and its space is free once the index is gone.
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
        validate.function(encode_query, "encode_query")
        self._changes.check_writable()
        if sum(given is not None for given in (queries, encode_query, encoder)) > 1:
            raise TypeError("encode_query= or encoder= takes the place of queries; pass one of them")
        if encoder is not None:
            check_map(encoder, self.snapshot.store.dim)
        if documents is None and (ids is not None or offsets is not None):
            raise TypeError("ids= and offsets= go with documents, and documents is None")
        training = None if queries is None else read_queries(opened(queries), offsets=query_offsets)
        place = self._changes.temporary(directory)
        lesson = Lesson(
            training,
            encode_query=encode_query,
            text_column=text_column,
            encoder=encoder,
            num_threads=threads,
            memory_limit=limit,
            directory=place,
        )
        del queries, training  # the lesson alone has them: once they are learned from, the graph takes their place in memory
        with progress_lines(progress) as lines:
            if documents is None:
                self._changes.fit_stored(lesson, lines)
            else:
                self._changes.fit(Documents(documents, ids, offsets, place), lesson, lines)
        return self

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
        self._changes.check_writable()
        lesson = Lesson(
            asked=(queries, query_offsets),
            resume=validate.boolean(resume, "resume"),
            encoder=encoder,
            num_threads=threads,
            memory_limit=limit,
            directory=self._changes.temporary(),
        )
        del queries  # the lesson alone has them, as in fit
        with progress_lines(progress) as lines:
            self._changes.refit(lesson, options, lines)
        return self

    def add(
        self,
        documents: Any,
        *,
        ids: Any = None,
        offsets: Any = None,
        directory: str | PathLike[str] | None = None,
        note: str | None = None,
        num_threads: int | None = None,
        progress: Show = None,
    ) -> LemurIndex:
        """Add documents, in any form that :meth:`fit` takes, with the same arguments; the learned map stays as it is.

        Documents join in the index's token dtype: float32 tokens are rounded where it holds float16. Metadata columns that
        either side lacks are null there, and a column is widened where either side needs more, as Arrow does: int32 and int64
        to int64, timestamps to the finer unit, integers and floats to float64 where that is exact.

        Args:
            documents, ids, offsets, directory, num_threads, progress: as for :meth:`fit`.
            note: a text of up to 100,000 characters that becomes :attr:`note` in the same step, such as how far a stream of
                changes was read.

        Returns:
            the index itself.

        Raises:
            ValueError, TypeError: bad documents, or an id that names a document already (see :meth:`upsert`);
                nothing has changed.
            OSError: there is no such path, or no room for a stream's tokens; nothing has changed.
        """
        threads = validate.num_threads(num_threads)
        new = self._documents(documents, ids, offsets, directory, note)
        with progress_lines(progress) as lines:
            self._changes.add(new, threads, lines, replaces=False)
        return self

    def upsert(
        self,
        documents: Any,
        *,
        ids: Any = None,
        offsets: Any = None,
        directory: str | PathLike[str] | None = None,
        note: str | None = None,
        num_threads: int | None = None,
        progress: Show = None,
    ) -> LemurIndex:
        """Add documents, and in the same step delete those that had their ids before; otherwise as :meth:`add`.

        Tokens and metadata of a replaced document are gone as a whole: what the new one lacks is null.

        Args:
            documents, ids, offsets, directory, note, num_threads, progress: as for :meth:`add`.

        Returns:
            the index itself.

        Raises:
            ValueError, TypeError: bad documents, an id twice among them, or documents without ids; nothing has changed.
            OSError: there is no such path, or no room; nothing has changed.
        """
        threads = validate.num_threads(num_threads)
        new = self._documents(documents, ids, offsets, directory, note)
        with progress_lines(progress) as lines:
            self._changes.add(new, threads, lines, replaces=True)
        return self

    def _documents(
        self, documents: Any, ids: Any, offsets: Any, directory: str | PathLike[str] | None, note: str | None
    ) -> Documents:
        place, note = self._changes.temporary(directory), validate.note(note)
        self._changes.check_writable()
        return Documents(documents, ids, offsets, place, note)

    def delete(self, ids: Any = None, *, filter: Any = None, note: str | None = None) -> int:
        """Delete documents; they never appear again, and their ids are free for new documents.

        Without its last document the index begins anew: with ids, metadata, and without a learned map a dim, of any kind.

        Args:
            ids: those of the documents: one, or a collection.
            filter: instead of ids, as for :meth:`search`.
            note: as for :meth:`add`; kept where the filter lets nothing through, too.

        Returns:
            how many were deleted.

        Raises:
            KeyError: an id names no document; nothing has changed.
            TypeError, ValueError: neither ids nor filter, both, or a bad filter; nothing has changed.
        """
        if (ids is None) == (filter is None):
            raise TypeError("delete takes ids or filter=, one of the two")
        self._changes.check_writable()
        return self._changes.delete(None if ids is None else ids_of(ids), filter, validate.note(note))

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
        self._changes.check_writable()
        with progress_lines(progress) as lines:
            self._changes.compact(threads, lines)
        return self

    def recode(
        self,
        token_codes: str | None,
        *,
        keep_tokens: str | None = None,
        num_threads: int | None = None,
        progress: Show = None,
    ) -> LemurIndex:
        """Keep other codes of the tokens, or codes alone, without learning anew; changes wait, and searches go
        on.

        Args:
            token_codes, keep_tokens: as for the constructor; keep_tokens None leaves it as it is. ``keep_tokens="none"`` lets
                go of the tokens for ever: codes can become smaller then, and nothing else.
            num_threads: None means all cores.
            progress: as for :meth:`fit`.

        Returns:
            the index itself.

        Raises:
            ValueError: no such codes; small ones of a map without centroids; or tokens are wanted that are not kept.
        """
        threads = validate.num_threads(num_threads)
        self._changes.check_writable()
        changed = {"token_codes": token_codes} | ({} if keep_tokens is None else {"keep_tokens": keep_tokens})
        with progress_lines(progress) as lines:
            self._changes.recode(changed, threads, lines)
        return self

    # Searching it

    def search(
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
        exact: bool = False,
        num_threads: int | None = None,
    ) -> Any:
        """The k documents of highest exact MaxSim score among the candidates; :meth:`scan` where k is not known beforehand.

        Args:
            queries: one query, a matrix (num_tokens, dim) or what is one in lists; or a batch: a sequence of matrices, an array
                of shape (num_queries, num_tokens, dim), or Arrow data with a column ``tokens``.
            k: how many to return, at least 1.
            num_candidates: documents to rerank; None means the index's own. Never fewer than k.
            ef_search: beam of the graph search, without a shortlist never below num_candidates; None means the index's own.
            shortlist: documents to choose the candidates from in a second look, 0 for none; None means the index's own.
            target_recall: search as :meth:`tune` chose for this recall, or for a higher one, instead of the three above.
            max_loss: the same for this loss of relevance, or for a lower one.
            filter: search only documents that it lets through: a pyarrow compute expression over ``id`` and the metadata
                columns (``pc.field("year") > 2020``); a collection of ids, of which unknown ones count for nothing; or a
                boolean for each document, in the order of :meth:`ids` (numbers are ids, and 0 and 1 many times are refused).
                k hits are found wherever k documents pass.
            exact: score every document instead: the built-in oracle.
            num_threads: None means all cores.

        Returns:
            :class:`Hits` for one query, a list of them for a batch. Fewer than k only where fewer documents exist,
            or pass the filter.

        Raises:
            ValueError, TypeError: queries of a wrong shape, dtype or dim, without tokens or not finite; k below 1; a
                target_recall or max_loss for which the index was not tuned; a filter that does not fit the documents.
        """
        snapshot = self.snapshot
        settings = self._settings(snapshot, k, num_candidates, ef_search, target_recall, num_threads, shortlist, max_loss)
        exact = validate.boolean(exact, "exact")
        asked = queries_of(queries, snapshot.dim)
        return asked.answered(self._searcher.search(snapshot, asked.batch, settings, filter=filter, exact=exact))

    def scan(self, query_tokens: Any, *, filter: Any = None, num_threads: int | None = None) -> Iterator[tuple[Any, float]]:
        """Documents one after the other, best first, as many as are asked for; the first come as from :meth:`search`, and
        behind a filter from a wider one.

        The further it goes, the more documents are reranked, in the end all: one that is found late, with a higher score than
        others before it, comes next. It is of one moment, which it holds in memory, with up to 13 bytes a document.

        Args:
            query_tokens: one query, a matrix (num_tokens, dim).
            filter, num_threads: as for :meth:`search`.

        Returns:
            an iterator of (id, exact MaxSim score), which ends after the last document that the filter lets through.

        Example:
            >>> import numpy as np
            >>> index = LemurIndex().add([np.eye(4)[:2], np.eye(4)[2:]], ids=["fox", "whale"])
            >>> next(index.scan(np.eye(4)[:1]))
            ('fox', 1.0)

        Raises:
            ValueError, TypeError: a bad query, or a bad filter; at once, and not at the first document.
        """
        snapshot, threads = self.snapshot, validate.num_threads(num_threads)
        asked = queries_of(query_tokens, snapshot.dim)
        if not asked.is_one:
            raise ValueError(f"scan takes one query, a matrix (num_tokens, dim), got a batch of {len(asked.batch)}")
        excluded = self._searcher.excluded(snapshot, filter)
        return scan(snapshot, asked.batch, lambda k: self._settings(snapshot, k, num_threads=threads), excluded)

    def _settings(self, snapshot: Snapshot, k: int, *asked: Any, **named: Any) -> Settings:
        """How widely to search a snapshot: as its own options say, where the caller, see :meth:`Settings.of`, does not."""
        learned = snapshot.learned
        options, tuned = (self._changes.options_before, ()) if learned is None else (learned.options, learned.tuned)
        return Settings.of(options, tuned, k, *asked, **(named | snapshot.searched))

    # Keeping it

    def save(self, path: str | PathLike[str]) -> None:
        """Save as a directory; an index already there is replaced once the new one is whole.

        An index that is open on a directory is there already, and this makes a copy of it elsewhere.

        Raises:
            FileExistsError: something other than an index is there; or a version of this one that another process wrote.
            IndexLocked: the index there is open for writing.
        """
        snapshot, target, directory = self.snapshot, validate.path(path), self._changes.directory
        if directory is not None and directory.is_at(target):
            directory.check_current()
            return
        with self._changes.timed("save", path=str(target)):
            save_directory(target, snapshot, self._changes.options_before)
        self._saved = (target.resolve(), snapshot)

    @classmethod
    def load(
        cls, path: str | PathLike[str], *, device: str | None = None, verify: bool = True, trusted: bool = False
    ) -> LemurIndex:
        """Load a saved index; tokens stay on disk, memory-mapped, and changes are in memory until :meth:`save`.

        Args:
            path: the directory.
            device: where to compute features; None means the device it was made with.
            verify: check the checksum of every file. False leaves out the token files, whose size is checked all the same.
            trusted: read the graph of another library (see candidates=) from its file, whoever wrote it. Such files cannot be
                checked. False reads those that you wrote on this machine, and makes others anew of their vectors. True also
                follows links to files, as in the cache of the Hugging Face hub.

        Raises:
            FileNotFoundError: there is no such directory.
            CorruptIndex: a file is missing, truncated, altered or of a newer format.
            ValueError: the device is not here.
        """
        start = time.perf_counter()
        folder = validate.path(path)
        verify, trusted = validate.boolean(verify, "verify"), validate.boolean(trusted, "trusted")
        version, _ = read_directory(folder, verify=verify, device=device, trusted=trusted)
        index = cls.__new__(cls)
        index._set_up(Changes(version.given, version.snapshot))
        index._saved, index._trusted = (folder.resolve(), version.snapshot), trusted
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
        trusted: bool = False,
        **options: Any,
    ) -> LemurIndex:
        """Open an index on a directory, where every change is for good once the call that made it returns.

        A change that did not return, in a crash or a power cut, has happened as a whole or not at all. One index may have a
        directory open for writing, until :meth:`close` or the end of its process; any number may read it, in any number of
        processes, each the version that was there when it opened or last called :meth:`refresh`.

        Args:
            path: the directory; where there is none, or an empty one, an index is made with ``options``. A relative path is
                that of now, whatever the working directory is later.
            read_only: never write, and take no lock: for more readers, and for folders that cannot be written.
            device: where to compute features; None means the device it was made with.
            verify: check the checksums of token files too.
            trusted: as for :meth:`load`.
            **options: of a new index, as :class:`LemurIndex` takes them; those of an index that is there already must be the
                same, where they are named: as it was made, or as they are since :meth:`refit` or a given map.

        Raises:
            IndexLocked: it is open for writing already.
            FileNotFoundError: read_only, and there is no such directory.
            PermissionError: not read_only, and the directory cannot be written.
            CorruptIndex: a file is missing, truncated, altered or of a newer format.
            ValueError: the device is not here.
            TypeError: an index that is there already has other options; :meth:`refit` takes some.
        """
        start = time.perf_counter()
        read_only, verify = validate.boolean(read_only, "read_only"), validate.boolean(verify, "verify")
        new = cls(**options)
        directory = Directory.open(
            validate.path(path),
            new.options,
            read_only=read_only,
            verify=verify,
            device=device,
            named=sorted(options),
            trusted=validate.boolean(trusted, "trusted"),
        )
        new._set_up(Changes(directory.options, directory.snapshot, directory))
        event("open", seconds=time.perf_counter() - start, path=str(path), read_only=read_only, num_documents=len(new))
        return new

    def refresh(self) -> bool:
        """Read the version that is on disk now, where another process has changed the index; whether there was a new one."""
        return self._changes.refresh()

    def close(self) -> None:
        """Let others write to the directory; the index can be searched still, and no longer be changed.

        A compaction in the background is given up. Without a directory there is nothing to do.
        """
        self._changes.close()

    def __enter__(self) -> LemurIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        """Pickled, an index travels as its path, and is opened there read-only, or loaded, in the version of that time."""
        directory = self._changes.directory
        if directory is not None:
            return _reopened, (str(directory.path), self.options.device, True, directory.trusted)
        if self._saved is None or self._saved[1] is not self.snapshot:
            raise TypeError("an index is pickled as the path it is at: save it first, or open it on a directory")
        return _reopened, (str(self._saved[0]), self.options.device, False, self._trusted)


def _reopened(path: str, device: str, is_open: bool, trusted: bool = False) -> LemurIndex:
    if is_open:
        return LemurIndex.open(path, read_only=True, device=device, trusted=trusted)
    return LemurIndex.load(path, device=device, verify=False, trusted=trusted)
