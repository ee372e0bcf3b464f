"""Killed in the middle and resumed, a search gives what it gives in one go, byte for byte."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from longrope.search.registry import METHODS

# one document of 512 tokens each; 24 evaluations
SHORT = ("--search-documents", 1, "--held-out-documents", 1, "--budget", 24 * 512, "--dtype", "float32")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in METHODS if name != "auto"]


def killed(run: Path, lines: int, *command: object) -> None:
    """Begin a search and kill it as soon as its journal has so many lines."""
    script = "from longrope.cli.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, command), "-o", str(run)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    journal, deadline = run / "search-0.jsonl", time.monotonic() + 120
    while not journal.exists() or journal.read_bytes().count(b"\n") < lines:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -9
    assert not (run / "extension.json").exists()


def without_times(journal: Path) -> list[dict]:
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def assert_resumed_is_whole(cli, tmp_path: Path, lines: int, *command: object) -> None:
    killed(tmp_path / "cut", lines, *command)
    for folder, more in (("cut", ("--resume",)), ("whole", ())):
        result = cli(*command, *more, "-o", tmp_path / folder)
        assert result.code == 0, result.err
    for name in ("extension.json", "best.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    for name in ("search-0.jsonl", "held-out.jsonl"):
        assert without_times(tmp_path / "cut" / name) == without_times(tmp_path / "whole" / name)


@pytest.mark.parametrize("name", ["auto", *SLOW])
def test_killed_and_resumed_equals_uninterrupted(cli, tmp_path: Path, name: str) -> None:
    command = ("search", "tiny", "-l", 512, *SHORT, "--method", name)
    if name in ("paper", "simple"):
        command += ("--population", 8)
    assert_resumed_is_whole(cli, tmp_path, 9, *command)


@pytest.mark.slow
@pytest.mark.parametrize("lines", [1, 4, 14])
def test_with_all_that_is_searched_and_several_lengths(cli, tmp_path: Path, lines: int) -> None:
    more = ("--attention", "search", "--start-tokens", "--also", 400, "--needles", 0.2, "--tail", 100, "--seeds", 2)
    more += ("--method", "cma")
    budget = ("--budget", 24 * 4 * 512)
    assert_resumed_is_whole(cli, tmp_path, lines, "search", "tiny", "-l", 512, *SHORT, *more, *budget)


@pytest.mark.slow
def test_two_workers_find_nearly_what_one_process_finds(cli, tmp_path: Path) -> None:
    """Float32 sums depend a little on the number of threads."""
    command = ("search", "tiny", "-l", 512, *SHORT, "--json")
    alone, shared = (cli(*command, "--workers", n, "-o", tmp_path / f"{n}") for n in (1, 2))
    assert shared.code == 0, shared.err
    assert shared.json["search_loss"] == pytest.approx(alone.json["search_loss"], abs=0.01)
    assert shared.json["held_out_loss"]["yarn"] == pytest.approx(alone.json["held_out_loss"]["yarn"], abs=1e-3)
    assert shared.json["token_evaluations"] == alone.json["token_evaluations"]
