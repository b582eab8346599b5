"""Parts of an index read into memory before searches need them."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from lemur_ann import _core
from lemur_ann.insight.stats import MappedFiles, arrays_by_part
from lemur_ann.searching.snapshot import Snapshot
from lemur_ann.validate import shown

LEFT_OUT = "tokens"  # where all parts are meant: searches read those of a dozen documents, and they are most of an index


def warm(snapshot: Snapshot, parts: str | Collection[str] | None, *, pin: bool) -> int:
    """What :meth:`lemur_ann.LemurIndex.warm` does."""
    arrays = arrays_by_part(snapshot)
    files = MappedFiles()
    mapped = [array for name in _chosen(parts, list(arrays)) for array in arrays[name] if files.have(array)]
    for array in mapped:
        memory = array.reshape(-1).view(np.uint8)
        if pin:
            _pin(memory)
        else:
            _core.read_pages(memory)
    return sum(array.nbytes for array in mapped)


def _chosen(parts: str | Collection[str] | None, known: list[str]) -> list[str]:
    if parts is None:
        return [name for name in known if name != LEFT_OUT]
    wanted = [parts] if isinstance(parts, str) else parts
    if not isinstance(wanted, Collection) or not all(isinstance(name, str) for name in wanted):
        raise TypeError(f"parts must be names of parts, got {shown(parts)}")
    for name in wanted:
        if name not in known:
            raise ValueError(f"parts are some of {', '.join(map(repr, known))}, got {shown(name)}")
    return [name for name in known if name in wanted]


def _pin(memory: npt.NDArray[Any]) -> None:
    error = _core.pin_pages(memory)
    if error:
        reason = f"{os.strerror(error)}: the system does not let this process pin {memory.nbytes:,} bytes more"
        raise OSError(error, f"{reason}; 'ulimit -l' shows what it allows, and pin=False reads without pinning")
