"""Any task of lm-evaluation-harness on a model with factors, without exporting it."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

from longrope.errors import LongRopeError
from longrope.evaluation.measurements import Measurement, Subject, Values
from longrope.models.patch import patch


def harness(
    tasks: Sequence[str], *, folder: Path | None = None, limit: int | None = None, batch: int = 1, length: int
) -> Measurement:
    """Tasks of lm-evaluation-harness (`pip install 'longrope[lm-eval]'`); the one cell has its metrics by task.

    An `Extension` takes short or long factors by the length of each row.

    Args:
        tasks: names that the harness knows, RULER's and LongBench's among them.
        folder: of tasks of one's own, YAML files as the harness has them.
        limit: documents of each task; all if None.
        batch: rows in one forward pass.
        length: in tokens, of the longest input; longer ones are cut on the left.

    Raises:
        LongRopeError: if the package is missing, or knows no such task.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        with _quiet():
            lm_eval: Any = import_module("lm_eval")
            models, known = import_module("lm_eval.models.huggingface"), import_module("lm_eval.tasks")
    except ImportError:
        raise LongRopeError(f"tasks = {','.join(tasks)}: needs a package: pip install 'longrope[lm-eval]'") from None
    if folder is not None and not folder.is_dir():
        raise LongRopeError(f"task_folder = {folder}: there is no such folder")
    with _quiet():
        manager = known.TaskManager(include_path=None if folder is None else str(folder))
    unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown:
        raise LongRopeError(
            f"tasks = {','.join(unknown)}: lm-evaluation-harness knows no such task; see lm-eval ls tasks"
        )

    def measure(subject: Subject, wanted: Sequence[int]) -> Values:
        with _quiet(), patch(subject.model, subject.factors):
            model = models.HFLM(
                pretrained=subject.model,
                tokenizer=subject.tokenizer,
                batch_size=batch,
                max_length=length,
            )
            try:
                found = lm_eval.simple_evaluate(
                    model=model,
                    tasks=list(tasks),
                    limit=limit,
                    task_manager=manager,
                    bootstrap_iters=0,
                    log_samples=False,
                )
            except (OSError, ValueError, ImportError) as error:  # such as data that cannot be downloaded
                raise LongRopeError(f"tasks = {','.join(tasks)}: lm-evaluation-harness stopped: {error}") from error
        yield 0, {name: _metrics(values) for name, values in found["results"].items()}

    return Measurement(f"tasks {','.join(tasks)}", 1, 0, measure)


def _metrics(values: dict[str, Any]) -> dict[str, float]:
    """The numbers of a task, with its filter left out of the names where it is the usual one."""
    numbers = {key: value for key, value in values.items() if isinstance(value, (int, float)) and "," in key}
    return {key.removesuffix(",none"): float(value) for key, value in numbers.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's own warnings, log lines and progress bars."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
