"""Write docs/reference/results.schema.json, the JSON Schema of ``results.json``, from the types that read the file."""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any, get_type_hints

from generated import write_or_check
from pydantic import TypeAdapter

from longrope.evaluation.measurement import Measurement
from longrope.evaluation.registry import MEASUREMENTS
from longrope.evaluation.results import VERSION, EvalResults, ResultsHeader
from longrope.rope import Rope
from longrope.scaling import VERSION as FACTORS_VERSION
from longrope.scaling import Extension, Scaling

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "results.schema.json"


def main() -> int:
    """Write the schema, or with ``--check`` only compare it."""
    return write_or_check(PAGE, json.dumps(schema(), indent=1, ensure_ascii=False) + "\n", "results_schema.py")


def schema() -> dict[str, Any]:
    """Return the schema. It allows further keys, which a measurement of yours or a later version writes."""
    records = sorted({row.record for row in MEASUREMENTS.values()}, key=lambda record: record.__name__)
    header = described(ResultsHeader)
    header |= _documented(EvalResults, header["properties"])
    names = {"type": "array", "items": {"type": "string"}}
    properties = {
        "version": {"const": VERSION},
        **header["properties"],
        "rope": _reference("Rope"),
        "rows": _by_candidate(_reference("Candidate"), "Every candidate by name."),
        "not_finite": _by_candidate(names, "Measurements with values that are not finite, by candidate."),
        **{name: measurement(row) for name, row in MEASUREMENTS.items()},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "results.json of longrope",
        "description": "What longrope eval and longrope extend measured. A number that is not finite is null.",
        "type": "object",
        "properties": properties,
        "required": ["version", *header["required"]],
        "$defs": {record.__name__: described(record) for record in records} | factors(),
    }


def measurement(row: Measurement) -> dict[str, Any]:
    """Return the schema of a measurement's values by candidate: as it encodes them, or its records."""
    description = described(row.record)["description"] + " By candidate."
    if row.encode is None:
        return _by_candidate({"type": "array", "items": _reference(row.record.__name__)}, description)
    encoded = get_type_hints(row.encode, include_extras=True)["return"]
    return TypeAdapter(encoded).json_schema() | {"description": description}


def factors() -> dict[str, Any]:
    """Return the schemas of a candidate and of its factors, as ``factors.json`` holds them too."""
    one_set, version = described(Scaling), {"const": FACTORS_VERSION}
    scaling = {"version": version, "kind": {"const": "scaling"}, **one_set["properties"]}
    extension = {
        "version": version,
        "kind": {"const": "extension"},
        "length": {"type": "integer"},
        "rope": _reference("Rope"),
        "short": _reference("FactorSet"),
        "long": _reference("FactorSet"),
    }
    kinds = [_reference("Scaling"), _reference("Extension"), {"type": "null"}]
    candidate = {
        "weights": {"type": "string", "description": "Name of the model."},
        "factors": {"anyOf": kinds, "description": "Factors for it; null runs the checkpoint as it is."},
    }
    return {
        "FactorSet": one_set,
        "Scaling": one_set | {"properties": scaling, "required": ["version", "kind", *one_set["required"]]},
        "Extension": {**_documented(Extension, extension), "required": list(extension)},
        "Candidate": {"type": "object", "properties": candidate, "required": list(candidate)},
        "Rope": described(Rope),
    }


def described(kind: Any) -> dict[str, Any]:
    """Return the schema of a type, with its docstring's entries as the descriptions of its fields."""
    fields = TypeAdapter(kind).json_schema()
    properties = {
        name: {key: value for key, value in field.items() if key not in ("title", "default")}
        for name, field in fields["properties"].items()
    }
    return {**_documented(kind, properties), "required": fields["required"]}


def _documented(kind: type, properties: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object with the descriptions of a class's docstring."""
    text = inspect.cleandoc(kind.__doc__ or "").replace("`", "").replace("NaN", "null")
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
    for name, entry in entries:
        if name in properties:
            properties[name] = {**properties[name], "description": " ".join(entry.split())}
    return {"type": "object", "description": text.splitlines()[0], "properties": properties}


def _by_candidate(values: dict[str, Any], description: str) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": values, "description": description}


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/$defs/{name}"}


if __name__ == "__main__":
    sys.exit(main())
