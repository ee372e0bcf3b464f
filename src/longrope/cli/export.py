"""``longrope export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longrope.cli import options
from longrope.cli.layer_notes import note_rope
from longrope.errors import LongRopeError, unknown
from longrope.export.registry import EXPORTERS

if TYPE_CHECKING:
    from longrope.scaling import Extension

FORMATS = ", ".join(f"{name}: {exporter.summary}" for name, exporter in EXPORTERS.items())


def run(
    model: options.Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder or file to write.")],
    after_model: Annotated[str | None, typer.Argument(hidden=True, metavar="FACTORS")] = None,  # habit: MODEL FACTORS
    factors: Annotated[
        str | None,
        typer.Option("--factors", help=f"{options.FACTORS} For a MODEL that longrope extended already, only its own."),
    ] = None,
    to: Annotated[str, typer.Option(help=f"Format. {FORMATS}.")] = "huggingface",
    config_only: Annotated[bool, typer.Option("--config-only", help="Write no weights: --to config.")] = False,
    mode: Annotated[
        str | None,
        typer.Option(help="static: long factors always (default with --factors). dual: both; needs --attention none."),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            help=f"Dtype of the weights: {options.DTYPE_NAMES}, the checkpoint's. Not with --config-only or of a .gguf."
        ),
    ] = "auto",
    outtype: Annotated[
        str, typer.Option(help="Type of a GGUF's matrices: auto (as --dtype), f32, f16, q8_0 …")
    ] = "auto",
    no_check: Annotated[
        bool,
        typer.Option(
            "--no-check", help="Do not reopen the checkpoint and compare its logits, which takes a copy in float32."
        ),
    ] = False,
    original_length: options.OriginalLength = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Write a checkpoint with the factors in it, for other programs to load.

    Without --factors, MODEL is a checkpoint that longrope extended, or the run folder of an extension. In the end a
    fresh process of plain transformers reopens the checkpoint. If its logits are not those of the model with the
    factors, the command fails and leaves no checkpoint.
    """
    from longrope.export.carried_factors import extension_to_write
    from longrope.export.exporter import ExportOptions, ExportRequest
    from longrope.export.hf_config import MODES
    from longrope.export.registry import find_exporter
    from longrope.rope import Rope
    from longrope.storage.lock import claim_output, locked

    if config_only and to not in ("huggingface", "config"):
        raise LongRopeError(f"to = {to!r} with --config-only: only a folder can be without weights. Leave one out.")
    to = "config" if config_only else to
    exporter = find_exporter(to, outtype)
    if no_check and not exporter.compared:
        raise LongRopeError(f"to = {to!r} with --no-check: this format is not compared anyway. Leave --no-check out.")
    if mode not in (None, *MODES):
        raise unknown("mode", mode, MODES)
    if factors is not None and after_model is not None:
        raise LongRopeError(f"factors = {factors!r} and {after_model!r}: given twice. Give them once, with --factors.")
    factors = factors or after_model
    output = output if output.name else output.resolve()
    claim_output(output, overwrite=overwrite, folder=exporter.folder)
    options.choose_device("cpu")  # quietens transformers
    decided = options.decided_length(original_length)
    if factors is not None:
        config = options.read_config(model, decided)
        rope = Rope.of(config)
        note_rope(config)
        mode = mode or "static"
        weights, scaling = model, options.read_factors(factors)
        options.check_weights(model, factors)
        extension = extension_to_write(config.to_dict(), scaling, rope, mode, source=factors)
    elif decided is not None:
        raise LongRopeError(f"original_length = {decided}: {model} is extended already. Leave it out.")
    else:
        weights, extension = _find_extended(Path(model))
        mode = mode or "dual"
    with locked(output, folder=False):
        request = ExportRequest(
            weights,
            None,
            extension,
            output,
            name=options.short_name(weights),
            mode=mode,
            dtype=dtype,
            options=ExportOptions(outtype, overwrite, check=not no_check, original_length=decided),
        )
        written = exporter.write(request)
    for line in exporter.next_steps(request, written):
        typer.echo(line, err=True)


def _find_extended(folder: Path) -> tuple[str, Extension]:
    """Return the checkpoint in a folder that longrope wrote, and the extension that it holds.

    Raises:
        LongRopeError: The folder is neither a checkpoint with an ``extension.json`` nor a run with such a checkpoint.
    """
    from longrope.formats.load_factors import load_extension

    checkpoint = folder / "checkpoint" if (folder / "checkpoint").is_dir() else folder
    if not (checkpoint / "config.json").is_file() or not (checkpoint / "extension.json").is_file():
        raise LongRopeError(
            f"factors are missing: {folder} is not a checkpoint that longrope extended. "
            "Give a run folder or a factors file with --factors."
        )
    return str(checkpoint), load_extension(checkpoint)
