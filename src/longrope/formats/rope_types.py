"""The factors of each rope type of a Hugging Face config, as transformers computes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from longrope.errors import LongRopeError
from longrope.formats.fields import number, numbers
from longrope.rope import Rope
from longrope.scaling import Scaling
from longrope.scheme_modifiers import STILL
from longrope.schemes import dynamic_ntk, llama3, ntk, yarn


def factor_sets(
    config: Mapping[str, Any], parameters: Mapping[str, Any], kind: str, *, rope: Rope, factor: float, length: int
) -> tuple[Scaling, Scaling]:
    """Return the short and the long set of a config.

    Args:
        config: Content of a ``config.json`` with transformers' defaults.
        parameters: Its rope's fields.
        kind: Its rope type, a key of `READ`.
        rope: Geometry of the model.
        factor: Its ``factor``, or the default one.
        length: L in tokens.

    Raises:
        LongRopeError: A field is missing or wrong, or engines disagree about it.
    """
    if kind == "longrope":
        return _longrope(rope, parameters, factor, model_type=config.get("model_type"))
    if kind == "dynamic" and parameters.get("alpha") is None:
        return Scaling.identity(rope), dynamic_ntk(rope, length, factor=factor)
    if kind == "dynamic":
        scaling = _alpha(rope, parameters, model_type=config.get("model_type"))
    elif kind == "proportional":
        scaling = _proportional(rope, number(parameters, "partial_rotary_factor", 1.0), factor)
    else:
        scaling = {"linear": _linear, "yarn": _yarn, "llama3": _llama3}[kind](rope, parameters, factor)
    return scaling, scaling


def _mscale(factor: float, weight: float) -> float:
    """Return YaRN's attention factor (eq. 22) with DeepSeek's weight on its logarithm."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1


def _linear(rope: Rope, parameters: Mapping[str, Any], factor: float) -> Scaling:
    return Scaling([factor] * (rope.dim // 2), scheme="pi")


def _yarn(rope: Rope, parameters: Mapping[str, Any], factor: float) -> Scaling:
    ramp: dict[str, Any] = {
        name: number(parameters, name, value) for name, value in (("beta_fast", 32.0), ("beta_slow", 1.0))
    }
    ramp["truncate"] = _truncate(parameters)
    scaling = yarn(rope, rope.original_length, factor=factor, **ramp)
    attention = scaling.attention_factor
    if parameters.get("mscale") and parameters.get("mscale_all_dim"):
        attention = _mscale(factor, number(parameters, "mscale")) / _mscale(
            factor, number(parameters, "mscale_all_dim")
        )
    return replace(scaling, attention_factor=number(parameters, "attention_factor", attention))


def _proportional(rope: Rope, share: float, factor: float) -> Scaling:
    """Return Gemma 4's scaling: the first pairs of a head rotate, and the others not at all.

    Their frequency is 0 in transformers. Here it is that of a factor so large that no position shows the difference.
    """
    pairs = rope.dim // 2
    rotated = int(share * rope.dim // 2)
    return Scaling([factor] * rotated + [STILL] * (pairs - rotated), scheme="proportional")


def _truncate(parameters: Mapping[str, Any]) -> bool:
    """Return whether YaRN's ramp begins and ends at integer pairs; null means no, as in transformers."""
    value = parameters.get("truncate", True)
    if value not in (True, False, None):
        raise LongRopeError(f"truncate = {value!r} must be true or false")
    return bool(value)


def _alpha(rope: Rope, parameters: Mapping[str, Any], *, model_type: object) -> Scaling:
    """Return Hunyuan's scaling: base·alpha^(dim/(dim-2)) at every length."""
    alpha = number(parameters, "alpha")
    if _has_transformers(model_type) and not str(model_type).startswith("hunyuan"):
        raise LongRopeError(
            f"alpha = {alpha:g}: transformers ignores this field in models of type {model_type!r}, and vLLM applies "
            "it. Remove it, or give the factors as a file of longrope scale."
        )
    return ntk(rope, rope.original_length, factor=alpha)


def _llama3(rope: Rope, parameters: Mapping[str, Any], factor: float) -> Scaling:
    low, high = number(parameters, "low_freq_factor"), number(parameters, "high_freq_factor")
    if low > high:
        raise LongRopeError(
            f"high_freq_factor = {high} is below low_freq_factor = {low}: engines disagree about such factors. "
            "Exchange the two."
        )
    return llama3(rope, rope.original_length, factor=factor, low_freq_factor=low, high_freq_factor=high)


def _longrope(
    rope: Rope, parameters: Mapping[str, Any], factor: float, *, model_type: object
) -> tuple[Scaling, Scaling]:
    """Return the short and the long set; ``short_mscale`` and ``long_mscale`` are the attention factors of each."""
    formula = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(rope.original_length))
    attention = number(parameters, "attention_factor", formula)

    def scaling(name: str) -> Scaling:
        if not isinstance(parameters.get(f"{name}_factor"), list):
            value = parameters.get(f"{name}_factor")
            raise LongRopeError(f"{name}_factor = {value!r}: not a list of numbers. Write one number for each pair.")
        mscale = number(parameters, f"{name}_mscale", attention)
        if not math.isclose(mscale, attention, rel_tol=1e-6) and _has_transformers(model_type, besides="phimoe"):
            raise LongRopeError(
                f"{name}_mscale = {mscale:g}: transformers ignores this field in models of type {model_type!r} and "
                f"takes {attention:g}; vLLM and SGLang apply it. Set attention_factor to the same number."
            )
        factors = numbers(parameters[f"{name}_factor"], f"{name}_factor")
        if len(factors) != rope.dim // 2:
            raise LongRopeError(
                f"{name}_factor = {len(factors)} numbers: the model rotates {rope.dim} dimensions, so it has "
                f"{rope.dim // 2} pairs. Fetch the config again, or write one number for each pair."
            )
        return Scaling(factors, attention_factor=mscale, scheme="longrope")

    return scaling("short"), scaling("long")


def _has_transformers(model_type: object, *, besides: str = "") -> bool:
    """Return whether transformers computes this model type's rope with its common functions."""
    from transformers import CONFIG_MAPPING

    return isinstance(model_type, str) and model_type in CONFIG_MAPPING and model_type != besides
