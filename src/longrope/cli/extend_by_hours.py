"""``longrope extend`` without a plan: the plan that it chooses by the hours, shown before it is carried out."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from longrope.cli import options, plan_output
from longrope.errors import LongRopeError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from longrope.cost.device_speed import DeviceSpeed
    from longrope.stages.plan import Plan
    from longrope.stages.plan_by_hours import Advice
    from longrope.stages.run_folder import StagedRun

EXPECTED = {
    "closed form": "the best of the closed forms, not trained; it costs nothing up to L0",
    "search": "perplexity as YaRN's or a few percent below, more recall; not trained; it costs nothing up to L0",
    "fine-tuning": "perplexity 11 to 18% below YaRN's from 60 steps on (SmolLM2, `tiny`), about 6% from 10 on",
    "search and fine-tuning": "perplexity 15% or more below YaRN's",
}


def check_options(values: Mapping[str, object], plan: str | None, *, exists: bool, launch: str) -> None:
    """Check that the command has either a plan, or what a plan is chosen by.

    Args:
        values: Values by the names of the options that choose a plan.
        plan: Plan of the command; None to choose one.
        exists: Whether the output holds a run, which has a plan.
        launch: Command that fine-tunes in several processes; empty for this process.

    Raises:
        LongRopeError: If it does not, the hours are not a number of hours, or several processes are to share them.
    """
    names = [name for name, value in values.items() if value is not None]
    if plan is not None and names:
        raise LongRopeError(f"plan = {plan!r} says all itself: drop {', '.join(names)}, or edit the file")
    hours = values["--hours"]
    if plan is not None or exists:
        return
    if values["--to"] is None:
        raise missing_length()
    if hours is None:
        raise LongRopeError(
            "hours is missing: give --hours, such as --hours 3, or write a plan with longrope plan MODEL --to LENGTH"
        )
    if not (isinstance(hours, float) and 0 < hours < math.inf):
        raise LongRopeError(f"hours = {hours}: not a time. Give a number above 0, such as --hours 3.")
    if launch:
        raise LongRopeError(
            f"launch = {launch!r}: hours choose a plan for one process. Drop --launch, or write a plan with "
            "longrope plan MODEL --to LENGTH and give it in place of --hours."
        )


def missing_length() -> LongRopeError:
    """Return the error for a command without a plan and without a length."""
    return LongRopeError("to is missing: give --to LENGTH and --hours H, or a plan file (longrope plan writes one)")


def plan_of_run(
    folder: Path, *, resume: bool, length: int | None = None, data: str | None = None, text_key: str | None = None
) -> Plan:
    """Return the plan of the run in a folder, to continue it.

    Args:
        folder: Folder of the run.
        resume: Whether the run may be continued.
        length: Target length of the command in tokens; None if it gives none, as below.
        data: Documents of the command.
        text_key: Key of the text of the command.

    Raises:
        LongRopeError: If the run is not to be continued, or has another length or other documents than the command.
    """
    from longrope.stages.run_folder import open_run

    plan = open_run(folder).plan
    if not resume:
        raise LongRopeError(f"{folder} exists; continue it with --resume or choose another output with -o")
    if length is not None and length != plan.length:
        raise LongRopeError(f"to = {length}: {folder} is a run to {plan.length} tokens; choose another output with -o")
    source = plan.data.source or "stdlib"
    if data is not None and Path(data).absolute() != Path(source).absolute():
        raise LongRopeError(f"data = {data!r}: {folder} is a run on {source}; choose another output with -o")
    key = plan.data.text_key or "text"
    if text_key not in (None, key):
        raise LongRopeError(f"text_key = {text_key!r}: {folder} is a run on the key {key}; leave --text-key out")
    return plan


def note_hours(folder: Path, hours: float | None) -> None:
    """Say, on standard error, that hours do not change the plan of a run."""
    if hours is not None:
        typer.echo(f"Note: hours = {hours:g} changes nothing, as {folder} keeps the plan that it began with", err=True)


@contextmanager
def removing_leftovers(folder: Path) -> Iterator[None]:
    """Remove a folder that the block has made, if the block ends in an error, an interrupt or a no."""
    existed = folder.exists()
    try:
        yield
    except BaseException:
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def choose(run: StagedRun, hours: float, *, quiet: bool, yes: bool) -> tuple[Plan, str, Mapping[str, DeviceSpeed]]:
    """Choose the plan of a run, print it with its costs unless quiet, and ask on a terminal unless ``yes``.

    Returns:
        The plan, the comment at the top of its file, and the measured speeds by dtype.

    Raises:
        typer.Exit: The answer is no.
    """
    from longrope.storage.lock import locked

    with removing_leftovers(run.folder), locked(run.folder):
        advice = _advise(run, hours, quiet=quiet)
        if not yes and sys.stdin.isatty() and not typer.confirm("Go on?", default=True, err=True):
            raise typer.Exit
    lines = [options.command_line(), *sentences(advice, hours)]
    return advice.choice.plan, "".join(f"# {line}\n" for line in lines), advice.machine.speeds


def _advise(run: StagedRun, hours: float, *, quiet: bool) -> Advice:
    from longrope.stages.begin_run import check_no_other_files
    from longrope.stages.plan_advice import check_above_original
    from longrope.stages.plan_by_hours import RANKED, plan_by_hours
    from longrope.stages.requirements import check_training

    check_no_other_files(run.folder)
    check_above_original(run.plan.length, run.rope)
    check_training(device=run.device, launch=run.launch, report_to=run.report_to)
    if not quiet:
        most = plan_output.span(3600 * RANKED * hours)
        typer.echo(f"Measuring this machine, counting the texts, comparing closed forms (about {most}) …", err=True)
    advice = plan_by_hours(run, hours)
    if not quiet:
        _show(run, advice, hours)
    return advice


def _show(run: StagedRun, advice: Advice, hours: float) -> None:
    """Print the costs of the chosen plan, and sentences on it, on standard error."""
    choice, original = advice.choice, run.rope.original_length
    lengths = f"{original:,} to {choice.plan.length:,} tokens"
    title = f"{run.model}: {lengths} on {run.device} in {plan_output.span(3600 * hours)}"
    plan_output.show(plan_output.Report(choice.costs, advice.machine.speeds, ()), title, err=True)
    for line in sentences(advice, hours):
        typer.echo(line, err=True)


def sentences(advice: Advice, hours: float) -> list[str]:
    """Return what the plan does, what it is expected to bring, and what an hour more would buy."""
    from longrope.stages.choose_plan import TRUSTED, more_time

    choice, evaluation = advice.choice, advice.choice.plan.evaluation
    lines = [
        f"Plan: {describe_kind(choice.plan, choice.kind, choice.start)}; about {plan_output.span(choice.seconds)}."
    ]
    if advice.starts:
        losses = ", ".join(f"{name} {loss:.3f}" for name, loss in advice.starts.items())
        lines.append(f"Loss of the closed forms on held-out text with planted lines (lower is better): {losses}.")
    lines.append(f"Expect: {EXPECTED[choice.kind]}; docs/extension.md has the measurements.")
    questions = f" and {evaluation.trials} questions" if evaluation.retrieval else ", and no test of retrieval"
    texts = f"{evaluation.documents} test document{'s' * (evaluation.documents > 1)}"
    trust = "" if evaluation.documents >= TRUSTED else ", too few for a sure verdict"
    lines.append(f"Measured on {texts}{questions} against YaRN{trust}.")
    if advice.machine.weights != "plain":
        remains = "the adapter and its factors" if choice.plan.stages[0].finetune else "factors"
        lines.append(
            f"The weights are quantised, so the result is {remains}, and no checkpoint (longrope export --config-only)."
        )
    if advice.wants_lora:
        lines.append('LoRA suits so few tokens better and needs the package peft: pip install "longrope[lora]".')
    return [*lines, f"One more hour would buy {more_time(choice, advice.hour_more)}."]


def describe_kind(plan: Plan, kind: str, start: str) -> str:
    """Return a clause on what the plan's stage does."""
    finetune = plan.stages[0].finetune
    if finetune is None:
        return f"{kind}, from {start}" if kind == "search" else f"the factors of {start}"
    weights = f"LoRA of rank {finetune.lora}" if finetune.lora else "all weights"
    factors = "searched factors" if plan.stages[0].factors == "search" else f"the factors of {start}"
    windows = f"{finetune.batch} windows of {finetune.sequence_length(plan.length):,} tokens"
    return f"{kind} of {weights} with {factors}, {finetune.steps} steps of {windows}"


def steps_of(
    plan: Plan, config: PreTrainedConfig, dtype: str, speeds: Mapping[str, DeviceSpeed] | None = None
) -> Sequence[tuple[str, float]]:
    """Return the names of a run's steps, as its progress has them, and their costs.

    Costs are seconds where the speeds of the device are known by dtype, and else FLOPs.
    """
    from longrope.cost.model_shape import ModelShape
    from longrope.rope import Rope
    from longrope.stages.plan_cost import part_costs

    costs = part_costs(plan, ModelShape.of(config, dtype), Rope.of(config))
    names = {"evaluation": "measure"}
    steps = [(names.get(step.name, step.name), step.seconds(speeds) if speeds else step.total_flops) for step in costs]
    return steps if plan.export == "none" else [*steps, ("export", 0.01 * sum(cost for _, cost in steps))]
