from __future__ import annotations

import json
from pathlib import Path

import pytest
from families import build
from test_apply import differences, make_trainer
from test_huggingface import extension
from transformers import AutoModelForCausalLM

import longrope as lr
from longrope.export.hf_config import for_mode
from longrope.formats.load_factors import load_factors


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


def test_training_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    whole = build("llama")
    make_trainer(whole, tmp_path / "whole", [lr.LongRopeCallback(extension(whole))], save_steps=1).train()
    half = tmp_path / "whole" / "checkpoint-1"
    for name, model in (("plain", build("llama")), ("loaded", AutoModelForCausalLM.from_pretrained(half))):
        callback = lr.LongRopeCallback(extension(build("llama")))
        trainer = make_trainer(model, tmp_path / name, [callback], save_steps=1)
        trainer.train(resume_from_checkpoint=str(half))
        model.eval()
        assert max(differences(model, tmp_path / "whole" / "checkpoint-2")) < 1e-4
        folders = (tmp_path / name / "checkpoint-2", half)
        resumed, first = (json.loads((folder / "config.json").read_text()) for folder in folders)
        assert resumed["rope_parameters"] == first["rope_parameters"]
