"""Progress bars: on a terminal's standard error, and nowhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Clock:
    """The seconds that each stage of a job took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """The time since the last call was spent on this stage."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


class Task:
    """One line of progress; silent when there is no terminal."""

    def __init__(self, bar: Any = None, task_id: Any = None) -> None:
        self._bar = bar
        self._task_id = task_id

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Count ``count`` more steps done; ``note`` stands at the end of the line."""
        if self._bar is not None:
            fields = {} if note is None else {"note": note}
            self._bar.update(self._task_id, advance=count, **fields)


class Progress:
    """The lines of one long job."""

    def __init__(self, bar: Any = None) -> None:
        self._bar = bar

    def task(self, description: str, total: int | None) -> Task:
        """A new line that ends at ``total`` steps; None where nobody knows how many."""
        if self._bar is None:
            return Task()
        return Task(self._bar, self._bar.add_task(description, total=total, note=""))


@contextmanager
def progress(show: bool | None = None) -> Iterator[Progress]:
    """Progress lines for the time of a ``with`` block; ``show=None`` shows them when standard error is a terminal."""
    if show is None:
        show = sys.stderr.isatty()
    if not show:
        yield Progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as bar:
        yield Progress(bar)
