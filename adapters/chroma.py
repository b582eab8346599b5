"""LEMUR inside Chroma: a record's embedding is its document's vector, and candidates are ranked by exact MaxSim of its tokens.

``pip install lemur_ann[chroma]``::

    import chromadb

    from lemur_ann.adapters.chroma import LemurCollection

    encoder.save("map.safetensors")  # Chroma keeps the records; the map is a file of yours
    client = chromadb.PersistentClient("database")  # or HttpClient
    collection = LemurCollection.create(client, "articles", encoder)
    collection.add(documents)  # a table with columns id, tokens, text and others, which become the metadata
    hits = collection.search(query, k=10, filter={"year": {"$gt": 2020}})

Chroma keeps one embedding a record and has no type for a matrix: the tokens are the record's ``uri``, a data: URI of float16.
Or they are in a LemurIndex beside the database, which is quicker and smaller (``tokens=``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

try:
    import pybase64  # Chroma's own dependency, several times as quick as the standard library's
    from chromadb.api.types import validate_metadatas
except ImportError as error:
    raise ImportError("lemur_ann.adapters.chroma needs chromadb 1.5: pip install lemur_ann[chroma]") from error

from lemur_ann import LemurEncoder, LemurIndex
from lemur_ann.documents import DocumentBatch, to_offsets, tokens_from_arrow

from ._two_stages import (
    Found,
    Offsets,
    Part,
    Tokens,
    TwoStages,
    Wanted,
    check_encoder,
    largest_products,
    undone,
)

URI = "data:application/octet-stream;base64,"
HNSW = {"space": "ip", "max_neighbors": 32, "ef_construction": 200, "ef_search": 800}
MADE_BY, KEPT_IN = "lemur_encoder", "lemur_tokens"  # in the collection's metadata


class LemurCollection(TwoStages):
    """A collection of Chroma whose records have a vector of LEMUR and tokens, searched by MaxSim.

    Ids are strings, and tokens are stored as float16. Of documents the column ``text`` becomes Chroma's document, which
    ``where_document`` searches, and other columns the metadata: strings, integers, floats, booleans, and lists of them. As
    Chroma's own, ``upsert`` leaves metadata and a text that are not given as they were; a null removes a value.

    Args:
        client: a ``PersistentClient``, ``HttpClient`` or ``EphemeralClient`` of chromadb.
        name: of a collection that :meth:`create` made.
        encoder: what its vectors were made with.
        tokens: the index beside that keeps the tokens, where it was created with one.

    Raises:
        ValueError: the collection is none of these, or was made with another encoder, or keeps its tokens elsewhere.
        TypeError: encoder or tokens is not one.
        chromadb.errors.NotFoundError: there is no such collection.

    Attributes:
        collection: Chroma's own, for its own calls: ``get``, ``update`` of metadata, ``modify``.
    """

    filter_types = (dict,)
    _filter_form = 'a dict such as {"year": {"$gt": 2020}}'

    def __init__(self, client: Any, name: str, encoder: LemurEncoder, *, tokens: LemurIndex | None = None) -> None:
        _check_tokens(tokens)
        super().__init__(encoder, integer_ids=False)
        self.client = client
        self.collection = client.get_collection(name, embedding_function=None)
        self.tokens = tokens
        self.documents_per_request = min(self.documents_per_request, client.get_max_batch_size())
        state = self.collection.metadata or {}
        if MADE_BY not in state:
            raise ValueError(f"collection {name!r} was not made by LemurCollection.create")
        if state[MADE_BY] != encoder.fingerprint:
            raise ValueError(f"the vectors of collection {name!r} were made by another encoder")
        if state[KEPT_IN] != _place(tokens):
            raise ValueError(f"collection {name!r} keeps its tokens {state[KEPT_IN]}, tokens={tokens!r} says {_place(tokens)}")

    def __repr__(self) -> str:
        return f"<LemurCollection {self.collection.name!r} of {len(self)} records>"

    def __len__(self) -> int:
        return int(self.collection.count())

    @classmethod
    def create(
        cls,
        client: Any,
        name: str,
        encoder: LemurEncoder,
        *,
        tokens: LemurIndex | None = None,
        hnsw: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> LemurCollection:
        """Make an empty collection.

        Args:
            client, name, encoder: as for the class.
            tokens: keep the tokens in this index, which is for this collection alone and open for writing in one process, such
                as ``LemurIndex.open("tokens", candidates="exact", token_codes=None)``; None keeps them in the records.
            hnsw: options of Chroma's graph in the place of the default ones. Its ``ef_search`` is the beam of every search.
            metadata: more for the collection's.

        Raises:
            ValueError: the index holds documents already.
            chromadb.errors.InternalError: there is a collection of this name.
        """
        check_encoder(encoder)
        _check_tokens(tokens)
        if tokens is not None and len(tokens):
            raise ValueError(f"tokens must be an empty index, got one of {len(tokens)} documents")
        return cls._create(client, name, encoder, tokens, hnsw, metadata)

    @classmethod
    def _create(
        cls, client: Any, name: str, encoder: LemurEncoder, tokens: LemurIndex | None, hnsw: Any, metadata: Any
    ) -> LemurCollection:
        client.create_collection(
            name,
            embedding_function=None,
            configuration={"hnsw": {**HNSW, **(hnsw or {})}},
            metadata={**(metadata or {}), MADE_BY: encoder.fingerprint, KEPT_IN: _place(tokens)},
        )
        with undone(lambda: client.delete_collection(name)):
            return cls(client, name, encoder, tokens=tokens)

    def refit(
        self,
        queries: Any,
        name: str,
        *,
        num_documents: int = 10_000,
        seed: int = 0,
        hnsw: dict[str, Any] | None = None,
        **how: Any,
    ) -> LemurCollection:
        """Learn anew from the tokens, and copy the records with their new vectors to a collection of another name.

        A collection's embeddings have one dim for good, so this one stays as it is; an index beside is shared by both. Then
        delete this one, ``collection.modify(name=...)`` the new one, and save its encoder.

        Args:
            queries: training queries, as for :meth:`lemur_ann.LemurIndex.fit`.
            name: of the new collection.
            num_documents: size of the random sample to learn from.
            seed: of the sample.
            hnsw: as for :meth:`create`.
            **how: as for :meth:`lemur_ann.LemurEncoder.fit`.

        Raises:
            ValueError: there are no documents.
        """
        ids = self._ids()
        encoder = self._learned(ids, queries, num_documents, seed, how)
        kept = {key: value for key, value in self.collection.metadata.items() if key not in (MADE_BY, KEPT_IN)}
        new = self._create(self.client, name, encoder, self.tokens, hnsw, kept)
        with undone(lambda: self.client.delete_collection(name)):
            self._copy(new, ids)
        return new

    def _copy(self, new: LemurCollection, ids: list[str]) -> None:
        """Records with vectors of the other's encoder."""
        step = self.documents_per_request
        for begin in range(0, len(ids), step):
            got = self.collection.get(ids=ids[begin : begin + step], include=["documents", "metadatas", "uris"])
            tokens, offsets = self._tokens_of(got["ids"], got["uris"])
            record = {"documents": got["documents"], "metadatas": [one or None for one in got["metadatas"]]}
            if self.tokens is None:
                record["uris"] = got["uris"]
            new.collection.add(ids=got["ids"], embeddings=new.encoder.encode_documents(tokens, offsets=offsets), **record)

    def delete(self, ids: Any = None, *, filter: Any = None, where_document: Any = None) -> int:
        """Delete documents by ids, of which unknown ones count for nothing, or by Chroma's filters.

        Returns:
            how many were deleted.

        Raises:
            TypeError: both ids and filters, or none.
            ValueError: an empty filter, which would delete all.
        """
        filters = {"where": self._filter(filter), "where_document": self._filter(where_document)}
        return self._delete(ids, None if filter is None and where_document is None else filters)

    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        num_candidates: int = 200,
        filter: dict[str, Any] | None = None,
        where_document: dict[str, Any] | None = None,
        offsets: Any = None,
        num_threads: int | None = None,
    ) -> Any:
        """The k documents of highest MaxSim among the candidates that Chroma finds by the vector.

        Args:
            queries: one matrix (num_tokens, token_dim), or a batch, as for :meth:`lemur_ann.LemurIndex.search`.
            k: at least 1.
            num_candidates: documents ranked by exact MaxSim; never fewer than k.
            filter: Chroma's ``where``; the candidates are searched for among the records that it lets through.
            where_document: Chroma's filter of texts.
            offsets: int (num_queries + 1,), with a flat matrix only.
            num_threads: of encoding and the kernel; None means all cores.

        Returns:
            :class:`~lemur_ann.Hits` for one query, a list of them for a batch. There are fewer than k only where fewer
            documents match.

        Raises:
            ValueError, TypeError: bad queries, k or num_candidates, or a candidate that was written without tokens.
        """
        filters = {"where": self._filter(filter) or None, "where_document": self._filter(where_document) or None}
        return self._search(queries, k, num_candidates, offsets=offsets, num_threads=num_threads, filters=filters)

    def _candidates(self, wanted: Wanted, *, filters: dict[str, Any]) -> Found:
        include = ["uris"] if self.tokens is None else []
        if wanted.too_few is not None:  # the graph does not reach all, above all after deletes
            every = self.collection.get(include=["embeddings"], **filters)
            if len(every["ids"]) <= wanted.too_few.num:
                return wanted.too_few
            best = [every["ids"][i] for i in largest_products(every["embeddings"], wanted)]
            got = self.collection.get(ids=best, include=include)
            ids, uris = got["ids"], got["uris"]
        else:
            how = {"n_results": wanted.count, "include": include, **filters}
            found = self.collection.query(query_embeddings=wanted.vector[None], **how)
            ids, uris = found["ids"][0], found["uris"][0] if self.tokens is None else None
        if not ids:
            return Found(ids)
        if self.tokens is None:
            return Found(ids, *self._tokens_of(ids, uris))
        hits = self.tokens.search(wanted.query, wanted.k, filter=ids, exact=True, num_threads=wanted.num_threads)
        return Found(hits.ids.tolist(), scores=hits.scores, count=len(ids))

    def _checked_ids(self, ids: pa.Array) -> list[Any]:
        checked = super()._checked_ids(ids)
        if "" in checked:
            raise ValueError(f"Chroma takes no empty id, and there is one in row {checked.index('')}")
        return checked

    def _there(self, ids: list[Any]) -> list[Any]:
        found: list[Any] = self.collection.get(ids=ids, include=[])["ids"]
        return found

    def _ids(self, **filters: Any) -> list[str]:
        found: list[str] = self.collection.get(include=[], **filters)["ids"]
        return found

    def _remove(self, ids: list[Any] | None, filter: Any) -> int:
        there = self._ids(**filter) if ids is None else self._there(ids)
        for part in self._by_request(there if ids is None else ids):
            self.collection.delete(ids=part)
            if self.tokens is not None:  # last, so that no record is ever without its tokens
                self.tokens.delete(filter=part)
        return len(there)

    def _stored(self, ids: list[Any]) -> tuple[Tokens, Offsets]:
        got = self.collection.get(ids=ids, include=["uris"])
        return self._tokens_of(got["ids"], got["uris"])

    def _tokens_of(self, ids: list[str], uris: Any) -> tuple[Tokens, Offsets]:
        """Tokens of records, laid end to end, and their offsets."""
        if self.tokens is not None:
            return tokens_from_arrow(self.tokens.get(ids).column("tokens").combine_chunks(), "tokens")
        for doc_id, uri in zip(ids, uris, strict=True):
            if uri is None or not uri.startswith(URI):
                raise ValueError(f"record {doc_id!r} has no tokens: it was not written by LemurCollection")
        raw = [pybase64.b64decode(uri[len(URI) :]) for uri in uris]
        dim = self.encoder.token_dim
        tokens = np.frombuffer(b"".join(raw), "<f2").reshape(-1, dim)
        return tokens, to_offsets([len(one) // (2 * dim) for one in raw])

    def _fields(self, batch: DocumentBatch, *, new: bool) -> Any:
        """(text, metadata) of each document; Chroma's add takes no nulls."""
        texts: list[Any] = [None] * len(batch)
        rows: list[Any] = [None] * len(batch)
        others = batch.metadata
        if others is not None and "text" in others.column_names:
            if not pa.types.is_large_string(others.schema.field("text").type):
                raise TypeError(f"column 'text' must be of strings, got {others.schema.field('text').type}")
            texts = others.column("text").to_pylist()
            others = others.drop_columns("text")
        if others is not None and others.num_columns:
            rows = others.to_pylist()
            rows = [{k: v for k, v in row.items() if v is not None} or None for row in rows] if new else rows
            validate_metadatas(rows)
        return list(zip(texts, rows, strict=True))

    def _write(self, part: Part, *, new: bool) -> None:
        record: dict[str, Any] = {"ids": part.ids, "embeddings": part.vectors}
        texts, rows = zip(*part.fields, strict=True)
        given = {"documents": list(texts), "metadatas": list(rows)}
        record |= {name: values for name, values in given.items() if any(value is not None for value in values)}
        if self.tokens is None:
            record["uris"] = [URI + pybase64.b64encode_as_string(matrix.astype("<f2").data) for matrix in part.matrices]
        else:
            self.tokens.upsert(part.tokens, ids=part.ids, offsets=part.offsets)
        (self.collection.add if new else self.collection.upsert)(**record)


def _check_tokens(tokens: Any) -> None:
    if tokens is not None and not isinstance(tokens, LemurIndex):
        raise TypeError(f"tokens must be a LemurIndex, got {type(tokens).__name__}")


def _place(tokens: LemurIndex | None) -> str:
    return "in its records" if tokens is None else "in an index beside"
