"""The folder of an adapter that ``peft`` trained, given as MODEL: base and adapter are merged in memory."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import gguf_files
import pytest
import torch
from families import L0, build, logits, tokens
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel
from typer.testing import CliRunner

import longrope as lr
from longrope.cli.main import app
from longrope.errors import LongRopeError
from longrope.models.adapter import describe_adapter, switched_adapter
from longrope.models.load import find_gguf, load, load_config, load_tokenizer
from longrope.rope import Rope
from longrope.stages.plan import Plan
from longrope.stages.plan_tables import Stage
from longrope.stages.run_folder import StagedRun

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
IA3 = IA3Config(
    target_modules=["k_proj", "down_proj"],
    feedforward_modules=["down_proj"],
    task_type="CAUSAL_LM",
    init_ia3_weights=False,
)
LENGTH = 4 * L0
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Could not find a config")


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    build("llama").save_pretrained("base")
    families.tokenizer().save_pretrained("base")
    return Path("base")


def save_adapter(folder: str, config: Any = LORA, *, base: str = "base", of: PreTrainedModel | None = None) -> Path:
    """An adapter with weights that matter, which names its base model."""
    torch.manual_seed(0)
    get_peft_model(of or build("llama"), copy.deepcopy(config)).save_pretrained(folder)
    path = Path(folder) / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))
    return Path(folder)


@pytest.mark.parametrize("config", [LORA, IA3], ids=["LoRA", "IA3"])
def test_base_and_adapter_are_merged_as_peft_does(base: Path, config: Any) -> None:
    save_adapter("adapter", config)
    model, tokenizer = load("adapter")
    expected = logits(PeftModel.from_pretrained(build("llama"), "adapter"), tokens(1, 20))
    torch.testing.assert_close(logits(model, tokens(1, 20)), expected, **CLOSE)
    assert not torch.allclose(expected, logits(build("llama"), tokens(1, 20)), atol=1e-2)
    assert type(model) is type(build("llama"))
    assert model.state_dict().keys() == build("llama").state_dict().keys()
    assert not any(hasattr(model, name) for name in ("peft_config", "_switched_adapter"))
    assert len(tokenizer) == families.VOCABULARY
    assert load_config("adapter").to_dict() == load_config("base").to_dict()


def test_it_is_extended_as_the_merged_model_is(base: Path) -> None:
    save_adapter("adapter")
    merged: Any = PeftModel.from_pretrained(build("llama"), "adapter").merge_and_unload()
    scaling = lr.scheme("yarn", Rope.of(merged), LENGTH)
    result = CliRunner().invoke(app, ["scale", "adapter", "-l", str(LENGTH), "--scheme", "yarn", "-o", "f.json"])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(app, ["export", "adapter", "--factors", "f.json", "-o", "out"])
    assert result.exit_code == 0, result.output
    exported = AutoModelForCausalLM.from_pretrained("out").eval()
    with lr.patch(merged, scaling):
        torch.testing.assert_close(logits(exported, tokens(1, 200)), logits(merged, tokens(1, 200)), atol=2e-3, rtol=0)
    assert not Path("out/adapter_config.json").exists()


def test_a_config_alone_has_no_merged_weights(base: Path) -> None:
    save_adapter("adapter")
    scaling = lr.scheme("yarn", Rope.of(load_config("adapter")), LENGTH)
    with pytest.raises(LongRopeError, match=r"model = 'adapter': .*Export the whole checkpoint"):
        lr.export("adapter", None, scaling, "out", to="config")


def test_a_tokenizer_beside_the_adapter_is_taken(base: Path) -> None:
    folder = save_adapter("adapter")
    tokenizer = families.tokenizer()
    tokenizer.chat_template = "a template of the fine-tuning"
    tokenizer.save_pretrained(folder)
    assert load("adapter")[1].chat_template == load_tokenizer("adapter").chat_template == tokenizer.chat_template
    assert load_tokenizer("base").chat_template is None


def test_a_run_begins_with_the_merged_weights(base: Path, tmp_path: Path) -> None:
    save_adapter("adapter")
    run = StagedRun(tmp_path / "run", "adapter", Plan(stages=(Stage(length=256),)))
    assert (run.rope, run.weights(1)) == (Rope.of(build("llama")), "adapter")


def test_a_base_on_a_hub_out_of_reach_is_named_with_the_command_that_fetches_it(base: Path) -> None:
    save_adapter("adapter", base="org/base-model")
    with pytest.raises(
        LongRopeError, match=r"'org/base-model' cannot be loaded.*Run hf download org/base-model --local"
    ):
        load("adapter")


def test_an_adapter_on_an_adapter(base: Path) -> None:
    """The second one is switched with its factors, as ``longrope extend`` writes it on the folder of the first."""
    save_adapter("first")
    first, _ = load("first")
    second = save_adapter("second", base="first", of=load("first")[0])
    rope = Rope.of(first)
    extension = lr.Extension.of(rope, lr.scheme("pi", rope, LENGTH))
    describe_adapter(second, base="first", factors=extension.to_json())
    both, _ = load("second")
    assert switched_adapter(both) is not None
    assert torch.equal(logits(both, tokens(1, 20)), logits(first, tokens(1, 20)))
    with lr.patch(both, extension), lr.patch(first, extension):
        assert not torch.allclose(logits(both, tokens(1, 200)), logits(first, tokens(1, 200)), atol=1e-2)


def test_the_base_may_be_a_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    gguf_files.plain(tmp_path / "base.gguf")
    plain, _ = load("base.gguf")
    save_adapter("adapter", base="base.gguf", of=load("base.gguf")[0])
    merged, _ = load("adapter")
    assert find_gguf("adapter") is None
    expected = logits(PeftModel.from_pretrained(plain, "adapter"), tokens(1, 20))
    torch.testing.assert_close(logits(merged, tokens(1, 20)), expected, **CLOSE)


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "another hidden size": ({"hidden_size": 128}, r"size mismatch for .*_proj"),
    "more layers": ({"num_hidden_layers": 3}, r"4 tensors are unknown to the model: .*layers\.2"),
    "fewer layers": ({"num_hidden_layers": 1}, r"4 tensors are missing in it: .*layers\.1"),
}


@pytest.mark.parametrize(("fields", "fault"), OTHERS.values(), ids=OTHERS)
def test_an_adapter_of_another_base(base: Path, fields: dict[str, Any], fault: str) -> None:
    save_adapter("adapter", of=build("llama", **fields))
    with pytest.raises(LongRopeError, match=rf"base_model_name_or_path = 'base': .*does not fit this model \({fault}"):
        load("adapter")
    rope = Rope.of(load_config("base"))
    Path("f.json").write_text(lr.Extension.of(rope, lr.scheme("pi", rope, 512)).to_json())
    result = CliRunner().invoke(app, ["export", "adapter", "--factors", "f.json", "-o", "out"])
    assert result.exit_code == 2
    assert "Name the model that it was trained on in adapter_config.json." in result.stderr
    assert not Path("out").exists()


def test_an_adapter_of_another_architecture(base: Path) -> None:
    config = LoraConfig(r=4, target_modules=["query_key_value"], task_type="CAUSAL_LM")
    save_adapter("adapter", config, of=build("gpt_neox"))
    with pytest.raises(LongRopeError, match=r"'base': .*does not fit this model \(.*query_key_value.*not found"):
        load("adapter")


def test_a_damaged_adapter(base: Path) -> None:
    folder = save_adapter("adapter")
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({name: value.clone() for name, value in list(tensors.items())[1:]}, weights, metadata={"format": "pt"})
    with pytest.raises(LongRopeError, match=r"1 tensors are missing in it"):
        load("adapter")
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(LongRopeError, match=r"does not fit this model"):
        load("adapter")
    weights.unlink()
    with pytest.raises(LongRopeError, match=r"does not fit this model"):
        load("adapter")


@pytest.mark.parametrize("use", [load, load_config, load_tokenizer])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere/far/base", r"^base_model_name_or_path = 'nowhere/far/base': .* write its folder into adapter"),
        ("org/model", r"model = 'org/model' cannot be loaded"),
        ("", r"names no base model\. Write the model's name there, as base_model_name_or_path"),
        ("adapter", r"base_model_name_or_path = 'adapter': .* is its own base"),
    ],
)
def test_a_base_that_is_missing(base: Path, use: Callable[[str], object], name: str, message: str) -> None:
    save_adapter("adapter", base=name)
    with pytest.raises(LongRopeError, match=message):
        use("adapter")


def test_the_package_is_named(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_adapter("adapter")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(LongRopeError, match=r'.adapter. needs the package peft: pip install "longrope\[lora\]"'):
        load("adapter")
