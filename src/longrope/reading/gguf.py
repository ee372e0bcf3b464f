"""The rope scaling that a GGUF file carries, as factors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from longrope.errors import LongRopeError
from longrope.reading.configs import mscale, yarn
from longrope.reading.fields import count, number
from longrope.rope import Extension, Rope, Scaling

FREQS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
KINDS = ("none", "linear", "yarn", "longrope")


def extension_of_gguf(path: Path) -> Extension:
    """The factors by which llama.cpp runs a GGUF file.

    Its short set is that of contexts of up to ``original_context_length`` (of ``context_length``, if it has none).

    Raises:
        LongRopeError: if it is no whole GGUF file, or carries no scaling or one of another type.
    """
    found = find_extension(path)
    if found is None:
        raise LongRopeError(f"{path} carries no rope scaling: the model runs plain RoPE")
    return found


def find_extension(path: Path) -> Extension | None:
    """As `extension_of_gguf`; None of a model with plain RoPE."""
    reader = open_gguf(path)
    prefix = f"{read(reader, 'general.architecture', path)}."
    keys = {
        name.removeprefix(prefix): field.contents()
        for name, field in reader.fields.items()
        if name.startswith((f"{prefix}rope.", f"{prefix}attention.", f"{prefix}embedding", f"{prefix}context"))
    }
    tensors = {one.name: one.data for one in reader.tensors if one.name in (FREQS, LONG, SHORT)}
    try:
        return _extension(keys, tensors)
    except LongRopeError as error:
        raise LongRopeError(f"{path}: {error}") from None


def open_gguf(path: Path) -> Any:
    """A reader of a GGUF file.

    Raises:
        LongRopeError: if it is none, is cut, or the package gguf is missing.
    """
    try:
        from gguf import GGUFReader
    except ImportError:
        raise LongRopeError("GGUF files need the package gguf: pip install gguf") from None
    try:
        return GGUFReader(path)
    except OSError as error:
        raise LongRopeError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise LongRopeError(f"{path} is no whole GGUF file ({str(error).splitlines()[0]}); fetch it again") from None


def read(reader: Any, name: str, path: Path) -> Any:
    """The value of a key.

    Raises:
        LongRopeError: if the file has no such key.
    """
    field = reader.get_field(name)
    if field is None:
        raise LongRopeError(f"{path} has no key {name}: it is no language model")
    return field.contents()


def _extension(keys: dict[str, Any], tensors: dict[str, np.ndarray]) -> Extension | None:
    kind = keys.get("rope.scaling.type", "linear")  # llama.cpp's default, with the factor 1
    factor = 1.0 if kind == "none" else keys.get("rope.scaling.factor", keys.get("rope.scale_linear")) or 1.0
    attention = number(keys, "rope.scaling.attn_factor", 1.0)
    if not tensors and attention == factor == 1:
        return None
    if kind not in KINDS or keys.get("rope.scaling.yarn_log_multiplier") or keys.get("attention.kv_lora_rank"):
        raise LongRopeError(f"rope.scaling.type = {kind!r} of this model is not supported; longrope reads {KINDS}")
    longest = count(keys, "context_length")
    rope = _rope(keys, count(keys, "rope.scaling.original_context_length", longest))
    length = max(longest, rope.original_length, round(factor * rope.original_length))
    every = np.full(rope.dim // 2, factor)
    if kind == "yarn":
        fast, slow = (
            number(keys, f"rope.scaling.yarn_beta_{n}", value) for n, value in (("fast", 32.0), ("slow", 1.0))
        )
        every, attention = np.array(yarn(rope, factor, beta_fast=fast, beta_slow=slow)), attention * mscale(factor)

    def one(name: str, at: int) -> Scaling:
        values = tensors.get(FREQS, tensors.get(name, np.ones(rope.dim // 2, dtype=np.float32)))
        if values.dtype.kind != "f" or values.shape != every.shape:
            raise LongRopeError(f"{name}: {values.dtype} {values.shape} where {every.shape} float32 are expected")
        scheme = {"linear": "pi", "yarn": "yarn"}.get(kind, "longrope") if not tensors else "longrope"
        return Scaling(
            (every * values.astype(float)).tolist(),
            attention_factor=attention,
            scheme=scheme,
            length=at,
            provenance={"rope.scaling.type": kind, "tensors": sorted(tensors)},
        )

    long = one(LONG, length)
    short = one(SHORT, rope.original_length)
    return Extension(rope=rope, short=short if short.factors != long.factors else long, long=long, length=length)


def _rope(keys: dict[str, Any], original: int) -> Rope:
    dim = keys.get("rope.dimension_count") or keys.get("attention.key_length")
    return Rope(
        dim=dim or count(keys, "embedding_length") // count(keys, "attention.head_count"),
        base=number(keys, "rope.freq_base", 10000.0),
        original_length=original,
    )
