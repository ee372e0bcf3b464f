"""``longrope demo``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longrope.cli import evaluate, options
from longrope.cli.progress import bar, search_bar

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

    from longrope.evaluation.items import Item
    from longrope.evaluation.perplexity import Perplexity
    from longrope.rope import Extension, Scaling

LENGTH, ORIGINAL = 2048, 256
LENGTHS = (256, 512, 1024, 2048)
COUNTS = {"search": 4, "held_out": 4, "test": 8}


def run(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for factors, plots and checkpoint.")] = Path(
        "demo"
    ),
    as_json: options.Json = False,
) -> None:
    """The whole job in about two minutes: extend the built-in model ``tiny`` from 256 to 2,048 tokens.

    Its documents are parts of this Python's standard library that it was not trained on. OUTPUT is replaced.
    """
    from rich.console import Console

    from longrope.data.documents import load_documents
    from longrope.data.split import draw, split
    from longrope.evaluation.items import make_items
    from longrope.export.check import check_parity
    from longrope.export.huggingface import export_huggingface
    from longrope.files import claim, write_json
    from longrope.report.plots import plot_factors, plot_perplexity
    from longrope.report.provenance import provenance

    console = Console(stderr=True, soft_wrap=True)
    claim(output, overwrite=(output / "demo.json").exists(), folder=True)
    shutil.rmtree(output, ignore_errors=True)
    write_json(output / "demo.json", {})  # marks the folder as one that the next demo may replace
    model, tokenizer = options.open_model("tiny", "float32", "cpu")
    parts = split(load_documents("stdlib:unseen"), seed=0)
    test = draw(parts["test"], tokenizer, length=LENGTH, count=COUNTS["test"]).tokens
    items = {
        part: make_items(parts[part], tokenizer, lengths=[LENGTH], count=COUNTS[part], needles=options.NEEDLES)[0]
        for part in ("search", "held_out")
    }
    console.print(f"1. Search: factors for {LENGTH:,} tokens of a model trained on {ORIGINAL}")
    extension = find(model, items, output, quiet=as_json)
    console.print("2. Compare on test documents")
    scalings = candidates(extension)
    table = measure(model, {"original": None, **scalings}, test, quiet=as_json)
    console.print("3. Export and check in plain transformers")
    export_huggingface(model, tokenizer, extension, output / "checkpoint", mode="static", name="tiny")
    parity = check_parity(output / "checkpoint", model)
    plot_factors(extension.rope, scalings, output / "factors.png")
    plot_perplexity(table, ORIGINAL, output / "perplexity.png")
    record = {
        "perplexity": evaluate.as_record(table),
        "short_context": degradation(table),
        "parity": {row.length: row.difference for row in parity},
        "search": extension.long.provenance,
        "provenance": provenance(),
    }
    write_json(output / "demo.json", record)

    def show() -> None:
        evaluate.show(table, extension.rope)
        for name, percent in record["short_context"].items():
            typer.echo(f"at {ORIGINAL} tokens, {name}: {percent:+.1f}% perplexity against the original model")
        worst = max(row.difference for row in parity)
        verdict = "same" if all(row.ok for row in parity) else "DIFFERENT"
        typer.echo(f"plain transformers on the exported checkpoint: {verdict} logits (differ by {worst:.0e} at most)")
        typer.echo(f"factors, plots and checkpoint: {output}/")

    options.tell(record, as_json=as_json, text=show)
    if not all(row.ok for row in parity):
        raise typer.Exit(1)


def find(model: PreTrainedModel, items: dict[str, list[Item]], output: Path, *, quiet: bool) -> Extension:
    """A search as ``longrope search`` does it."""
    from functools import partial

    from longrope.evaluation.objective import ModelObjective
    from longrope.extension.factors import find_factors
    from longrope.rope import Rope
    from longrope.schemes import attention_factor, scheme
    from longrope.search.methods import METHODS
    from longrope.search.space import Space

    method, rope = METHODS["auto"], Rope.of(model)
    factor = attention_factor("su", rope, LENGTH)
    with search_bar(method.passes(len(items["search"])) * LENGTH, quiet=quiet) as watch:
        return find_factors(
            Space(rope, LENGTH, attention_factor=factor, ceiling=method.ceiling, form=method.form),
            partial(ModelObjective, model),
            items["search"],
            items["held_out"],
            output,
            method=method,
            starts=[scheme(name, rope, LENGTH) for name in method.starts],
            settings={"model": "tiny", "dtype": "float32"},
            provenance={"command": options.command_line(), "data": "stdlib:unseen", "data_seed": 0},
            watch=watch,
        ).extension


def candidates(extension: Extension) -> dict[str, Scaling]:
    """The schemes, and what the search found."""
    from longrope.schemes import COMPARED, scheme

    schemes = {name: scheme(name, extension.rope, LENGTH) for name in COMPARED}
    return {**schemes, "searched": extension.long}


def measure(
    model: PreTrainedModel, compared: dict[str, Scaling | None], tokens: np.ndarray, *, quiet: bool
) -> dict[str, list[Perplexity]]:
    """Perplexities by length, with a progress bar."""
    from longrope.evaluation.perplexity import compare

    order = list(compared)
    with bar("eval", len(order), quiet=quiet) as update:
        return compare(
            model, compared, tokens, LENGTHS, batch=4, done=lambda name, _: update(order.index(name) + 1, name)
        )


def degradation(table: dict[str, list[Perplexity]]) -> dict[str, float]:
    """What factors for the long context cost at the original length, in percent of its perplexity."""
    before = table["original"][0].perplexity
    return {name: 100 * (row[0].perplexity / before - 1) for name, row in table.items() if name != "original"}
