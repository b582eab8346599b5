"""A LlamaIndex vector store and a retriever over lemur_ann; ``pip install lemur_ann[llama-index]``.

Nodes go in and come out whole; they are found by the exact MaxSim of their embedding text (``MetadataMode.EMBED``)::

    from llama_index.core import MockEmbedding, StorageContext, VectorStoreIndex
    from lemur_ann.adapters.llama_index import LemurVectorStore

    store = LemurVectorStore(encoder)  # such as a sentence-transformers MultiVectorEncoder
    index = VectorStoreIndex.from_documents(
        documents,
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=MockEmbedding(embed_dim=1),  # LlamaIndex wants one; the store looks at no single vector
    )
    found = index.as_retriever(similarity_top_k=5).retrieve("a question")

The leaner way in, over texts that are indexed already: ``LemurRetriever(texts).retrieve("a question")``.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from lemur_ann import LemurIndex, RemoteIndex, TextIndex

from ._remote import all_of, columns_of, is_in

try:
    from fsspec import AbstractFileSystem
    from fsspec.implementations.local import LocalFileSystem
    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.constants import DEFAULT_SIMILARITY_TOP_K
    from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle, TextNode
    from llama_index.core.vector_stores.simple import DEFAULT_VECTOR_STORE, NAMESPACE_SEP
    from llama_index.core.vector_stores.types import (
        DEFAULT_PERSIST_DIR,
        DEFAULT_PERSIST_FNAME,
        BasePydanticVectorStore,
        FilterCondition,
        MetadataFilter,
        MetadataFilters,
        VectorStoreQuery,
        VectorStoreQueryMode,
        VectorStoreQueryResult,
    )
    from llama_index.core.vector_stores.utils import build_metadata_filter_fn, metadata_dict_to_node, node_to_metadata_dict
except ImportError as error:
    raise ImportError("lemur_ann.adapters.llama_index needs LlamaIndex: pip install lemur_ann[llama-index]") from error

# text: what was encoded; metadata: JSON of what filters see; _node_content: JSON of the whole node, as LlamaIndex writes it
SCHEMA = pa.schema([(name, pa.large_string()) for name in ("id", "text", "metadata", "_node_content", "ref_doc_id")])
NODES_AT_A_TIME = 4096  # read to decode their metadata


class LemurVectorStore(BasePydanticVectorStore):  # type: ignore[misc,unused-ignore]
    """A vector store of nodes, found by MaxSim; it keeps their texts, and encodes nodes and queries itself.

    Until :meth:`fit`, or ``fit_at`` nodes, searches score every node.

    Args:
        encoder: anything :func:`lemur_ann.encoders.as_encoder` takes, such as a sentence-transformers ``MultiVectorEncoder``.
        index: made, loaded or opened, empty or of nodes that such a store added; None makes one in memory. It may be one that
            a service has, see :func:`lemur_ann.connect`, without :meth:`persist`.
        batch_size, fit_at: as for :class:`lemur_ann.TextIndex`.

    Raises:
        ValueError: the index holds something else than nodes.
    """

    stores_text: bool = True
    is_embedding_query: bool = False

    _texts: TextIndex = PrivateAttr()
    _decoded: tuple[int, dict[str, dict[str, Any]]] | None = PrivateAttr(default=None)
    _passing: tuple[dict[str, dict[str, Any]], str, set[str]] | None = PrivateAttr(default=None)

    def __init__(
        self,
        encoder: Any,
        index: LemurIndex | RemoteIndex | None = None,
        *,
        batch_size: int = 32,
        fit_at: int | None = 20_000,
    ) -> None:
        super().__init__(stores_text=True)
        self._texts = TextIndex(encoder, index, batch_size=batch_size, fit_at=fit_at)
        columns = columns_of(self.client)
        if len(self.client) and not set(SCHEMA.names) <= set(columns):
            raise ValueError(
                f"the index holds documents that no LemurVectorStore added, with columns {columns}; LemurRetriever reads them"
            )

    @classmethod
    def class_name(cls) -> str:
        """The name LlamaIndex knows it by."""
        return "LemurVectorStore"

    @property
    def client(self) -> LemurIndex:
        """The index."""
        return self._texts.index

    @property
    def texts(self) -> TextIndex:
        """The index with its encoder, for a :class:`LemurRetriever` for example."""
        return self._texts

    def fit(self, queries: Any = None, **how: Any) -> LemurVectorStore:
        """Learn the map from training queries, or without; see :meth:`lemur_ann.TextIndex.fit`."""
        self._texts.fit(queries=queries, **how)
        return self

    # Changing it

    def add(self, nodes: Sequence[BaseNode], **add_kwargs: Any) -> list[str]:
        """Encode and add nodes, in place of those that have the same ids; returns their ids."""
        rows = []
        nodes = nodes if isinstance(nodes, BaseNode) else list(nodes)
        if isinstance(nodes, BaseNode) or not all(isinstance(node, BaseNode) for node in nodes):
            raise TypeError("nodes must be a list of nodes")
        for node in {node.node_id: node for node in nodes}.values():
            metadata = node_to_metadata_dict(node)
            content = metadata.pop("_node_content")
            text = node.get_content(metadata_mode=MetadataMode.EMBED)
            values = (node.node_id, text, json.dumps(metadata, ensure_ascii=False), content, node.ref_doc_id)
            rows.append(dict(zip(SCHEMA.names, values, strict=True)))
        if rows:
            self._texts.upsert(pa.Table.from_pylist(rows, SCHEMA), progress=False)
        return [node.node_id for node in nodes]

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes of a source document; it is no error if there are none."""
        if not isinstance(ref_doc_id, str):
            raise TypeError(f"ref_doc_id must be a string, got {type(ref_doc_id).__name__}")
        if len(self.client):
            self.client.delete(filter=is_in(self.client, "ref_doc_id", [ref_doc_id]))

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """Delete the nodes that have one of these ids and pass the filters; unknown ids count for nothing.

        Raises:
            ValueError: neither is given, or filters alone of which some are empty and would delete all; :meth:`clear` does.
            TypeError: filters of another kind.
        """
        if node_ids is None and filters is None:
            raise ValueError("delete_nodes takes node_ids, filters or both; clear() deletes all nodes")
        chosen = self._chosen(node_ids, filters)
        if node_ids is None and filters is not None and _has_empty(filters):
            raise ValueError("filters are empty, or some in them, and would delete all nodes; clear() deletes all nodes")
        self.client.delete(filter=chosen)

    def clear(self) -> None:
        """Delete all nodes. A learned map stays, for the nodes to come."""
        self.client.delete(filter=self.client.ids())
        self.client.compact(progress=False)

    # Asking it

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """The nodes that have one of these ids, in their order, and pass the filters; all where neither is given."""
        return [_node(row) for row in _rows(self.client, self._chosen(node_ids, filters))]

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """The ``similarity_top_k`` nodes of highest MaxSim with ``query_str``.

        Args:
            query: with ``query_str``, and where wanted ``node_ids`` (empty means all, as ``VectorStoreIndex.as_retriever``
                means it), ``doc_ids`` (empty means none) and ``filters``, which limit the search together.
            **kwargs: num_candidates, ef_search, shortlist, target_recall, max_loss, exact, num_threads, as for
                :meth:`lemur_ann.LemurIndex.search`; a retriever passes on its ``vector_store_kwargs``.

        Returns:
            nodes, ids, and exact MaxSim scores as similarities, best first.

        Raises:
            ValueError: no ``query_str``, another mode than the default, or an operator that LlamaIndex does not know.
        """
        if query.mode != VectorStoreQueryMode.DEFAULT:
            raise ValueError(f"Invalid query mode: {query.mode}; MaxSim is the default mode")
        if query.query_str is None:
            raise ValueError("LemurVectorStore searches by query_str, and got none: one embedding is no query to it")
        limits = []
        if query.node_ids:
            limits.append(self._is_in("id", query.node_ids))
        if query.doc_ids is not None:
            limits.append(self._is_in("ref_doc_id", query.doc_ids))
        if query.filters is not None:
            limits.append(self._is_in("id", self._that_pass(query.filters)))
        chosen = all_of(self.client, limits)
        found = _search(self._texts, query.query_str, query.similarity_top_k, chosen, kwargs)
        nodes = [node for node, _ in found]
        return VectorStoreQueryResult(nodes, [score for _, score in found], [node.node_id for node in nodes])

    def _is_in(self, column: str, values: Any) -> Any:
        if isinstance(values, (str, bytes, dict)):
            raise TypeError(f"node_ids and doc_ids must be lists of ids, got {type(values).__name__}")
        return is_in(self.client, column, values)

    def _chosen(self, node_ids: list[str] | None, filters: MetadataFilters | None) -> list[str]:
        if isinstance(node_ids, (bytes, dict)):
            raise TypeError(f"node_ids must be a list of strings, got {type(node_ids).__name__}")
        node_ids = [node_ids] if isinstance(node_ids, str) else node_ids
        ids = self.client.ids().to_pylist() if node_ids is None else list(dict.fromkeys(node_ids))
        if filters is None:
            return ids
        passing = self._that_pass(filters)
        return [node_id for node_id in ids if node_id in passing]

    def _that_pass(self, filters: MetadataFilters) -> set[str]:
        """Ids of the nodes that pass; those of the last filters are kept, since queries come one by one with the same."""
        if not isinstance(filters, MetadataFilters):
            raise TypeError(f"filters must be MetadataFilters, such as MetadataFilters.from_dict({{...}}), got {filters!r:.80}")
        metadata, key, last = self._metadata(), filters.model_dump_json(), self._passing
        if last is None or last[0] is not metadata or last[1] != key:
            self._passing = last = (metadata, key, _that_pass(filters, metadata))
        return last[2]

    def _metadata(self) -> dict[str, dict[str, Any]]:
        """What filters see of each node, by id; read again once the index has changed, by whatever hand."""
        version, known = self.client.version, self._decoded
        if known is None or known[0] != version:
            every = self.client.ids().to_pylist()
            parts = (_rows(self.client, every[at : at + NODES_AT_A_TIME]) for at in range(0, len(every), NODES_AT_A_TIME))
            metadata = {row["id"]: json.loads(row["metadata"]) for rows in parts for row in rows}
            self._decoded = known = (version, metadata)
        return known[1]

    # The same without holding up an event loop

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """:meth:`add`, in another thread."""
        return await asyncio.to_thread(self.add, nodes, **kwargs)

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """:meth:`delete`, in another thread."""
        await asyncio.to_thread(self.delete, ref_doc_id, **delete_kwargs)

    async def adelete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """:meth:`delete_nodes`, in another thread."""
        await asyncio.to_thread(self.delete_nodes, node_ids, filters, **delete_kwargs)

    async def aclear(self) -> None:
        """:meth:`clear`, in another thread."""
        await asyncio.to_thread(self.clear)

    async def aget_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """:meth:`get_nodes`, in another thread."""
        return await asyncio.to_thread(self.get_nodes, node_ids, filters)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """:meth:`query`, in another thread."""
        return await asyncio.to_thread(self.query, query, **kwargs)

    # Keeping it

    def persist(self, persist_path: str, fs: AbstractFileSystem | None = None) -> None:
        """Save the index as a folder at this path; ``StorageContext.persist`` calls it.

        Raises:
            FileExistsError: something other than an index is there.
            NotImplementedError: a file system that is not local.
        """
        _check_local(fs)
        Path(persist_path).parent.mkdir(parents=True, exist_ok=True)
        self.client.save(persist_path)

    @classmethod
    def from_persist_path(
        cls, persist_path: str, fs: AbstractFileSystem | None = None, *, encoder: Any, **options: Any
    ) -> LemurVectorStore:
        """Load what :meth:`persist` saved, for the encoder it was made with.

        Args:
            persist_path: the folder.
            fs: None, or a local file system.
            encoder, **options: as for the class.

        Raises:
            ValueError: there is no such folder, or it is damaged (:class:`lemur_ann.errors.CorruptIndex`).
            NotImplementedError: a file system that is not local.
        """
        _check_local(fs)
        if not os.path.exists(persist_path):
            raise ValueError(f"No existing {cls.class_name()} found at {persist_path}.")
        return cls(encoder, LemurIndex.load(persist_path), **options)

    @classmethod
    def from_persist_dir(
        cls,
        persist_dir: str = DEFAULT_PERSIST_DIR,
        namespace: str = DEFAULT_VECTOR_STORE,
        fs: AbstractFileSystem | None = None,
        *,
        encoder: Any,
        **options: Any,
    ) -> LemurVectorStore:
        """The same from the folder that ``StorageContext.persist`` wrote."""
        path = os.path.join(persist_dir, f"{namespace}{NAMESPACE_SEP}{DEFAULT_PERSIST_FNAME}")
        return cls.from_persist_path(path, fs, encoder=encoder, **options)


class LemurRetriever(BaseRetriever):  # type: ignore[misc,unused-ignore]
    """A retriever over a :class:`lemur_ann.TextIndex`, without LlamaIndex's index or store.

    A document becomes a ``TextNode`` of its id and text, with the other columns as metadata; what a :class:`LemurVectorStore`
    added, the node it was.

    Args:
        texts: the documents.
        similarity_top_k: how many nodes to return.
        filter: as for :meth:`lemur_ann.LemurIndex.search`: ids, or a pyarrow expression such as ``pc.field("year") > 2020``;
            of an index that a service has, ids, or a dict such as ``{"year": {"$gt": 2020}}``.
        callback_manager, object_map, objects, verbose: LlamaIndex's own.
        **how: num_candidates, ef_search, shortlist, target_recall, max_loss, exact, num_threads, as for the same.
    """

    def __init__(
        self,
        texts: TextIndex,
        similarity_top_k: int = DEFAULT_SIMILARITY_TOP_K,
        *,
        filter: Any = None,
        callback_manager: Any = None,
        object_map: dict[str, Any] | None = None,
        objects: list[Any] | None = None,
        verbose: bool = False,
        **how: Any,
    ) -> None:
        super().__init__(callback_manager=callback_manager, object_map=object_map, objects=objects, verbose=verbose)
        self.texts, self.similarity_top_k, self.filter, self.how = texts, similarity_top_k, filter, how

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        found = _search(self.texts, query_bundle.query_str, self.similarity_top_k, self.filter, self.how)
        return [NodeWithScore(node=node, score=score) for node, score in found]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)


def _search(texts: TextIndex, query: str, k: int, filter: Any, how: dict[str, Any]) -> list[tuple[BaseNode, float]]:
    if not len(texts):  # no columns for a filter to name
        return []
    hits = texts.search(query, k, filter=filter, **how)
    scores = dict(hits)
    return [(_node(row), scores[row["id"]]) for row in _rows(texts.index, hits.ids.tolist())]


def _rows(index: LemurIndex, ids: list[Any]) -> list[dict[str, Any]]:
    """What is stored of some documents, in their order; those that are not there, or no longer, are left out."""
    try:
        rows: list[dict[str, Any]] = index.metadata(ids).to_pylist() if len(ids) else []
        return rows
    except KeyError:
        return _rows(index, [doc_id for doc_id in ids if doc_id in index])


def _node(row: dict[str, Any]) -> BaseNode:
    if row.get("_node_content") is not None:
        return metadata_dict_to_node({**json.loads(row["metadata"]), "_node_content": row["_node_content"]})
    others = {name: value for name, value in row.items() if name not in ("id", "text")}
    return TextNode(id_=str(row["id"]), text=row["text"], metadata=others)


def _that_pass(filters: MetadataFilter | MetadataFilters, metadata: dict[str, dict[str, Any]]) -> set[str]:
    """Ids of what passes. LlamaIndex's own function tests one filter; it knows no nested ones, which are combined here."""
    if isinstance(filters, MetadataFilter):
        return set(filter(build_metadata_filter_fn(metadata.__getitem__, MetadataFilters(filters=[filters])), metadata))
    if not filters.filters:
        return set(metadata)
    parts = [_that_pass(part, metadata) for part in filters.filters]
    if filters.condition == FilterCondition.OR:
        return set.union(*parts)
    if filters.condition == FilterCondition.NOT:
        return set(metadata).difference(*parts)
    return set.intersection(*parts)


def _has_empty(filters: MetadataFilters) -> bool:
    """Whether it holds nothing, which lets all nodes pass, or others in it do."""
    inner = [part for part in filters.filters if isinstance(part, MetadataFilters)]
    return not filters.filters or any(map(_has_empty, inner))


def _check_local(fs: AbstractFileSystem | None) -> None:
    if fs is not None and not isinstance(fs, LocalFileSystem):
        raise NotImplementedError("LemurVectorStore is kept on local file systems: its tokens are memory-mapped")
