"""A document store and a retriever for Haystack: documents go in as texts, and are found by MaxSim of their tokens.

``pip install lemur_ann[haystack]``::

    from haystack import Document, Pipeline
    from lemur_ann.adapters.haystack import LemurDocumentStore, LemurRetriever
    from sentence_transformers import MultiVectorEncoder

    store = LemurDocumentStore(MultiVectorEncoder, {"model_name_or_path": "..."}, path="my_index")
    store.write_documents([Document(content="a red fox", meta={"year": 1999})])

    pipeline = Pipeline()
    pipeline.add_component("retriever", LemurRetriever(store, top_k=3))
    found = pipeline.run({"retriever": {"query": "a fox"}})["retriever"]["documents"]

A document's tokens, its text and the JSON of its other fields are kept in one :class:`~lemur_ann.LemurIndex`. Those without
text can be stored, filtered and deleted like all others, and no query finds them.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import os
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, ParamSpec, TypeVar
from weakref import WeakSet, WeakValueDictionary

import pyarrow as pa

from lemur_ann import LemurIndex, RemoteIndex, TextIndex, validate
from lemur_ann.encoders import as_encoder
from lemur_ann.events import after_fork

from ._remote import is_not

try:
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.core.errors import SerializationError
    from haystack.document_stores.errors import DuplicateDocumentError
    from haystack.document_stores.types import DuplicatePolicy, FilterPolicy, apply_filter_policy
    from haystack.errors import FilterError
    from haystack.utils import deserialize_callable, serialize_callable
    from haystack.utils.filters import document_matches_filter
except ImportError as error:
    raise ImportError("lemur_ann.adapters.haystack needs haystack-ai 3: pip install lemur_ann[haystack]") from error

P = ParamSpec("P")
T = TypeVar("T")
Row = tuple[str, str, str]  # id, text, and the other fields of a Document as JSON


def _in_thread(method: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    """The same as a coroutine function, so that an event loop goes on meanwhile."""

    @functools.wraps(method)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.to_thread(method, *args, **kwargs)

    return call


class LemurDocumentStore:
    """Documents in a :class:`~lemur_ann.LemurIndex`, encoded when they are written.

    Of each method there is an ``_async`` twin that runs it in a thread. Any number of threads may use a store, and all stores
    of one path in a process share one index.

    Args:
        encoder: what makes the encoder when it is first needed: a class, such as sentence-transformers' ``MultiVectorEncoder``,
            or a function, that can be imported by its name; such a store can be serialised. Or an encoder, anything that
            :func:`lemur_ann.encoders.as_encoder` takes; such a store cannot.
        encoder_kwargs: arguments for the class or function, of plain types where the store is to be serialised.
        path: folder of the index, which is opened, or made, at first use; None keeps it in memory, and a store restored from
            its dictionary is then empty. A relative path is that of now, whatever the working directory is at first use, and
            stands as it is in the dictionary.
        read_only: never write, and take no lock: for more processes that search the folder. ``store.index.refresh()`` reads
            what another process has written since.
        index_options: options for a new index, as :class:`~lemur_ann.LemurIndex` takes them; one that is there keeps its own.
        batch_size: texts given to the encoder at a time.
        fit_at: number of documents at which a write also learns the map, which takes minutes; None leaves that to :meth:`fit`.
        index: one that is open, or that a service has, see :func:`lemur_ann.connect`, in the place of a path; such a store
            cannot be serialised, and leaves it to you to close it.

    Raises:
        TypeError, ValueError: it is no encoder, or a bad option.
    """

    def __init__(
        self,
        encoder: Any,
        encoder_kwargs: dict[str, Any] | None = None,
        *,
        path: str | os.PathLike[str] | None = None,
        read_only: bool = False,
        index_options: dict[str, Any] | None = None,
        batch_size: int = 32,
        fit_at: int | None = 20_000,
        index: LemurIndex | RemoteIndex | None = None,
    ) -> None:
        if not _is_factory(encoder):
            as_encoder(encoder)
            if encoder_kwargs is not None:
                raise TypeError(f"encoder_kwargs go with a class or a function, and encoder is {type(encoder).__name__}")
        if validate.boolean(read_only, "read_only") and path is None:
            raise ValueError("read_only=True needs a path")
        if index is not None and (path is not None or index_options is not None):
            raise ValueError("index= takes the place of path= and index_options=; pass one of them")
        LemurIndex(**index_options or {})  # bad options are refused here, not at first use
        self.encoder = encoder
        self.encoder_kwargs = encoder_kwargs
        self.path = None if path is None else os.fspath(path)
        self._folder = None if path is None else validate.path(path).absolute()
        self.read_only = read_only
        self.index_options = index_options
        self.batch_size = batch_size
        self.fit_at = fit_at
        self._given = index
        self._texts: TextIndex | None = None
        self._opened: _Opened
        self._decoded: dict[Row, Document] = {}  # those a filter has seen; never given out, since callers may change them

    @property
    def texts(self) -> TextIndex:
        """The index with its encoder, both made when they are first asked for."""
        texts = self._texts
        if texts is None:
            with _OPENING:
                if self._texts is None:
                    encoder = self.encoder(**self.encoder_kwargs or {}) if _is_factory(self.encoder) else self.encoder
                    self._opened = _Opened.by(self)
                    self._texts = TextIndex(encoder, self._opened.index, batch_size=self.batch_size, fit_at=self.fit_at)
                texts = self._texts
        return texts

    @property
    def index(self) -> LemurIndex:
        """The index, for what Haystack has no name for: ``store.index.tune(...)``, ``store.index.save(path)``."""
        return self.texts.index

    def close(self) -> None:
        """Let other processes write to the folder, once all stores of its path are closed; the next use opens it again."""
        with _OPENING:
            if self.path is not None and self._texts is not None:
                self._opened.users.discard(self)
                if not self._opened.users:
                    self._opened.index.close()
                    _OPENED.pop(self._opened.key, None)
                self._texts = None

    def to_dict(self) -> dict[str, Any]:
        """The store as a dictionary of plain types; not its documents, which are at its path.

        Raises:
            SerializationError: the encoder is an object, or a class or function that cannot be imported by its name; or the
                store is over an ``index``.
        """
        if self._given is not None:
            raise SerializationError(f"a store over an open index ({self._given!r}) cannot be serialised; one over a path can")
        data: dict[str, Any] = default_to_dict(
            self,
            encoder=_name_of(self.encoder),
            encoder_kwargs=self.encoder_kwargs,
            path=self.path,
            read_only=self.read_only,
            index_options=self.index_options,
            batch_size=self.batch_size,
            fit_at=self.fit_at,
        )
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LemurDocumentStore:
        """The store that :meth:`to_dict` described.

        Raises:
            DeserializationError: the encoder's module is not among those Haystack was told to trust, or has no such name.
        """
        parameters = dict(data["init_parameters"])
        parameters["encoder"] = deserialize_callable(parameters["encoder"])
        store: LemurDocumentStore = default_from_dict(cls, {**data, "init_parameters": parameters})
        return store

    def fit(self, queries: Any = None, **how: Any) -> LemurDocumentStore:
        """Learn the map that makes searches quick, for the documents there are; see :meth:`lemur_ann.TextIndex.fit`.

        Args:
            queries: training queries as strings, like those to come; None takes sentences of the documents.
            **how: num_threads, memory_limit, directory, progress.

        Returns:
            itself.
        """
        self.texts.fit(queries=queries, **how)
        return self

    def count_documents(self) -> int:
        """The number of documents."""
        return len(self.index)

    def filter_documents(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """The documents that match, all without filters, oldest first.

        Raises:
            FilterError: not a filter.
        """
        return [_document(row) for row in self._matching(filters)]

    def write_documents(self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE) -> int:
        """Encode and store documents: all of them, or none where it raises.

        Args:
            documents: their meta and other fields must be what JSON can hold.
            policy: for ids that are there already, or twice in ``documents``; NONE means FAIL.

        Returns:
            how many were written; with OVERWRITE, how many were given.

        Raises:
            DuplicateDocumentError: an id is there already, and the policy is FAIL.
            ValueError: not a list of documents, or one that JSON cannot hold.
        """
        if not isinstance(documents, Sequence) or not all(isinstance(document, Document) for document in documents):
            raise ValueError("documents must be a list of Documents")
        for document in documents:
            if not isinstance(document.id, str) or not isinstance(document.content, (str, type(None))):
                raise ValueError(
                    f"a Document must have strings as id and content, got {document.id!r}, {document.content!r:.80}"
                )
        index = self.index
        with self._opened.changing:
            rows: dict[str, Row] = {}
            for document in documents:
                if policy != DuplicatePolicy.OVERWRITE and (document.id in rows or document.id in index):
                    if policy == DuplicatePolicy.SKIP:
                        continue
                    raise DuplicateDocumentError(f"ID '{document.id}' already exists.")
                rows[document.id] = _row(document)
            if rows:
                columns = zip(("id", "text", "metadata"), zip(*rows.values(), strict=True), strict=True)
                self.texts.upsert(pa.table({name: pa.array(column, pa.large_string()) for name, column in columns}))
        return len(documents) if policy == DuplicatePolicy.OVERWRITE else len(rows)

    def delete_documents(self, document_ids: list[str]) -> None:
        """Delete documents; ids that name none are passed over."""
        if isinstance(document_ids, (bytes, dict)):
            raise TypeError(f"document_ids must be a list of strings, got {type(document_ids).__name__}")
        index, ids = self.index, [document_ids] if isinstance(document_ids, str) else document_ids
        with self._opened.changing:
            known = [doc_id for doc_id in dict.fromkeys(ids) if doc_id in index]
            if known:
                index.delete(known)

    def delete_all_documents(self) -> None:
        """Delete all documents; what was learned stays."""
        self.delete_documents(self.index.ids().to_pylist())

    def delete_by_filter(self, filters: dict[str, Any]) -> int:
        """Delete the documents that match, and say how many.

        Raises:
            FilterError: not a filter, or an empty one; :meth:`delete_all_documents` deletes all.
        """
        _check_filters(filters)
        _check_conditions(filters, "delete_all_documents() deletes all")
        index = self.index
        with self._opened.changing:
            ids = [row[0] for row in self._matching(filters)]
            return index.delete(ids) if ids else 0

    def update_by_filter(self, filters: dict[str, Any], meta: dict[str, Any]) -> int:
        """Merge ``meta`` into that of the documents that match, and say how many; they are not encoded anew.

        Raises:
            FilterError: not a filter, or an empty one.
            ValueError: ``meta`` is not what JSON can hold.
        """
        _check_filters(filters)
        _check_conditions(filters, "name a condition that all documents meet to change all")
        index = self.index
        with self._opened.changing:
            rows = self._matching(filters)
            if rows:
                changed = [_row(_document(row, meta=meta)) for row in rows]
                table = index.get([row[0] for row in rows])
                column = pa.array([row[2] for row in changed], pa.large_string())
                index.upsert(table.set_column(table.column_names.index("metadata"), "metadata", column))
            return len(rows)

    def count_documents_by_filter(self, filters: dict[str, Any]) -> int:
        """The number of documents that match, of all where the filters are empty."""
        return len(self._matching(filters))

    def count_unique_metadata_by_filter(self, filters: dict[str, Any], metadata_fields: list[str]) -> dict[str, int]:
        """The number of different values of each field, with or without ``meta.`` before it, in documents that match."""
        documents = self.filter_documents(filters)
        given = [metadata_fields] if isinstance(metadata_fields, str) else metadata_fields
        names = [field.removeprefix("meta.") for field in given]
        return {name: len(_values(documents, name)) for name in names}

    def get_metadata_fields_info(self) -> dict[str, dict[str, str]]:
        """The fields of meta there are, each as ``{"type": "boolean", "int", "float" or "keyword"}``."""
        kinds = {bool: "boolean", int: "int", float: "float"}
        fields = (item for document in self.filter_documents() for item in document.meta.items())
        return {name: {"type": kinds.get(type(value), "keyword")} for name, value in fields if value is not None}

    def get_metadata_field_min_max(self, metadata_field: str) -> dict[str, Any]:
        """``{"min": ..., "max": ...}`` of a field, None where it has no values, or some that do not compare."""
        values = _values(self.filter_documents(), metadata_field.removeprefix("meta.")).values()
        try:
            return {"min": min(values), "max": max(values)} if values else {"min": None, "max": None}
        except TypeError:
            return {"min": None, "max": None}

    def get_metadata_field_unique_values(
        self,
        metadata_field: str,
        search_term: str | None = None,
        from_: int = 0,
        size: int = 10,
        filters: dict[str, Any] | None = None,
    ) -> tuple[list[Any], int]:
        """``size`` different values of a field from the ``from_``-th on, sorted as strings, and how many there are in all.

        Args:
            metadata_field: with or without ``meta.`` before it.
            search_term: what the value, as a string, must contain, in upper or lower case.
            from_, size: the page.
            filters: only of documents that match.
        """
        values = _values(self.filter_documents(filters), metadata_field.removeprefix("meta."))
        term = (search_term or "").lower()
        chosen = sorted((str(value), key) for key, value in values.items() if term in str(value).lower())
        return [values[key] for _, key in chosen[from_ : from_ + size]], len(chosen)

    def retrieve(
        self, query: str, filters: dict[str, Any] | None = None, top_k: int = 10, **search_options: Any
    ) -> list[Document]:
        """The ``top_k`` documents of highest MaxSim that have text and match, best first, each with that as its ``score``.

        Args:
            query: a text, for the query encoder.
            filters: in Haystack's filter language.
            top_k: how many at most; 0 finds none.
            **search_options: num_candidates, ef_search, shortlist, target_recall, max_loss, exact, num_threads, as for
                :meth:`lemur_ann.LemurIndex.search`.

        Raises:
            FilterError: not a filter.
            ValueError, TypeError: a bad ``top_k`` or search option.
        """
        matching = [row[0] for row in self._matching(filters) if row[1]] if filters else None
        allowed = is_not(self.index, "text", "") if matching is None else matching
        if top_k == 0 or len(self.index) == 0:
            return []
        hits = self.texts.search(query, top_k, filter=allowed, **search_options)
        rows = self._rows(hits.ids.tolist())
        return [_document(rows[doc_id], score=score) for doc_id, score in hits if doc_id in rows]

    close_async = _in_thread(close)
    count_documents_async = _in_thread(count_documents)
    filter_documents_async = _in_thread(filter_documents)
    write_documents_async = _in_thread(write_documents)
    delete_documents_async = _in_thread(delete_documents)
    delete_all_documents_async = _in_thread(delete_all_documents)
    delete_by_filter_async = _in_thread(delete_by_filter)
    update_by_filter_async = _in_thread(update_by_filter)
    count_documents_by_filter_async = _in_thread(count_documents_by_filter)
    count_unique_metadata_by_filter_async = _in_thread(count_unique_metadata_by_filter)
    get_metadata_fields_info_async = _in_thread(get_metadata_fields_info)
    get_metadata_field_min_max_async = _in_thread(get_metadata_field_min_max)
    get_metadata_field_unique_values_async = _in_thread(get_metadata_field_unique_values)
    retrieve_async = _in_thread(retrieve)

    def _rows(self, ids: list[str]) -> dict[str, Row]:
        """What is stored of some documents, by id; those deleted in another thread meanwhile are left out."""
        while ids:
            try:
                table = self.index.metadata(ids)
            except KeyError:
                ids = [doc_id for doc_id in ids if doc_id in self.index]
                continue
            columns = (table.column(name).to_pylist() for name in ("id", "text", "metadata"))
            return {row[0]: row for row in zip(*columns, strict=True)}
        return {}

    def _matching(self, filters: dict[str, Any] | None) -> list[Row]:
        if filters:
            _check_filters(filters)
        rows = list(self._rows(self.index.ids().to_pylist()).values())
        if not filters:
            return rows
        known = self._decoded
        self._decoded = decoded = {row: known.get(row) or _document(row) for row in rows}
        return [row for row, document in decoded.items() if document_matches_filter(filters, document)]


@component
class LemurRetriever:
    """Finds the documents of a :class:`LemurDocumentStore` that answer a query best, by MaxSim.

    Args:
        document_store: where to search.
        filters: which documents to search, unless a run says otherwise.
        top_k: how many to find, at least 1, unless a run says otherwise.
        filter_policy: whether filters of a run replace those above, or are merged with them.
        search_options: num_candidates, ef_search, shortlist, target_recall, max_loss, exact, num_threads, as for
            :meth:`lemur_ann.LemurIndex.search`.

    Raises:
        TypeError: another kind of store.
        ValueError: a bad ``top_k``.
    """

    def __init__(
        self,
        document_store: LemurDocumentStore,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        filter_policy: FilterPolicy = FilterPolicy.REPLACE,
        search_options: dict[str, Any] | None = None,
    ) -> None:
        if not isinstance(document_store, LemurDocumentStore):
            raise TypeError(f"document_store must be a LemurDocumentStore, got {type(document_store).__name__}")
        if top_k <= 0:
            raise ValueError(f"top_k must be greater than 0, but got {top_k}")
        self.document_store = document_store
        self.filters = filters
        self.top_k = top_k
        self.filter_policy = filter_policy
        self.search_options = search_options

    def warm_up(self) -> None:
        """Make the encoder and open the index now, rather than at the first query."""
        _ = self.document_store.texts

    def close(self) -> None:
        """Close the store."""
        self.document_store.close()

    def to_dict(self) -> dict[str, Any]:
        """The retriever and its store as a dictionary of plain types; see :meth:`LemurDocumentStore.to_dict`."""
        data: dict[str, Any] = default_to_dict(
            self,
            document_store=self.document_store,
            filters=self.filters,
            top_k=self.top_k,
            filter_policy=self.filter_policy.value,
            search_options=self.search_options,
        )
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LemurRetriever:
        """The retriever that :meth:`to_dict` described."""
        parameters = dict(data["init_parameters"])
        if "filter_policy" in parameters:
            parameters["filter_policy"] = FilterPolicy.from_str(parameters["filter_policy"])
        retriever: LemurRetriever = default_from_dict(cls, {**data, "init_parameters": parameters})
        return retriever

    @component.output_types(documents=list[Document])  # type: ignore[untyped-decorator,unused-ignore]
    def run(self, query: str, filters: dict[str, Any] | None = None, top_k: int | None = None) -> dict[str, list[Document]]:
        """The documents for a query, best first.

        Args:
            query: a text.
            filters: which documents to search; see ``filter_policy``.
            top_k: how many to find; None means the retriever's own.

        Returns:
            ``{"documents": [...]}``, each with its MaxSim as ``score``.
        """
        return {"documents": self.document_store.retrieve(query, *self._how(filters, top_k), **self.search_options or {})}

    @component.output_types(documents=list[Document])  # type: ignore[untyped-decorator,unused-ignore]
    async def run_async(
        self, query: str, filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """:meth:`run`, in a thread."""
        store = self.document_store
        return {"documents": await store.retrieve_async(query, *self._how(filters, top_k), **self.search_options or {})}

    def _how(self, filters: dict[str, Any] | None, top_k: int | None) -> tuple[dict[str, Any] | None, int]:
        return apply_filter_policy(self.filter_policy, self.filters, filters), self.top_k if top_k is None else top_k


class _Opened:
    """An index, and what all stores over it have in common."""

    def __init__(self, index: LemurIndex | RemoteIndex, key: tuple[str, bool]) -> None:
        self.index: LemurIndex = index  # type: ignore[assignment]
        self.key = key
        self.users: WeakSet[LemurDocumentStore] = WeakSet()
        self._make_lock()
        after_fork(self, _Opened._make_lock)

    def _make_lock(self) -> None:
        self.changing = threading.RLock()  # held from a look at what is there to the change that depends on it

    @classmethod
    def by(cls, store: LemurDocumentStore) -> _Opened:
        """The one that the stores of this path have opened, or a new one; the caller holds ``_OPENING``."""
        options = store.index_options or {}
        if store._given is not None:
            return cls(store._given, ("", False))
        if store._folder is None:
            return cls(LemurIndex(**options), ("", False))
        key = (os.path.realpath(store._folder), store.read_only)
        opened = _OPENED.get(key)
        if opened is None:
            try:
                index = LemurIndex.open(store._folder, read_only=store.read_only, **{} if store.read_only else options)
            except TypeError:  # the options are for a new index, and one is there
                index = LemurIndex.open(store._folder)
            _OPENED[key] = opened = cls(index, key)
        opened.users.add(store)
        return opened


def _free_opening(module: Any) -> None:
    module._OPENING = threading.RLock()


_OPENING = threading.RLock()
after_fork(sys.modules[__name__], _free_opening)
_OPENED: WeakValueDictionary[tuple[str, bool], _Opened] = WeakValueDictionary()  # a pipeline names one store several times


def _is_factory(encoder: Any) -> bool:
    return inspect.isclass(encoder) or inspect.isroutine(encoder)


def _name_of(encoder: Any) -> str:
    """The name by which :func:`haystack.utils.deserialize_callable` imports the class or function."""
    hint = (
        "Give the store a class or a function that can be imported, and its arguments, such as "
        'LemurDocumentStore(MultiVectorEncoder, {"model_name_or_path": "..."})'
    )
    if not _is_factory(encoder):
        raise SerializationError(f"the encoder is an object ({type(encoder).__name__}), which cannot be serialised. {hint}")
    name = f"{encoder.__module__}.{encoder.__qualname__}"
    if "<locals>" in name:
        raise SerializationError(f"the encoder {name} cannot be imported by that name, and so not be serialised. {hint}")
    try:
        return name if inspect.isclass(encoder) else str(serialize_callable(encoder))  # which takes a class for a method
    except SerializationError as error:
        raise SerializationError(f"the encoder {name} cannot be serialised: {error} {hint}") from error


def _row(document: Document) -> Row:
    fields = {name: value for name, value in document.to_dict(flatten=False).items() if value is not None}
    doc_id, text = fields.pop("id"), fields.pop("content", "")
    if document.content is None:
        fields["content"] = None
    try:
        return doc_id, text, json.dumps(fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"document {doc_id!r} cannot be stored as JSON: {error}") from error


def _document(row: Row, *, score: float | None = None, meta: dict[str, Any] | None = None) -> Document:
    """The document of a row, with another score, or with more meta."""
    fields: dict[str, Any] = {"id": row[0], "content": row[1], **json.loads(row[2])}
    fields["meta"] |= meta or {}
    if score is not None:
        fields["score"] = score
    return Document.from_dict(fields)


def _values(documents: Iterable[Document], field: str) -> dict[str, Any]:
    """The different values of a field of meta, by their JSON, in which 1, 1.0, "1" and true differ."""
    values = (document.meta.get(field) for document in documents)
    return {json.dumps(value, sort_keys=True): value for value in values if value is not None}


def _check_filters(filters: Any) -> None:
    """Refuse what is no filter, also where no document is there to be matched."""
    if not isinstance(filters, dict):
        raise FilterError(f"filters must be a dictionary, got {type(filters).__name__}")
    document_matches_filter(filters, Document())


def _check_conditions(filters: dict[str, Any], instead: str) -> None:
    """FilterError where a list of conditions is empty: of none all are met, by every document."""
    conditions = filters.get("conditions")
    if conditions is not None and not conditions:
        raise FilterError(f"filters have an empty list of conditions, which every document may meet; {instead}")
    for inner in conditions or ():
        _check_conditions(inner, instead)
