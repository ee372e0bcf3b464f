"""An exported checkpoint is a user's model like any other: extending it again is the next stage of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import running
from families import logits, tokens
from transformers import AutoModelForCausalLM

import longrope as lr
from longrope.formats.load_factors import load_extension
from longrope.models.patch import patch
from longrope.stages.begin_run import begin_run
from longrope.stages.pipeline import extend
from longrope.stages.plan import parse_plan
from longrope.stages.run_folder import StagedRun

PLAN = """\
version = 1
export = "none"
[data]
source = "TEXTS/search"
train = "TEXTS/train"
[evaluation]
lengths = []
"""
FINETUNED = """\
[[stages]]
length = 256
factors = "ramp"
[stages.finetune]
steps = 3
batch = 2
rate = 1e-3
dtype = "float32"
"""
NEXT = """\
[[stages]]
length = 1024
factors = "FACTORS"
[stages.search]
method = "cma"
budget = 12000
documents = 1
needles = 0
"""


def extended(folder: Path, model: Path, plan: str, texts: Path) -> StagedRun:
    run = StagedRun(folder, str(model), parse_plan((PLAN + plan).replace("TEXTS", str(texts))), dtype="float32")
    begin_run(run, resume=False)
    extend(run)
    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, texts, and the export of a first run."""
    folder = tmp_path_factory.mktemp("composed")
    model, texts = running.save(folder / "model"), folder / "texts"
    running.text_folder(texts / "search", tokens=1100)
    running.text_folder(texts / "train")
    first = extended(folder / "first", model, FINETUNED, texts)
    trained, tokenizer = lr.load(first.final_weights)
    lr.export(trained, tokenizer, load_extension(first.folder / "extension.json"), folder / "exported")
    return folder


@pytest.mark.parametrize("factors", ["ramp", "search"])
def test_one_run_of_two_stages_is_two_runs(factors: str, folder: Path, tmp_path: Path) -> None:
    texts, later = folder / "texts", NEXT.replace("FACTORS", factors)
    staged = extended(tmp_path / "staged", folder / "model", FINETUNED + later, texts)
    second = extended(tmp_path / "second", folder / "exported", later, texts)
    once, twice = (load_extension(run.folder / "extension.json") for run in (staged, second))
    assert (second.rope.original_length, twice.length) == (256, 1024)
    np.testing.assert_allclose(twice.total.long.factors, once.long.factors, rtol=1e-9)
    assert twice.total.long.attention_factor == pytest.approx(once.long.attention_factor)
    lr.export(str(folder / "exported"), None, twice, tmp_path / "again")
    ids, weights = tokens(1, 600), AutoModelForCausalLM.from_pretrained(staged.final_weights).eval()
    with patch(weights, once.long):
        expected = logits(weights, ids)
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval(), ids)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=2e-3)
