"""``longrope compare-factors``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longrope.cli import options
from longrope.errors import LongRopeError
from longrope.units import parse_length

if TYPE_CHECKING:
    from longrope.report.compare_factors import Compared

PICTURES, PAGES = (".svg", ".png"), (".html", ".htm")


def run(
    factors: Annotated[list[str], typer.Argument(help=options.FACTORS, metavar="FACTORS")],
    model: Annotated[
        str | None, typer.Option(help="Model that the factors are for, where no file holds its geometry.")
    ] = None,
    length: Annotated[
        str | None,
        typer.Option(
            "--length", "-l", help="L in tokens, at which turns are counted (default: the longest of FACTORS)."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Page (.html) or picture (.svg, .png) of the comparison.")
    ] = None,
    original_length: options.OriginalLength = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Compare factors of one model side by side: λ of every pair, and how many turns they are apart at L.

    The first FACTORS are what the others are compared with. An extension shows its long set, and a short one that is
    neither the same nor the original RoPE. Nothing is measured: longrope eval says what a difference means for the
    model.
    """
    tokens = None if length is None else parse_length(length)
    if len(set(factors)) < len(factors):
        raise LongRopeError(f"factors = {', '.join(factors)}: a file is given twice. Give it once.")
    if output is not None and output.suffix not in PICTURES + PAGES:
        raise LongRopeError(f"output = {str(output)!r}: not a page or a picture. Write .html, .svg or .png.")
    options.claim_file(output, overwrite=overwrite)

    from longrope.report.compare_factors import compared

    rope = options.rope_of_model(model, original_length)
    comparison = compared({path: options.read_factors(path) for path in factors}, rope=rope, length=tokens)
    if output is not None:
        write(comparison, output)
    options.tell(record(comparison), as_json=as_json, text=lambda: show(comparison, output))


def record(comparison: Compared) -> dict[str, Any]:
    """Return a comparison as JSON values."""
    from longrope.report.compare_factors import distances_from_first

    distances = distances_from_first(comparison)
    return {
        "length": comparison.length,
        "against": next(iter(comparison.scalings)),
        "wavelengths": comparison.rope.wavelengths.tolist(),
        "factors": {
            name: {
                "length": scaling.length,
                "attention_factor": scaling.attention_factor,
                "factors": list(scaling.factors),
                "turns": comparison.turns(name).tolist(),
                "distance": distances[name],
            }
            for name, scaling in comparison.scalings.items()
        },
    }


def write(comparison: Compared, output: Path) -> None:
    """Write a page or a picture of a comparison."""
    from longrope.report.charts import draw
    from longrope.report.compare_factors import comparison_figures
    from longrope.report.factor_figures import factors_figure
    from longrope.report.html import figures_page
    from longrope.report.style import looks
    from longrope.report.svg import save
    from longrope.storage.atomic import write_text

    names = looks(comparison.scalings)
    if output.suffix in PAGES:
        write_text(output, figures_page("Factors side by side", comparison_figures(comparison), names))
        return
    figure = factors_figure(comparison.rope, comparison.scalings)
    assert figure.chart is not None
    save(draw(figure.chart, names).properties(title=figure.title), output)


def show(comparison: Compared, output: Path | None) -> None:
    """Print the tables of a comparison, and the path of what was written."""
    from rich.console import Console

    from longrope.report.compare_factors import comparison_figures
    from longrope.report.terminal import table_of

    console = Console()
    for figure in comparison_figures(comparison):
        console.print(table_of(figure))
        console.print(figure.says, style="dim", markup=False, highlight=False)
        console.print()
    if output is not None:
        typer.echo(f"Comparison: {output}")
