"""The results of an evaluation, which ``results.json`` holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from longrope.errors import LongRopeError
from longrope.evaluation.candidate import Candidate
from longrope.evaluation.measurement import Records
from longrope.evaluation.registry import MEASUREMENTS
from longrope.rope import Rope
from longrope.storage.atomic import write_json

if TYPE_CHECKING:
    import pandas as pd

VERSION = 1
REMEDY = "Run longrope eval again with --overwrite."


class ResultsHeader(BaseModel):
    """The keys of ``results.json`` that are not a measurement's."""

    model_config = ConfigDict(extra="ignore")

    model: str
    dtype: str = ""
    rope: dict[str, Any]
    lengths: tuple[int, ...] = ()
    corpora: dict[str, dict[str, list[str] | str]] = Field(default_factory=dict)
    rows: dict[str, dict[str, Any]]
    provenance: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class EvalResults:
    """Everything that an evaluation measured.

    ``results["perplexity"]["yarn"]`` are the records of one measurement of one candidate.

    Args:
        rope: Geometry of the model before it was extended.
        candidates: Candidates by name.
        records: Records by measurement and candidate.
        model: Name of the model.
        dtype: Number format of the measured models.
        lengths: Lengths in tokens.
        corpora: Names and hash of the test documents by corpus.
        provenance: Command, versions, machine and date.
    """

    rope: Rope
    candidates: Mapping[str, Candidate]
    records: Mapping[str, Records] = field(default_factory=dict)
    model: str = ""
    dtype: str = ""
    lengths: tuple[int, ...] = ()
    corpora: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        strange = {name for records in self.records.values() for name in records} - self.candidates.keys()
        if strange:
            raise LongRopeError(f"rows: {', '.join(sorted(strange))} were measured but are not described")
        for candidate in self.candidates.values():
            for scaling in candidate.scalings.values():
                scaling.inv_freq(self.rope)

    def __getitem__(self, measurement: str) -> Mapping[str, tuple[Any, ...]]:
        """Return the records of a measurement by candidate.

        Raises:
            LongRopeError: If it was not measured.
        """
        if measurement not in self.records:
            known = ", ".join(self.records) or "nothing"
            raise LongRopeError(f"measurement = {measurement!r}: not measured. These results hold {known}.")
        return self.records[measurement]

    def get(self, measurement: str) -> Mapping[str, tuple[Any, ...]]:
        """Return the records of a measurement by candidate; empty if it was not measured."""
        return self.records.get(measurement, {})

    @property
    def not_finite(self) -> dict[str, list[str]]:
        """The measurements with values that are not finite, by candidate."""
        broken: dict[str, list[str]] = {}
        for measurement, by_candidate in self.records.items():
            for candidate, records in by_candidate.items():
                if any(not record.finite and getattr(record, "share", 1) for record in records):  # no key tokens: 0
                    broken.setdefault(candidate, []).append(measurement)
        return broken

    def to_frame(self, measurement: str = "perplexity") -> pd.DataFrame:
        """Return the records of a measurement as a pandas DataFrame with the column ``candidate``.

        Raises:
            LongRopeError: If pandas is missing, or the measurement was not measured.
        """
        records = self[measurement]
        try:
            pandas: Any = import_module("pandas")
        except ImportError:
            raise LongRopeError('to_frame: pandas is not installed. Run pip install "longrope[pandas]".') from None
        rows = [{"candidate": name} | dict(record) for name, rows in records.items() for record in rows]
        return pandas.DataFrame(rows).dropna(axis="columns", how="all")

    def to_json(self) -> dict[str, Any]:
        """Return the results as JSON values, the content of ``results.json``."""
        return {
            "model": self.model,
            "dtype": self.dtype,
            "version": VERSION,
            "rope": self.rope.to_dict(),
            "lengths": list(self.lengths),
            "corpora": dict(self.corpora),
            "rows": {name: candidate.to_json() for name, candidate in self.candidates.items()},
            **({"not_finite": self.not_finite} if self.not_finite else {}),
            **{name: MEASUREMENTS[name].to_json(records) for name, records in self.records.items()},
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EvalResults:
        """Return the results that `to_json` wrote.

        Raises:
            LongRopeError: If they are damaged, or of an unknown version.
        """
        version = data.get("version")
        if version != VERSION:
            raise LongRopeError(
                f"version = {version!r}, but this longrope reads {VERSION}. "
                "Run longrope eval again, or upgrade longrope."
            )
        data = printable(dict(data))
        try:
            header = ResultsHeader.model_validate(data)
            candidates = {name: Candidate.from_json(row) for name, row in header.rows.items()}
            records = {name: row.from_json(data[name]) for name, row in MEASUREMENTS.items() if name in data}
        except ValidationError as error:
            raise _damaged(error) from None
        settings = header.model_dump(exclude={"rope", "rows"})
        return cls(rope=_rope(header.rope), candidates=candidates, records=records, **settings)

    def save(self, path: str | Path) -> None:
        """Write ``results.json``.

        Raises:
            LongRopeError: If the file cannot be written.
        """
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> EvalResults:
        """Read ``results.json``, or that of an evaluation's folder.

        Raises:
            LongRopeError: If the file cannot be read, is damaged, or is of an unknown version.
        """
        path = Path(path)
        path = path / "results.json" if path.is_dir() else path
        data = read_json(path)
        try:
            return cls.from_json(data)
        except LongRopeError as error:
            damaged = "" if str(error).startswith("version") else " is damaged"
            remedy = f". {REMEDY}" if damaged else "."
            raise LongRopeError(f"{path}{damaged}: {str(error).rstrip('.')}{remedy}") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; numbers that are not finite become None, and text becomes printable.

    Raises:
        LongRopeError: If the file cannot be read or does not hold a JSON object.
    """
    try:
        data = json.loads(path.read_bytes(), parse_constant=lambda _: None)
    except OSError as error:
        raise LongRopeError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise LongRopeError(f"{path} is damaged: {error}. {REMEDY}") from None
    if not isinstance(data, dict):
        raise LongRopeError(f"{path} is damaged: not a JSON object. {REMEDY}")
    return printable(data)


def printable(data: Any) -> Any:
    """Return the data with every character replaced that XML cannot hold or that is invisible."""
    if isinstance(data, str):
        return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in data)
    if isinstance(data, dict):
        return {printable(key): printable(value) for key, value in data.items()}
    return [printable(value) for value in data] if isinstance(data, list) else data


def _rope(data: Mapping[str, Any]) -> Rope:
    try:
        return Rope(**data)
    except TypeError as error:
        raise LongRopeError(f"rope: field missing or unknown: {error}") from None


def _damaged(error: ValidationError) -> LongRopeError:
    """Return the first problems that pydantic found, with their places in the file."""
    problems = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()[:3]]
    return LongRopeError("; ".join(problems))
