"""``longrope extend`` and ``longrope finetune``."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longrope.cli import distributed, eval_output, options
from longrope.cli.layer_notes import check_layers
from longrope.cli.progress import parts_bar
from longrope.data.stdlib import default_data

if TYPE_CHECKING:
    from longrope.stages.plan import Plan
    from longrope.stages.run_folder import StagedRun

ReportTo = Annotated[str, typer.Option(help="Service that fine-tuning reports to: tensorboard, wandb, trackio …")]


def run(
    model: options.Model,
    plan: Annotated[str, typer.Argument(help="Plan file (longrope plan writes one), or the name of a ready-made one.")],
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
    as_json: options.Json = False,
) -> None:
    """Carry out a plan: search, fine-tune, search again …, recover the short context, measure, export.

    OUTPUT gets a folder for every stage, extension.json, results.json and the folder checkpoint.
    """
    from longrope.stages.plan import load_plan
    from longrope.units import short_length

    distributed.refuse("--launch")
    loaded = load_plan(plan)
    output = output or Path(f"{options.short_name(model)}-{short_length(loaded.length)}")

    from longrope.stages.pipeline import extend
    from longrope.stages.plan_cost import check_plan_memory
    from longrope.stages.run_folder import StagedRun, begin_run, open_run
    from longrope.storage.lock import locked

    loaded = with_default_data(loaded, model)
    if (decided := options.decided_length(original_length)) is not None:
        loaded = loaded.model_copy(update={"original_length": decided})
    config = options.read_config(model, loaded.original_length)
    check_layers(config, loaded.length)
    device = options.choose_device(device)

    def check_memory(dtype: str) -> None:
        check_plan_memory(loaded, config, dtype=dtype, device=device)

    exists = (output / "run.json").exists()
    recorded = open_run(output).dtype if exists and resume else None
    dtype = options.choose_dtype(dtype, model, device, check_memory, recorded=recorded)
    note_slow_finetuning(loaded, device)
    command = words(launch)
    with parts_bar(quiet=as_json) as on_progress:
        staged = StagedRun(
            output,
            model,
            loaded,
            device=device,
            dtype=dtype,
            report_to=report_to,
            launch=command,
            on_progress=on_progress,
        )
        with locked(output):
            if not exists:
                check_export(staged)
                if not command:
                    check_memory(dtype)
            begin_run(staged, resume=resume)
            extend(staged)
            checkpoint = export(staged)
    record = results(staged)
    options.tell(record, as_json=as_json, text=lambda: describe(staged, record, checkpoint))


def finetune(
    folder: Annotated[Path, typer.Argument(help="Folder of longrope extend.")],
    stage: Annotated[int, typer.Argument(min=1, help="Number of the stage: 1, 2 …")],
    device: options.Device = "auto",
    report_to: ReportTo = "none",
) -> None:
    """Fine-tune one stage of a run: longrope extend --launch starts this command in every process."""
    from longrope.errors import LongRopeError
    from longrope.stages.pipeline import finetune_stage
    from longrope.stages.run_folder import open_run

    with parts_bar(quiet=False) as on_progress:
        staged = open_run(folder, device=options.choose_device(device), report_to=report_to, on_progress=on_progress)
        stages = staged.plan.stages
        if stage > len(stages) or stages[stage - 1].finetune is None:
            raise LongRopeError(f"stage = {stage}: the plan of {folder} fine-tunes no such stage")
        if not (staged.stage_folder(stage) / "extension.json").exists():
            raise LongRopeError(f"stage = {stage}: {folder} has no factors for it yet; run longrope extend --resume")
        weights = staged.stage_folder(stage) / "model"
        if weights.exists():
            raise LongRopeError(f"stage = {stage} is fine-tuned already; remove {weights} first")
        finetune_stage(staged, stage)


def with_default_data(plan: Plan, model: str) -> Plan:
    """Return a plan with documents to search, hold out and test on, as the other commands choose them by default."""
    if plan.data.source is not None:
        return plan
    data = plan.data.model_copy(update={"source": default_data(model)})
    return plan.model_copy(update={"data": data})


def note_slow_finetuning(plan: Plan, device: str) -> None:
    """Say, on standard error, if the plan fine-tunes in bfloat16 on a CPU that is slow in it."""
    from longrope.cost.bfloat16_speed import is_bfloat16_slow

    in_bfloat16 = any(stage.finetune is not None and stage.finetune.dtype == "bfloat16" for stage in plan.stages)
    if in_bfloat16 and device == "cpu" and is_bfloat16_slow():
        typer.echo(
            "Note: this CPU is slow in bfloat16: finetune.dtype = 'float32' in the plan is faster, in more memory",
            err=True,
        )


def words(launch: str) -> list[str]:
    """Split a command into its words.

    Raises:
        LongRopeError: If a quote is not closed.
    """
    from longrope.errors import LongRopeError

    try:
        return shlex.split(launch)
    except ValueError as error:
        raise LongRopeError(f"launch = {launch!r}: {str(error).lower()}") from None


def check_export(staged: StagedRun) -> None:
    """Refuse, before any work, an export that would be refused in the end.

    Raises:
        LongRopeError: If no config can express the extension that the plan leads to.
    """
    from longrope.export.hf_config import config_fields, for_mode, refuse_quantized
    from longrope.scaling import Extension, Scaling

    plan = staged.plan
    plan.check_fits(staged.rope)
    if plan.export == "none":
        return
    last, ones = len(plan.stages), [1.0] * (staged.rope.dim // 2)
    short = Scaling(ones, attention_factor=staged.short_attention_factor if plan.recovery is not None else 1.0)
    long = staged.scaling_from_file(last) or Scaling(
        ones, attention_factor=staged.attention_factor(last), length=plan.length
    )
    expected = Extension(staged.rope, short, long, plan.length)
    config = staged.config.to_dict()
    refuse_quantized(config)
    config_fields(config, for_mode(expected, plan.export))


def export(staged: StagedRun) -> Path | None:
    """Write the checkpoint that the plan asks for, if it does not exist yet, and return its folder."""
    from longrope.export.huggingface import export_huggingface
    from longrope.export.verify import fits_copy
    from longrope.formats.load_factors import load_extension
    from longrope.models.adapter import merge_adapter

    folder = staged.folder / "checkpoint"
    if staged.plan.export == "none":
        return None
    if not folder.exists():
        extension = load_extension(staged.folder / "extension.json")
        model, tokenizer = staged.load(staged.final_weights, dtype="auto")
        merge_adapter(model)
        name = options.short_name(staged.model)
        check = fits_copy(model)
        if not check:
            typer.echo(
                "Note: the checkpoint is not reopened and compared, because a copy in float32 does not fit in memory. "
                f"Run longrope check {folder} MODEL elsewhere.",
                err=True,
            )
        export_huggingface(model, tokenizer, extension, folder, mode=staged.plan.export, name=name, check=check)
    return folder


def results(staged: StagedRun) -> dict[str, Any]:
    """Return the run's results.json; empty if the plan measures nothing."""
    path = staged.folder / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def describe(staged: StagedRun, record: dict[str, Any], checkpoint: Path | None) -> None:
    """Print the table of perplexities, the cost at L0, and where everything is."""
    from longrope.evaluation.results import EvalResults

    if record:
        measured = EvalResults.load(staged.folder)
        eval_output.show(measured)
        eval_output.show_not_finite(measured)
        for name, percent in record["short_context"].items():
            lost = "perplexity is not finite" if percent is None else f"{percent:+.1f}% perplexity"
            typer.echo(f"at {staged.rope.original_length:,} tokens, {name}: {lost}")
        typer.echo(f"Results: {staged.folder / 'results.json'}; see longrope report {staged.folder}")
    typer.echo(f"Factors: {staged.folder / 'extension.json'}")
    if checkpoint is not None:
        typer.echo(f"Checkpoint: {checkpoint}")
        if staged.plan.export == "static" and staged.plan.recovery is not None:
            typer.echo("It is static: long factors at every length. The short ones are in extension.json alone.")
