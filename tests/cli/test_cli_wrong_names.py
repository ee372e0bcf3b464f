"""Nearly right words on the command line are answered with the right ones."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
WORDS = {
    "option": (("search", "tiny", "--lenght", "2k"), "(Possible options: --length)"),
    "command": (("serch", "tiny"), "Did you mean 'search'?"),
    "scheme": (("scale", "tiny", "--scheme", "yran", "-l", "2k"), "did you mean 'yarn'?"),
    "scheme in capitals": (("scale", "tiny", "--scheme", "YaRN", "-l", "2k"), "did you mean 'yarn'?"),
    "scheme original": (("scale", "tiny", "--scheme", "orginal", "-l", "2k"), "did you mean 'original'?"),
    "method": (("search", "tiny", "-l", "2k", "--method", "gradiant"), "did you mean 'gradient'?"),
    "parametrization": (("search", "tiny", "-l", "2k", "--parametrization", "spine"), "did you mean 'spline'?"),
    "dtype": (("eval", "tiny", "--lengths", "256", "--dtype", "bfloat"), "did you mean 'bfloat16'?"),
    "task": (("eval", "tiny", "--lengths", "256", "--retrieval", "paskey"), "did you mean 'passkey'?"),
    "plan": (("extend", "tiny", "demmo"), "did you mean 'demo'?"),
    "policy": (("generate", "tiny", "hello", "--policy", "statik"), "did you mean 'static'?"),
    "engine": (("check", "tiny", "--engine", "vlm"), "did you mean 'vllm'?"),
}


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_what_was_meant_is_suggested(
    cli: Cli, words: tuple[tuple[str, ...], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given, meant = words
    result = cli(*given)
    assert result.code == 2
    assert meant in result.err


def test_a_key_of_a_plan(cli: Cli, tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text("version = 1\n[[stages]]\nlenght = '2k'\n")
    result = cli("extend", "tiny", plan, "-o", tmp_path / "run")
    assert result.code == 2
    keys = "stages[0].lenght is not a key of a plan; the keys are length, factors, search, finetune"
    assert f"{keys}; did you mean 'length'?" in result.err


def test_nothing_is_suggested_for_what_is_far_from_all(cli: Cli) -> None:
    assert "did you mean" not in cli("scale", "tiny", "--scheme", "bogus", "-l", "2k").err


def test_the_version(cli: Cli) -> None:
    assert cli("--version").out == f"longrope {importlib.metadata.version('longrope')}\n"
