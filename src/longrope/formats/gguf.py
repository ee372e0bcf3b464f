"""Read the rope scaling of a GGUF file as factors."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from longrope.errors import LongRopeError
from longrope.formats.fields import count, geometry, number, numbers
from longrope.formats.gguf_file import architecture_keys, needs_gguf
from longrope.formats.gguf_header import read_header
from longrope.formats.hf_config import EXTENDED_ALREADY
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import yarn

FREQS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
YARN = {"yarn_ext_factor": 1.0, "yarn_attn_factor": 1.0, "yarn_log_multiplier": 0.0}
YARN |= {"yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0}
OTHERS = ("type", "factor", "attn_factor", "original_context_length", "finetuned")  # the last is for people
KINDS = ("none", "linear", "yarn", "longrope")


def extension_of_gguf(path: Path) -> Extension:
    """Return the factors with which llama.cpp runs a GGUF file.

    The short set is for contexts up to ``original_context_length`` (default: ``context_length``).

    Raises:
        LongRopeError: The file is not a complete GGUF file, or it carries no scaling that longrope reads.
    """
    extension = find_extension(path)
    if extension is None:
        raise LongRopeError(f"{path} carries no rope scaling: the model runs plain RoPE")
    return extension


def find_extension(path: Path) -> Extension | None:
    """Return the factors of a GGUF file as `extension_of_gguf` does, or None for a model with plain RoPE."""
    needs_gguf()
    header = read_header(path)
    if header.keys.get("general.type") == b"adapter":
        raise LongRopeError(
            f"model = {str(path)!r}: this GGUF file holds a LoRA adapter, not a model. Merge it into its base model "
            f"with llama.cpp: llama-export-lora -m BASE.gguf --lora {quote(str(path))} -o MERGED.gguf"
        )
    architecture, keys = architecture_keys(header)
    try:
        return _extension(
            architecture, keys, {name: header.values(name) for name in (FREQS, LONG, SHORT) if name in header.tensors}
        )
    except LongRopeError as error:
        raise LongRopeError(f"{path}: {error}") from None


def _extension(architecture: str, keys: dict[str, Any], tensors: dict[str, np.ndarray]) -> Extension | None:
    _check_keys(keys)
    kind = keys.get("rope.scaling.type", "linear")  # llama.cpp's default; without a factor it changes nothing
    factor = number(keys, "rope.scaling.factor", number(keys, "rope.scale_linear", 1.0)) if kind != "none" else 1.0
    attention = number(keys, "rope.scaling.attn_factor", 1.0)
    if not tensors and attention == factor == 1:
        return None
    if kind not in KINDS or "attention.kv_lora_rank" in keys:
        raise LongRopeError(f"rope.scaling.type = {kind!r} of this model is not supported; longrope reads {KINDS}")
    longest = count(keys, "context_length")
    rope = _rope(keys, count(keys, "rope.scaling.original_context_length", longest))
    length = max(longest, rope.original_length, round(factor * rope.original_length))
    if kind == "linear" and architecture in EXTENDED_ALREADY:
        length = longest
    base = yarn(rope, length, factor=factor) if kind == "yarn" else Scaling([factor] * (rope.dim // 2))
    factors, attention = np.array(base.factors), attention * base.attention_factor
    scheme = "longrope" if tensors else {"linear": "pi"}.get(kind, kind)
    provenance = {"rope.scaling.type": kind, "tensors": sorted(tensors)}

    def scaling(name: str, length: int) -> Scaling:
        name = FREQS if FREQS in tensors else name
        values = tensors.get(name, np.ones(len(factors), np.float32))
        if values.dtype.kind != "f" or values.shape != factors.shape:
            raise LongRopeError(f"{name}: {values.shape} values of {values.dtype}; float32 {factors.shape} is expected")
        products = (factors * numbers(values.tolist(), name)).tolist()
        return Scaling(products, attention_factor=attention, scheme=scheme, length=length, provenance=provenance)

    short, long = scaling(SHORT, rope.original_length), scaling(LONG, length)
    return Extension(rope=rope, short=long if short.factors == long.factors else short, long=long, length=length)


def _check_keys(keys: dict[str, Any]) -> None:
    """Raise unless each key of a scaling is known, and those that few architectures read have their plain value.

    Raises:
        LongRopeError: A key is unknown, or its effect depends on the architecture.
    """
    prefix = "rope.scaling."
    for key in (key for key in keys if key.startswith(prefix)):
        name, value = key.removeprefix(prefix), keys[key]
        if name in YARN and value != YARN[name]:
            raise LongRopeError(
                f"{key} = {value!r}: llama.cpp reads it in some architectures only. Give the checkpoint that the file "
                "was made from."
            )
        if name not in YARN and name not in OTHERS:
            raise LongRopeError(
                f"{key} = {value!r}: not a key that longrope knows. Give the checkpoint that the file was made "
                "from, or remove the key if the factors do not depend on it."
            )


def _rope(keys: dict[str, Any], original: int) -> Rope:
    name = next((name for name in ("rope.dimension_count", "attention.key_length") if name in keys), None)
    dim = count(keys, name) if name else count(keys, "embedding_length") // count(keys, "attention.head_count")
    return geometry(dim, number(keys, "rope.freq_base", 10000.0), original)
