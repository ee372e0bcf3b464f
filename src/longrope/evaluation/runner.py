"""Measure many rows side by side, cell by cell, in a journal from which it goes on after any crash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from longrope.evaluation.measurements import Measurement, Subject
from longrope.scaling import Extension, Scaling
from longrope.storage.atomic import replace_non_finite
from longrope.storage.jsonl import JsonlFile

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

JOURNAL = "cells.jsonl"
Open = Callable[[str], tuple[PreTrainedModel, "PreTrainedTokenizerBase"]]
Tell = Callable[[int, int, str], None]  # tokens that are done, of all, and what is being measured


@dataclass(frozen=True)
class Candidate:
    """What is compared: the name of a model, and factors for it; None is the checkpoint as it is."""

    weights: str
    factors: Scaling | Extension | None = None

    def as_record(self) -> dict[str, Any]:
        """As JSON values."""
        text = None if self.factors is None else self.factors.to_json()
        return {"weights": self.weights, "factors": None if text is None else json.loads(text)}

    @property
    def mark(self) -> str:
        """Rows with the same one have the same losses."""
        sets = [self.factors.short, self.factors.long] if isinstance(self.factors, Extension) else [self.factors]
        told = [one and (list(one.factors), one.attention_factor, one.start_tokens) for one in sets]
        return hashlib.sha256(json.dumps([self.weights, *told]).encode()).hexdigest()[:12]


class SampleStore:
    """The value of every cell by row, part and number.

    Args:
        lines: the journal; without one, nothing is kept on disk.
        found: lines of another process's journal, where there is none here.

    Raises:
        LongRopeError: if a line of the journal is no cell.
    """

    def __init__(self, lines: JsonlFile | None = None, found: Sequence[Mapping[str, Any]] = ()) -> None:
        self._known: dict[tuple[str, str], dict[int, Any]] = {}
        self._lines = lines
        try:
            for line in lines.found if lines else found:
                self._known.setdefault((line["row"], line["part"]), {})[int(line["cell"])] = line["value"]
        except (KeyError, TypeError, ValueError):
            assert lines is not None
            raise lines.damaged() from None

    def of(self, row: Candidate, part: Measurement) -> list[Any]:
        """A part's values in order, once none is missing."""
        found = self._known[row.mark, part.name]
        return [found[i] for i in range(part.count)]

    def missing(self, row: Candidate, part: Measurement) -> list[int]:
        """The cells that are not there."""
        found = self._known.get((row.mark, part.name), {})
        return [i for i in range(part.count) if i not in found]

    def add(self, row: Candidate, part: Measurement, cell: int, value: Any) -> None:
        """Keep a value; numbers that are not finite become None."""
        value = replace_non_finite(value)
        self._known.setdefault((row.mark, part.name), {})[cell] = value
        if self._lines is not None:
            self._lines.append({"row": row.mark, "part": part.name, "cell": cell, "value": value})


def fill(
    cells: SampleStore,
    rows: Mapping[str, Candidate],
    parts: Sequence[Measurement],
    open_model: Open,
    tell: Tell = lambda *_: None,
) -> None:
    """Measure what is missing; every model is opened once, and only if it is needed.

    Args:
        cells: what is known; gets the rest.
        rows: by name.
        parts: of all rows.
        open_model: a model and its tokenizer by name.
        tell: hears of the progress.
    """
    unlike: dict[str, tuple[str, Candidate]] = {}
    for name, row in rows.items():
        unlike.setdefault(row.mark, (name, row))
    work = [(*named, part) for named in unlike.values() for part in parts]
    total = sum(part.count * part.tokens for _, _, part in work)
    done = total - sum(len(cells.missing(row, part)) * part.tokens for _, row, part in work)
    number, count = 1 + sum(not cells.missing(row, part) for _, row, part in work), len(work)
    for weights in dict.fromkeys(row.weights for row in rows.values()):
        mine = [(name, row, part) for name, row, part in work if row.weights == weights and cells.missing(row, part)]
        opened = open_model(weights) if mine else None
        for name, row, part in mine:
            assert opened is not None
            tell(done, total, f"{number}/{count} {name}: {part.name}")
            for cell, value in part.measure(Subject(*opened, row.factors), cells.missing(row, part)):
                cells.add(row, part, cell, value)
                done += part.tokens
                tell(done, total, f"{number}/{count} {name}: {part.name}")
            number += 1
