"""``longrope eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longrope.cli import options
from longrope.cli.progress import bar
from longrope.lengths import parse_lengths

if TYPE_CHECKING:
    from longrope.evaluation.perplexity import Perplexity
    from longrope.rope import Extension, Rope, Scaling


def run(
    model: options.Model,
    lengths: Annotated[str, typer.Option(help="Lengths by commas: 8k,16k; schemes aim at the longest.")],
    scaling: Annotated[list[str] | None, typer.Option(help="Factors file or run folder; may be repeated.")] = None,
    schemes: Annotated[str, typer.Option(help="Schemes by commas, or none.")] = "pi,ntk,yarn,heuristic",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Also write the results to this file.")] = None,
    data: options.Data = None,
    documents: Annotated[int, typer.Option(min=1, help="Test documents.")] = 4,
    data_seed: options.Seed = 0,
    batch: options.Batch = 1,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    cache: options.Cache = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Perplexity by length of the model as it is, of schemes and of factors, on test documents.

    No search that was given the same --data and --data-seed has seen them.
    """
    from longrope.files import claim, write_json

    wanted = parse_lengths(lengths)
    if output is not None:
        claim(output, overwrite=overwrite)

    from longrope.data.documents import load_documents
    from longrope.data.split import draw, split
    from longrope.evaluation.perplexity import compare
    from longrope.report.provenance import provenance
    from longrope.rope import Rope

    names = [] if schemes == "none" else options.parse_schemes(schemes)
    files = {path: options.read_factors(path) for path in scaling or []}
    loaded, tokenizer = options.open_model(model, dtype, device)
    compared = candidates(Rope.of(loaded), names, files, wanted[-1])
    if names and wanted[-1] <= Rope.of(loaded).original_length:
        typer.echo("Schemes are left out: no length is above the original one.", err=True)
    parts = split(load_documents(options.default_data(model, data)), seed=data_seed)
    drawn = draw(parts["test"], tokenizer, length=wanted[-1], count=documents, cache=cache)
    order = list(compared)
    with bar("eval", len(order) * documents, quiet=as_json) as update:
        table = compare(
            loaded,
            compared,
            drawn.tokens,
            wanted,
            batch=batch,
            done=lambda name, count: update(order.index(name) * documents + count, name),
        )
    record = {"model": model, "dtype": str(loaded.dtype), "lengths": wanted, "documents": drawn.names}
    record |= {"data_seed": data_seed, "perplexity": as_record(table), "provenance": provenance()}
    if output is not None:
        write_json(output, record)
    options.tell(record, as_json=as_json, text=lambda: show(table, Rope.of(loaded)))


def candidates(
    rope: Rope, names: list[str], files: dict[str, Scaling | Extension], length: int
) -> dict[str, Scaling | Extension | None]:
    """The model as it is, the schemes at a length, and the factors of files, by name."""
    from longrope.schemes import scheme

    chosen = {name: scheme(name, rope, length) for name in names} if length > rope.original_length else {}
    return {"original": None, **chosen, **files}


def as_record(table: dict[str, list[Perplexity]]) -> dict[str, list[dict[str, object]]]:
    """The table as JSON values."""
    from dataclasses import asdict

    return {name: [asdict(cell) for cell in row] for name, row in table.items()}


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
