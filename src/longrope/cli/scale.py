"""``longrope scale``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longrope.cli import options
from longrope.cli.layer_notes import check_layers
from longrope.cli.table_names import listed
from longrope.errors import LongRopeError
from longrope.units import parse_length

if TYPE_CHECKING:
    from longrope.rope import Rope
    from longrope.scaling import Extension

SCHEME_NAMES = listed("longrope.schemes", "SCHEMES")
MODIFIER_NAMES = listed("longrope.scheme_modifiers", "MODIFIERS")


def run(
    model: options.Model,
    length: Annotated[
        str | None,
        typer.Option(
            "--length", "-l", help="Target length in tokens: 16k, 2m, 16384 (default: the length in --factors)."
        ),
    ] = None,
    scheme: Annotated[
        str | None,
        typer.Option(
            help=f"Scheme (default: heuristic): {SCHEME_NAMES}; + and a modifier after it: {MODIFIER_NAMES}; "
            "or original: every factor is 1, the model as it is past its window."
        ),
    ] = None,
    factors: Annotated[
        str | None, typer.Option(help=f"Use these factors instead of a scheme's. {options.FACTORS}")
    ] = None,
    attention: Annotated[str | None, typer.Option(help="su, yarn, none or a number (default: unchanged).")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the factors to this file.")] = None,
    original_length: options.OriginalLength = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Write a factors file without a search, from a closed-form scheme or from factors that others wrote."""
    from dataclasses import replace

    from longrope.storage.atomic import write_text

    tokens = None if length is None else parse_length(length)
    if scheme is not None and factors is not None:
        raise LongRopeError("--scheme and --factors exclude each other. Give one of them.")
    options.claim_file(output, overwrite=overwrite)

    from longrope.rope import Rope
    from longrope.scaling import ORIGINAL, Extension, Scaling
    from longrope.schemes import canonical
    from longrope.schemes import scheme as choose

    config = options.read_config(model, options.decided_length(original_length))
    rope = Rope.of(config)
    check_layers(config, tokens)
    if factors is not None:
        extension = read(factors, rope, tokens)
    elif tokens is None:
        raise LongRopeError("length is missing; give the target length with -l")
    else:
        identity = replace(Scaling.identity(rope), length=tokens)
        name = "heuristic" if scheme is None else scheme
        chosen = identity if name == ORIGINAL else choose(canonical(name, (ORIGINAL,)), rope, tokens)
        extension = Extension.of(rope, chosen)
    if attention is not None:
        extension = with_attention(extension, attention)
    text = extension.to_json()
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_text(output, text)
        typer.echo(f"Factors: {output}", err=True)


def read(path: str, rope: Rope, length: int | None) -> Extension:
    """Read a model's extension from a file, for another length if one is given.

    Raises:
        LongRopeError: The factors belong to another model, or their length is unknown.
    """
    from dataclasses import replace

    from longrope.scaling import Extension, check_rope

    scaling = options.read_factors(path)
    length = length or scaling.length
    if length is None:
        raise LongRopeError(f"length is missing: {path} does not name it. Give the target length with -l.")
    check_rope(scaling, rope, path)
    if not isinstance(scaling, Extension):
        return Extension.of(rope, replace(scaling, length=length))
    return replace(scaling, long=replace(scaling.long, length=length), length=length)


def with_attention(extension: Extension, policy: str) -> Extension:
    """Return an extension with another attention factor, also on the short set if both sets are equal."""
    from dataclasses import replace

    from longrope.schemes import attention_factor

    factor = attention_factor(policy, extension.rope, extension.length)
    static = extension.short.factors == extension.long.factors
    long = replace(extension.long, attention_factor=factor)
    return replace(extension, long=long, short=long if static else extension.short)
