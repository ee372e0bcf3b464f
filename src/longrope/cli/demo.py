"""``longrope demo``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longrope.cli import extend, options
from longrope.cli.progress import parts_bar

if TYPE_CHECKING:
    from longrope.extension.run import Run

MODEL, PLAN = "tiny", "demo"


def run(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for factors, plots and checkpoint.")] = Path(
        "demo"
    ),
    as_json: options.Json = False,
) -> None:
    """The whole job in minutes: extend the built-in model ``tiny`` from 256 to 2,048 tokens.

    It searches, fine-tunes a little, recovers the short context, compares, exports and checks. Its documents are parts
    of this Python's standard library that the model was not trained on. OUTPUT is replaced.
    """
    from rich.console import Console

    from longrope.export.check import check_parity
    from longrope.extension.pipeline import extend as carry_out
    from longrope.extension.plan import load_plan
    from longrope.extension.run import Run, begin
    from longrope.files import claim, write_json
    from longrope.report.provenance import provenance

    console = Console(stderr=True, soft_wrap=True)
    claim(output, overwrite=(output / "demo.json").exists(), folder=True)
    shutil.rmtree(output, ignore_errors=True)
    options.choose_device("cpu")  # quietens transformers
    console.print("1. Search, fine-tune, recover the short context, compare on test documents")
    with parts_bar(quiet=as_json) as tell:
        work = Run(output, MODEL, load_plan(PLAN), dtype="float32", tell=tell)
        begin(work, resume=False)
        write_json(output / "demo.json", {})  # marks the folder as one that the next demo may replace
        carry_out(work)
    console.print("2. Export, and check in plain transformers")
    checkpoint, record = extend.export(work), extend.results(work)
    assert checkpoint is not None
    model, _ = options.open_model(work.weights(len(work.plan.stages) + 1), "float32", "cpu")
    parity = check_parity(checkpoint, model)
    plots(work)
    record["parity"] = {row.length: row.difference for row in parity}
    write_json(output / "demo.json", record | {"provenance": provenance()})

    def show() -> None:
        extend.describe(work, record, checkpoint)
        worst, same = max(row.difference for row in parity), all(row.ok for row in parity)
        verdict = "same" if same else "DIFFERENT"
        typer.echo(f"plain transformers on the exported checkpoint: {verdict} logits (differ by {worst:.0e} at most)")
        typer.echo(f"plots: {output}/")

    options.tell(record, as_json=as_json, text=show)
    if not all(row.ok for row in parity):
        raise typer.Exit(1)


def plots(work: Run) -> None:
    """Factor curves of the schemes and of what was found; perplexity by length."""
    from longrope.files import load_factors
    from longrope.report.plots import plot_factors, plot_perplexity
    from longrope.rope import Extension
    from longrope.schemes import scheme

    extension = load_factors(work.folder / "extension.json")
    assert isinstance(extension, Extension)
    schemes = {name: scheme(name, work.rope, work.plan.length) for name in work.plan.evaluation.schemes}
    found = {"searched": extension.long, "recovered (short)": extension.short}
    plot_factors(work.rope, schemes | found, work.folder / "factors.png")
    plot_perplexity(extend.table(extend.results(work)), work.rope.original_length, work.folder / "perplexity.png")
