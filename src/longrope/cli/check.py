"""``longrope check``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longrope.cli import options
from longrope.engines.registry import ENGINES
from longrope.errors import LongRopeError
from longrope.units import parse_length, parse_lengths

if TYPE_CHECKING:
    from longrope.engines.predict import EnginePrediction


def run(
    folder: Annotated[Path, typer.Argument(help="Checkpoint that longrope export wrote.")],
    model: Annotated[
        str | None, typer.Argument(help="Model that it was made from, as for other commands. Not with --engine.")
    ] = None,
    lengths: Annotated[
        str | None, typer.Option(help="Lengths by commas (default: L0-1, L0, L0+1, L-1; with --engine L0, L0+1, L).")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help=f"Predict an engine's factors instead, running nothing: all, {', '.join(ENGINES)}."),
    ] = None,
    max_length: Annotated[
        str | None,
        typer.Option(help="Maximum length that the engine is launched for: --max-model-len, -c … (default: L)."),
    ] = None,
    original_length: options.OriginalLength = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Open a checkpoint in plain transformers; exit code 1 if its logits are not those of the patched model.

    With --engine: which factors that engine computes with, by the rules in its source; exit code 1 if these are not
    the ones that the checkpoint is made for.
    """
    tokens = None if lengths is None else parse_lengths(lengths)
    if (engine is None) == (model is None):
        raise LongRopeError("give either MODEL, which the checkpoint was made from, or --engine")
    if engine is None and max_length is not None:
        raise LongRopeError(f"max_length = {max_length!r} is for --engine; --lengths says where logits are compared")
    decided = options.decided_length(original_length)
    if model is not None:
        ok = _compare_logits(folder, model, tokens, device, original_length=decided, as_json=as_json)
    elif device != "auto":
        raise LongRopeError(f"device = {device!r}: --engine runs nothing. Leave --device out.")
    elif decided is not None:
        raise LongRopeError(f"original_length = {decided}: an engine reads the checkpoint's own. Leave it out.")
    else:
        limit = None if max_length is None else parse_length(max_length, "max_length")
        ok = _predict_engines(folder, str(engine), limit, tokens, as_json=as_json)
    if not ok:
        sys.exit(1)


def _read_config(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's config.

    Raises:
        LongRopeError: The folder has no ``config.json`` with a JSON object.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict):
        raise LongRopeError(f"{folder}: no config.json that longrope export wrote. Give the folder of a checkpoint.")
    return config


def _compare_logits(
    folder: Path, model: str, lengths: list[int] | None, device: str, *, original_length: int | None, as_json: bool
) -> bool:
    """Print how far a checkpoint's logits are from the patched model's, and return whether they agree."""
    from longrope.export.parity import check_parity

    dtype = _read_config(folder).get("dtype")
    if not isinstance(dtype, str):
        raise LongRopeError(f"{folder}: its config.json has no dtype. Give the folder that longrope export wrote.")
    loaded, _ = options.open_model(model, dtype, device, original_length)
    parities = check_parity(folder, loaded, lengths)
    record = [{"length": parity.length, "difference": parity.difference, "ok": parity.ok} for parity in parities]

    def show() -> None:
        for parity in parities:
            verdict = "same" if parity.ok else "DIFFERENT"
            difference = f"logits differ by {parity.difference:.1e} of their size"
            typer.echo(f"{parity.length:>10,} tokens: {difference}  {verdict}")

    options.tell(record, as_json=as_json, text=show)
    return all(parity.ok for parity in parities)


def _predict_engines(folder: Path, engine: str, limit: int | None, lengths: list[int] | None, *, as_json: bool) -> bool:
    """Print the factors that engines compute with, and return whether they are those of the checkpoint."""
    from longrope.engines.predict import extension_in_config, find_engines, predict
    from longrope.formats.load_factors import load_extension

    engines, config = find_engines(engine), _read_config(folder)
    extension = extension_in_config(config)
    if (folder / "extension.json").exists():
        extension = load_extension(folder / "extension.json")
    limit = limit or extension.length
    original = extension.rope.original_length
    lengths = lengths or sorted({length for length in (original, original + 1, limit) if length <= limit})
    predictions = [
        predict(name, config, extension, limit=limit, length=length) for name in engines for length in lengths
    ]
    record = [_prediction_record(prediction, limit) for prediction in predictions]
    options.tell(record, as_json=as_json, text=lambda: _show_predictions(predictions, limit))
    return all(prediction.ok for prediction in predictions)


def _prediction_record(prediction: EnginePrediction, limit: int) -> dict[str, Any]:
    """Return a prediction as JSON values."""
    engine = ENGINES[prediction.engine]
    return {
        "engine": prediction.engine,
        "version": engine.version,
        "max_length": limit if engine.takes_limit else None,
        "length": prediction.length,
        "factors": prediction.factors,
        "attention_factor": prediction.scaling.attention_factor if prediction.scaling else None,
        "ok": prediction.ok,
        "departures": list(prediction.departures),
        "cautions": list(prediction.cautions),
    }


def _show_predictions(predictions: list[EnginePrediction], limit: int) -> None:
    """Print a line for each prediction, then their warnings."""
    typer.echo(f"Launched for {limit:,} tokens:")
    for prediction in predictions:
        factor = f"attention factor {prediction.scaling.attention_factor:.6g}" if prediction.scaling else ""
        verdict = "as made" if prediction.ok else "DEPARTS"
        line = f"{prediction.engine:<18}{prediction.length:>10,} tokens  {prediction.factors:<8} {factor:<26} {verdict}"
        typer.echo(line.rstrip())
    departures = [line for prediction in predictions for line in prediction.departures]
    cautions = [line for prediction in predictions for line in prediction.cautions]
    for line in dict.fromkeys(departures):
        typer.echo(f"Warning: {line}")
    for line in dict.fromkeys(cautions):
        typer.echo(f"In serving: {line}")
