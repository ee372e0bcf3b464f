"""Print the results of an evaluation."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from longrope.evaluation.results import EvalResults


def describe(results: EvalResults, output: Path | None) -> None:
    """Print the table of perplexities, scores of tasks, and the path of the results."""
    show(results)
    for name, records in results.get("retrieval").items():
        by_task: dict[tuple[str, int], list[float]] = {}
        for record in records:
            by_task.setdefault((record.task, record.length), []).append(record.score)
        scores = ", ".join(f"{task} {length:,}: {fmean(scores):.0%}" for (task, length), scores in by_task.items())
        typer.echo(f"{name}: {scores}")
    for name, records in results.get("tasks").items():
        for task in dict.fromkeys(record.task for record in records):
            metrics = ", ".join(f"{record.metric} {record.value:.4g}" for record in records if record.task == task)
            typer.echo(f"{name}: {task}: {metrics}")
    if output is not None:
        typer.echo(f"Results: {output / 'results.json'}; see longrope report {output}")


def show(results: EvalResults) -> None:
    """Print perplexities by length on the first corpus, the best of each length in bold."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    first = next(iter(results.corpora))
    table = {
        name: {record.length: record for record in records if record.corpus == first}
        for name, records in results["perplexity"].items()
    }
    lengths = sorted({length for records in table.values() for length in records})
    heads = [f"{length:,}" + (" (L0)" if length == results.rope.original_length else "") for length in lengths]
    printed = Table("factors", *heads, title="perplexity ± standard error over documents")
    best = {
        length: min((records[length].perplexity for records in table.values() if length in records), default=0)
        for length in lengths
    }
    for name, records in table.items():
        values = []
        for length, record in records.items():
            error = f" ± {record.standard_error:.2f}" if len(record.losses) > 1 else ""
            text = f"{record.perplexity:.2f}{error}"
            values.append(f"[bold]{text}[/]" if record.perplexity == best[length] else text)
        printed.add_row(escape(name), *values)
    Console().print(printed)
