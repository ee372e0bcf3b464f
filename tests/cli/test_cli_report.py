"""``longrope report``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import sample_runs


@pytest.fixture
def reported(tmp_path: Path) -> Path:
    return sample_runs.write_run(tmp_path / "extended-run")


def test_a_page_and_figures_are_written(cli, reported: Path, tmp_path: Path) -> None:
    output, figures = tmp_path / "report.html", tmp_path / "figures"
    result = cli("report", reported, "-o", output, "--figures", figures)
    assert result.code == 0, result.err
    assert result.out.splitlines() == [f"Figures: {figures}", f"Report: {output}"]
    assert output.read_text(encoding="utf-8").startswith("<!doctype html>")
    names = {path.stem for path in figures.iterdir()}
    assert names >= {"perplexity-0", "positions-0", "score-0", "choice-0", "factors-0", "search-0", "short-context"}
    for name in names:
        assert ElementTree.parse(figures / f"{name}.svg").getroot().tag.endswith("svg")
        assert (figures / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_without_an_output_it_is_printed(cli, reported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = cli("report", reported)
    assert result.code == 0, result.err
    value = sample_runs.results()["perplexity"]["extended"][-1]["perplexity"]
    assert f"{value:,.2f} ±" in result.out
    assert "Perplexity by length" in result.out
    assert result.out.startswith("“extended” at 2,048 tokens: works")


def test_tables_for_a_paper_of_two_machines(cli, reported: Path, tmp_path: Path) -> None:
    (tmp_path / "gpu.json").write_text((reported / "results.json").read_text())
    printed = cli("report", reported, tmp_path / "gpu.json", "--format", "markdown")
    assert printed.code == 0, printed.err
    assert "| extended-run: yarn | 2,048 |" in printed.out
    assert "| gpu: yarn | 2,048 |" in printed.out
    written = cli("report", reported, tmp_path / "gpu.json", "-o", tmp_path / "tables.md")
    assert written.out == f"Report: {tmp_path / 'tables.md'}\n"
    assert (tmp_path / "tables.md").read_text(encoding="utf-8") == printed.out
    table = cli("report", reported, "--format", "csv", "--figures", tmp_path / "figures").out
    assert table.startswith("run,model,candidate,measurement,")  # and not the path of the figures


def test_what_is_refused(refused, reported: Path, tmp_path: Path) -> None:
    (tmp_path / "there.html").write_text("mine")
    (tmp_path / "empty").mkdir()
    refused("there.html exists; replace it with --overwrite", "report", reported, "-o", tmp_path / "there.html")
    refused("is a folder", "report", reported, "-o", tmp_path / "empty")
    refused("has no results.json. Run longrope eval", "report", tmp_path / "empty")
    refused("exists; replace it", "report", reported, "--figures", reported)
    refused("format = 'latex' is unknown", "report", reported, "--format", "latex")


def test_it_needs_no_model(reported: Path, tmp_path: Path) -> None:
    script = """
import sys
from longrope.cli.main import main
try:
    main()
finally:
    assert not {"torch", "transformers", "matplotlib"} & set(sys.modules)
"""
    command = [sys.executable, "-c", script, "report", str(reported), "-o", str(tmp_path / "report.html")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
