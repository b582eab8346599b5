"""hnswlib's file, by way of which its graph is read, without hnswlib; older versions kept it in an index.

It is a header (HEADER), one block a node (the number of its links, room for them, its vector, its label), and for each node
the size in bytes of its links on higher levels, and these.
"""

from __future__ import annotations

import errno
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lemur_ann.documents.rows import Rows
from lemur_ann.errors import CorruptIndex

if TYPE_CHECKING:
    import hnswlib

ROWS_PER_BLOCK = 16_384
PREFIX = ".building-"  # of temporary files with a name; the next writer of an index deletes those in its folder
MAX_EF = 10_000  # of a file
HEADER = np.dtype(
    [
        *((name, "<u8") for name in ("offset", "room", "count", "node_bytes", "label_offset", "vector_offset")),
        *((name, "<i4") for name in ("highest_level", "first_node")),
        *((name, kind) for name, kind in (("M", "<u8"), ("degree", "<u8"), ("M_again", "<u8"), ("mult", "<f8"), ("ef", "<u8"))),
    ]
)


def read_vectors(path: Path, dim: int, num_rows: int) -> npt.NDArray[np.float32]:
    """The vectors of the first ``num_rows`` labels, float32 (num_rows, dim); CorruptIndex where one is missing or infinite."""
    header = read_header(path)
    nodes = np.memmap(path, np.uint8, "r", HEADER.itemsize, (header["count"], header["node_bytes"]))
    labels, begin = _labels(nodes, path), header["vector_offset"]
    inside = np.flatnonzero(labels < num_rows)
    if len(inside) < num_rows:
        raise CorruptIndex(f"{path} does not have all of {num_rows} documents")
    vectors = np.empty((num_rows, dim), np.float32)
    vectors[labels[inside]] = nodes[inside, begin : begin + 4 * dim].view(np.float32)
    if not np.isfinite(vectors).all():
        raise CorruptIndex(f"{path} has a vector that is not finite")
    return vectors


def read_links(path: Path, dim: int, num_rows: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """The neighbours of the first ``num_rows`` labels, (num_rows, degree), -1 after the last; and where searches may begin.

    The file is read block by block, so that the memory it takes is that of the links.
    """
    with path.open("rb") as file:
        header = np.frombuffer(file.read(HEADER.itemsize), HEADER)[0]
        count, size, degree = (int(header[name]) for name in ("count", "node_bytes", "degree"))
        blocks = [(begin, min(begin + ROWS_PER_BLOCK, count)) for begin in range(0, count, ROWS_PER_BLOCK)]

        def nodes(begin: int, end: int) -> npt.NDArray[np.uint8]:
            file.seek(HEADER.itemsize + begin * size)
            return np.frombuffer(file.read((end - begin) * size), np.uint8).reshape(-1, size)

        def column(block: npt.NDArray[np.uint8], offset: int, width: int, kind: type) -> npt.NDArray[Any]:
            return block[:, offset : offset + width].copy().view(kind)

        rows, is_far = np.empty(count, np.int32), np.empty(count, bool)
        for begin, end in blocks:
            block = nodes(begin, end)
            labels = column(block, int(header["label_offset"]), 8, np.int64)[:, 0]
            rows[begin:end] = np.where(labels < num_rows, labels, -1)  # a broken-off call may have left others
            # Vectors beyond the radius (reduction.py) are near nobody: few links lead to them, and many queries want them.
            is_far[begin:end] = column(block, int(header["vector_offset"]) + 4 * (dim - 1), 4, np.float32)[:, 0] == 0
        links = np.full((num_rows, degree), -1, np.int32)
        for begin, end in blocks:
            block, own = nodes(begin, end), rows[begin:end]
            there = np.arange(degree) < column(block, 0, 2, np.uint16)  # the places after them hold anything
            found = np.where(there, rows[np.where(there, column(block, 4, 4 * degree, np.int32), 0)], -1)
            links[own[own >= 0]] = _without_gaps(found)[own >= 0]
        file.seek(HEADER.itemsize + count * size)
        levels = _levels(file.read(), count)
    few, level = 2 * int(count**0.5), 0  # so many entries, about, are looked at by every search
    while level < levels.max(initial=0) and np.count_nonzero(levels >= level) > few:
        level += 1
    chosen = rows[(levels >= level) | is_far]
    return links, np.sort(chosen[chosen >= 0])


def read_header(path: Path) -> dict[str, int]:
    """The header of hnswlib's file; CorruptIndex where it does not fit the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        raw = file.read(HEADER.itemsize)
    if len(raw) < HEADER.itemsize:
        raise CorruptIndex(f"{path} cannot be read: it has no header")
    values = np.frombuffer(raw, HEADER)[0]
    mult = float(values["mult"])  # of the logarithm of a random number, which gives the level of a node to come
    header = {name: int(values[name]) for name in HEADER.names or () if name != "mult"}
    link_bytes = 4 + 4 * header["degree"]
    if not (
        header["offset"] == 0
        and header["count"] <= header["room"] < 2**31
        and HEADER.itemsize + header["count"] * header["node_bytes"] <= size
        and 1 < header["M"] == header["M_again"] <= header["degree"] < 2**15
        and math.isclose(mult, 1 / math.log(header["M"]), rel_tol=1e-6)
        and 0 < header["ef"] <= MAX_EF
        and header["vector_offset"] == link_bytes < header["label_offset"] == header["node_bytes"] - 8
    ):
        raise CorruptIndex(f"{path} cannot be read: its header does not fit it")
    return header


def check_dim(path: Path, dim: int) -> None:
    """CorruptIndex where the file has vectors of another dimension."""
    header = read_header(path)
    if header["label_offset"] - header["vector_offset"] != 4 * dim:
        raise CorruptIndex(f"{path} has vectors of another dimension")


def _labels(nodes: npt.NDArray[np.uint8], path: Path) -> Rows:
    """The row of each node; CorruptIndex where two nodes have one, or one is negative or too large."""
    labels = nodes[:, -8:].copy().view(np.int64)[:, 0]
    if len(labels) and (labels.min() < 0 or labels.max() >= 2**31 or len(np.unique(labels)) < len(labels)):
        raise CorruptIndex(f"{path} cannot be read: its labels are not rows")
    return labels


def check(path: Path, dim: int) -> None:
    """CorruptIndex where what is read of it would be outside of the file or of its graph."""
    check_dim(path, dim)
    header = read_header(path)
    count, M = header["count"], header["M"]
    if count == 0:
        raise CorruptIndex(f"{path} has no nodes")
    nodes = np.memmap(path, np.uint8, "r", HEADER.itemsize, (count, header["node_bytes"]))
    _labels(nodes, path)
    higher = np.fromfile(path, np.uint32, offset=HEADER.itemsize + nodes.size)
    levels, begins = _higher_lists(higher, count, M, path)
    if not (
        _lowest_stay_inside(nodes, header)
        # a search begins at the first node, on the highest level
        and levels.max() == header["highest_level"]
        and 0 <= header["first_node"] < count
        and levels[header["first_node"]] == header["highest_level"]
        and _higher_stay_inside(higher, levels, begins, M)
    ):
        raise CorruptIndex(f"{path} cannot be read: its links lead out of it")


def _lowest_stay_inside(nodes: npt.NDArray[np.uint8], header: dict[str, int]) -> bool:
    """Whether no link of the lowest level leads to a node that there is not."""
    links = nodes[:, 4 : header["vector_offset"]].copy().view(np.uint32)
    used = nodes[:, :2].copy().view(np.uint16)  # their number has two bytes; of the other two one marks deleted nodes
    return bool(
        nodes[:, 2].max() <= 1
        and nodes[:, 3].max() == 0
        and used.max() <= header["degree"]
        and (links[np.arange(header["degree"]) < used] < header["count"]).all()
    )


def _higher_lists(higher: npt.NDArray[np.uint32], count: int, M: int, path: Path) -> tuple[npt.NDArray[np.int64], Rows]:
    """How many levels each node has above the lowest, and where its lists of links begin among the words after the nodes."""
    levels, begins = np.zeros(count, np.int64), np.empty(count, np.int64)
    place = 0
    for node in range(count):
        if place >= len(higher) or int(higher[place]) % (4 * (1 + M)):
            raise CorruptIndex(f"{path} cannot be read: its links of higher levels are cut off")
        levels[node], begins[node] = int(higher[place]) // (4 * (1 + M)), place + 1
        place += 1 + int(higher[place]) // 4
    if place != len(higher):
        raise CorruptIndex(f"{path} cannot be read: its links of higher levels are not all that follows its nodes")
    return levels, begins


def _higher_stay_inside(higher: npt.NDArray[np.uint32], levels: npt.NDArray[np.int64], begins: Rows, M: int) -> bool:
    """Whether every link of a higher level leads to a node that is on that level too."""
    for node in np.flatnonzero(levels).tolist():
        lists = higher[begins[node] : begins[node] + levels[node] * (1 + M)].reshape(-1, 1 + M)
        for level, words in enumerate(lists, start=1):
            number = int(words[0])
            found = words[1 : 1 + number]
            if number > M or (found >= len(levels)).any() or (levels[found] < level).any():
                return False
    return True


def _levels(higher_links: bytes, count: int) -> npt.NDArray[np.int64]:
    """How many bytes of links each node has above the lowest level: more on more levels."""
    words = np.frombuffer(higher_links, np.uint32)
    sizes = np.empty(count, np.int64)
    place = 0
    for node in range(count):
        sizes[node] = words[place]
        place += 1 + int(sizes[node]) // 4
    _, levels = np.unique(sizes, return_inverse=True)
    return levels.astype(np.int64)


def _without_gaps(links: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """The same links of each row, those that are -1 last."""
    gaps = links < 0
    if not np.any(gaps[:, :-1] & ~gaps[:, 1:]):
        return links
    return np.take_along_axis(links, np.argsort(gaps, axis=1, kind="stable"), axis=1)


@contextmanager
def saved(graph: hnswlib.Index, directory: str | None) -> Iterator[Path]:
    """A temporary file of hnswlib's graph, in ``directory`` or in that of Python's tempfile.

    On Linux it has no name, so that a process that is killed leaves nothing behind.
    """
    folder = directory or tempfile.gettempdir()
    with ExitStack() as stack:
        path = (_nameless(folder, stack) if sys.platform == "linux" else None) or _named(folder, stack)
        _save(graph, path, folder)
        del graph  # the caller may want its memory
        yield path


def _nameless(folder: str, stack: ExitStack) -> Path | None:
    """A file that is reached by its descriptor; None where none can be."""
    file = stack.enter_context(tempfile.TemporaryFile(prefix=PREFIX, dir=folder, buffering=0))  # noqa: SIM115
    path = Path(f"/dev/fd/{file.fileno()}")  # opened anew by this name it has a position of its own
    return path if os.path.exists(path) else None


def _named(folder: str, stack: ExitStack) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=PREFIX, dir=folder)
    os.close(descriptor)

    def remove() -> None:
        with suppress(OSError):
            os.unlink(name)

    stack.callback(remove)
    return Path(name)


def _save(builder: hnswlib.Index, path: Path, folder: str) -> None:
    """hnswlib does not notice when its file cannot be opened, or when there is no room for it."""
    path.open("ab").close()
    builder.save_index(str(path))
    size, expected = path.stat().st_size, builder.index_file_size()  # of which it knows beforehand
    if size != expected:
        raise OSError(errno.ENOSPC, f"the graph takes {expected:,} bytes and {size:,} were written: no room left", folder)
