"""The fine-tunings of a run: what each took, and with which settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longrope.errors import LongRopeError
from longrope.evaluation.results import read_json


@dataclass(frozen=True)
class TrainingHistory:
    """One fine-tuning.

    Args:
        weights: Name of the weights that it left, as the run's candidates give it.
        tokens: Tokens that it trained on.
        seconds: Seconds of its last call.
        loss: Mean loss of its last steps.
        settings: Settings that are not the default ones.
        needles: Share of its sequences with planted lines.
    """

    weights: str
    tokens: int
    seconds: float
    loss: float
    settings: Mapping[str, Any]
    needles: float = 0.0

    @property
    def recipe(self) -> str:
        """The settings in one line."""
        named = {name: value for name, value in self.settings.items() if name not in ("steps", "tokens", "seed")}
        words = (f"{name} {_written(value)}" for name, value in named.items())
        return ", ".join(words)


def read_trainings(folder: Path) -> tuple[TrainingHistory, ...]:
    """Read all fine-tunings in a run folder, in the order of its stages.

    Raises:
        LongRopeError: A file is damaged.
    """
    numbered = ((_number(path), path) for path in folder.glob("stage-*/training.json"))
    paths = {number: path for number, path in numbered if number is not None}
    return tuple(_read(paths[number]) for number in sorted(paths))


def _number(path: Path) -> int | None:
    """Return the number of a stage's folder; None for another folder, such as a copy of one."""
    number = path.parent.name.removeprefix("stage-")
    return int(number) if number.isdecimal() else None


def _read(path: Path) -> TrainingHistory:
    record = read_json(path)
    try:
        settings = record.get("settings", {}) | ({"rate": record["rate"]} if "rate" in record else {})
        figures = (int(record["tokens"]), float(record["seconds"]), float(record["loss"]))
        needles = float(record.get("needles", 0.0))
        return TrainingHistory(f"{path.parent.name}/model", *figures, settings, needles)
    except (KeyError, TypeError, ValueError):
        raise LongRopeError(f"{path}: not the record of a fine-tuning, or damaged. Remove it.") from None


def _written(value: Any) -> str:
    """Return a setting as text; a table of settings in parentheses."""
    if isinstance(value, Mapping):
        inner = " ".join(f"{name} {inner}" for name, inner in value.items())
        return f"({inner})" if inner else "on"
    return str(value).lower() if isinstance(value, bool) else str(value)
