"""An append-only file of everything a search evaluated, from which it continues after any crash."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from longrope.errors import LongRopeError
from longrope.rope import Scaling

Objective = Callable[[Scaling], float]
VERSION = 1


class Journal:
    """Evaluations by candidate, one JSON line each, after a first line with the settings.

    A search is a function of its seed and of the losses it was told. So a resumed one runs again from the start, is
    told what the journal holds, and goes on exactly where it was; the generator's state is written with every
    generation and compared on the way.

    Args:
        path: of the file.
        settings: all that decides which losses come (model, data, length, method, seed …), JSON values only.
        resume: continue the file if there is one; else it must not exist.

    Raises:
        LongRopeError: if the file exists and ``resume`` is False, or it was written with other settings.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], *, resume: bool = False) -> None:
        self.path, self.known, self.states = Path(path), {}, {}
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

    def evaluate(self, scaling: Scaling, objective: Objective) -> tuple[float, float]:
        """The loss of a candidate and the seconds it took, from the journal if it was evaluated before.

        A loss that is no finite number is written as null and counts as infinite.
        """
        key = _key(scaling)
        if key not in self.known:
            started = time.perf_counter()
            loss = float(objective(scaling))
            seconds = round(time.perf_counter() - started, 3)
            written = loss if math.isfinite(loss) else None
            self._append(
                {"loss": written, "seconds": seconds, "start_tokens": key[1], "attention_factor": key[2]}
                | {"factors": list(key[0])}
            )
            self.known[key] = (_number(written), seconds)
        return self.known[key]

    def generation(self, number: int, rng: Mapping[str, Any]) -> None:
        """Write the random generator's state after a generation, or compare it with what was written.

        Raises:
            LongRopeError: if they differ: the journal was written by another version of the software.
        """
        state = json.loads(json.dumps(rng))
        if number not in self.states:
            self._append({"generation": number, "rng": state})
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
                    self.states[line["generation"]] = line["rng"]
                else:
                    self.known[_key_of(line)] = (_number(line["loss"]), float(line["seconds"]))
            if whole != data:
                os.truncate(self.path, len(whole))
        except OSError as error:
            raise LongRopeError(
                f"{self.path} cannot be read: {error.strerror}; choose another output with -o"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise LongRopeError(f"{self.path} is no journal of a search; choose another output with -o") from None
        return bool(lines)

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


def _key(scaling: Scaling) -> tuple[tuple[float, ...], int, float]:
    return tuple(scaling.factors), scaling.start_tokens, scaling.attention_factor


def _key_of(line: Mapping[str, Any]) -> tuple[tuple[float, ...], int, float]:
    return tuple(map(float, line["factors"])), int(line["start_tokens"]), float(line["attention_factor"])


def _number(loss: float | None) -> float:
    return math.inf if loss is None else float(loss)
