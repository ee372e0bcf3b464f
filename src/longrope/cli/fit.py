"""``longrope fit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longrope.cli import options
from longrope.errors import LongRopeError
from longrope.units import parse_length

if TYPE_CHECKING:
    from longrope.rope import Rope
    from longrope.scaling import Scaling

ROUNDING = 1e-9  # distances below it count as none
MEASURES = {
    "rms_log": "root mean square of log λ",
    "largest_log": "largest in log λ",
    "rms_turns": "root mean square of turns at L",
    "largest_turns": "largest in turns at L",
}


def run(
    factors: Annotated[str, typer.Argument(help=options.FACTORS)],
    model: Annotated[
        str | None, typer.Option(help="Model that the factors are for, where the file holds no geometry.")
    ] = None,
    length: Annotated[
        str | None, typer.Option("--length", "-l", help="Target length in tokens (default: the length in FACTORS).")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the YaRN to this factors file.")] = None,
    original_length: options.OriginalLength = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Find the YaRN nearest to factors, which engines read where they cannot use the factors themselves.

    Distances in log λ are least squares. Each pair counts by the part of a turn that it makes within the length, at
    most 1. The attention factor stays that of FACTORS. How much the YaRN loses is a matter for longrope eval.
    """
    tokens = None if length is None else parse_length(length)
    options.claim_file(output, overwrite=overwrite)

    from longrope.scaling import Extension
    from longrope.schemes import yarn
    from longrope.storage.atomic import write_text
    from longrope.yarn_fit import distances, fit_yarn

    rope, scaling = read(factors, model, tokens, original_length)
    fitted, parameters = fit_yarn(rope, scaling)
    assert scaling.length is not None
    plain = distances(rope, scaling, yarn(rope, scaling.length))
    record = {
        "length": scaling.length,
        **parameters,
        "attention_factor": fitted.attention_factor,
        "distance": distances(rope, scaling, fitted),
        "plain_yarn_distance": plain,
    }
    if output is not None:
        write_text(output, Extension.of(rope, fitted).to_json())
    options.tell(record, as_json=as_json, text=lambda: show(record, rope, output))


def read(path: str, model: str | None, length: int | None, original_length: str | None) -> tuple[Rope, Scaling]:
    """Return the geometry and the long factors of a file, with their target length.

    Raises:
        LongRopeError: The file has no factors, no geometry or no length, or its factors are for another model.
    """
    from dataclasses import replace

    from longrope.scaling import Extension, check_rope

    rope, scaling = options.rope_of_model(model, original_length), options.read_factors(path)
    if rope is not None:
        check_rope(scaling, rope, path)
    elif isinstance(scaling, Extension):
        rope = scaling.rope
    else:
        raise LongRopeError(f"{path}: these factors come without a model's geometry. Name the model with --model.")
    length = length or scaling.length
    if length is None:
        raise LongRopeError(f"length is missing: {path} does not name it. Give the target length with -l.")
    return rope, replace(scaling.long if isinstance(scaling, Extension) else scaling, length=length)


def show(record: dict[str, Any], rope: Rope, output: Path | None) -> None:
    """Print the parameters, the distances beside those of plain YaRN, and where plain YaRN is nearer."""
    from rich.console import Console
    from rich.table import Table

    fit, plain = record["distance"], record["plain_yarn_distance"]
    scale = rope.scale(record["length"])
    console = Console(markup=False, highlight=False)
    console.print(
        f"Nearest YaRN for {record['length']:,} tokens (s = {scale:g}): beta_fast {record['beta_fast']:.6g}, beta_slow "
        f"{record['beta_slow']:.6g}, factor {record['factor']:.6g}, attention factor {record['attention_factor']:.6g}"
    )
    table = Table("distance from the factors", "nearest YaRN", f"plain YaRN (32, 1, {scale:g})", box=None)
    for name, title in MEASURES.items():
        table.add_row(title, *(f"{row[name]:.4g}" if row[name] > ROUNDING else "0" for row in (fit, plain)))
    console.print(table)
    worse = [title for name, title in MEASURES.items() if fit[name] > plain[name] + ROUNDING]
    if worse:
        console.print(f"Warning: plain YaRN is nearer by the {' and the '.join(worse)}.", soft_wrap=True)
    if output is not None:
        console.print(f"Factors: {output}", soft_wrap=True)
