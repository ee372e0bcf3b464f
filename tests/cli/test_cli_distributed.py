"""``longrope eval`` by two real processes together: what one gives, written by the first alone."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python")
LONGROPE = (sys.executable, "-m", "longrope")
WORDS = ("--lengths", "64,160", "--documents", "2", "--schemes", "yarn", "--stride", "50", "--key-tokens", "yarn")
WORDS += ("--retrieval", "recall", "--retrieval-lengths", "150", "--trials", "2", "--dtype", "float32", "--json")


def together(*words: object) -> subprocess.CompletedProcess[str]:
    """By two processes; ``RANK`` in a word is the number of the process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    quoted = shlex.join([*LONGROPE, "eval", *map(str, words), *WORDS]).replace("RANK", '"$RANK"')
    command = [*TORCHRUN, "bash", "-c", f"exec {quoted}"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def flat(record: Any) -> dict[str, Any]:
    """Every value by its place, but where it comes from."""
    if isinstance(record, list):
        record = dict(enumerate(record))
    if not isinstance(record, dict):
        return {"": record}
    named = [(key, flat(value)) for key, value in record.items() if key != "provenance"]
    return {f"{key}/{inner}": one for key, found in named for inner, one in found.items()}


def assert_same(found: Any, wanted: Any, tolerance: float) -> None:
    one, other = flat(found), flat(wanted)
    assert one.keys() == other.keys()
    for place, value in one.items():
        close = pytest.approx(value, rel=tolerance, abs=tolerance) if isinstance(value, float) else value
        assert other[place] == close, place


@pytest.fixture(scope="module")
def wanted(cli, model: Path, texts: Path) -> Any:
    result = cli("eval", model, *WORDS, "--data", texts)
    assert result.code == 0, result.err
    return result.json


def test_two_processes_evaluate_what_one_does_and_resume(wanted: Any, model: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = together(model, "--data", texts, "-o", out)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(path.name for path in out.iterdir()) == ["cells.jsonl", "results.json"]
    record = json.loads((out / "results.json").read_text())
    assert json.loads(done.stdout) == record
    assert_same(record, wanted, 1e-4)
    assert record["provenance"]["processes"] == 2
    assert record["provenance"]["command"].startswith("longrope eval")

    lines = (out / "cells.jsonl").read_text().splitlines(keepends=True)
    (out / "cells.jsonl").write_text("".join(lines[:5]))  # the other process has no journal
    again = together(model, "--data", texts, "-o", out, "--resume")
    assert again.returncode == 0, again.stderr[-3000:]
    assert (out / "cells.jsonl").read_text().splitlines(keepends=True)[:5] == lines[:5]
    assert_same(json.loads(again.stdout), record, 1e-6)

    refused = together(model, "--data", texts, "-o", out, "--resume", "--data-seed", 1)
    assert refused.stderr.count("error: ") == 1  # the first process says why
    assert "was written with other settings" in refused.stderr
    assert "Traceback" not in refused.stderr.partition("torch")[0]
    assert (out / "cells.jsonl").read_text().count("\n") == len(lines)


def test_processes_that_read_other_texts_are_refused(model: Path, texts: Path, tmp_path: Path) -> None:
    for rank in ("0", "1"):
        shutil.copytree(texts, tmp_path / rank)
        (tmp_path / rank / "01.txt").write_text(f"the cat sat on {rank} " * 200)
    done = together(model, "--data", tmp_path / "RANK")
    assert done.returncode != 0
    assert "error: process 1 of 2 has other data than the first one; put model, factors and data where" in done.stderr


def test_tasks_and_a_folder_of_results_are_refused(
    cli, monkeypatch: pytest.MonkeyPatch, model: Path, texts: Path, tmp_path: Path
) -> None:
    for name, value in (("MASTER_ADDR", "localhost"), ("WORLD_SIZE", "2"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    (tmp_path / "cells.jsonl").write_text("{}")
    options = ("eval", model, "--lengths", 160, "--data", texts)
    tasks, exists = cli(*options, "--tasks", "lambada"), cli(*options, "-o", tmp_path)
    assert (tasks.code, exists.code) == (2, 2)
    assert "tasks: lm-evaluation-harness runs in one process; leave --tasks out" in tasks.err
    assert f"{tmp_path} exists; continue it with --resume" in exists.err


@pytest.mark.parametrize(
    ("words", "instead"), [(("search", "tiny", "-l", "512"), "--workers"), (("extend", "tiny", "demo"), "--launch")]
)
def test_other_commands_start_others_themselves(
    cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...], instead: str
) -> None:
    for name, value in (("MASTER_ADDR", "localhost"), ("WORLD_SIZE", "2"), ("RANK", "1")):
        monkeypatch.setenv(name, value)
    result = cli(*words, "-o", tmp_path / "out")
    assert result.code == 2
    assert f"WORLD_SIZE = 2: this command runs in one process, and starts others with {instead}; start" in result.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("cuda:0", "device = 'cuda:0' for 2 processes: each needs its own; use --device cuda"),
        ("cuda", "2 processes for 1 CUDA devices: each needs its own; start fewer"),
    ],
)
def test_each_process_needs_a_device(
    cli, monkeypatch: pytest.MonkeyPatch, model: Path, texts: Path, device: str, said: str
) -> None:
    for name, value in (("MASTER_ADDR", "localhost"), ("WORLD_SIZE", "2"), ("RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("longrope.models.load.check_device", lambda _: None)  # it finds none here
    result = cli("eval", model, "--lengths", 160, "--data", texts, "--device", device)
    assert result.code == 2
    assert said in result.err
