"""``longrope export``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from longrope.cli import options


def run(
    model: options.Model,
    factors: Annotated[str, typer.Argument(help="Run folder of a search, or a factors file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the checkpoint.")],
    mode: Annotated[str, typer.Option(help="dual (short and long factors) or static (the long ones always).")] = "dual",
    dtype: options.Dtype = "auto",
    overwrite: options.Overwrite = False,
) -> None:
    """A Hugging Face checkpoint with the factors in its config: weights, tokenizer, generation config, model card."""
    options.claim(output, overwrite=overwrite)

    from longrope.export.config import for_mode
    from longrope.export.huggingface import export_huggingface
    from longrope.rope import Extension, Rope

    extension = options.read_factors(factors)
    loaded, tokenizer = options.open_model(model, dtype, "cpu")
    if not isinstance(extension, Extension):
        extension = Extension.of(Rope.of(loaded), extension)
    for_mode(extension, mode)
    if output.exists():
        shutil.rmtree(output)
    export_huggingface(loaded, tokenizer, extension, output, mode=mode, name=Path(model).stem)
    typer.echo(f"Checkpoint: {output}   (compare it: longrope check {output} {model})", err=True)
