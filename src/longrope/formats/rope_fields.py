"""The fields of a rope scaling: which of them each rope type reads, and which change nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from longrope.checks import positive
from longrope.errors import LongRopeError
from longrope.formats.fields import number
from longrope.rope import FULL

ORIGINAL = "original_max_position_embeddings"
GEOMETRY = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"})
READ: Mapping[str, frozenset[str]] = {
    "linear": frozenset({"factor", ORIGINAL}),
    "dynamic": frozenset({"factor", ORIGINAL, "alpha"}),
    "yarn": frozenset(
        {"factor", ORIGINAL, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"}
    ),
    "llama3": frozenset({"factor", ORIGINAL, "low_freq_factor", "high_freq_factor"}),
    "proportional": frozenset({"factor"}),
    "longrope": frozenset(
        {"factor", ORIGINAL, "attention_factor", "short_factor", "long_factor", "short_mscale", "long_mscale"}
    ),
}
NEUTRAL = {"attn_factor": 1, "extrapolation_factor": 1, "apply_yarn_scaling": True}  # transformers reads none
NOT_FACTORS = frozenset(  # of queries, of images, or for people
    {"finetuned", "llama_4_scaling_beta", "max_position_embeddings", "mrope_section", "mrope_interleaved"}
)
OUTSIDE = {"rope_ratio": 1, "use_dynamic_ntk": False, "use_logn_attn": False}  # of models with code of their own


def unread_fields(parameters: Mapping[str, Any], kind: str) -> list[str]:
    """Return the names of the fields that have no effect on the factors of a rope type.

    Args:
        parameters: Fields of one rope, as a config holds them.
        kind: A key of `READ`.

    Raises:
        LongRopeError: A field is unknown, or engines disagree about its effect.
    """
    others = frozenset().union(*READ.values()) | NOT_FACTORS
    names = []
    for name, value in parameters.items():
        if value is None or name in GEOMETRY or name in READ[kind]:
            continue
        if name == "attn_factor" and _agree(parameters):
            continue
        if name in NEUTRAL and value != NEUTRAL[name]:
            raise LongRopeError(
                f"{name} = {value!r}: transformers ignores this field, and SGLang applies it. "
                f"Set attention_factor to the number that the model needs, and remove {name}."
            )
        if name not in NEUTRAL and name not in others:
            raise LongRopeError(
                f"{name} = {value!r}: not a field of rope_type {kind!r} that longrope knows. "
                "Remove it if the factors do not depend on it."
            )
        names.append(name)
    return names


def with_layer_base(
    parameters: Mapping[str, Any], bases: Sequence[float] | None, layer_types: Sequence[str] | None
) -> Mapping[str, Any]:
    """Return a rope's fields with the base of the full-attention layers, where each layer has one (Granite SWA).

    Args:
        parameters: Fields of a rope, whose ``rope_theta`` such a model ignores.
        bases: ``layer_rope_theta`` of the config, where 0 is a layer without RoPE; None for one base.
        layer_types: Types of the layers.

    Raises:
        LongRopeError: The full-attention layers have no RoPE, or several bases.
    """
    if not bases:
        return parameters
    pairs = list(zip(bases, layer_types or [FULL] * len(bases), strict=True))
    full = {base for base, kind in pairs if kind == FULL} or set(bases)
    if full == {0}:
        raise LongRopeError(
            f"layer_rope_theta = {list(bases)}: the full-attention layers have no RoPE, so factors change nothing. "
            "longrope cannot extend it."
        )
    if len(full - {0}) > 1:
        raise LongRopeError(
            f"layer_rope_theta = {list(bases)}: the full-attention layers have several bases. "
            "longrope extends models with one."
        )
    return {**parameters, "rope_theta": max(full)}


def check_share(share: Any) -> float:
    """Return the share of each head that rotates, ``partial_rotary_factor``; 1 if it is missing.

    Raises:
        LongRopeError: It is not a number above 0, or above 1.
    """
    name = "partial_rotary_factor"
    number_above_0 = 1.0 if share is None else positive(name, share)
    if number_above_0 > 1:
        raise LongRopeError(f"{name} = {share!r}: more than the whole of each head would rotate. Write 1 or less.")
    return number_above_0


def check_outside(config: Mapping[str, Any]) -> None:
    """Raise if a field beside the rope's own changes the rotation in a way that factors of one length cannot follow.

    Raises:
        LongRopeError: Such a field is set.
    """
    for name, neutral in OUTSIDE.items():
        if config.get(name) not in (None, neutral):
            raise LongRopeError(
                f"{name} = {config[name]!r}: only the code that this model brings reads this field. Not supported."
            )


def _agree(parameters: Mapping[str, Any]) -> bool:
    """Return whether YaRN's formula times attn_factor, as in SGLang, is transformers' attention factor."""
    try:
        factor, ratio, attention = (number(parameters, name) for name in ("factor", "attn_factor", "attention_factor"))
    except LongRopeError:
        return False
    return not parameters.get("mscale") and math.isclose(ratio * (0.1 * math.log(factor) + 1), attention, rel_tol=1e-6)
