"""``longrope eval`` says what its retrieval prompts are, and keeps them apart."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from ruler_files import ruler_folder

from longrope.models.load import load

CHATML = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}<|assistant|>"
WORDS = ("--lengths", "600", "--documents", 1, "--schemes", "none", "--dtype", "float32", "--retrieval")
TASKS = "passkey,niah_single_2,recall"


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tiny`` with a chat template."""
    folder = tmp_path_factory.mktemp("chatty")
    model, tokenizer = load("tiny", dtype="float32")
    tokenizer.chat_template = CHATML
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_chat_and_haystack_are_recorded_and_said(cli, refused, chatty: Path, tmp_path: Path) -> None:
    command = ("eval", chatty, *WORDS, TASKS, "--trials", 1, "-o", tmp_path / "run")
    result = cli(*command)
    assert result.code == 0, result.err
    assert "Quick: 1 questions of a task are a first look. Ask 50 for a claim." in result.out
    assert "Own haystack: niah_single_2 hide their needles in your documents" in result.out
    assert "Prompts are in the tokenizer's chat template" in result.out
    scores = json.loads((tmp_path / "run" / "results.json").read_text())["retrieval"]["original"]
    assert {score["task"]: score.get("chat", False) for score in scores} == {
        "passkey": True,
        "niah_single_2": True,
        "recall": False,
    }
    assert {score["task"] for score in scores if score.get("own_haystack")} == {"niah_single_2"}
    report = cli("report", tmp_path / "run").out
    assert "Own haystack" in " ".join(report.split())
    refused("chat was .auto.* now .off", *command, "--chat", "off", "--resume")
    refused("ruler_data was .* now", *command, "--ruler-data", ruler_folder(), "--resume")


def test_essays_are_not_the_users_haystack(cli, chatty: Path) -> None:
    words = (*WORDS, "niah_single_2", "--chat", "off", "--ruler-data", ruler_folder(), "--json")
    (score, *_) = cli("eval", chatty, *words, "--trials", 1).json["retrieval"]["original"]
    assert "own_haystack" not in score
    assert "chat" not in score


def test_quick_asks_ten(cli) -> None:
    result = cli("eval", "tiny", *WORDS, "passkey", "--quick", "--json")
    assert result.code == 0, result.err
    trials = {score["depth"]: score["trials"] for score in result.json["retrieval"]["original"]}
    assert trials == dict.fromkeys((0.0, 0.25, 0.5, 0.75, 1.0), 2)


def test_what_is_refused(refused, chatty: Path) -> None:
    refused("chat = 'yes' is unknown; choose one of auto, on, off", "eval", "tiny", *WORDS, "passkey", "--chat", "yes")
    refused("chat = on: the tokenizer has no chat template", "eval", "tiny", *WORDS, "passkey", "--chat", "on")
    refused("another suite's name. Here the task is cwe", "eval", "tiny", *WORDS, "ruler_cwe")
    refused("ruler_data = None: longrope does not ship the questions of squad. Give", "eval", "tiny", *WORDS, "qa_1")
    refused("ruler_data = .*/none: there is no such folder", "eval", "tiny", *WORDS, "qa_2", "--ruler-data", "/none")


@pytest.mark.parametrize(
    ("needed", "options"),
    [
        (
            "retrieval",
            [
                *(("--retrieval-lengths", 300), ("--trials", 7), ("--quick",), ("--questions", 1)),
                *(("--depths", "0.5"), ("--chat", "auto"), ("--ruler-data", "x")),
            ],
        ),
        ("output", [("--overwrite",)]),
        ("tasks", [("--task-folder", "x"), ("--limit", 3)]),
        ("server", [("--server-model", "x"), ("--concurrency", 4), ("--timeout", 9)]),
    ],
)
def test_options_without_effect_are_refused(refused, needed: str, options: list[tuple[object, ...]]) -> None:
    for option in options:
        said = f"{needed} is missing: {option[0]} would have no effect. Give --{needed} .*, or leave it out"
        refused(said, "eval", "tiny", "--lengths", 300, *option)
    names = ", ".join(str(name) for name, *_ in options)
    refused(f"{needed} is missing: {names} would", "eval", "tiny", "--lengths", 300, *itertools.chain(*options))


def test_quick_beside_a_number_of_trials_is_refused(refused, tmp_path: Path) -> None:
    words = (*WORDS, "passkey", "--quick", "--trials", 50)
    refused("--quick and --trials exclude each other. Give one of them", "eval", "tiny", *words)


def test_an_option_is_refused_before_the_output(refused, tmp_path: Path) -> None:
    (tmp_path / "taken.txt").touch()
    words = ("eval", "tiny", "--lengths", 300, "-o", tmp_path)
    refused("retrieval is missing: --quick", *words, "--quick")
    refused("depths = 'x'", *words, "--retrieval", "passkey", "--depths", "x")
    refused("does not hold an evaluation", *words, "--retrieval", "passkey", "--depths", "0")
