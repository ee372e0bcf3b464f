"""A config with factors, written beside weights that nobody loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import families
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

import longrope as lr
from longrope.rope import Rope
from longrope.schemes import scheme

LENGTH = 4 * families.L0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model; its weights are moved away and come back with `restored`."""
    families.build("llama").save_pretrained(tmp_path / "model")
    families.tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "weights")
    return tmp_path / "model"


def restored(output: Path, folder: Path) -> PreTrainedModel:
    shutil.copy(folder.parent / "weights", output / "model.safetensors")
    return AutoModelForCausalLM.from_pretrained(output).eval()


def test_the_config_beside_the_weights_is_a_whole_export(folder: Path, tmp_path: Path) -> None:
    model, ids = families.build("llama"), families.tokens(1, LENGTH)
    scaling = scheme("yarn", Rope.of(model), LENGTH)
    written = lr.export(str(folder), None, scaling, tmp_path / "made", to="config")
    whole = lr.export(model, families.tokenizer(), scaling, tmp_path / "whole")
    assert written == whole
    assert not list((tmp_path / "made").glob("*.safetensors"))
    assert AutoTokenizer.from_pretrained(tmp_path / "made").model_max_length >= LENGTH
    expected = families.logits(AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval(), ids)
    assert torch.equal(families.logits(restored(tmp_path / "made", folder), ids), expected)


def test_the_generation_config_is_there_and_reaches_as_far(folder: Path, tmp_path: Path) -> None:
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_length": 50, "eos_token_id": [2, 5]}))
    model = families.build("llama")
    model.generation_config = GenerationConfig.from_pretrained(folder)
    scaling = scheme("yarn", Rope.of(model), LENGTH)
    lr.export(str(folder), None, scaling, tmp_path / "by-name", to="config")
    lr.export(model, families.tokenizer(), scaling, tmp_path / "loaded", to="config")
    for made in ("by-name", "loaded"):
        fields = json.loads((tmp_path / made / "generation_config.json").read_text())
        assert (fields["max_length"], fields["eos_token_id"]) == (LENGTH, [2, 5])


def test_a_config_alone_has_no_dtype_and_is_not_compared(
    model: Path, cli: Callable, refused: Callable, tmp_path: Path
) -> None:
    assert cli("scale", model, "-l", LENGTH, "--scheme", "yarn", "-o", tmp_path / "f.json").code == 0
    words = ("export", model, "--factors", tmp_path / "f.json", "-o", tmp_path / "made", "--config-only")
    refused("dtype = 'float32': a config alone has no weights. Leave dtype out", *words, "--dtype", "float32")
    refused("to = 'config' with --no-check: .*Leave --no-check out", *words, "--no-check")


def test_quantised_weights_need_no_kernels(folder: Path, tmp_path: Path, cli: Callable, refused: Callable) -> None:
    path = folder / "config.json"
    quantization = {"quant_method": "gptq", "bits": 4}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantization}))
    assert cli("scale", folder, "-l", LENGTH, "--scheme", "yarn", "-o", tmp_path / "f.json").code == 0
    words = ("export", folder, tmp_path / "f.json", "-o", tmp_path / "made")
    refused("quant_method = 'gptq': .*config alone", *words)
    refused("to = 'gguf' with --config-only", *words, "--config-only", "--to", "gguf")
    result = cli(*words, "--config-only")
    assert result.code == 0, result.err
    assert "without weights" in result.err
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    assert config["quantization_config"].items() >= quantization.items()
    assert config["rope_scaling"]["rope_type"] == "yarn"


def test_weights_beside_a_config_are_not_replaced(
    model: Path, cli: Callable, refused: Callable, tmp_path: Path
) -> None:
    """The command itself says to copy them there."""
    factors, output = tmp_path / "f.json", tmp_path / "made"
    assert cli("scale", model, "-l", LENGTH, "--scheme", "yarn", "-o", factors).code == 0
    words = ("export", model, "--factors", factors, "-o", output, "--config-only", "--overwrite")
    assert cli(*words).code == cli(*words).code == 0
    shutil.copy(model / "model.safetensors", output)
    refused("it holds weights .model.safetensors.*, and copy its files over these", *words)
