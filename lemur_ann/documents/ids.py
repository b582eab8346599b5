"""The caller's ids beside our rows."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lemur_ann.documents.rows import Rows, RowSet

IDS_TO_MERGE = 65_536  # chunks with fewer may be merged


def check_kind(ids: pa.Array, kind: pa.DataType | None) -> None:
    """TypeError where ids are of another kind, large_string or int64, than those of the index; None is of an empty one."""
    if kind is not None and ids.type != kind:
        raise TypeError(f"ids are {_kind(ids.type)}, index has ids that are {_kind(kind)}")


def check_new(ids: list[Any], seen: set[Any], taken: Iterable[bool] = itertools.repeat(False)) -> None:
    """ValueError where an id is repeated, or ``taken`` by a document of the index.

    ``seen`` holds the ids of documents before these, and then these too.
    """
    for row, (doc_id, is_taken) in enumerate(zip(ids, taken, strict=False), start=len(seen)):
        if doc_id in seen:
            raise ValueError(f"id {doc_id!r} is repeated in row {row}, expected each id once")
        seen.add(doc_id)
        if is_taken:
            raise ValueError(f"id {doc_id!r} in row {row} names a document of the index already; delete it first, or upsert")


def check_known(ids: list[Any], known: Iterable[bool], hint: str = "") -> None:
    """KeyError where an id names no document; ``hint`` ends its message."""
    missing = list(dict.fromkeys(doc_id for doc_id, is_known in zip(ids, known, strict=True) if not is_known))
    if missing:
        count = f" ({len(missing)} ids missing)" if len(missing) > 1 else ""
        raise KeyError(f"no document has the id {missing[0]!r}{count}{hint}")


def plain_id(doc_id: Any) -> Any:
    """An id as Python has it, where NumPy, Arrow, torch or another library of arrays gave it."""
    if isinstance(doc_id, pa.Scalar):
        return doc_id.as_py()
    is_one = getattr(doc_id, "shape", None) == () and hasattr(doc_id, "item")
    return doc_id.item() if is_one else doc_id


def next_ids(first: int, count: int, kind: pa.DataType | None) -> pa.Array:
    """Ids for documents that came without: the integers from ``first`` on; ValueError where those of the index are strings."""
    if kind is not None and not pa.types.is_integer(kind):
        raise ValueError("documents have no ids, and the index holds string ids; pass ids=")
    if first + count > 2**63:
        raise ValueError(f"no integers are left for ids after {first - 1}; pass ids=")
    return pa.array(np.arange(first, first + count))


class IdColumn:
    """Ids (large_string or int64) by row. It never changes: more ids make a new one."""

    def __init__(self, chunks: Iterable[pa.Array] = ()) -> None:
        self.chunks = [chunk for chunk in chunks if len(chunk)]
        self._firsts = np.cumsum([0, *map(len, self.chunks)])

    def __len__(self) -> int:
        return int(self._firsts[-1])

    @property
    def kind(self) -> pa.DataType | None:
        """large_string or int64; None while empty."""
        return self.chunks[0].type if self.chunks else None

    @property
    def type(self) -> pa.DataType:
        """large_string or int64."""
        return self.kind or pa.int64()

    @property
    def array(self) -> pa.ChunkedArray:
        """All of them."""
        return pa.chunked_array(self.chunks, self.type)

    def extended(self, ids: pa.Array) -> IdColumn:
        """With more at the end."""
        chunks = list(self.chunks)
        while chunks and len(chunks[-1]) < 2 * len(ids) and len(chunks[-1]) + len(ids) <= IDS_TO_MERGE:
            ids = pa.concat_arrays([chunks.pop(), ids])
        return IdColumn([*chunks, ids])

    def take(self, rows: Rows) -> npt.NDArray[Any]:
        """The ids of some rows: int64, or object holding str."""
        integers = pa.types.is_integer(self.type)
        if not self.chunks:
            return np.empty(0, np.int64 if integers else object)
        if len(self.chunks) == 1:
            chunk = self.chunks[0]
            return chunk.to_numpy()[rows] if integers else np.array([chunk[row].as_py() for row in rows.tolist()], dtype=object)
        places = np.searchsorted(self._firsts, rows, side="right") - 1
        if integers:
            out = np.empty(len(rows), np.int64)
            for place in np.unique(places).tolist():
                inside = places == place
                out[inside] = self.chunks[place].to_numpy()[rows[inside] - self._firsts[place]]
            return out
        firsts = self._firsts.tolist()  # a few strings: one by one is faster than Arrow's take
        pairs = zip(rows.tolist(), places.tolist(), strict=True)
        return np.array([self.chunks[place][row - firsts[place]].as_py() for row, place in pairs], dtype=object)

    def take_array(self, rows: Rows) -> pa.Array:
        """The same as one Arrow array."""
        taken = self.array.take(pa.array(rows)).combine_chunks()
        return taken.chunk(0) if isinstance(taken, pa.ChunkedArray) else taken

    def next_ids(self, count: int) -> pa.Array:
        """Ids for documents that came without: the integers after the largest one so far."""
        largest = max((pc.max(chunk).as_py() for chunk in self.chunks), default=-1) if pa.types.is_integer(self.type) else -1
        return next_ids(max(largest + 1, 0), count, self.kind)


class IdMap:
    """Rows by id, of the documents that are not deleted, beside the column of ids that it was made of."""

    def __init__(self, column: IdColumn | None = None, deleted: RowSet | None = None) -> None:
        self.column = column or IdColumn()
        self._deleted = deleted
        self._rows: dict[Any, int] | None = None

    def __contains__(self, doc_id: object) -> bool:
        doc_id = plain_id(doc_id)
        hash(doc_id)  # TypeError for a list, as of a dict: ``in`` asks for one id
        if hasattr(doc_id, "shape"):  # a tensor of several has a hash, its address
            raise TypeError(f"`in` asks for one id, got {type(doc_id).__name__} of shape {tuple(doc_id.shape)}")
        is_id = isinstance(doc_id, (str, int)) and not isinstance(doc_id, bool)
        return is_id and self._look_up([doc_id])[0] is not None

    @property
    def rows(self) -> dict[Any, int]:
        """Row by id; made when first asked for. Of a map that is no longer the newest, it may be a newer one's by now."""
        rows = self._rows  # read once: another thread's change may take it over at any moment
        if rows is None:
            out = set() if self._deleted is None else set(self._deleted.rows.tolist())
            rows = {doc_id: row for row, doc_id in enumerate(self.column.array.to_pylist()) if row not in out}
            self._rows = rows
        return rows

    @property
    def size_of_rows(self) -> int:
        """Bytes that the rows by id take, where they were made; estimated from some of them."""
        rows = self._rows
        if not rows:
            return 0
        # the ids are looked at in the column, since another thread may be changing the rows
        some = [sys.getsizeof(doc_id) + sys.getsizeof(2**20) for doc_id in self.column.array[:1000].to_pylist()]
        return sys.getsizeof(rows) + sum(some) * len(rows) // max(len(some), 1)

    def _look_up(self, ids: list[Any]) -> list[int | None]:
        """The row of each id, None where there is none."""
        while True:
            rows = self.rows
            found = [rows.get(doc_id) for doc_id in ids]
            if self._rows is rows:  # else they went to a newer map meanwhile, and may have changed
                return found

    def check_kind(self, ids: pa.Array) -> None:
        """TypeError where ids are of another kind than those there are."""
        check_kind(ids, self.column.kind)

    def check_new(self, ids: pa.Array, seen: set[Any] | None = None, *, replaces: bool = False) -> None:
        """Refuse ids of another kind, repeated ones, and unless ``replaces`` those that name a document already.

        ``seen`` holds the ids of documents before these, and then these too.
        """
        self.check_kind(ids)
        values = ids.to_pylist()
        taken = (row is not None and not replaces for row in self._look_up(values))
        check_new(values, set() if seen is None else seen, taken)

    def find(self, ids: pa.Array) -> Rows:
        """The rows of ids; KeyError where one names no document."""
        values = ids.to_pylist()
        found = self._look_up(values)
        kind = self.column.kind
        hint = "" if kind in (None, ids.type) else f"; the ids of the index are {_kind(kind)}"
        check_known(values, (row is not None for row in found), hint)
        return np.array(found, dtype=np.int64)

    def known(self, ids: pa.Array) -> Rows:
        """The rows of those ids that name a document."""
        return np.array([row for row in self._look_up(ids.to_pylist()) if row is not None], dtype=np.int64)

    def changed(self, removed: Rows, added: pa.Array | None, deleted: RowSet) -> IdMap:
        """The map after rows are deleted and then ids added at the end; ``deleted`` are all deleted rows then.

        It takes over what this one has made; this one makes it again if it is still asked.
        """
        new = IdMap(self.column if added is None else self.column.extended(added), deleted)
        rows, self._rows = self.rows, None
        for doc_id in self.column.take(removed).tolist():
            rows.pop(doc_id, None)
        if added is not None:
            rows.update(zip(added.to_pylist(), range(len(self.column), len(new.column)), strict=True))
        new._rows = rows
        return new

    def moved_to(self, column: IdColumn) -> IdMap:
        """The same ids in a column elsewhere; what this one has made is taken over as in :meth:`changed`."""
        new = IdMap(column, self._deleted)
        new._rows, self._rows = self._rows, None
        return new


def _kind(kind: pa.DataType) -> str:
    return "integers" if pa.types.is_integer(kind) else "strings"
