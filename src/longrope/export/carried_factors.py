"""The factors that a model's config carries already, compared with those to write."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from longrope.engines.predict import extension_in_config
from longrope.errors import LongRopeError
from longrope.export.hf_config import for_mode
from longrope.models.rotary_slot import RescaledRotary, find_rotary_slot
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling, as_extension, check_rope

SAME = 2e-8  # relative difference of factors that were written as a YaRN's parameters


def extension_to_write(
    config: Mapping[str, Any],
    scaling: Scaling | Extension,
    rope: Rope,
    mode: str,
    *,
    applied: bool = False,
    source: str = "",
) -> Extension:
    """Return factors as an extension of a model, or of the model that its checkpoint was made from with these factors.

    Args:
        config: Config of the model.
        scaling: Factors of one set, with their length, or of two.
        rope: Geometry of the model.
        mode: ``static`` or ``dual``.
        applied: Whether the config describes factors that `longrope.apply` wrote, on top of ``rope``.
        source: File that the factors came from, to begin the message with.

    Raises:
        LongRopeError: The factors are for another rope, or a scaling has no length.
    """
    if not applied:
        try:
            extension = as_extension(scaling, extension_in_config(config).rope)
            if _describes(config, extension, mode):
                return extension
        except LongRopeError:
            pass
    return as_extension(scaling, rope, source)


def carries(model: PreTrainedModel, extension: Extension, mode: str) -> bool:
    """Return whether a model was loaded from a checkpoint of this very extension, so that it computes with it.

    Raises:
        LongRopeError: It was not, and the extension is for another rope.
    """
    plain = not extension.rope.factors and not has_applied_factors(model)
    if plain and _describes(model.config.to_dict(), extension, mode):
        return True
    check_rope(extension, find_rotary_slot(model).rope)
    return False


def has_applied_factors(model: PreTrainedModel) -> bool:
    """Return whether the model's rotary module holds factors, of `longrope.apply` or of a `longrope.patch` block."""
    return isinstance(find_rotary_slot(model).module, RescaledRotary)


def _describes(config: Mapping[str, Any], extension: Extension, mode: str) -> bool:
    return holds(config, extension) or holds(config, for_mode(extension, mode))


def holds(config: Mapping[str, Any], extension: Extension) -> bool:
    """Return whether a config describes this very extension."""
    try:
        current = extension_in_config(config)
    except LongRopeError:
        return False
    same_rope = (current.rope, current.length) == (extension.rope, extension.length)
    same_sets = same_factors(current.short, extension.short) and same_factors(current.long, extension.long)
    attention = current.long.attention_factor
    return same_rope and same_sets and math.isclose(attention, extension.long.attention_factor)


def same_factors(scaling: Scaling, other: Scaling) -> bool:
    """Return whether the factors of two scalings are the same, also if one was written as a YaRN's parameters."""
    return np.allclose(scaling.factors, other.factors, rtol=SAME, atol=0)
