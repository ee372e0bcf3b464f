"""Adapters that follow the factors, on a random Llama: L0 = 64."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from pathlib import Path

import families
import numpy as np
import pytest
import running
import torch
from families import logits, tokens
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

import longrope as lr
from longrope.data.weighted_text import WeightedText
from longrope.errors import LongRopeError
from longrope.export.apply import apply
from longrope.models.adapter import describe_adapter, merge_adapter, switched_adapter
from longrope.models.adapter_folder import base_of
from longrope.models.load import find_gguf, load_config
from longrope.objectives.model_loss import ModelObjective
from longrope.scaling import Extension
from longrope.stages.begin_run import begin_run
from longrope.stages.plan import Plan
from longrope.stages.plan_tables import Stage
from longrope.stages.run_folder import StagedRun

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing"),  # peft asks transformers for it
    pytest.mark.filterwarnings("ignore:.*keys did not match any targeted module"),  # but a parameter of experts
]
EXTENSION = Extension.of(running.ROPE, running.FACTORS)
TOLERANCE = {"atol": 2e-4, "rtol": 1e-4}
BATCH, MASK = tokens(2, 100), torch.ones(2, 100, dtype=torch.long)
MASK[0, :70] = 0  # the first row has 30 tokens


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return running.save(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def folder(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with weights that matter."""
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
    get_peft_model(lr.load(str(base))[0], lora).save_pretrained(folder)
    weights = load_file(folder / "adapter_model.safetensors")
    generator = torch.Generator().manual_seed(0)
    drawn = {name: 0.3 * torch.randn(value.shape, generator=generator) for name, value in weights.items()}
    save_file(drawn, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    describe_adapter(folder, base=str(base), factors=EXTENSION.to_json())
    return folder


@pytest.fixture
def adapted(folder: Path) -> PreTrainedModel:
    return lr.load(str(folder))[0]


@pytest.fixture
def original(base: Path) -> PreTrainedModel:
    return lr.load(str(base))[0]


@pytest.fixture
def merged(folder: Path) -> PreTrainedModel:
    return merge_adapter(lr.load(str(folder))[0])


def test_up_to_l0_the_model_is_the_original_one(adapted: PreTrainedModel, original: PreTrainedModel) -> None:
    short, long = tokens(2, 64), tokens(2, 65)
    for length in (short, long):
        assert torch.equal(logits(adapted, length), logits(original, length))
    with lr.patch(adapted, EXTENSION), lr.patch(original, EXTENSION):
        assert torch.equal(logits(adapted, short), logits(original, short))
        assert not torch.allclose(logits(adapted, long), logits(original, long), atol=0.1)
    assert torch.equal(logits(adapted, long), logits(original, long))


def test_beyond_l0_the_adapter_is_on(adapted: PreTrainedModel, merged: PreTrainedModel) -> None:
    long = tokens(2, 200)
    for scaling in (EXTENSION, EXTENSION.long):
        with lr.patch(adapted, scaling), lr.patch(merged, scaling):
            torch.testing.assert_close(logits(adapted, long), logits(merged, long), **TOLERANCE)


def test_merged_weights_are_those_of_peft(merged: PreTrainedModel, base: Path, folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    wanted = PeftModel.from_pretrained(lr.load(str(base))[0], str(folder)).merge_and_unload()
    for name, value in wanted.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], value)
    merged.save_pretrained(tmp_path / "merged")
    running.assert_equal(tmp_path / "merged", saved(wanted, tmp_path / "wanted"))


def saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def test_an_export_holds_the_merged_weights(folder: Path, merged: PreTrainedModel, tmp_path: Path) -> None:
    lr.export(str(folder), None, EXTENSION, tmp_path / "out")
    exported, _ = lr.load(str(tmp_path / "out"))
    apply(merged, EXTENSION)
    for length in (40, 200):
        torch.testing.assert_close(logits(exported, tokens(1, length)), logits(merged, tokens(1, length)), **TOLERANCE)


def test_a_loaded_model_is_exported_merged_and_stays_as_it_was(
    adapted: PreTrainedModel, base: Path, merged: PreTrainedModel, tmp_path: Path
) -> None:
    lr.export(adapted, lr.load(str(base))[1], EXTENSION, tmp_path / "out")
    running.assert_equal(tmp_path / "out", saved(merged, tmp_path / "merged"))
    assert switched_adapter(adapted) is not None
    with pytest.raises(LongRopeError, match=r"adapter that is switched .* Use longrope\.export"):
        apply(adapted, EXTENSION)


def test_generation_switches_at_l0_as_the_uncached_model_does(adapted: PreTrainedModel) -> None:
    prompt, wanted = tokens(2, 50), tokens(2, 50)
    with torch.no_grad(), lr.patch(adapted, EXTENSION):
        for _ in range(40):
            wanted = torch.cat([wanted, logits(adapted, wanted)[:, -1:].argmax(-1)], dim=1)
    options = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 40}
    with lr.generating(adapted, EXTENSION, "switch"):
        assert torch.equal(adapted.generate(prompt, **options), wanted)


def test_each_row_of_a_batch_has_its_own_weights(adapted: PreTrainedModel, original: PreTrainedModel) -> None:
    check_rows(adapted, original, EXTENSION)


def check_rows(adapted: PreTrainedModel, original: PreTrainedModel, extension: Extension) -> None:
    """Check that each row of `BATCH` generates as it does alone."""
    options = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 8}
    with lr.generating(adapted, extension):
        both = adapted.generate(BATCH, attention_mask=MASK, **options)
        long = adapted.generate(BATCH[1:], **options)
    assert torch.equal(both[1:], long)
    assert torch.equal(both[:1, 70:], original.generate(BATCH[:1, 70:], **options))


def test_it_is_no_gguf_and_has_its_base_s_config(folder: Path, base: Path) -> None:
    assert base_of(folder) == str(base)
    assert find_gguf(str(folder)) is None
    assert load_config(str(folder)).to_dict() == load_config(str(base)).to_dict()


def test_without_factors_beside_it_an_adapter_is_merged(folder: Path, merged: PreTrainedModel, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "extension.json").unlink()
    model, _ = lr.load(str(other))
    assert switched_adapter(model) is None
    torch.testing.assert_close(logits(model, tokens(1, 40)), logits(merged, tokens(1, 40)), **TOLERANCE)


def test_a_missing_package_and_a_missing_base(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = tmp_path / "lost"
    lost.mkdir()
    for name in ("adapter_config.json", "extension.json"):
        (lost / name).write_text((folder / name).read_text())
    fields = json.loads((lost / "adapter_config.json").read_text())
    (lost / "adapter_config.json").write_text(json.dumps(fields | {"base_model_name_or_path": "/nowhere/base"}))
    with pytest.raises(LongRopeError, match=r"'/nowhere/base'.*no such folder"):
        lr.load(str(lost))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(LongRopeError, match=r'needs the package peft: pip install "longrope\[lora\]"'):
        lr.load(str(folder))


@pytest.mark.parametrize("gradient", [False, True])
def test_a_search_sees_the_adapter(gradient: bool, adapted: PreTrainedModel, merged: PreTrainedModel) -> None:
    text = WeightedText(tokens(1, 200)[0].numpy(), np.full(199, 1 / 199))
    jobs = [[(EXTENSION.long, 0)]]
    found, wanted = (
        next(iter(ModelObjective(model, [text]).evaluate(jobs, gradient=gradient)))[1][0] for model in (adapted, merged)
    )
    assert found.loss == pytest.approx(wanted.loss, abs=1e-4)
    if gradient:
        np.testing.assert_allclose(found.gradient, wanted.gradient, atol=1e-3)


def test_a_copy_has_an_adapter_of_its_own(adapted: PreTrainedModel) -> None:
    copied, long = copy.deepcopy(adapted), tokens(1, 200)
    plain = logits(adapted, long)
    with lr.patch(copied, EXTENSION.long):
        on = logits(copied, long)
        assert torch.equal(logits(adapted, long), plain)
    assert torch.equal(logits(copied, long), plain)
    with lr.patch(adapted, EXTENSION.long):
        assert torch.equal(logits(adapted, long), on)


def test_bad_folders(folder: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "extension.json").write_text((folder / "extension.json").read_text())
    for text in ("{", "{}", "3"):
        (damaged / "adapter_config.json").write_text(text)
        with pytest.raises(LongRopeError, match=r"adapter_config\.json is damaged or names no base model"):
            lr.load(str(damaged))
    run = StagedRun(tmp_path / "run", str(folder), Plan(stages=(Stage(length=256),)))
    with pytest.raises(LongRopeError, match=r"is not extended further\. Begin with its base model, .*base"):
        begin_run(run, resume=False)


def test_all_families_keep_their_logits_up_to_l0(tmp_path: Path) -> None:
    """Also those whose layers of sliding windows keep the original rope, and those with an adapter of experts."""
    for name in ("gemma3_text", "qwen2_moe", "mixtral", "gpt_neox"):
        base = tmp_path / name
        families.build(name).save_pretrained(base)
        families.tokenizer().save_pretrained(base)
        plain, _ = lr.load(str(base))
        lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
        get_peft_model(lr.load(str(base))[0], lora).save_pretrained(tmp_path / f"{name}-adapter")
        rope = lr.Rope.of(plain)
        extension = Extension.of(rope, lr.scheme("yarn", rope, 256))
        describe_adapter(tmp_path / f"{name}-adapter", base=str(base), factors=extension.to_json())
        adapted, _ = lr.load(str(tmp_path / f"{name}-adapter"))
        with lr.patch(adapted, extension), lr.patch(plain, extension):
            assert torch.equal(logits(adapted, tokens(1, 64)), logits(plain, tokens(1, 64)))
            long = logits(adapted, tokens(1, 200))
            assert not torch.allclose(long, logits(plain, tokens(1, 200)), atol=0.05)
        if name == "mixtral":
            with lr.generating(adapted, extension), pytest.raises(LongRopeError, match=r"2 rows.* weights of the exp"):
                adapted.generate(BATCH, attention_mask=MASK, max_new_tokens=1)
        if name == "qwen2_moe":  # its shared expert sees the tokens of all rows in one axis
            check_rows(adapted, plain, extension)
        merge_adapter(adapted)
        with lr.patch(adapted, extension):
            torch.testing.assert_close(logits(adapted, tokens(1, 200)), long, atol=1e-3, rtol=1e-3)
