"""``longrope search``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longrope.cli import distributed, options
from longrope.cli.layer_notes import check_layers
from longrope.cli.progress import search_bar
from longrope.cli.table_names import listed
from longrope.errors import suspect
from longrope.search import JOURNAL, NEEDLE_WEIGHT
from longrope.units import parse_length, parse_percent

if TYPE_CHECKING:
    from rich.table import Table

    from longrope.search.method import Method
    from longrope.search.options import SearchOptions
    from longrope.search.run import SearchResult

METHOD_NAMES = listed("longrope.search.registry", "METHODS")
PARAMETRIZATION_NAMES = listed("longrope.search.parametrizations", "PARAMETRIZATIONS")
RESEARCH = "Research"  # help panel of the options that few searches need


def run(
    model: options.Model,
    length: options.Length,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder (default: MODEL-LENGTH).")] = None,
    data: options.Data = None,
    text_key: options.TextKey = None,
    method: Annotated[str, typer.Option(help=f"Search method: {METHOD_NAMES}.")] = "auto",
    budget: Annotated[
        str | None,
        typer.Option(help="Most token-evaluations of each seed, such as 2m: forward 1 per token, with backward 3."),
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Most minutes of evaluation of each seed.")] = None,
    schemes: Annotated[
        str | None, typer.Option(help="Schemes to start from, by commas, or none (default: the method's).")
    ] = None,
    factors: Annotated[
        list[str] | None, typer.Option(help="Factors file or run folder to start from; may be repeated.")
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Number of searches, with seeds 0, 1, …; the best wins. For methods that draw.")
    ] = 1,
    needles: Annotated[
        float,
        typer.Option(min=0, max=1, help="Weight of the answers to questions at the end of the documents (0: none)."),
    ] = NEEDLE_WEIGHT,
    search_documents: Annotated[
        int | None, typer.Option(min=1, help="Documents whose loss is minimised (default: 4; 2 above 8,192 tokens).")
    ] = None,
    held_out_documents: Annotated[
        int | None, typer.Option(min=1, help="Other documents, which choose the winner (default: as many).")
    ] = None,
    data_seed: options.SplitSeed = 0,
    batch: Annotated[
        int,
        typer.Option(
            min=1, help="Pairs of a candidate and a document in one forward pass; no effect in frozen contexts."
        ),
    ] = 1,
    workers: Annotated[
        str, typer.Option(help=r'Processes that evaluate, or ray, or ray://HOST:PORT (pip install "longrope\[ray]").')
    ] = "1",
    original_length: options.OriginalLength = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    cache: options.Cache = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    parametrization: Annotated[
        str | None,
        typer.Option(
            help=f"Coordinates of the factors, for methods that have them: {PARAMETRIZATION_NAMES}.",
            rich_help_panel=RESEARCH,
        ),
    ] = None,
    population: Annotated[
        int | None,
        typer.Option(help="Population, or number of gradient steps (default: the method's).", rich_help_panel=RESEARCH),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            min=1, help="Stop after this many generations without a better candidate.", rich_help_panel=RESEARCH
        ),
    ] = None,
    attention: Annotated[
        str, typer.Option(help="Attention factor: su, yarn, none, a number, or search.", rich_help_panel=RESEARCH)
    ] = "su",
    start_tokens: Annotated[
        bool,
        typer.Option("--start-tokens", help="Also search n̂, the number of start tokens.", rich_help_panel=RESEARCH),
    ] = False,
    also: Annotated[
        str | None,
        typer.Option(help="Shorter lengths whose loss counts as much, such as 4k,8k.", rich_help_panel=RESEARCH),
    ] = None,
    tail: Annotated[
        str | None,
        typer.Option(help="Number of tokens at the end that count, such as 2k.", rich_help_panel=RESEARCH),
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            help="Tokens of a forward pass, whose positions jump up to the length, such as 16k: cheaper.",
            rich_help_panel=RESEARCH,
        ),
    ] = None,
    keep_short: Annotated[
        str | None,
        typer.Option(
            help="Most that the factors may raise perplexity at L0, such as 1%: one set that serves short texts too.",
            rich_help_panel=RESEARCH,
        ),
    ] = None,
    racing: Annotated[
        bool,
        typer.Option(
            "--racing",
            help="Drop candidates early that are clearly worse; no effect in frozen contexts.",
            rich_help_panel=RESEARCH,
        ),
    ] = False,
) -> None:
    """Find the factors for a length, and write them to OUTPUT/extension.json."""
    from longrope.data.stdlib import default_data
    from longrope.search.options import SearchOptions
    from longrope.storage.lock import claim_output, refuse_other_files, refuse_staged_run

    distributed.refuse("--workers")
    settings = SearchOptions(
        budget=budget,
        minutes=minutes,
        patience=patience,
        population=population,
        parametrization=parametrization,
        schemes=None if schemes is None else [] if schemes == "none" else schemes.split(","),
        factors=[options.read_factors(path) for path in factors or []],
        seeds=seeds,
        attention=attention,
        start_tokens=start_tokens,
        needles=needles,
        also=() if also is None else also,
        keep_short=None if keep_short is None else parse_percent(keep_short, "--keep-short"),
        tail=tail,
        window=window,
        search_documents=search_documents,
        held_out_documents=held_out_documents,
        data_seed=data_seed,
        batch_size=batch,
        racing=racing,
        workers=workers,
        dtype=dtype,
        device=device,
        cache=cache,
        text_key=text_key,
        original_length=options.decided_length(original_length),
        existing="resume" if resume else "overwrite" if overwrite else "refuse",
    )
    tokens = parse_length(length)
    search_method = settings.method(method, tokens)
    settings.text_spec(tokens)
    output = output or Path(f"{options.short_name(model)}-{length}")
    refuse_staged_run(output)
    refuse_other_files(output, JOURNAL, "a search")
    remedy = "continue it with --resume, " if (output / JOURNAL).exists() else ""
    claim_output(output, overwrite=overwrite or resume, folder=True, also=remedy)
    settings = place(model, tokens, search_method, settings, output)
    _search(model, tokens, data or default_data(model), search_method, settings, output, as_json=as_json)


def place(model: str, length: int, method: Method, settings: SearchOptions, output: Path) -> SearchOptions:
    """Return the settings with the device and the dtype of a search that fits the model and this machine.

    Raises:
        LongRopeError: The model, the starts or the device cannot be used, or a pass does not fit into memory.
    """
    from longrope.objectives.backend import processes
    from longrope.objectives.placement import place_search
    from longrope.objectives.prepare_search import check_starts
    from longrope.rope import Rope

    config = options.read_config(model, settings.original_length)
    check_layers(config, length)
    check_starts(Rope.of(config), length, method, settings)
    local = bool(processes(settings.workers))  # workers on Ray choose their own devices
    device = options.choose_device(settings.device if local else "auto")
    if local:
        settings = replace(settings, device=device)
    settings, note = place_search(config, length, method, settings, output)
    if note:
        distributed.say(f"Note: {note}")
    return settings


def _search(
    model: str, length: int, data: str, method: Method, settings: SearchOptions, output: Path, *, as_json: bool
) -> None:
    """Run the search with a progress bar, and write and print what it found."""
    from longrope.models.weights_digest import weights_setting
    from longrope.objectives.backend import open_backend
    from longrope.objectives.prepare_search import prepare_search
    from longrope.storage.lock import locked

    backend = open_backend(
        model,
        dtype=settings.dtype,
        device=settings.device,
        workers=settings.workers,
        original_length=settings.original_length,
    )
    with locked(output), backend as opened:
        model_settings = {"model": model, **weights_setting(model)}
        names: dict[str, Any] = {"settings": model_settings, "facts": {"command": options.command_line()}}
        search = prepare_search(opened, length, data=data, method=method, options=settings, output=output, **names)
        with search_bar(search.total, quiet=as_json) as on_progress:
            result = search.find(output, on_progress)
        record = search.save(output, result, settings.device)
    options.tell(record, as_json=as_json, text=lambda: describe(result, output, record.get("keep_short")))
    if "keep_short" in record and record["keep_short"]["change"] > record["keep_short"]["limit"]:
        raise typer.Exit(1)


def describe(result: SearchResult, output: Path, short: Mapping[str, Any] | None = None) -> None:
    """Print the held-out losses in nats, what short texts lose if there is a limit, and the file with the factors."""
    from rich.console import Console
    from rich.table import Table

    from longrope.evaluation.figure import nats

    table = Table("factors", "held-out loss", title=f"at {result.extension.length:,} tokens")
    for name, loss in result.held_out.items():
        table.add_row(name, nats(loss))
    console = Console()
    console.print(table)
    dtype = str(result.extension.long.provenance.get("dtype", ""))
    if not all(map(math.isfinite, result.held_out.values())):
        console.print(f"Losses that are not finite cannot win. {suspect(dtype)}", style="red")
    winner = result.extension.long.scheme
    if winner != "searched":
        advice = f"use a larger budget, or start from it (--schemes {winner})"
        console.print(f"Nothing better than {winner} was found: {advice}.")
    if short is not None:
        console.print(_trade_off(short))
        keeps_limit = short["change"] <= short["limit"]
        worse = "" if keeps_limit else " Nothing that keeps the limit is as good: this is the best trade-off."
        console.print(
            f"Perplexity at L0 changes by {short['change']:+.1%} on the held-out documents; the limit is "
            f"{short['limit']:.1%}.{worse}",
            style=None if keeps_limit else "red",
        )
    if result.outcomes[0].closed_form:
        console.print(f"Best closed form: {result.outcomes[0].closed_form}.")
    console.print(f"Stopped: {'; '.join(outcome.stopped for outcome in result.outcomes)}.")
    console.print(f"Factors: {output / 'extension.json'}", soft_wrap=True, markup=False)


def _trade_off(short: Mapping[str, Any]) -> Table:
    """Return a table of at most eight candidates between the least change at L0 and the lowest loss."""
    from rich.table import Table

    front = short["trade_off"]
    rows = front[:: max(1, -(-len(front) // 8))]
    table = Table("change at L0", "long loss", title="on the search documents")
    for point in [*rows, *([] if rows[-1] is front[-1] else front[-1:])]:
        table.add_row(f"{point['short']:+.1%}", f"{point['long']:.4f}")
    return table
