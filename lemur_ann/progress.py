"""Progress of long jobs: bars on a terminal's standard error, or calls of a function."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from lemur_ann.events import event

Report = Callable[[str, int, int | None], object]
Show: TypeAlias = "bool | Report | Progress | None"


class Clock:
    """The seconds that each stage of a job took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """The time since the last call was spent on this stage."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        event("stage", logging.DEBUG, stage=stage, seconds=now - self._last)
        self._last = now


class Task:
    """One stage of a job; silent, where nobody wants to know."""

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Count ``count`` more steps done; ``note`` stands at the end of the line."""


class Progress:
    """The stages of one long job."""

    def task(self, description: str, total: int | None) -> Task:
        """A new one that ends at ``total`` steps; None where nobody knows how many."""
        return Task()


class _BarTask(Task):
    def __init__(self, bars: Any, task_id: Any) -> None:
        self._bars, self._task_id = bars, task_id

    def advance(self, count: int = 1, note: str | None = None) -> None:
        fields = {} if note is None else {"note": note}
        self._bars.update(self._task_id, advance=count, **fields)


class _Bars(Progress):
    def __init__(self, bars: Any) -> None:
        self._bars = bars

    def task(self, description: str, total: int | None) -> Task:
        return _BarTask(self._bars, self._bars.add_task(description, total=total, note=""))


class _CalledTask(Task):
    def __init__(self, function: Report, description: str, total: int | None) -> None:
        self._function, self._description, self._total = function, description, total
        self._done = 0

    def advance(self, count: int = 1, note: str | None = None) -> None:
        self._done += count
        self._function(self._description, self._done, self._total)


class _Calls(Progress):
    def __init__(self, function: Report) -> None:
        self._function = function

    def task(self, description: str, total: int | None) -> Task:
        self._function(description, 0, total)
        return _CalledTask(self._function, description, total)


@contextmanager
def progress_lines(show: Show = None) -> Iterator[Progress]:
    """Progress for the time of a ``with`` block.

    Args:
        show: True for bars on standard error, None for bars where that is a terminal; or a function that is called with
            (stage, steps done, steps in all or None) whenever some are done, in the thread of the job. What it raises stops
            the job. The progress of a larger job is handed on.
    """
    if isinstance(show, Progress):
        yield show
        return
    if show is not None and not isinstance(show, bool):
        if not callable(show):
            raise TypeError(f"progress must be a bool, None or a function, got {type(show).__name__}")
        yield _Calls(show)
        return
    if show is None:
        show = sys.stderr.isatty()
    if not show:
        yield Progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.1f}/s")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as bars:
        yield _Bars(bars)
