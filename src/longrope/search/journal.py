"""An append-only file of everything a search evaluated, from which it continues after any crash."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longrope.errors import LongRopeError
from longrope.search.protocol import CandidateLoss, Pair
from longrope.storage.jsonl import JsonlFile

Key = tuple[tuple[float, ...], int, float, int, bool]


class Journal:
    """Evaluations by candidate and item, one JSON line each, after a first line with the settings.

    A search is a function of its seed and of the losses it was told. So a resumed one runs again from the start, is
    told what the journal holds, and goes on exactly where it was; the state of the method is written with every
    generation and compared on the way.

    Args:
        path: of the file.
        settings: all that decides which losses come (model, data, length, method, seed …), JSON values only.
        resume: continue the file if there is one; else it must not exist.

    Raises:
        LongRopeError: if the file exists and ``resume`` is False, or it was written with other settings.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], *, resume: bool = False) -> None:
        self.known: dict[Key, tuple[CandidateLoss, float]] = {}
        self.states: dict[int, Any] = {}
        self._lines = JsonlFile(path, settings, of="a search", resume=resume)
        try:
            for line in self._lines.found:
                if "generation" in line:
                    self.states[line["generation"]] = line["state"]
                else:
                    self._take(line)
        except (ValueError, KeyError, TypeError):
            self.close()
            raise self._lines.damaged() from None

    def get(self, pair: Pair, *, gradient: bool) -> tuple[CandidateLoss, float] | None:
        """What a candidate was worth on an item, and the seconds it took; None if it was not evaluated."""
        return self.known.get(_key(pair, gradient=gradient))

    def add(self, pair: Pair, answer: CandidateLoss, seconds: float, *, gradient: bool) -> None:
        """Write what an evaluation gave; a loss or slope that is no finite number is written as null.

        Factors that two names stand for are written once, as a resumed search would find them.
        """
        if self.get(pair, gradient=gradient) is not None:
            return
        scaling, item = pair
        line = {"item": item, "loss": _written(answer.loss), "seconds": seconds}
        if gradient:
            line["gradient"] = [_written(value) for value in answer.gradient or ()]
        line |= {"start_tokens": scaling.start_tokens, "attention_factor": scaling.attention_factor}
        line |= {"factors": list(scaling.factors)}
        self._lines.append(line)
        self._take(line)

    def state(self, number: int, state: Mapping[str, Any]) -> None:
        """Write the method's state after its ``number``-th ask, or compare it with what was written.

        Raises:
            LongRopeError: if they differ: the journal was written by another version of the software.
        """
        state = json.loads(json.dumps(state))
        if number not in self.states:
            self._lines.append({"generation": number, "state": state})
            self.states[number] = state
        elif self.states[number] != state:
            raise LongRopeError(
                f"{self._lines.path}: generation {number} does not come out as it was written; "
                "resume with the versions of longrope and numpy that began the search, or start anew with --overwrite"
            )

    def close(self) -> None:
        """Close the file."""
        self._lines.close()

    def _take(self, line: Mapping[str, Any]) -> None:
        scaling = tuple(map(float, line["factors"])), int(line["start_tokens"]), float(line["attention_factor"])
        slopes = tuple(map(_number, line["gradient"])) if "gradient" in line else None
        known = (CandidateLoss(_number(line["loss"]), slopes), float(line["seconds"]))
        self.known[(*scaling, int(line["item"]), slopes is not None)] = known


def _key(pair: Pair, *, gradient: bool) -> Key:
    scaling, item = pair
    return tuple(scaling.factors), scaling.start_tokens, scaling.attention_factor, item, gradient


def _written(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.inf if value is None else float(value)
