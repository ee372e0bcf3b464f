"""The files that longrope writes keep docs/reference/results.schema.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import pytest
import sample_runs
from jsonschema import Draft202012Validator

import longrope as lr
from longrope.storage.atomic import dumps

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs" / "reference" / "results.schema.json").read_text(encoding="utf-8"))
COMMITTED = ["demo.json", "schemes.json", "yarn.json", "resonance.json"]
Change = Callable[[dict[str, Any]], Any]


def faults(record: object) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(SCHEMA).iter_errors(record)]


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_results_keep_it(name: str) -> None:
    assert faults(json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))) == []


def test_results_with_every_measurement_keep_it() -> None:
    record = sample_runs.results()
    record["perplexity"]["pi"][-1] |= {"perplexity": None, "standard_error": None, "losses": [None] * 6}
    assert faults(json.loads(dumps(lr.EvalResults.from_json(record).to_json()))) == []


def test_what_an_evaluation_writes_keeps_it(tmp_path: Path) -> None:
    model, tokenizer = lr.load("tiny", dtype="float32")
    rope = lr.Rope.of(model)
    candidates = {"yarn": lr.scheme("yarn", rope, 512), "mine": lr.Extension.of(rope, lr.scheme("ntk", rope, 512))}
    options = lr.EvalOptions(trials=2, output=tmp_path, key_tokens="original", stride=200)
    texts = families.tokens(2, 512).tolist()
    lr.evaluate(model, tokenizer, candidates, lengths=[256, 512], texts=texts, retrieval=["recall"], options=options)
    record = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert faults(record) == []
    described = SCHEMA["properties"].keys()
    assert record.keys() <= described, "a key that the schema does not describe"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda record: record.pop("rows"), "'rows' is a required property"),
        (lambda record: record.update(version=2), r"$.version: 1 was expected"),
        (lambda record: record["rope"].pop("base"), r"$.rope: 'base' is a required"),
        (lambda record: record["perplexity"]["yarn"][0].update(length="4k"), "'4k' is not of type 'integer'"),
        (lambda record: record["perplexity"]["yarn"][0].update(perplexity="low"), "'low' is not of type 'number'"),
        (lambda record: record["short_context"].update(yarn="+1%"), "'+1%' is not of type 'number'"),
        (lambda record: record["rows"]["yarn"]["factors"].update(factors="1"), "$.rows.yarn.factors"),
    ],
)
def test_damaged_results_do_not(change: Change, fault: str) -> None:
    record = sample_runs.results(("original", "yarn"))
    change(record)
    assert any(fault in line for line in faults(record)), faults(record)
