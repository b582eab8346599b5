"""Calls to several shards at once: sent again where an actor died, and counted, so that they never pile up."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Collection, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from lemur_ann.adapters.ray.errors import Overloaded, ShardUnavailable
from ray.exceptions import RayError, RayTaskError

Target = tuple[int, int | None]  # a shard, and which of its replicas; None is any of them

# What an actor does side by side: searches do not wait for changes, nor these for what takes long. All else is "read".
GROUPS = {
    "search": "search",
    "stage": "stage",
    "check": "change",
    "commit": "change",
    "remove": "change",
    "refresh": "change",
    "learn": "rebuild",
    "compact": "rebuild",
    "tune": "rebuild",
    "save": "rebuild",
}

WRITER = 0  # the replica that changes a shard
PAUSE_S = 0.1  # before a call goes to an actor that has just failed


class Actors:
    """The actors of each shard, its writer first, and how many calls each has yet to answer."""

    def __init__(self, shards: list[list[Any]], max_pending: int) -> None:
        self.shards = shards
        self.max_pending = max_pending
        self._pending = [[0] * len(replicas) for replicas in shards]
        self._turn = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.shards)

    def __reduce__(self) -> Any:
        return Actors, (self.shards, self.max_pending)

    def writers(self) -> list[Target]:
        """The writer of each shard."""
        return [(shard, WRITER) for shard in range(len(self))]

    def readers(self, shard: int) -> list[Target]:
        """The other replicas of a shard."""
        return [(shard, replica) for replica in range(len(self.shards[shard])) if replica != WRITER]

    def send(
        self, target: Target, method: str, arguments: tuple[Any, ...], avoid: int | None, bounded: bool
    ) -> tuple[int, Any]:
        """Call an actor; gives the replica and the future of its answer.

        Among the replicas it takes the one with the fewest calls to answer, and ``avoid`` last.
        """
        shard = target[0]
        pending = self._pending[shard]
        with self._lock:
            self._turn += 1
            order = ((r == avoid, count, (r + self._turn) % len(pending), r) for r, count in enumerate(pending))
            replica = min(order)[-1] if target[1] is None else target[1]
            if bounded and pending[replica] >= self.max_pending:
                raise Overloaded(
                    f"shard {shard} has {pending[replica]} searches to answer already, max_pending={self.max_pending}"
                )
            pending[replica] += 1

        def answered(_: Any) -> None:
            with self._lock:
                pending[replica] -= 1

        try:
            call = getattr(self.shards[shard][replica], method).options(concurrency_group=GROUPS.get(method, "read"))
            future: Future[Any] = call.remote(*arguments).future()
        except BaseException:
            answered(None)
            raise
        future.add_done_callback(answered)  # and not before: a call that nobody waits for any more takes its place all the same
        return replica, future


class Calls:
    """One method called on several actors.

    Args:
        actors: all there are.
        method: its name.
        arguments: for each target.
        timeout: seconds until a shard that has not answered counts as unavailable. With ``patient`` a call takes as long as it
            takes, and these are the seconds that an actor may be away.
        bounded: raise Overloaded where ``actors.max_pending`` calls are under way already.
        allow_partial: take the answers that there are, though some are missing.
    """

    def __init__(
        self,
        actors: Actors,
        method: str,
        arguments: Mapping[Target, tuple[Any, ...]],
        *,
        timeout: float,
        patient: bool = False,
        bounded: bool = False,
        allow_partial: bool = False,
    ) -> None:
        self._allow_partial = allow_partial
        self._actors, self._method, self._arguments = actors, method, arguments
        self._timeout, self._patient = timeout, patient
        self._deadlines = dict.fromkeys(arguments, float("inf") if patient else time.monotonic() + timeout)
        self._sent: dict[Any, tuple[Target, int, str]] = {}  # by future: to whom, which replica, and the method
        self._again: dict[Target, tuple[float, int | None]] = {}  # when to send again, and which replica failed
        self._last_error: BaseException | None = None
        self.answers: dict[Target, Any] = {}
        self.errors: dict[Target, BaseException] = {}
        self.missing: list[Target] = []  # those who did not answer in time
        for target in arguments:
            self._send(target, method, None, bounded)

    def _send(self, target: Target, method: str, avoid: int | None, bounded: bool = False) -> None:
        arguments = self._arguments[target] if method == self._method else ()
        replica, future = self._actors.send(target, method, arguments, avoid, bounded)
        self._sent[future] = target, replica, method

    @property
    def waiting(self) -> Collection[Any]:
        """The futures that are waited for."""
        return self._sent.keys()

    @property
    def is_done(self) -> bool:
        """Whether each has answered, failed, or taken too long."""
        return not (self._sent or self._again)

    @property
    def seconds(self) -> float | None:
        """How long to wait before :meth:`take` has something to do, if no answer comes."""
        open_targets = [target for target, _, _ in self._sent.values()] + list(self._again)
        until = min([when for when, _ in self._again.values()] + [self._deadlines[target] for target in open_targets])
        return None if until == float("inf") else max(until - time.monotonic(), 0.0)

    def take(self) -> None:
        """Take the answers that have come, and send again what failed with its actor."""
        for future in [future for future in self._sent if future.done()]:
            target, replica, method = self._sent.pop(future)
            error = future.exception()
            if error is None and method == self._method:
                self.answers[target] = future.result()
            elif error is None:  # an actor that was away is back
                self._deadlines[target] = float("inf")
                self._send(target, self._method, None)
            elif isinstance(error, RayError) and not isinstance(error, RayTaskError):
                self._last_error = error
                if self._patient and method == self._method:
                    self._deadlines[target] = time.monotonic() + self._timeout
                alone = target[1] is not None or len(self._actors.shards[target[0]]) == 1
                pause = PAUSE_S if alone or target in self._again else 0.0
                self._again[target] = (time.monotonic() + pause, replica)
            else:
                self.errors[target] = error.cause if isinstance(error, RayTaskError) else error
        now = time.monotonic()
        for future, (target, _, _) in list(self._sent.items()):
            if now >= self._deadlines[target]:
                del self._sent[future]
                self.missing.append(target)
        for target, (when, failed) in list(self._again.items()):
            if now >= self._deadlines[target]:
                del self._again[target]
                self.missing.append(target)
            elif now >= when:
                del self._again[target]
                self._send(target, "ping" if self._patient else self._method, failed)

    def result(self) -> dict[Target, Any]:
        """The answers.

        Raises:
            ShardUnavailable: some are missing, and they may not be.
            what the first of the methods that failed raised.
        """
        for target in sorted(self.errors, key=lambda target: target[0]):
            raise self.errors[target]
        if self.missing and not self._allow_partial:
            shards = sorted({shard for shard, _ in self.missing})
            names = ", ".join(map(str, shards))
            raise ShardUnavailable(
                f"no answer from shard {names} within {self._timeout:g} s ({self._method})", shards
            ) from self._last_error
        return self.answers


def gathered(calls: Calls) -> Calls:
    """Wait for all."""
    while not calls.is_done:
        if calls.waiting:
            wait(calls.waiting, timeout=calls.seconds, return_when=FIRST_COMPLETED)
        else:
            time.sleep(calls.seconds or 0.0)
        calls.take()
    return calls


async def agathered(calls: Calls) -> Calls:
    """The same, in an event loop."""
    while not calls.is_done:
        if calls.waiting:
            futures = [asyncio.wrap_future(future) for future in calls.waiting]
            await asyncio.wait(futures, timeout=calls.seconds, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(calls.seconds or 0.0)
        calls.take()
    return calls
