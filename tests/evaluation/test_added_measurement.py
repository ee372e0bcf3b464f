"""The guide's measurement, added from outside: used from Python, on the command line and in the report."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import longrope as lr
from longrope.cli.main import app
from longrope.data.split import draw_tokens, split_documents
from longrope.errors import LongRopeError
from longrope.report.all_figures import figures
from longrope.report.load import read_runs

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "add-a-measurement.md"
TINY = lr.Rope(dim=64, base=1e4, original_length=256)


@pytest.fixture(scope="module", autouse=True)
def _tail() -> Iterator[None]:
    code = re.search(r"```python\n(# tail\.py\n.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    exec(code[1], {"__name__": "tail"})
    yield
    del lr.MEASUREMENTS["tail"]


@pytest.fixture(scope="module")
def results() -> lr.EvalResults:
    options = lr.EvalOptions(measurements=["tail"], documents=2, dtype="float32")
    candidates = {"yarn": lr.scheme("yarn", TINY, 300)}
    return lr.evaluate("tiny", candidates=candidates, lengths=[256, 300], data="stdlib:unseen", options=options)


def test_python_measures_it(results: lr.EvalResults) -> None:
    model, tokenizer = lr.load("tiny", dtype="float32")
    documents = split_documents(lr.load_documents("stdlib:unseen"))["test"]
    tokens = draw_tokens(documents, tokenizer, length=300, count=2).tokens
    for name, scaling in {"original": None, "yarn": lr.scheme("yarn", TINY, 300)}.items():
        with lr.patch(model, scaling):
            losses = lr.token_losses(model, tokens)
        (record,) = results["tail"][name]
        assert record.perplexity == pytest.approx(math.exp(np.mean(losses[:, -64:])), rel=1e-4)
    assert list(results.to_frame("tail").candidate) == ["original", "yarn"]


def test_it_is_not_measured_unless_requested() -> None:
    options = lr.EvalOptions(documents=2)
    results = lr.evaluate("tiny", lengths=[64], data="stdlib:unseen", options=options)
    with pytest.raises(LongRopeError, match=r"measurement = 'tail': not measured. These results hold perplexity"):
        results["tail"]


def test_the_command_and_the_report_show_it(results: lr.EvalResults, tmp_path: Path) -> None:
    arguments = "eval tiny --lengths 256,300 --schemes yarn --documents 2 --dtype float32 --measure tail --json -o"
    run = CliRunner().invoke(app, [*arguments.split(), str(tmp_path / "eval")])
    assert run.exit_code == 0, run.output
    record: dict[str, Any] = json.loads((tmp_path / "eval" / "results.json").read_text())
    for name, (tail,) in record["tail"].items():
        assert tail["perplexity"] == pytest.approx(results["tail"][name][0].perplexity, rel=1e-4)
    figure = next(figure for figure in figures(read_runs([tmp_path / "eval"])) if figure.key == "tail")
    assert [row[0] for row in figure.written()] == ["original", "yarn"]
    lr.report(tmp_path / "eval", tmp_path / "report.html")
    assert "Last tokens" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_name_without_a_row_is_refused() -> None:
    with pytest.raises(LongRopeError, match=r"measurements = 'tial' is unknown; .* did you mean 'tail'"):
        lr.evaluate("tiny", lengths=[64], data="stdlib:unseen", options=lr.EvalOptions(measurements=["tial"]))
