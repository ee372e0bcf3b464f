"""A scheme from outside: one row in SCHEMES, then it is used from Python and from the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from longrope import SCHEMES, Extension, Rope, Scaling, scheme
from longrope.cli.main import app
from longrope.stages.plan import parse_plan

TINY = Rope(dim=64, base=10_000.0, original_length=256)


def step(rope: Rope, length: int) -> Scaling:
    turns = rope.original_length / rope.wavelengths
    return Scaling(np.where(turns > 2, 1.0, rope.scale(length)).tolist(), scheme="step", length=length)


@pytest.fixture(autouse=True)
def _step_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCHEMES, "step", step)


def longrope(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_python_finds_it_by_name() -> None:
    assert scheme("step", TINY, 2048) == step(TINY, 2048)
    wavelengths = scheme("step+resonance", TINY, 2048).factors * TINY.wavelengths
    assert np.allclose(wavelengths, wavelengths.round())


def test_scale_writes_its_factors(tmp_path) -> None:
    path = tmp_path / "factors.json"
    longrope("scale", "tiny", "--scheme", "step", "--length", "2k", "-o", path)
    assert Extension.from_json(path.read_text()).long == step(TINY, 2048)


def test_inspect_lists_it() -> None:
    record = json.loads(longrope("inspect", "tiny", "--length", "2k", "--schemes", "all", "--json"))
    assert record["factors"]["step"] == list(step(TINY, 2048).factors)


def test_a_plan_takes_it_for_a_stage() -> None:
    plan = parse_plan('version = 1\n[[stages]]\nlength = "2k"\nfactors = "step"\n')
    assert plan.stages[0].factors == "step"
