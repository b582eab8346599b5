"""A LangChain vector store and a retriever whose texts are found by late interaction: ``pip install lemur_ann[langchain]``.

::

    from lemur_ann.adapters.langchain import LemurRetriever, LemurVectorStore

    store = LemurVectorStore(encoder)  # a late-interaction model, such as sentence-transformers' MultiVectorEncoder
    store.add_documents(documents)
    store.similarity_search_with_score("a question", k=4, filter={"source": "manual"})
    retriever = LemurRetriever(store=store, k=4)  # or store.as_retriever()

Where LangChain passes an ``Embeddings``, which makes one vector of a text, this takes the late-interaction encoder.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

try:
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.runnables.config import run_in_executor
    from langchain_core.vectorstores import VectorStore
    from pydantic import Field, field_validator
except ImportError as error:
    raise ImportError("lemur_ann.adapters.langchain needs langchain-core: pip install lemur_ann[langchain]") from error

from lemur_ann import LemurIndex, RemoteIndex, TextIndex, maxsim, validate
from lemur_ann.encoders import encoded

from ._remote import everything

INTEGER = re.compile(r"0|-?[1-9]\d{0,17}")  # a string that stands for an int64 id
ROUNDING = 0.01  # what float16 tokens of unit length may exceed a relevance of 1 by

Tokens = npt.NDArray[np.floating[Any]]


class LemurVectorStore(VectorStore):  # type: ignore[misc,unused-ignore]
    """A LangChain vector store over a :class:`~lemur_ann.TextIndex`.

    Texts are in the index's metadata column ``text``, and a document's metadata, which must be JSON, in the column
    ``metadata``. Other columns of an index made elsewhere are metadata too, where they are not null.

    The asynchronous methods do the same in LangChain's thread pool. Searches take the options of
    :meth:`lemur_ann.LemurIndex.search`: num_candidates, ef_search, shortlist, target_recall, max_loss, exact, num_threads.

    A ``filter`` is one of these:

    - a dict: documents whose metadata has all of its keys, with equal values;
    - a callable that takes a Document and says whether it may be found; like a dict, it is asked about every document;
    - a pyarrow expression over ``id``, ``text`` and other columns of the index, such as ``pc.field("id") != "intro"``; not if
      a service has the index;
    - a collection of ids.

    Args:
        encoder: anything :func:`lemur_ann.encoders.as_encoder` takes; or a :class:`~lemur_ann.TextIndex`, with nothing else.
        index: as for :class:`~lemur_ann.TextIndex`; ``LemurIndex.open(path)`` keeps every change on disk, and
            ``lemur_ann.connect(address, name)`` is one that a service has, without :meth:`save_local`.
        **options: batch_size, fit_at, as for :class:`~lemur_ann.TextIndex`.

    Attributes:
        texts: the TextIndex; ``store.texts.index`` is the index.
    """

    def __init__(self, encoder: Any, index: LemurIndex | RemoteIndex | None = None, **options: Any) -> None:
        if isinstance(encoder, TextIndex) and (index is not None or options):
            raise TypeError("a TextIndex has its index and its options; pass nothing else")
        self.texts = encoder if isinstance(encoder, TextIndex) else TextIndex(encoder, index, **options)
        self._decoded: tuple[int, list[tuple[Any, dict[str, Any]]]] | None = None

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Any,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> LemurVectorStore:
        """A store of these texts; ``embedding`` is the encoder, and ``kwargs`` are those of the constructor."""
        store = cls(embedding, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    def fit(self, queries: Any = None, **how: Any) -> LemurVectorStore:
        """Learn the map that keeps searches quick where there are many documents; see :meth:`lemur_ann.TextIndex.fit`.

        Args:
            queries: training queries, strings like those to come; None learns from sentences of the documents.
            **how: num_threads, memory_limit, directory, progress.
        """
        self.texts.fit(queries=queries, **how)
        return self

    # Changing it

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Add texts, in place of those that have the same ids.

        Args:
            texts: what the encoder takes.
            metadatas: one for each text; values must be JSON. None, here or among them, is none.
            ids: one for each text, strings, or integers and UUIDs, which become strings, as in a Document; None, here or among
                them, makes a UUID.
            **kwargs: ignored: LangChain passes what is meant for other stores, such as ``batch_size``.

        Returns:
            the ids.

        Raises:
            ValueError: an id twice, an empty one, or a number of ids or metadatas that differs from that of texts; nothing has
                changed.
            TypeError: texts that are no strings, ids of other kinds, or metadata that is not JSON; nothing has changed.
        """
        texts = _listed(texts, "texts")
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"texts[{row}] must be a string, got {type(text).__name__}")
        nothing = [None] * len(texts)
        given, about = (_listed(nothing if v is None else v, n) for n, v in (("ids", ids), ("metadatas", metadatas)))
        for name, values in (("metadatas", about), ("ids", given)):
            if len(values) != len(texts):
                raise ValueError(f"expected one of {name} for each of {len(texts)} texts, got {len(values)}")
        keys = [str(uuid.uuid4()) if doc_id is None else _key(doc_id, f"ids[{row}]") for row, doc_id in enumerate(given)]
        named = [
            f"metadatas[{row}]" if given[row] is None else f"metadata of document {keys[row]!r}" for row in range(len(keys))
        ]
        written = [_json(metadata, name) for name, metadata in zip(named, about, strict=True)]
        columns = {"id": keys, "text": texts, "metadata": written}
        self.texts.upsert(pa.table({name: pa.array(column, pa.large_string()) for name, column in columns.items()}))
        return keys

    def delete(self, ids: list[str] | None = None, *, filter: Any = None, **kwargs: Any) -> bool:
        """Delete documents by id or by ``filter``, or all where both are None; ids that name no document count for nothing.

        Returns:
            True.

        Raises:
            TypeError: ids and filter, ids that are none, or another argument: ignored, it would delete all.
            ValueError: an empty dict as filter, which would delete all.
        """
        if kwargs or (ids is not None and filter is not None):
            raise TypeError(f"delete takes ids or filter=, got {', '.join(kwargs) or 'both'}")
        if isinstance(filter, dict) and not filter:
            raise ValueError("filter is empty, and would delete all documents; delete() without arguments does")
        if ids is not None:
            chosen: Any = self._known(ids)
        else:
            chosen = everything(self.texts.index) if filter is None else self._filter(filter)
        self.texts.delete(filter=chosen)
        return True

    # Reading it

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents of those ids that name one, in their order."""
        return list(_documents(self._table(self.texts.index.metadata, ids)).values())

    def similarity_search(self, query: str, k: int = 4, filter: Any = None, **kwargs: Any) -> list[Document]:
        """The k documents of highest MaxSim score, best first."""
        return self.similarity_search_by_vector(self._encoded(query), k, filter=filter, **kwargs)

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: Any = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """The same with exact MaxSim scores: higher is better; at most the number of query tokens, for unit vectors."""
        return self.similarity_search_with_score_by_vector(self._encoded(query), k, filter=filter, **kwargs)

    def similarity_search_by_vector(self, embedding: Any, k: int = 4, filter: Any = None, **kwargs: Any) -> list[Document]:
        """The same for a query that is encoded already; ``embedding`` is its tokens, (num_tokens, dim)."""
        return [document for document, _ in self.similarity_search_with_score_by_vector(embedding, k, filter=filter, **kwargs)]

    def similarity_search_with_score_by_vector(
        self, embedding: Any, k: int = 4, filter: Any = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """The same for a query that is encoded already, with scores."""
        hits = self.texts.index.search(embedding, k, filter=self._filter(filter), **kwargs)
        documents = _documents(self._found(self.texts.index.metadata, hits.ids.tolist()))
        return [(documents[doc_id], score) for doc_id, score in hits if doc_id in documents]

    def _similarity_search_with_relevance_scores(self, query: str, k: int = 4, **kwargs: Any) -> list[tuple[Document, float]]:
        """What ``score_threshold`` is compared with: the mean over query tokens of the best cosine, negative means being 0.

        The score is divided by the sum of the lengths of the query's tokens. Where those of documents are longer than 1, the
        result may exceed 1, and LangChain warns.
        """
        tokens = self._encoded(query)
        found = self.similarity_search_with_score_by_vector(tokens, k, **kwargs)
        return [(document, _relevance(score / _lengths(tokens).sum())) for document, score in found]

    async def _asimilarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        found: list[tuple[Document, float]] = await run_in_executor(
            None, self._similarity_search_with_relevance_scores, query, k, **kwargs
        )
        return found

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, filter: Any = None, **kwargs: Any
    ) -> list[Document]:
        """k of the ``fetch_k`` best documents, each chosen for its relevance and for how little of it the chosen ones have.

        Relevance is as for ``score_threshold``. What a document has in common with another is the same with its tokens as the
        query: MaxSim between the two, divided by the number of its tokens, so that it is not symmetric.

        Args:
            query: a text.
            k: how many to return.
            fetch_k: how many to choose from, never fewer than k.
            lambda_mult: 1 counts relevance alone, 0 difference alone, after the best document.
            filter, **kwargs: as for other searches.
        """
        tokens, k = self._encoded(query), validate.positive_int(k, "k")
        hits = self.texts.index.search(
            tokens, max(k, validate.integer(fetch_k, "fetch_k", least=0)), filter=self._filter(filter), **kwargs
        )
        table, scores = self._found(self.texts.index.get, hits.ids.tolist()), dict(hits)
        relevance = np.array([scores[doc_id] for doc_id in table["id"].to_pylist()]) / _lengths(tokens).sum()
        matrices = [row.values.flatten().to_numpy().reshape(len(row), -1) for row in table["tokens"]]
        chosen = _diverse(relevance, matrices, k, lambda_mult)
        return list(_documents(table.drop_columns(["tokens"]).take(chosen)).values()) if chosen else []

    # Keeping it

    def save_local(self, folder_path: str | PathLike[str]) -> None:
        """Save all but the encoder, in place of an index that is there; see :meth:`lemur_ann.LemurIndex.save`."""
        self.texts.index.save(folder_path)

    @classmethod
    def load_local(cls, folder_path: str | PathLike[str], embedding: Any, **kwargs: Any) -> LemurVectorStore:
        """A store that was saved, with the encoder it had; changes are in memory until it is saved again.

        ``LemurVectorStore(encoder, LemurIndex.open(path))`` has every change on disk. Errors are those of
        :meth:`lemur_ann.LemurIndex.load`, and ``kwargs`` go to the constructor.
        """
        return cls(embedding, LemurIndex.load(folder_path), **kwargs)

    def _encoded(self, query: str) -> Tokens:
        if not isinstance(query, str):
            raise TypeError(f"query must be a string, got {type(query).__name__}")
        return encoded(self.texts.encoder.queries, [query], "query", self.texts.index.dim).tokens

    def _filter(self, filter: Any) -> Any:
        """A filter as the index takes it."""
        if isinstance(filter, dict):
            keys = [key for part in (filter, *filter.values()) if isinstance(part, dict) for key in part]
            operator = next((key for key in keys if str(key).startswith("$")), None)
            if operator is not None:
                raise ValueError(f"a dict filters by equality and has no operator {operator!r}; pass a callable instead")
            return [key for key, metadata in self._metadata() if filter.items() <= metadata.items()]
        if callable(filter):
            documents = _documents(self._table(self.texts.index.metadata))
            return [key for key, document in documents.items() if filter(document)]
        return filter

    def _metadata(self) -> list[tuple[Any, dict[str, Any]]]:
        """The id and the metadata of each document; read again once the index has changed."""
        version, known = self.texts.index.version, self._decoded
        if known is None or known[0] != version:
            rows = _rows(self._table(self.texts.index.metadata))
            self._decoded = known = version, [(key, metadata) for key, _, metadata in rows]
        return known[1]

    def _table(self, read: Callable[[Any], pa.Table], ids: Iterable[Any] | None = None) -> pa.Table:
        """What the index says of those ids that name a document; None means all."""
        while True:
            with suppress(KeyError):  # another thread has deleted one since
                return read(self.texts.index.ids() if ids is None else self._known(ids))

    def _found(self, read: Callable[[Any], pa.Table], ids: list[Any]) -> pa.Table:
        """The same of ids that a search found: all are there, but for what another thread has deleted since."""
        with suppress(KeyError):
            return read(ids)
        return self._table(read, ids)

    def _known(self, ids: Iterable[Any]) -> list[Any]:
        """Those that name a document. LangChain's ids are strings, also where the index's are integers."""
        known: dict[Any, None] = {}
        for doc_id in [ids] if isinstance(ids, str) else _listed(ids, "ids", ordered=False):
            key = doc_id if doc_id == "" else _key(doc_id, "an id")
            if key in self.texts:
                known[key] = None
            elif INTEGER.fullmatch(key) and int(key) in self.texts:
                known[int(key)] = None
        return list(known)


class LemurRetriever(BaseRetriever):  # type: ignore[misc,unused-ignore]
    """A LangChain retriever over a :class:`LemurVectorStore` or a :class:`~lemur_ann.TextIndex`.

    ``invoke`` and ``ainvoke`` take k, filter and options of the search too, for one call.

    Attributes:
        store: either of the two.
        k: documents to return.
        filter: as for :class:`LemurVectorStore`.
        search_kwargs: options of the search, such as ``{"target_recall": .95}``.
    """

    store: LemurVectorStore
    k: int = Field(default=4, ge=1)
    filter: Any = None
    search_kwargs: dict[str, Any] = Field(default_factory=dict)

    @field_validator("store", mode="before")
    @classmethod
    def _as_store(cls, value: Any) -> Any:
        return LemurVectorStore(value) if isinstance(value, TextIndex) else value

    def _get_relevant_documents(self, query: str, *, run_manager: Any, **kwargs: Any) -> list[Document]:
        return self.store.similarity_search(query, **self._how(kwargs))

    async def _aget_relevant_documents(self, query: str, *, run_manager: Any, **kwargs: Any) -> list[Document]:
        found: list[Document] = await self.store.asimilarity_search(query, **self._how(kwargs))
        return found

    def _how(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {"k": self.k, "filter": self.filter, **self.search_kwargs, **kwargs}


def _listed(values: Any, name: str, *, ordered: bool = True) -> list[Any]:
    """A list of what a caller passed for several; TypeError where it is one, or has no order and needs one."""
    wrong = (str, bytes, Mapping, *((set, frozenset) if ordered else ()))
    if isinstance(values, wrong) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a list, got {type(values).__name__}")
    return list(values)


def _key(doc_id: Any, name: str) -> str:
    """An id as LangChain has it, a string; ValueError where it is empty, TypeError where it is none."""
    if isinstance(doc_id, bool) or not isinstance(doc_id, (str, int, np.integer, uuid.UUID)):
        raise TypeError(f"{name} must be a string, got {type(doc_id).__name__}")
    if doc_id == "":
        raise ValueError(f"{name} is empty; None makes one")
    return str(doc_id)


def _json(metadata: Any, name: str) -> str:
    if metadata is not None and not isinstance(metadata, Mapping):
        raise TypeError(f"{name} must be a dict, got {type(metadata).__name__}")
    try:
        return json.dumps(dict(metadata or {}))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be JSON: {error}") from error


def _rows(table: pa.Table) -> Iterator[tuple[Any, str, dict[str, Any]]]:
    """The id, the text and the metadata of each document."""
    others = table.drop_columns([name for name in ("id", "text", "metadata") if name in table.column_names]).to_pylist()
    nothing = [None] * len(table)
    texts, written = (table[name].to_pylist() if name in table.column_names else nothing for name in ("text", "metadata"))
    for doc_id, text, own, other in zip(table["id"].to_pylist(), texts, written, others or nothing, strict=True):
        metadata = {name: value for name, value in (other or {}).items() if value is not None}
        yield doc_id, text or "", metadata | json.loads(own or "{}")


def _documents(table: pa.Table) -> dict[Any, Document]:
    """New Documents, by the id the index has."""
    rows = _rows(table)
    return {doc_id: Document(id=str(doc_id), page_content=text, metadata=metadata) for doc_id, text, metadata in rows}


def _lengths(tokens: Tokens) -> npt.NDArray[np.float32]:
    lengths: npt.NDArray[np.float32] = np.linalg.norm(tokens.astype(np.float32), axis=1)
    return lengths


def _relevance(mean: float) -> float:
    return float(mean) if mean > 1 + ROUNDING else min(max(float(mean), 0.0), 1.0)


def _diverse(relevance: npt.NDArray[Any], matrices: list[Tokens], k: int, lambda_mult: float) -> list[int]:
    """Maximal marginal relevance, over relevance in descending order."""
    chosen: list[int] = []
    if not matrices:
        return chosen
    flat = np.concatenate(matrices)
    starts = np.cumsum([0] + [len(matrix) for matrix in matrices[:-1]])
    lengths = np.add.reduceat(_lengths(flat), starts)
    shared = np.full(len(matrices), -1.0)  # how much of each document the chosen one nearest to it has
    while len(chosen) < min(k, len(matrices)):
        worth = lambda_mult * relevance - (1 - lambda_mult) * shared
        worth[chosen] = -np.inf
        chosen.append(int(worth.argmax()))
        best = maxsim.token_maxima(flat, matrices[chosen[-1]], [0, len(matrices[chosen[-1]])])[:, 0]
        shared = np.maximum(shared, np.add.reduceat(best, starts) / lengths)
    return chosen
