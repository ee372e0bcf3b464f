from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build, logits, tokens
from peft import LoraConfig, get_peft_model
from test_apply import TWO_SETS, differences, make_trainer
from test_huggingface import TOKENIZER, extension
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import longrope as lr
from longrope.cli.main import app
from longrope.export.hf_config import for_mode
from longrope.formats.load_factors import load_factors
from longrope.models.load import load
from longrope.rope import Rope
from longrope.schemes import scheme


@pytest.mark.parametrize("mode", ["static", "dual"])
def test_every_checkpoint_reloads_with_the_factors(mode: str, tmp_path: Path) -> None:
    model = build("llama")
    found = extension(model)
    trainer = make_trainer(model, tmp_path, [lr.LongRopeCallback(found, mode=mode)], save_steps=1)
    trainer.train()
    trainer.save_model()
    model.eval()
    assert max(differences(model, tmp_path)) < 1e-4
    assert max(differences(model, tmp_path / "checkpoint-2")) < 1e-4
    assert max(differences(model, tmp_path / "checkpoint-1")) > 1e-4  # the weights of a step earlier
    for folder in (tmp_path, tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"):
        assert load_factors(folder / "extension.json") == for_mode(found, mode)
        reference = build("llama")
        reference.load_state_dict(AutoModelForCausalLM.from_pretrained(folder).state_dict())
        assert max(differences(lr.apply(reference, found, mode=mode), folder)) < 1e-4


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Could not find a config")
@pytest.mark.parametrize("mode", ["static", "dual"])
@pytest.mark.parametrize("fields", [{}, TWO_SETS], ids=["plain", "two sets"])
def test_an_adapter_is_loaded_merged_and_its_factors_fit_its_base(
    fields: dict[str, Any], mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    build("llama", **fields).save_pretrained("base")
    TOKENIZER.save_pretrained("base")
    base = AutoModelForCausalLM.from_pretrained("base")
    scaling = extension(base) if not fields else scheme("ntk", Rope.of(base), 1024)
    lora = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = get_peft_model(base, lora)
    make_trainer(adapted, Path("out"), [lr.LongRopeCallback(scaling, mode=mode)], save_steps=2).train()
    adapted.eval()

    checkpoint = Path("out/checkpoint-2")
    assert not (checkpoint / "extension.json").exists()
    factors = load_factors(checkpoint / "factors.json")
    assert factors == load_factors("out/factors.json")
    merged, _ = load(str(checkpoint))
    for length in (30, 200, 300):
        sample = tokens(1, length)
        with lr.patch(merged, factors):
            torch.testing.assert_close(logits(merged, sample), logits(adapted, sample), rtol=0, atol=1e-3)
    command = ["export", str(checkpoint), "--factors", str(checkpoint / "factors.json"), "-o", "made", "--mode", mode]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert max(differences(adapted, Path("made"))) < 1e-4


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Could not find a config")
def test_an_adapter_on_a_base_that_has_the_factors_gets_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = extension(build("llama"))
    lr.export(build("llama"), TOKENIZER, found, "base")
    lora = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained("base"), lora)
    make_trainer(adapted, Path("out"), [lr.LongRopeCallback(found)], save_steps=2).train()
    assert not [*Path("out").rglob("extension.json"), *Path("out").rglob("factors.json")]
    merged, _ = load("out/checkpoint-2")
    sample = tokens(1, 200)
    torch.testing.assert_close(logits(merged, sample), logits(adapted.eval(), sample), rtol=0, atol=1e-3)


def test_it_trains_with_the_factors_even_if_added_late(tmp_path: Path) -> None:
    losses = {}
    for moment in ("early", "late", "never"):
        model = build("llama")
        callback = lr.LongRopeCallback(extension(model).long)
        trainer = make_trainer(model, tmp_path / moment, [callback] if moment == "early" else [], save_strategy="no")
        if moment == "late":
            trainer.add_callback(callback)
        losses[moment] = trainer.train().training_loss
    assert losses["early"] == losses["late"] != losses["never"]


@pytest.mark.parametrize("name", ["two sets", "yarn"])
def test_training_goes_on_from_a_checkpoint(name: str, tmp_path: Path) -> None:
    """The config of YaRN's factors names them, and has no two sets."""
    whole = build("llama")
    factors = extension(whole) if name == "two sets" else scheme("yarn", Rope.of(whole), 1024)
    make_trainer(whole, tmp_path / "whole", [lr.LongRopeCallback(factors)], save_steps=1).train()
    half = tmp_path / "whole" / "checkpoint-1"
    for name, model in (("plain", build("llama")), ("loaded", AutoModelForCausalLM.from_pretrained(half))):
        trainer = make_trainer(model, tmp_path / name, [lr.LongRopeCallback(factors)], save_steps=1)
        trainer.train(resume_from_checkpoint=str(half))
        model.eval()
        assert max(differences(model, tmp_path / "whole" / "checkpoint-2")) < 1e-4
        folders = (tmp_path / name / "checkpoint-2", half)
        resumed, first = (json.loads((folder / "config.json").read_text()) for folder in folders)
        assert resumed["rope_parameters"] == first["rope_parameters"]
