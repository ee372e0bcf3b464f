"""Apply factors to a model permanently, in its rotary module and its config, and remove them again."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from longrope.errors import LongRopeError
from longrope.export.hf_config import config_fields, factors_in_mode, for_mode
from longrope.formats.lengths import DECIDED
from longrope.models.adapter import switched_adapter
from longrope.models.dequantized import forget_conversions
from longrope.models.patch import install_factors
from longrope.models.rotary_slot import RescaledRotary, find_rotary_slot
from longrope.scaling import Extension, Scaling, as_extension


class Absent:
    """Mark of a field that the plain config does not have; the class itself, which copies and pickles keep."""


def apply(model: PreTrainedModel, scaling: Scaling | Extension, *, mode: str = "static") -> PreTrainedModel:
    """Apply factors to a model permanently, so that saving the model saves the factors too.

    The model computes with the factors from now on, and its config describes them. ``save_pretrained``,
    ``push_to_hub`` and transformers' ``Trainer`` then write checkpoints that ``from_pretrained`` loads with the same
    logits, and that a training resumes from. For transformers 4, mlx-lm and other engines, `export` adds the fields
    that they read. `detach` takes the factors out again. Factors that were applied earlier are replaced.

    Args:
        model: Causal language model; if its checkpoint carries a rope scaling, the factors multiply it.
        scaling: Extension of the model, or a scaling of some length.
        mode: ``static`` (the long factors at every length) or ``dual`` (the short ones up to L0).

    Returns:
        The same model.

    Raises:
        LongRopeError: The factors do not fit the model, a config cannot express them, or a ``with`` block of
            `longrope.patch` still holds the model.
    """
    slot = find_rotary_slot(model)
    _refuse_patched(slot.module, "apply")
    if switched_adapter(model) is not None:
        raise LongRopeError("model: it has an adapter that is switched with its factors. Use longrope.export instead.")
    extension = as_extension(scaling, slot.rope)
    written, config = for_mode(extension, mode), model.config.get_text_config().to_dict()
    fields = {name: value for name, value in config_fields(config, written).items() if config.get(name) != value}
    fields.pop(
        "rope_scaling", None
    )  # the same for other readers; transformers' Trainer cannot resume from a config with it
    attributes = vars(model.config.get_text_config())
    plain = {name: attributes.get(name, Absent) for name in (*fields, DECIDED)} | _plain_fields(slot.module)
    forget_conversions(model)
    install_factors(model, factors_in_mode(extension, mode))
    rotary = find_rotary_slot(model).module
    assert isinstance(rotary, RescaledRotary)
    rotary.plain_fields = plain
    attributes.pop(DECIDED, None)  # it was L0 of the scaling that the config had
    attributes.update(fields)  # setattr checks each field by itself, and some are right only together
    return model


def detach(model: PreTrainedModel) -> PreTrainedModel:
    """Take applied factors out of a model: modules and config are then what they were before `apply`.

    Returns:
        The same model.

    Raises:
        LongRopeError: No factors were applied, or a ``with`` block of `longrope.patch` still holds the model.
    """
    slot = find_rotary_slot(model)
    _refuse_patched(slot.module, "detach")
    plain = _plain_fields(slot.module)
    if not plain:
        raise LongRopeError("model: no factors are applied to it. Apply some with longrope.apply first.")
    attributes = vars(model.config.get_text_config())
    for name, value in plain.items():
        if value is Absent:
            attributes.pop(name, None)
        else:
            attributes[name] = value
    slot.use_originals()
    return model


def _refuse_patched(module: object, name: str) -> None:
    """Raise if a ``with`` block will put another rotary module back, so that module and config would disagree.

    Args:
        module: Rotary module of the model at present.
        name: Function that would change the model, for the message.

    Raises:
        LongRopeError: `longrope.patch` holds the model.
    """
    if isinstance(module, RescaledRotary) and not module.plain_fields:
        raise LongRopeError(
            "model: it has the factors of longrope.patch, which puts the model back at the end of its with block. "
            f"Call longrope.{name} outside the block."
        )


def _plain_fields(module: object) -> dict[str, Any]:
    """Return the config's fields as they were before `apply`; empty if no factors are applied."""
    return dict(module.plain_fields) if isinstance(module, RescaledRotary) else {}
