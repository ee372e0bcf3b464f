"""The rope fields of a model's own config: what its checkpoint scales, and which fields change nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from longrope.formats.hf_config import extension_of_config
from longrope.formats.model_rope import rope_of
from longrope.formats.rope_fields import GEOMETRY, NOT_FACTORS, ORIGINAL, READ, check_outside, unread_fields
from longrope.rope import full_attention_fields


def describe_rope(config: Any) -> str | None:
    """Return a sentence on the rope scaling of a model, or on its rope fields without effect; None for plain RoPE.

    Args:
        config: Config of the model, loaded by transformers.

    Raises:
        LongRopeError: A field is unknown, or engines disagree about its effect.
    """
    fields = config.get_text_config().to_dict()
    check_outside(fields)
    parameters = fields.get("rope_parameters") or {}
    for layer_fields in parameters.values():  # each layer type may have a rope of its own
        if isinstance(layer_fields, Mapping) and layer_fields.get("rope_type") in READ:
            unread_fields(layer_fields, layer_fields["rope_type"])
    kind = scaling_type(config)
    if kind is None:
        return _plain(full_attention_fields(parameters))
    if kind == "proportional":  # the geometry of a model type
        return None
    extension = extension_of_config(fields)
    lengths = f"L0 = {extension.rope.original_length:,}, L = {extension.length:,}"
    note = extension.long.provenance.get("note")
    details = f"{kind}, {lengths}; {note}" if note else f"{kind}, {lengths}"
    return (
        f"this checkpoint carries a rope scaling ({details}). Factors multiply it, and L0 is the length with it: "
        f"{rope_of(config).original_length:,} tokens. If the model was made for another length, decide it with "
        "original_length"
    )


def scaling_type(config: Any) -> str | None:
    """Return the rope type of a model's full-attention layers; None for plain RoPE.

    Args:
        config: Config of the model, loaded by transformers.
    """
    parameters = full_attention_fields(getattr(config.get_text_config(), "rope_parameters", None))
    kind = parameters.get("rope_type", "default")
    return None if kind == "default" else kind


def _plain(parameters: Mapping[str, Any]) -> str | None:
    """Return a sentence on the fields of a plain rope that nothing reads; None if there are none."""
    known = GEOMETRY | NOT_FACTORS | {ORIGINAL}
    names = [name for name, value in parameters.items() if name not in known and not isinstance(value, Mapping | None)]
    if not names:
        return None
    return (
        f"rope_type is 'default' or missing, so the model runs plain RoPE without {', '.join(names)}. "
        "If its weights were trained with a scaling, add its rope_type to rope_scaling in config.json"
    )
