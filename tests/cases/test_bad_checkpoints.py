"""Checkpoints that cannot be right, on the command line: exit code 2, the field, its value, the fault, the remedy."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import all_types
import families
import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, SiglipVisionConfig
from typer.testing import CliRunner

import longrope as lr
from longrope.cli.main import app
from longrope.rope import Rope

LONG = {"rope_type": "longrope", "original_max_position_embeddings": 64}
ONES = [1.0] * 8
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
FORM = re.compile(r"error: (?:[^=]+: )?(?P<field>[\w.\[\]]+) = (?P<value>.+?): (?P<fault>.+)\. (?P<remedy>.+)\.$")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft reads a deprecated attribute


def save(folder: Path, **fields: Any) -> Path:
    """A small Llama whose config has these fields."""
    families.build("llama").save_pretrained(folder)
    families.tokenizer().save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    if "rope_scaling" in fields:
        del config["rope_parameters"]
    path.write_text(json.dumps(config | fields))
    return folder


def scaled(folder: Path, **scaling: Any) -> Path:
    return save(folder, rope_theta=1e4, max_position_embeddings=256, rope_scaling=scaling)


def quantised(folder: Path, **fields: Any) -> Path:
    return save(folder, quantization_config=fields)


def of_another_base(folder: Path) -> Path:
    save(folder.with_name("base"))
    other = families.build("llama", hidden_size=128)
    lora = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(other, lora).save_pretrained(folder)
    path = folder / "adapter_config.json"
    base = {"base_model_name_or_path": str(folder.with_name("base"))}
    path.write_text(json.dumps(json.loads(path.read_text()) | base))
    return folder


def of_a_missing_base(folder: Path) -> Path:
    of_another_base(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": ""}))
    return folder


def wrapper_without_text(folder: Path) -> Path:
    config = all_types.build("gemma3").config
    config.save_pretrained(folder)
    families.tokenizer().save_pretrained(folder)
    fields = json.loads((folder / "config.json").read_text())
    del fields["text_config"]
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


# how the checkpoint is made, and the field, value and words of the message
BAD: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "long list too short": (
        lambda folder: scaled(folder, **LONG, short_factor=ONES, long_factor=[2.0] * 7),
        "long_factor = 7 numbers",
        "it has 8 pairs",
    ),
    "short list too long": (
        lambda folder: scaled(folder, **LONG, short_factor=[1.0] * 9, long_factor=[2.0] * 8),
        "short_factor = 9 numbers",
        "it has 8 pairs",
    ),
    "a number for a list": (
        lambda folder: scaled(folder, **LONG, short_factor=ONES, long_factor=3.0),
        "long_factor = 3.0",
        "not a list of numbers",
    ),
    "yarn that shortens": (
        lambda folder: scaled(folder, **{**YARN, "factor": 0.5}),
        "factor = 0.5",
        "a yarn scaling below 1 shortens the context",
    ),
    "a type of next year": (
        lambda folder: scaled(folder, rope_type="spiral", factor=4.0, twist=3),
        "rope_type = 'spiral'",
        r"does not know this type.*a function from its fields \(factor, twist\) to the factor of each pair",
    ),
    "a wrapper without a text model": (wrapper_without_text, "text_config = None", "gemma3 has no text model"),
    "an adapter without a base": (of_a_missing_base, "model = ", "names no base model"),
}
WEIGHTS: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "an adapter of another base": (of_another_base, "base_model_name_or_path = ", "does not fit this model"),
    "GPTQ": (
        lambda folder: quantised(folder, quant_method="gptq", bits=4),
        "quant_method = 'gptq'",
        "pip install gptqmodel opt",
    ),
    "AWQ": (
        lambda folder: quantised(folder, quant_method="awq", bits=4),
        "quant_method = 'awq'",
        "pip install gptqmodel",
    ),
    "bitsandbytes": (
        lambda folder: quantised(folder, quant_method="bitsandbytes", load_in_4bit=True),
        "quant_method = 'bitsandbytes'",
        "pip install bitsandbytes",
    ),
    "EXL3": (
        lambda folder: quantised(folder, quant_method="exl3", bits=4.0),
        "quant_method = 'exl3'",
        "transformers does not read this format",
    ),
}
COMMANDS: dict[str, list[str]] = {
    "inspect": [],
    "scale": ["-l", "512"],
    "search": ["-l", "512", "--data", "TEXTS", "--held-out-documents", "1", "--search-documents", "1", "-o", "OUT"],
    "plan": ["--to", "512"],
    "extend": ["tiny", "-o", "OUT"],
    "eval": ["--lengths", "64", "--data", "TEXTS", "--documents", "1", "--schemes", "none", "-o", "OUT"],
    "export": ["--factors", "FACTORS", "-o", "OUT"],
    "generate": ["t5", "--factors", "FACTORS"],
}
READS_WEIGHTS = ("search", "eval", "generate")  # export refuses quantised weights before it reads them


@pytest.fixture
def words(tmp_path: Path) -> Callable[[str, Path], list[str]]:
    """The words of a command on a folder."""
    (tmp_path / "texts").mkdir()
    for i in range(9):
        (tmp_path / "texts" / f"{i}.txt").write_text(" ".join(f"t{3 + (i + j) % 90}" for j in range(600 + i)))
    rope = Rope.of(families.config("llama"))
    (tmp_path / "f.json").write_text(lr.Extension.of(rope, lr.scheme("pi", rope, 512)).to_json())
    names = {"TEXTS": tmp_path / "texts", "FACTORS": tmp_path / "f.json", "OUT": tmp_path / "out"}
    return lambda command, folder: [command, str(folder), *(str(names.get(word, word)) for word in COMMANDS[command])]


def refused(arguments: list[str], field: str, fault: str, output: Path) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    error = next(line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert field in error
    assert re.search(fault, error)
    assert FORM.match(error), error
    assert "Traceback" not in result.output
    written = [path for path in output.rglob("*") if path.is_file()] if output.exists() else []
    assert {path.name for path in written} <= {"cells.jsonl"}  # the journal of an evaluation, which can be resumed
    return error


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", BAD)
def test_a_config_that_cannot_be_right(
    name: str, command: str, words: Callable[[str, Path], list[str]], tmp_path: Path
) -> None:
    make, field, fault = BAD[name]
    refused(words(command, make(tmp_path / "model")), field, fault, tmp_path / "out")


@pytest.mark.parametrize("command", READS_WEIGHTS)
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_cannot_be_loaded(
    name: str, command: str, words: Callable[[str, Path], list[str]], tmp_path: Path
) -> None:
    make, field, fault = WEIGHTS[name]
    folder = make(tmp_path / "model")
    error = refused(words(command, folder), field, fault, tmp_path / "out")
    if "quant_method" in field:
        assert f"longrope export {folder} --factors FACTORS --config-only" in error


@pytest.mark.parametrize("name", ["GPTQ", "AWQ", "bitsandbytes", "EXL3"])
def test_the_remedy_for_missing_kernels_works(
    name: str, words: Callable[[str, Path], list[str]], tmp_path: Path
) -> None:
    folder = WEIGHTS[name][0](tmp_path / "model")
    result = CliRunner().invoke(app, [*words("export", folder), "--config-only"])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]


def test_a_model_of_images_alone(tmp_path: Path) -> None:
    SiglipVisionConfig().save_pretrained(tmp_path / "model")
    families.tokenizer().save_pretrained(tmp_path / "model")
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "model")])
    assert result.exit_code == 2
    assert "no rotary position embedding" in result.stderr


def test_lengths_that_contradict_a_factor_are_warned_of_and_can_be_decided(tmp_path: Path) -> None:
    """Published cards advise such a line (Qwen2.5), so it is extended."""
    folder = save(tmp_path / "model", rope_theta=1e4, max_position_embeddings=64, rope_scaling=YARN)
    arguments = ["scale", str(folder), "-l", "1024", "--scheme", "pi", "-o", str(tmp_path / "f.json")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "Warning: max_position_embeddings = 64 of this checkpoint contradicts factor = 4" in result.stderr
    decided = CliRunner().invoke(app, [*arguments, "--overwrite", "--original-length", "128"])
    assert "contradicts" not in decided.stderr
    factors = json.loads((tmp_path / "f.json").read_text())
    assert (factors["rope"]["original_length"], factors["long"]["factors"][0]) == (128, 8.0)
    AutoModelForCausalLM.from_pretrained(folder)
