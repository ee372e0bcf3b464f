"""A GGUF file from a transformers model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longrope.errors import LongRopeError
from longrope.export.gguf.scaling import add_keys, factor_tensors, refuse_architecture, scaling_keys, written
from longrope.export.gguf.vocabulary import add_vocabulary
from longrope.export.hf_config import for_mode, refuse_quantized
from longrope.models.rotary_slot import find_rotary_slot
from longrope.rope import Rope
from longrope.scaling import Extension, check_rope

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "phi3": "phi3"}
CONVERTED_FIRST = ("mixtral",)  # experts in one tensor: llama.cpp's own converter knows how
SIDE_BY_SIDE = ("llama",)  # here llama.cpp rotates entries (0, 1), (2, 3) … of a head: transformers (0, d/2) …
OUTTYPES = ("auto", "f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
AS_HELD = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


def export_gguf(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    extension: Extension,
    path: Path,
    *,
    mode: str = "static",
    outtype: str = "auto",
    name: str = "model",
    overwrite: bool = False,
) -> Extension:
    """Write a model with its tokenizer and factors as one GGUF file for llama.cpp.

    Args:
        model: its weights; whatever rotary embedding it has now is not used.
        tokenizer: its tokenizer.
        extension: what it is extended with.
        path: of the file to write, whole or not at all.
        mode: ``static`` (the long factors at every length) or ``dual`` (short ones in contexts of up to L0).
        outtype: of the matrices, one of `OUTTYPES`; vectors stay float32. ``auto`` is the model's own.
        name: of the model.
        overwrite: replace the file if it exists.

    Returns:
        The extension as the file holds it.

    Raises:
        LongRopeError: if llama.cpp cannot run this model type with factors, or would compute something else, or the
            place cannot be written.
    """
    from gguf import MODEL_ARCH, GGMLQuantizationType, LlamaFileType, get_tensor_name_map

    held, config = for_mode(extension, mode), model.config.to_dict()
    outtype = choose_outtype(outtype, model.dtype)
    architecture = refuse_model(config, held)
    _refuse_other_factors(model, extension)
    names = get_tensor_name_map(MODEL_ARCH[architecture.upper()], config["num_hidden_layers"])
    wanted = GGMLQuantizationType[outtype.upper()]
    with written(path, architecture, overwrite=overwrite) as writer:
        writer.add_string("general.name", name)
        writer.add_file_type(LlamaFileType["ALL_F32" if outtype == "f32" else f"MOSTLY_{outtype.upper()}"])
        writer.add_quantization_version(2)
        add_keys(writer, {**_shape(config, held.rope, architecture), **scaling_keys(held, architecture)})
        add_vocabulary(writer, tokenizer, config)
        for factors_name, factors in factor_tensors(held).items():
            writer.add_tensor_info(factors_name, factors.shape, factors.dtype, factors.nbytes)
        for tensor_name, tensor in _tensors(model, architecture):
            translated = names.get_name(tensor_name, (".weight", ".bias"))
            if translated is None:
                raise LongRopeError(f"model: llama.cpp has no place for its weights {tensor_name}")
            kind, shape, size = _stored(tensor, wanted)
            writer.add_tensor_info(translated, shape, np.dtype(np.float32), size, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for factors in factor_tensors(held).values():
            writer.write_tensor_data(factors)
        for _, tensor in _tensors(model, architecture):
            writer.write_tensor_data(_encoded(tensor, _stored(tensor, wanted)[0]))
    return held


def choose_outtype(outtype: str, dtype: torch.dtype = torch.float16) -> str:
    """A known outtype, ``auto`` being the one of a dtype.

    Raises:
        LongRopeError: if it is unknown.
    """
    if outtype not in OUTTYPES:
        raise LongRopeError(
            f"outtype = {outtype!r} is unknown; choose one of {', '.join(OUTTYPES)} (for others, export f16 and run "
            "llama-quantize: it keeps the factors)"
        )
    return AS_HELD.get(dtype, "f16") if outtype == "auto" else outtype


def refuse_model(config: dict[str, Any], extension: Extension) -> str:
    """llama.cpp's architecture for a model.

    Raises:
        LongRopeError: if it has none that computes with the factors, or it would compute something else.
    """
    kind = config["model_type"]
    refuse_quantized(config)
    if kind in CONVERTED_FIRST:
        raise LongRopeError(
            f"model type {kind!r}: convert it with llama.cpp's convert_hf_to_gguf.py, then export that .gguf file"
        )
    if kind not in ARCHITECTURES:
        refuse_architecture(kind)
    window, rope = config.get("sliding_window"), extension.rope
    if window and window < extension.length:
        raise LongRopeError(
            f"sliding_window = {window}: llama.cpp attends to everything in this architecture; "
            "serve this model from a Hugging Face export"
        )
    if config.get("hidden_act") != "silu":
        raise LongRopeError(f"hidden_act = {config.get('hidden_act')!r}: llama.cpp computes silu in this architecture")
    if kind != "phi3" and rope.dim != _head_dim(config):
        raise LongRopeError(f"rope dim = {rope.dim} of {_head_dim(config)}: llama.cpp rotates whole heads here")
    return ARCHITECTURES[kind]


def _refuse_other_factors(model: PreTrainedModel, extension: Extension) -> None:
    """Take a plain model of the extension's geometry, or one that carries this very extension already."""
    parameters = model.config.rope_parameters
    sets = [list(scaling.factors) for scaling in (extension.short, extension.long)]
    carried = [parameters.get("short_factor"), parameters.get("long_factor")]
    rope = Rope.of(model.config) if carried == sets else find_rotary_slot(model).rope
    check_rope(extension, rope)


def _shape(config: dict[str, Any], rope: Rope, architecture: str) -> dict[str, str | int | float]:
    keys = {
        "vocab_size": config["vocab_size"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": _head_dim(config),
        "attention.value_length": _head_dim(config),
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": rope.dim,
        "rope.freq_base": rope.base,
    }
    if architecture == "phi3":
        keys["attention.sliding_window"] = 0
    return {f"{architecture}.{key}": value for key, value in keys.items()}


def _head_dim(config: dict[str, Any]) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def _tensors(model: PreTrainedModel, architecture: str) -> Iterator[tuple[str, Tensor]]:
    """The weights by their names in transformers, with the rows of queries and keys as llama.cpp pairs them."""
    config = model.config
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads is not None and architecture in SIDE_BY_SIDE:
            tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(tensor.shape)
        yield name, tensor


def _stored(tensor: Tensor, wanted: Any) -> tuple[Any, tuple[int, ...], int]:
    """The type that a tensor is stored as, its shape, and its size in bytes."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    kind = wanted if tensor.dim() > 1 else GGMLQuantizationType.F32
    if tensor.shape[-1] % GGML_QUANT_SIZES[kind][0]:
        kind = GGMLQuantizationType.F16
    block, size = GGML_QUANT_SIZES[kind]
    return kind, tuple(tensor.shape), tensor.numel() // block * size


def _encoded(tensor: Tensor, kind: Any) -> np.ndarray:
    from gguf.quants import quantize

    return quantize(tensor.detach().float().cpu().numpy(), kind)
