"""Every example runs; each ends by asserting its claim, so a false claim fails here."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from longrope.schemes import SCHEMES

FOLDER = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))
PRINTS = {
    "01": "pair 13 is the first",
    "02": "bit for bit",
    "03": "my_ramp",
    "04": "13 evaluations before it was stopped, 35 in the end",
    "05": "far copies",
    "06": "32x",
    "07": "2,097,151",
    "08": "plain generate",
    "09": "model.safetensors",
    "10": "1k fine-tuned",
    "11": "checkpoint-2",
    "12": "searched",
    "13": "256 tokens",
    "14": "yarn",
}
TASKS = ("03", "11", "12", "13", "14")  # what users do most: their own scheme, loss, Trainer, sequences; pandas


@pytest.fixture
def _own_schemes() -> Iterator[None]:
    """What an example adds to the schemes goes with it."""
    before = dict(SCHEMES)
    yield
    SCHEMES.clear()
    SCHEMES.update(before)


def test_the_readme_lists_every_example_in_order() -> None:
    rows = re.findall(r"^\| \[(\w+\.py)\]\(\1\)", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [path.name for path in SCRIPTS]


@pytest.mark.parametrize("path", [path for path in SCRIPTS if path.name[:2] in TASKS], ids=lambda path: path.stem)
def test_a_common_task_takes_15_lines(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) <= 15


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_it_is_short_and_ends_with_a_claim(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 60
    assert ast.get_docstring(tree)
    assert sum(isinstance(node, ast.Assert) for node in tree.body) >= 1
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    private = [module for module in modules if module.startswith("longrope.") and module != "longrope.data.split"]
    assert not private, "import public names only"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
@pytest.mark.usefixtures("_own_schemes")
def test_it_runs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(path), run_name="__main__")  # in this process: ten imports of torch would take a minute
    assert PRINTS.get(path.name[:2], "\n") in capsys.readouterr().out


def test_it_runs_on_its_own_without_arguments() -> None:
    completed = subprocess.run([sys.executable, SCRIPTS[0]], capture_output=True, text=True, check=True)
    assert completed.stdout.count("\n") > 10
    assert not completed.stderr
