"""Checks of what callers pass, made once, before anything changes. Messages name what was expected and what came."""

from __future__ import annotations

import difflib
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lemur_ann import _core

Tokens = npt.NDArray[Any]  # (num_tokens, dim), float32 or float16, C-contiguous
Offsets = npt.NDArray[np.int64]  # (num_documents + 1,)

first_bad_row = _core.first_bad_row
MAX_NOTE = 100_000  # characters; a manifest has 4 MiB at most
BAD_VALUE = "a NaN, infinite or huge value (above 1e15)"


def shown(value: Any) -> str:
    """What came, for a message: its type, and its value where that is short."""
    kind = type(value).__name__
    return f"{kind} {value!r}" if isinstance(value, (str, bytes, bool, int, float)) and len(repr(value)) <= 40 else kind


def boolean(value: Any, name: str) -> bool:
    """``value`` as a bool; any other value is refused, since ``"false"`` is true."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def function(value: Any, name: str) -> Callable[..., Any] | None:
    """``value``, a function or None."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be a function, got {shown(value)}")
    return value  # type: ignore[no-any-return]


def note(value: Any) -> str | None:
    """A text to keep with a change, or None."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError(f"note must be a string, got {shown(value)}")
    if len(value) > MAX_NOTE:
        raise ValueError(f"note has {len(value)} characters, expected {MAX_NOTE} at most")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"note is no text: {error}") from error
    return str(value)


def names(given: Iterable[str], known: Iterable[str], who: str) -> None:
    """TypeError where one of the ``given`` names of arguments is not ``known``, with the nearest that is."""
    known = list(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected any of {', '.join(known)}"
            raise TypeError(f"{who} got an unexpected keyword argument {name!r}; {hint}")


def path(value: Any, name: str = "path") -> Path:
    """The path of a file or folder here, with ``~`` written out."""
    if not isinstance(value, (str, os.PathLike)) or isinstance(os.fspath(value), bytes):
        raise TypeError(f"{name} must be a path, got {shown(value)}")
    text = os.fspath(value)
    if not text:
        raise ValueError(f"{name} is empty; '.' names the current folder")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        raise ValueError(f"{name} must be of a file or folder on this machine, got the URL {text!r}")
    return Path(text).expanduser() if text.startswith("~") else Path(text)


def integer(value: Any, name: str, *, least: int, most: int = 2**63 - 1) -> int:
    """``value`` as an int of at least ``least`` and at most ``most``, in 63 bits by itself."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {shown(value)}")
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
        raise TypeError(f"{name} must be a number, got {shown(value)}")
    if not 0 < value <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1, got {value}")
    return float(value)


def num_threads(value: int | None) -> int:
    """The number of threads to use; None means :func:`cores`."""
    return cores() if value is None else positive_int(value, "num_threads")


def cores() -> int:
    """All cores that this process may use: those it is bound to, and of them no more than a container's quota of CPU time."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(bound, _quota.cores()) if sys.platform == "linux" else bound


class _Quota:
    """The quota of the control groups that a process is in. Every search asks, so the files are read once in a while."""

    SECONDS = 1.0  # a quota may be changed while the process runs

    def __init__(self, proc: Path = Path("/proc/self")) -> None:
        self._proc = proc
        self._cores, self._until = 0, 0.0

    def cores(self) -> int:
        """The whole cores that the quota pays for, at least one: more threads than that are stopped in turn."""
        now = time.monotonic()
        if now >= self._until:
            self._cores = max(1, int(min((quota for folder in self._folders() for quota in _quota_of(folder)), default=2**31)))
            self._until = now + self.SECONDS
        return self._cores

    def _folders(self) -> Iterator[Path]:
        """Of each hierarchy of control groups with CPU time, the process's own group and all above it that can be seen."""
        try:
            own = [line.split(":", 2)[1:] for line in (self._proc / "cgroup").read_text().splitlines()]
            mounts = [line.split() for line in (self._proc / "mountinfo").read_text().splitlines()]
        except OSError:
            return
        # id, parent, device, root, mount point, options, ..., "-", type, source, options
        seen = [(m[3], m[4], m[m.index("-") + 1], m[-1].split(",")) for m in mounts if "-" in m[6:]]
        for controllers, group in own:
            kind = "cgroup" if controllers else "cgroup2"
            if controllers and "cpu" not in controllers.split(","):
                continue
            for root, point, mounted, options in seen:
                if mounted != kind or (controllers and "cpu" not in options):
                    continue
                top = Path(_unescaped(point))
                # a container may see its own group as the root, under a name that only the host knows
                inside = group.removeprefix(root.rstrip("/")) if (group + "/").startswith(root.rstrip("/") + "/") else "/"
                folder = top / inside.lstrip("/")
                yield from (path for path in (folder, *folder.parents) if path == top or top in path.parents)


def _quota_of(folder: Path) -> Iterator[float]:
    """In cores; nothing where there is no limit."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):  # of version 2, which has both in one file, and 1
        with suppress(OSError, ValueError):  # no such file, or nothing that we know
            quota, period = " ".join((folder / name).read_text() for name in names).split()
            if quota != "max" and float(quota) > 0 and float(period) > 0:
                yield float(quota) / float(period)


def _unescaped(path: str) -> str:
    """A path as mountinfo writes it."""
    return path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")


_quota = _Quota()


def directory(value: Any) -> str | None:
    """The path of a folder, the same whatever the working directory is later; None is none."""
    if value is None:
        return None
    folder = path(value, "directory")
    if not folder.is_dir():
        kind = NotADirectoryError if folder.exists() else FileNotFoundError
        raise kind(f"directory must be a folder, and {str(folder)!r} is not")
    return str(folder.absolute())


def is_torch(value: Any) -> bool:
    """Whether it is a tensor of torch, which is not imported here."""
    return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach")


def as_array(value: Any, name: str) -> npt.NDArray[Any]:
    """A NumPy array of anything array-like; torch tensors come to the CPU, bfloat16 becomes float32.

    Rows may be objects: lists, Arrow's scalars, tensors, and the arrays of arrays that pandas has of nested lists.
    """
    if type(value) is np.ndarray and value.dtype != object:  # as nearly always
        return value
    if is_torch(value):
        value = value.detach().cpu()
        if str(value.layout) != "torch.strided":
            raise TypeError(f"{name} must be a dense array, got a sparse tensor; pass tensor.to_dense()")
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
        return value.numpy()  # type: ignore[no-any-return]
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise TypeError(f"{name} has masked values; pass what is behind them, array.data, or array.filled(value)")
    if hasattr(value, "toarray") and hasattr(value, "nnz"):
        raise TypeError(f"{name} must be a dense array, got {type(value).__name__}; pass matrix.toarray()")
    try:
        array = _unnested(value)
    except ValueError:
        array = np.array(None)
    if array.dtype == object:
        items = " of mixed or ragged items" if isinstance(value, (list, tuple, np.ndarray)) else ""
        raise TypeError(f"{name} must be a numeric array, got {type(value).__name__}{items}")
    return array


def _unnested(value: Any) -> npt.NDArray[Any]:
    """An array of objects or of a list as one of numbers; object where it holds anything else, ValueError where ragged."""
    if isinstance(value, pa.Scalar):
        value = value.as_py()
    if isinstance(value, (list, tuple)) and value and (is_torch(value[0]) or isinstance(value[0], pa.Scalar)):
        return np.array([as_array(item, "item") for item in value])
    array = np.asarray(value)
    if array.dtype == object and array.ndim:
        array = np.array([_unnested(item) for item in array])
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
        raise ValueError(f"{name} must start at 0, got {array[0]}; of lengths they are np.cumsum([0, *lengths])")
    backwards = np.flatnonzero(np.diff(array) < 0)
    if len(backwards):
        i = int(backwards[0])
        raise ValueError(f"{name} must not run backwards, got {array[i]} then {array[i + 1]} at position {i}")
    if array[-1] != num_tokens:
        raise ValueError(f"{name} must end at the number of tokens {num_tokens}, got {array[-1]}")
    return array
