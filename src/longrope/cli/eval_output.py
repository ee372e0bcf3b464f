"""Print an evaluation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from longrope.evaluation.perplexity import Perplexity
    from longrope.rope import Rope


def describe(record: dict[str, Any], rope: Rope, output: Path | None) -> None:
    """Print the table of perplexities, scores of tasks, and where everything is."""
    show(read_table(record), rope)
    for name, cells in record.get("retrieval", {}).items():
        by_task: dict[tuple[str, int], list[float]] = {}
        for cell in cells:
            by_task.setdefault((cell["task"], cell["length"]), []).append(cell["score"])
        scores = ", ".join(f"{t} {n:,}: {sum(found) / len(found):.0%}" for (t, n), found in by_task.items())
        typer.echo(f"{name}: {scores}")
    for name, tasks in record.get("tasks", {}).items():
        for task, metrics in tasks.items():
            told = ", ".join(f"{metric} {value:.4g}" for metric, value in metrics.items())
            typer.echo(f"{name}: {task}: {told}")
    if output is not None:
        typer.echo(f"Results: {output / 'results.json'}; see longrope report {output}")


def read_table(record: dict[str, Any]) -> dict[str, list[Perplexity]]:
    """The perplexities by row, on the first corpus; a number that is not finite was written as null."""
    from longrope.evaluation.perplexity import perplexity_of_documents

    first = next(iter(record["corpora"]))

    def read(cell: dict[str, Any]) -> Perplexity:
        return perplexity_of_documents([math.nan if loss is None else loss for loss in cell["losses"]], cell["length"])

    return {name: [read(cell) for cell in row if cell["corpus"] == first] for name, row in record["perplexity"].items()}


def show(table: dict[str, list[Perplexity]], rope: Rope) -> None:
    """Print perplexities by length, the best of each in bold."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    lengths = [cell.length for cell in next(iter(table.values()))]
    heads = [f"{length:,}" + (" (L0)" if length == rope.original_length else "") for length in lengths]
    printed = Table("factors", *heads, title="perplexity ± standard error over documents")
    best = [min(row[i].perplexity for row in table.values()) for i in range(len(lengths))]
    for name, row in table.items():
        cells = [f"{c.perplexity:.2f}" + f" ± {c.standard_error:.2f}" * (len(c.losses) > 1) for c in row]
        marked = [f"[bold]{c}[/]" if row[i].perplexity == best[i] else c for i, c in enumerate(cells)]
        printed.add_row(escape(name), *marked)
    Console().print(printed)
