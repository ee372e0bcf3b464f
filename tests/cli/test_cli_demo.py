from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from longrope.data.documents import load_documents
from longrope.data.split import draw, split
from longrope.evaluation.perplexity import model_losses, perplexity
from longrope.files import load_factors
from longrope.models.load import load
from longrope.rope import Extension


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:

    folder = tmp_path_factory.mktemp("demo") / "demo"
    subprocess.run([sys.executable, "-m", "longrope", "demo", "--budget", "8", "-o", folder], check=True)
    return folder


def test_its_numbers_can_be_recomputed(demo: Path):
    record = json.loads((demo / "demo.json").read_text())
    extension = load_factors(demo / "extension.json")
    assert isinstance(extension, Extension)
    model, tokenizer = load("tiny", dtype="float32")
    tokens = draw(split(load_documents("stdlib:unseen"))["test"], tokenizer, length=2048, count=8).tokens
    for length, cell in zip((256, 2048), (record["perplexity"]["searched"][i] for i in (0, 3)), strict=True):
        expected = perplexity(model_losses(model, extension.long, tokens[:, :length], batch=8), length)
        assert cell["perplexity"] == pytest.approx(expected.perplexity, rel=1e-4)
        assert cell["standard_error"] == pytest.approx(expected.standard_error, rel=1e-3)


def test_what_it_leaves(demo: Path):
    names = {path.name for path in demo.iterdir()}
    assert names >= {"extension.json", "factors.png", "perplexity.png", "checkpoint", "search-0.jsonl", "demo.json"}
    record = json.loads((demo / "demo.json").read_text())
    assert max(record["parity"].values()) < 1e-3
    assert record["short_context"].keys() == record["perplexity"].keys() - {"original"}
    long = {name: row[-1]["perplexity"] for name, row in record["perplexity"].items()}
    assert long["original"] > 2 * min(long["yarn"], long["searched"])


def test_it_leaves_a_folder_of_others_alone(cli, tmp_path: Path):
    (tmp_path / "mine.txt").write_text("mine")
    result = cli("demo", "-o", tmp_path)
    assert result.code == 2
    assert "exists" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
