"""What the journals of a search tell: the best loss so far, and the comparison that chose the winner."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longrope.errors import LongRopeError
from longrope.evaluation.results import CandidateRecord, EvalResults, printable, read_json
from longrope.formats.load_factors import load_extension, load_factors
from longrope.rope import Rope
from longrope.schemes import COMPARED, scheme

BACKWARD = 3  # what a forward and a backward pass cost together, in forward passes


@dataclass(frozen=True)
class Step:
    """A candidate that was better than all before it, after so many passes over one document and so many seconds."""

    passes: int
    seconds: float
    loss: float


@dataclass(frozen=True)
class SearchHistory:
    """One journal; ``held_out`` has the losses in nats by name that chose the winner."""

    name: str
    settings: Mapping[str, Any]
    steps: tuple[Step, ...]
    passes: int
    held_out: Mapping[str, float] = field(default_factory=dict)


def read_searches(folder: Path) -> tuple[SearchHistory, ...]:
    """All searches in a run folder, those of its stages included."""
    return tuple(_read(path, folder) for path in sorted(folder.rglob("search-*.jsonl")))


def _read(path: Path, folder: Path) -> SearchHistory:
    place = path.parent.relative_to(folder).parts
    where = " ".join(part for part in place if part != "search")
    name = f"{where} seed {path.stem.removeprefix('search-')}".strip()
    try:
        text = path.read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]  # a crash cuts the last one
        settings = lines[0]["settings"]
        steps, passes = _steps([line for line in lines[1:] if "loss" in line])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        raise LongRopeError(f"{path} is no journal of a search, or damaged; remove it, or search again") from None
    held_out = {}
    if (path.parent / "extension.json").exists():
        found = load_extension(path.parent / "extension.json")
        held_out = found.long.provenance.get("held_out_loss", {})
    return SearchHistory(printable(name), settings, steps, passes, held_out)


def _steps(lines: list[dict[str, Any]]) -> tuple[tuple[Step, ...], int]:
    """Improvements, counting only candidates that were evaluated on every item: losses of single items differ."""
    items = 1 + max((line["item"] for line in lines), default=0)
    seen: dict[tuple[Any, ...], dict[int, float]] = {}
    steps: list[Step] = []
    passes, seconds, best = 0, 0.0, math.inf
    for line in lines:
        passes += BACKWARD if "gradient" in line else 1
        seconds += line["seconds"]
        if "gradient" in line:
            continue
        losses = seen.setdefault((*line["factors"], line["start_tokens"], line["attention_factor"]), {})
        losses[line["item"]] = math.inf if line["loss"] is None else line["loss"]
        mean = sum(losses.values()) / items
        if len(losses) == items and mean < best:
            best = mean
            steps.append(Step(passes, seconds, mean))
    return tuple(steps), passes


def results_of_search(folder: Path, searches: tuple[SearchHistory, ...]) -> EvalResults:
    """What a folder of ``longrope search`` has to show before any evaluation: its factors beside the schemes'."""
    settings = searches[0].settings
    try:
        rope, length = Rope(**settings["space"]["rope"]), int(settings["space"]["length"])
        model, dtype = str(settings.get("model", "")), str(settings.get("dtype", ""))
    except (KeyError, TypeError, ValueError):
        raise LongRopeError(f"{folder}: the first line of its journal is damaged; search again") from None
    rows = {name: CandidateRecord(factors=scheme(name, rope, length)) for name in COMPARED}
    found = next((folder / name for name in ("extension.json", "best.json") if (folder / name).exists()), None)
    if found is not None:
        rows["searched"] = CandidateRecord(weights=model, factors=load_factors(found))
    told = read_json(folder / "run.json").get("provenance", {}) if (folder / "run.json").exists() else {}
    return EvalResults(model=model, dtype=dtype, rope=rope, lengths=(length,), rows=rows, provenance=told)
