"""``longrope scale``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longrope.cli import options
from longrope.lengths import parse_length


def run(
    model: options.Model,
    length: options.Length,
    scheme: Annotated[str, typer.Option(help="pi, ntk, dynamic_ntk, yarn, llama3 or heuristic.")] = "heuristic",
    attention: Annotated[str | None, typer.Option(help="su, yarn, none or a number (default: the scheme's).")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the factors to this file.")] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """The factors of a closed-form scheme, as a factors file (no search)."""
    from longrope.files import claim, write_text

    tokens = parse_length(length)
    if output is not None:
        claim(output, overwrite=overwrite)

    from dataclasses import replace

    from longrope.models.load import load_config
    from longrope.rope import Extension, Rope
    from longrope.schemes import attention_factor
    from longrope.schemes import scheme as choose

    rope = Rope.of(load_config(model))
    scaling = choose(scheme, rope, tokens)
    if attention is not None:
        scaling = replace(scaling, attention_factor=attention_factor(attention, rope, tokens))
    text = Extension.of(rope, scaling).to_json()
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_text(output, text)
        typer.echo(f"Factors: {output}", err=True)
