"""Lengths in a checkpoint: an export writes L in every place, and inspect names the places that disagree."""

from __future__ import annotations

import json
from pathlib import Path

import all_types
import families
import pytest
import torch
from click.testing import Result
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import longrope as lr
from longrope.cli.main import app
from longrope.errors import LongRopeError
from longrope.export.exporter import ExportOptions
from longrope.export.huggingface import export_huggingface
from longrope.formats.lengths import OTHER_CONFIG_FIELDS, checkpoint_lengths, disagreement
from longrope.models.load import load, load_config
from longrope.rope import Rope
from longrope.scaling import Extension
from longrope.schemes import scheme

L0, LENGTH = 64, 512


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint that names its 64 tokens in every place that readers look at."""
    folder = tmp_path / "model"
    families.build("llama").save_pretrained(folder)
    tokenizer = families.tokenizer()
    tokenizer.model_max_length = L0
    tokenizer.backend_tokenizer.enable_truncation(L0)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "max_length": L0}), encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= dict.fromkeys(OTHER_CONFIG_FIELDS, L0)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture
def exported(checkpoint: Path, tmp_path: Path) -> Path:
    model, tokenizer = load(str(checkpoint))
    rope = Rope.of(model)
    extension = Extension.of(rope, scheme("heuristic", rope, LENGTH))
    export_huggingface(model, tokenizer, extension, tmp_path / "exported")
    return tmp_path / "exported"


def test_an_export_holds_its_length_in_every_place(exported: Path) -> None:
    lengths = checkpoint_lengths(load_config(str(exported)))
    assert set(lengths.values()) == {LENGTH}
    assert len(lengths) >= len(OTHER_CONFIG_FIELDS) + 3
    truncation = json.loads((exported / "tokenizer.json").read_text(encoding="utf-8"))["truncation"]
    assert truncation is None or truncation["max_length"] == LENGTH


def test_readers_of_an_export_take_its_whole_length(exported: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert len(tokenizer("t5 " * 300, truncation=True)["input_ids"]) == 300
    tokens = torch.full((1, 200), 5)
    AutoModelForCausalLM.from_pretrained(exported).generate(tokens, do_sample=False, max_length=None, max_new_tokens=1)


def test_a_larger_length_stays(checkpoint: Path, tmp_path: Path) -> None:
    path = checkpoint / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": 2, "max_length": 4096}), encoding="utf-8")
    model, tokenizer = load(str(checkpoint))
    rope = Rope.of(model)
    export_huggingface(model, tokenizer, Extension.of(rope, scheme("pi", rope, LENGTH)), tmp_path / "exported")
    assert json.loads((tmp_path / "exported" / path.name).read_text(encoding="utf-8"))["max_length"] == 4096


def test_inspect_names_the_places_that_disagree(checkpoint: Path) -> None:
    assert disagreement(checkpoint_lengths(load_config(str(checkpoint))), L0) is None
    path = checkpoint / "tokenizer_config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**fields, "model_max_length": 48}), encoding="utf-8")
    result = CliRunner().invoke(app, ["inspect", str(checkpoint), "--json"])
    assert result.exit_code == 0
    assert "tokenizer_config.json: model_max_length = 48" in result.stderr
    assert "config.json: max_position_embeddings = 64" in result.stderr
    assert json.loads(result.stdout)["checkpoint_lengths"]["generation_config.json: max_length"] == L0


@pytest.fixture
def disagreeing(checkpoint: Path) -> Path:
    """A checkpoint whose config says 256 tokens, while all else says 64."""
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 256}))
    return checkpoint


def test_original_length_decides_from_inspect_to_export(disagreeing: Path, tmp_path: Path) -> None:
    def run(*words: object) -> Result:
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == 0, result.output
        return result

    chosen = ("--original-length", L0)
    noted = run("inspect", disagreeing, "--json")
    assert "names several lengths" in noted.stderr
    assert json.loads(noted.stdout)["original_length"] == 256
    decided = run("inspect", disagreeing, *chosen, "--json")
    assert "several lengths" not in decided.stderr
    assert json.loads(decided.stdout)["original_length"] == L0
    assert json.loads(decided.stdout)["length"] == 8 * L0
    factors, out = tmp_path / "f.json", tmp_path / "out"
    run("scale", disagreeing, *chosen, "-l", LENGTH, "--scheme", "pi", "-o", factors)
    extension = Extension.from_json(factors.read_text())
    assert (extension.rope.original_length, extension.long.factors[0]) == (L0, LENGTH / L0)
    run("export", disagreeing, *chosen, "--factors", factors, "-o", out)
    config = json.loads((out / "config.json").read_text())
    assert (config["max_position_embeddings"], config["original_max_position_embeddings"]) == (LENGTH, L0)
    assert config["rope_scaling"]["factor"] == LENGTH / L0
    assert "several lengths" in run("scale", disagreeing, "-l", LENGTH, "-o", tmp_path / "g.json").stderr
    assert (
        "several lengths" in run("export", disagreeing, "--factors", tmp_path / "g.json", "-o", tmp_path / "o").stderr
    )
    refused = CliRunner().invoke(
        app, ["export", str(disagreeing), "--factors", str(factors), "-o", str(tmp_path / "p")]
    )
    assert refused.exit_code == 2
    assert "original_length=64" in refused.stderr


def test_original_length_in_python(disagreeing: Path, tmp_path: Path) -> None:
    model, tokenizer = load(str(disagreeing), original_length=L0)
    rope = Rope.of(model)
    assert rope == Rope.of(load_config(str(disagreeing), original_length=L0))
    assert rope.original_length == L0
    scaling = scheme("yarn", rope, LENGTH)
    options = ExportOptions(original_length=L0)
    by_name = lr.export(str(disagreeing), None, scaling, tmp_path / "by_name", options=options)
    assert lr.export(model, tokenizer, scaling, tmp_path / "loaded") == by_name
    with pytest.raises(LongRopeError, match="original_length = 64: the model is loaded already"):
        lr.export(model, tokenizer, scaling, tmp_path / "x", options=options)


@pytest.mark.parametrize(
    ("fields", "length", "message"),
    [
        ({}, 1, "original_length = 1 must be a whole number, 2 or more"),
    ],
)
def test_an_original_length_that_cannot_be_set(
    checkpoint: Path, fields: dict[str, object], length: int, message: str
) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_parameters": {"rope_theta": 1e4, **fields}}))
    with pytest.raises(LongRopeError, match=message):
        load_config(str(checkpoint), original_length=length)


def test_original_length_of_phi3(tmp_path: Path) -> None:
    families.build("phi3").save_pretrained(tmp_path)
    assert Rope.of(load_config(str(tmp_path), original_length=32)).original_length == 32


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CONFIGS: dict[str, tuple[dict[str, object], int, str, str]] = {
    "plain": ({}, 64, "max_position_embeddings", ""),
    "a length of its own": (
        {"original_max_position_embeddings": 48, "max_position_embeddings": 64},
        48,
        "original_max_position_embeddings",
        "",
    ),
    "yarn": ({"rope_parameters": YARN, "max_position_embeddings": 256}, 256, "max_position_embeddings", ""),
    "llama3, whose factor is not a ratio of lengths": (
        {"rope_parameters": LLAMA3, "max_position_embeddings": 1024},
        1024,
        "max_position_embeddings",
        "",
    ),
    "yarn as a card advises it": (
        {"rope_parameters": YARN, "max_position_embeddings": 64},
        256,
        "factor = 4 times an original length of 64",
        "max_position_embeddings = 64 of this checkpoint contradicts factor = 4 times original_max_position_embeddings "
        "= 64 of its yarn scaling. longrope takes L0 = 256.",
    ),
    "yarn, longer than its factor": (
        {"rope_parameters": YARN, "max_position_embeddings": 512},
        512,
        "max_position_embeddings",
        "max_position_embeddings = 512 of this checkpoint contradicts factor = 4",
    ),
    "llama3, shorter than it was": (
        {"rope_parameters": LLAMA3, "max_position_embeddings": 32},
        64,
        "original_max_position_embeddings",
        "max_position_embeddings = 32 of this checkpoint is below original_max_position_embeddings = 64",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_inspect_says_where_l0_comes_from_and_whether_it_is_contradicted(name: str, tmp_path: Path) -> None:
    fields, length, source, warning = CONFIGS[name]
    families.config("llama", **fields).save_pretrained(tmp_path)
    families.tokenizer().save_pretrained(tmp_path)
    result = CliRunner().invoke(app, ["inspect", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (record["original_length"], record["original_length_from"]) == (length, source)
    warnings = [line for line in result.stderr.splitlines() if line.startswith("Warning: max_position")]
    assert [warning in line for line in warnings] == ([True] if warning else [])
    text = " ".join(CliRunner().invoke(app, ["inspect", str(tmp_path)]).stdout.split())
    assert f"L0 is from {source}." in text
    decided = CliRunner().invoke(app, ["inspect", str(tmp_path), "--original-length", "96", "--json"])
    assert json.loads(decided.stdout)["original_length_from"] == "--original-length"
    assert "Warning: max_position" not in decided.stderr


def test_a_wrapper_s_length_is_that_of_its_text_model(tmp_path: Path) -> None:
    all_types.build("gemma3").config.save_pretrained(tmp_path)
    families.tokenizer().save_pretrained(tmp_path)
    record = json.loads(CliRunner().invoke(app, ["inspect", str(tmp_path), "--json"]).stdout)
    assert record["original_length_from"] == "text_config.max_position_embeddings"
