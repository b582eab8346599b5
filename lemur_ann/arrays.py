"""Named arrays in one file, as safetensors: the learned map, the links of a graph, vectors; and how files are replaced."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from lemur_ann.errors import CorruptIndex

HEADER_BYTES = 2**24  # that are read at most: ours have a hundred for each array, and what training showed
DTYPES = {
    "I8": np.int8,
    "U8": np.uint8,
    "I16": np.int16,
    "U16": np.uint16,
    "I32": np.int32,
    "I64": np.int64,
    "F32": np.float32,
    "F64": np.float64,
}


def write_arrays(path: Path, arrays: dict[str, npt.NDArray[Any]], metadata: dict[str, str] | None = None) -> None:
    """Named arrays as safetensors, and strings in its header."""
    # save_file would make a file that only its owner may read
    path.write_bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata))


def read_metadata(path: Path) -> dict[str, str]:
    """The strings in the header of a safetensors file; none where there is no such header."""
    return metadata_of(_mapped(path), path)


def map_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """What :func:`write_arrays` wrote, mapped: read from the file when they are first used.

    safetensors' own reader for NumPy copies.
    """
    return arrays_of(_mapped(path), path)


def _mapped(path: Path) -> npt.NDArray[np.uint8]:
    with opened_file(path) as file:
        try:
            return np.memmap(file, np.uint8, "r")
        except ValueError as error:  # an empty file
            raise CorruptIndex(f"{path} cannot be read: {error}") from error


def opened_file(path: Path, *, links: bool = True) -> BinaryIO:
    """A file, for reading; unless ``links``, one that is there itself. Nobody waits for a pipe, whenever it came there.

    Raises:
        CorruptIndex: it is a folder, a pipe, a device or the like.
    """
    more = getattr(os, "O_NONBLOCK", 0) | (0 if links else getattr(os, "O_NOFOLLOW", 0))

    def opener(name: str, flags: int) -> int:
        _check_regular(path, (os.stat if links else os.lstat)(name), links=links)  # some devices act when they are opened
        descriptor = os.open(name, flags | more)
        try:
            _check_regular(path, os.fstat(descriptor), links=links)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    return open(path, "rb", opener=opener)


def _check_regular(path: Path, found: os.stat_result, *, links: bool) -> None:
    is_left = stat.S_ISLNK(found.st_mode) and not links  # to O_NOFOLLOW, whose error says so
    if not stat.S_ISREG(found.st_mode) and not is_left:
        raise CorruptIndex(f"{path} is no file")


@contextmanager
def in_place_of(path: Path) -> Iterator[BinaryIO]:
    """A new file, open for writing, which takes the place of what is there once it is whole and on the disk.

    Where the block or the disk fails, it is gone, and what is there stays. Its name is one that nobody else has or guesses. A
    link stays, and so does what is no file, such as /dev/stdout, which is written to as it is; of a folder the error says so.
    """
    target = path.resolve()
    if target.exists() and not target.is_file():
        with path.open("wb") as file:
            yield file
        return
    new = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}")
    file = new.open("xb")  # never over a file, nor through a link
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.replace(target)
    finally:
        new.unlink(missing_ok=True)


def metadata_of(whole: npt.NDArray[np.uint8], name: object) -> dict[str, str]:
    """The strings in the header of what safetensors wrote, of which ``whole`` are the bytes."""
    try:
        found = _header(whole)[0].get("__metadata__", {})
    except (ValueError, RecursionError) as error:
        raise CorruptIndex(f"{name} cannot be read: {error}") from error
    return {key: value for key, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}


def arrays_of(whole: npt.NDArray[np.uint8], name: object) -> dict[str, npt.NDArray[Any]]:
    """The arrays, as views.

    Raises:
        CorruptIndex: they do not lie one after the other from the end of the header to the end of all, as safetensors lays
            them. So nothing is counted twice, and a copy of them takes no more memory than they do.
    """
    arrays, end = {}, 0
    try:
        header, begin = _header(whole)
        header.pop("__metadata__", None)
        data = whole[begin:]
        for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            first, last = entry["data_offsets"]
            kind, shape = np.dtype(DTYPES[entry["dtype"]]), [_size(n) for n in entry["shape"]]
            if first != end or _size(last) - end != math.prod(shape) * kind.itemsize or last > len(data):
                raise ValueError(f"{key} does not have its place or its size")
            flat = np.require(data[first:last].view(kind), requirements="A")  # a copy only where it lies askew
            arrays[key], end = flat.reshape(shape), last
        if end != len(data):
            raise ValueError("there is more in it than its arrays")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise CorruptIndex(f"{name} cannot be read: {error}") from error
    return arrays


def are_finite(array: npt.NDArray[Any]) -> bool:
    """Whether all numbers are; of a large array no second one is made, since a NaN comes through both ends."""
    return bool(array.size == 0 or (np.isfinite(array.min()) and np.isfinite(array.max())))


def mapped_rows(
    blocks: Iterable[npt.NDArray[Any]], shape: tuple[int, int], dtype: npt.DTypeLike, directory: str | os.PathLike[str] | None
) -> npt.NDArray[Any]:
    """Rows that come block by block, in a temporary file without a name, mapped; it goes with the array.

    They are written, and only then mapped: a full disk is an error of a write, and of a page that was mapped first a SIGBUS.

    Raises:
        OSError: there is no room, which is known before the first block is made where the file system can tell.
    """
    kind = np.dtype(dtype)
    size = shape[0] * shape[1] * kind.itemsize
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        with _naming_the_folder(directory, size):
            _reserve(file.fileno(), size)
        for block in blocks:
            left = np.ascontiguousarray(block, kind).data.cast("B")
            with _naming_the_folder(directory, size):
                while left:
                    left = left[file.write(left) :]
        return np.memmap(file, kind, "c", shape=shape)  # torch wants what could be written


@contextmanager
def _naming_the_folder(directory: str | os.PathLike[str] | None, size: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        folder = tempfile.gettempdir() if directory is None else os.fspath(directory)
        reason = f"{error.strerror or error}, writing {size:,} bytes to a temporary file in {folder}"
        raise OSError(error.errno or errno.EIO, f"{reason}; directory= names another folder") from error


def _reserve(descriptor: int, size: int) -> None:
    if size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:  # a file system that cannot is asked by writing
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENODEV, errno.ENOSYS):
                raise


def _header(whole: npt.NDArray[np.uint8]) -> tuple[dict[str, Any], int]:
    """The header, and where the data begins."""
    size = int.from_bytes(whole[:8].tobytes(), "little")
    header = json.loads(whole[8 : 8 + size].tobytes()) if size <= min(len(whole) - 8, HEADER_BYTES) else None
    if not isinstance(header, dict):
        raise ValueError("it has no header")
    return header, 8 + size


def _size(number: Any) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**63:
        raise ValueError(f"{str(number)[:40]} is no size")
    return number
