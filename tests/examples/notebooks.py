"""Run the notebooks of ``examples``. As a program, save them with their new outputs (``make notebooks``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parents[2] / "examples"
NOTEBOOKS = (FOLDER / "see_rope_break_and_mend_it.ipynb", FOLDER / "search_factors_three_ways.ipynb")


def run_notebook(path: Path, changes: Mapping[str, str] | None = None) -> NotebookNode:
    """Run a notebook from top to bottom, and return it with its outputs except those on standard error.

    Args:
        path: Notebook file.
        changes: Texts by the text that they replace in the code, which must be there.
    """
    notebook = nbformat.read(path, as_version=4)
    for old, new in (changes or {}).items():
        (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and old in cell.source]
        cell.source = cell.source.replace(old, new)
    options = {"record_timing": False, "coalesce_streams": True, "timeout": 600}
    NotebookClient(notebook, resources={"metadata": {"path": str(path.parent)}}, **options).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


if __name__ == "__main__":
    for path in NOTEBOOKS:
        nbformat.write(run_notebook(path), path)
