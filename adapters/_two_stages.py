"""What the databases have in common: documents are written with their vectors, and candidates are ranked by exact MaxSim.

An adapter is a class over :class:`TwoStages` with five hooks, which hold all that its engine says in its own way, and a sixth,
``_stored``, where it learns from what is stored. Beside these it has ``__len__``, a way to make a collection, and a ``search``
of its own signature that ends in ``_search``; milvus.py shows one. Add it to the list in
tests/adapters/test_database_contract.py, and the contract runs over it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lemur_ann import Hits, LemurEncoder, maxsim, validate
from lemur_ann.documents import DocumentBatch, QueryBatch, ids_of, iterate_documents, opened, queries_of, to_offsets

Tokens = npt.NDArray[Any]  # (total_tokens, token_dim)
Offsets = npt.NDArray[np.int64]  # (num_documents + 1,)
Vectors = npt.NDArray[np.float32]  # (num_documents, dim)


@dataclass(frozen=True)
class Part:
    """Documents of one request, checked.

    Attributes:
        ids: the caller's, strings or integers.
        tokens, offsets: of the documents, in the dtype that they are stored in. They may be the caller's own memory: copy what
            is kept.
        vectors: what the encoder makes of these tokens; empty where there is no encoder yet.
        fields: a slice of what ``_fields`` made of the other columns.
    """

    ids: list[Any]
    tokens: Tokens
    offsets: Offsets
    vectors: Vectors
    fields: Any

    @property
    def matrices(self) -> list[Tokens]:
        """The tokens of each document."""
        return np.split(self.tokens, self.offsets[1:-1])


@dataclass(frozen=True)
class Wanted:
    """What the first stage looks for, for one query.

    Attributes:
        query: float32 (num_tokens, token_dim).
        vector: float32 (dim,), the query's.
        k: hits.
        count: candidates, at least k.
        num_threads: of whatever is done here.
        too_few: None at first. Where that found too few (see ``_is_enough``), the engine is asked once more, with that here:
            it compares all that match, or returns this where nothing was missed.
    """

    query: npt.NDArray[np.float32]
    vector: npt.NDArray[np.float32]
    k: int
    count: int
    num_threads: int
    too_few: Found | None = None


@dataclass(frozen=True)
class Found:
    """Candidates: with their tokens, or best first with scores where the engine has ranked them.

    Attributes:
        ids: the caller's.
        tokens, offsets: of the candidates.
        scores: exact MaxSim.
        count: how many candidates there were, where the engine gives only the best; None where these are all.
    """

    ids: Sequence[Any]
    tokens: Tokens | None = None
    offsets: Offsets | None = None
    scores: npt.NDArray[np.float32] | None = None
    count: int | None = None

    @property
    def num(self) -> int:
        """The number of candidates."""
        return len(self.ids) if self.count is None else self.count


class TwoStages:
    """Adds, deletes and searches documents of a database.

    Args:
        encoder: what the vectors are made with; None where ``token_dim`` is given.
        integer_ids: whether ids are integers, or strings; None where they may be either.
        stored_as: the dtype of stored tokens, float16 or float32.
        token_dim: of the tokens, for documents that nothing is learned of yet.

    Raises:
        TypeError: encoder is not one.
    """

    bytes_per_request = 4_000_000  # of tokens and vectors
    documents_per_request = 1000
    ids_per_request = 1000
    most_candidates = 2**31  # that the engine gives for one query
    wants_all = (
        False  # whether fewer than num_candidates are too few, rather than fewer than k: then all that match are compared
    )
    all_or_nothing = False  # whether the engine undoes what an error interrupts: documents then need not be checked before
    filter_types: tuple[type, ...] = (str,)  # of the engine's filters,
    _filter_form = 'a condition such as "year > 2020"'  # and what one looks like

    def __init__(
        self,
        encoder: Any,
        *,
        integer_ids: bool | None = None,
        stored_as: Any = np.float16,
        token_dim: int | None = None,
    ) -> None:
        if token_dim is None:
            check_encoder(encoder)
        self.encoder: LemurEncoder = encoder
        self.token_dim: int = encoder.token_dim if token_dim is None else token_dim
        self._integer_ids = integer_ids
        self._stored_as = np.dtype(stored_as)

    # ---------------------------------------------------------------- what an engine says in its own way

    def _there(self, ids: list[Any]) -> list[Any]:
        """Which of these ids are stored; no more than ``ids_per_request`` are asked for."""
        raise NotImplementedError(f"{type(self).__name__} has no _there")

    def _fields(self, batch: DocumentBatch, *, new: bool) -> Any:
        """The other columns of a batch, checked and as :meth:`_write` takes them: one entry a document, in what slices.

        ``batch.metadata`` is None where there are none.
        """
        raise NotImplementedError(f"{type(self).__name__} has no _fields")

    def _write(self, part: Part, *, new: bool) -> None:
        """Write documents; those that are there are replaced, unless all are new."""
        raise NotImplementedError(f"{type(self).__name__} has no _write")

    def _remove(self, ids: list[Any] | None, filter: Any) -> int:
        """Delete documents by ids or by a filter; how many were there."""
        raise NotImplementedError(f"{type(self).__name__} has no _remove")

    def _candidates(self, wanted: Wanted, *args: Any, **how: Any) -> Found:
        """The documents of largest inner product with a vector; an engine that is asked many at once has ``_found`` instead."""
        raise NotImplementedError(f"{type(self).__name__} has no _candidates")

    def _stored(self, ids: list[Any]) -> tuple[Tokens, Offsets]:
        """The tokens of documents, where :meth:`_learned` learns from them; no more than ``ids_per_request`` are asked for."""
        raise NotImplementedError(f"{type(self).__name__} has no _stored")

    # ---------------------------------------------------------------- changes

    def add(self, documents: Any, *, ids: Any = None, offsets: Any = None) -> None:
        """Add documents that are not there yet; nothing is written unless all are good.

        Args:
            documents: in any form that :meth:`lemur_ann.LemurIndex.add` takes, with ids. Other columns are stored as the class
                says.
            ids, offsets: where they are no columns.

        Raises:
            ValueError, TypeError: bad documents, an id that is there already or twice, or a value that is not kept.
        """
        self._put(documents, ids, offsets, new=True)

    def upsert(self, documents: Any, *, ids: Any = None, offsets: Any = None) -> None:
        """Add documents, in the place of those that have their ids; arguments and errors as for :meth:`add`.

        Where an engine without transactions fails on the way, some are there; made again, the call brings the rest.
        """
        self._put(documents, ids, offsets, new=False)

    def delete(self, ids: Any = None, *, filter: Any = None) -> int:
        """Delete documents by ids, of which unknown ones count for nothing, or by a filter of the engine's own.

        Returns:
            how many were deleted.

        Raises:
            TypeError: neither or both of them, ids of another kind than those there, or what is no filter.
            ValueError: a filter without any condition, which would delete all.
        """
        return self._delete(ids, None if filter is None else self._filter(filter, deletes=True))

    def _filter(self, filter: Any, *, deletes: bool = False) -> Any:
        """A filter as the engine takes it; TypeError where it is none, ValueError where it is empty and ``deletes`` all."""
        if filter is None:
            return None
        if not isinstance(filter, self.filter_types):
            raise TypeError(f"filter must be {self._filter_form}, got {type(filter).__name__}")
        if deletes and isinstance(filter, str) and not filter.strip():
            raise ValueError(f"filter must not be empty, expected {self._filter_form}")
        return filter

    def _delete(self, ids: Any, filter: Any) -> int:
        if (ids is None) == (filter is None):
            raise TypeError("delete takes either ids or filter=, one of them")
        if ids is None:
            return self._remove(None, filter)
        chosen = list(dict.fromkeys(self._checked_ids(ids_of(ids))))
        return sum(self._remove(some, None) for some in self._by_request(chosen))

    def _put(self, documents: Any, ids: Any, offsets: Any, *, new: bool) -> None:
        batches: Iterable[tuple[DocumentBatch, Any]] = self._checked(documents, ids, offsets, new)
        if not self.all_or_nothing:
            batches = list(batches)
        self._written(self._parts(batches), new)

    def _written(self, parts: Iterator[Part], new: bool) -> None:
        """Write all parts; where that breaks off, new documents are taken away again."""
        begun: list[Any] = []
        try:
            for part in parts:
                begun += part.ids
                self._write(part, new=new)
        except BaseException:
            for some in self._by_request(begun) if new and not self.all_or_nothing else ():
                with suppress(Exception):  # the engine may be gone
                    self._remove(some, None)
            raise

    def _checked(self, documents: Any, ids: Any, offsets: Any, new: bool) -> Iterator[tuple[DocumentBatch, Any]]:
        """Batches in the dtype that is stored, each with its other columns."""
        seen: set[Any] = set()
        for batch in iterate_documents(opened(documents), ids=ids, offsets=offsets, dim=self.token_dim):
            own = self._checked_ids(ids_in(batch))
            check_once(own, seen, self._key)
            fields = self._fields(batch, new=new)
            tokens = as_stored(batch.tokens, self._stored_as)
            for some in self._by_request(own) if new else ():
                there = self._there(some)
                if there:
                    raise ValueError(f"id {there[0]!r} is there already; upsert replaces")
            yield DocumentBatch(batch.ids, tokens, batch.offsets), fields

    def _checked_ids(self, ids: pa.Array) -> list[Any]:
        if self._integer_ids is not None and len(ids) and pa.types.is_integer(ids.type) != self._integer_ids:
            raise TypeError(f"ids must be {'integers' if self._integer_ids else 'strings'}, got {ids.type}")
        return ids.to_pylist()  # type: ignore[no-any-return,unused-ignore]

    def _key(self, doc_id: Any) -> Any:
        """What the engine knows a document by: two ids of one key are one document."""
        return doc_id

    def _by_request(self, ids: list[Any]) -> Iterator[list[Any]]:
        for begin in range(0, len(ids), self.ids_per_request):
            yield ids[begin : begin + self.ids_per_request]

    def _parts(self, batches: Iterable[tuple[DocumentBatch, Any]]) -> Iterator[Part]:
        vector_bytes = 0 if self.encoder is None else 4 * self.encoder.dim
        for batch, fields in batches:
            sizes = np.diff(batch.offsets) * self.token_dim * self._stored_as.itemsize + vector_bytes
            for some in requests(sizes.tolist(), self.bytes_per_request, self.documents_per_request):
                yield part_of(batch, some, fields[some], self._encoded)

    def _encoded(self, tokens: Tokens, offsets: Offsets) -> Vectors:
        return self.encoder.encode_documents(self._as_compared(tokens), offsets=offsets)

    def _as_compared(self, tokens: Tokens) -> Tokens:
        """Tokens as the engine compares them."""
        return tokens

    # ---------------------------------------------------------------- learning

    def _learned(self, ids: list[Any], queries: Any, num_documents: int, seed: int, how: dict[str, Any]) -> LemurEncoder:
        """A map learned from a random sample of what is stored."""
        chosen = sample_of(len(ids), num_documents, seed)
        return learned((self._stored(some) for some in self._by_request([ids[i] for i in chosen])), queries, how)

    # ---------------------------------------------------------------- searching

    def _search(
        self, queries: Any, k: Any, num_candidates: Any, *, offsets: Any = None, num_threads: int | None = None, **how: Any
    ) -> Any:
        """Hits of one query or a batch; ``how`` is for :meth:`_candidates`."""
        k = validate.positive_int(k, "k")
        count = max(k, validate.positive_int(num_candidates, "num_candidates"))
        if count > self.most_candidates:
            raise ValueError(f"k and num_candidates must be at most {self.most_candidates}, got {count}")
        threads = validate.num_threads(num_threads)
        asked = queries_of(opened(queries), self.token_dim, offsets)
        batch = asked.batch.as_float32
        batch = QueryBatch(self._as_compared(batch.tokens), batch.offsets)
        vectors = self.encoder.encode_batch(batch.tokens, batch.offsets, num_threads=threads)
        wanted = [Wanted(batch.matrix(i), vector, k, count, threads) for i, vector in enumerate(vectors)]
        return asked.answered([self._ranked(one, found) for one, found in zip(wanted, self._found(wanted, how), strict=True)])

    def _found(self, wanted: list[Wanted], how: dict[str, Any]) -> Iterator[Found]:
        """The candidates of each query; where a graph ends early, as it may behind a filter, it is done without."""
        for one in wanted:
            found = self._candidates(one, **how)
            yield found if self._is_enough(one, found) else self._candidates(replace(one, too_few=found), **how)

    def _is_enough(self, wanted: Wanted, found: Found) -> bool:
        return found.num >= (wanted.count if self.wants_all else wanted.k)

    def _ranked(self, wanted: Wanted, found: Found) -> Hits:
        ids, scores = found.ids, np.empty(0, np.float32)
        if found.scores is not None:
            ids, scores = ids[: wanted.k], found.scores[: wanted.k]
        elif len(ids):
            assert found.tokens is not None
            assert found.offsets is not None
            rows, threads = np.arange(len(ids)), wanted.num_threads
            best, scores = maxsim.rerank(wanted.query, found.tokens, found.offsets, rows, wanted.k, num_threads=threads)
            ids = [ids[i] for i in best]
        integers = all(isinstance(i, int) for i in ids) if self._integer_ids is None else self._integer_ids
        return Hits(np.array(ids, np.int64 if integers else object), np.asarray(scores, np.float32))


# -------------------------------------------------------------------- one step each


def check_encoder(encoder: Any) -> None:
    """TypeError where it is not one."""
    if not isinstance(encoder, LemurEncoder):
        raise TypeError(f"encoder must be a LemurEncoder, got {type(encoder).__name__}")


@contextmanager
def undone(undo: Callable[[], Any]) -> Iterator[None]:
    """Where what follows fails, what was made before it, and was not there, goes again."""
    try:
        yield
    except BaseException:
        with suppress(Exception):
            undo()
        raise


def check_maker(encoder: LemurEncoder, vectors: Any, where: str) -> None:
    """ValueError where another map made these vectors: all that one encodes has the same norm, which is another for others."""
    norms = np.linalg.norm(np.asarray(vectors, np.float32), axis=1) if len(vectors) else np.empty(0)
    if len(norms) and not np.isclose(norms, encoder.radius, rtol=3e-4).any():
        raise ValueError(
            f"the vectors of {where} were made by another encoder: "
            f"their norm is {norms[0]:.6g}, and that of this one's {encoder.radius:.6g}"
        )


def check_once(ids: list[Any], seen: set[Any], key: Callable[[Any], Any] = lambda doc_id: doc_id) -> None:
    """ValueError where the key of an id is in ``seen`` or comes twice; keys come into it."""
    for doc_id in ids:
        own = key(doc_id)
        if own in seen:
            raise ValueError(f"id {doc_id!r} is repeated, expected each id once")
        seen.add(own)


def ids_in(batch: DocumentBatch) -> pa.Array:
    """A batch's ids; ValueError where it has none."""
    if batch.ids is None:
        raise ValueError("documents have no ids: pass ids=, or a column 'id' in Arrow data")
    return batch.ids


def as_stored(tokens: Tokens, dtype: np.dtype[Any]) -> Tokens:
    """Tokens in the dtype that is stored; ValueError where that does not reach."""
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(tokens, dtype)
    if validate.first_bad_row(stored) is not None:
        raise ValueError(
            f"tokens are stored as {dtype}, and a value is beyond its range, {np.finfo(dtype).max:.0f}: scale them, or keep "
            "float32 where the database can"
        )
    return stored


def requests(sizes: list[int], most_bytes: int, most_documents: int) -> Iterator[slice]:
    """As many documents for each request as it may hold, and at least one."""
    begin = total = 0
    for i, size in enumerate(sizes):
        if i > begin and (total + size > most_bytes or i - begin == most_documents):
            yield slice(begin, i)
            begin, total = i, 0
        total += size
    if sizes:
        yield slice(begin, len(sizes))


def part_of(batch: DocumentBatch, some: slice, fields: Any, encode: Any) -> Part:
    """Some documents of a batch, with their vectors."""
    bounds = batch.offsets[some.start : some.stop + 1]
    tokens, offsets = batch.tokens[bounds[0] : bounds[-1]], bounds - bounds[0]
    return Part(ids_in(batch)[some].to_pylist(), tokens, offsets, encode(tokens, offsets), fields)


def sample_of(count: int, num_documents: int, seed: int) -> list[int]:
    """Rows of a random sample, ascending; none where there are none."""
    most = min(count, validate.positive_int(num_documents, "num_documents"))
    chosen: list[int] = np.sort(np.random.default_rng(seed).choice(count, most, replace=False)).tolist() if count else []
    return chosen


def learned(sample: Iterable[tuple[Tokens, Offsets]], queries: Any, how: dict[str, Any]) -> LemurEncoder:
    """The map of documents that come some at a time; ValueError where there are none."""
    parts = list(sample)
    if not parts:
        raise ValueError("there are no documents to learn from")
    offsets = to_offsets(np.concatenate([np.diff(bounds) for _, bounds in parts]))
    return LemurEncoder.fit(np.concatenate([tokens for tokens, _ in parts]), queries, offsets=offsets, **how)


def largest_products(vectors: Any, wanted: Wanted) -> list[int]:
    """Which of some documents' vectors are the candidates, best first."""
    products = np.asarray(vectors, np.float32) @ wanted.vector
    best: list[int] = np.argsort(-products, kind="stable")[: wanted.count].tolist()
    return best
