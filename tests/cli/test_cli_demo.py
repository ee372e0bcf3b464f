from __future__ import annotations

import json
from pathlib import Path

import pytest

from longrope.cli import demo as module
from longrope.data.documents import load_documents
from longrope.data.split import draw_tokens, split_documents
from longrope.evaluation.losses import model_losses
from longrope.evaluation.perplexity import perplexity_of_losses
from longrope.formats.load_factors import load_factors
from longrope.models.load import load
from longrope.scaling import Extension
from longrope.search.auto import Auto
from longrope.search.gradient import Gradient
from longrope.search.registry import METHODS
from longrope.stages.plan import load_plan

PLAN = """
version = 1
[[stages]]
length = "2k"
[stages.search]
documents = 1
[stages.finetune]
steps = 1
batch = 1
rate = 1e-4
[recovery]
[recovery.search]
documents = 1
[data]
source = "stdlib:unseen"
[evaluation]
lengths = [256, "2k"]
schemes = ["yarn"]
retrieval = ["recall"]
trials = 2
"""


@pytest.fixture(scope="module")
def demo(cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a plan that is as short as can be."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "plan.toml").write_text(PLAN)
    with pytest.MonkeyPatch.context() as changed:
        changed.setitem(METHODS, "auto", Auto(ramps=1, gradient=Gradient(steps=1)))
        changed.setattr(module, "PLAN", str(folder / "plan.toml"))
        result = cli("demo", "-o", folder / "demo", "--json")
    assert result.code == 0, result.err
    assert result.json["parity"]
    return folder / "demo"


def test_its_numbers_can_be_recomputed(demo: Path) -> None:
    record = json.loads((demo / "demo.json").read_text())
    extension = load_factors(demo / "extension.json")
    assert isinstance(extension, Extension)
    _, tokenizer = load("tiny")
    tokens = draw_tokens(
        split_documents(load_documents("stdlib:unseen"))["test"], tokenizer, length=2048, count=4
    ).tokens
    rows = {"2k searched": "tiny", "extended": str(demo / "stage-1" / "model")}
    for name, weights in rows.items():
        model, _ = load(weights, dtype="float32")
        for factors, cell in zip((extension.short, extension.long), record["perplexity"][name], strict=True):
            used = factors if name == "extended" else extension.long
            found = perplexity_of_losses(
                model_losses(model, used, tokens[:, : cell["length"]], batch=4), cell["length"]
            )
            assert cell["perplexity"] == pytest.approx(found.perplexity, rel=1e-4)
            assert cell["standard_error"] == pytest.approx(found.standard_error, rel=1e-3)


def test_what_it_leaves(demo: Path) -> None:
    names = {path.name for path in demo.iterdir()}
    assert names >= {"extension.json", "report.html", "figures", "checkpoint", "stage-1", "demo.json"}
    record = json.loads((demo / "demo.json").read_text())
    assert max(record["parity"].values()) < 1e-3
    assert record["short_context"].keys() == record["perplexity"].keys() - {"original"}
    cells = record["retrieval"]["extended"]
    assert {(cell["task"], cell["length"]) for cell in cells} == {("recall", 256), ("recall", 2048)}
    page = (demo / "report.html").read_text()
    assert all(f"{row[-1]['perplexity']:.2f}" in page for row in record["perplexity"].values())
    long = {name: row[-1]["perplexity"] for name, row in record["perplexity"].items()}
    assert long["original"] > 2 * min(long["yarn"], long["extended"])


def test_it_leaves_a_folder_of_others_alone(cli, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    result = cli("demo", "-o", tmp_path)
    assert result.code == 2
    assert result.err == f"error: {tmp_path} exists and holds no demo; choose another output with -o"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_it_replaces_a_demo_that_was_killed_as_it_began(tmp_path: Path) -> None:
    """Before it had marked its folder. A run of another plan stays."""
    (tmp_path / "tokens").mkdir()
    for name, text in ((".lock", ""), ("plan.toml", load_plan("demo").to_toml()), (".run.json.7.tmp", "{")):
        (tmp_path / name).write_text(text)
        assert module.is_demo(tmp_path)
    (tmp_path / "run.json").touch()
    assert module.is_demo(tmp_path)
    (tmp_path / "plan.toml").write_text("version = 1")
    assert not module.is_demo(tmp_path)


@pytest.mark.slow
def test_the_whole_demo_finds_better_factors_than_every_scheme(cli, tmp_path: Path) -> None:
    result = cli("demo", "-o", tmp_path / "demo", "--json")
    assert result.code == 0, result.err
    long = {name: row[-1]["perplexity"] for name, row in result.json["perplexity"].items()}
    assert min(long["2k searched"], long["extended"]) < min(long[name] for name in ("pi", "ntk", "yarn", "heuristic"))
