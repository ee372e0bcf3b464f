"""Measurement: tasks of lm-evaluation-harness, on a model with factors, without exporting it."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longrope.errors import LongRopeError
from longrope.evaluation.figure import Column, Figure, Number, nats
from longrope.evaluation.labelled import LabelledResults, labelled_records
from longrope.evaluation.measurement import Measurement, SampleSet, Subject, Values
from longrope.evaluation.records import Record
from longrope.rope import Rope, rope_type_of
from longrope.scaling import Extension

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from longrope.evaluation.runner import EvalContext

SAYS = (
    "Scores of lm-evaluation-harness, ± its standard error. Short tasks show what the extension costs, not whether "
    "it works at length."
)


class TaskScore(Record):
    """One number of a task, as lm-evaluation-harness names it; None where logits were not finite."""

    task: str
    metric: str
    value: Any


def harness(
    tasks: Sequence[str], *, folder: Path | None = None, limit: int | None = None, batch: int = 1, length: int
) -> SampleSet:
    """Return one sample that holds the metrics of tasks of lm-evaluation-harness, by task.

    It needs ``pip install "longrope[lm-eval]"``. An `Extension` takes short or long factors by the length of each row,
    so its rows pass one at a time: the harness pads the rows of a batch to one length.

    Args:
        tasks: Names that the harness knows, such as those of RULER and LongBench.
        folder: Folder of further tasks, YAML files in the harness's format.
        limit: Maximum number of documents of each task; all if None.
        batch: Rows in one forward pass.
        length: Length in tokens of the longest input. Longer inputs are cut on the left.

    Raises:
        LongRopeError: If the package is missing or does not know a task.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        with _quiet():
            models, registry = import_module("lm_eval.models.huggingface"), import_module("lm_eval.tasks")
    except ImportError:
        raise LongRopeError(
            f'tasks = {",".join(tasks)}: lm-evaluation-harness is not installed. Run pip install "longrope[lm-eval]".'
        ) from None
    if folder is not None and not folder.is_dir():
        raise LongRopeError(f"task_folder = {folder}: there is no such folder. Pass a folder of YAML files.")
    with _quiet():
        manager = registry.TaskManager(include_path=None if folder is None else str(folder))
    unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown:
        raise LongRopeError(
            f"tasks = {','.join(unknown)}: lm-evaluation-harness knows no such task. Choose from lm-eval ls tasks."
        )
    options = {"tasks": list(tasks), "limit": limit, "task_manager": manager, "bootstrap_iters": 0}

    def measure(subject: Subject, samples: Sequence[int]) -> Values:
        from longrope.models.patch import patch

        with _quiet(), patch(subject.model, subject.scaling):
            size = 1 if chooses_by_length(subject) else batch
            model = models.HFLM(
                pretrained=subject.model, tokenizer=subject.tokenizer, batch_size=size, max_length=length
            )
            with _watched(subject.model) as finite:
                results = _simple_evaluate(model, options)["results"]
        metrics = {name: _metrics(values) for name, values in results.items()}
        yield 0, metrics if all(finite) else {name: dict.fromkeys(values) for name, values in metrics.items()}

    return SampleSet(f"tasks {','.join(tasks)}", 1, 0, measure)


def chooses_by_length(subject: Subject) -> bool:
    """Return whether a model's factors depend on the length of a row."""
    scaling, rope = subject.scaling, Rope.of(subject.model)
    if isinstance(scaling, Extension):
        return scaling.has_two_sets or rope.has_two_sets
    return scaling is None and (rope.has_two_sets or rope_type_of(subject.model) == "dynamic")


@contextmanager
def _watched(model: PreTrainedModel) -> Iterator[list[bool]]:
    """Yield a list that gets False once logits are not finite: the harness would compute rates from them."""
    finite: list[bool] = []

    def watch(module: object, inputs: object, output: Any) -> None:
        if not finite and not bool(output.logits.amax(-1).isfinite().all()):
            finite.append(False)

    handle = model.register_forward_hook(watch)
    try:
        yield finite
    finally:
        handle.remove()


def _simple_evaluate(model: Any, options: Mapping[str, Any]) -> Any:
    """Run the harness; raise its errors, such as data that cannot be downloaded, as LongRopeError."""
    lm_eval: Any = import_module("lm_eval")
    try:
        return lm_eval.simple_evaluate(model=model, log_samples=False, **options)
    except (OSError, ValueError, ImportError) as error:
        raise LongRopeError(f"tasks = {','.join(options['tasks'])}: lm-evaluation-harness stopped: {error}") from error


def _metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a task. The usual filter is left out of their names."""
    metrics = {key: value for key, value in values.items() if isinstance(value, (int, float)) and "," in key}
    return {key.removesuffix(",none"): float(value) for key, value in metrics.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the harness's warnings, log lines and progress bars."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def sample_sets(evaluation: EvalContext) -> list[SampleSet]:
    """Return the sample of the harness."""
    assert evaluation.spec.harness is not None
    return [evaluation.spec.harness]


def aggregate(evaluation: EvalContext, candidate: str) -> list[TaskScore]:
    """Return the candidate's scores by task and metric."""
    (samples,) = sample_sets(evaluation)
    (tasks,) = evaluation.samples(candidate, samples)
    return [
        TaskScore(task=task, metric=metric, value=value)
        for task, metrics in tasks.items()
        for metric, value in metrics.items()
    ]


def encode(records: Mapping[str, tuple[TaskScore, ...]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return metrics by candidate and task."""
    data: dict[str, Any] = {}
    for candidate, rows in records.items():
        tasks = data[candidate] = {}
        for row in rows:
            tasks.setdefault(row.task, {})[row.metric] = row.value
    return data


def decode(data: Any) -> Any:
    """Return records by candidate from metrics by candidate and task."""
    if not isinstance(data, dict):
        return data
    return {
        candidate: [
            {"task": task, "metric": metric, "value": value}
            for task, metrics in tasks.items()
            for metric, value in metrics.items()
        ]
        for candidate, tasks in data.items()
    }


def figures(runs: Sequence[LabelledResults]) -> list[Figure]:
    """Return a table."""
    rows = []
    for label, records in labelled_records(runs, TASKS.name):
        values = {(record.task, record.metric): record.value for record in records}
        rows += [
            [label, task, metric, Number.of(math.nan if value is None else value, _error(values, task, metric))]
            for (task, metric), value in values.items()
            if (value is None or isinstance(value, (int, float))) and not isinstance(value, bool)
            if "_stderr" not in metric
        ]
    columns = (Column("row"), Column("task"), Column("measure"), Column("value", nats))
    return [Figure("tasks", "cost", "Tasks", SAYS, columns, rows)] if rows else []


def _error(values: Mapping[tuple[str, str], Any], task: str, metric: str) -> float | None:
    """Return the standard error of a metric; the harness names them acc,none and acc_stderr,none."""
    name, comma, kind = metric.partition(",")
    error = values.get((task, f"{name}_stderr{comma}{kind}"))
    return error if isinstance(error, (int, float)) else None


TASKS = Measurement(
    "tasks",
    TaskScore,
    sample_sets,
    aggregate,
    figures,
    requested=lambda spec: spec.harness is not None,
    encode=encode,
    decode=decode,
)
