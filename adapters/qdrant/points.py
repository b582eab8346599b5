"""Points of Qdrant: ids and payloads, and what a collection and a shard have in common, which is all but the engine's calls."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol
from uuid import UUID, uuid5

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lemur_ann import LemurEncoder, validate
from lemur_ann.documents import DocumentBatch, opened, read_queries, to_offsets

from .._two_stages import Found, Offsets, Part, Tokens, TwoStages, Wanted, check_maker, ids_in, learned

PointId = int | str
Point = tuple[PointId, dict[str, Any], dict[str, Any]]  # id, vectors by name, payload
Names = tuple[str, str]  # of the vector and of the tokens

NAMESPACE = UUID("6c656d75-725f-5f61-8e6e-000000000001")  # of ids that are neither unsigned integers nor UUIDs
POINTS_PER_READ = 256
QUERIES_PER_REQUEST = 64
RERANKS = ("engine", "kernel")


class Engine(Protocol):
    """The calls of a collection's client, and of a shard."""

    compares_all: bool  # without a graph

    def check(self, dims: dict[str, int], tokens_name: str) -> bool:
        """ValueError unless vectors have these names, dims and kinds; returns whether tokens are compared at unit length."""

    def unit(self, tokens_name: str) -> bool:
        """Whether these tokens are compared at unit length."""

    def made_by(self, vector_name: str) -> str | None:
        """The fingerprint of the map that made the vectors, where the engine keeps one."""

    def name_maker(self, vector_name: str, fingerprint: str) -> None:
        """Keep it."""

    def filter_of(self, filter: Any) -> Any:
        """A filter of the engine's, from one or from its dict; None where it is none."""

    def count(self, filter: Any = None) -> int:
        """How many points match."""

    def write(self, points: list[Point]) -> None:
        """Write points whole, in the place of those with their ids."""

    def write_vectors(self, name: str, ids: list[PointId], vectors: list[list[float]]) -> None:
        """Write a vector of points that are there."""

    def delete(self, ids: list[Any] | None, filter: Any) -> None:
        """Delete points by ids or by a filter."""

    def retrieve(self, ids: list[PointId], vector: str | None = None) -> list[Any]:
        """Those of these points that are there, with the payload's ``id``, and a vector."""

    def scroll(self, offset: Any, limit: int, vector: str) -> tuple[list[Any], Any]:
        """Points that have a vector, with it, and the offset of the next; None after the last."""

    def sample(self, count: int, vector: str) -> list[PointId]:
        """Random points that have a vector."""

    def params(self, count: int, *, exact: bool) -> Any:
        """How to look for candidates."""

    def two_stages(
        self, names: Names, vector: list[float], tokens: list[list[float]], k: int, count: int, filter: Any, params: Any
    ) -> Any:
        """The request that finds candidates and ranks them."""

    def candidates(self, names: Names, vector: list[float], count: int, filter: Any, params: Any) -> Any:
        """The request for candidates with their tokens."""

    def query(self, requests: list[Any]) -> list[list[Any]]:
        """The points that each request finds."""

    def new_vector(self, name: str, dim: int, *, replace: bool) -> None:
        """Add a named vector."""

    def has_vector(self, name: str) -> bool:
        """Whether there is one."""


def point_id(doc_id: Any) -> PointId:
    """The id of a document's point, for filters and for the engine's own calls.

    Args:
        doc_id: an unsigned integer or a UUID in its usual form, which stay as they are, or another string, whose point has
            the UUID made of it, and the string in the payload, as ``id``.

    Raises:
        ValueError, TypeError: a negative integer, or neither an integer nor a string.
    """
    if isinstance(doc_id, str):
        return doc_id if _is_uuid(doc_id) else str(uuid5(NAMESPACE, doc_id))
    return validate.integer(doc_id, "an id", least=0)


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def document_id(point: Any) -> PointId:
    """The caller's id; a payload's ``id`` that has nothing to do with the point's is somebody else's."""
    own = point.id if isinstance(point.id, int) else str(point.id)
    given = (point.payload or {}).get("id")
    return given if isinstance(given, str) and point_id(given) == own else own


class Points(TwoStages):
    """What a collection and a shard have in common: all but the engine's own calls."""

    ids_per_request = POINTS_PER_READ
    _filter_form = 'a models.Filter, such as Filter(must=[FieldCondition(key="year", match=MatchValue(value=2020))])'

    def __init__(self, engine: Engine, encoder: LemurEncoder, vector_name: str, tokens_name: str) -> None:
        super().__init__(encoder, stored_as=np.float32)
        self.vector_name = vector_name
        self.tokens_name = tokens_name
        self._engine = engine
        self._unit = engine.check({vector_name: encoder.dim, tokens_name: encoder.token_dim}, tokens_name)
        self._check_encoder()

    def __len__(self) -> int:
        """The number of points."""
        return self._engine.count()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} points>"

    def _check_encoder(self) -> None:
        made_by = self._engine.made_by(self.vector_name)
        if made_by not in (None, self.encoder.fingerprint):
            raise ValueError(f"the vectors {self.vector_name!r} were made by another encoder")
        points, _ = self._engine.scroll(None, 10, self.vector_name)
        check_maker(self.encoder, [point.vector[self.vector_name] for point in points], repr(self.vector_name))

    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        num_candidates: int = 200,
        filter: Any = None,
        rerank: str = "engine",
        offsets: Any = None,
        params: Any = None,
        num_threads: int | None = None,
    ) -> Any:
        """The k documents of highest MaxSim among the candidates that the engine finds by ``lemur``.

        Args:
            queries: one query, a matrix (num_tokens, token_dim); or a batch, as :meth:`lemur_ann.LemurIndex.search` takes it.
            k: how many to return, at least 1.
            num_candidates: documents to rerank; never fewer than k.
            filter: the engine's own; the candidates are searched for among the points that match.
            rerank: "engine" has Qdrant compare the tokens, in the same request; "kernel" fetches the candidates' tokens and
                compares them here, which costs their transfer.
            offsets: int (num_queries + 1,), with a flat matrix only.
            params: the engine's SearchParams for the candidates, with hnsw_ef, exact and quantization; None means a beam
                ``hnsw_ef`` of twice num_candidates.
            num_threads: of encoding and the kernel; None means all cores.

        Returns:
            :class:`~lemur_ann.Hits` for one query, a list of them for a batch. Scores are exact MaxSim of the stored tokens.
            Fewer than k only where fewer documents match.

        Raises:
            ValueError, TypeError: bad queries, k, num_candidates or rerank.
        """
        if rerank not in RERANKS:
            raise ValueError(f"rerank must be one of {RERANKS}, got {rerank!r}")
        how = {"filter": self._filter(filter), "rerank": rerank, "params": params}
        return self._search(queries, k, num_candidates, offsets=offsets, num_threads=num_threads, **how)

    def _found(self, wanted: list[Wanted], how: dict[str, Any]) -> Iterator[Found]:
        """Many queries in one request, and those that found too few in another, without the graph."""
        for begin in range(0, len(wanted), QUERIES_PER_REQUEST):
            some = wanted[begin : begin + QUERIES_PER_REQUEST]
            found = self._asked(some, **how)
            few = [i for i, (one, its) in enumerate(zip(some, found, strict=True)) if not self._is_enough(one, its)]
            if few and not self._engine.compares_all:
                again = self._asked([replace(some[i], too_few=found[i]) for i in few], **how)
                for i, its in zip(few, again, strict=True):
                    found[i] = its
            yield from found

    def _asked(self, wanted: list[Wanted], *, filter: Any, rerank: str, params: Any) -> list[Found]:
        names, requests = (self.vector_name, self.tokens_name), []
        for one in wanted:
            scan = one.too_few is not None
            settings = self._engine.params(one.count, exact=scan) if params is None or scan else params
            vector = one.vector.tolist()
            requests.append(
                self._engine.two_stages(names, vector, one.query.tolist(), one.k, one.count, filter, settings)
                if rerank == "engine"
                else self._engine.candidates(names, vector, one.count, filter, settings)
            )
        answers = zip(wanted, self._engine.query(requests), strict=True)
        return [_ranked(points, one) if rerank == "engine" else self._unranked(points) for one, points in answers]

    def _unranked(self, points: list[Any]) -> Found:
        return Found([document_id(point) for point in points], *(laid_out(points, self.tokens_name) if points else ()))

    def _filter(self, filter: Any, *, deletes: bool = False) -> Any:
        if filter is None:
            return None
        own = self._engine.filter_of(filter)
        if own is None:
            raise TypeError(f"filter must be {self._filter_form}, got {filter!r:.80}")
        if deletes and not any(getattr(own, part) for part in ("must", "should", "must_not", "min_should")):
            raise ValueError("filter has no conditions, and would delete all points")
        return own

    def _as_compared(self, tokens: Tokens) -> Tokens:
        """Of unit length where the distance of tokens is Cosine."""
        return unit_length(tokens) if self._unit else tokens

    def _checked_ids(self, ids: pa.Array) -> list[Any]:
        checked = super()._checked_ids(ids)
        for doc_id in checked:
            point_id(doc_id)
        return checked

    def _key(self, doc_id: Any) -> Any:
        return point_id(doc_id)

    def _there(self, ids: list[Any]) -> list[Any]:
        return [document_id(point) for point in self._engine.retrieve([point_id(i) for i in ids])]

    def _fields(self, batch: DocumentBatch, *, new: bool) -> Any:
        """The payload of each document."""
        return payloads_of(batch)

    def _write(self, part: Part, *, new: bool) -> None:
        named = [
            {self.vector_name: vector, self.tokens_name: matrix.tolist()}
            for vector, matrix in zip(part.vectors.tolist(), part.matrices, strict=True)
        ]
        self._engine.write(list(zip(map(point_id, part.ids), named, part.fields, strict=True)))

    def _remove(self, ids: list[Any] | None, filter: Any) -> int:
        count = self._engine.count(filter) if ids is None else len(self._there(ids))
        self._engine.delete(None if ids is None else [point_id(i) for i in ids], filter)
        return count


def _ranked(points: list[Any], wanted: Wanted) -> Found:
    """The engine tells the best only; where there are k, there may have been as many candidates as were asked for."""
    scores = np.array([point.score for point in points], np.float32)
    count = wanted.count if len(points) == wanted.k else len(points)
    return Found([document_id(point) for point in points], scores=scores, count=count)


def learn(
    engine: Engine,
    queries: Any,
    vector_name: str,
    tokens_name: str,
    num_documents: int,
    replace: bool,
    how: dict[str, Any],
) -> LemurEncoder:
    """Learn from a sample of the points' tokens, and write the vectors of all."""
    count = validate.positive_int(num_documents, "num_documents")
    if vector_name == tokens_name:
        raise ValueError(f"vector_name and tokens_name must differ, got {vector_name!r} for both")
    unit = engine.unit(tokens_name)
    if engine.has_vector(vector_name):
        if not replace:
            raise ValueError(f"there is a vector {vector_name!r} already; replace=True drops and makes it anew")
        check_ours(engine, vector_name)
    ids = engine.sample(count, tokens_name)
    if not ids:
        raise ValueError(f"no point has {tokens_name!r} to learn from")
    parts = [ids[begin : begin + POINTS_PER_READ] for begin in range(0, len(ids), POINTS_PER_READ)]
    sample = [laid_out(engine.retrieve(part, tokens_name), tokens_name) for part in parts]
    if unit and queries is not None:
        batch = read_queries(opened(queries), dim=sample[0][0].shape[1])
        queries = np.split(unit_length(batch.tokens), batch.offsets[1:-1])
    encoder = learned(sample, queries, how)
    engine.new_vector(vector_name, encoder.dim, replace=replace)
    engine.name_maker(vector_name, encoder.fingerprint)
    offset: Any = None
    while True:
        points, offset = engine.scroll(offset, POINTS_PER_READ, tokens_name)
        if points:
            tokens, offsets = laid_out(points, tokens_name)
            vectors = encoder.encode_documents(tokens, offsets=offsets)
            engine.write_vectors(vector_name, [point.id for point in points], vectors.tolist())
        if offset is None:
            return encoder


def check_ours(engine: Engine, name: str) -> None:
    """ValueError where a vector, which is to be dropped, was not made by a map: its maker is named, or all have one norm."""
    if engine.made_by(name) is not None:
        return
    points, _ = engine.scroll(None, POINTS_PER_READ, name)
    vectors = [np.asarray(point.vector[name], np.float64) for point in points]
    norms = np.array([np.linalg.norm(vector) if vector.ndim == 1 else np.nan for vector in vectors])
    if len(norms) and not (np.allclose(norms, norms[0], rtol=3e-4) and abs(norms[0] - 1) > 1e-3):
        raise ValueError(f"the vector {name!r} was not made by lemur_ann: take another vector_name, or drop it yourself")


def unit_length(tokens: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Tokens scaled to it."""
    tokens = np.asarray(tokens, np.float32)
    unit: npt.NDArray[np.float32] = tokens / np.maximum(np.linalg.norm(tokens, axis=1, keepdims=True), np.float32(1e-12))
    return unit


def laid_out(points: list[Any], name: str) -> tuple[Tokens, Offsets]:
    """The tokens of points end to end, and their offsets."""
    matrices = [np.asarray(point.vector[name], np.float32) for point in points]
    return np.concatenate(matrices), to_offsets([len(matrix) for matrix in matrices])


def payloads_of(batch: DocumentBatch) -> list[dict[str, Any]]:
    """What points keep beside vectors: the other columns, and an id that is not the point's own."""
    ids = ids_in(batch).to_pylist()
    rows = [{}] * len(ids) if batch.metadata is None else batch.metadata.to_pylist()
    named = [{"id": i} if isinstance(i, str) and not _is_uuid(i) else {} for i in ids]
    return [{**own, **json.loads(json.dumps(row, default=_iso))} for own, row in zip(named, rows, strict=True)]


def _iso(value: Any) -> str:
    if isinstance(value, (datetime.date, datetime.datetime)):
        return value.isoformat()
    raise TypeError(f"a payload cannot hold {type(value).__name__}")
