"""The caller's ids beside our row numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc


class IdMap:
    """Ids (large_string or int64) by document index, and back. Deleted documents keep their row and lose their id."""

    def __init__(self, ids: pa.Array | None = None, deleted: npt.NDArray[np.int64] | None = None) -> None:
        self._chunks: list[pa.Array] = [] if ids is None or len(ids) == 0 else [ids]
        self._type = None if ids is None or len(ids) == 0 else ids.type
        self._index: dict[Any, int] | None = None
        self._deleted = set() if deleted is None else set(deleted.tolist())

    def __len__(self) -> int:
        return sum(len(chunk) for chunk in self._chunks)

    @property
    def array(self) -> pa.Array:
        """All ids by document index."""
        if len(self._chunks) > 1:
            self._chunks = [pa.concat_arrays(self._chunks)]
        return self._chunks[0] if self._chunks else pa.array([], pa.int64())

    @property
    def index(self) -> dict[Any, int]:
        """Document index by id, of the documents that are not deleted."""
        if self._index is None:
            pairs = enumerate(self.array.to_pylist())
            self._index = {doc_id: i for i, doc_id in pairs if i not in self._deleted}
        return self._index

    @property
    def num_live(self) -> int:
        """Documents that are not deleted; unlike ``index``, it costs no pass over the ids."""
        return len(self) - len(self._deleted)

    @property
    def type(self) -> pa.DataType:
        """large_string or int64."""
        return self._type or pa.int64()

    def take(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """The ids of some documents: int64, or object holding str."""
        if pa.types.is_integer(self.type):
            return self.array.to_numpy()[indices]  # type: ignore[no-any-return]
        array = self.array  # a few items: one by one is faster than Arrow's take
        return np.array([array[i].as_py() for i in indices.tolist()], dtype=object)

    def next_ids(self, count: int) -> pa.Array:
        """Ids for documents that came without: the integers after the largest one so far."""
        if self._type is not None and not pa.types.is_integer(self._type):
            raise ValueError("documents have no ids, and the index holds string ids; pass ids=")
        first = max(int(pc.max(self.array).as_py()) + 1, 0) if len(self) else 0
        if first + count > 2**63:
            raise ValueError(f"no integers are left for ids after {first - 1}; pass ids=")
        return pa.array(range(first, first + count), pa.int64())

    def check_new(self, ids: pa.Array, seen: set[Any] | None = None) -> None:
        """Refuse ids of another kind, repeated ones, and those that name a document already.

        ``seen`` holds the ids of rows before these, and then these too.
        """
        if self._type is not None and ids.type != self._type:
            raise TypeError(f"ids are {_kind(ids.type)}, index has ids that are {_kind(self._type)}")
        seen = set() if seen is None else seen
        for row, doc_id in enumerate(ids.to_pylist(), start=len(seen)):
            if doc_id in seen:
                raise ValueError(f"id {doc_id!r} is repeated in row {row}, expected each id once")
            seen.add(doc_id)
            if doc_id in self.index:
                raise ValueError(f"id {doc_id!r} in row {row} names a document of the index already; delete it first")

    def append(self, ids: pa.Array) -> None:
        """Give the next documents these ids, which :meth:`check_new` has passed."""
        index = self.index
        for i, doc_id in enumerate(ids.to_pylist(), start=len(self)):
            index[doc_id] = i
        self._chunks.append(ids)
        self._type = ids.type

    def remove(self, ids: pa.Array) -> npt.NDArray[np.int64]:
        """Forget ids and return their document indices; KeyError where one names no document, before any is forgotten."""
        values = dict.fromkeys(ids.to_pylist())
        missing = [doc_id for doc_id in values if doc_id not in self.index]
        if missing:
            raise KeyError(f"no document has the id {missing[0]!r}" + f" ({len(missing)} ids missing)" * (len(missing) > 1))
        removed = [self.index.pop(doc_id) for doc_id in values]
        self._deleted.update(removed)
        return np.array(sorted(removed), dtype=np.int64)

    def indices(self, ids: pa.Array) -> npt.NDArray[np.int64]:
        """The document indices of ids; KeyError where one names no document."""
        try:
            return np.array([self.index[doc_id] for doc_id in ids.to_pylist()], dtype=np.int64)
        except KeyError as error:
            raise KeyError(f"no document has the id {error.args[0]!r}") from None

    @property
    def deleted(self) -> npt.NDArray[np.int64]:
        """Document indices of deleted documents, ascending."""
        return np.array(sorted(self._deleted), dtype=np.int64)


def _kind(kind: pa.DataType) -> str:
    return "integers" if pa.types.is_integer(kind) else "strings"
