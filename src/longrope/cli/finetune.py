"""``longrope finetune``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from longrope.cli import distributed, extend_by_hours, options
from longrope.cli.job_progress import check_log, job_progress, log_files

ReportTo = Annotated[str, typer.Option(help="Service that fine-tuning reports to: tensorboard, wandb, trackio …")]
Log = Annotated[Path | None, typer.Option(help="File that gets a line of progress each minute.")]


def run(
    folder: Annotated[Path, typer.Argument(help="Folder of longrope extend.")],
    stage: Annotated[int, typer.Argument(min=1, help="Number of the stage: 1, 2 …")],
    device: options.Device = "auto",
    report_to: ReportTo = "none",
    log: Log = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no progress.")] = False,
) -> None:
    """Fine-tune one stage of a run: longrope extend --launch starts this command in every process."""
    from longrope.errors import LongRopeError
    from longrope.stages.begin_run import check_documents
    from longrope.stages.pipeline import finetune_stage
    from longrope.stages.run_folder import open_run

    staged = open_run(folder, device=options.choose_device(device), report_to=report_to)
    stages = staged.plan.stages
    if stage > len(stages) or stages[stage - 1].finetune is None:
        raise LongRopeError(f"stage = {stage}: the plan of {folder} fine-tunes no such stage")
    if not (staged.stage_folder(stage) / "extension.json").exists():
        raise LongRopeError(f"stage = {stage}: {folder} has no factors for it yet; run longrope extend --resume")
    weights = staged.stage_folder(stage) / "model"
    if weights.exists():
        raise LongRopeError(f"stage = {stage} is fine-tuned already; remove {weights} first")
    if log is not None:
        check_log(log)
    steps = extend_by_hours.steps_of(staged.plan, staged.config, staged.dtype)
    quiet = quiet or not distributed.first()
    with job_progress(steps, quiet=quiet, logs=log_files(folder, log)) as on_progress:
        staged = replace(staged, on_progress=on_progress)
        check_documents(staged)
        finetune_stage(staged, stage)
