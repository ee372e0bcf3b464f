"""``longrope probe``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longrope.cli import options
from longrope.units import parse_lengths

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from longrope.servers.probe import ServerProbe
    from longrope.servers.probed_length import ProbedLength

Url = Annotated[str, typer.Argument(metavar="URL", help="Address of the server, such as http://localhost:8000.")]
ServedModel = Annotated[
    str | None, typer.Option("--model", help="Name of the model on the server (default: its only one).")
]
Timeout = Annotated[float, typer.Option(min=0.1, max=1e6, help="Seconds to wait for an answer of the server.")]
Retries = Annotated[int, typer.Option(min=0, help="Repetitions of a request that a busy server does not answer.")]


def run(
    url: Url,
    checkpoint: Annotated[
        str, typer.Option(help="Checkpoint that the server should run: a folder with a rope scaling, or a .gguf file.")
    ],
    model: ServedModel = None,
    lengths: Annotated[
        str | None, typer.Option(help="Lengths by commas (default: L0/2, L0, just beyond, its doubles, L).")
    ] = None,
    data: options.Data = None,
    text_key: options.TextKey = None,
    documents: Annotated[int, typer.Option(min=1, help="Prompts of each length.")] = 2,
    data_seed: options.SplitSeed = 0,
    timeout: Timeout = 600.0,
    retries: Retries = 2,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    cache: options.Cache = None,
    as_json: options.Json = False,
) -> None:
    """Ask a running server which factors it computes with; exit code 1 if they are not the checkpoint's.

    The server speaks OpenAI's protocol, as vLLM, SGLang, llama.cpp and transformers serve do. It is sent texts of each
    length. The log-probabilities of the tokens that it adds are compared with those of the checkpoint under its own
    factors, the original rope, YaRN's and others. A server without log-probabilities is asked for a line at the
    beginning of each text, and the tokens that it chooses are compared. A key is read from LONGROPE_API_KEY or
    OPENAI_API_KEY.
    """
    tokens = None if lengths is None else parse_lengths(lengths)
    from longrope.servers.client import connect

    server = connect(url, model, timeout=timeout, retries=retries)

    from longrope.cli.eval_inputs import read_corpora
    from longrope.cli.progress import parts_bar
    from longrope.data.stdlib import default_data
    from longrope.models.load import load_tokenizer
    from longrope.servers.probe import probe_server
    from longrope.servers.probe_prompts import check_lengths, probe_lengths
    from longrope.servers.served_sets import ServedSets

    config, tokenizer = options.read_config(checkpoint, None), load_tokenizer(checkpoint)
    served = ServedSets.of(config)
    extension = served.extension
    tokens = tokens or probe_lengths(extension.rope.original_length, extension.length)
    check_lengths(tokens, extension.length)
    device = options.choose_device(device)
    dtype = _choose_dtype(config, tokens[-1], dtype, device)
    [corpus] = read_corpora(
        [data or default_data(checkpoint)], tokenizer, tokens[-1] + len(tokens), documents, data_seed, cache, text_key
    )

    def open_model() -> PreTrainedModel:
        return options.open_model(checkpoint, dtype, device)[0]

    with parts_bar(quiet=as_json) as on_progress:
        result = probe_server(
            server, served, tokenizer, corpus.tokens, tokens, open_model=open_model, on_progress=on_progress
        )
    options.tell(_record(result, checkpoint), as_json=as_json, text=lambda: _show(result, checkpoint))
    if not result.ok:
        sys.exit(1)


def _choose_dtype(config: PreTrainedConfig, length: int, dtype: str, device: str) -> str:
    """Return the dtype to load the checkpoint in; refuse passes that do not fit into memory."""
    from longrope.cost.memory_check import Placement, check_pass_memory

    def check_memory(dtype: str) -> None:
        check_pass_memory(config, length, Placement(dtype, device))

    dtype = options.choose_dtype(dtype, config, device, check_memory)
    check_memory(dtype)
    return dtype


def _record(result: ServerProbe, checkpoint: str) -> dict[str, Any]:
    """Return the result as JSON values."""
    return {
        "server": result.server.url,
        "engine": result.server.engine,
        "model": result.server.model,
        "checkpoint": checkpoint,
        "evidence": "log-probabilities" if result.has_logprobs else "chosen tokens",
        "beginning_of_text_tokens": result.starts,
        "lengths": [
            {
                "length": row.length,
                "expected": row.expected,
                "runs": list(row.runs),
                "distances": dict(row.distances),
                "refusal": row.refusal or None,
                "read": row.read,
                "recalled": row.recalled,
                "ok": row.ok,
            }
            for row in result.lengths
        ],
        "ok": result.ok,
        "departures": result.departures,
    }


def _show(result: ServerProbe, checkpoint: str) -> None:
    """Print a line for each length, then the departures."""
    engine = f" ({result.server.engine})" if result.server.engine else ""
    typer.echo(f"{result.server.model} at {result.server.address}{engine}, compared with {checkpoint}:")
    names = list(dict.fromkeys(name for row in result.lengths for name in row.distances))
    asks = any(row.recalled is not None for row in result.lengths)
    first = max(len("server runs"), *(len(_runs(row)) for row in result.lengths))
    heads = "".join(f"{name:>{_width(name)}}" for name in names) + ("  recalled" if asks else "")
    typer.echo(f"    tokens  {'server runs':<{first}}{heads}")
    for row in result.lengths:
        distances = (_distance(result, row.distances.get(name)).rjust(_width(name)) for name in names)
        recalled = "" if row.recalled is None else f"{row.recalled:>10.0%}"
        verdict = "as made" if row.ok else "DEPARTS"
        typer.echo(f"{row.length:>10,}  {_runs(row):<{first}}{''.join(distances)}{recalled}  {verdict}")
    if result.has_logprobs:
        typer.echo("The numbers are distances of log-probabilities from the server's, in nats.")
    else:
        typer.echo(
            "The server gives no log-probabilities. The numbers are shares of the tokens that it chose and that the"
        )
        typer.echo("checkpoint would not choose with these factors: weaker evidence.")
    for departure in result.departures:
        typer.echo(f"Warning: {departure}.")
    typer.echo("The server departs from the checkpoint." if result.departures else "The server computes as made.")


def _runs(row: ProbedLength) -> str:
    """Return the sets that a server may compute with, or why there are none."""
    if row.refusal or row.read is not None:
        return "refused" if row.refusal else "cut"
    return " or ".join(row.runs) or ("none of these" if row.distances else "-")


def _width(name: str) -> int:
    return max(10, len(name) + 2)


def _distance(result: ServerProbe, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if result.has_logprobs else f"{value:.0%}"
