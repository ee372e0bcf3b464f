"""``longrope inspect``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from longrope.cli import options
from longrope.cli.layer_notes import check_layers
from longrope.units import parse_length

if TYPE_CHECKING:
    from longrope.models.attention_layers import LayerSurvey
    from longrope.rope import Rope
    from longrope.scaling import Scaling


def run(
    model: options.Model,
    length: Annotated[str | None, typer.Option("--length", "-l", help="Target length (default: 8 times L0).")] = None,
    schemes: Annotated[str, typer.Option(help="Schemes by commas, or all.")] = options.COMPARED_NAMES,
    factors: Annotated[str | None, typer.Option(help=f"Show these factors too. {options.FACTORS}")] = None,
    original_length: options.OriginalLength = None,
    as_json: options.Json = False,
) -> None:
    """Show a model's rotary pairs: wavelength, whether training completed a turn, and the factors of schemes."""
    target = None if length is None else parse_length(length)

    from longrope.formats.length_source import length_source
    from longrope.formats.lengths import checkpoint_lengths
    from longrope.rope import Rope
    from longrope.scaling import Extension, check_rope
    from longrope.schemes import SCHEMES, scheme

    config = options.read_config(model, options.decided_length(original_length))
    rope = Rope.of(config)
    lengths = checkpoint_lengths(config)
    source = length_source(config, rope) if original_length is None else "--original-length"
    target = target or 8 * rope.original_length
    layers = check_layers(config, target)
    names = [*SCHEMES] if schemes == "all" else options.parse_schemes(schemes)
    scalings = {name: scheme(name, rope, target) for name in names}
    if factors is not None:
        scaling = options.read_factors(factors)
        check_rope(scaling, rope, factors)
        scalings |= (
            {"short": scaling.short, "long": scaling.long} if isinstance(scaling, Extension) else {"read": scaling}
        )
    record: dict[str, Any] = {
        "dim": rope.dim,
        "rope_theta": rope.base,
        "original_length": rope.original_length,
        "original_length_from": source,
        "critical_pair": rope.critical_pair,
        "length": target,
        "checkpoint_lengths": lengths,
        "wavelengths": rope.wavelengths.tolist(),
        "factors": {name: list(scaling.factors) for name, scaling in scalings.items()},
        "attention_factors": {name: scaling.attention_factor for name, scaling in scalings.items()},
    }
    record |= layer_record(layers)
    options.tell(record, as_json=as_json, text=lambda: show(model, rope, source, scalings, target, layers))


def layer_record(survey: LayerSurvey) -> dict[str, Any]:
    """Return the JSON values that describe a model's attention layers."""
    return {
        "layers": survey.layers,
        "attention_layers": [
            {"layer": layer.index, "rotates": layer.rotates, "window": layer.window} for layer in survey.attention
        ],
    }


def show(model: str, rope: Rope, source: str, scalings: dict[str, Scaling], length: int, layers: LayerSurvey) -> None:
    """Print L0 and its source, the table of pairs, and which layers rotate where not all do over all tokens."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(markup=False)
    console.print(
        f"{model}: {rope.dim} rotated dimensions, rope_theta {rope.base:,.0f}, L0 = {rope.original_length:,} tokens; "
        f"factors for {length:,} tokens (s = {rope.scale(length):g})"
    )
    console.print(f"L0 is from {source}.")
    if (description := layers.describe()) is not None:
        console.print(description)
    console.width = max(console.width, 36 + 12 * len(scalings))  # a narrow terminal wraps, rather than crops, numbers
    table = Table("pair", "wavelength", "turns", "trained", *scalings, box=None, padding=(0, 1, 0, 0))
    for i, wavelength in enumerate(rope.wavelengths):
        turns = rope.original_length / wavelength
        trained = "yes" if i < rope.critical_pair else Text("no", style="yellow")
        factors = [f"{scaling.factors[i]:.3f}" for scaling in scalings.values()]
        table.add_row(str(i), f"{wavelength:,.1f}", f"{turns:,.2f}", trained, *factors)
    console.print(table)
    attention = [f"{name} {scaling.attention_factor:.3f}" for name, scaling in scalings.items()]
    console.print(f"Attention factors: {', '.join(attention)}.")
    console.print(
        f"Pairs from {rope.critical_pair} on (the critical pair) never finished a turn within L0: "
        "positions beyond L0 show the model angles that it was not trained on."
    )
