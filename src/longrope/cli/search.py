"""``longrope search``."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longrope.cli import distributed, options, search_inputs
from longrope.cli.progress import search_bar
from longrope.errors import LongRopeError
from longrope.units import parse_length

if TYPE_CHECKING:
    from longrope.search.run import SearchResult


def run(
    model: options.Model,
    length: options.Length,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder (default: MODEL-LENGTH).")] = None,
    data: options.Data = None,
    method: Annotated[str, typer.Option(help="auto, gradient, cma, paper (LongRoPE's algorithm) or simple.")] = "auto",
    budget: Annotated[
        str | None,
        typer.Option(
            help="Most token-evaluations per seed, such as 2m (forward 1 a token, with backward 3); steps fit it."
        ),
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Most minutes of evaluation per seed.")] = None,
    patience: Annotated[
        int | None,
        typer.Option(min=1, help="Stop after so many generations (of steps: comparisons) without progress."),
    ] = None,
    population: Annotated[
        int | None, typer.Option(help="Population, or steps of the gradient, if not the method's.")
    ] = None,
    space: Annotated[
        str | None, typer.Option(help="free, monotone, spline, ramp or critical (auto, gradient, cma).")
    ] = None,
    starts: Annotated[
        str | None,
        typer.Option(help="Schemes or factor files to start from (default: the method's, such as yarn,heuristic)."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of searches, with seeds 0, 1, …; the best wins.")] = 1,
    attention: Annotated[str, typer.Option(help="Attention factor: su, yarn, none, a number, or search.")] = "su",
    start_tokens: Annotated[bool, typer.Option("--start-tokens", help="Also search the start tokens n̂.")] = False,
    needles: Annotated[
        float, typer.Option(min=0, max=1, help="Weight of the loss of needles planted in the documents (0: none).")
    ] = options.NEEDLES,
    also: Annotated[str | None, typer.Option(help="Shorter lengths whose loss counts as much, such as 4k,8k.")] = None,
    tail: Annotated[str | None, typer.Option(help="Score only this many tokens at the end, such as 2k.")] = None,
    window: Annotated[
        str | None,
        typer.Option(help="Tokens of a forward pass, whose positions jump up to the length, such as 16k: cheaper."),
    ] = None,
    search_documents: Annotated[int, typer.Option(min=1, help="Documents whose loss is minimised.")] = 4,
    held_out_documents: Annotated[int, typer.Option(min=1, help="Other documents, which choose the winner.")] = 4,
    data_seed: options.Seed = 0,
    rows: Annotated[
        int, typer.Option("--batch", min=1, help="Rows of one forward pass: candidates and documents mixed.")
    ] = 1,
    racing: Annotated[bool, typer.Option("--racing", help="Drop candidates that are clearly worse early.")] = False,
    workers: Annotated[
        str, typer.Option(help="Processes that evaluate, or ray, or ray://HOST:PORT (pip install 'longrope[ray]').")
    ] = "1",
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    cache: options.Cache = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.")] = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Find the factors of a length; they are in OUTPUT/extension.json."""
    from longrope.search.budget import Budget
    from longrope.search.parametrizations import PARAMETRIZATIONS
    from longrope.search.registry import get_method
    from longrope.storage.atomic import write_json
    from longrope.storage.lock import claim_output, locked

    distributed.refuse("--workers")
    tokens = parse_length(length)
    if minutes is not None and not 0 < minutes < math.inf:
        raise LongRopeError(f"minutes = {minutes:g} allows nothing; use a number above 0")
    limits = Budget(
        None if budget is None else parse_length(budget, "budget"),
        None if minutes is None else 60 * minutes,
        patience,
    )
    chosen = get_method(method, population, tokens)
    if space in PARAMETRIZATIONS and not chosen.uses_parametrization:
        raise LongRopeError(f"space = {space!r} makes no difference to method {method}; use auto, gradient or cma")
    output = output or Path(f"{options.short_name(model)}-{length}")
    names = chosen.schemes if starts is None else search_inputs.parse_starts(starts)
    lengths = [tokens, *([] if also is None else search_inputs.shorter(also, tokens))]
    scored = None if tail is None else parse_length(tail, "tail")
    size = None if window is None else parse_length(window, "window")
    options.refuse_run(output)
    claim_output(output, overwrite=overwrite or resume, folder=True, also="continue it with --resume, ")

    from longrope.cost.memory_check import Placement
    from longrope.cost.plan_cost import check_search_memory
    from longrope.data.documents import load_documents
    from longrope.data.split import split_documents
    from longrope.data.weighted_text import SearchTextSpec, search_texts
    from longrope.models.load import load_config
    from longrope.objectives.backend import open_backend, processes
    from longrope.provenance import provenance
    from longrope.schemes import attention_factor
    from longrope.search.find import find_factors
    from longrope.search.registry import fit_to_budget
    from longrope.search.run import SearchObjectives, SearchRun
    from longrope.search.space import START_TOKENS, Space

    place = options.choose_device(device)
    if local := processes(workers):

        def check_memory(dtype: str) -> None:
            placement = Placement(dtype, place, workers=local)
            check_search_memory(chosen, load_config(model), size or tokens, placement, batch=rows)

        recorded = options.recorded_dtype(output / "search-0.jsonl") if resume else None
        dtype = options.choose_dtype(dtype, model, place, check_memory, recorded=recorded)
        check_memory(dtype)
    with locked(output), open_backend(model, dtype=dtype, device=place, workers=workers) as there:
        searched = Space(
            there.rope,
            tokens,
            attention_factor=attention_factor("su" if attention == "search" else attention, there.rope, tokens),
            search_attention=attention == "search",
            start_tokens=START_TOKENS if start_tokens else (0,),
            ceiling=chosen.ceiling,
            parametrization=space or chosen.parametrization,
        )
        source = options.default_data(model, data)
        parts = split_documents(load_documents(source), seed=data_seed)
        spec = SearchTextSpec(lengths, search_documents, needles, tail=scored, window=size)
        make = partial(search_texts, tokenizer=there.tokenizer, cache=cache)
        items, searched_on = make(parts["search"], spec=spec)
        judges, held_out = make(parts["held_out"], spec=replace(spec, count=held_out_documents))
        chosen, total = fit_to_budget(
            chosen, [len(item.tokens) for item in items], limits.tokens if population is None else None
        )
        with search_bar(total, quiet=as_json) as watch:
            found = find_factors(
                searched,
                SearchObjectives.of(there.make_objective, items, judges),
                output,
                method=chosen,
                starts=[search_inputs.start(name, there.rope, tokens) for name in names],
                run=SearchRun(
                    seeds=range(seeds),
                    budget=limits,
                    batch_size=rows,
                    racing=racing,
                    existing="resume" if resume else "overwrite" if overwrite else "refuse",
                    settings={"model": model, "dtype": there.dtype},
                    provenance={"command": options.command_line(), "data": source, "data_seed": data_seed},
                ),
                on_progress=watch,
            )
        documents = {"search": searched_on, "held_out": held_out}
        record = {"length": tokens, "data": source, "data_seed": data_seed, "documents": documents, **summary(found)}
        write_json(output / "run.json", record | {"provenance": provenance(place)})
    options.tell(record, as_json=as_json, text=lambda: describe(found, output))


def summary(found: SearchResult) -> dict[str, object]:
    """What a search found, as JSON values."""
    return {
        "winner": found.extension.long.scheme,
        "factors": list(found.extension.long.factors),
        **found.extension.long.provenance,
        "stopped": [outcome.stopped for outcome in found.outcomes],
    }


def describe(found: SearchResult, output: Path) -> None:
    """Print the held-out comparison, in nats of what was minimised, and where the factors are."""
    from rich.console import Console
    from rich.table import Table

    table = Table("factors", "held-out loss", title=f"at {found.extension.length:,} tokens")
    for name, loss in found.held_out.items():
        table.add_row(name, f"{loss:.4f}")
    console = Console()
    console.print(table)
    if found.extension.long.scheme != "searched":
        name = found.extension.long.scheme
        console.print(f"Nothing better than {name} was found: use a larger budget, or start from it (--starts {name}).")
    console.print(f"Stopped: {'; '.join(outcome.stopped for outcome in found.outcomes)}.")
    console.print(f"Factors: {output / 'extension.json'}", soft_wrap=True, markup=False)
