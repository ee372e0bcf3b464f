from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from longrope.errors import LongRopeError
from longrope.storage.jsonl import JsonlFile

SETTINGS = {"model": "tiny", "lengths": [1, 2]}


def write(path: Path, count: int) -> bytes:
    with closing(JsonlFile(path, SETTINGS, subject="a test")) as lines:
        for i in range(count):
            lines.append({"cell": i, "text": "é\n" * i})
    return path.read_bytes()


def test_a_journal_cut_anywhere_keeps_its_complete_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    content = write(path, 4)
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        with closing(JsonlFile(path, SETTINGS, subject="a test", resume=True)) as lines:
            numbers = [line["cell"] for line in lines.lines]
            assert numbers == list(range(max(0, content[:size].count(b"\n") - 1)))
            for i in range(len(numbers), 4):
                lines.append({"cell": i, "text": "é\n" * i})
        assert path.read_bytes() == content


def test_journals_that_cannot_be_continued_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    before = write(path, 2)
    with pytest.raises(LongRopeError, match=r"x.jsonl exists; continue it with --resume"):
        JsonlFile(path, SETTINGS, subject="a test")
    with pytest.raises(LongRopeError, match=r"model was 'tiny', now 'big'; resume with the same ones"):
        JsonlFile(path, SETTINGS | {"model": "big"}, subject="a test", resume=True)
    assert path.read_bytes() == before
    path.write_text('{"version": 2, "settings": {}}\n')
    with pytest.raises(LongRopeError, match="version = 2 where 1 is expected"):
        JsonlFile(path, SETTINGS, subject="a test", resume=True)
    for damaged in ("[1]\n", "not JSON\n", '{"version": 1}\n'):
        path.write_text(damaged)
        with pytest.raises(LongRopeError, match="is not a journal of a test"):
            JsonlFile(path, SETTINGS, subject="a test", resume=True)
    with pytest.raises(LongRopeError, match="cannot write"):
        JsonlFile(path / "y", SETTINGS, subject="a test")


def test_bytes_after_a_power_failure_are_cut(tmp_path: Path) -> None:
    """A file may have its new length, but not yet its last bytes."""
    path = tmp_path / "x.jsonl"
    content = write(path, 3)
    for tail in (b"\0" * 50, content[-20:-1] + b"\0" * 9):
        path.write_bytes(content + tail)
        with closing(JsonlFile(path, SETTINGS, subject="a test", resume=True)) as lines:
            assert [line["cell"] for line in lines.lines] == [0, 1, 2]
        assert path.read_bytes() == content


def test_closing_twice_does_nothing(tmp_path: Path) -> None:
    with closing(JsonlFile(tmp_path / "x.jsonl", SETTINGS, subject="a test")) as lines:
        lines.close()
