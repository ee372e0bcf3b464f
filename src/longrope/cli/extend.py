"""``longrope extend``."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longrope.cli import distributed, extend_by_hours, extend_output, options
from longrope.cli.finetune import Log, ReportTo
from longrope.cli.job_progress import check_log, job_progress, log_files
from longrope.cli.layer_notes import check_layers

if TYPE_CHECKING:
    from longrope.stages.plan import Plan
    from longrope.stages.run_folder import StagedRun


def run(
    model: options.Model,
    plan: Annotated[
        str | None,
        typer.Argument(help="Plan file (longrope plan writes one), or the name of a ready-made one; not with --to."),
    ] = None,
    to: Annotated[str | None, typer.Option(help="Target length in tokens, such as 64k, without a plan.")] = None,
    hours: Annotated[float | None, typer.Option(help="Hours that the run may take, such as 3 or 0.5.")] = None,
    data: options.Data = None,
    text_key: options.TextKey = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder (default: MODEL-LENGTH).")] = None,
    original_length: options.OriginalLength = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    launch: Annotated[
        str,
        typer.Option(help="Command that fine-tunes in several processes, such as 'accelerate launch --use_fsdp'."),
    ] = "",
    report_to: ReportTo = "none",
    resume: options.Resume = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Carry out the chosen plan without asking.")] = False,
    export_on_interrupt: Annotated[
        bool,
        typer.Option("--export-on-interrupt", help="After Ctrl-C, export the best so far (OUTPUT/checkpoint-so-far)."),
    ] = False,
    log: Log = None,
    as_json: options.Json = False,
) -> None:
    """Extend a model by the hours that you have, or carry out a plan.

    By hours: longrope extend MODEL --to 64k --data FOLDER --hours 3. The command measures this machine, chooses a plan
    that fits the hours, and shows it first. A plan searches factors, fine-tunes, searches other factors for short
    texts, measures and exports.

    OUTPUT gets plan.toml, a folder for every stage, extension.json, results.json, report.html, progress.log (watch it
    with longrope report OUTPUT --watch) and the folder checkpoint.
    """
    from longrope.units import parse_length

    distributed.refuse("--launch")
    length = None if to is None else parse_length(to, "to")
    decided = options.decided_length(original_length)

    from longrope.stages.plan_by_hours import bare_plan
    from longrope.stages.plan_cost import check_plan_memory
    from longrope.stages.plan_tables import Data
    from longrope.stages.run_folder import StagedRun, open_run

    named_plan = None if plan is None else load_named_plan(plan)
    output = output or default_output(model, length if named_plan is None else named_plan.length)
    exists = (output / "run.json").exists()
    tables = {"--to": to, "--hours": hours, "--data": data, "--text-key": text_key}
    extend_by_hours.check_options(tables, plan, exists=exists, launch=launch)
    if named_plan is not None:
        loaded = with_default_data(named_plan, model)
    elif exists:
        loaded = extend_by_hours.plan_of_run(output, resume=resume, length=length, data=data, text_key=text_key)
        extend_by_hours.note_hours(output, hours)
    else:
        assert length is not None
        loaded = with_default_data(bare_plan(length, Data(source=data, text_key=text_key)), model)
    if decided is not None:
        loaded = loaded.model_copy(update={"original_length": decided})
    config = options.read_config(model, loaded.original_length)
    check_layers(config, loaded.length)
    device = options.choose_device(device)

    def check_memory(dtype: str) -> None:
        check_plan_memory(loaded, config, dtype=dtype, device=device)

    recorded = open_run(output).dtype if exists and resume else None
    dtype = options.choose_dtype(dtype, config, device, check_memory, recorded=recorded)
    more = [*([] if log is None else ["--log", str(log)]), *(["--quiet"] if as_json else [])]
    staged = StagedRun(
        output,
        model,
        loaded,
        device=device,
        dtype=dtype,
        report_to=report_to,
        launch=words(launch),
        launch_options=more,
    )
    heading, speeds = "", None
    if named_plan is None and not exists:
        assert hours is not None
        loaded, heading, speeds = extend_by_hours.choose(staged, hours, quiet=as_json, yes=yes or as_json)
        staged = replace(staged, plan=loaded)
    note_slow_finetuning(loaded, device)
    costs = extend_by_hours.steps_of(loaded, config, dtype, speeds)
    record, checkpoint = carry_out(
        staged, costs, heading=heading, resume=resume, log=log, quiet=as_json, exports_so_far=export_on_interrupt
    )
    options.tell(record, as_json=as_json, text=lambda: extend_output.describe(staged, record, checkpoint))


def load_named_plan(name: str) -> Plan:
    """Load a plan file or a ready-made plan.

    Raises:
        LongRopeError: There is no such plan, or it is not valid.
    """
    from longrope.errors import LongRopeError
    from longrope.stages.plan import load_plan

    if re.fullmatch(r"\d+[kmg]?", name.lower()) and not Path(name).exists():
        raise LongRopeError(f"plan = {name!r}: a length, not a plan. Give it with --to {name}, and --hours H.")
    return load_plan(name)


def default_output(model: str, length: int | None) -> Path:
    """Return the folder of a run that names none.

    Raises:
        LongRopeError: If the command gives no length either.
    """
    from longrope.units import short_length

    if length is None:
        raise extend_by_hours.missing_length()
    return Path(f"{options.short_name(model)}-{short_length(length)}")


def carry_out(
    staged: StagedRun,
    costs: Sequence[tuple[str, float]],
    *,
    heading: str,
    resume: bool,
    log: Path | None,
    quiet: bool,
    exports_so_far: bool,
) -> tuple[dict[str, Any], Path | None]:
    """Begin or continue a run, show its progress, write its page, and export the result.

    Args:
        staged: The run.
        costs: Name and expected cost of each step, in any unit.
        heading: Comment at the top of its plan's file.
        resume: Whether the run may be continued.
        log: File that gets the progress too.
        quiet: Whether to print no progress.
        exports_so_far: Whether to export the best so far after an interrupt.

    Returns:
        The results, and the folder of the checkpoint.
    """
    from longrope.stages.begin_run import begin_run
    from longrope.stages.pipeline import extend
    from longrope.stages.plan_cost import check_plan_memory
    from longrope.storage.lock import locked

    folder, exists = staged.folder, (staged.folder / "run.json").exists()
    logs = log_files(folder, log)
    with job_progress(costs, quiet=quiet, logs=logs, live=not staged.training_command) as on_progress, locked(folder):
        staged = replace(staged, on_progress=on_progress)
        if not exists:
            extend_output.check_export(staged)
            if not staged.launch:
                check_plan_memory(staged.plan, staged.config, dtype=staged.dtype, device=staged.device)
        if log is not None and not log.absolute().is_relative_to(folder.absolute()):  # begin_run checks the folder
            check_log(log)
        begin_run(staged, resume=resume, heading=heading)
        try:
            extend(staged)
            return extend_output.finish(staged)
        except KeyboardInterrupt:
            if exports_so_far:
                extend_output.tell_so_far(staged)
            raise


def with_default_data(plan: Plan, model: str) -> Plan:
    """Return a plan with documents to search, hold out and test on, as the other commands choose them by default."""
    from longrope.data.stdlib import default_data

    if plan.data.source is not None:
        return plan
    data = plan.data.model_copy(update={"source": default_data(model)})
    return plan.model_copy(update={"data": data})


def note_slow_finetuning(plan: Plan, device: str) -> None:
    """Say, on standard error, if the plan fine-tunes in bfloat16 on a CPU that is slow in it."""
    from longrope.cost.bfloat16_speed import is_bfloat16_slow

    in_bfloat16 = any(stage.finetune is not None and stage.finetune.dtype == "bfloat16" for stage in plan.stages)
    if in_bfloat16 and is_bfloat16_slow(device):
        slow = "this CPU" if device == "cpu" else device
        typer.echo(
            f"Note: {slow} is slow in bfloat16: finetune.dtype = 'float32' in the plan is faster, in more memory",
            err=True,
        )


def words(launch: str) -> list[str]:
    """Split a command into its words.

    Raises:
        LongRopeError: If a quote is not closed.
    """
    from longrope.errors import LongRopeError

    try:
        words = shlex.split(launch, posix=os.name != "nt")  # Windows has backslashes in paths
        return [word.strip('"') for word in words]
    except ValueError as error:
        raise LongRopeError(f"launch = {launch!r}: {str(error).lower()}") from None
