"""Named arrays in one file, as safetensors: the learned map, the links of a graph, vectors."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from lemur_ann.errors import CorruptIndex

DTYPES = {"I8": np.int8, "U8": np.uint8, "I32": np.int32, "I64": np.int64, "F32": np.float32, "F64": np.float64}


def write_arrays(path: Path, arrays: dict[str, npt.NDArray[Any]], metadata: dict[str, str] | None = None) -> None:
    """Named arrays as safetensors, and strings in its header."""
    # save_file would make a file that only its owner may read
    path.write_bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata))


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """What :func:`write_arrays` wrote."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CorruptIndex(f"{path} cannot be read: {error}") from error


def read_metadata(path: Path) -> dict[str, str]:
    """The strings in the header of a safetensors file; none where there is no such header."""
    try:
        with path.open("rb") as file:
            header, _ = _read_header(path, file)
    except (ValueError, RecursionError) as error:
        raise CorruptIndex(f"{path} cannot be read: {error}") from error
    metadata = header.get("__metadata__", {})
    return metadata if isinstance(metadata, dict) else {}


def _read_header(path: Path, file: BinaryIO) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and its size."""
    size = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(size)) if size < path.stat().st_size else None
    if not isinstance(header, dict):
        raise CorruptIndex(f"{path} cannot be read: it has no header")
    return header, size


def map_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The same, mapped: read from the file when they are first used. (safetensors' own reader for NumPy copies.)"""
    try:
        with path.open("rb") as file:
            header, size = _read_header(path, file)
            whole = np.memmap(file, np.uint8, "r")
        arrays = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            flat = whole[8 + size + begin : 8 + size + end].view(DTYPES[entry["dtype"]])
            arrays[name] = flat.reshape(entry["shape"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise CorruptIndex(f"{path} cannot be read: {error}") from error
    return arrays


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
