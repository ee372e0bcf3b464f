"""``longrope report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longrope.cli import options


def run(
    runs: Annotated[list[Path], typer.Argument(help="Folders of longrope eval, extend or search.", metavar="RUN...")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="HTML page (default: print instead).")] = None,
    figures: Annotated[Path | None, typer.Option(help="Also write every chart into this folder, SVG and PNG.")] = None,
    overwrite: options.Overwrite = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show the progress of one run until it is finished.")] = False,
) -> None:
    """Show measurements as one HTML page that needs no network, or in the terminal.

    With several runs, the report warns if they are not comparable.
    """
    if watch:
        watch_run(runs, output or figures)
        return

    from longrope.report.load import read_runs
    from longrope.storage.atomic import write_text
    from longrope.storage.lock import claim_output

    loaded = read_runs(runs)
    if output is not None:
        claim_output(output, overwrite=overwrite)
    if figures is not None:
        claim_output(figures, overwrite=overwrite, folder=True)

    from longrope.report.all_figures import figures as all_figures

    if figures is not None:
        from longrope.report.report import write_pictures

        write_pictures(loaded, figures)
        typer.echo(f"Figures: {figures}")
    if output is not None:
        from longrope.report.html import page

        write_text(output, page(loaded, all_figures(loaded)))
        typer.echo(f"Report: {output}")
    else:
        from rich.console import Console

        from longrope.report.terminal import show

        show(loaded, all_figures(loaded), Console())


def watch_run(runs: list[Path], written: Path | None) -> None:
    """Show the progress of one run of ``longrope extend`` until it is finished.

    Raises:
        LongRopeError: If there are several runs, or the command also writes files.
    """
    from rich.console import Console

    from longrope.cli.watch import watch
    from longrope.errors import LongRopeError

    if len(runs) != 1 or written is not None:
        raise LongRopeError("watch: it shows one run in the terminal. Give one folder, and drop -o and --figures.")
    watch(runs[0], Console())
