"""Killed at random moments and resumed: a few rounds of ``benchmarks/faults.py``, and what they once found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from longrope.scaling import Scaling
from longrope.search.journal import Journal
from longrope.search.protocol import CandidateLoss

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "faults.py"


def rounds(tmp_path: Path, *words: str) -> dict:
    results = tmp_path / "faults.json"
    command = [sys.executable, str(SCRIPT), "--folder", str(tmp_path / "work"), "--results", str(results), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(results.read_text())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot fork")
def test_exports_that_are_killed(tmp_path: Path) -> None:
    """At every third change of the file system."""
    command = [sys.executable, "-B", str(Path(__file__).parent / "killed_exports.py"), str(tmp_path), "3"]
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 5


@pytest.mark.slow
def test_all_commands(tmp_path: Path) -> None:
    found = rounds(tmp_path, "--commands", "search,eval,export,extend", "--rounds", "8", "--seed", "1")
    assert {name: row["rounds"] for name, row in found["commands"].items()} == dict.fromkeys(found["commands"], 2)
    assert found["not_equal"] == 0


def test_two_names_of_the_same_factors_are_one_line(tmp_path: Path) -> None:
    """Else a search that was killed between them would have one line less than another."""
    with closing(Journal(tmp_path / "x.jsonl", {})) as journal:
        for name in ("yarn", "searched"):
            journal.add((Scaling([1.0, 2.0], scheme=name), 0), CandidateLoss(1.5), 0.1, gradient=False)
    assert (tmp_path / "x.jsonl").read_bytes().count(b"\n") == 2
