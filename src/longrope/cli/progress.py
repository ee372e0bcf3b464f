"""Live progress on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from longrope.search.loop import SearchProgress as Standing


def _progress(*, quiet: bool) -> Progress:
    said, note = (TextColumn(f"{{task.{name}}}", markup=False) for name in ("description", "fields[note]"))
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    return Progress(said, BarColumn(), TaskProgressColumn(), note, *times, console=Console(stderr=True), disable=quiet)


@contextmanager
def bar(description: str, total: int, *, quiet: bool) -> Iterator[Callable[[int, str], None]]:
    """Show a progress bar on standard error and yield its update function (completed, note)."""
    with _progress(quiet=quiet) as progress:
        task = progress.add_task(description, total=total, note="")
        yield lambda done, note: progress.update(task, completed=done, note=note)


@contextmanager
def search_bar(total: int, *, quiet: bool) -> Iterator[Callable[[int, Standing], None]]:
    """Show the progress of a search in token-evaluations and yield the callback (seed, standing)."""
    with bar("search", total, quiet=quiet) as update:
        first: dict[int, float] = {}

        def on_progress(seed: int, standing: Standing) -> None:
            rate = (standing.generation + 1) / max(standing.seconds, 1e-9)
            speed = f"{rate:.1f} steps/s" if rate > 1 else f"{1 / rate:.1f} s/step"
            loss = f"loss {standing.loss:.3f} (from {first.setdefault(seed, standing.loss):.3f})"
            update(standing.tokens, f"{loss} seed {seed} step {standing.generation} {speed}")

        yield on_progress


@contextmanager
def parts_bar(*, quiet: bool) -> Iterator[Callable[[str, int, int, str], None]]:
    """Show one bar for each stage of the work and yield the update function (stage, completed, total, note)."""
    tasks: dict[str, TaskID] = {}
    with _progress(quiet=quiet) as progress:

        def update(stage: str, completed: int, total: int, note: str) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total, note=note)
            progress.update(tasks[stage], completed=completed, total=total, note=note)

        yield update
