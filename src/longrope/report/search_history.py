"""The journals of a search: the best loss so far, and the comparison that chose the winner."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longrope.errors import LongRopeError
from longrope.evaluation.candidate import Candidate
from longrope.evaluation.results import EvalResults, printable, read_json
from longrope.formats.load_factors import load_extension, load_factors
from longrope.rope import Rope
from longrope.schemes import COMPARED, scheme
from longrope.search.protocol import BACKWARD_COST


@dataclass(frozen=True)
class Step:
    """A candidate that was better than all before it.

    Args:
        passes: Full passes over one document until then; those in frozen contexts take a few percent of one.
        seconds: Seconds until then.
        loss: Mean loss in nats.
    """

    passes: int
    seconds: float
    loss: float


@dataclass(frozen=True)
class SearchHistory:
    """One journal of a search.

    Args:
        name: Stage and seed.
        settings: Settings of the search.
        steps: Improvements.
        passes: Full passes over one document in all.
        held_out: Held-out losses in nats by name, which chose the winner; NaN for one that is not finite.
    """

    name: str
    settings: Mapping[str, Any]
    steps: tuple[Step, ...]
    passes: int
    held_out: Mapping[str, float] = field(default_factory=dict)


def read_searches(folder: Path) -> tuple[SearchHistory, ...]:
    """Read all searches in a run folder, those of its stages included."""
    return tuple(_read(path, folder) for path in sorted(folder.rglob("search-*.jsonl"), key=_by_numbers))


def _by_numbers(path: Path) -> list[int | str]:
    """Return a key that sorts stage 10 after stage 2."""
    return [int(word) if word.isdecimal() else word for word in re.split(r"(\d+)", str(path))]


def _read(path: Path, folder: Path) -> SearchHistory:
    stages = " ".join(name for name in path.parent.relative_to(folder).parts if name != "search")
    name = f"{stages} seed {path.stem.removeprefix('search-')}".strip()
    try:
        text = path.read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]  # a crash cuts the last one
        settings = lines[0]["settings"]
        steps, passes = _steps([line for line in lines[1:] if "loss" in line])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        raise LongRopeError(f"{path}: not the journal of a search, or damaged. Remove it, or search again.") from None
    held_out = {}
    if (path.parent / "extension.json").exists():
        held_out = load_extension(path.parent / "extension.json").long.provenance.get("held_out_loss", {})
        held_out = {name: math.nan if loss is None else loss for name, loss in held_out.items()}
    return SearchHistory(printable(name), settings, steps, passes, held_out)


def _steps(lines: list[dict[str, Any]]) -> tuple[tuple[Step, ...], int]:
    """Return the improvements and the passes in all.

    Only candidates that were evaluated on every sample count, because the losses of single samples differ.
    """
    samples = 1 + max((line["item"] for line in lines), default=0)
    losses_by_factors: dict[tuple[Any, ...], dict[int, float]] = {}
    steps: list[Step] = []
    passes, seconds, best = 0, 0.0, math.inf
    for line in lines:
        seconds += line["seconds"]
        if "context" in line:
            continue
        passes += BACKWARD_COST if "gradient" in line else 1
        if "gradient" in line:
            continue
        key = (*line["factors"], line["start_tokens"], line["attention_factor"])
        losses = losses_by_factors.setdefault(key, {})
        losses[line["item"]] = math.inf if line["loss"] is None else line["loss"]
        mean = sum(losses.values()) / samples
        if len(losses) == samples and mean < best:
            best = mean
            steps.append(Step(passes, seconds, mean))
    return tuple(steps), passes


def results_of_search(folder: Path, searches: tuple[SearchHistory, ...]) -> EvalResults:
    """Return results without measurements, for a folder of ``longrope search``: its factors and the schemes'."""
    settings = searches[0].settings
    try:
        rope, length = Rope(**settings["space"]["rope"]), int(settings["space"]["length"])
        model, dtype = str(settings.get("model", "")), str(settings.get("dtype", ""))
    except (KeyError, TypeError, ValueError):
        raise LongRopeError(f"{folder}: the first line of its journal is damaged. Search again.") from None
    candidates = {name: Candidate(scaling=scheme(name, rope, length)) for name in COMPARED}
    best = next((folder / name for name in ("extension.json", "best.json") if (folder / name).exists()), None)
    if best is not None:
        candidates["searched"] = Candidate(model, load_factors(best))
    provenance = read_json(folder / "run.json").get("provenance", {}) if (folder / "run.json").exists() else {}
    return EvalResults(rope, candidates, model=model, dtype=dtype, lengths=(length,), provenance=provenance)
