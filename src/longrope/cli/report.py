"""``longrope report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longrope.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from longrope.report.figure import Figure


def run(
    runs: Annotated[list[Path], typer.Argument(help="Folders of longrope eval, extend or search.", metavar="RUN...")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="HTML page (default: print instead).")] = None,
    figures: Annotated[Path | None, typer.Option(help="Also write every chart into this folder, SVG and PNG.")] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Show what was measured: as one HTML page that needs no network, or here.

    Several runs are compared; what makes them hard to compare is said.
    """
    from longrope.report.load import read_runs
    from longrope.storage.atomic import write_text
    from longrope.storage.lock import claim_output

    read = read_runs(runs)
    if output is not None:
        claim_output(output, overwrite=overwrite)
    if figures is not None:
        claim_output(figures, overwrite=overwrite, folder=True)

    from longrope.report.all_figures import figures as all_figures

    shown = all_figures(read)
    if figures is not None:
        write_figures(shown, figures)
        typer.echo(f"Figures: {figures}")
    if output is not None:
        from longrope.report.html import page

        write_text(output, page(read, shown))
        typer.echo(f"Report: {output}")
    else:
        from rich.console import Console

        from longrope.report.terminal import show

        show(read, shown, Console())


def write_figures(shown: Sequence[Figure], folder: Path) -> None:
    """Every chart as SVG and PNG."""
    from longrope.report.svg import save

    for figure in shown:
        if figure.chart is not None:
            save(figure.chart.properties(title=figure.title), folder / f"{figure.key}.svg")
            save(figure.chart.properties(title=figure.title), folder / f"{figure.key}.png")
