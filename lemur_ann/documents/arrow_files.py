"""Arrow IPC files, opened once their footer and the heads of their batches are known to fit the file.

Arrow believes what a file says of itself: a compressed buffer names the memory that it is unpacked to, and a column may have
more rows than any bytes. Ours are never compressed, so that a hundred kilobytes cannot come to gigabytes; and all that is read
of one is mapped. What is looked at here is flatbuffers: tables, whose fields a table before them places.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

MAGIC = b"ARROW1"
DICTIONARIES, BATCHES = 2, 3  # fields of a footer
DICTIONARY_BATCH, RECORD_BATCH = 2, 3  # kinds of messages
ELEMENTS, ELEMENTS_PER_BYTE = 2**24, 64  # that a column may have: nulls and empty structs take no bytes


class _Table:
    """A table of flatbuffers within ``data``."""

    def __init__(self, data: memoryview, place: int) -> None:
        self._data, self._place = data, place
        self._fields = place - self._read("<i", place)

    def _read(self, kind: str, place: int) -> int:
        if place < 0:  # which Python would count from the end
            raise ValueError("a table leads out of its message")
        return int(struct.unpack_from(kind, self._data, place)[0])

    def _field(self, number: int) -> int:
        """Where a field is, 0 where there is none."""
        known = self._read("<H", self._fields)
        offset = self._read("<H", self._fields + 4 + 2 * number) if 6 + 2 * number <= known else 0
        return self._place + offset if offset else 0

    def has(self, number: int) -> bool:
        return self._field(number) > 0

    def byte(self, number: int) -> int:
        place = self._field(number)
        return self._read("<B", place) if place else 0

    def long(self, number: int) -> int:
        place = self._field(number)
        return self._read("<q", place) if place else 0

    def table(self, number: int) -> _Table:
        place = self._field(number)
        if place == 0:
            raise ValueError("a message lacks its table")
        return _Table(self._data, place + self._read("<I", place))

    def structs(self, number: int, kind: np.dtype[Any]) -> Any:
        """A vector of structs, as one array."""
        place = self._field(number)
        if place == 0:
            return np.empty(0, kind)
        place += self._read("<I", place)
        return np.frombuffer(self._data, kind, self._read("<I", place), place + 4)


BLOCK = np.dtype([("offset", "<i8"), ("head", "<i4"), ("", "<i4"), ("body", "<i8")])
NODE = np.dtype([("length", "<i8"), ("nulls", "<i8")])
BUFFER = np.dtype([("offset", "<i8"), ("length", "<i8")])


def open_arrow(path: Path) -> pa.RecordBatchFileReader:
    """A mapped file of batches.

    Raises:
        ValueError, pa.ArrowException, OSError: it is none, or compressed, or says more of itself than there is.
    """
    with pa.memory_map(str(path)) as source:
        whole = source.read_buffer()
    check(memoryview(whole))
    return pa.ipc.open_file(whole)


def check(data: memoryview) -> None:
    """ValueError unless every batch of a file lies within it, uncompressed, with no more elements than its bytes may hold."""
    size = len(data)
    try:
        if size < 10 or bytes(data[-6:]) != MAGIC:
            raise ValueError("it has no end")
        length = struct.unpack_from("<i", data, size - 10)[0]
        if not 4 <= length <= size - 10:
            raise ValueError("its footer is longer than it")
        footer_bytes = data[size - 10 - length : size - 10]
        footer = _Table(footer_bytes, struct.unpack_from("<I", footer_bytes)[0])
        for field, kind in ((DICTIONARIES, DICTIONARY_BATCH), (BATCHES, RECORD_BATCH)):
            for offset, head, _, body in footer.structs(field, BLOCK).tolist():
                _check_batch(data, offset, head, body, kind)
    except (struct.error, IndexError, OverflowError) as error:
        raise ValueError(f"its footer or a message leads out of it: {error}") from error


def _check_batch(data: memoryview, offset: int, head: int, body: int, kind: int) -> None:
    if offset < 0 or head < 8 or body < 0 or offset + head + body > len(data):
        raise ValueError("a batch leads out of it")
    mark, length = struct.unpack_from("<ii", data, offset)
    if mark != -1 or not 4 <= length <= head - 8:
        raise ValueError("a batch has no head")
    message_bytes = data[offset + 8 : offset + 8 + length]
    message = _Table(message_bytes, struct.unpack_from("<I", message_bytes)[0])
    if message.byte(1) != kind:
        raise ValueError("a batch is something else")
    batch = message.table(2)
    if kind == DICTIONARY_BATCH:
        batch = batch.table(1)
    if batch.has(3):
        raise ValueError("it is compressed, and files of an index never are")
    nodes, buffers = batch.structs(1, NODE), batch.structs(2, BUFFER)
    most = ELEMENTS + ELEMENTS_PER_BYTE * len(data)
    rows, lengths, nulls = batch.long(0), nodes["length"], nodes["nulls"]
    if not 0 <= rows <= most or lengths.min(initial=0) < 0 or lengths.max(initial=0) > most:
        raise ValueError("it has columns of more elements than it has room for, or of less than none")
    if nulls.min(initial=0) < 0 or (nulls > lengths).any():
        raise ValueError("it has a column of more nulls than elements, or of less than none")
    ends = buffers["length"] <= body - buffers["offset"]
    if not ((buffers["offset"] >= 0) & (buffers["length"] >= 0) & ends).all():
        raise ValueError("a buffer leads out of it")
