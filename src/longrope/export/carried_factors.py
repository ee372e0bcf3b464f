"""The factors that a model's config carries already, compared with those to write."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from longrope.engines.predict import extension_in_config
from longrope.errors import LongRopeError
from longrope.export.hf_config import for_mode
from longrope.models.rotary_slot import find_rotary_slot
from longrope.rope import Rope
from longrope.scaling import Extension, check_rope


def holds(config: Mapping[str, Any], extension: Extension) -> bool:
    """Return whether a config describes this very extension."""
    try:
        current = extension_in_config(config)
    except LongRopeError:
        return False
    same_rope = (current.rope, current.length) == (extension.rope, extension.length)
    same_short = current.short.factors == extension.short.factors
    same_long = current.long.factors == extension.long.factors
    attention = current.long.attention_factor
    return same_rope and same_short and same_long and math.isclose(attention, extension.long.attention_factor)


def check_weights(model: PreTrainedModel, extension: Extension, mode: str) -> None:
    """Raise unless a model is plain, has factors applied, or was loaded from a checkpoint of this very extension.

    Raises:
        LongRopeError: The model carries another rope scaling, or the extension is for another rope.
    """
    config = model.config.to_dict()
    if holds(config, extension) or holds(config, for_mode(extension, mode)):
        check_rope(extension, Rope.of(model.config))
    else:
        check_rope(extension, find_rotary_slot(model).rope)
