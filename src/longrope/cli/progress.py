"""Live progress on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from longrope.search.loop import SearchProgress


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Progress]:
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
    progress = Progress(*columns, console=Console(stderr=True), disable=quiet)
    progress.start()
    try:
        yield progress
    finally:
        with suppress(OSError, SystemExit):  # rich exits where the reader of a pipe has left
            progress.stop()


@contextmanager
def bar(description: str, total: int, *, quiet: bool) -> Iterator[Callable[[int, str], None]]:
    """Show a progress bar on standard error, and yield the function that takes the completed amount and a note."""
    with _progress(quiet=quiet) as progress:
        task = progress.add_task(description, total=total, note="")
        yield lambda completed, note: progress.update(task, completed=completed, note=note)


@contextmanager
def search_bar(total: int, *, quiet: bool) -> Iterator[Callable[[int, SearchProgress], None]]:
    """Show the token-evaluations of a search, and yield the callback for `find_factors`."""
    with bar("search", total, quiet=quiet) as update:
        first: dict[int, float] = {}

        def on_progress(seed: int, progress: SearchProgress) -> None:
            rate = (progress.generation + 1) / max(progress.seconds, 1e-9)
            speed = f"{rate:.1f} steps/s" if rate > 1 else f"{1 / rate:.1f} s/step"
            loss = f"loss {progress.loss:.3f} (from {first.setdefault(seed, progress.loss):.3f})"
            update(progress.tokens, f"{loss} seed {seed} step {progress.generation} {speed}")

        yield on_progress


@contextmanager
def parts_bar(*, quiet: bool) -> Iterator[Callable[[str, int, int, str], None]]:
    """Show one bar for each step, and yield the function that takes (name, completed, total, note)."""
    tasks: dict[str, TaskID] = {}
    with _progress(quiet=quiet) as progress:

        def on_progress(step: str, completed: int, total: int, note: str) -> None:
            if step not in tasks:
                tasks[step] = progress.add_task(step, total=total, note=note)
            progress.update(tasks[step], completed=completed, total=total, note=note)

        yield on_progress
