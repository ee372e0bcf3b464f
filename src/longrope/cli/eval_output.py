"""Print the results of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from longrope.errors import suspect
from longrope.evaluation.figure import NOT_FINITE, fixed

if TYPE_CHECKING:
    from longrope.evaluation.results import EvalResults
    from longrope.evaluation.retrieval_score import RetrievalScore

CLAIM_TRIALS = 50  # fewer questions of a task are a quick look
whole_percent = fixed(0, unit="%", times=100)


def describe(results: EvalResults, output: Path | None) -> None:
    """Print the table of perplexities, rates with their intervals, scores of tasks, and the path of the results."""
    from longrope.evaluation.retrieval_score import pooled_rate

    if results.get("perplexity"):
        show(results)
    for name, records in results.get("retrieval").items():
        by_task: dict[tuple[str, int], list[RetrievalScore]] = {}
        for record in records:
            by_task.setdefault((record.task, record.length), []).append(record)
        scores = ", ".join(
            f"{task} {length:,}: {whole_percent(pooled_rate(scores))}" for (task, length), scores in by_task.items()
        )
        typer.echo(f"{name}: {scores}")
    show_prompt_notes([record for records in results.get("retrieval").values() for record in records])
    for name, records in results.get("tasks").items():
        for task in dict.fromkeys(record.task for record in records):
            metrics = ", ".join(
                f"{record.metric} {f'{record.value:.4g}' if record.finite else NOT_FINITE}"
                for record in records
                if record.task == task
            )
            typer.echo(f"{name}: {task}: {metrics}")
    show_not_finite(results)
    if output is not None:
        typer.echo(f"Results: {output / 'results.json'}; see longrope report {output}")


def show_prompt_notes(records: Sequence[RetrievalScore]) -> None:
    """Print what keeps the retrieval scores from a claim or from a comparison with published ones."""
    trials: dict[tuple[str, int], int] = {}
    for record in {(record.task, record.length, record.depth): record for record in records}.values():
        trials[record.task, record.length] = trials.get((record.task, record.length), 0) + (record.trials or 0)
    if trials and min(trials.values()) < CLAIM_TRIALS:
        typer.echo(
            f"Quick: {min(trials.values())} questions of a task are a first look. Ask {CLAIM_TRIALS} for a claim."
        )
    if any(record.own_haystack for record in records):
        marked = sorted({record.task for record in records if record.own_haystack})
        typer.echo(f"Own haystack: {', '.join(marked)} hide their needles in your documents, not in RULER's essays.")
    if any(record.chat for record in records):
        typer.echo("Prompts are in the tokenizer's chat template, without thinking where it can be switched off.")


def show_not_finite(results: EvalResults) -> None:
    """Print which rows have numbers that are not finite, and the likely cause."""
    for name, measurements in results.not_finite.items():
        typer.secho(f"{name}: numbers are not finite ({', '.join(measurements)})", fg="red")
    if results.not_finite:
        typer.secho(suspect(results.dtype), fg="red")


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
        length: min(
            (row[length].perplexity for row in table.values() if length in row and row[length].finite), default=0
        )
        for length in lengths
    }
    for name, records in table.items():
        values = []
        for length, record in records.items():
            error = f" ± {record.standard_error:.2f}" if len(record.losses) > 1 else ""
            text = f"{record.perplexity:.2f}{error}" if record.finite else NOT_FINITE
            values.append(f"[bold]{text}[/]" if record.perplexity == best[length] else text)
        printed.add_row(escape(name), *values)
    Console().print(printed)
