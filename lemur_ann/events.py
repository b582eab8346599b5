"""What happened, for those who run a service: records of the logger ``lemur_ann`` with a name and plain values.

A record's message is for people; ``record.event`` is its name, such as "fit", and ``record.values`` a dict. INFO tells of
changes, saving and loading, with seconds and numbers of documents, and DEBUG of the stages of learning; searches are silent.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger("lemur_ann")


def event(name: str, level: int = logging.INFO, **values: Any) -> None:
    """One record."""
    if log.isEnabledFor(level):
        told = [f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()]
        log.log(level, "%s: %s", name, ", ".join(told), extra={"event": name, "values": values})


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """A warning that names the line outside this package, or of its command line, from which it was called."""
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and _is_inside(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def _is_inside(module: str) -> bool:
    return module.partition(".")[0] == __package__ and module != f"{__package__}.cli"


@contextmanager
def timed(name: str, **values: Any) -> Iterator[dict[str, Any]]:
    """A record when the block has ended without an error, with its seconds and what the block put into the dict."""
    start = time.perf_counter()
    yield values
    event(name, seconds=time.perf_counter() - start, **values)
