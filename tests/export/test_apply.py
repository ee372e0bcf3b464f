from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import families
import pytest
import torch
from families import build, logits, tokens
from safetensors.torch import load_file
from test_huggingface import TOKENIZER, extension
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

import longrope as lr
from longrope.errors import LongRopeError
from longrope.export.hf_config import config_fields
from longrope.formats.load_factors import load_factors
from longrope.models.load import load, load_config
from longrope.models.patch import patch
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import scheme

LENGTHS = [40, 63, 64, 65, 200]
HERE = Path(__file__).parent
SETS = {"short_factor": [1.0] * 6 + [1.1, 1.2], "long_factor": [1.0, 1.0, 1.1, 1.5, 2.0, 3.0, 4.0, 4.5]}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64, **SETS}
TWO_SETS = {"rope_parameters": LONGROPE, "max_position_embeddings": 256}  # a checkpoint that carries them


def difference(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).square().mean() / ours.square().mean()).sqrt().item()


def differences(model: PreTrainedModel, folder: Path) -> list[float]:
    """How far the logits of a saved folder are from a model's, by length, in this process."""
    reloaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    samples = [tokens(1, length) for length in LENGTHS]
    return [difference(logits(model, sample), logits(reloaded, sample)) for sample in samples]


def make_trainer(model: PreTrainedModel, folder: Path, callbacks: list[TrainerCallback], **fields: object) -> Trainer:
    """A user's own Trainer of two steps on samples of 80 tokens."""
    dataset = [{"input_ids": sample, "labels": sample} for sample in tokens(4, 80)]
    options = {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "report_to": "none"}
    arguments = TrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, **{**options, **fields})
    return Trainer(model=model, args=arguments, train_dataset=dataset, callbacks=callbacks)


@pytest.mark.parametrize("mode", ["static", "dual"])
def test_a_users_own_trainer_saves_the_factors(mode: str, tmp_path: Path) -> None:
    model = build("llama")
    found = extension(model)
    plain = copy.deepcopy(model)

    lr.apply(model, found, mode=mode)
    make_trainer(model, tmp_path / "out", []).train()
    model.eval()
    model.save_pretrained(tmp_path / "saved")
    TOKENIZER.save_pretrained(tmp_path / "saved")

    lists = [tokens(1, length)[0].tolist() for length in LENGTHS]
    request = {"folders": [str(tmp_path / "saved")], "text": "t1", "tokens": lists}
    (tmp_path / "request.json").write_text(json.dumps(request))
    command = [sys.executable, HERE / "opened.py", tmp_path / "request.json", tmp_path / "answer"]
    subprocess.run(command, check=True)
    reloaded = load_file(tmp_path / "answer")
    for j, sample in enumerate(lists):
        ours = logits(model, torch.tensor([sample]))[0]
        assert difference(ours, reloaded[f"0.{j}"]) < 1e-4
        assert difference(logits(plain, torch.tensor([sample]))[0], reloaded[f"0.{j}"]) > 0.01


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("mode", ["static", "dual"])
def test_every_family_reloads_with_the_same_logits(family: str, mode: str, tmp_path: Path) -> None:
    model = lr.apply(build(family), extension(build(family)), mode=mode)
    model.save_pretrained(tmp_path / "saved")
    assert max(differences(model, tmp_path / "saved")) < 1e-4


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt_neox"])
def test_the_saved_config_is_the_exported_one_without_the_fields_for_other_readers(family: str, tmp_path: Path) -> None:
    model = build(family)
    lr.export(model, TOKENIZER, extension(model), tmp_path / "exported")
    lr.apply(model, extension(model)).save_pretrained(tmp_path / "saved")
    saved, exported = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("saved", "exported"))
    assert exported.pop("rope_scaling")["long_factor"] == saved.get("rope_parameters").get("long_factor")
    assert saved == exported


def test_the_applied_model_computes_with_the_factors() -> None:
    model = build("llama")
    found, sample = extension(model), tokens(1, 100)
    with patch(model, found):
        patched = logits(model, sample)
    assert torch.equal(logits(lr.apply(model, found, mode="dual"), sample), patched)
    short = tokens(1, 30)
    with patch(build("llama"), found.long) as other:
        assert torch.equal(logits(lr.apply(model, found), short), logits(other, short))


@pytest.mark.parametrize("family", families.FAMILIES)
def test_detach_undoes_it_bit_for_bit(family: str) -> None:
    model = build(family)
    sample = tokens(1, 100)
    before = logits(model, sample), model.config.to_dict(), dict(model.named_modules()), list(model.state_dict())
    lr.apply(model, extension(model))
    assert not torch.equal(logits(model, sample), before[0])
    assert list(model.state_dict()) == before[3]
    lr.apply(model, extension(model), mode="dual")  # replaces the first ones
    assert lr.detach(model) is model
    after = logits(model, sample), model.config.to_dict(), dict(model.named_modules()), list(model.state_dict())
    assert torch.equal(after[0], before[0])
    assert after[1:] == before[1:]
    assert vars(model.config).keys() == vars(build(family).config).keys()


def test_a_copy_of_an_applied_model_is_detached_and_saved(tmp_path: Path) -> None:
    model = build("llama")
    plain = set(vars(model.config))
    copied = lr.detach(copy.deepcopy(lr.apply(model, extension(model))))
    assert set(vars(copied.config)) == plain
    copied.save_pretrained(tmp_path / "saved")
    assert max(differences(build("llama"), tmp_path / "saved")) == 0


def test_a_decided_length_ends_with_the_scaling_that_it_was_for(tmp_path: Path) -> None:
    build("llama", **TWO_SETS).save_pretrained(tmp_path / "two")
    TOKENIZER.save_pretrained(tmp_path / "two")
    model, _ = load(str(tmp_path / "two"), original_length=128)
    rope, config = Rope.of(model), model.config.to_dict()
    assert rope.original_length == 128
    lr.apply(model, scheme("ntk", rope, 1024))
    model.save_pretrained(tmp_path / "saved")
    assert Rope.of(load_config(str(tmp_path / "saved"))).original_length == 1024
    assert lr.detach(model).config.to_dict() == config
    assert Rope.of(model) == rope


@pytest.mark.parametrize("mode", ["static", "dual"])
def test_a_model_of_two_sets_reloads_with_the_same_logits(mode: str, tmp_path: Path) -> None:
    """Also between its L0 and the length that it came with, where a config of two sets has the new long one."""
    model = build("llama", **TWO_SETS)
    lr.apply(model, scheme("ntk", Rope.of(model), 1024), mode=mode)
    model.save_pretrained(tmp_path / "saved")
    assert max(differences(model, tmp_path / "saved")) < 1e-5


def test_a_patch_of_an_applied_model_ends_where_it_began() -> None:
    model = build("llama")
    found, sample = extension(model), tokens(1, 100)
    lr.apply(model, found)
    applied = logits(model, sample)
    with patch(model, Scaling([3.0] * 8)):
        assert not torch.equal(logits(model, sample), applied)
    assert torch.equal(logits(model, sample), applied)
    lr.detach(model)
    assert torch.equal(logits(model, sample), logits(build("llama"), sample))


def test_a_scaling_is_taken_where_an_extension_is(tmp_path: Path) -> None:
    model = build("llama")
    long = extension(model).long
    lr.apply(model, long)
    model.save_pretrained(tmp_path / "saved")
    assert max(differences(model, tmp_path / "saved")) < 1e-4
    held = load_factors(tmp_path / "saved")
    assert isinstance(held, Extension)
    assert held.long.factors == held.short.factors == long.factors


def test_an_applied_model_is_exported_with_its_factors(tmp_path: Path) -> None:
    model = build("llama")
    lr.export(model, TOKENIZER, extension(model), tmp_path / "plain", mode="dual")
    lr.apply(model, extension(model))
    lr.export(model, TOKENIZER, extension(model), str(tmp_path / "applied"), mode="dual")
    plain, applied = tmp_path / "plain", tmp_path / "applied"
    assert json.loads((plain / "config.json").read_text()) == json.loads((applied / "config.json").read_text())
    for name in ("extension.json", "model.safetensors"):
        assert (plain / name).read_bytes() == (applied / name).read_bytes()


def refused(model: PreTrainedModel, found: Scaling | Extension, message: str, **options: str) -> None:
    before = model.config.to_dict(), list(model.named_modules())
    with pytest.raises(LongRopeError, match=message):
        lr.apply(model, found, **options)
    assert (model.config.to_dict(), list(model.named_modules())) == before


def test_nothing_is_applied_or_detached_within_a_patch(tmp_path: Path) -> None:
    model = build("llama")
    plain, sample = model.config.to_dict(), tokens(1, 200)
    expected = logits(model, sample)
    with patch(model, extension(model).long):
        refused(model, extension(model), "longrope.patch.*Call longrope.apply outside the block")
        with pytest.raises(LongRopeError, match=r"Call longrope\.detach outside"):
            lr.detach(model)
    assert model.config.to_dict() == plain
    assert torch.equal(logits(model, sample), expected)

    lr.apply(model, extension(model))
    applied = logits(model, sample)
    with patch(model, Scaling([2.0] * 8)):
        refused(model, extension(model), "longrope.patch")
    assert torch.equal(logits(model, sample), applied)
    model.save_pretrained(tmp_path / "saved")
    assert max(differences(model, tmp_path / "saved")) < 1e-4
    assert torch.equal(logits(lr.detach(model), sample), expected)
    lr.export(model, TOKENIZER, extension(model), tmp_path / "exported")
    assert load_factors(tmp_path / "exported").long.factors == extension(model).long.factors


def test_what_a_config_cannot_hold_is_refused(tmp_path: Path) -> None:
    llama = build("llama")
    refused(llama, extension(llama, start_tokens=4), "start_tokens = 4")
    refused(llama, Extension.of(Rope.of(llama), extension(llama).long), "attention_factor", mode="dual")
    refused(llama, Scaling([2.0] * 8), "length")
    refused(llama, extension(build("mixtral")), "1000000")
    refused(build("phi3"), extension(build("phi3"), "none"), "phi3")
    with pytest.raises(LongRopeError, match="phimoe"):
        config_fields({**llama.config.to_dict(), "model_type": "phimoe"}, extension(llama))
    with pytest.raises(LongRopeError, match="no factors are applied"):
        lr.detach(llama)
    lr.export(llama, TOKENIZER, extension(llama), tmp_path / "made")
    refused(
        AutoModelForCausalLM.from_pretrained(tmp_path / "made"),
        extension(llama),
        "its checkpoint carries a rope scaling",
    )
