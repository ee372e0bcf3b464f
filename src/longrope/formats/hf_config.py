"""Read the rope scaling of a Hugging Face ``config.json`` as factors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from longrope.errors import LongRopeError
from longrope.formats.fields import count, geometry, number, numbers
from longrope.rope import FULL, Rope, full_attention_fields
from longrope.scaling import Extension, Scaling
from longrope.schemes import dynamic_ntk, llama3, yarn

SCALING = ("rope_scaling", "rope_parameters")  # transformers 4 (which 5 prefers too), transformers 5
KINDS = ("linear", "dynamic", "yarn", "llama3", "longrope", "su")


def extension_of_config(config: Mapping[str, Any]) -> Extension:
    """Return the factors with which transformers runs a checkpoint, from the config that transformers 4 or 5 wrote.

    ``longrope`` has two sets of factors. ``dynamic`` has one for every length, and its long set is the one for
    ``factor`` times L0 tokens. The other types have the same set at every length. L0 is
    ``original_max_position_embeddings`` where the type has one, else ``max_position_embeddings``.

    Args:
        config: Content of a ``config.json``; where each layer type has a rope, the full-attention layers' is read.

    Raises:
        LongRopeError: The config carries no scaling or an unknown one, or a field is missing or wrong.

    >>> fields = {"head_dim": 8, "rope_theta": 100.0, "max_position_embeddings": 64}
    >>> extension_of_config({**fields, "rope_scaling": {"type": "linear", "factor": 4}}).long.factors
    (4.0, 4.0, 4.0, 4.0)
    """
    text = config.get("text_config")
    config = _complete(text if isinstance(text, Mapping) else config)
    parameters, by_layer = _parameters(config)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind == "default":
        raise LongRopeError("this config carries no rope scaling: the model runs plain RoPE")
    if "long_factor" in parameters and kind in ("su", "yarn"):  # names of longrope in older configs
        kind = "longrope"
    if kind not in KINDS or "mrope_section" in parameters or config.get("qk_rope_head_dim"):
        raise LongRopeError(f"rope_type = {kind!r} of this model is not supported; longrope reads {', '.join(KINDS)}")
    longest = count(config, "max_position_embeddings")
    original = longest
    if kind not in ("linear", "dynamic"):
        original = count(parameters, "original_max_position_embeddings", longest)
        original = original if by_layer else count(config, "original_max_position_embeddings", original)
    factor = number(parameters, "factor", longest / original if kind in ("yarn", "longrope") else None)
    length = max(longest, original, 0 if kind == "llama3" else round(factor * original))
    rope = _rope(config, parameters, original)
    provenance = {"rope_type": kind, "factor": factor}
    if kind == "longrope":
        short, long = _longrope(rope, parameters, factor, own_mscale=config.get("model_type") == "phimoe")
    elif kind == "dynamic":
        short, long = Scaling.identity(rope), dynamic_ntk(rope, length, factor=factor)
        provenance["note"] = f"dynamic factors grow with the sequence; these are for one of {length} tokens"
    else:
        short = long = {"linear": _linear, "yarn": _yarn, "llama3": _llama3}[kind](rope, parameters, factor)
    short = replace(short, length=length if short == long else original, provenance=provenance)
    long = replace(long, length=length, provenance=provenance)
    return Extension(rope=rope, short=short, long=long, length=length)


def _mscale(factor: float, weight: float) -> float:
    """Return YaRN's attention factor (eq. 22) with DeepSeek's weight on its logarithm."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1


def _parameters(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
    """Return the rope's fields, and whether the config has some for each layer type."""
    for name in SCALING:
        fields = config.get(name)
        if fields and not isinstance(fields, Mapping):
            raise LongRopeError(f"{name} = {fields!r} must be an object")
        if fields:
            return full_attention_fields(fields), isinstance(fields.get(FULL), Mapping)
    return {}, False


def _complete(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add transformers' defaults for the fields that a file leaves out, if transformers knows the model type."""
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        return config
    scaling = {name: config.get(name) for name in SCALING}
    try:
        plain = CONFIG_MAPPING[kind](**{name: value for name, value in config.items() if name not in SCALING}).to_dict()
    except Exception as error:  # each config class raises its own kinds
        reason = " ".join(str(error).split())
        raise LongRopeError(f"transformers refuses it as a config of model type {kind!r}: {reason}") from None
    if not any(scaling.values()):  # gpt-oss has one by default
        return plain
    rope = full_attention_fields(plain.get("rope_parameters"))
    defaults = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    return {**plain, **defaults, **scaling}


def _rope(config: Mapping[str, Any], parameters: Mapping[str, Any], original: int) -> Rope:
    if config.get("head_dim") is not None:
        head_dim = count(config, "head_dim")
    else:
        head_dim = count(config, "hidden_size") // count(config, "num_attention_heads")
    fields = {name: parameters.get(name, config.get(name)) for name in ("partial_rotary_factor", "rope_theta")}
    return geometry(head_dim * number(fields, "partial_rotary_factor", 1.0), number(fields, "rope_theta"), original)


def _linear(rope: Rope, parameters: Mapping[str, Any], factor: float) -> Scaling:
    return Scaling([factor] * (rope.dim // 2), scheme="pi")


def _yarn(rope: Rope, parameters: Mapping[str, Any], factor: float) -> Scaling:
    ramp: dict[str, Any] = {
        name: number(parameters, name, value) for name, value in (("beta_fast", 32.0), ("beta_slow", 1.0))
    }
    ramp["truncate"] = parameters.get("truncate", True)
    scaling = yarn(rope, rope.original_length, factor=factor, **ramp)
    attention = scaling.attention_factor
    if parameters.get("mscale") and parameters.get("mscale_all_dim"):
        attention = _mscale(factor, number(parameters, "mscale")) / _mscale(
            factor, number(parameters, "mscale_all_dim")
        )
    return replace(scaling, attention_factor=number(parameters, "attention_factor", attention))


def _llama3(rope: Rope, parameters: Mapping[str, Any], factor: float) -> Scaling:
    low, high = number(parameters, "low_freq_factor"), number(parameters, "high_freq_factor")
    if low >= high:
        raise LongRopeError(f"high_freq_factor = {high} must be above low_freq_factor = {low}")
    return llama3(rope, rope.original_length, factor=factor, low_freq_factor=low, high_freq_factor=high)


def _longrope(rope: Rope, parameters: Mapping[str, Any], factor: float, *, own_mscale: bool) -> tuple[Scaling, Scaling]:
    """Return the short and the long set; PhiMoE has an attention factor for each."""
    formula = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(rope.original_length))
    attention = number(parameters, "attention_factor", formula)

    def scaling(name: str) -> Scaling:
        if not isinstance(parameters.get(f"{name}_factor"), list):
            raise LongRopeError(f"{name}_factor must be a list of numbers; this config has none")
        mscale = number(parameters, f"{name}_mscale", attention) if own_mscale else attention
        factors = numbers(parameters[f"{name}_factor"], f"{name}_factor")
        return Scaling(factors, attention_factor=mscale, scheme="longrope")

    return scaling("short"), scaling("long")
