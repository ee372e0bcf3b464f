"""What prepares images for a model is copied into every checkpoint that is made of it."""

from __future__ import annotations

import json
from pathlib import Path

import all_types
import families
import pytest
from transformers import AutoModelForCausalLM

import longrope as lr
from longrope.models.processor_files import FILES
from longrope.rope import Rope
from longrope.schemes import scheme
from longrope.stages.begin_run import begin_run
from longrope.stages.pipeline import extend
from longrope.stages.plan import Plan
from longrope.stages.plan_tables import Data, FinalEvaluation, Finetune, Stage
from longrope.stages.run_folder import StagedRun

LENGTH = 2 * all_types.L0
CONTENTS = {
    "processor_config.json": json.dumps({"processor_class": "Gemma3Processor", "image_seq_length": 4}),
    "preprocessor_config.json": json.dumps({"size": {"height": 28, "width": 28}}),
    "chat_template.jinja": "{{ messages[0]['content'] }}",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model that reads images, with the files of its processor."""
    folder = tmp_path / "gemma3"
    model = all_types.build("gemma3")
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(4)
    model.save_pretrained(folder)
    families.tokenizer().save_pretrained(folder)
    for name, text in CONTENTS.items():
        (folder / name).write_text(text)
    return folder


def copied(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in FILES if (folder / name).exists()}


@pytest.mark.parametrize("to", ["huggingface", "config"])
def test_an_export_has_them(folder: Path, tmp_path: Path, to: str) -> None:
    scaling = scheme("ntk", Rope.of(lr.load(str(folder))[0]), LENGTH)
    lr.export(str(folder), None, scaling, tmp_path / "out", to=to)
    assert copied(tmp_path / "out") == CONTENTS
    model, tokenizer = lr.load(str(folder))
    lr.export(model, tokenizer, scaling, tmp_path / "loaded", to=to)
    assert copied(tmp_path / "loaded") == CONTENTS


def test_the_template_of_the_tokenizer_stays(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = lr.load(str(folder))
    tokenizer.chat_template = "mine"
    lr.export(model, tokenizer, scheme("ntk", Rope.of(model), LENGTH), tmp_path / "out")
    assert copied(tmp_path / "out") == {**CONTENTS, "chat_template.jinja": "mine"}


def test_a_text_model_has_none(tmp_path: Path) -> None:
    model = families.build("llama")
    model.save_pretrained(tmp_path / "model")
    families.tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").write_text("{}")
    scaling = scheme("ntk", Rope.of(model), LENGTH)
    lr.export(str(tmp_path / "model"), None, scaling, tmp_path / "out")
    assert copied(tmp_path / "out") == {}
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_a_fine_tuned_stage_has_them(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for i in range(12):
        words = " ".join(f"t{3 + (i + j) % 23}" for j in range(400 + i))
        (tmp_path / "texts" / f"{i:02}.txt").write_text(words)
    stage = Stage(length=LENGTH, factors="pi", finetune=Finetune(steps=1, batch=1))
    plan = Plan(stages=(stage,), data=Data(source=str(tmp_path / "texts")), evaluation=FinalEvaluation(documents=1))
    run = StagedRun(tmp_path / "run", str(folder), plan)
    begin_run(run, resume=False)
    extend(run)
    assert copied(Path(run.final_weights)) == CONTENTS
    lr.load(run.final_weights)
