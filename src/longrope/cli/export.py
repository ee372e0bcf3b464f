"""``longrope export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longrope.cli import options
from longrope.errors import LongRopeError


def run(
    model: options.Model,
    factors: Annotated[str, typer.Argument(help="Run folder of a search, or a factors file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the checkpoint.")],
    mode: Annotated[
        str, typer.Option(help="static (long factors always) or dual (needs --attention none).")
    ] = "static",
    dtype: options.Dtype = "auto",
    overwrite: options.Overwrite = False,
) -> None:
    """A Hugging Face checkpoint with the factors in its config: weights, tokenizer, generation config, model card."""
    from longrope.export.config import MODES
    from longrope.files import claim

    if mode not in MODES:
        raise LongRopeError(f"mode = {mode!r} is unknown; choose dual or static")
    claim(output, overwrite=overwrite, folder=True)

    from longrope.export.card import OFF_FORMULA
    from longrope.export.config import on_formula
    from longrope.export.huggingface import export_huggingface
    from longrope.rope import Extension, Rope

    extension = options.read_factors(factors)
    loaded, tokenizer = options.open_model(model, dtype, "cpu")
    if not isinstance(extension, Extension):
        extension = Extension.of(Rope.of(loaded), extension)
    name = options.short_name(model)
    export_huggingface(loaded, tokenizer, extension, output, mode=mode, name=name, overwrite=overwrite)
    if not on_formula(extension):
        typer.echo(f"Note: {OFF_FORMULA}", err=True)
    typer.echo(f"Checkpoint: {output}   (compare it: longrope check {output} {model})", err=True)
