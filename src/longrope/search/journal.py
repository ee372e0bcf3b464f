"""An append-only file of all evaluations of a search, from which the search continues after any crash."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from longrope.errors import LongRopeError
from longrope.scaling import Scaling
from longrope.search.protocol import CandidateBatch, CandidateLoss, Pair
from longrope.storage.jsonl import JsonlFile

Key = tuple[tuple[float, ...], int, float, int, bool, str]
ROUNDING = 1e-10  # relative difference below which numbers differ by the rounding of another processor


class Journal:
    """Evaluations by candidate and sample, one JSON line each, after a first line with the settings.

    A search is a function of its seed and of the losses that it receives. So a resumed search runs again from the
    start, receives the losses that the journal holds, and continues where it stopped. The state of the method is
    written with every generation and compared on the way. Another processor may round exp and log in another way, so
    numbers are compared up to `ROUNDING`.

    Args:
        path: Path of the file.
        settings: All settings that decide the losses (model, data, length, method, seed …), as JSON values.
        resume: Whether to continue the file if it exists. If False, it must not exist.

    Raises:
        LongRopeError: If the file exists and ``resume`` is False, or it was written with other settings.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], *, resume: bool = False) -> None:
        self.known: dict[Key, tuple[CandidateLoss, float]] = {}
        self.states: dict[int, Any] = {}
        self.dtype = str(settings.get("dtype", ""))
        self._lines = JsonlFile(path, settings, subject="a search", resume=resume)
        try:
            for line in self._lines.lines:
                if "generation" in line:
                    self.states[line["generation"]] = line["state"]
                else:
                    self._add_line(line)
        except (ValueError, KeyError, TypeError):
            self.close()
            raise self._lines.damaged() from None
        self._candidates = {key[:3] for key in self.known}  # of the file

    def get(self, pair: Pair, *, gradient: bool, context: str = "") -> tuple[CandidateLoss, float] | None:
        """Return the loss of a candidate on a sample and the seconds it took; None if it was not evaluated.

        Args:
            pair: The candidate and the index of the sample.
            gradient: Whether the loss must have its gradient.
            context: Name of the frozen context (`context_name`); empty for a full pass.
        """
        return self.known.get(_key(pair, gradient, context))

    def add(self, pair: Pair, loss: CandidateLoss, seconds: float, *, gradient: bool, context: str = "") -> None:
        """Write an evaluation; a number that is not finite is written as null.

        Equal factors with two names are written once, as a resumed search would find them.
        """
        if self.get(pair, gradient=gradient, context=context) is not None:
            return
        scaling, sample = pair
        line = {"item": sample, "loss": _to_json(loss.loss), "seconds": seconds}
        if gradient:
            line["gradient"] = [_to_json(value) for value in loss.gradient or ()]
        if context:
            line["context"] = context
        line |= {"start_tokens": scaling.start_tokens, "attention_factor": scaling.attention_factor}
        line |= {"factors": list(scaling.factors)}
        self._lines.append(line)
        self._add_line(line)

    def replayed(self, generation: int, batch: CandidateBatch) -> CandidateBatch:
        """Return the batch of a generation, one whose state the file holds with the candidates as they are written.

        Raises:
            LongRopeError: If the file holds the state, but not the candidates.
        """
        if generation not in self.states:
            return batch
        candidates = [self._as_written(candidate, generation) for candidate in batch.candidates]
        reference = None if batch.reference is None else self._as_written(batch.reference, generation)
        return replace(batch, candidates=candidates, reference=reference)

    def state(self, generation: int, state: Mapping[str, Any]) -> None:
        """Write the method's state after a generation, or compare it with the state written before.

        Raises:
            LongRopeError: If the states differ, because the journal was written by another version of the software.
        """
        state = json.loads(json.dumps(state))
        if generation not in self.states:
            self._lines.append({"generation": generation, "state": state})
            self.states[generation] = state
        elif not _equal_up_to_rounding(self.states[generation], state):
            raise self._different(generation)

    def close(self) -> None:
        """Close the file."""
        self._lines.close()

    def _as_written(self, candidate: Scaling, generation: int) -> Scaling:
        """Return the nearest candidate of the file, which differs by rounding at most, with the name of this one."""
        factors, start_tokens, attention_factor = key = _key((candidate, 0), gradient=False, context="")[:3]
        if key in self._candidates:
            return candidate

        def distance(other: tuple[tuple[float, ...], int, float]) -> float:
            if len(other[0]) != len(factors) or other[1] != start_tokens:
                return math.inf
            ratios = np.array([*other[0], other[2]]) / np.array([*factors, attention_factor])
            return float(np.abs(ratios - 1).max())

        nearest = min(self._candidates, key=distance, default=key)
        if not self._candidates or distance(nearest) > ROUNDING:
            raise self._different(generation)
        return replace(candidate, factors=nearest[0], attention_factor=nearest[2])

    def _different(self, generation: int) -> LongRopeError:
        return LongRopeError(
            f"{self._lines.path}: generation {generation} comes out differently than it was written. Resume with the "
            "versions of longrope and numpy, and on the kind of processor, that began the search, or overwrite it."
        )

    def _add_line(self, line: Mapping[str, Any]) -> None:
        scaling = tuple(map(float, line["factors"])), int(line["start_tokens"]), float(line["attention_factor"])
        gradient = tuple(map(_from_json, line["gradient"])) if "gradient" in line else None
        known = (CandidateLoss(_from_json(line["loss"]), gradient), float(line["seconds"]))
        self.known[(*scaling, int(line["item"]), gradient is not None, line.get("context", ""))] = known


def context_name(reference: Scaling | None) -> str:
    """Return a fingerprint of the candidate whose frozen contexts are used; empty for full passes."""
    if reference is None:
        return ""
    values = json.dumps([list(reference.factors), reference.start_tokens, reference.attention_factor])
    return hashlib.sha256(values.encode()).hexdigest()[:16]


def _key(pair: Pair, gradient: bool, context: str) -> Key:
    scaling, sample = pair
    return tuple(scaling.factors), scaling.start_tokens, scaling.attention_factor, sample, gradient, context


def _equal_up_to_rounding(written: Any, state: Any) -> bool:
    """Return whether JSON values are equal, floats up to `ROUNDING`; older files may have more keys."""
    match written, state:
        case dict(), dict():
            return state.keys() <= written.keys() and all(
                _equal_up_to_rounding(written[key], value) for key, value in state.items()
            )
        case list(), list():
            return len(written) == len(state) and all(map(_equal_up_to_rounding, written, state))
        case float(), float():
            return math.isclose(written, state, rel_tol=ROUNDING, abs_tol=ROUNDING)
    return written == state


def _to_json(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _from_json(value: float | None) -> float:
    return math.inf if value is None else float(value)
