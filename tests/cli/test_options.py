from __future__ import annotations

from pathlib import Path

import pytest

from longrope.cli import options


@pytest.mark.parametrize(
    "more",
    [("-o", "run"), ("-orun",), ("--output", "run"), ("--output=run", "--resume"), ("--overwrite", "--json")],
    ids=" ".join,
)
def test_the_command_of_a_run_is_that_of_its_resume(more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/longrope", "search", *more, "tiny", "-l", "2k"])
    assert options.command_line() == "longrope search tiny -l 2k"


def test_a_folder_has_one_name_and_is_no_built_in_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("model", "tiny"):
        (tmp_path / name).mkdir()
    assert [options.tidy_folder(name) for name in ("model", "model/", "./model")] == ["model"] * 3
    for name in ("./tiny", "tiny/", "org/model/", "./nowhere", "", "x" * 300, "a\0b"):
        assert options.tidy_folder(name) == name
