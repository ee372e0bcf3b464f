"""The rendered ``--help`` of every command says all that its source says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import get_type_hints

import pytest

from longrope.cli.main import COMMANDS, with_escaped_brackets

BRACKETS = re.compile(r"\\?(\[[\w-]+\])")


def help_texts(command: object) -> Iterator[str]:
    """Yield a command's docstring and the help of its arguments and options, as the source has them."""
    yield command.__doc__ or ""
    for annotation in get_type_hints(command, include_extras=True).values():
        for parameter in getattr(annotation, "__metadata__", ()):
            yield parameter.help or ""


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_every_bracket_of_its_source(cli, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    result = cli(name, "--help")
    assert result.code == 0, result.err
    rendered = re.sub(r"[│\s]+", "", result.out)
    for text in help_texts(COMMANDS[name]):
        for bracketed in BRACKETS.findall(text):
            assert bracketed in rendered, text


def test_a_terminal_breaks_paragraphs_at_its_own_width(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    lines = [line.strip() for line in cli("report", "--help").out.splitlines()]
    paragraphs = [" ".join(text.split()) for text in (COMMANDS["report"].__doc__ or "").split("\n\n")]
    assert len(paragraphs) == 2
    assert set(paragraphs) <= set(lines)


def test_extras_are_shown_as_the_user_types_them(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's lines: longrope search --help, longrope eval --help."""
    monkeypatch.setenv("COLUMNS", "300")
    assert 'pip install "longrope[ray]"' in cli("search", "--help").out
    assert '"longrope[lm-eval]"' in cli("eval", "--help").out


def test_help_goes_into_a_file_whose_encoding_has_few_characters() -> None:
    """As on Windows: the Greek letters become question marks."""
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONIOENCODING": "cp1252"}
    command = [sys.executable, "-m", "longrope", "compare-factors", "--help"]
    result = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"compare-factors" in result.stdout


def test_options_that_commands_share_are_escaped_once() -> None:
    def command() -> None:
        """Needs longrope[ray]."""

    for _ in range(2):
        assert with_escaped_brackets(command).__doc__ == r"Needs longrope\[ray]."
