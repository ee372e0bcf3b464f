"""``longrope demo``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longrope.cli import extend_output, options
from longrope.cli.progress import parts_bar

if TYPE_CHECKING:
    from longrope.stages.run_folder import StagedRun

MODEL, PLAN = "tiny", "demo"


def run(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for factors, plots and checkpoint.")] = Path(
        "demo"
    ),
    as_json: options.Json = False,
) -> None:
    """Extend the built-in model tiny from 256 to 2,048 tokens: the whole pipeline in minutes.

    It searches, fine-tunes a little, recovers the short context, compares, exports, checks and writes a report. Its
    documents are parts of this Python's standard library that the model was not trained on. OUTPUT is replaced.
    """
    from rich.console import Console

    from longrope.errors import LongRopeError
    from longrope.export.parity import check_parity
    from longrope.provenance import provenance
    from longrope.stages.begin_run import begin_run
    from longrope.stages.pipeline import extend as carry_out
    from longrope.stages.plan import load_plan
    from longrope.stages.run_folder import StagedRun
    from longrope.storage.atomic import write_json
    from longrope.storage.lock import LOCK, claim_output, locked

    console = Console(stderr=True, soft_wrap=True)
    if output.is_dir() and not is_demo(output):
        raise LongRopeError(f"{output} exists and holds no demo; choose another output with -o")
    claim_output(output, overwrite=True, folder=True)
    options.choose_device("cpu")  # quietens transformers
    with locked(output):
        for old in output.iterdir():
            if old.name != LOCK:
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        console.print("1. Search, fine-tune, recover the short context, compare on test documents")
        with parts_bar(quiet=as_json) as on_progress:
            staged = StagedRun(output, MODEL, load_plan(PLAN), dtype="float32", on_progress=on_progress)
            begin_run(staged, resume=False)
            write_json(output / "demo.json", {})  # marks the folder as one that the next demo may replace
            carry_out(staged)
        console.print("2. Export, and check in plain transformers")
        checkpoint, record = extend_output.export(staged), extend_output.results(staged)
        assert checkpoint is not None
        model, _ = options.open_model(staged.final_weights, "float32", "cpu")
        parity = check_parity(checkpoint, model)
        report = write_report(staged)
        record["parity"] = {row.length: row.difference for row in parity}
        write_json(output / "demo.json", record | {"provenance": provenance()})

    def show() -> None:
        extend_output.describe(staged, record, checkpoint)
        worst = max(row.difference for row in parity)
        verdict = "same" if all(row.ok for row in parity) else "DIFFERENT"
        typer.echo(f"plain transformers on the exported checkpoint: {verdict} logits (differ by {worst:.0e} at most)")
        typer.echo(f"Report: {report}")

    options.tell(record, as_json=as_json, text=show)
    if not all(row.ok for row in parity):
        raise typer.Exit(1)


def is_demo(folder: Path) -> bool:
    """Return whether a folder is empty, or holds a demo, even one that was killed as it began."""
    from longrope.stages.plan import load_plan
    from longrope.storage.lock import LOCK

    plan = folder / "plan.toml"
    if (folder / "demo.json").exists():
        return True
    if plan.exists() and plan.read_text(encoding="utf-8", errors="replace") != load_plan(PLAN).to_toml():
        return False
    started = {LOCK, "tokens", "plan.toml", "run.json"}
    return all(path.name in started or path.match(".*.tmp") for path in folder.iterdir())


def write_report(staged: StagedRun) -> Path:
    """Write the page of ``longrope report`` with its figures beside it; return its path."""
    from longrope.report.load import read_runs
    from longrope.report.report import report, write_pictures

    path = staged.folder / "report.html"
    report(staged.folder, path)
    write_pictures(read_runs([staged.folder]), staged.folder / "figures")
    return path
