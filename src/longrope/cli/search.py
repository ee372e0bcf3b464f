"""``longrope search``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longrope.cli import options
from longrope.cli.progress import search_bar
from longrope.errors import LongRopeError

if TYPE_CHECKING:
    from longrope.extension.factors import Found
    from longrope.search.evolution import Paper, Simple


def run(
    model: options.Model,
    length: options.Length,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder [default: MODEL-LENGTH].")] = None,
    data: options.Data = None,
    preset: Annotated[str, typer.Option(help="paper (LongRoPE's algorithm and numbers) or simple.")] = "paper",
    population: Annotated[int | None, typer.Option(help="Population, if not the preset's.")] = None,
    starts: Annotated[str, typer.Option(help="Schemes that the search starts from.")] = "pi,ntk,yarn",
    budget: Annotated[int | None, typer.Option(help="Most evaluations per seed.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Most minutes of evaluation per seed.")] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many generations without progress.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of searches, with seeds 0, 1, …; the best wins.")] = 1,
    attention: options.Attention = "su",
    start_tokens: Annotated[bool, typer.Option("--start-tokens", help="Also search the start tokens n̂.")] = False,
    search_documents: Annotated[int, typer.Option(min=1, help="Documents whose loss is minimised.")] = 4,
    held_out_documents: Annotated[int, typer.Option(min=1, help="Other documents, which choose the winner.")] = 4,
    data_seed: options.Seed = 0,
    batch: options.Batch = 1,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    cache: options.Cache = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.")] = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Find the factors of a length by evolutionary search; they are in OUTPUT/extension.json."""
    from longrope.files import claim, write_json
    from longrope.search.run import Budget

    tokens = options.parse_length(length)
    method = method_of(preset, population, tokens)
    limits = Budget(budget, None if minutes is None else 60 * minutes, patience)
    output = output or Path(f"{options.short_name(model)}-{length}")
    names = options.parse_schemes(starts)
    claim(output, overwrite=overwrite or resume, folder=True, also="continue it with --resume, ")

    from longrope.data.documents import load_documents
    from longrope.data.split import draw, split
    from longrope.extension.factors import find_factors
    from longrope.report.provenance import provenance
    from longrope.rope import Rope
    from longrope.schemes import attention_factor
    from longrope.search.space import START_TOKENS

    loaded, tokenizer = options.open_model(model, dtype, device)
    attention_factor(attention, Rope.of(loaded), tokens)
    source = options.default_data(model, data)
    parts = split(load_documents(source), seed=data_seed)
    minimised = draw(parts["search"], tokenizer, length=tokens, count=search_documents, cache=cache)
    held_out = draw(parts["held_out"], tokenizer, length=tokens, count=held_out_documents, cache=cache)
    with search_bar(limits.evaluations or method.evaluations, quiet=as_json) as watch:
        found = find_factors(
            loaded,
            minimised.tokens,
            held_out.tokens,
            output,
            method=method,
            starts=names,
            seeds=range(seeds),
            attention=attention,
            start_tokens=START_TOKENS if start_tokens else (0,),
            budget=limits,
            batch=batch,
            existing="resume" if resume else "overwrite" if overwrite else "refuse",
            settings={"model": model, "dtype": str(loaded.dtype)},
            provenance={"command": options.command_line(), "data": source, "data_seed": data_seed},
            watch=watch,
        )
    documents = {"search": minimised.names, "held_out": held_out.names}
    record = {"length": tokens, "data": source, "data_seed": data_seed, "documents": documents, **summary(found)}
    write_json(output / "run.json", record | {"provenance": provenance()})
    options.tell(record, as_json=as_json, text=lambda: describe(found, output))


def method_of(preset: str, population: int | None, length: int) -> Paper | Simple:
    """The method of a preset; beyond 512K tokens with half its population, as in the paper."""
    from longrope.search.evolution import PRESETS

    if preset not in PRESETS:
        raise LongRopeError(f"preset = {preset!r} is unknown; choose one of {', '.join(PRESETS)}")
    method = PRESETS[preset]
    if population is None and length > 512 * 1024:
        population = method.population // 2
    return method if population is None else method.sized(population)


def summary(found: Found) -> dict[str, object]:
    """What a search found, as JSON values."""
    return {
        "winner": found.extension.long.scheme,
        "factors": list(found.extension.long.factors),
        **found.extension.long.provenance,
        "stopped": [outcome.stopped for outcome in found.outcomes],
    }


def describe(found: Found, output: Path) -> None:
    """Print the held-out comparison and where the factors are."""
    import math

    from rich.console import Console
    from rich.table import Table

    table = Table("factors", "held-out perplexity", title=f"at {found.extension.length:,} tokens")
    for name, loss in found.held_out.items():
        table.add_row(name, f"{math.exp(loss):.3f}")
    console = Console()
    console.print(table)
    if found.extension.long.scheme != "searched":
        name = found.extension.long.scheme
        console.print(f"Nothing better than {name} was found: use a larger budget, or start from it (--starts {name}).")
    console.print(f"Stopped: {'; '.join(outcome.stopped for outcome in found.outcomes)}.")
    console.print(f"Factors: {output / 'extension.json'}", soft_wrap=True, markup=False)
