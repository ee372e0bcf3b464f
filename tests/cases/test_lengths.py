"""Lengths in a checkpoint: an export writes L in every place, and inspect names the places that disagree."""

from __future__ import annotations

import json
from pathlib import Path

import families
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from longrope.cli.main import app
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
