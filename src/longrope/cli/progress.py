"""Live progress: bars in a terminal, elsewhere a line a minute."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from rich.console import Console

from longrope.cli.job_progress import OnProgress, job_progress

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from longrope.search.loop import SearchProgress


@contextmanager
def _bars() -> Iterator[Progress]:
    """Show bars on standard error inside the block, which the loss of the terminal does not end."""
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    description, note = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[note]}", markup=False)
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    columns = (description, BarColumn(), TaskProgressColumn(), note, *times)
    progress = Progress(*columns, console=Console(stderr=True))
    progress.start()
    try:
        yield progress
    finally:
        with suppress(OSError, SystemExit):  # rich exits where the reader of a pipe has left
            progress.stop()


@contextmanager
def bar(description: str, total: int, *, quiet: bool) -> Iterator[Callable[[int, str], None]]:
    """Show the progress of one step on standard error; yield the function that takes its amount and a note."""
    with parts_bar(quiet=quiet) as update:
        update(description, 0, total, "")
        yield lambda completed, note: update(description, completed, total, note)


@contextmanager
def search_bar(total: int, *, quiet: bool) -> Iterator[Callable[[int, SearchProgress], None]]:
    """Show the token-evaluations of a search, and yield the callback for `find_factors`."""
    with parts_bar(quiet=quiet) as update:
        update("search", 0, total, "")
        first: dict[int, float] = {}

        def on_progress(seed: int, progress: SearchProgress) -> None:
            if progress.is_over:
                update("choosing the winner on held-out documents", 0, 1, "")
                return
            rate = (progress.generation + 1) / max(progress.seconds, 1e-9)
            speed = f"{rate:.1f} steps/s" if rate > 1 else f"{1 / rate:.1f} s/step"
            loss = f"loss {progress.loss:.3f} (from {first.setdefault(seed, progress.loss):.3f})"
            update("search", progress.tokens, total, f"{loss} seed {seed} step {progress.generation} {speed}")

        yield on_progress


@contextmanager
def parts_bar(*, quiet: bool) -> Iterator[OnProgress]:
    """Show one bar for each step, or lines outside a terminal; yield the function that takes what is done."""
    if quiet or not sys.stderr.isatty():
        with job_progress((), quiet=quiet) as on_progress:
            yield on_progress
        return
    tasks: dict[str, TaskID] = {}
    with _bars() as progress:

        def update(step: str, completed: int, total: int, note: str) -> None:
            if step not in tasks:
                tasks[step] = progress.add_task(step, total=total, note=note)
            progress.update(tasks[step], completed=completed, total=total, note=note)

        yield update
