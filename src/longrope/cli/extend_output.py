"""What ``longrope extend`` writes and prints when a run ends, or is interrupted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from longrope.cli import eval_output, options

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from longrope.scaling import Extension
    from longrope.stages.run_folder import StagedRun

SO_FAR = "checkpoint-so-far"


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
    """Write the checkpoint that the plan asks for, if it does not exist yet, and return its folder.

    Raises:
        LongRopeError: If it cannot be written, or not be compared; then the message has the command that does not.
    """
    from longrope.errors import LongRopeError
    from longrope.export.verify import REMEDY
    from longrope.formats.load_factors import load_extension
    from longrope.stages.trainer_checkpoints import explain_disk_errors

    folder = staged.folder / "checkpoint"
    if staged.plan.export == "none":
        return None
    if not folder.exists():
        staged.on_progress("export", 0, 1, "")
        extension = load_extension(staged.folder / "extension.json")
        try:
            with explain_disk_errors(folder):
                _write(staged, *staged.load(staged.final_weights, dtype="auto"), extension, folder)
        except LongRopeError as error:
            model = _model_words(staged)
            command = f"longrope export {model} --factors {staged.folder} -o {folder} --mode {staged.plan.export}"
            remedy = f"Export without the comparison: {command} --no-check; then continue with --resume."
            raise LongRopeError(str(error).replace(REMEDY, remedy)) from error
        staged.on_progress("export", 1, 1, "")
    return folder


def finish(staged: StagedRun) -> tuple[dict[str, Any], Path | None]:
    """Export a run's result and write its page; return the results and the folder of the checkpoint."""
    record = results(staged)
    try:
        return record, export(staged)
    finally:  # with the engines that run the checkpoint, or without
        if record:
            write_page(staged)


def export_so_far(staged: StagedRun) -> Path | None:
    """Write the checkpoint of the best weights and factors so far, for a run that was interrupted; None without any."""
    from longrope.stages.best_so_far import load_best_so_far
    from longrope.stages.trainer_checkpoints import explain_disk_errors

    if (staged.folder / "checkpoint").exists():
        return staged.folder / "checkpoint"
    best = load_best_so_far(staged) if (staged.folder / "run.json").exists() else None
    if best is None:
        return None
    folder = staged.folder / SO_FAR
    shutil.rmtree(folder, ignore_errors=True)
    with explain_disk_errors(folder):
        _write(staged, *best, folder)
    return folder


def _model_words(staged: StagedRun) -> str:
    """Return the final weights as words of a command line, with the plan's L0."""
    original = staged.plan.original_length
    return staged.final_weights + ("" if original is None else f" --original-length {original}")


def _write(
    staged: StagedRun,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    extension: Extension,
    folder: Path,
) -> None:
    from longrope.export.huggingface import export_huggingface
    from longrope.export.verify import fits_copy
    from longrope.models.adapter import merge_adapter

    merge_adapter(model)
    check = fits_copy(model)
    if not check:
        reason = "because a copy in float32 does not fit in memory"
        remedy = "" if folder.name == SO_FAR else f" Run longrope check {folder} {_model_words(staged)} elsewhere."
        typer.echo(f"Note: the checkpoint is not reopened and compared, {reason}.{remedy}", err=True)
    mode = "static" if staged.plan.export == "none" else staged.plan.export
    export_huggingface(
        model, tokenizer, extension, folder, mode=mode, name=options.short_name(staged.model), check=check
    )


def results(staged: StagedRun) -> dict[str, Any]:
    """Return the run's results.json; empty if the plan measures nothing."""
    path = staged.folder / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def describe(staged: StagedRun, record: dict[str, Any], checkpoint: Path | None) -> None:
    """Print the table of perplexities, the cost at L0, and where everything is."""
    from longrope.evaluation.results import EvalResults
    from longrope.report.verdict import verdict_of

    if record:
        measured = EvalResults.load(staged.folder)
        eval_output.show(measured)
        eval_output.show_not_finite(measured)
        for name, percent in record["short_context"].items():
            lost = "perplexity is not finite" if percent is None else f"{percent:+.1f}% perplexity"
            typer.echo(f"at {staged.rope.original_length:,} tokens, {name}: {lost}")
        for sentence in verdict_of(staged.folder):
            typer.echo(sentence)
        typer.echo(f"Results: {staged.folder / 'results.json'}; see longrope report {staged.folder}")
    typer.echo(f"Factors: {staged.folder / 'extension.json'}")
    command = f"longrope chat {_model_words(staged)} --factors {staged.folder}"
    if checkpoint is None and staged.leaves_adapter:
        typer.echo(f"Adapter: {staged.final_weights}; {command} uses it beyond L0.")
    if checkpoint is not None:
        typer.echo(f"Checkpoint: {checkpoint}")
        if staged.plan.export == "static" and staged.plan.recovery is not None:
            typer.echo("It is static: long factors at every length. The short ones are in extension.json alone.")
        elif staged.plan.export == "static" and staged.leaves_adapter:
            typer.echo("It has the adapter and the long factors at every length.")
            typer.echo(f"{command} uses them beyond L0 only, as in the measurement.")


def write_page(staged: StagedRun) -> Path:
    """Write the page of ``longrope report`` into the run's folder, unless it is newer than the checkpoint."""
    from longrope.report.report import report

    path, checkpoint = staged.folder / "report.html", staged.folder / "checkpoint"
    if not path.exists() or (checkpoint.exists() and checkpoint.stat().st_mtime > path.stat().st_mtime):
        report(staged.folder, path)
    return path


def tell_so_far(staged: StagedRun) -> None:
    """Export the best so far of a run that was interrupted, and say where it is."""
    from longrope.errors import LongRopeError

    try:
        folder = export_so_far(staged)
    except (LongRopeError, OSError) as error:
        typer.echo(f"Note: the best so far is not exported: {error}", err=True)
        return
    typer.echo(f"Best so far: {folder or 'nothing yet, as the run has no factors'}", err=True)
