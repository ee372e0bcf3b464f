"""The progress of a whole run in one line: a bar in a terminal, a line a minute elsewhere, and a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from longrope.cli.plan_output import span
from longrope.storage.atomic import cannot_write

LOG = "progress.log"  # in the folder of a run
EVERY = 60.0  # seconds from one line to the next
EARLY = 0.02  # of the whole run, before which the time left is not shown
OnProgress = Callable[[str, int, int, str], None]


@dataclass
class JobProgress:
    """The state of a run of several steps, whose expected costs are the shares of the bar.

    Args:
        steps: Name and expected cost of each step, in any unit. Names of reports begin with them. If it is empty, each
            step counts from its own start.
        clock: Function that returns the seconds of a clock.
    """

    steps: Sequence[tuple[str, float]]
    clock: Callable[[], float] = time.monotonic
    step: str = ""
    note: str = ""
    completed: float = 0.0  # share of the current step
    started: float = field(init=False)
    first: tuple[float, float] | None = None  # time and share of the first progress; a resumed run begins with more

    def __post_init__(self) -> None:
        self.started = self.clock()

    def update(self, step: str, completed: int, total: int, note: str) -> None:
        """Take the progress of a step."""
        if step != self.step and not self.steps:
            self.started, self.first = self.clock(), None
        self.step, self.note = step, note
        self.completed = min(1.0, completed / total) if total else 1.0
        if self.first is None and self.share > 0:
            self.first = self.clock(), self.share

    @property
    def number(self) -> int:
        """Number of the current step, from 1; 0 for a step that is not known."""
        return next((i for i, (name, _) in enumerate(self.steps, start=1) if self.step.startswith(name)), 0)

    @property
    def share(self) -> float:
        """Share of the whole run that is done."""
        if not self.number:
            return self.completed
        costs = [max(cost, 1e-9) for _, cost in self.steps]
        return (sum(costs[: self.number - 1]) + self.completed * costs[self.number - 1]) / sum(costs)

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the rest takes at the pace so far; None if it is too early to say."""
        time, share = self.first or (self.started, 0.0)
        advanced = self.share - share
        return None if advanced < EARLY else (self.clock() - time) * (1 - self.share) / advanced

    def line(self) -> str:
        """Return the progress in one line."""
        of_all = f"part {self.number} of {len(self.steps)}, " if self.number else ""
        note = f", {self.note}" if self.note else ""
        passed, left = self.clock() - self.started, self.seconds_left
        in_all = [f"in all {self.share:.0%}"] if self.steps else []
        after = [f"after {span(passed)}"] if passed >= 1 else []
        so_far = f"; {' '.join(in_all + after)}" if in_all or after else ""
        rest = "" if left is None else f", about {span(left)} left"
        return f"{of_all}{self.step}: {self.completed:.0%}{note}{so_far}{rest}"


@contextmanager
def job_progress(
    steps: Sequence[tuple[str, float]],
    *,
    quiet: bool,
    logs: Sequence[Path] = (),
    every: float = EVERY,
    live: bool = True,
) -> Iterator[OnProgress]:
    """Show a run's progress on standard error and in log files; yield the function that takes it.

    Args:
        steps: Name and expected cost of each step; empty where the command has no parts, which says nothing at its end.
        quiet: Whether to print nothing on standard error.
        logs: Files in existing folders that get a line each minute, after the ones that they hold.
        every: Seconds from one line to the next.
        live: Whether a terminal shows a bar in place of lines; not where another process shows one meanwhile.
    """
    job, printed = JobProgress(steps), {"step": "", "time": float("-inf")}
    with ExitStack() as stack:
        bar = stack.enter_context(_bar()) if live and sys.stderr.isatty() and not quiet else None

        def write(text: str) -> None:
            for path in logs:
                _append(path, f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}\n")
            if bar is None and not quiet:
                with suppress(OSError):  # the terminal is closed, or the disk of the output is full
                    print(text, file=sys.stderr, flush=True)

        def on_progress(step: str, completed: int, total: int, note: str) -> None:
            job.update(step, completed, total, note)
            if bar is not None:
                bar(job)
            now = time.monotonic()
            if step != printed["step"] or now - printed["time"] >= every:
                printed.update(step=step, time=now)
                write(job.line())

        try:
            yield on_progress
        except BaseException as error:
            if job.step and steps:
                write(f"stopped in {job.step} ({type(error).__name__})")
            raise
        if job.step and steps:
            last = job.number in (0, len(job.steps))
            write(f"done {'' if last else f'with {job.step} '}in {span(time.monotonic() - job.started)}")


@contextmanager
def _bar() -> Iterator[Callable[[JobProgress], None]]:
    """Show one bar in the terminal, and yield the function that takes its state."""
    from longrope.cli.progress import bar

    with bar("extend", 1000, quiet=False) as update:
        yield lambda job: update(round(1000 * job.share), job.line())


def log_files(folder: Path, log: Path | None) -> list[Path]:
    """Return the log of a run's folder, and the one that the command names if that is another file."""
    run_log = folder / LOG
    return [run_log] if log is None or log.absolute() == run_log.absolute() else [run_log, log]


def check_log(path: Path) -> None:
    """Raise a LongRopeError unless a log file can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise cannot_write(path, error) from None


def _append(path: Path, text: str) -> None:
    """Append a line to a log. A run does not end because there is no room for its log."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
