"""Weights that are not the checkpoint's: missing, misnamed, cut off or quantised ones are refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import families
import gguf_files
import pytest
import torch
from families import build, logits, tokens
from gguf import GGUFReader, GGUFWriter
from safetensors.torch import load_file, save_file
from torch import Tensor

import longrope as lr
from longrope.errors import LongRopeError
from longrope.export.huggingface import export_huggingface
from longrope.export.parity import check_parity
from longrope.models.load import load, load_config
from longrope.rope import Rope
from longrope.scaling import Extension

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small Llama."""
    folder = tmp_path_factory.mktemp("weights") / "good"
    build("llama").save_pretrained(folder)
    families.tokenizer().save_pretrained(folder)
    return folder


def renamed(change: Callable[[str], str]) -> Callable[[Weights], Weights]:
    return lambda weights: {change(name): weight for name, weight in weights.items()}


def without(text: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: weight for name, weight in weights.items() if text not in name}


def wider(weights: Weights) -> Weights:
    weights["model.layers.0.mlp.up_proj.weight"] = torch.zeros(100, 64)
    return weights


def with_more(name: str) -> Callable[[Weights], Weights]:
    return lambda weights: {**weights, name: torch.zeros(3)}


REFUSED = {
    "compiled": (renamed("_orig_mod.{}".format), r"21 tensors missing.*'_orig_mod\.' \(torch\.compile\).*replace\("),
    "layers compiled": (
        renamed(lambda name: name.replace("self_attn.", "self_attn._orig_mod.")),
        r"8 tensors missing .*'_orig_mod\.' \(torch\.compile\)",
    ),
    "DataParallel": (renamed("module.{}".format), r"'module\.' \(DataParallel"),
    "both": (renamed("module._orig_mod.{}".format), r"'_orig_mod\.' \(torch\.compile\) and 'module\.'"),
    "PEFT": (renamed("base_model.model.{}".format), r"'base_model\.model\.' \(a PEFT model\)"),
    "Lightning": (renamed("net.{}".format), r"begin with 'net\.' once too often"),
    "LoRA": (with_more("model.layers.0.self_attn.q_proj.lora_A.weight"), "LoRA adapter.*merge_and_unload"),
    "a layer lost": (without("layers.1.self_attn"), r"4 tensors missing in it \(model\.layers\.1\.self_attn\.k_proj"),
    "the head lost": (without("lm_head"), r"1 tensor missing in it \(lm_head\.weight\)"),
    "a bias too many": (with_more("model.layers.0.self_attn.q_proj.bias"), "unknown to LlamaForCausalLM .*q_proj.bias"),
    "another shape": (wider, r"1 tensor of another shape \(model.layers.0.mlp.up_proj.weight: 100x64, not 96x64\)"),
    "scales without a config": (with_more("model.layers.0.mlp.up_proj.weight_scale_inv"), "no quantization_config"),
}


def changed(good: Path, folder: Path, change: Callable[[Weights], Weights]) -> str:
    shutil.copytree(good, folder)
    save_file(change(load_file(good / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_weights_that_are_not_the_models_are_refused(good: Path, tmp_path: Path, change, message: str) -> None:
    with pytest.raises(LongRopeError, match=message):
        load(changed(good, tmp_path / "changed", change))


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq",
        "mtp.layers.0.weight",
        "v_head.summary.weight",
    ],
)
def test_tensors_that_change_nothing_are_passed_over(good: Path, tmp_path: Path, name: str) -> None:
    model, _ = load(changed(good, tmp_path / "changed", with_more(name)))
    torch.testing.assert_close(logits(model, tokens(1, 20)), logits(build("llama"), tokens(1, 20)))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_family_loads(family: str, tied: bool, tmp_path: Path) -> None:
    model = build(family, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    families.tokenizer().save_pretrained(tmp_path)
    loaded, _ = load(str(tmp_path))
    assert torch.equal(logits(loaded, tokens(1, 20)), logits(model, tokens(1, 20)))


def split(path: Path, folder: Path, *, keys_in_each: bool) -> list[Path]:
    """Write a GGUF file in two parts, as llama-gguf-split does; newer ones write the keys into the first part only."""
    reader = GGUFReader(path)
    half = len(reader.tensors) // 2
    paths = [folder / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    for number, (path, tensors) in enumerate(zip(paths, (reader.tensors[:half], reader.tensors[half:]), strict=True)):
        writer = GGUFWriter(path, "llama")
        for name, field in reader.fields.items() if keys_in_each or number == 0 else ():
            if not name.startswith(("GGUF.", "general.architecture")):
                writer.add_key_value(
                    name, field.contents(), field.types[0], field.types[-1] if field.types[1:] else None
                )
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        for tensor in tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


@pytest.mark.parametrize("keys_in_each", [True, False])
def test_parts_of_a_gguf_file_are_refused_by_number(keys_in_each: bool, tmp_path: Path) -> None:
    whole = gguf_files.plain(tmp_path / "whole.gguf")
    parts = split(whole, tmp_path, keys_in_each=keys_in_each)
    renamed_part = shutil.copy(parts[1], tmp_path / "renamed.gguf")
    model, _ = load(str(whole))
    extension = lr.scheme("pi", Rope.of(model), 256)
    for number, path in ((1, parts[0]), (2, parts[1]), (2, renamed_part)):
        for use in (load, load_config, lambda name: lr.export(name, None, extension, tmp_path / "x.gguf", to="gguf")):
            with pytest.raises(LongRopeError, match=f"part {number} of 2 .*llama-gguf-split --merge"):
                use(str(path))
    merged = shutil.copy(whole, tmp_path / "m-00001-of-00001.gguf")
    assert torch.equal(logits(load(str(merged))[0], tokens(1, 20)), logits(model, tokens(1, 20)))


@pytest.fixture(scope="module")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in 8-bit floats with a scale for each block of 128 x 128 weights, as published ones are."""
    folder = tmp_path_factory.mktemp("fp8") / "fp8"
    size = {"hidden_size": 128, "intermediate_size": 256, "num_key_value_heads": 4}
    build("llama", **size).to(torch.bfloat16).save_pretrained(folder)
    families.tokenizer().save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    for name in [name for name in weights if name.endswith("_proj.weight")]:
        blocks = weights[name].float().unflatten(0, (-1, 128)).unflatten(2, (-1, 128))
        scales = blocks.abs().amax((1, 3), keepdim=True) / 448
        weights[name] = (blocks / scales).flatten(2).flatten(0, 1).to(torch.float8_e4m3fn)
        weights[f"{name}_scale_inv"] = scales[:, 0, :, 0].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    quantization = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "weight_block_size": [128, 128],
    }
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    return folder


@pytest.mark.parametrize("to", ["huggingface", "gguf"])
def test_quantised_weights_are_not_exported(fp8: Path, to: str, tmp_path: Path) -> None:
    scaling = lr.scheme("pi", Rope.of(load_config(str(fp8))), 256)
    with pytest.raises(LongRopeError, match=r"quant_method = 'fp8'.*export the model that they were made from"):
        lr.export(str(fp8), None, scaling, tmp_path / "out", to=to)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("by_us", [True, False])
def test_a_dequantised_model_is_saved_as_it_computes(fp8: Path, by_us: bool, tmp_path: Path) -> None:
    model, tokenizer = load(str(fp8))
    if not by_us:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(fp8).eval()
    extension = Extension.of(Rope.of(model), lr.scheme("pi", Rope.of(model), 256))
    export_huggingface(model, tokenizer, extension, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.bfloat16}
    assert not any("scale" in name for name in stored)
    assert all(parity.ok for parity in check_parity(tmp_path / "out", model))


def test_falcon_opens_after_export(tmp_path: Path) -> None:
    model = build("falcon", alibi=False, new_decoder_architecture=False, multi_query=True, num_attention_heads=4)
    extension = Extension.of(Rope.of(model), lr.scheme("pi", Rope.of(model), 256))
    export_huggingface(model, families.tokenizer(), extension, tmp_path / "out")
    assert all(parity.ok for parity in check_parity(tmp_path / "out", model))
