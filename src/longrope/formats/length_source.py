"""The field of a config that L0 comes from, and whether the numbers of its rope scaling contradict each other."""

from __future__ import annotations

import math
from typing import Any

from longrope.formats.lengths import DECIDED
from longrope.formats.rope_fields import ORIGINAL
from longrope.rope import Rope, full_attention_fields

LONGEST = "max_position_embeddings"
EXTENDING = ("linear", "yarn", "longrope")  # rope types whose factor is the extended length over the original one


def length_source(config: Any, rope: Rope) -> str:
    """Return the field, or the product of two fields, of a config that L0 comes from.

    Args:
        config: Config of the model, loaded by transformers.
        rope: Geometry of the model, as `Rope.of` reads it from the config.
    """
    text = config.get_text_config()
    prefix = "" if text is config else "text_config."
    if getattr(text, DECIDED, None) is not None:
        return DECIDED
    parameters = full_attention_fields(getattr(text, "rope_parameters", None))
    if rope.factors:
        if getattr(text, LONGEST, None) == rope.original_length:
            return prefix + LONGEST
        factor, original = parameters.get("factor", 1.0), _original(text, parameters) or getattr(text, LONGEST)
        if original == rope.original_length:
            return prefix + ORIGINAL
        return f"{prefix}factor = {factor:g} times an original length of {original:,}"
    if getattr(text, ORIGINAL, None):
        return prefix + ORIGINAL
    return prefix + (f"rope_parameters.{ORIGINAL}" if parameters.get(ORIGINAL) else LONGEST)


def contradiction(config: Any, rope: Rope) -> str | None:
    """Return a sentence on a scaling whose lengths and factor disagree; None if they agree or there is no scaling.

    Args:
        config: Config of the model, loaded by transformers.
        rope: Geometry of the model, as `Rope.of` reads it from the config.
    """
    text = config.get_text_config()
    parameters = full_attention_fields(getattr(text, "rope_parameters", None))
    kind, factor = parameters.get("rope_type", "default"), parameters.get("factor")
    longest, original = getattr(text, LONGEST, None), _original(text, parameters)
    if kind == "default" or not longest or not original:
        return None
    if kind in EXTENDING and factor and not math.isclose(factor * original, longest, rel_tol=0.01):
        fault = f"contradicts factor = {factor:g} times {ORIGINAL} = {original:,} of its {kind} scaling"
    elif longest < original:
        fault = f"is below {ORIGINAL} = {original:,} of its {kind} scaling"
    else:
        return None
    return (
        f"{LONGEST} = {longest:,} of this checkpoint {fault}. longrope takes L0 = {rope.original_length:,}. "
        "If the model was made for another length, decide it with original_length"
    )


def _original(text: Any, parameters: Any) -> int | None:
    """Return the original length that a scaling names; None if it names none."""
    return getattr(text, ORIGINAL, None) or parameters.get(ORIGINAL)
