from __future__ import annotations

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
