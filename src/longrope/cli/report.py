"""``longrope report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longrope.cli import options
from longrope.cli.table_names import listed

if TYPE_CHECKING:
    from longrope.report.load import LoadedRun

FORMAT_NAMES = listed("longrope.report.formats", "FORMATS")


def run(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Folders of longrope eval, extend or search, or files of results.", metavar="RUN"),
    ],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File (default: print instead).")] = None,
    format_name: Annotated[
        str | None,
        typer.Option(
            "--format",
            help=f"{FORMAT_NAMES} (default: by the ending of OUTPUT, else html; text without OUTPUT).",
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Exported folder: the verdict says which engines run it as made (default: that in RUN, if any)."
        ),
    ] = None,
    figures: Annotated[Path | None, typer.Option(help="Also write every chart into this folder, SVG and PNG.")] = None,
    overwrite: options.Overwrite = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show the progress of one run until it is finished.")] = False,
) -> None:
    """Show measurements as one HTML page that needs no network, in the terminal, or as tables for a paper.

    The report begins with a verdict in three sentences: whether it works at length, what it costs at short length and
    whether it is better than the best closed form, and which engines run it as made. With several runs, candidates of
    one name are labelled by their run, and the report warns if the runs are not comparable. csv has a line for every
    record, the other formats have a table for every figure.
    """
    if watch:
        watch_run(runs, output or figures or checkpoint or format_name or overwrite or None)
        return

    from longrope.report.load import read_runs
    from longrope.storage.atomic import write_text
    from longrope.storage.lock import claim_output

    loaded = read_runs(runs, checkpoint=checkpoint)
    if figures is not None:
        claim_output(figures, overwrite=overwrite, folder=True)
    if output is not None or figures is None:
        options.claim_file(output, overwrite=overwrite)

    from longrope.report.formats import format_of, formatted

    text = None
    if format_name is not None or output is not None:
        text = formatted(loaded, format_name or format_of(str(output)))
    if figures is not None:
        from longrope.report.report import write_pictures

        write_pictures(loaded, figures)
        typer.echo(f"Figures: {figures}", err=output is None)
    if output is not None and text is not None:
        write_text(output, text)
        typer.echo(f"Report: {output}")
    elif text is not None:
        typer.echo(text, nl=False)
    else:
        show(loaded)


def show(runs: Sequence[LoadedRun]) -> None:
    """Print a report as wide as the terminal, in colours."""
    from rich.console import Console

    from longrope.report import terminal
    from longrope.report.all_figures import figures

    terminal.show(runs, figures(runs), Console())


def watch_run(runs: list[Path], other: object) -> None:
    """Show the progress of one run of ``longrope extend`` until it is finished.

    Raises:
        LongRopeError: If there are several runs, or the command has other options.
    """
    from rich.console import Console

    from longrope.cli.watch import watch
    from longrope.errors import LongRopeError

    if len(runs) != 1 or other is not None:
        raise LongRopeError("watch: it shows one run in the terminal. Give one folder and no other option.")
    watch(runs[0], Console())
