"""``longrope check``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longrope.cli import options
from longrope.errors import LongRopeError
from longrope.units import parse_length, parse_lengths

if TYPE_CHECKING:
    from longrope.engines.predict import EnginePrediction


def run(
    folder: Annotated[Path, typer.Argument(help="Checkpoint that longrope export wrote.")],
    model: Annotated[
        str | None, typer.Argument(help="What it was made from: as for other commands. Not with --engine.")
    ] = None,
    lengths: Annotated[
        str | None, typer.Option(help="Lengths by commas (default: L0-1, L0, L0+1, L-1; with --engine L0, L0+1, L).")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="Tell instead what an engine does with it: vllm, sglang, mlx-lm … or all. Runs nothing."),
    ] = None,
    max_length: Annotated[
        str | None, typer.Option(help="What the engine is launched for: --max-model-len, -c … (default: L).")
    ] = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Open a checkpoint in plain transformers; exit code 1 if its logits are not those of the patched model.

    With --engine: which factors that engine computes with, by the rules in its source; exit code 1 if these are not
    the ones that the checkpoint is made for.
    """
    wanted = None if lengths is None else parse_lengths(lengths)
    if (engine is None) == (model is None):
        raise LongRopeError("give either MODEL, which the checkpoint was made from, or --engine")
    if engine is None and max_length is not None:
        raise LongRopeError(f"max_length = {max_length!r} is for --engine; --lengths says where logits are compared")
    if model is not None:
        ok = _compare(folder, model, wanted, device, as_json=as_json)
    else:
        limit = None if max_length is None else parse_length(max_length, "max_length")
        ok = _tell_engines(folder, str(engine), limit, wanted, as_json=as_json)
    if not ok:
        sys.exit(1)


def _config(folder: Path) -> dict[str, Any]:
    import json

    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict):
        raise LongRopeError(f"{folder} is no checkpoint: it has no config.json that longrope export wrote")
    return config


def _compare(folder: Path, model: str, lengths: list[int] | None, device: str, *, as_json: bool) -> bool:
    from longrope.export.parity import check_parity

    dtype = _config(folder).get("dtype")
    if not isinstance(dtype, str):
        raise LongRopeError(f"{folder} is no checkpoint: it has no config.json that longrope export wrote")
    loaded, _ = options.open_model(model, dtype, device)
    rows = check_parity(folder, loaded, lengths)
    record = [{"length": row.length, "difference": row.difference, "ok": row.ok} for row in rows]

    def show() -> None:
        for row in rows:
            verdict = "same" if row.ok else "DIFFERENT"
            typer.echo(f"{row.length:>10,} tokens: logits differ by {row.difference:.1e} of their size  {verdict}")

    options.tell(record, as_json=as_json, text=show)
    return all(row.ok for row in rows)


def _tell_engines(folder: Path, engine: str, limit: int | None, lengths: list[int] | None, *, as_json: bool) -> bool:
    from longrope.engines.predict import extension_in_config, find_engines, predict
    from longrope.formats.load_factors import load_extension

    engines, config = find_engines(engine), _config(folder)
    held = extension_in_config(config)
    extension = load_extension(folder) if (folder / "extension.json").exists() else held
    limit = limit or extension.length
    original = extension.rope.original_length
    usual = sorted({length for length in (original, original + 1, limit) if length <= limit})
    served = [
        predict(name, config, extension, limit=limit, length=length) for name in engines for length in lengths or usual
    ]
    options.tell([_record(one, limit) for one in served], as_json=as_json, text=lambda: _show(served, limit))
    return all(one.ok for one in served)


def _record(one: EnginePrediction, limit: int) -> dict[str, Any]:
    from longrope.engines.registry import ENGINES

    return {
        "engine": one.engine,
        "version": ENGINES[one.engine].version,
        "max_length": limit if ENGINES[one.engine].takes_limit else None,
        "length": one.length,
        "factors": one.factors,
        "attention_factor": one.scaling.attention_factor if one.scaling else None,
        "ok": one.ok,
        "departures": list(one.departures),
        "cautions": list(one.cautions),
    }


def _show(served: list[EnginePrediction], limit: int) -> None:
    typer.echo(f"Launched for {limit:,} tokens:")
    for one in served:
        factor = f"attention factor {one.scaling.attention_factor:.6g}" if one.scaling else ""
        verdict = "as made" if one.ok else "DEPARTS"
        typer.echo(f"{one.engine:<18}{one.length:>10,} tokens  {one.factors:<8} {factor:<26} {verdict}".rstrip())
    for kind, lines in (("Warning", "departures"), ("In serving", "cautions")):
        for line in dict.fromkeys(line for one in served for line in getattr(one, lines)):
            typer.echo(f"{kind}: {line}")
