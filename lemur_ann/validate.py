"""Checks of what callers pass, made once, before anything changes. Messages name what was expected and what came."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from lemur_ann import _core

Tokens = npt.NDArray[Any]  # (num_tokens, dim), float32 or float16, C-contiguous
Offsets = npt.NDArray[np.int64]  # (num_documents + 1,)

first_bad_row = _core.first_bad_row
BAD_VALUE = "a NaN, infinite or huge value (above 1e15)"


def integer(value: Any, name: str, *, least: int, most: int = 2**63 - 1) -> int:
    """``value`` as an int of at least ``least`` and at most ``most``, in 63 bits by itself."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    if value >= 2**63:
        raise ValueError(f"{name} must be below 2**63, got {value}")
    if value > most:
        raise ValueError(f"{name} must be at most {most:,}, got {value}")
    return int(value)


def positive_int(value: Any, name: str) -> int:
    """``value`` as an int of at least 1."""
    return integer(value, name, least=1)


def share(value: Any, name: str) -> float:
    """``value`` as a float above 0 and at most 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 < value <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1, got {value}")
    return float(value)


def num_threads(value: int | None) -> int:
    """The number of threads to use; None means all cores this process may use."""
    if value is not None:
        return positive_int(value, "num_threads")
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def directory(value: Any) -> str | None:
    """The path of a folder; None is none."""
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"directory must be a path, got {type(value).__name__}")
    if not os.path.isdir(value):
        kind = NotADirectoryError if os.path.exists(value) else FileNotFoundError
        raise kind(f"directory must be a folder, and {os.fspath(value)!r} is not")
    return str(os.fspath(value))


def as_array(value: Any, name: str) -> npt.NDArray[Any]:
    """A NumPy array of anything array-like; torch tensors come to the CPU, bfloat16 becomes float32."""
    if type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
        return value.numpy()  # type: ignore[no-any-return]
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.array(None)
    if array.dtype == object:
        raise TypeError(f"{name} must be a numeric array, got {type(value).__name__} of mixed or ragged items")
    return array


def token_matrix(value: Any, name: str, *, allow_empty: bool = False, dim: int | None = None) -> Tokens:
    """``value`` as a (num_tokens, dim) float32 or float16 matrix, without a copy where its layout allows.

    float64 becomes float32; integers are refused, since they are quantised codes whose scale we do not know.
    """
    matrix = as_array(value, name)
    if matrix.ndim != 2:
        hint = "; a single token is tokens[None, :]" if matrix.ndim == 1 else ""
        raise ValueError(f"{name} must be a matrix of shape (num_tokens, dim), got shape {matrix.shape}{hint}")
    if matrix.dtype.kind != "f":
        raise TypeError(f"{name} must be float32 or float16, got {matrix.dtype}")
    if matrix.shape[1] == 0:
        raise ValueError(f"{name} has dim 0, expected at least 1")
    if matrix.shape[0] == 0 and not allow_empty:
        raise ValueError(f"{name} has no tokens, expected at least one")
    if dim is not None and matrix.shape[1] != dim:
        raise ValueError(f"{name} has dim {matrix.shape[1]}, index has dim {dim}")
    if matrix.dtype not in (np.dtype(np.float32), np.dtype(np.float16)):  # float64, or the other byte order
        with np.errstate(over="ignore"):  # values beyond float32 become infinite and are refused as such
            matrix = matrix.astype(np.float16 if matrix.dtype.itemsize == 2 else np.float32)
    return np.ascontiguousarray(matrix)


def offsets_array(value: Any, num_tokens: int, name: str = "offsets") -> Offsets:
    """``value`` as int64 offsets that start at 0, do not run backwards, and end at ``num_tokens``."""
    array = as_array(value, name)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"{name} must have shape (num_documents + 1,), got shape {array.shape}")
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got {array.dtype}")
    array = np.ascontiguousarray(array, dtype=np.int64)
    if array[0] != 0:
        raise ValueError(f"{name} must start at 0, got {array[0]}")
    backwards = np.flatnonzero(np.diff(array) < 0)
    if len(backwards):
        i = int(backwards[0])
        raise ValueError(f"{name} must not run backwards, got {array[i]} then {array[i + 1]} at position {i}")
    if array[-1] != num_tokens:
        raise ValueError(f"{name} must end at the number of tokens {num_tokens}, got {array[-1]}")
    return array
