"""torch's threads while an index learns: no more than were asked for, and the caller's setting afterwards."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lemur_ann.events import after_fork, log, lost_threads


class _Users:
    """The calls that have torch set to their own numbers of threads now, in any thread of the program."""

    def __init__(self) -> None:
        self._renew()
        after_fork(self, _Users._renew)

    def _renew(self) -> None:
        self.lock = threading.Lock()
        self.counts: list[int] = []  # that they have set
        self.outside = 0  # what was set before the first of them


_users = _Users()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """torch uses at most ``count`` threads in this block, and no more than it did before, which it may again after the block.

    torch has one number for each thread that has used it, and one for those that have not yet: these may see ours meanwhile.
    """
    load_torch()
    import torch

    if lost_threads("torch"):
        log.info("torch learns with one thread: those that it had belong to the process that this one was forked from")
        count = 1
    with _users.lock:
        before = torch.get_num_threads()
        if not _users.counts:
            _users.outside = before
        elif before in _users.counts:  # it is another call's number, and not the caller's own
            before = _users.outside
        used = min(count, before)
        torch.set_num_threads(used)
        _users.counts.append(used)
    try:
        yield
    finally:
        with _users.lock:
            _users.counts.remove(used)
            torch.set_num_threads(before)


def load_torch() -> None:
    """Import torch, and where nobody did before and the environment says nothing, have its threads sleep while they wait.

    By themselves they turn in circles until the last one is done: beside other busy processes that takes most of the time of
    the cores. The variable is read once, when torch is loaded, and stands in the environment no longer than that.
    """
    if "torch" not in sys.modules and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        try:
            import torch
        finally:
            os.environ.pop("OMP_WAIT_POLICY", None)
    else:
        import torch  # noqa: F401
