"""Retrieval tasks on a server: the scores of the model behind it, kept and continued."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from model_server import ModelServer, serving

from longrope.cli.main import main
from longrope.evaluation.results import EvalResults
from longrope.models.patch import patch
from longrope.rope import Rope
from longrope.schemes import scheme
from longrope.servers.client import connect
from longrope.servers.completion import complete
from longrope.servers.retrieval import _scores
from longrope.tasks.registry import make_prompts
from longrope.tasks.scoring import score_prompts

LOCAL_OPTIONS = (
    *(("--factors", "x"), ("--checkpoint", "x"), ("--schemes", "none"), ("--stride", "64"), ("--key-tokens", "yarn")),
    *(("--tasks", "x"), ("--task-folder", "x"), ("--limit", "3"), ("--measure", "x")),
    *(("--batch", "2"), ("--dtype", "float32"), ("--device", "cpu")),
)
LOCAL_ALONE = "--server: a server runs retrieval tasks alone. Leave out "
ASKED = ("--lengths", "256,512", "--retrieval", "recall", "--trials", 4, "--documents", 2)


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, texts: Path
) -> Callable[..., tuple[int, str, str]]:
    """Function of a command's arguments; a command on a server takes the texts."""

    def run(*args: object) -> tuple[int, str, str]:
        args = (*args, "--data", texts) if args[0] != "report" else args
        monkeypatch.setattr(sys, "argv", ["longrope", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            main()
        output = capsys.readouterr()
        return int(stop.value.code or 0), output.out, " ".join(output.err.split())

    return run


@pytest.fixture
def ramp_server(tiny) -> ModelServer:
    return ModelServer(*tiny, scaling=scheme("ramp", Rope.of(tiny[0]), 512))


def samples(folder: Path) -> dict[Any, Any]:
    lines = [json.loads(line) for line in (folder / "cells.jsonl").read_text().splitlines()[1:]]
    return {(line["part"], line["cell"]): line["value"] for line in lines}


@pytest.mark.parametrize("takes_ids", [True, False])
def test_the_scores_are_those_of_the_model_behind_the_server(
    cli, checkpoint, tiny, ramp_server, documents, tmp_path: Path, takes_ids: bool
) -> None:
    ramp_server.takes_ids = takes_ids
    with serving(ramp_server.reply) as url:
        code, out, err = cli("eval", checkpoint("static"), *ASKED, "--server", url, "-o", tmp_path / "eval")
    assert code == 0, err
    results = EvalResults.load(tmp_path / "eval")
    [name] = results.candidates
    assert name == f"served at {url.removeprefix('http://')}"
    assert name in out
    answers = samples(tmp_path / "eval")
    with patch(tiny[0], ramp_server.scaling):
        for length in (256, 512):
            prompts = make_prompts(
                "recall", tiny[1], length=length, trials=4, texts=documents[:, :512], depths=[0, 0.25, 0.5, 0.75, 1]
            )
            for number, score in enumerate(score_prompts(*tiny, prompts)):
                answer = answers[f"retrieval recall {length}", number]
                assert answer["score"] == score.score
                assert answer["text"][: len(score.text) if score.score == 1 else None] == score.text
    assert sum(record.score * record.trials for record in results["retrieval"][name]) == sum(
        answer["score"] for answer in answers.values()
    )


@pytest.mark.parametrize(("any_answer", "score"), [(False, 0.5), (True, 1.0)])
def test_one_of_several_answers_is_enough_where_the_task_says_so(
    tiny, ramp_server, documents, any_answer: bool, score: float
) -> None:
    [prompt] = make_prompts("recall", tiny[1], length=256, trials=1, texts=documents[:, :256])
    with serving(ramp_server.reply) as url:
        server = connect(url, None, timeout=60)
        text = complete(server, prompt.tokens.tolist(), tokens=prompt.room).text
        asked = replace(prompt, answers=(text.split()[0], "no such word"), any_answer=any_answer)
        [(_, answered)] = _scores(server, lambda prompt: prompt.tokens.tolist(), [asked], [0], 1)
    assert answered.score == score


def test_an_interrupted_evaluation_continues_where_it_was(cli, checkpoint, ramp_server, tmp_path: Path) -> None:
    folder = tmp_path / "eval"
    command = ["eval", checkpoint("static"), *ASKED, "--concurrency", 1, "-o", folder]
    with serving(ramp_server.reply) as url:
        ramp_server.failing = 6  # one to learn the form of prompts, and five answers
        code, _, err = cli(*command, "--server", url)
        assert code == 2
        assert "out of order" in err
        assert len(samples(folder)) == 5
        ramp_server.failing = None
        before = len(ramp_server.requests)
        code, _, err = cli(*command, "--server", url, "--resume")
        assert code == 0, err
        assert len(ramp_server.requests) - before == 1 + 3
        once = cli("eval", checkpoint("static"), *ASKED, "--server", url, "-o", tmp_path / "once")
    assert once[0] == 0
    assert samples(folder) == samples(tmp_path / "once")
    first, second = (EvalResults.load(path) for path in (folder, tmp_path / "once"))
    assert first["retrieval"] == second["retrieval"]


def test_requests_are_under_way_together(cli, checkpoint, ramp_server, tmp_path: Path) -> None:
    together = Barrier(2)

    def reply(path: str, body: Any) -> Any:
        if body is not None and len(body["prompt"]) > 16:  # not the question whether ids are taken
            together.wait(30)
        return ramp_server.reply(path, body)

    with serving(reply) as url:
        code, _, err = cli("eval", checkpoint("static"), *ASKED, "--server", url, "--concurrency", 2)
    assert code == 0, err


def test_the_page_names_what_the_server_recalled(cli, checkpoint, ramp_server, tmp_path: Path) -> None:
    with serving(ramp_server.reply) as url:
        assert cli("eval", checkpoint("static"), *ASKED, "--server", url, "-o", tmp_path / "eval")[0] == 0
    code, out, _ = cli("report", tmp_path / "eval")
    assert code == 0
    assert "served at" in out.split("\n\n")[0]
    assert "Nothing was measured" not in out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cut": 100}, r"it read 100 of the \d+ tokens of a prompt, without an error"),
        ({"limit": 300}, "retrieval_lengths = 512: the server takes 300 tokens at most"),
    ],
)
def test_a_server_for_shorter_prompts_is_refused(cli, checkpoint, ramp_server, changes, message: str) -> None:
    vars(ramp_server).update(changes)
    with serving(ramp_server.reply) as url:
        code, _, err = cli("eval", checkpoint("static"), *ASKED, "--server", url)
    assert code == 2
    assert re.search(message, err)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *((("--retrieval", "recall", *option), LOCAL_ALONE + option[0]) for option in LOCAL_OPTIONS),
        ((), "no retrieval task was named"),
        (("--retrieval", "recall"), "no answer (Connection refused)"),
    ],
)
def test_what_a_server_cannot_do_is_refused(cli, options: tuple[str, ...], message: str) -> None:
    code, _, err = cli("eval", "tiny", "--lengths", 256, "--server", "http://127.0.0.1:9", *options)
    assert code == 2
    assert message in err


def test_probe_prints_a_line_for_each_length_and_ends_with_1_on_departure(cli, checkpoint, ramp_server) -> None:
    options = ("--lengths", "128,512", "--documents", 1)
    with serving(ramp_server.reply) as url:
        code, out, err = cli("probe", url, "--checkpoint", checkpoint("static"), *options)
        assert code == 0, err
        assert out.count("as made") == 3
        ramp_server.scaling = None
        code, out, _ = cli("probe", url, "--checkpoint", checkpoint("static"), *options, "--json")
    assert code == 1
    record = json.loads(out)
    assert [row["runs"] for row in record["lengths"]] == [["original"]] * 2
    assert record["departures"] == ["at 128 to 512 tokens the server computes with original, where longrope belongs"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--checkpoint", "tiny"), "carries no rope scaling"),
        (("--checkpoint", "tiny", "--model", "other"), "the server at"),
        (("--checkpoint", "STATIC", "--lengths", "16"), "too short for a prompt"),
        (("--checkpoint", "STATIC", "--lengths", "1k"), "the checkpoint is made for 512 tokens"),
    ],
)
def test_probes_of_nothing_are_refused(cli, checkpoint, ramp_server, arguments, message: str) -> None:
    words = [str(checkpoint("static")) if word == "STATIC" else word for word in arguments]
    with serving(ramp_server.reply) as url:
        code, _, err = cli("probe", url, *words)
    assert code == 2
    assert message in err
