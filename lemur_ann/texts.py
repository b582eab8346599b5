"""TextIndex: an index that is given texts, and asked in texts."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from lemur_ann import validate
from lemur_ann.client.remote import RemoteIndex
from lemur_ann.documents.inputs import ids_for, ids_of
from lemur_ann.documents.sources import opened, record_batches
from lemur_ann.documents.tokens import tokens_column
from lemur_ann.encoders import as_encoder, encoded
from lemur_ann.events import event
from lemur_ann.index import LemurIndex
from lemur_ann.progress import Progress, Show, Task, progress_lines
from lemur_ann.validate import Tokens

if TYPE_CHECKING:
    from lemur_ann.insight.explanation import Explanation
    from lemur_ann.insight.miss import Miss

TEXTS_IN_MEMORY = 4096  # whose tokens are; those of more go to the index as a stream


class TextIndex:
    """A late-interaction encoder and a :class:`~lemur_ann.LemurIndex`: documents go in, and are found, as texts.

    The texts are kept in the index's metadata column ``text``, beside whatever other columns come with them. All else is the
    index's own: ``texts.index.delete(ids)``, ``texts.index.metadata(ids)``, ``texts.index.save(path)``.

    Args:
        encoder: anything :func:`lemur_ann.encoders.as_encoder` takes, such as a sentence-transformers ``MultiVectorEncoder``.
            The queries' side is used for queries alone, and the documents' side for documents.
        index: made, loaded or opened; None makes one in memory with default options. One that a service has, see
            :func:`lemur_ann.connect`, is given what the encoder makes here; ``fit_at`` counts for nothing then.
        batch_size: texts given to the encoder at a time.
        fit_at: number of documents at which an addition also learns the map, which takes minutes, so that searches stay quick;
            None leaves that to :meth:`fit`. Until it is learned, searches are exact, and take longer the more there are.

    Example:
        >>> import numpy as np
        >>> def encode(texts):  # a stand-in for a model: a fixed random vector for each word
        ...     return [np.stack([np.random.default_rng(list(word.encode())).normal(size=16) for word in text.split()])
        ...             for text in texts]
        >>> texts = TextIndex((encode, encode))
        >>> _ = texts.add(["a red fox", "a blue whale"], ids=["fox", "whale"])
        >>> texts.search("blue", k=1).ids[0]
        'whale'
    """

    def __init__(
        self,
        encoder: Any,
        index: LemurIndex | RemoteIndex | None = None,
        *,
        batch_size: int = 32,
        fit_at: int | None = 20_000,
    ) -> None:
        self.encoder = as_encoder(encoder)
        if index is not None and not isinstance(index, LemurIndex | RemoteIndex):
            raise TypeError(f"index must be a LemurIndex or a RemoteIndex, got {type(index).__name__}")
        self.index: LemurIndex = LemurIndex() if index is None else index  # type: ignore[assignment]
        self.batch_size = validate.positive_int(batch_size, "batch_size")
        self.fit_at = None if fit_at is None else validate.positive_int(fit_at, "fit_at")
        if isinstance(index, RemoteIndex):  # which learns where it is, and when it is told to
            self.fit_at = None

    def __len__(self) -> int:
        """The number of documents."""
        return len(self.index)

    def __contains__(self, doc_id: object) -> bool:
        return doc_id in self.index

    def __repr__(self) -> str:
        return f"<TextIndex over {self.index!r}>"

    def _repr_html_(self) -> str:
        return self.index._repr_html_()

    def fit(self, documents: Any = None, queries: Any = None, *, ids: Any = None, **how: Any) -> TextIndex:
        """Encode documents and learn the map from queries, or learn it for the documents there are.

        Args:
            documents: as for :meth:`add`, into an empty index; None learns from the documents that :meth:`add` brought.
            queries: training queries as strings, like those to come; or their token embeddings, as for
                :meth:`lemur_ann.LemurIndex.fit`. None learns from sentences of the documents' own texts, through the query
                encoder.
            ids: as for :meth:`add`.
            **how: num_threads, memory_limit, directory, progress, as for :meth:`lemur_ann.LemurIndex.fit`.

        Returns:
            itself.
        """
        if documents is not None and len(self.index):
            raise ValueError(
                f"the index holds {len(self.index)} documents already; add(documents) brings more, and fit() without "
                "documents learns for those it holds"
            )
        known = set(inspect.signature(LemurIndex.fit).parameters) - {"self", "documents", "queries", "ids", "offsets"}
        validate.names(how, sorted(known), "TextIndex.fit()")
        with progress_lines(how.pop("progress", None)) as lines:
            strings = None if queries is None else _strings(queries, "queries")
            if strings is not None:
                queries = self._queries(strings, lines.task("queries encoded", len(strings)))
            how |= {"queries": queries, "progress": lines}
            if queries is None and how.get("encoder") is None:
                how["encode_query"] = self.encoder.queries
            if documents is None:
                self.index.fit(**how)
            elif not self._take(functools.partial(self.index.fit, **how), documents, ids, lines):
                raise ValueError("fit needs at least one document, got none")
        return self

    def add(self, documents: Any, *, ids: Any = None, note: str | None = None, progress: Show = None) -> TextIndex:
        """Encode and add documents; see :meth:`lemur_ann.LemurIndex.add`.

        Args:
            documents: a sequence of strings; or Arrow data (a table, reader, dataset, or anything with the Arrow PyCapsule
                interface), a frame, or the path of a Parquet file, with a string column ``text``, an optional column ``id``,
                and other columns kept as metadata.
            ids: one for each string; 0, 1, 2, ... where None. Arrow data has a column for it.
            note: as for :meth:`lemur_ann.LemurIndex.add`.
            progress: as for :meth:`lemur_ann.LemurIndex.fit`.

        Returns:
            itself.

        Raises:
            ValueError, TypeError: bad documents or ids, or an encoder that gives something else than one matrix for each text;
                nothing has changed.
        """
        return self._taken(functools.partial(self.index.add, note=note), documents, ids, progress)

    def upsert(self, documents: Any, *, ids: Any = None, note: str | None = None, progress: Show = None) -> TextIndex:
        """As :meth:`add`, in place of documents that have the same ids; see :meth:`lemur_ann.LemurIndex.upsert`."""
        return self._taken(functools.partial(self.index.upsert, note=note), documents, ids, progress)

    def delete(self, ids: Any = None, *, filter: Any = None, note: str | None = None) -> int:
        """:meth:`lemur_ann.LemurIndex.delete`."""
        return self.index.delete(ids, filter=filter, note=note)

    def search(self, queries: str | Sequence[str], k: int = 10, **how: Any) -> Any:
        """The k documents of highest exact MaxSim score among the candidates.

        Args:
            queries: a string, or a sequence of them.
            k: how many to return, at least 1.
            **how: filter, num_candidates, ef_search, shortlist, target_recall, max_loss, exact, num_threads, as for
                :meth:`lemur_ann.LemurIndex.search`.

        Returns:
            :class:`~lemur_ann.Hits` for a string, a list of them for a sequence.
        """
        if isinstance(queries, str):
            return self.search([queries], k, **how)[0]
        strings = _strings(queries, "queries")
        if strings is None:
            raise TypeError(
                f"queries must be a string or a sequence of strings, got {type(queries).__name__}; "
                "index.search takes token embeddings"
            )
        return self.index.search(self._queries(strings, Task()), k, **how)

    def scan(self, query: str, **how: Any) -> Iterator[tuple[Any, float]]:
        """Documents one after the other, best first: :meth:`lemur_ann.LemurIndex.scan`, with filter and num_threads."""
        return self.index.scan(self._query(query), **how)

    def explain(self, query: str, doc_id: Any, *, k: int = 10, num_threads: int | None = None) -> Explanation:
        """Why a document has its score for a query, with the words of both where the encoder names its tokens.

        Args:
            query: a string.
            doc_id, k, num_threads: as for :meth:`lemur_ann.LemurIndex.explain`.

        Returns:
            :class:`~lemur_ann.insight.explanation.Explanation`; print it, show it in a notebook, or draw its ``picture``.

        Raises:
            KeyError: there is no such document.
            ValueError: the encoder does not name a query's or a document's tokens one by one, or names more or fewer than
                are stored: documents that another encoder encoded are explained by ``index.explain``.
        """
        metadata = self.index.metadata([doc_id])
        text = metadata.column("text")[0].as_py() if "text" in metadata.column_names else None
        return self.index.explain(
            self._query(query),
            doc_id,
            k=k,
            query_words=_words(self.encoder.query_words, query, "query"),
            document_words=None if text is None else _words(self.encoder.document_words, text, "document"),
            num_threads=num_threads,
        )

    def explain_miss(self, query: str, doc_id: Any, k: int = 10, **how: Any) -> Miss:
        """Why a search does not find a document, and which settings do.

        Args:
            query: a string.
            doc_id, k: as for :meth:`lemur_ann.LemurIndex.explain_miss`.
            **how: num_candidates, ef_search, shortlist, target_recall, max_loss, filter, num_threads, of that search.

        Returns:
            :class:`~lemur_ann.insight.miss.Miss`; print it, or search again: ``texts.search(query, **miss.settings)``.

        Raises:
            KeyError: there is no such document.
        """
        return self.index.explain_miss(self._query(query), doc_id, k, **how)

    def _query(self, query: str) -> Tokens:
        if not isinstance(query, str):
            raise TypeError(f"query must be a string, got {type(query).__name__}; index.explain takes token embeddings")
        return self._queries([query], Task())[0]

    def texts(self, ids: Any) -> list[str]:
        """The texts of some documents.

        Raises:
            KeyError: an id names no document.
        """
        texts: list[str] = self.index.metadata(ids_of(ids)).column("text").to_pylist()
        return texts

    def _taken(self, into: Callable[..., Any], documents: Any, ids: Any, show: Show) -> TextIndex:
        with progress_lines(show) as lines:
            if not self._take(functools.partial(into, progress=lines), documents, ids, lines):
                into([], progress=lines)  # for the note
            if self.fit_at is not None and not self.index.is_fitted and len(self.index) >= self.fit_at:
                event("fit is due", num_documents=len(self.index))
                self.fit(progress=lines)
        return self

    def _take(self, into: Callable[..., Any], documents: Any, ids: Any, lines: Progress) -> bool:
        """Documents with their tokens, to a method of the index; False where there are none, and it is not called."""
        batches, count = self._batches(documents, ids)
        tables = self._with_tokens(batches, lines.task("documents encoded", count))
        first = list(itertools.islice(tables, -(-TEXTS_IN_MEMORY // self.batch_size)))
        if not first:
            return False
        following = next(tables, None)
        if following is None:
            into(pa.concat_tables(first, promote_options="default"))
            return True
        all_tables = itertools.chain(first, [following], tables)
        rows = (batch.cast(first[0].schema) for table in all_tables for batch in table.to_batches())
        into(pa.RecordBatchReader.from_batches(first[0].schema, rows))
        return True

    def _batches(self, documents: Any, ids: Any) -> tuple[Iterator[pa.Table], int | None]:
        """Tables of at most ``batch_size`` rows with a column ``text``, and how many rows there are, where that is known."""
        if isinstance(documents, (str, PathLike)):
            if isinstance(documents, str) and not documents.endswith((".parquet", ".arrow", ".feather", ".ipc")):
                raise TypeError("documents must be a sequence of strings, or the path of a Parquet file, got one string")
            documents = opened(documents)
        strings = _strings(documents, "documents")
        if strings is not None:
            table = pa.table({"text": pa.array(strings, pa.large_string())})
            if ids is not None:
                table = table.add_column(0, "id", ids_for(ids, len(table)))
            return self._cut(iter(table.to_batches())), len(table)
        arrow = record_batches(documents)
        if arrow is None:
            raise TypeError(f"documents must be a sequence of strings, or Arrow data, got {type(documents).__name__}")
        if ids is not None:
            raise TypeError("documents in Arrow form carry ids as a column; ids= must be None")
        return self._cut(arrow), len(documents) if isinstance(documents, (pa.Table, pa.RecordBatch)) else None

    def _cut(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
        row = 0
        for batch in batches:
            if "text" not in batch.schema.names:
                raise ValueError(f"documents must have a column 'text' of strings, got columns {batch.schema.names}")
            if "tokens" in batch.schema.names:
                raise ValueError("documents have a column 'tokens' already: index.add takes them as they are")
            kind = batch.schema.field("text").type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or str(kind) == "string_view"):
                raise TypeError(f"column 'text' of documents must hold strings, got {kind}")
            if batch.column("text").null_count:
                raise ValueError(f"text is null in row {row + batch.column('text').is_null().index(True).as_py()}")
            for begin in range(0, len(batch), self.batch_size):
                yield pa.Table.from_batches([batch.slice(begin, self.batch_size)])
            row += len(batch)

    def _with_tokens(self, tables: Iterator[pa.Table], task: Task) -> Iterator[pa.Table]:
        dim, row = self.index.dim, 0
        for table in tables:
            batch = encoded(self.encoder.documents, table.column("text").to_pylist(), "document", dim, row)
            row += len(table)
            dim = batch.tokens.shape[1]
            yield table.append_column("tokens", tokens_column(batch.tokens, batch.offsets))
            task.advance(len(table))

    def _queries(self, texts: list[str], task: Task) -> list[Tokens]:
        """A matrix for each text."""
        matrices: list[Tokens] = []
        for begin in range(0, len(texts), self.batch_size):
            batch = encoded(self.encoder.queries, texts[begin : begin + self.batch_size], "query", self.index.dim, begin)
            matrices += np.split(batch.tokens, batch.offsets[1:-1])
            task.advance(len(batch))
        return matrices


def _words(name: Callable[[list[str]], Any] | None, text: str, side: str) -> list[str] | None:
    """The strings of a text's tokens; None where the encoder does not say them."""
    if name is None:
        return None
    given = list(name([text]))
    if len(given) != 1:
        raise ValueError(f"{side}_words of the encoder was given 1 text and returned {len(given)} lists")
    words: list[str] | None = given[0]
    return words


def _strings(value: Any, name: str) -> list[str] | None:
    """The strings of a sequence or an array of them; None where it is something else.

    Raises:
        TypeError: there are strings in it, and something else in a row; or nothing but None.
    """
    if isinstance(value, (pa.Array, pa.ChunkedArray)):
        value = value.to_pylist()
    elif len(getattr(value, "shape", ())) == 1:  # an array, or a Series of pandas or Polars
        value = value.to_list() if hasattr(value, "to_list") else value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        return None
    other = next((row for row, item in enumerate(value) if not isinstance(item, str)), None)
    if other is None:
        return list(value)
    if value[other] is None or any(isinstance(item, str) for item in value):
        raise TypeError(f"{name} must be strings, got {validate.shown(value[other])} in row {other}")
    return None
