"""Searches that wait for a thread: those with the same settings are answered together, and never more wait than a limit."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

Answer = Callable[[Any, list[Any]], list[Any]]


class Busy(Exception):
    """As many searches wait as may; the caller should come back later."""


@dataclass(eq=False)
class _Asked:
    key: Hashable
    item: Any
    deadline: float  # of time.monotonic()
    future: asyncio.Future[Any] | concurrent.futures.Future[Any]


class SearchQueue:
    """Threads that answer what is asked, the first first, together with others of its key.

    Nothing waits for company: a thread that is free takes what is there, so that batches grow with the load and a search that
    is alone goes at once. What is past its deadline, or given up by its client, is not searched any more.
    """

    def __init__(self, answer: Answer, *, num_threads: int, max_batch: int, max_waiting: int) -> None:
        """``answer(key, items)`` gives a result for each of the items, which were asked with that key."""
        self._answer = answer
        self._max_batch, self._max_waiting = max_batch, max_waiting
        self._waiting: deque[_Asked] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._num_threads, self._running = num_threads, 0
        self.batch_sizes: Callable[[int], None] = lambda _: None  # told of each batch
        self._threads = [
            threading.Thread(target=self._work, name=f"lemur_ann search {i}", daemon=True) for i in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        """Searches that wait."""
        return len(self._waiting)

    async def ask(self, key: Hashable, item: Any, timeout: float) -> Any:
        """The result for an item.

        Raises:
            Busy: as many wait as may.
            TimeoutError: it was not answered in ``timeout`` seconds.
        """
        return await asyncio.wait_for(self.begin(key, item, timeout), timeout)

    def begin(self, key: Hashable, item: Any, timeout: float) -> asyncio.Future[Any]:
        """As :meth:`ask`, but for who waits for the result: it is not begun where it waited for ``timeout`` seconds, or was
        cancelled.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._put(_Asked(key, item, time.monotonic() + timeout, future))
        return future

    def ask_and_wait(self, key: Hashable, item: Any, timeout: float) -> Any:
        """As :meth:`ask`, for a thread that has no loop. It answers itself in the place of one of the queue's that is free:
        to hand a search over, and its answer back, takes a quarter of a millisecond.
        """
        with self._changed:
            is_free = not self._is_closed and not self._waiting and self._running < self._num_threads
            self._running += is_free
        if is_free:
            try:
                self.batch_sizes(1)
                return self._answer(key, [item])[0]
            finally:
                self._is_done()
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._put(_Asked(key, item, time.monotonic() + timeout, future))
        done, _ = concurrent.futures.wait((future,), timeout)
        if not done and future.cancel():
            raise TimeoutError(f"not answered in {timeout:g} s")
        return future.result()

    def _put(self, asked: _Asked) -> None:
        with self._changed:
            if self._is_closed or len(self._waiting) >= self._max_waiting:
                raise Busy(f"{len(self._waiting)} searches wait already")
            self._waiting.append(asked)
            self._changed.notify()

    def close(self, timeout: float = 30.0) -> None:
        """Answer what waits, and end; threads that are not back by then, of an encoder that hangs, end with the process."""
        end = time.monotonic() + timeout
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        with self._changed:  # those that answer themselves
            self._changed.wait_for(lambda: not self._running, max(0.0, end - time.monotonic()))

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting or self._running >= self._num_threads:
                    if self._is_closed and not self._waiting:
                        return
                    self._changed.wait()
                batch = self._taken()
                self._running += 1
            try:
                if batch:
                    self.batch_sizes(len(batch))
                    self._answered(batch)
            finally:
                self._is_done()

    def _is_done(self) -> None:
        with self._changed:
            self._running -= 1
            if self._waiting or self._is_closed:
                self._changed.notify_all()

    def _taken(self) -> list[_Asked]:
        """The first that waits, and what waits behind it with the same key."""
        now = time.monotonic()
        batch: list[_Asked] = []
        others: deque[_Asked] = deque()
        for asked in self._waiting:
            if asked.future.cancelled() or asked.deadline <= now:
                continue
            if len(batch) < self._max_batch and (not batch or asked.key == batch[0].key):
                batch.append(asked)
            else:
                others.append(asked)
        self._waiting = others
        return batch

    def _answered(self, batch: list[_Asked]) -> None:
        try:
            results: list[Any] = self._answer(batch[0].key, [asked.item for asked in batch])
        except BaseException as error:
            if len(batch) > 1:  # the fault of one is not that of the others
                for asked in batch:
                    self._answered([asked])
                return
            if not isinstance(error, Exception):  # SystemExit of an encoder would end the loop, and the process
                told = RuntimeError(f"a search ended with {error!r}")
                told.__cause__, error = error, told
            results = [error]
        of_loops: dict[asyncio.AbstractEventLoop, list[tuple[Any, Any]]] = {}  # each is woken once
        for asked, result in zip(batch, results, strict=True):
            if isinstance(asked.future, concurrent.futures.Future):
                with contextlib.suppress(concurrent.futures.InvalidStateError):  # given up meanwhile
                    _settle(asked.future, result)
            else:
                of_loops.setdefault(asked.future.get_loop(), []).append((asked.future, result))
        for loop, settled in of_loops.items():
            with contextlib.suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(_settle_all, settled)


def _settle_all(settled: list[tuple[Any, Any]]) -> None:
    for future, result in settled:
        _settle(future, result)


def _settle(future: asyncio.Future[Any] | concurrent.futures.Future[Any], result: Any) -> None:
    if future.done():
        return
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)
