"""What ``results.json`` holds, checked while it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, ValidationError, field_validator, model_validator

from longrope.errors import LongRopeError
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling

VERSION = 1
ROWS = "perplexity differences positions sliding key_tokens retrieval tasks short_context".split()  # keyed by row


class Record(BaseModel):
    """Frozen; keys that a later version adds are left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Cell(Record):
    """Something measured on a corpus's documents at a length in tokens."""

    corpus: str = ""
    length: int


class PerplexityRecord(Cell):
    """None: not finite. ``losses`` is the mean of each document in nats; ``standard_error`` is over documents."""

    perplexity: float | None
    standard_error: float | None = None
    losses: tuple[float | None, ...] = ()
    stride: int | None = None


class DifferenceRecord(Cell):
    """Perplexity against another row's on the same documents; wins are the documents on which the row is better."""

    against: str
    percent: float | None
    standard_error: float | None = None
    wins: int
    losses: int
    p: float | None = None


class Stretch(Record):
    """Mean loss in nats of the tokens from start to end - 1 of the longest length."""

    corpus: str = ""
    start: int
    end: int
    loss: float | None
    standard_error: float | None = None


class KeyTokens(Cell):
    """Perplexity of the tokens that need the long context (LongPPL), and their share of all."""

    perplexity: float | None
    share: float | None = None
    chosen_by: str = ""


class RetrievalScore(Record):
    """How often what was hidden at a depth (0 is the beginning) is found; choice is among given answers."""

    task: str
    length: int
    depth: float | None = None
    score: float | None
    standard_error: float | None = None
    choice: float | None = None
    chance: float | None = None
    trials: int | None = None


class CandidateRecord(Record):
    """Weights, and the factors they run with; None is the model as it is."""

    weights: str = ""
    factors: InstanceOf[Scaling] | InstanceOf[Extension] | None = None

    @field_validator("factors", mode="before")
    @classmethod
    def _read(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        text = json.dumps(value)
        return Extension.from_json(text) if value.get("kind") == "extension" else Scaling.from_json(text)


class EvalResults(Record):
    """All of ``results.json``; every measure may be missing."""

    model: str
    dtype: str = ""
    rope: InstanceOf[Rope]
    lengths: tuple[int, ...] = ()
    corpora: dict[str, dict[str, Any]] = Field(default_factory=dict)
    rows: dict[str, CandidateRecord]
    perplexity: dict[str, tuple[PerplexityRecord, ...]] = Field(default_factory=dict)
    differences: dict[str, tuple[DifferenceRecord, ...]] = Field(default_factory=dict)
    positions: dict[str, tuple[Stretch, ...]] = Field(default_factory=dict)
    sliding: dict[str, tuple[PerplexityRecord, ...]] = Field(default_factory=dict)
    key_tokens: dict[str, tuple[KeyTokens, ...]] = Field(default_factory=dict)
    retrieval: dict[str, tuple[RetrievalScore, ...]] = Field(default_factory=dict)
    tasks: dict[str, dict[str, dict[str, Any]]] = Field(default_factory=dict)
    short_context: dict[str, float | None] = Field(default_factory=dict)
    provenance: dict[str, Any] = Field(default_factory=dict)

    @field_validator("rope", mode="before")
    @classmethod
    def _rope(cls, value: object) -> object:
        try:
            return Rope(**value) if isinstance(value, dict) else value
        except TypeError as error:
            raise LongRopeError(f"rope: field missing or unknown: {error}") from None

    @model_validator(mode="after")
    def _whole(self) -> EvalResults:
        strange = {row for measure in ROWS for row in getattr(self, measure)} - self.rows.keys()
        if strange:
            raise LongRopeError(f"rows: {', '.join(sorted(strange))} were measured but are not described")
        for row in self.rows.values():
            for scaling in parts(row.factors).values():
                scaling.inv_freq(self.rope)
        return self


def parts(factors: Scaling | Extension | None) -> Mapping[str, Scaling]:
    """The scalings of a row, by what to add to its name."""
    if isinstance(factors, Extension):
        short = {} if factors.short.is_identity else {" (short)": factors.short}
        return {"": factors.long, **short}
    return {} if factors is None else {"": factors}


def read_results(path: Path) -> EvalResults:
    """Read and check one file.

    Raises:
        LongRopeError: if it is damaged or of an unknown version.
    """
    data = read_json(path)
    version = data.pop("version", None)
    if version != VERSION:
        raise LongRopeError(
            f"{path}: version = {version!r}, but this longrope reads {VERSION}: "
            "make it again with longrope eval, or upgrade longrope"
        )
    try:
        return EvalResults.model_validate(data)
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:3])
        raise LongRopeError(f"{path} is damaged: {said}; make it again with longrope eval --overwrite") from None
    except LongRopeError as error:
        raise LongRopeError(f"{path} is damaged: {error}; make it again with longrope eval --overwrite") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, numbers that are not finite as None, text made printable.

    Raises:
        LongRopeError: if the file cannot be read or is no JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except OSError as error:
        raise LongRopeError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise LongRopeError(f"{path} is damaged: {error}; make it again with longrope eval --overwrite") from None
    if not isinstance(data, dict):
        raise LongRopeError(f"{path} is damaged: no JSON object; make it again with longrope eval --overwrite")
    return printable(data)


def printable(data: Any) -> Any:
    """The same with every character that XML cannot hold, or no one can see, replaced."""
    if isinstance(data, str):
        return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in data)
    if isinstance(data, dict):
        return {printable(key): printable(value) for key, value in data.items()}
    return [printable(one) for one in data] if isinstance(data, list) else data
