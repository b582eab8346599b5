"""What goes over the wire: tokens and vectors in Postgres's binary form."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format

from lemur_ann.documents import to_offsets

# Of a one-dimensional array on the wire: dimensions, whether it has nulls, element oid, length, lower bound.
ARRAY_HEADER = struct.Struct(">iiIii")


class Vector(bytes):
    """A vector or halfvec in Postgres's binary form."""


class Tokens(bytes):
    """An array of them."""


class _BinaryDumper(Dumper):  # type: ignore[misc,unused-ignore]
    format = Format.BINARY

    def dump(self, obj: bytes) -> bytes:
        return bytes(obj)


def dumpers(columns: dict[str, int]) -> list[tuple[type, type[Dumper]]]:
    """How psycopg sends both, for a table whose columns have these type oids."""
    of = ((Vector, columns.get("lemur", 0)), (Tokens, columns["tokens"]))
    return [(kind, type("", (_BinaryDumper,), {"oid": oid})) for kind, oid in of]


def register(cursor: psycopg.Cursor[Any], found: list[tuple[type, type[Dumper]]]) -> None:
    """Have a cursor send them so."""
    for kind, dumper in found:
        cursor.adapters.register_dumper(kind, dumper)


class TokenForm:
    """The form of a document's tokens, which is that of their column.

    Args:
        kind: "bytea", float16 as they lie in memory; "halfvec" or "vector", an array of these.
        dim: of a token.
        element_oids: of the types halfvec and vector.
    """

    def __init__(self, kind: str, dim: int, element_oids: dict[str, int]) -> None:
        self.kind = kind
        self.dim = dim
        self._element_oid = element_oids.get(kind, 0)
        # in an array each token has its length in bytes, its dim, and two bytes of nothing before it
        value = ">f4" if kind == "vector" else ">f2"
        array = np.dtype([("length", ">i4"), ("dim", ">i2"), ("unused", ">i2"), ("token", value, (dim,))])
        self._record = np.dtype([("token", "<f2", (dim,))]) if kind == "bytea" else array

    @property
    def stored_as(self) -> type[np.floating[Any]]:
        """The dtype of the values."""
        return np.float32 if self.kind == "vector" else np.float16

    def pack(self, tokens: npt.NDArray[Any]) -> Tokens:
        """A document's tokens as Postgres receives them; values beyond float16 become infinite, which it refuses in arrays."""
        records = np.zeros(len(tokens), self._record)
        with np.errstate(over="ignore"):
            records["token"] = tokens
        if self.kind == "bytea":
            return Tokens(records.tobytes())
        records["length"], records["dim"] = self._record.itemsize - 4, self.dim
        return Tokens(ARRAY_HEADER.pack(1, 0, self._element_oid, len(tokens), 1) + records.tobytes())

    def unpack(self, packed: list[bytes]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """The tokens of documents, laid end to end, and their offsets."""
        header = 0 if self.kind == "bytea" else ARRAY_HEADER.size
        joined = b"".join([memoryview(one)[header:] for one in packed])
        tokens = np.frombuffer(joined, self._record)["token"]
        lengths = [(len(one) - header) // self._record.itemsize for one in packed]
        return tokens.astype(tokens.dtype.newbyteorder("="), copy=False), to_offsets(lengths)


def vector_bytes(vector: npt.NDArray[np.float32], kind: str) -> Vector:
    """dim, two bytes of nothing, and the values."""
    return Vector(struct.pack(">HH", len(vector), 0) + vector.astype(">f4" if kind == "vector" else ">f2").tobytes())


def vector_of(packed: bytes, kind: str) -> npt.NDArray[np.float32]:
    """What :func:`vector_bytes` packed."""
    return np.frombuffer(packed, ">f4" if kind == "vector" else ">f2", offset=4).astype(np.float32)
