"""The recipes for other programs: files parse, commands exist, trainers and merges keep the factors."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import longrope as lr
from longrope.cli.main import app

FOLDER = Path(__file__).parents[2] / "examples" / "recipes"
RECIPES = sorted(path for path in FOLDER.iterdir() if path.is_file() and path.name != "README.md")
YAML = [path for path in RECIPES if path.suffix in (".yml", ".yaml")]
SHELL = [path for path in RECIPES if path.suffix in (".sh", ".sbatch")]
PYTHON = [path for path in RECIPES if path.suffix == ".py"]
LENGTH = 512


def tool(module: str) -> Any:
    """Import a module of another tool, or skip the test where that tool or a package it needs is not installed."""
    return pytest.importorskip(module, reason=f"{module.partition('.')[0]} is not installed", exc_type=ImportError)


def shell_text(path: Path) -> str:
    """Return the shell commands of a recipe: a script, the `setup` and `run` of a task, or the calls of a docstring."""
    text = path.read_text(encoding="utf-8")
    if path.suffix in (".sh", ".sbatch"):
        return text
    task = yaml.safe_load(text) if path in YAML else {}
    calls = re.findall(r"^((?:python|longrope) .+)$", text, re.MULTILINE) if path in PYTHON else []
    return "\n".join([task.get("setup", ""), task.get("run", ""), *calls])


def longrope_commands(text: str) -> list[list[str]]:
    """Return the arguments of each longrope command in a shell text."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if not line.lstrip().startswith("#")]
    commands = []
    for line in lines:
        words = shlex.split(line, comments=True) if "longrope " in line and "pip install" not in line else []
        if "longrope" in words:
            commands.append([word for word in words[words.index("longrope") + 1 :] if word != "$resume"])
    return commands


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export `tiny` with factors for 512 tokens, as the recipes' folder ``extended``."""
    folder = tmp_path_factory.mktemp("recipes") / "extended"
    model, tokenizer = lr.load("tiny", dtype="float32")
    lr.export(
        model, tokenizer, lr.scheme("ramp", lr.Rope.of(model), LENGTH), folder, options=lr.ExportOptions(check=False)
    )
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two texts that are longer than L0 of `tiny`."""
    folder = tmp_path_factory.mktemp("texts")
    for document in lr.load_documents(shutil.__file__)[:1]:
        for start in (0, 4000):
            (folder / f"{start}.txt").write_text(document.text[start : start + 1200], encoding="utf-8")
    return folder


def test_the_readme_lists_every_recipe() -> None:
    rows = re.findall(r"\| \[(\w+\.\w+)\]\(\1\)", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert sorted(set(rows)) == [path.name for path in RECIPES]


@pytest.mark.parametrize("path", [*SHELL, *YAML], ids=lambda path: path.name)
def test_shell_parses(path: Path) -> None:
    completed = subprocess.run(["bash", "-n"], input=shell_text(path), capture_output=True, text=True, check=False)
    assert (completed.returncode, completed.stderr) == (0, "")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_longrope_commands_parse(path: Path) -> None:
    """Parse each command as the command line does, with its types and required arguments."""
    commands = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    calls = longrope_commands(shell_text(path))
    assert calls or path.suffix in (".yml", ".yaml")
    for name, *arguments in calls:
        commands[name].make_context(f"longrope {name}", arguments)


def test_a_wrong_option_is_noticed() -> None:
    [[name, *arguments]] = longrope_commands("srun longrope search MODEL --worker ray -o run $resume\n")
    command = typer.main.get_command(app).commands[name]  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(Exception, match="worker"):
        command.make_context("longrope search", arguments)


def test_all_recipes_name_the_same_folder_and_length() -> None:
    configs = {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in YAML}
    axolotl, factory, merge = (configs[name] for name in ("axolotl.yml", "llamafactory.yaml", "mergekit.yml"))
    assert axolotl["base_model"] == factory["model_name_or_path"] == merge["base_model"] == "extended"
    assert axolotl["output_dir"] == factory["output_dir"]
    assert not {"rope_scaling", "overrides_of_model_config"} & {*axolotl, *factory}, "would replace the factors"
    served = [
        re.search(
            r"(?:vllm serve |--model-path |-m )extended\S* (?:--max-model-len|--context-length|-c) (\d+)",
            shell_text(path),
        )
        for path in SHELL
        if path.name.startswith("serve_")
    ]
    assert [match and int(match[1]) for match in served] == [axolotl["sequence_len"]] * 3
    assert factory["cutoff_len"] == axolotl["sequence_len"]


def test_the_exported_folder_has_the_fields_that_the_recipes_rely_on(extended: Path) -> None:
    config = json.loads((extended / "config.json").read_text(encoding="utf-8"))
    assert config["max_position_embeddings"] == LENGTH == lr.load_factors(extended).length
    assert config["original_max_position_embeddings"] == 256  # vLLM starts for this length
    newer, older = config["rope_parameters"], config["rope_scaling"]  # transformers 5; 4.57 and LLaMA-Factory's
    assert newer["long_factor"] == newer["short_factor"] == older["long_factor"] == older["short_factor"]
    assert (extended / "tokenizer.json").is_file()
    assert (extended / "extension.json").is_file()


def options() -> dict[str, Any]:
    return {"max_steps": 2, "gradient_accumulation_steps": 1, "use_cpu": True, "bf16": False, "report_to": "none"}


def recipe(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a recipe as a module, as a user who is in its folder does."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return tool(name)


@pytest.mark.filterwarnings("default")  # of the other packages
def test_trl_keeps_the_factors_in_every_checkpoint(
    extended: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool("trl")
    recipe("trl_sft", monkeypatch).train(str(extended), str(texts), str(tmp_path), **options())
    for folder in (tmp_path, tmp_path / "checkpoint-2"):
        assert lr.load_factors(folder) == lr.load_factors(extended)
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (extended, tmp_path))
    assert torch.equal(before.model.rotary_emb.inv_freq, after.model.rotary_emb.inv_freq)
    assert after.model.rotary_emb.attention_scaling == before.model.rotary_emb.attention_scaling != 1
    assert not torch.equal(before.model.layers[0].mlp.up_proj.weight, after.model.layers[0].mlp.up_proj.weight)


@pytest.mark.filterwarnings("default")  # of the other packages
def test_peft_adapts_the_extended_base_and_merges_into_an_export(
    extended: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peft = tool("peft")
    recipe("peft_lora", monkeypatch).train(str(extended), str(texts), str(tmp_path / "adapter"), **options())
    base: Any = AutoModelForCausalLM.from_pretrained(extended)
    tokens = torch.randint(2048, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        original = base(tokens).logits
        adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")(tokens).logits
    merged, tokenizer = lr.load(str(tmp_path / "adapter"))
    lr.export(merged, tokenizer, lr.load_factors(extended), tmp_path / "merged", options=lr.ExportOptions(check=False))
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(tokens).logits
    torch.testing.assert_close(logits, adapted, atol=1e-4, rtol=1e-4)
    assert (adapted - original).abs().max() > 1e-3


def test_after_training_restores_the_fields_that_save_pretrained_drops(
    extended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Save as axolotl, LLaMA-Factory and mergekit do, and run the export of ``after_training.sh``."""
    (tmp_path / "extended").symlink_to(extended)
    model, trained = AutoModelForCausalLM.from_pretrained(extended), tmp_path / "trained"
    model.save_pretrained(trained)
    lr.load("tiny")[1].save_pretrained(trained)
    assert "rope_scaling" not in json.loads((trained / "config.json").read_text(encoding="utf-8"))
    command = longrope_commands(shell_text(FOLDER / "after_training.sh"))[0]
    arguments = [word.replace("$checkpoint", "trained") for word in command]
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [*arguments, "--no-check"])
    assert result.exit_code == 0, result.output
    expected, config = (
        json.loads((folder / "config.json").read_text()) for folder in (extended, tmp_path / "trained-extended")
    )
    assert config["rope_scaling"] == expected["rope_scaling"]
    assert config["rope_parameters"] == expected["rope_parameters"]


def test_axolotl_takes_its_config() -> None:
    schema = tool("axolotl.utils.schemas.config").AxolotlInputConfig
    config = yaml.safe_load((FOLDER / "axolotl.yml").read_text(encoding="utf-8"))
    assert set(config) <= set(schema.model_fields)
    assert schema(**config).sequence_len == 32768


def test_llama_factory_has_the_options_of_its_config() -> None:
    hparams = tool("llamafactory.hparams")
    classes = (hparams.ModelArguments, hparams.DataArguments, hparams.FinetuningArguments, hparams.TrainingArguments)
    known = {field.name for each in classes for field in dataclasses.fields(each)}
    assert set(yaml.safe_load((FOLDER / "llamafactory.yaml").read_text(encoding="utf-8"))) <= known


@pytest.mark.parametrize("name", ["sky_search.yaml", "sky_extend.yaml"])
def test_skypilot_takes_its_tasks(name: str) -> None:
    schemas, jsonschema = tool("sky.utils.schemas"), tool("jsonschema")
    task = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    jsonschema.validate(task, schemas.get_task_schema())


def test_mergekit_averages_weights_and_keeps_the_factors(
    extended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merging, options = tool("mergekit.merge"), tool("mergekit.options").MergeOptions
    (tmp_path / "extended").symlink_to(extended)
    model, tokenizer = lr.load("tiny", dtype="float32")
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
        model.model.layers[0].self_attn.q_proj.weight.mul_(2)
    model.save_pretrained(tmp_path / "trained")
    tokenizer.save_pretrained(tmp_path / "trained")
    monkeypatch.chdir(tmp_path)
    config = tool("mergekit.config").MergeConfiguration.model_validate(
        yaml.safe_load((FOLDER / "mergekit.yml").read_text(encoding="utf-8"))
    )
    merging.run_merge(config, "merged", options(write_model_card=False))  # a card asks the hub
    merged, before = (AutoModelForCausalLM.from_pretrained(path, dtype="float32") for path in ("merged", "extended"))
    torch.testing.assert_close(merged.model.norm.weight, 1.75 * before.model.norm.weight, atol=0, rtol=1e-2)
    queries, unscaled = (each.model.layers[0].self_attn.q_proj.weight for each in (merged, before))
    torch.testing.assert_close(queries, 2 * unscaled, atol=0, rtol=1e-2)
    assert torch.equal(merged.model.rotary_emb.inv_freq, before.model.rotary_emb.inv_freq)
