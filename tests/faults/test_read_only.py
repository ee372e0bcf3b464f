"""Folders that cannot be written, on a real read-only file system: refused before any work, and fine to read from."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import longrope
from longrope.errors import LongRopeError
from longrope.storage.atomic import write_json
from longrope.storage.lock import claim_output, locked

REFUSED = r"^error: cannot write \S+: Read-only file system; choose another"
FEW = ("--dtype", "float32", "--search-documents", 1, "--held-out-documents", 1, "--needles", 0, "--budget", 6000)


@pytest.mark.parametrize("name", ["run", "run/new", "new", "new/deep"])
def test_claim_held_and_write(name: str, disk) -> None:
    (disk.folder / "run").mkdir()
    disk.remount("ro")
    path = disk.folder / name
    with pytest.raises(LongRopeError, match=r"cannot write .*: Read-only file system; .*-o"):
        claim_output(path, overwrite=True, folder=True)
    with pytest.raises(LongRopeError, match=r"cannot write .*: Read-only file system; .*-o"), locked(path):
        pass
    with pytest.raises(LongRopeError, match=r"cannot write .*: Read-only file system; .*-o"):
        write_json(path / "x.json", {})


@pytest.mark.parametrize("name", ["search", "eval", "extend", "export", "scale", "plan", "demo"])
def test_outputs_are_refused_before_any_work(name: str, command, disk, tmp_path: Path) -> None:
    words = {
        "search": ["tiny", "-l", 512],
        "eval": ["tiny", "--lengths", 512],
        "extend": ["tiny", "demo"],
        "export": ["tiny", "--factors", tmp_path / "factors.json"],
        "scale": ["tiny", "--scheme", "pi", "-l", 512],
        "plan": ["tiny", "--to", 512],
        "demo": [],
    }
    if name == "export":
        assert command("scale", *words["scale"], "-o", tmp_path / "factors.json")[0] == 0
    disk.remount("ro")
    code, error = command(name, *words[name], "-o", disk.folder / "run")
    assert code == 2
    assert re.search(REFUSED, error), error


@pytest.mark.slow
def test_model_data_and_factors_may_be_read_only(command, disk, tmp_path: Path) -> None:
    shutil.copytree(Path(longrope.__file__).parent / "assets" / "tiny", disk.folder / "tiny")
    (disk.folder / "texts").mkdir()
    for number in range(20):
        text = "\n".join(f"value_{i} = {i * number % 7} + {i}" for i in range(200))
        (disk.folder / "texts" / f"{number}.py").write_text(text)
    data, model = ("--data", disk.folder / "texts"), disk.folder / "tiny"
    search = ("search", model, "-l", 300, *FEW, *data, "--cache", disk.folder / "tokens")
    code, error = command(*search, "-o", disk.folder / "run")
    assert code == 0, error
    disk.remount("ro")
    evaluate = ("eval", model, "--lengths", 300, "--dtype", "float32", "--documents", 1, "--schemes", "none", *data)
    for words in (
        (*search, "-o", tmp_path / "run"),
        (*evaluate, "--factors", disk.folder / "run", "-o", tmp_path / "eval"),
        ("export", model, "--factors", disk.folder / "run", "-o", tmp_path / "out"),
    ):
        code, error = command(*words)
        assert code == 0, error
    name = "extension.json"
    assert (tmp_path / "run" / name).read_bytes() == (disk.folder / "run" / name).read_bytes()
    code, error = command(*search, "-o", tmp_path / "other", "--data-seed", 5)
    assert code == 2
    assert re.search(
        r"error: cannot write .*tokens\S+: Read-only file system; .* Or choose another folder for the cache", error
    ), error


@pytest.mark.slow
def test_a_read_only_home(disk, tmp_path: Path) -> None:
    disk.remount("ro")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    variables = kept | {"HOME": str(disk.folder), "HF_HUB_OFFLINE": "1"}
    search = ["search", "tiny", "-l", "300", *map(str, FEW), "-o", "run"]
    for words in (search, ["export", "tiny", "--factors", "run", "-o", "out"]):
        done = subprocess.run(
            [sys.executable, "-m", "longrope", *words], cwd=tmp_path, env=variables, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
