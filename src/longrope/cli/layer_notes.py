"""Say what a model's rope carries and which layers factors can reach, before a command works with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longrope.cli import distributed

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from longrope.models.attention_layers import LayerSurvey


def note_rope(config: PreTrainedConfig) -> None:
    """Say which rope scaling a model's checkpoint carries, or which of its rope fields have no effect.

    Raises:
        LongRopeError: A field is unknown, or engines disagree about its effect.
    """
    from longrope.formats.own_rope import describe_rope

    note = describe_rope(config)
    if note is not None:
        distributed.say(f"Note: {note}.")


def check_layers(config: PreTrainedConfig, length: int | None) -> LayerSurvey:
    """Refuse a model whose layers do not rotate, warn of one whose rotating layers cannot see a length, note its rope.

    Args:
        config: Config of the model.
        length: Target length in tokens; None gives no warning.

    Raises:
        LongRopeError: The config has no RoPE that longrope describes, or no layer rotates.
    """
    from longrope.models.layer_survey import require_rotating_layers

    survey = require_rotating_layers(config)
    note_rope(config)
    warning = None if length is None else survey.warning(length)
    if warning is not None:
        distributed.say(f"Warning: {warning}")
    return survey
