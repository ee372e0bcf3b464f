"""``longrope export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longrope.cli import options


def run(
    model: options.Model,
    factors: Annotated[str, typer.Argument(help="Run folder of a search, or a factors file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the checkpoint.")],
    mode: Annotated[
        str, typer.Option(help="static (long factors at every length) or dual (short up to L0).")
    ] = "static",
    dtype: options.Dtype = "auto",
    overwrite: options.Overwrite = False,
) -> None:
    """A Hugging Face checkpoint with the factors in its config: weights, tokenizer, generation config, model card."""
    from longrope.files import claim

    claim(output, overwrite=overwrite, folder=True)

    from longrope.export.huggingface import export_huggingface
    from longrope.rope import Extension, Rope

    extension = options.read_factors(factors)
    loaded, tokenizer = options.open_model(model, dtype, "cpu")
    if not isinstance(extension, Extension):
        extension = Extension.of(Rope.of(loaded), extension)
    name = Path(model).stem
    export_huggingface(loaded, tokenizer, extension, output, mode=mode, name=name, overwrite=overwrite)
    typer.echo(f"Checkpoint: {output}   (compare it: longrope check {output} {model})", err=True)
