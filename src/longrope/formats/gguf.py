"""The rope scaling that a GGUF file carries, as factors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from longrope.errors import LongRopeError
from longrope.formats.fields import count, geometry, number, numbers
from longrope.formats.gguf_header import read_header
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import yarn

FREQS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
YARN = {"yarn_ext_factor": 1.0, "yarn_attn_factor": 1.0, "yarn_log_multiplier": 0.0}
YARN |= {"yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0}
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
    _needs_gguf()
    header = read_header(path)
    if "general.architecture" not in header.keys:
        raise LongRopeError(f"{path} has no key general.architecture: it is no language model")
    prefix = f"{_decoded('general.architecture', header.keys['general.architecture'], path)}."
    found = {name: value for name, value in header.keys.items() if name.startswith(prefix)}
    keys = {name.removeprefix(prefix): _decoded(name, value, path) for name, value in found.items()}
    try:
        return _extension(keys, {name: header.values(name) for name in (FREQS, LONG, SHORT) if name in header.tensors})
    except LongRopeError as error:
        raise LongRopeError(f"{path}: {error}") from None


def plain_rope(reader: Any, path: Path) -> Rope:
    """The geometry of an open file.

    Raises:
        LongRopeError: if it carries a scaling.
    """
    keys, tensors = _content(reader, path)
    try:
        found = _extension(keys, tensors)
        if found is None:
            return _rope(keys, count(keys, "context_length"))
    except LongRopeError as error:
        raise LongRopeError(f"{path}: {error}") from None
    raise LongRopeError(
        f"{path} already carries a rope scaling ({', '.join(tensors) or found.long.scheme}); factors are relative to "
        "plain RoPE, so give the file that it was made from"
    )


def open_gguf(path: Path) -> Any:
    """A reader of a GGUF file.

    Raises:
        LongRopeError: if it is none, is cut, or the package gguf is missing.
    """
    _needs_gguf()
    from gguf import GGUFReader

    read_header(path)  # that reader takes what a header says for granted, and reads on for hours
    try:
        return GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise LongRopeError(
            f"{path} is no whole GGUF file ({str(error).partition(chr(10))[0]}); fetch it again"
        ) from None


def read(reader: Any, name: str, path: Path) -> Any:
    """The value of a key.

    Raises:
        LongRopeError: if the file has no such key.
    """
    field = reader.get_field(name)
    if field is None:
        raise LongRopeError(f"{path} has no key {name}: it is no language model")
    return _contents(field, path)


def _needs_gguf() -> None:
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise LongRopeError("GGUF files need the package gguf: pip install gguf") from None


def _decoded(name: str, value: Any, path: Path) -> Any:
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        raise _no_text(name, path) from None


def _no_text(name: str, path: Path) -> LongRopeError:
    return LongRopeError(f"{path}: {name} is no text; the file is damaged: fetch it again")


def _content(reader: Any, path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The keys of the architecture, without its name, and the tensors that scale a rope."""
    prefix = f"{read(reader, 'general.architecture', path)}."
    fields = {name: field for name, field in reader.fields.items() if name.startswith(prefix)}
    keys = {name.removeprefix(prefix): _contents(field, path) for name, field in fields.items()}
    return keys, {one.name: one.data for one in reader.tensors if one.name in (FREQS, LONG, SHORT)}


def _contents(field: Any, path: Path) -> Any:
    try:
        return field.contents()
    except UnicodeDecodeError:
        raise _no_text(field.name, path) from None


def _extension(keys: dict[str, Any], tensors: dict[str, np.ndarray]) -> Extension | None:
    kind = keys.get("rope.scaling.type", "linear")  # llama.cpp's default; without a factor it changes nothing
    factor = number(keys, "rope.scaling.factor", number(keys, "rope.scale_linear", 1.0)) if kind != "none" else 1.0
    attention = number(keys, "rope.scaling.attn_factor", 1.0)
    if not tensors and attention == factor == 1:
        return None
    if kind not in KINDS or "attention.kv_lora_rank" in keys:
        raise LongRopeError(f"rope.scaling.type = {kind!r} of this model is not supported; longrope reads {KINDS}")
    for name, plain in YARN.items():
        if keys.get(f"rope.scaling.{name}", plain) != plain:
            raise LongRopeError(f"rope.scaling.{name}: llama.cpp reads it in some architectures only; not supported")
    longest = count(keys, "context_length")
    rope = _rope(keys, count(keys, "rope.scaling.original_context_length", longest))
    length = max(longest, rope.original_length, round(factor * rope.original_length))
    made = yarn(rope, length, factor=factor) if kind == "yarn" else Scaling([factor] * (rope.dim // 2))
    factors, attention = np.array(made.factors), attention * made.attention_factor
    scheme = "longrope" if tensors else {"linear": "pi"}.get(kind, kind)
    provenance = {"rope.scaling.type": kind, "tensors": sorted(tensors)}

    def one(name: str, at: int) -> Scaling:
        name = FREQS if FREQS in tensors else name
        values = tensors.get(name, np.ones(len(factors), np.float32))
        if values.dtype.kind != "f" or values.shape != factors.shape:
            raise LongRopeError(f"{name}: {values.shape} values of {values.dtype}; float32 {factors.shape} is expected")
        both = (factors * numbers(values.tolist(), name)).tolist()
        return Scaling(both, attention_factor=attention, scheme=scheme, length=at, provenance=provenance)

    short, long = one(SHORT, rope.original_length), one(LONG, length)
    return Extension(rope=rope, short=long if short.factors == long.factors else short, long=long, length=length)


def _rope(keys: dict[str, Any], original: int) -> Rope:
    name = next((one for one in ("rope.dimension_count", "attention.key_length") if one in keys), None)
    dim = count(keys, name) if name else count(keys, "embedding_length") // count(keys, "attention.head_count")
    return geometry(dim, number(keys, "rope.freq_base", 10000.0), original)
