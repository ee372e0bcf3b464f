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
    """A progress bar on standard error; the function given takes what is done and what to say of it."""
    with _progress(quiet=quiet) as progress:
        task = progress.add_task(description, total=total, note="")
        yield lambda done, note: progress.update(task, completed=done, note=note)


@contextmanager
def search_bar(total: int, *, quiet: bool) -> Iterator[Callable[[int, Standing], None]]:
    """What `find_factors` takes as ``watch``; counts token-evaluations."""
    with bar("search", total, quiet=quiet) as update:
        first: dict[int, float] = {}

        def watch(seed: int, standing: Standing) -> None:
            rate = (standing.generation + 1) / max(standing.seconds, 1e-9)
            speed = f"{rate:.1f} steps/s" if rate > 1 else f"{1 / rate:.1f} s/step"
            loss = f"loss {standing.loss:.3f} (from {first.setdefault(seed, standing.loss):.3f})"
            update(standing.tokens, f"{loss} seed {seed} step {standing.generation} {speed}")

        yield watch


@contextmanager
def parts_bar(*, quiet: bool) -> Iterator[Callable[[str, int, int, str], None]]:
    """One bar for each part of the work; the function given takes the part, what is done, of how much, and a note."""
    tasks: dict[str, TaskID] = {}
    with _progress(quiet=quiet) as progress:

        def tell(part: str, done: int, total: int, note: str) -> None:
            if part not in tasks:
                tasks[part] = progress.add_task(part, total=total, note=note)
            progress.update(tasks[part], completed=done, total=total, note=note)

        yield tell
