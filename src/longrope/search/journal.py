"""An append-only file of everything a search evaluated, from which it continues after any crash."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longrope.errors import LongRopeError
from longrope.search.objective import Answer, Pair

Key = tuple[tuple[float, ...], int, float, int, bool]
VERSION = 1


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
        self.path = Path(path)
        self.known: dict[Key, tuple[Answer, float]] = {}
        self.states: dict[int, Any] = {}
        header = {"version": VERSION, "settings": json.loads(json.dumps(settings))}
        if self.path.exists() and not resume:
            raise LongRopeError(f"{self.path} exists; continue it with --resume or start anew with --overwrite")
        begun = self.path.exists() and self._restore(header)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise LongRopeError(f"cannot write {self.path}: {error.strerror}; choose another output with -o") from None
        if not begun:
            self._append(header)

    def get(self, pair: Pair, *, gradient: bool) -> tuple[Answer, float] | None:
        """What a candidate was worth on an item, and the seconds it took; None if it was not evaluated."""
        return self.known.get(_key(pair, gradient=gradient))

    def add(self, pair: Pair, answer: Answer, seconds: float, *, gradient: bool) -> None:
        """Write what an evaluation gave; a loss or slope that is no finite number is written as null."""
        scaling, item = pair
        line = {"item": item, "loss": _written(answer.loss), "seconds": seconds}
        if gradient:
            line["gradient"] = [_written(value) for value in answer.gradient or ()]
        line |= {"start_tokens": scaling.start_tokens, "attention_factor": scaling.attention_factor}
        self._append(line | {"factors": list(scaling.factors)})
        self._take(line | {"factors": list(scaling.factors)})

    def state(self, number: int, state: Mapping[str, Any]) -> None:
        """Write the method's state after its ``number``-th ask, or compare it with what was written.

        Raises:
            LongRopeError: if they differ: the journal was written by another version of the software.
        """
        state = json.loads(json.dumps(state))
        if number not in self.states:
            self._append({"generation": number, "state": state})
            self.states[number] = state
        elif self.states[number] != state:
            raise LongRopeError(
                f"{self.path}: generation {number} does not come out as it was written; "
                "resume with the versions of longrope and numpy that began the search, or start anew with --overwrite"
            )

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def _restore(self, header: Mapping[str, Any]) -> bool:
        """Take in all whole lines; a last one that was cut by a crash is then taken off the file."""
        try:
            data = self.path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            lines = [json.loads(line) for line in whole.splitlines()]
            if lines:
                self._check(lines[0], header)
            for line in lines[1:]:
                if "generation" in line:
                    self.states[line["generation"]] = line["state"]
                else:
                    self._take(line)
            if whole != data:
                os.truncate(self.path, len(whole))
        except OSError as error:
            raise LongRopeError(
                f"{self.path} cannot be read: {error.strerror}; choose another output with -o"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise LongRopeError(f"{self.path} is no journal of a search; choose another output with -o") from None
        return bool(lines)

    def _take(self, line: Mapping[str, Any]) -> None:
        scaling = tuple(map(float, line["factors"])), int(line["start_tokens"]), float(line["attention_factor"])
        slopes = tuple(map(_number, line["gradient"])) if "gradient" in line else None
        known = (Answer(_number(line["loss"]), slopes), float(line["seconds"]))
        self.known[(*scaling, int(line["item"]), slopes is not None)] = known

    def _check(self, found: Mapping[str, Any], header: Mapping[str, Any]) -> None:
        if found.get("version") != VERSION:
            raise LongRopeError(f"{self.path}: version = {found.get('version')!r} where {VERSION} is expected")
        old, new = found["settings"], header["settings"]
        changed = [
            f"{key} was {old.get(key)!r}, now {new.get(key)!r}"
            for key in {**old, **new}
            if old.get(key) != new.get(key)
        ]
        if changed:
            raise LongRopeError(
                f"{self.path} was begun with other settings: {'; '.join(changed)}; "
                "resume with the same ones, or start anew with --overwrite"
            )


def _key(pair: Pair, *, gradient: bool) -> Key:
    scaling, item = pair
    return tuple(scaling.factors), scaling.start_tokens, scaling.attention_factor, item, gradient


def _written(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.inf if value is None else float(value)
