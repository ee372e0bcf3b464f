"""``longrope check``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from longrope.cli import options
from longrope.lengths import parse_lengths


def run(
    folder: Annotated[Path, typer.Argument(help="Checkpoint that longrope export wrote.")],
    model: options.Model,
    lengths: Annotated[str | None, typer.Option(help="Lengths by commas (default: L0-1, L0, L0+1, L-1).")] = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Open a checkpoint in plain transformers; exit code 1 if its logits are not those of the patched model."""
    wanted = None if lengths is None else parse_lengths(lengths)

    import json

    from longrope.errors import LongRopeError
    from longrope.export.check import check_parity

    try:
        dtype = json.loads((folder / "config.json").read_text())["dtype"]
    except (OSError, ValueError, KeyError, TypeError):
        raise LongRopeError(f"{folder} is no checkpoint: it has no config.json that longrope export wrote") from None
    loaded, _ = options.open_model(model, dtype, device)
    rows = check_parity(folder, loaded, wanted)
    record = [{"length": row.length, "difference": row.difference, "ok": row.ok} for row in rows]

    def show() -> None:
        for row in rows:
            verdict = "same" if row.ok else "DIFFERENT"
            typer.echo(f"{row.length:>10,} tokens: logits differ by {row.difference:.1e} of their size  {verdict}")

    options.tell(record, as_json=as_json, text=show)
    if not all(row.ok for row in rows):
        sys.exit(1)
