"""A GGUF file from a transformers model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longrope.errors import LongRopeError
from longrope.export.carried_factors import carries
from longrope.export.gguf.scaling import add_keys, factor_tensors, refuse_architecture, scaling_keys, write_gguf
from longrope.export.gguf.vocabulary import add_vocabulary
from longrope.export.hf_config import for_mode, refuse_quantized
from longrope.rope import Rope
from longrope.scaling import Extension

if TYPE_CHECKING:
    from gguf import GGUFWriter

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "phi3": "phi3"}
CONVERTED_FIRST = ("mixtral",)  # its experts are one tensor, which llama.cpp's own converter splits
SIDE_BY_SIDE = ("llama",)  # llama.cpp rotates entries (0, 1), (2, 3) … of a head here, and transformers (0, d/2) …
OUTTYPES = ("auto", "f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
DTYPE_OUTTYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


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
        model: Model whose weights are written; its present rotary embedding is not used.
        tokenizer: Tokenizer of the model.
        extension: Factors to write, for the model's rope.
        path: File to write; it appears whole or not at all.
        mode: ``static`` (the long factors at every length) or ``dual`` (the short ones in contexts of up to L0).
        outtype: Type of the matrices, one of `OUTTYPES`; ``auto`` is the model's dtype. Vectors stay float32.
        name: Name of the model.
        overwrite: Whether an existing file is replaced.

    Returns:
        The extension as the file holds it.

    Raises:
        LongRopeError: llama.cpp cannot run this model type with factors, or would compute something else, or the file
            cannot be written.
    """
    from gguf import LlamaFileType

    written, config = for_mode(extension, mode), model.config.to_dict()
    outtype = choose_outtype(outtype, model.dtype)
    architecture = refuse_model(config, written)
    carries(model, extension, mode)  # refuses an extension of another rope
    with write_gguf(path, architecture, written, overwrite=overwrite) as writer:
        writer.add_string("general.name", name)
        writer.add_file_type(LlamaFileType["ALL_F32" if outtype == "f32" else f"MOSTLY_{outtype.upper()}"])
        writer.add_quantization_version(2)
        add_keys(writer, {**_shape_keys(config, written.rope, architecture), **scaling_keys(written, architecture)})
        add_vocabulary(writer, tokenizer, config)
        _write_tensors(writer, model, architecture, outtype, factor_tensors(written))
    return written


def choose_outtype(outtype: str, dtype: torch.dtype = torch.float16) -> str:
    """Return an outtype if it is known; ``auto`` stands for the outtype of a dtype.

    Raises:
        LongRopeError: The outtype is unknown.
    """
    if outtype not in OUTTYPES:
        raise LongRopeError(
            f"outtype = {outtype!r} is unknown; choose one of {', '.join(OUTTYPES)}. For others, export f16 and run "
            "llama-quantize, which keeps the factors."
        )
    return DTYPE_OUTTYPES.get(dtype, "f16") if outtype == "auto" else outtype


def refuse_model(config: dict[str, Any], extension: Extension) -> str:
    """Return llama.cpp's architecture for a model.

    Raises:
        LongRopeError: No architecture computes with the factors, or it would compute something else.
    """
    model_type = config["model_type"]
    refuse_quantized(config)
    if model_type in CONVERTED_FIRST:
        raise LongRopeError(
            f"model_type = {model_type!r}: longrope does not convert it. Convert it with llama.cpp's "
            "convert_hf_to_gguf.py, then export that .gguf file."
        )
    if model_type not in ARCHITECTURES:
        refuse_architecture(model_type, extension)
    window, rope = config.get("sliding_window"), extension.rope
    if window and window < extension.length:
        raise LongRopeError(
            f"sliding_window = {window}: llama.cpp attends to all tokens in this architecture. "
            "Serve this model from a Hugging Face export."
        )
    activation = config.get("hidden_act")
    if activation != "silu":
        raise LongRopeError(
            f"hidden_act = {activation!r}: llama.cpp computes silu in this architecture. "
            "Serve this model from a Hugging Face export."
        )
    if model_type != "phi3" and rope.dim != _head_dim(config):
        raise LongRopeError(
            f"rope.dim = {rope.dim}: llama.cpp rotates all {_head_dim(config)} dimensions of a head here. "
            "Serve this model from a Hugging Face export."
        )
    return ARCHITECTURES[model_type]


def _shape_keys(config: dict[str, Any], rope: Rope, architecture: str) -> dict[str, str | int | float]:
    """Return the keys of a model's sizes."""
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


def _write_tensors(
    writer: GGUFWriter, model: PreTrainedModel, architecture: str, outtype: str, factors: dict[str, np.ndarray]
) -> None:
    """Write the file's header and keys, then the factors and the weights, one at a time."""
    from gguf import MODEL_ARCH, GGMLQuantizationType, get_tensor_name_map

    names = get_tensor_name_map(MODEL_ARCH[architecture.upper()], model.config.num_hidden_layers)
    matrix_type = GGMLQuantizationType[outtype.upper()]
    for name, values in factors.items():
        writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
    for name, tensor in _paired_tensors(model, architecture):
        translated = names.get_name(name, (".weight", ".bias"))
        if translated is None:
            raise LongRopeError(
                f"model.{name}: llama.cpp has no such weights in this architecture. "
                "Serve this model from a Hugging Face export."
            )
        stored_type, shape, size = _storage(tensor, matrix_type)
        writer.add_tensor_info(translated, shape, np.dtype(np.float32), size, raw_dtype=stored_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for values in factors.values():
        writer.write_tensor_data(values)
    for name, tensor in _paired_tensors(model, architecture):
        writer.write_tensor_data(_encode(name, tensor, _storage(tensor, matrix_type)[0]))


def _paired_tensors(model: PreTrainedModel, architecture: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights by their names in transformers, with the rows of queries and keys in llama.cpp's order."""
    config = model.config
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is model.get_input_embeddings().weight  # the config may say otherwise
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and tied:
            continue
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads is not None and architecture in SIDE_BY_SIDE:
            tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(tensor.shape)
        yield name, tensor


def _storage(tensor: Tensor, matrix_type: Any) -> tuple[Any, tuple[int, ...], int]:
    """Return the type that a tensor is stored as, its shape, and its size in bytes."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    stored_type = matrix_type if tensor.dim() > 1 else GGMLQuantizationType.F32
    if tensor.shape[-1] % GGML_QUANT_SIZES[stored_type][0]:
        stored_type = GGMLQuantizationType.F16
    block, size = GGML_QUANT_SIZES[stored_type]
    return stored_type, tuple(tensor.shape), tensor.numel() // block * size


def _encode(name: str, tensor: Tensor, stored_type: Any) -> np.ndarray:
    """Return a tensor's bytes as a type of GGUF; refuse numbers that are not finite in it."""
    from gguf.quants import quantize

    narrowed = tensor.half() if stored_type.name == "F16" else tensor
    if not narrowed.isfinite().all():
        raise LongRopeError(
            f"model.{name}: it is not finite as {stored_type.name}. Choose outtype f32 or bf16, or mend it."
        )
    return quantize(tensor.detach().float().cpu().numpy(), stored_type)
