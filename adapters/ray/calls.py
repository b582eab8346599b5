"""Calls to several shards at once: sent again where an actor died, and counted, so that they never pile up."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Collection, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from typing import Any

from ray.exceptions import ActorDiedError, RayError, RayTaskError

from .errors import Overloaded, ShardUnavailable

Target = tuple[int, int | None]  # a shard, and which of its replicas; None is any of them
Arguments = dict[Target, tuple[Any, ...]]

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
PAUSE_S = 0.1  # before a call goes to an actor that has just failed,
AWAY_S = 5.0  # and the time for which others are asked in its place, where there are others, until it answers


class Actors:
    """The actors of each shard, its writer first, and how many calls each has yet to answer."""

    def __init__(self, shards: list[list[Any]], max_pending: int) -> None:
        self.shards = shards
        self.max_pending = max_pending
        self._pending = [[0] * len(replicas) for replicas in shards]
        self._away_until = [[0.0] * len(replicas) for replicas in shards]
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
        self, target: Target, method: str, arguments: tuple[Any, ...], bounded: bool, besides: int | None = None
    ) -> tuple[int, Any]:
        """Call an actor; gives the replica and the future of its answer.

        Among the replicas it takes the one with the fewest calls to answer, and last those that have failed a moment ago, and
        ``besides``, which has been asked already.
        """
        shard, now = target[0], time.monotonic()
        pending, away_until = self._pending[shard], self._away_until[shard]
        with self._lock:
            self._turn += 1
            turn, counts = self._turn, enumerate(pending)
            order = ((r == besides, away_until[r] > now, count, (r + turn) % len(pending), r) for r, count in counts)
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

    def heard_of(self, shard: int, replica: int, error: BaseException | None) -> None:
        """Remember whether an actor is there: ``error`` is Ray's where it is not."""
        seconds = 0.0 if error is None else float("inf") if isinstance(error, ActorDiedError) else AWAY_S
        self._away_until[shard][replica] = time.monotonic() + seconds if seconds else 0.0

    def are_gone(self, target: Target) -> bool:
        """Whether no actor is left that could answer: Ray does not start these again."""
        away_until = self._away_until[target[0]]
        return min(away_until if target[1] is None else [away_until[target[1]]]) == float("inf")


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
        hedge_after: seconds after which another replica is asked too, where any may answer; the first answer counts.
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
        hedge_after: float | None = None,
    ) -> None:
        self._allow_partial = allow_partial
        self._actors, self._method, self._arguments = actors, method, arguments
        self._timeout, self._patient = timeout, patient
        self._deadlines = dict.fromkeys(arguments, float("inf") if patient else time.monotonic() + timeout)
        self._sent: dict[Any, tuple[Target, int, str]] = {}  # by future: to whom, which replica, and the method
        self._again: dict[Target, float] = {}  # when to send again
        self._failures = dict.fromkeys(arguments, 0)
        self._last_error: BaseException | None = None
        self.answers: dict[Target, Any] = {}
        self.errors: dict[Target, BaseException] = {}
        self.missing: list[Target] = []  # those who did not answer in time
        self._hedges: dict[Target, float] = {}  # when to ask another replica too
        for target in arguments:
            self._send(target, method, bounded)
            if hedge_after is not None and target[1] is None and len(actors.shards[target[0]]) > 1:
                self._hedges[target] = time.monotonic() + hedge_after

    def _send(self, target: Target, method: str, bounded: bool = False, besides: int | None = None) -> None:
        arguments = self._arguments[target] if method == self._method else ()
        replica, future = self._actors.send(target, method, arguments, bounded, besides)
        self._sent[future] = target, replica, method

    def _asked(self, target: Target) -> list[Any]:
        """The futures of a target: two, where another replica was asked too."""
        return [future for future, (other, _, _) in self._sent.items() if other == target]

    def _settle(self, target: Target) -> None:
        """Wait for nothing more of a target."""
        for future in self._asked(target):
            del self._sent[future]
        self._hedges.pop(target, None)

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
        until = min([*self._again.values(), *self._hedges.values()] + [self._deadlines[target] for target in open_targets])
        return None if until == float("inf") else max(until - time.monotonic(), 0.0)

    def take(self) -> None:
        """Take the answers that have come, and send again what failed with its actor."""
        for future in [future for future in self._sent if future.done()]:
            if future not in self._sent:  # another replica has answered
                continue
            target, replica, method = self._sent.pop(future)
            error = future.exception()
            is_away = isinstance(error, RayError) and not isinstance(error, RayTaskError)
            self._actors.heard_of(target[0], replica, error if is_away else None)
            if is_away:
                self._last_error = error
                if self._asked(target):  # another replica is at it
                    continue
                if self._actors.are_gone(target):
                    self._hedges.pop(target, None)
                    self.missing.append(target)
                    continue
                if self._patient and method == self._method:
                    self._deadlines[target] = time.monotonic() + self._timeout
                self._failures[target] += 1
                others = len(self._actors.shards[target[0]]) if target[1] is None else 1
                pause = 0.0 if self._failures[target] < others else PAUSE_S
                self._again[target] = time.monotonic() + pause
            elif error is not None:
                self._settle(target)
                self.errors[target] = error.cause if isinstance(error, RayTaskError) else error
            elif method == self._method:
                self._settle(target)
                self.answers[target] = future.result()
            else:  # an actor that was away is back
                self._deadlines[target] = float("inf")
                self._send(target, self._method)
        now = time.monotonic()
        for target in {target for target, _, _ in self._sent.values()}:
            if now >= self._deadlines[target]:
                self._settle(target)
                self.missing.append(target)
        for target in [target for target, when in self._hedges.items() if now >= when]:
            del self._hedges[target]
            for future in self._asked(target):
                with suppress(Overloaded):  # then the first must do
                    self._send(target, self._method, True, besides=self._sent[future][1])
        for target, when in list(self._again.items()):
            if now >= min(when, self._deadlines[target]):
                del self._again[target]
                if now >= self._deadlines[target]:
                    self._hedges.pop(target, None)
                    self.missing.append(target)
                else:
                    self._send(target, "ping" if self._patient else self._method)

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
            names, what = ", ".join(map(str, shards)), f"{self._method}, {self._timeout:g} s"
            reason = "" if self._last_error is None else f": {str(self._last_error).strip()}"
            raise ShardUnavailable(f"no answer from shard {names} ({what}){reason}", shards) from self._last_error
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
