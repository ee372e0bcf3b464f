"""Which engines run an exported checkpoint as it is made, by the rules that longrope knows of each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longrope.engines.predict import extension_in_config, predict_ends
from longrope.engines.registry import ENGINES
from longrope.errors import LongRopeError
from longrope.formats.load_factors import load_extension
from longrope.report.verdict_answer import VerdictAnswer
from longrope.scaling import Extension


@dataclass(frozen=True)
class Checkpoint:
    """The config of an exported checkpoint, and the factors that it is made for.

    Args:
        config: Content of ``config.json``.
        extension: Factors of the checkpoint.
    """

    config: Mapping[str, Any]
    extension: Extension

    @property
    def is_static(self) -> bool:
        """Whether short texts get the long factors too."""
        configured = extension_in_config(self.config)
        return configured.short.factors == configured.long.factors


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read what engines read of a checkpoint's factors.

    Raises:
        LongRopeError: If the folder has no ``config.json`` with longrope factors.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict):
        raise LongRopeError(f"checkpoint = {str(folder)!r}: no config.json. Give a folder that longrope export wrote.")
    own_file = folder / "extension.json"
    return Checkpoint(config, load_extension(own_file) if own_file.exists() else extension_in_config(config))


def engines_verdict(checkpoint: Checkpoint) -> VerdictAnswer:
    """Return which engines compute with the factors at L0 and at L as made, and why the others do not."""
    predictions = {name: predict_ends(name, checkpoint.config, checkpoint.extension) for name in ENGINES}
    good = [name for name, both in predictions.items() if all(prediction.ok for prediction in both)]
    faults = {
        name: next(prediction.departures[0] for prediction in both if not prediction.ok)
        for name, both in predictions.items()
        if name not in good
    }
    verdict = f"Run as made by {_listed(good)}" if good else "Run as made by no engine that longrope knows"
    verdict += f"; not by {_listed(list(faults))}" if good and faults else ""
    why = " ".join(f"{name}: {fault.removeprefix(f'{name} ')}." for name, fault in faults.items())
    return VerdictAnswer("Which engines run it as made?", verdict, why)


def _listed(names: list[str]) -> str:
    """Return names as a phrase.

    >>> _listed(["vllm", "sglang", "mlx-lm"]), _listed(["vllm"])
    ('vllm, sglang and mlx-lm', 'vllm')
    """
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
