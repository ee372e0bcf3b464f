"""Redraw a run's folder in the terminal until the run is finished."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from longrope.cli.job_progress import LOG
from longrope.errors import LongRopeError
from longrope.storage.lock import is_abandoned, is_held

EVERY = 5.0  # seconds from one drawing to the next
LINES = 12  # of the log that are shown


def watch(folder: Path, console: Console, *, every: float = EVERY) -> None:
    """Show the progress of a run of ``longrope extend``, and its report in the end.

    It returns when the run is done or has stopped.

    Args:
        folder: Folder of the run, which another process works in.
        console: Terminal.
        every: Seconds from one drawing to the next.

    Raises:
        LongRopeError: If the folder holds no run, or one whose process was killed.
    """
    drawn: Sequence[str] = ()
    while True:
        lines = _lines(folder)
        if lines != drawn:
            console.clear()
            console.print(f"{folder}: Ctrl-C ends the watching, not the run", style="dim", markup=False)
            for line in lines:
                console.print(line, markup=False, highlight=False)
            drawn = lines
        if lines and lines[-1].split(" ", 1)[-1].startswith(("done", "stopped")) and not is_held(folder):
            break
        if is_abandoned(folder):
            raise LongRopeError(
                f"run = {str(folder)!r}: its process is gone, and the run is not finished. "
                "Continue it with longrope extend and --resume."
            )
        time.sleep(every)
    if (folder / "results.json").exists():
        _report(folder, console)


def _lines(folder: Path) -> Sequence[str]:
    """Return the last lines of a run's log.

    Raises:
        LongRopeError: If the folder holds no run.
    """
    path = folder / LOG
    if path.exists():
        return path.read_text(encoding="utf-8").splitlines()[-LINES:]
    if not (folder / "run.json").exists():
        raise LongRopeError(f"run = {str(folder)!r}: no run of longrope extend. Give the folder of one that runs.")
    return ["no step has begun yet"]


def _report(folder: Path, console: Console) -> None:
    from longrope.report.all_figures import figures
    from longrope.report.load import read_runs
    from longrope.report.terminal import show

    runs = read_runs([folder])
    show(runs, figures(runs), console)
