"""``--dtype auto``: the checkpoint of tiny is in bfloat16, which some CPUs are slow in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longrope.cost import bfloat16_speed, memory_check

SLOW, FAST = 4.2, 1.0
CHOSEN = "Note: dtype = auto: float32, as this CPU takes 4.2 times as long for a product in bfloat16 as in float32"
SEARCH = ("search", "tiny", "--length", "512", "--method", "cma", "--needles", 0, "--budget", 12 * 512)
SEARCH += ("--search-documents", 1, "--held-out-documents", 1, "--device", "cpu", "--json")
EVAL = ("eval", "tiny", "--lengths", "256", "--schemes", "none", "--documents", 1, "--device", "cpu", "--json")
PLAN = """
version = 1
[[stages]]
length = 512
factors = "yarn"
[evaluation]
lengths = [256]
documents = 1
schemes = []
"""


@pytest.fixture
def slowdown(monkeypatch: pytest.MonkeyPatch):
    """Sets how slow this CPU is in bfloat16."""
    return lambda times: monkeypatch.setattr(bfloat16_speed, "bfloat16_slowdown", lambda: times)


def recorded(journal: Path) -> str:
    return json.loads(journal.read_text(encoding="utf-8").splitlines()[0])["settings"]["dtype"]


@pytest.mark.parametrize(("times", "dtype"), [(SLOW, "torch.float32"), (FAST, "torch.bfloat16")])
def test_a_search_takes_the_faster_dtype(cli, slowdown, tmp_path: Path, times: float, dtype: str) -> None:
    slowdown(times)
    result = cli(*SEARCH, "-o", tmp_path / "run")
    assert result.code == 0, result.err
    assert result.err.count(CHOSEN) == (times == SLOW)
    assert recorded(tmp_path / "run" / "search-0.jsonl") == recorded(tmp_path / "run" / "held-out.jsonl") == dtype
    slowdown(FAST if times == SLOW else SLOW)  # another machine goes on: the journal's dtype decides
    (tmp_path / "run" / "extension.json").unlink()
    again = cli(*SEARCH, "-o", tmp_path / "run", "--resume")
    assert again.code == 0, again.err
    assert CHOSEN not in again.err
    assert recorded(tmp_path / "run" / "search-0.jsonl") == dtype
    other = cli(*SEARCH, "-o", tmp_path / "run", "--resume", "--dtype", "float16")
    assert other.code == 2
    assert f"dtype was '{dtype}', now 'torch.float16'" in other.err


@pytest.mark.parametrize(("times", "dtype"), [(SLOW, "float32"), (FAST, "bfloat16")])
def test_an_evaluation_takes_the_faster_dtype(cli, slowdown, tmp_path: Path, times: float, dtype: str) -> None:
    slowdown(times)
    result = cli(*EVAL, "-o", tmp_path)
    assert result.code == 0, result.err
    assert result.err.count(CHOSEN) == (times == SLOW)
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["dtype"], recorded(tmp_path / "cells.jsonl")) == (dtype, dtype)
    slowdown(FAST if times == SLOW else SLOW)
    again = cli(*EVAL, "-o", tmp_path, "--resume")
    assert again.code == 0, again.err
    assert json.loads((tmp_path / "results.json").read_text())["dtype"] == dtype
    other = cli(*EVAL, "-o", tmp_path, "--resume", "--dtype", "float16")
    assert f"dtype was '{dtype}', now 'float16'" in other.err


@pytest.mark.parametrize(("times", "dtype"), [(SLOW, "float32"), (FAST, "bfloat16")])
def test_a_staged_run_takes_the_faster_dtype(cli, slowdown, tmp_path: Path, times: float, dtype: str) -> None:
    slowdown(times)
    plan, output = tmp_path / "plan.toml", tmp_path / "run"
    plan.write_text(PLAN)
    command = ("extend", "tiny", plan, "-o", output, "--device", "cpu", "--json")
    result = cli(*command)
    assert result.code == 0, result.err
    assert result.err.count(CHOSEN) == (times == SLOW)
    for file in ("run.json", "results.json"):
        assert json.loads((output / file).read_text())["dtype"] == dtype
    slowdown(FAST if times == SLOW else SLOW)
    assert cli(*command, "--resume").code == 0
    other = cli(*command, "--resume", "--dtype", "float16")
    assert f"dtype {dtype}, now float16" in other.err


def test_generate_takes_the_faster_dtype_if_the_whole_window_fits(
    cli, slowdown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowdown(SLOW)
    factors = tmp_path / "factors.json"
    assert cli("scale", "tiny", "--scheme", "yarn", "--length", "2k", "-o", factors).code == 0
    command = ("generate", "tiny", "def", "--factors", factors, "--max-new-tokens", 2, "--device", "cpu")
    assert CHOSEN in cli(*command).err
    monkeypatch.setattr(memory_check, "free_memory", lambda _: 2**20)
    assert (
        "Note: dtype = auto: bfloat16, as float32 does not fit into memory" in cli(*command[:-2], "--device", "cpu").err
    )


@pytest.mark.parametrize("plan", [("--to", "2k"), ("--plan", "tiny")])
def test_a_plan_is_costed_in_the_faster_dtype(cli, slowdown, plan: tuple[str, ...]) -> None:
    slowdown(SLOW)
    result = cli("plan", "tiny", *plan, "--no-measure", "--device", "cpu")
    assert result.code == 0, result.err
    assert result.err.count(CHOSEN) == 1
