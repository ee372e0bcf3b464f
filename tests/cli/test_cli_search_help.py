"""The help of ``longrope search`` as a terminal shows it."""

import re

from typer.testing import CliRunner

from longrope.cli.main import app


def rendered() -> str:
    result = CliRunner().invoke(app, ["search", "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0
    return result.output


def test_the_extra_to_install_is_shown_whole() -> None:
    assert 'pip install "longrope[ray]"' in rendered()


def test_options_for_research_have_a_panel_of_their_own() -> None:
    options, _, research = rendered().partition("─ Research ")
    assert set(re.findall(r"--[a-z-]+", research)) == {
        *("--parametrization", "--population", "--patience", "--attention", "--start-tokens"),
        *("--also", "--tail", "--window", "--keep-short", "--racing"),
    }
    assert {"--method", "--budget", "--schemes", "--factors"} <= set(re.findall(r"--[a-z-]+", options))
