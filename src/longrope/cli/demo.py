"""``longrope demo``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longrope.cli import evaluate, options
from longrope.cli.progress import bar, search_bar

if TYPE_CHECKING:
    from longrope.evaluation.perplexity import Perplexity

LENGTH, ORIGINAL = 2048, 256
LENGTHS = (256, 512, 1024, 2048)


def run(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for factors, plots and checkpoint.")] = Path(
        "demo"
    ),
    budget: Annotated[int, typer.Option(min=8, help="Evaluations of the search.")] = 160,
    as_json: options.Json = False,
) -> None:
    """The whole job in about two minutes: extend the built-in model ``tiny`` from 256 to 2,048 tokens.

    Its documents are parts of this Python's standard library that it was not trained on. OUTPUT is replaced.
    """
    from rich.console import Console

    from longrope.data.documents import load_documents
    from longrope.data.split import draw, split
    from longrope.evaluation.perplexity import compare
    from longrope.export.check import check_parity
    from longrope.export.huggingface import export_huggingface
    from longrope.extension.factors import find_factors
    from longrope.files import claim, write_json
    from longrope.report.plots import plot_factors, plot_perplexity
    from longrope.report.provenance import provenance
    from longrope.schemes import scheme
    from longrope.search.evolution import PRESETS
    from longrope.search.run import Budget

    console = Console(stderr=True, soft_wrap=True)
    claim(output, overwrite=(output / "search-0.jsonl").exists(), folder=True)
    shutil.rmtree(output, ignore_errors=True)
    model, tokenizer = options.open_model("tiny", "float32", "cpu")
    parts = split(load_documents("stdlib:unseen"), seed=0)
    drawn = {
        part: draw(parts[part], tokenizer, length=LENGTH, count=count).tokens
        for part, count in (("search", 2), ("held_out", 2), ("test", 8))
    }
    console.print(f"1. Search: factors for {LENGTH:,} tokens of a model trained on {ORIGINAL}")
    with search_bar(budget, quiet=as_json) as watch:
        found = find_factors(
            model,
            drawn["search"],
            drawn["held_out"],
            output,
            method=PRESETS["paper"].sized(24),
            starts=("ntk", "yarn", "heuristic"),
            attention="su",
            budget=Budget(budget),
            batch=4,
            settings={"model": "tiny", "dtype": "float32"},
            watch=watch,
        )
    rope = found.extension.rope
    schemes = {name: scheme(name, rope, LENGTH) for name in ("pi", "ntk", "yarn", "heuristic")}
    candidates = {"original": None, **schemes, "searched": found.extension.long}
    console.print("2. Compare on test documents")
    with bar("eval", len(candidates), quiet=as_json) as update:
        order = list(candidates)
        table = compare(
            model,
            candidates,
            drawn["test"],
            LENGTHS,
            batch=4,
            done=lambda name, _: update(order.index(name) + 1, name),
        )
    console.print("3. Export and check in plain transformers")
    export_huggingface(model, tokenizer, found.extension, output / "checkpoint", mode="static", name="tiny")
    parity = check_parity(output / "checkpoint", model)
    plot_factors(rope, {**schemes, "searched": found.extension.long}, output / "factors.png")
    plot_perplexity(table, rope.original_length, output / "perplexity.png")
    record = {
        "perplexity": evaluate.as_record(table),
        "short_context": degradation(table),
        "parity": {row.length: row.difference for row in parity},
        "evaluations": found.extension.long.provenance["evaluations"],
        "provenance": provenance(),
    }
    write_json(output / "demo.json", record)

    def show() -> None:
        evaluate.show(table, rope)
        for name, percent in record["short_context"].items():
            typer.echo(f"at {ORIGINAL} tokens, {name}: {percent:+.1f}% perplexity against the original model")
        worst = max(row.difference for row in parity)
        verdict = "same" if all(row.ok for row in parity) else "DIFFERENT"
        typer.echo(f"plain transformers on the exported checkpoint: {verdict} logits (differ by {worst:.0e} at most)")
        typer.echo(f"factors, plots and checkpoint: {output}/")

    options.tell(record, as_json=as_json, text=show)


def degradation(table: dict[str, list[Perplexity]]) -> dict[str, float]:
    """What factors for the long context cost at the original length, in percent of its perplexity."""
    before = table["original"][0].perplexity
    return {name: 100 * (row[0].perplexity / before - 1) for name, row in table.items() if name != "original"}
