"""The summaries in the results files, which the pages show, are those of the measurements beside them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from math import isnan
from typing import Any

import pytest
from published import ROOT, record


def of_smollm2(case: str) -> tuple[str, str, Callable[[Any, Any], Any]]:
    """Return the field, the script and the function of the tests of SmolLM2 at a length."""
    return "rows", "smollm2", lambda script, values: script.summary(values["measured"], script.CASES[case])


SUMMARIES: dict[str, tuple[str, str, Callable[[Any, Any], Any]]] = {
    "smollm2-16k-tests.json": of_smollm2("16k"),
    "smollm2-32k-tests.json": of_smollm2("32k"),
    "smollm2-extension.json": (
        "perplexity",
        "smollm2_extension",
        lambda script, values: script.summary(values["losses"]),
    ),
    "search-tiny-8x.json": ("auto_against", "search", lambda script, values: script.compare_auto(values["runs"])),
    "search-tiny-32x.json": ("auto_against", "search", lambda script, values: script.compare_auto(values["runs"])),
    "scale.json": ("summary", "scale", lambda script, values: script.summarize(values["cells"])),
    "finetune.json": ("summary", "finetune", lambda script, values: script.summarize(values["cells"])),
}


def values_by_path(value: Any, path: str = "") -> dict[str, Any]:
    """Return the values of nested JSON by their paths; results files have null in place of NaN."""
    if isinstance(value, (dict, list)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: inner for name, v in pairs for key, inner in values_by_path(v, f"{path}/{name}").items()}
    return {path: None if isinstance(value, float) and isnan(value) else value}


@pytest.mark.parametrize("name", SUMMARIES)
def test_a_summary_is_that_of_its_measurements(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    field, script, summarize = SUMMARIES[name]
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "benchmarks")])
    values = record(name)
    again = json.loads(json.dumps(summarize(import_module(script), values)))
    written, computed = values_by_path(values[field]), values_by_path(again)
    assert written.keys() == computed.keys()
    different = [path for path, value in written.items() if value != about(computed[path])]
    assert not different


def about(value: Any) -> Any:
    """Return what a value must equal: a number to rounding."""
    return pytest.approx(value, rel=1e-9) if isinstance(value, (int, float)) else value
