"""What happened, for those who run a service: records of the logger ``lemur_ann`` with a name and plain values.

A record's message is for people; ``record.event`` is its name, such as "fit", and ``record.values`` a dict. INFO tells of
changes, saving and loading, with seconds and numbers of documents, and DEBUG of the stages of learning; searches are silent.

And what objects must hear of: a fork copies every lock as it is, held by threads that the child does not have.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, overload

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")

log = logging.getLogger("lemur_ann")

_in_child: weakref.WeakKeyDictionary[Any, Callable[[Any], object]] = weakref.WeakKeyDictionary()
_loaded_before_fork: set[str] = set()


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


def after_fork(owner: Any, renew: Callable[[Any], object]) -> None:
    """Have ``renew(owner)`` called in a forked child, for as long as the owner lives: it gives the owner locks of its own.

    A ``with`` block that forks within keeps the lock that it took, and may let go of it.
    """
    _in_child[owner] = renew


def lost_threads(module: str) -> bool:
    """Whether a fork came after a module was loaded: its pool of threads may be the parent's, for which it waits for ever.

    libgomp's pools (of torch and FAISS) do. With one thread nobody needs them.
    """
    return module in _loaded_before_fork


def _renew_all() -> None:
    _loaded_before_fork.update(sys.modules)
    for owner, renew in list(_in_child.items()):
        renew(owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)


class cached_property(functools.cached_property[T]):
    """That of functools without its lock (which it has up to Python 3.11): all threads get the first result that was kept."""

    @overload
    def __get__(self, instance: None, owner: type[Any] | None = None) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type[Any] | None = None) -> T: ...

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> Any:
        if instance is None:
            return self
        assert self.attrname is not None
        return instance.__dict__.setdefault(self.attrname, self.func(instance))
