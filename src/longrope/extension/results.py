"""What a run has reached, on test documents: perplexity by length, and what the short context lost."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from longrope.evaluation.perplexity import compare
from longrope.extension.run import Run
from longrope.files import write_json
from longrope.lengths import short_length
from longrope.models.load import load
from longrope.report.provenance import provenance
from longrope.rope import Extension, Scaling
from longrope.schemes import scheme

EXTENDED = "extended"


def measure(run: Run, extension: Extension) -> None:
    """Perplexities by length: ``results.json``, row by row, so that it goes on where it was stopped.

    Rows: ``original``, the plan's schemes on the original weights, each stage with its factors before and after its
    fine-tuning, and ``extended``: the last weights with short factors up to L0 and long ones beyond.
    """
    path, lengths = run.folder / "results.json", list(run.material.lengths)
    if not lengths:
        return
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"perplexity": {}}
    tokens = run.material.test()
    rows = _rows(run, extension)
    for i, (name, (weights, factors)) in enumerate(rows.items()):
        run.tell("measure", i, len(rows), name)
        if name in record["perplexity"]:
            continue
        model, _ = load(weights, dtype=run.dtype, device=run.device)
        cells = compare(model, {name: factors}, tokens, lengths)[name]
        record["perplexity"][name] = [asdict(cell) for cell in cells]
        record |= {"lengths": lengths, "short_context": short_context(record["perplexity"], run.rope.original_length)}
        write_json(path, record | {"provenance": provenance()})
    run.tell("measure", len(rows), len(rows), "")


def _rows(run: Run, extension: Extension) -> dict[str, tuple[str, Scaling | Extension | None]]:
    """Weights and factors by name."""
    rows: dict[str, tuple[str, Scaling | Extension | None]] = {"original": (run.model, None)}
    for name in run.plan.evaluation.schemes:
        rows[name] = (run.model, scheme(name, run.rope, run.plan.length))
    for number, stage in enumerate(run.plan.stages, start=1):
        name = f"{short_length(stage.length)} {'searched' if stage.factors == 'search' else Path(stage.factors).stem}"
        rows[name] = (run.weights(number), run.factors(number))
        if stage.finetune is not None:
            rows[f"{short_length(stage.length)} fine-tuned"] = (str(run.stage(number) / "model"), run.factors(number))
    return rows | {EXTENDED: (run.weights(len(run.plan.stages) + 1), extension)}


def short_context(perplexity: dict[str, Any], original: int) -> dict[str, float]:
    """Percent of perplexity that each row lost at L0 against the original model."""
    cells = [
        (name, cell["perplexity"]) for name, row in perplexity.items() for cell in row if cell["length"] == original
    ]
    at = {name: value for name, value in cells if value is not None and math.isfinite(value)}
    before = at.pop("original", None)
    return {} if before is None else {name: 100 * (now / before - 1) for name, now in at.items()}
