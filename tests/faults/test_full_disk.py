"""On a disk that is full, a real one: an error that says so, nothing is lost, and it goes on once there is room."""

from __future__ import annotations

import json
import re
from contextlib import closing
from pathlib import Path

import pytest

from longrope.errors import LongRopeError
from longrope.storage.atomic import write_json
from longrope.storage.jsonl import JsonlFile
from longrope.storage.lock import claim_output, locked

FULL = "No space left on device"
EXACT = ("--dtype", "float32")
FEW = (*EXACT, "--search-documents", 1, "--held-out-documents", 1, "--needles", 0, "--budget", 6000)
SEARCH = ("search", "tiny", "-l", 300, *FEW)
EVAL = ("eval", "tiny", *EXACT, "--lengths", "256,300", "--schemes", "pi,yarn", "--documents", 2)


def append(lines: JsonlFile, numbers: range) -> None:
    for number in numbers:
        lines.append({"number": number, "text": "x" * 1000})


def test_a_journal_keeps_whole_lines_and_goes_on(disk, tmp_path: Path) -> None:
    disk.remount("size=12k")
    path = disk.folder / "x.jsonl"
    said = f"cannot write .*x.jsonl: {FULL}; the finished lines are kept: make room, then --resume"
    with closing(JsonlFile(path, {}, subject="a test")) as lines, pytest.raises(LongRopeError, match=said):
        append(lines, range(20))
    assert path.read_bytes().endswith(b"}\n")
    disk.remount("size=1m")
    with closing(JsonlFile(path, {}, subject="a test", resume=True)) as lines:
        kept = len(lines.lines)
        assert [one["number"] for one in lines.lines] == list(range(kept))
        assert kept == 12 * 1024 // len(json.dumps(lines.lines[-1]) + "\n")
        append(lines, range(kept, 20))
    with closing(JsonlFile(tmp_path / "x.jsonl", {}, subject="a test")) as lines:
        append(lines, range(20))
    assert path.read_bytes() == (tmp_path / "x.jsonl").read_bytes()


def test_a_journal_that_cannot_begin_can_begin_later(disk) -> None:
    disk.remount("size=4k")
    (disk.folder / "other").write_bytes(b"x" * 4096)
    path = disk.folder / "x.jsonl"
    with pytest.raises(LongRopeError, match=rf"x.jsonl: {FULL}; .*make room"):
        JsonlFile(path, {"a": 1}, subject="a test")
    (disk.folder / "other").unlink()
    with closing(JsonlFile(path, {"a": 1}, subject="a test", resume=True)) as lines:
        assert not lines.lines
    assert path.read_bytes().count(b"\n") == 1


def test_a_file_stays_as_it_was_and_the_lock_can_be_had(disk, below) -> None:
    disk.remount("size=8k")
    write_json(disk.folder / "x.json", [1])
    (disk.folder / "other").write_bytes(b"x" * 4096)
    before = below(disk.folder)
    with locked(disk.folder):
        claim_output(disk.folder, overwrite=True, folder=True)
        with pytest.raises(LongRopeError, match=rf"cannot write .*x.json: {FULL}; make room and try again"):
            write_json(disk.folder / "x.json", list(range(5000)))
    assert below(disk.folder) == before


def grown(command, disk, sizes: tuple[int, ...], words: tuple[object, ...], resume: str) -> list[str]:
    """The errors of a command on a disk that grows until it is done."""
    errors = []
    for size in sizes:
        disk.remount(f"size={size}k")
        code, error = command(*words, "-o", disk.folder / "run", *([resume] if errors else []))
        if code == 0:
            return errors
        assert code == 2, error
        assert re.fullmatch(rf".*error: cannot write \S+: .*{FULL}.*; .*", error), error
        errors.append(error)
    pytest.fail(f"never done: {errors}")


def without_seconds(path: Path) -> list[dict]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.mark.slow
def test_a_search(command, disk, tmp_path: Path) -> None:
    errors = grown(command, disk, (4, 8, 12, 16, 24, 32, 64, 512), SEARCH, "--resume")
    assert len(errors) >= 3
    assert len({error.split(": ")[1] for error in errors}) >= 2  # not always the same file
    assert command(*SEARCH, "-o", tmp_path / "run")[0] == 0
    for name in ("extension.json", "best.json"):
        assert (disk.folder / "run" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    for name in ("search-0.jsonl", "held-out.jsonl"):
        assert without_seconds(disk.folder / "run" / name) == without_seconds(tmp_path / "run" / name)
    assert {path.name for path in (disk.folder / "run").iterdir()} == {
        path.name for path in (tmp_path / "run").iterdir()
    }


@pytest.mark.slow
def test_an_evaluation(command, disk, tmp_path: Path) -> None:
    errors = grown(command, disk, (4, 8, 12, 16, 24, 32, 64, 512), EVAL, "--resume")
    assert len(errors) >= 2
    assert command(*EVAL, "-o", tmp_path / "run")[0] == 0
    assert (disk.folder / "run" / "cells.jsonl").read_bytes() == (tmp_path / "run" / "cells.jsonl").read_bytes()
    records = [json.loads((folder / "run" / "results.json").read_text()) for folder in (disk.folder, tmp_path)]
    for record in records:
        del record["provenance"]
    assert records[0] == records[1]


@pytest.mark.slow
@pytest.mark.parametrize("to", ["huggingface", "gguf"])
def test_an_export(to: str, command, disk, below, tmp_path: Path) -> None:
    factors = tmp_path / "factors.json"
    assert command("scale", "tiny", "--scheme", "yarn", "-l", 512, "-o", factors)[0] == 0
    words, sizes = ("export", "tiny", "--factors", factors, "--to", to, *EXACT), (100, 1000, 5000, 32000)
    for size in sizes:
        disk.remount(f"size={size}k")
        code, error = command(*words, "-o", disk.folder / "run")
        if code == 0:
            break
        assert code == 2, error
        assert re.search(r"error: cannot write \S+/run: .*", error), error
        assert not below(disk.folder)
    assert size == sizes[-1]
    assert command(*words, "-o", tmp_path / "run")[0] == 0
    assert below(disk.folder) == {name: data for name, data in below(tmp_path).items() if name.startswith("run")}
