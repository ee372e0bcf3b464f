"""Complete transformers' config of a GGUF file by the keys that transformers leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from longrope.errors import LongRopeError
from longrope.formats.gguf import find_extension
from longrope.formats.gguf_file import architecture_keys
from longrope.formats.gguf_header import FLOATS, read_header
from longrope.formats.gguf_split import refuse_split
from longrope.formats.rope_fields import ORIGINAL
from longrope.rope import FULL, Rope, full_attention_fields
from longrope.scaling import Extension

UNREAD = ("smollm3",)  # architectures of llama.cpp that people extend, and of which transformers reads no file
WITHOUT_BIAS = ("llama", "qwen3", "gemma2", "gemma3", "phi3")  # whose biases transformers would silently drop
LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62}  # layers of the models whose queries llama.cpp scales in another way


def gguf_extension(path: Path) -> Extension | None:
    """Return the factors of a whole GGUF file, of an architecture that transformers reads; None for plain RoPE.

    Raises:
        LongRopeError: The file is a part, damaged, without a length, or of another architecture, or carries a rope
            scaling that longrope does not read.
    """
    refuse_split(path)
    extension = find_extension(path)
    architecture, keys = architecture_keys(read_header(path))
    if "context_length" not in keys:
        raise LongRopeError(
            f"{path}: {architecture}.context_length is missing, so L0 is unknown. Convert the checkpoint again."
        )
    if architecture in UNREAD:
        raise LongRopeError(
            f"general.architecture = {architecture!r}: transformers reads no GGUF file of this architecture ({path}). "
            "Give the checkpoint that the file was made from."
        )
    return extension


def check_gguf_weights(path: Path) -> None:
    """Raise if a GGUF file has weights that transformers silently leaves out.

    Raises:
        LongRopeError: The file has biases, and transformers reads none in its architecture.
    """
    header = read_header(path)
    architecture, _ = architecture_keys(header)
    biases = [name for name in header.tensors if name.endswith(".bias")]
    if biases and architecture in WITHOUT_BIAS:
        raise LongRopeError(
            f"{biases[0]}: transformers reads no biases from a GGUF file of {architecture} ({path}), so it would "
            "compute without them. Give the checkpoint that the file was made from."
        )


def completed(config: PreTrainedConfig, path: Path, extension: Extension | None) -> PreTrainedConfig:
    """Return a GGUF file's config with its dtype, its sizes of heads, its scale of queries and its rope scaling.

    The dtype is bfloat16 for quantised weights too, whose own error is larger; float32 if all matrices are.

    Args:
        config: Config as transformers reads it.
        path: The file.
        extension: The file's factors, as `gguf_extension` returns them.

    Raises:
        LongRopeError: The file carries a rope scaling, and transformers computes another rope than it describes.
    """
    header = read_header(path)
    architecture, keys = architecture_keys(header)
    matrices = [tensor for tensor in header.tensors.values() if len(tensor.shape) > 1]
    config.dtype = torch.float32 if all(FLOATS.get(tensor.kind) == "f4" for tensor in matrices) else torch.bfloat16
    head_dim = keys.get("attention.key_length")
    if head_dim and getattr(config, "head_dim", head_dim) != head_dim:
        config.head_dim = head_dim
    if architecture in LARGEST_GEMMA:
        _set_query_scale(config, architecture, keys)
    if architecture == "phi3":
        _set_partial_rotation(config, keys)
        setattr(config, ORIGINAL, config.max_position_embeddings)
    return config if extension is None else _scaled(config, extension, path)


def _set_query_scale(config: Any, architecture: str, keys: dict[str, Any]) -> None:
    """Set the scale of Gemma's queries, and its caps, as llama.cpp computes them."""
    largest = config.num_hidden_layers == LARGEST_GEMMA[architecture]
    config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if largest else config.head_dim
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if name in keys:
            setattr(config, name, keys[name])


def _set_partial_rotation(config: Any, keys: dict[str, Any]) -> None:
    """Set the share of a head that rotates, which transformers takes to be whole."""
    head_dim = config.hidden_size // config.num_attention_heads
    share = keys.get("rope.dimension_count", head_dim) / head_dim
    config.rope_parameters = {**config.rope_parameters, "partial_rotary_factor": share}


def _scaled(config: Any, extension: Extension, path: Path) -> PreTrainedConfig:
    """Return a config with a rope scaling, which transformers drops for all but gpt-oss."""
    rope, parameters = Rope.of(config), config.rope_parameters
    fields = full_attention_fields(parameters)
    if fields.get("rope_type", "default") != "default":
        return config
    if (rope.dim, rope.base) != (extension.rope.dim, extension.rope.base):
        raise LongRopeError(
            f"model = {str(path)!r} carries a rope scaling that transformers drops, and its geometry is not clear "
            f"({extension.rope}, as transformers has it {rope}); load the checkpoint that the file was made from"
        )
    original = extension.rope.original_length
    sets = {"short_factor": list(extension.short.factors), "long_factor": list(extension.long.factors)}
    scaling = {"factor": extension.scale, "attention_factor": extension.long.attention_factor, ORIGINAL: original}
    scaled = {**fields, "rope_type": "longrope", **sets, **scaling}
    config.rope_parameters = {**parameters, FULL: scaled} if FULL in parameters else scaled
    config.original_max_position_embeddings, config.max_position_embeddings = original, extension.length
    return config
