"""Say which layers of a model factors can reach, before a command works with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longrope.cli import distributed

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from longrope.models.attention_layers import LayerSurvey


def check_layers(config: PreTrainedConfig, length: int | None) -> LayerSurvey:
    """Refuse a model whose layers do not rotate, and warn of one whose rotating layers cannot see a length.

    Args:
        config: Config of the model.
        length: Target length in tokens; None gives no warning.

    Raises:
        LongRopeError: The config has no RoPE that longrope describes, or no layer rotates.
    """
    from longrope.models.layer_survey import require_rotating_layers

    survey = require_rotating_layers(config)
    warning = None if length is None else survey.warning(length)
    if warning is not None:
        distributed.say(f"Warning: {warning}")
    return survey
