"""Both notebooks run from top to bottom, and their cells assert the claims of the text."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from notebooks import FOLDER, NOTEBOOKS, run_notebook


def test_every_notebook_is_tested() -> None:
    assert set(FOLDER.glob("*.ipynb")) == set(NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_committed_with_its_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert sum("assert " in cell.source for cell in code) >= 5
    assert path.stat().st_size < 100_000


CHEAPER = {"search_factors_three_ways": {"budget = 20 * documents": "budget = 10 * documents"}}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path) -> None:
    """With half of the searches' budget, which prints as many lines as are committed."""
    ran, committed = run_notebook(path, CHEAPER.get(path.stem)), nbformat.read(path, as_version=4)
    lines = [[count_lines(cell) for cell in notebook.cells] for notebook in (ran, committed)]
    assert lines[0] == lines[1]
    assert sum(lines[0]) >= 4


def count_lines(cell: nbformat.NotebookNode) -> int:
    """Return the number of lines that a cell printed."""
    return sum(output.text.count("\n") for output in cell.get("outputs", ()) if "text" in output)
