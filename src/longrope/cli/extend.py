"""``longrope extend`` and ``longrope finetune``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longrope.cli import distributed, eval_output, options
from longrope.cli.progress import parts_bar

if TYPE_CHECKING:
    from longrope.stages.plan import Plan
    from longrope.stages.run_folder import StagedRun

Reports = Annotated[str, typer.Option(help="Where fine-tuning reports to: tensorboard, wandb, trackio …")]


def run(
    model: options.Model,
    plan: Annotated[str, typer.Argument(help="Plan file (longrope plan writes one), or the name of a ready-made one.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder (default: MODEL-LENGTH).")] = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    launch: Annotated[
        str,
        typer.Option(help="Command that fine-tunes in several processes, such as 'accelerate launch --use_fsdp'."),
    ] = "",
    report_to: Reports = "none",
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.")] = False,
    as_json: options.Json = False,
) -> None:
    """Carry out a plan: search, fine-tune, search again …, recover the short context, measure, export.

    OUTPUT gets a folder for every stage, extension.json, results.json and the folder checkpoint.
    """
    from longrope.stages.plan import load_plan
    from longrope.units import short_length

    distributed.refuse("--launch")
    wanted = load_plan(plan)
    output = output or Path(f"{options.short_name(model)}-{short_length(wanted.length)}")

    from longrope.cost.plan_cost import check_plan_memory
    from longrope.models.load import load_config
    from longrope.stages.pipeline import extend
    from longrope.stages.run_folder import StagedRun, begin_run, open_run
    from longrope.storage.lock import locked

    if wanted.data.source is None:
        data = wanted.data.model_copy(update={"source": options.default_data(model, None)})
        wanted = wanted.model_copy(update={"data": data})
    place = options.choose_device(device)

    def check_memory(dtype: str) -> None:
        check_plan_memory(wanted, load_config(model), dtype=dtype, device=place)

    begun = (output / "run.json").exists()
    dtype = options.choose_dtype(
        dtype, model, place, check_memory, recorded=open_run(output).dtype if begun and resume else None
    )
    note_slow_finetuning(wanted, place)
    with parts_bar(quiet=as_json) as tell:
        work = StagedRun(
            output,
            model,
            wanted,
            device=place,
            dtype=dtype,
            report_to=report_to,
            launch=words(launch),
            tell=tell,
        )
        with locked(output):
            if not begun:
                check_export(work)
                if not work.launch:
                    check_memory(dtype)
            begin_run(work, resume=resume)
            extend(work)
            exported = export(work)
    record = results(work)
    options.tell(record, as_json=as_json, text=lambda: describe(work, record, exported))


def finetune(
    folder: Annotated[Path, typer.Argument(help="Folder of longrope extend.")],
    stage: Annotated[int, typer.Argument(min=1, help="Number of the stage: 1, 2 …")],
    device: options.Device = "auto",
    report_to: Reports = "none",
) -> None:
    """Fine-tune one stage of a run: what longrope extend --launch starts in every process."""
    from longrope.errors import LongRopeError
    from longrope.stages.pipeline import train
    from longrope.stages.run_folder import open_run

    with parts_bar(quiet=False) as tell:
        work = open_run(folder, device=options.choose_device(device), report_to=report_to, tell=tell)
        stages = work.plan.stages
        if stage > len(stages) or stages[stage - 1].finetune is None:
            raise LongRopeError(f"stage = {stage}: the plan of {folder} fine-tunes no such stage")
        if not (work.stage(stage) / "extension.json").exists():
            raise LongRopeError(f"stage = {stage}: {folder} has no factors for it yet; run longrope extend --resume")
        if (work.stage(stage) / "model").exists():
            raise LongRopeError(f"stage = {stage} is fine-tuned already; remove {work.stage(stage) / 'model'} first")
        train(work, stage)


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
    """The words of a command.

    Raises:
        LongRopeError: if a quote is not closed.
    """
    from longrope.errors import LongRopeError

    try:
        return shlex.split(launch)
    except ValueError as error:
        raise LongRopeError(f"launch = {launch!r}: {str(error).lower()}") from None


def check_export(work: StagedRun) -> None:
    """Refuse, before any work, an export that would be refused in the end.

    Raises:
        LongRopeError: if no config can express what the plan leads to.
    """
    from longrope.export.hf_config import config_fields, for_mode
    from longrope.models.load import load_config
    from longrope.scaling import Extension, Scaling

    plan = work.plan
    plan.fits(work.rope)
    if plan.export == "none":
        return
    short, pairs = work.short_attention if plan.recovery is not None else 1.0, work.rope.dim // 2
    last = len(plan.stages)
    long = work.given(last) or Scaling([1.0] * pairs, attention_factor=work.attention(last), length=plan.length)
    like = Extension(work.rope, Scaling([1.0] * pairs, attention_factor=short), long, plan.length)
    config_fields(load_config(work.model).to_dict(), for_mode(like, plan.export))


def export(work: StagedRun) -> Path | None:
    """The checkpoint that the plan asks for, if it is not there yet."""
    from longrope.export.huggingface import export_huggingface
    from longrope.formats.load_factors import load_extension
    from longrope.models.load import load

    folder = work.folder / "checkpoint"
    if work.plan.export == "none":
        return None
    if not folder.exists():
        extension = load_extension(work.folder / "extension.json")
        model, tokenizer = load(work.final_weights)
        name = options.short_name(work.model)
        export_huggingface(model, tokenizer, extension, folder, mode=work.plan.export, name=name)
    return folder


def results(work: StagedRun) -> dict[str, Any]:
    """What was measured; empty if the plan measures nothing."""
    import json

    path = work.folder / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def describe(work: StagedRun, record: dict[str, Any], exported: Path | None) -> None:
    """Print the table of perplexities, the cost at L0, and where everything is."""
    from longrope.evaluation.results import EvalResults

    if record:
        eval_output.show(EvalResults.load(work.folder))
        for name, percent in record["short_context"].items():
            typer.echo(f"at {work.rope.original_length:,} tokens, {name}: {percent:+.1f}% perplexity")
        typer.echo(f"Results: {work.folder / 'results.json'}; see longrope report {work.folder}")
    typer.echo(f"Factors: {work.folder / 'extension.json'}")
    if exported is not None:
        typer.echo(f"Checkpoint: {exported}")
        if work.plan.export == "static" and work.plan.recovery is not None:
            typer.echo("It is static: long factors at every length. The short ones are in extension.json alone.")
