"""A task that is added from outside works in Python and on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from longrope.cli.main import app
from longrope.models.load import load
from longrope.tasks.needle_task import NeedleDraft, NeedleTask
from longrope.tasks.prompts import Prompt, PromptRequest
from longrope.tasks.registry import TASKS, make_prompts
from longrope.tasks.scoring import score_prompts


def lookup(rng: np.random.Generator, depth: float) -> NeedleDraft:
    key, value = rng.permutation(["bolnak", "dimtur"])[0], "river stone"
    return NeedleDraft("", (f"\n{key} = {value}\n",), (depth,), f"\n{key} =", (value,), ("glass crown",))


class Echo:
    """A task of another form, without a haystack."""

    needs_texts = False

    def prompts(self, request: PromptRequest) -> list[Prompt]:
        request.check_length(10)
        ids = np.arange(request.length - 4)
        return [Prompt(ids, ("x",), (), None, 4) for _ in range(request.trials)]


@pytest.fixture(autouse=True)
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "lookup", NeedleTask(lookup, room=10))
    monkeypatch.setitem(TASKS, "echo", Echo())


def test_python_makes_and_scores_its_prompts() -> None:
    model, tokenizer = load("tiny", dtype="float32")
    prompts = make_prompts("lookup", tokenizer, length=200, trials=4, depths=[0.0, 1.0])
    assert [len(prompt.tokens) for prompt in prompts] == [190] * 4
    assert [prompt.depth for prompt in prompts] == [0.0, 1.0, 0.0, 1.0]
    scores = score_prompts(model, tokenizer, prompts)
    assert sum(score.score for score in scores) >= 3
    assert all(score.choice for score in scores)
    assert len(make_prompts("echo", tokenizer, length=12, trials=2)[1].tokens) == 8


def test_the_command_line_takes_it(tmp_path: Path) -> None:
    options = "--retrieval lookup,echo --lengths 200 --documents 1 --trials 4 --schemes none --dtype float32 --json"
    result = CliRunner().invoke(app, ["eval", "tiny", *options.split(), "-o", str(tmp_path)])
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "results.json").read_text())
    assert {score["task"] for score in results["retrieval"]["original"]} == {"lookup", "echo"}
