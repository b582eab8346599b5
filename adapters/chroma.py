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

import hashlib
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

try:
    import pybase64  # Chroma's own dependency, several times as quick as the standard library's
    from chromadb.api.types import validate_metadatas
except ImportError as error:
    raise ImportError("lemur_ann.adapters.chroma needs chromadb 1.5: pip install lemur_ann[chroma]") from error

from lemur_ann import Hits, LemurEncoder, LemurIndex, maxsim
from lemur_ann import _validate as validate
from lemur_ann.documents.inputs import (
    DocumentBatch,
    ids_of,
    is_single_query,
    read_documents,
    read_queries,
    to_offsets,
    tokens_from_arrow,
)
from lemur_ann.documents.sources import opened

URI = "data:application/octet-stream;base64,"
HNSW = {"space": "ip", "max_neighbors": 32, "ef_construction": 200, "ef_search": 800}
MADE_BY, KEPT_IN = "lemur_encoder", "lemur_tokens"  # in the collection's metadata
BYTES_PER_REQUEST = 4_000_000  # of tokens; a server refuses requests of more than 40 MB by default
RECORDS_PER_REQUEST = 1000


class LemurCollection:
    """A collection of Chroma whose records have a vector of LEMUR and tokens, searched by MaxSim.

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

    def __init__(self, client: Any, name: str, encoder: LemurEncoder, *, tokens: LemurIndex | None = None) -> None:
        _check_kinds(encoder, tokens)
        self.client = client
        self.collection = client.get_collection(name, embedding_function=None)
        self.encoder = encoder
        self.tokens = tokens
        state = self.collection.metadata or {}
        if MADE_BY not in state:
            raise ValueError(f"collection {name!r} was not made by LemurCollection.create")
        if state[MADE_BY] != _digest(encoder):
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
        _check_kinds(encoder, tokens)
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
            metadata={**(metadata or {}), MADE_BY: _digest(encoder), KEPT_IN: _place(tokens)},
        )
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
        if not ids:
            raise ValueError(f"collection {self.collection.name!r} has no documents to learn from")
        count = min(len(ids), validate.positive_int(num_documents, "num_documents"))
        chosen = np.random.default_rng(seed).choice(len(ids), count, replace=False)
        asked = [[ids[i] for i in part] for part in np.array_split(chosen, -(-count // RECORDS_PER_REQUEST))]
        found = (self.collection.get(ids=part, include=["uris"]) for part in asked)
        parts = [self._tokens_of(got["ids"], got["uris"]) for got in found]
        bounds = to_offsets(np.concatenate([np.diff(offsets) for _, offsets in parts]))
        encoder = LemurEncoder.fit(np.concatenate([tokens for tokens, _ in parts]), queries, offsets=bounds, **how)
        kept = {key: value for key, value in self.collection.metadata.items() if key not in (MADE_BY, KEPT_IN)}
        new = self._create(self.client, name, encoder, self.tokens, hnsw, kept)
        step = min(RECORDS_PER_REQUEST, self.client.get_max_batch_size())
        for begin in range(0, len(ids), step):
            got = self.collection.get(ids=ids[begin : begin + step], include=["documents", "metadatas", "uris"])
            tokens, offsets = self._tokens_of(got["ids"], got["uris"])
            record = {"documents": got["documents"], "metadatas": [one or None for one in got["metadatas"]]}
            if self.tokens is None:
                record["uris"] = got["uris"]
            new.collection.add(ids=got["ids"], embeddings=encoder.encode_documents(tokens, offsets=offsets), **record)
        return new

    def add(self, documents: Any, *, ids: Any = None, offsets: Any = None) -> None:
        """Add documents that are not there yet; all are checked before any is written.

        Args:
            documents: Arrow data, or what else :meth:`lemur_ann.LemurIndex.add` takes. Ids are strings. A column ``text``
                becomes Chroma's document, which ``where_document`` searches, and other columns the metadata: strings,
                integers, floats, booleans, and lists of them. Tokens are stored as float16.
            ids, offsets: where they are no columns.

        Raises:
            ValueError, TypeError: bad documents, an id that is there already or twice, or a value that Chroma does not keep.
        """
        self._put(documents, ids, offsets, new=True)

    def upsert(self, documents: Any, *, ids: Any = None, offsets: Any = None) -> None:
        """Add documents, in the place of those that have their ids; arguments and errors as for :meth:`add`.

        As Chroma's own upsert does, it leaves metadata and a text that are not given as they were; a null removes a value.
        """
        self._put(documents, ids, offsets, new=False)

    def delete(self, ids: Any = None, *, filter: Any = None, where_document: Any = None) -> None:
        """Delete documents by ids, of which unknown ones count for nothing, or by Chroma's filters.

        Raises:
            TypeError: both ids and filters, or none.
        """
        if (ids is None) == (filter is None and where_document is None):
            raise TypeError("delete takes either ids, or filter= and where_document=")
        gone = ids_of(ids).to_pylist() if ids is not None else self._ids(filter, where_document)
        _check_strings(gone)
        for begin in range(0, len(gone), RECORDS_PER_REQUEST):
            part = gone[begin : begin + RECORDS_PER_REQUEST]
            self.collection.delete(ids=part)
            if self.tokens is not None:  # last, so that no record is ever without its tokens
                self.tokens.delete(filter=part)

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
        k = validate.positive_int(k, "k")
        count = max(k, validate.positive_int(num_candidates, "num_candidates"))
        threads = validate.num_threads(num_threads)
        single = offsets is None and is_single_query(queries)
        batch = read_queries([queries] if single else opened(queries), offsets=offsets, dim=self.encoder.token_dim)
        vectors = self.encoder.encode_batch(batch.tokens, batch.offsets, num_threads=threads)
        hits = []
        for row, vector in enumerate(vectors):
            query = np.ascontiguousarray(batch.tokens[batch.offsets[row] : batch.offsets[row + 1]], np.float32)
            ids, uris = self._candidates(vector, k, count, filter, where_document)
            hits.append(self._ranked(query, ids, uris, k, threads))
        return hits[0] if single else hits

    def _candidates(
        self, vector: npt.NDArray[np.float32], k: int, count: int, filter: Any, where_document: Any
    ) -> tuple[list[str], Any]:
        """Ids, and uris where these are the tokens."""
        include = ["uris"] if self.tokens is None else []
        filters = {"where": filter, "where_document": where_document}
        found = self.collection.query(query_embeddings=vector[None], n_results=count, include=include, **filters)
        ids, uris = found["ids"][0], found["uris"][0] if self.tokens is None else None
        if len(ids) >= k:
            return ids, uris
        every = self.collection.get(include=["embeddings"], **filters)  # the graph does not reach all, above all after deletes
        if len(every["ids"]) <= len(ids):
            return ids, uris
        best = np.argsort(-(np.asarray(every["embeddings"], np.float32) @ vector), kind="stable")[:count]
        got = self.collection.get(ids=[every["ids"][i] for i in best], include=include)
        return got["ids"], got["uris"]

    def _ranked(self, query: npt.NDArray[np.float32], ids: list[str], uris: Any, k: int, num_threads: int) -> Hits:
        if not ids:
            return Hits(np.empty(0, object), np.empty(0, np.float32))
        if self.tokens is not None:
            hits: Hits = self.tokens.search(query, k, filter=ids, exact=True, num_threads=num_threads)
            return hits
        tokens, offsets = self._tokens_of(ids, uris)
        best, scores = maxsim.rerank(query, tokens, offsets, np.arange(len(ids)), k, num_threads=num_threads)
        return Hits(np.array([ids[i] for i in best], dtype=object), scores)

    def _ids(self, filter: Any = None, where_document: Any = None) -> list[str]:
        found: list[str] = self.collection.get(include=[], where=filter, where_document=where_document)["ids"]
        return found

    def _tokens_of(self, ids: list[str], uris: Any) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
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

    def _put(self, documents: Any, ids: Any, offsets: Any, *, new: bool) -> None:
        batches = read_documents(opened(documents), ids=ids, offsets=offsets, dim=self.encoder.token_dim)
        records = [_checked(batch, nulls=not new) for batch in batches]
        every = [doc_id for one in records for doc_id in one["ids"]]
        if len(set(every)) < len(every):
            raise ValueError(f"id {Counter(every).most_common(1)[0][0]!r} is there more than once")
        for begin in range(0, len(every) if new else 0, RECORDS_PER_REQUEST):  # Chroma's own add would pass over them
            there = self.collection.get(ids=every[begin : begin + RECORDS_PER_REQUEST], include=[])["ids"]
            if there:
                raise ValueError(f"id {there[0]!r} is there already; upsert replaces")
        write = self.collection.add if new else self.collection.upsert
        for batch, record in zip(batches, records, strict=True):
            for part in _parts(batch, min(RECORDS_PER_REQUEST, self.client.get_max_batch_size())):
                bounds = batch.offsets[part.start : part.stop + 1]
                tokens, bounds = batch.tokens[bounds[0] : bounds[-1]].astype("<f2"), bounds - bounds[0]
                fields = {name: values[part] for name, values in record.items()}
                if self.tokens is None:
                    matrices = (np.ascontiguousarray(tokens[a:b]) for a, b in pairwise(bounds))
                    fields["uris"] = [URI + pybase64.b64encode_as_string(matrix.data) for matrix in matrices]
                else:
                    self.tokens.upsert(tokens, ids=fields["ids"], offsets=bounds)
                write(embeddings=self.encoder.encode_documents(tokens, offsets=bounds), **fields)


def _checked(batch: DocumentBatch, *, nulls: bool) -> dict[str, list[Any]]:
    """What Chroma is given of a batch beside vectors and tokens, all of which it will take; its add takes no nulls."""
    if batch.ids is None:
        raise ValueError("documents have no ids: pass ids=, or a column 'id' in Arrow data")
    record: dict[str, list[Any]] = {"ids": batch.ids.to_pylist()}
    _check_strings(record["ids"])
    with np.errstate(over="ignore"):
        if not np.isfinite(batch.tokens.astype(np.float16)).all():
            raise ValueError("tokens have values beyond float16 (65504), which is what they are stored as")
    others = batch.metadata
    if others is not None and "text" in others.column_names:
        if not pa.types.is_large_string(others.schema.field("text").type):
            raise TypeError(f"column 'text' must be of strings, got {others.schema.field('text').type}")
        record["documents"] = others.column("text").to_pylist()
        others = others.drop_columns("text")
    if others is not None and others.num_columns:
        rows = others.to_pylist()
        record["metadatas"] = rows if nulls else [{k: v for k, v in row.items() if v is not None} or None for row in rows]
        validate_metadatas(record["metadatas"])
    return record


def _parts(batch: DocumentBatch, records: int) -> Iterator[slice]:
    """Documents of one request each: as many as it may hold, at least one."""
    sizes = np.diff(batch.offsets) * batch.tokens.shape[1] * 2
    request = np.cumsum(np.maximum(sizes, -(-BYTES_PER_REQUEST // records))) // BYTES_PER_REQUEST
    bounds = [0, *(np.flatnonzero(np.diff(request)) + 1).tolist(), len(request)]
    yield from (slice(begin, end) for begin, end in pairwise(bounds))


def _check_strings(ids: list[Any]) -> None:
    if any(not isinstance(doc_id, str) for doc_id in ids):
        raise TypeError("Chroma's ids are strings, got integers")


def _check_kinds(encoder: Any, tokens: Any) -> None:
    if not isinstance(encoder, LemurEncoder):
        raise TypeError(f"encoder must be a LemurEncoder, got {type(encoder).__name__}")
    if tokens is not None and not isinstance(tokens, LemurIndex):
        raise TypeError(f"tokens must be a LemurIndex, got {type(tokens).__name__}")


def _place(tokens: LemurIndex | None) -> str:
    return "in its records" if tokens is None else "in an index beside"


def _digest(encoder: LemurEncoder) -> str:
    """A name for the map: of all that it has learned."""
    state = hashlib.sha256()
    for name, array in sorted(encoder.arrays().items()):
        state.update(f"{name} {array.dtype} {array.shape}".encode())
        state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()[:16]
