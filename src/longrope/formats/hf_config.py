"""Read the rope scaling of a Hugging Face ``config.json`` as factors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from longrope.errors import LongRopeError
from longrope.formats.fields import count, geometry, number
from longrope.formats.lengths import OTHER_CONFIG_FIELDS, lengths_in
from longrope.formats.rope_fields import (
    GEOMETRY,
    ORIGINAL,
    READ,
    check_outside,
    check_share,
    unread_fields,
    with_layer_base,
)
from longrope.formats.rope_types import factor_sets
from longrope.rope import FULL, Rope, full_attention_fields, full_attention_name
from longrope.scaling import Extension

SCALING = ("rope_scaling", "rope_parameters")  # transformers 4 (which 5 prefers too), transformers 5
BY_LAYER = "longrope_by_layer"  # set by `_complete`: whether each layer type of the model has a rope of its own
# fields that hold the text model in configs that have other models too
TEXT_MODELS = ("text_config", "llm_config", "language_config", "thinker_config")
EXTENDED_ALREADY = ("gemma3", "gemma3_text")  # published with the extended length as max_position_embeddings


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
    config = _complete(_text_model(config))
    check_outside(config)
    parameters, by_layer = _parameters(config)
    kind = _kind(config, parameters)
    unread = unread_fields(parameters, kind)
    longest = count(config, "max_position_embeddings")
    original = _original_length(config, parameters, kind, by_layer=by_layer)
    factor = number(parameters, "factor", _default_factor(parameters, kind, longest / original))
    if factor < 1 and parameters.get("factor") is not None:
        raise LongRopeError(
            f"factor = {factor:g}: a {kind} scaling below 1 shortens the context of {original} tokens. Write the "
            "extended length divided by the original one, or remove the scaling."
        )
    length, notes = _length(config, parameters, kind, factor=factor, original=original)
    rope = _rope(config, parameters, kind, original)
    short, long = factor_sets(config, parameters, kind, rope=rope, factor=factor, length=length)
    if short != long and kind == "dynamic":
        notes.append(f"dynamic factors grow with the sequence; these are for one of {length} tokens")
    if unread:
        notes.append(f"without effect on the factors of rope_type {kind}: {', '.join(unread)}")
    provenance = {"rope_type": kind, "factor": factor} | ({"note": "; ".join(notes)} if notes else {})
    short = replace(short, length=length if short == long else original, provenance=provenance)
    long = replace(long, length=length, provenance=provenance)
    return Extension(rope=rope, short=short, long=long, length=length)


def _text_model(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config of the text model in a config that has others too, such as one of images."""
    inner = next((config[name] for name in TEXT_MODELS if isinstance(config.get(name), Mapping)), None)
    return config if inner is None else _text_model(inner)


def _kind(config: Mapping[str, Any], parameters: Mapping[str, Any]) -> str:
    """Return the rope type, a key of `READ`."""
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind == "default":
        ignored = [name for name in parameters if name in ("factor", "alpha", "short_factor", "long_factor")]
        reason = f": rope_type is missing, so {' and '.join(ignored)} has no effect" if ignored else ""
        raise LongRopeError(f"this config carries no rope scaling: the model runs plain RoPE{reason}")
    if "long_factor" in parameters and kind in ("su", "yarn"):  # names of longrope in older configs
        kind = "longrope"
    if not isinstance(kind, str) or kind not in READ:
        fields = ", ".join(name for name in parameters if name not in GEOMETRY) or "none"
        raise LongRopeError(
            f"rope_type = {kind!r}: longrope does not know this type, only {', '.join(READ)}, su. Upgrade longrope, "
            f"or add it to formats/rope_types.py: a function from its fields ({fields}) to the factor of each pair."
        )
    return kind


def _original_length(config: Mapping[str, Any], parameters: Mapping[str, Any], kind: str, *, by_layer: bool) -> int:
    """Return L0 in tokens: ``original_max_position_embeddings`` if the rope type has it, else the longest position."""
    longest = count(config, "max_position_embeddings")
    original = count(parameters, ORIGINAL, longest)
    original = original if by_layer else count(config, ORIGINAL, original)
    if kind == "dynamic" and original != longest:
        raise LongRopeError(
            f"{ORIGINAL} = {original}: transformers computes dynamic factors from max_position_embeddings = {longest}, "
            "other engines from this field. Remove it, or set max_position_embeddings to the same number."
        )
    return original


def _default_factor(parameters: Mapping[str, Any], kind: str, scale: float) -> float | None:
    """Return the factor of a config that has none; None if its rope type needs one."""
    if kind == "proportional" or (kind == "dynamic" and parameters.get("alpha") is not None):
        return 1.0
    return scale if kind in ("yarn", "longrope") else None


def _length(
    config: Mapping[str, Any], parameters: Mapping[str, Any], kind: str, *, factor: float, original: int
) -> tuple[int, list[str]]:
    """Return L in tokens, and notes about what the config leaves open."""
    longest, extended = count(config, "max_position_embeddings"), round(factor * original)
    if kind == "dynamic" and parameters.get("alpha") is not None:
        return longest, ["alpha sets the base of the rope at every length, so factor has no effect"]
    if kind == "llama3":
        return max(longest, original), []
    if kind == "yarn" and config.get(ORIGINAL) is not None:  # as exports have it, where the factor may be above s
        extended = longest
    length = max(longest, original, extended)
    if kind != "linear" or factor <= 1 or longest != original:
        return length, []
    if config.get("model_type") in EXTENDED_ALREADY:
        return longest, [f"max_position_embeddings = {longest} is the length with the scaling, {factor:g} times L0"]
    if length in lengths_in(config, OTHER_CONFIG_FIELDS).values():
        return length, []
    return length, [
        f"max_position_embeddings = {longest} may be the length before linear scaling (L = {length}, taken here) or "
        f"after it (L0 = {longest / factor:.0f}, L = {longest}); {ORIGINAL} in the config decides"
    ]


def _parameters(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
    """Return the rope's fields, and whether the config has some for each layer type."""
    for name in SCALING:
        fields = config.get(name)
        if fields and not isinstance(fields, Mapping):
            raise LongRopeError(f"{name} = {fields!r} must be an object")
        if fields:
            parameters = full_attention_fields(fields)
            by_layer = parameters is not fields
            if config.get(BY_LAYER) and "truncate" in parameters:  # transformers reads it beside the layer types only
                parameters = {**parameters, "truncate": fields.get("truncate", True) if by_layer else True}
            return with_layer_base(parameters, config.get("layer_rope_theta"), config.get("layer_types")), by_layer
    return {}, False


def _complete(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add transformers' defaults for the fields that a file leaves out, if transformers knows the model type."""
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        return config
    scaling = {name: config.get(name) for name in SCALING}
    aliases = CONFIG_MAPPING[kind].attribute_map
    try:
        plain = CONFIG_MAPPING[kind](**{name: value for name, value in config.items() if name not in SCALING}).to_dict()
    except Exception as error:  # each config class raises its own kinds
        reason = " ".join(str(error).split())
        raise LongRopeError(f"transformers refuses it as a config of model type {kind!r}: {reason}") from None
    plain = {**{name: plain[alias] for name, alias in aliases.items() if alias in plain}, **plain}
    if not any(scaling.values()):  # gpt-oss has one by default
        return plain
    by_layer = plain.get("rope_parameters") or {}
    rope = full_attention_fields(by_layer)
    defaults = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    return {**plain, **defaults, **scaling, BY_LAYER: full_attention_name(by_layer) is not None}


def _rope(config: Mapping[str, Any], parameters: Mapping[str, Any], kind: str, original: int) -> Rope:
    fields = {name: parameters.get(name, config.get(name)) for name in ("partial_rotary_factor", "rope_theta")}
    share = 1.0 if kind == "proportional" else check_share(fields["partial_rotary_factor"])
    return geometry(_head_dim(config) * share, number(fields, "rope_theta"), original)


def _head_dim(config: Mapping[str, Any]) -> int:
    """Return the dimensions of a head in the full-attention layers, which may have a config of their own."""
    kinds = config.get("layer_types") or []
    for layer, fields in (config.get("per_layer_config") or {}).items():
        if kinds[int(layer)] == FULL and "head_dim" in fields:
            return count(fields, "head_dim")
    if config.get("head_dim") is not None:
        return count(config, "head_dim")
    return count(config, "hidden_size") // count(config, "num_attention_heads")
