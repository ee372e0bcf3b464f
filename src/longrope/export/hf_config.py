"""The fields of an exported ``config.json``, for each of its readers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from transformers import CONFIG_MAPPING

from longrope.errors import LongRopeError, unknown
from longrope.formats.lengths import DECIDED, raised
from longrope.formats.rope_fields import GEOMETRY, NEUTRAL, READ
from longrope.rope import FULL, full_attention_fields, full_attention_name, text_fields
from longrope.scaling import Extension, Scaling
from longrope.schemes import attention_factor
from longrope.yarn_fit import yarn_of

MODES = ("dual", "static")
THREE_KEYS = ("phi3",)
GENERATE = "Generate with longrope instead (longrope generate, longrope.generating)."
LOCAL_THETA = ("gemma3_text",)  # transformers 4 keeps the base of the other layers in a field of its own


def for_mode(extension: Extension, mode: str) -> Extension:
    """Return the extension of a checkpoint: ``dual`` keeps both sets, ``static`` has the long set twice.

    It is relative to plain RoPE, as configs are, also if the model came with a scaling of its own.

    Raises:
        LongRopeError: A config cannot express it: it has start tokens, or attention factors that differ.
    """
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    extension = extension.total
    short = extension.short if mode == "dual" else extension.long
    for name, scaling in (("long", extension.long), ("short", short)):
        if scaling.start_tokens:
            raise LongRopeError(
                f"{name}.start_tokens = {scaling.start_tokens}: no config can express them. Search without."
            )
    if short.attention_factor != extension.long.attention_factor:
        raise LongRopeError(
            f"attention_factor = {short.attention_factor:g} (short) and {extension.long.attention_factor:g} (long): "
            "transformers applies one factor to both sets. Use mode static, or factors searched with attention none."
        )
    return Extension(rope=extension.rope, short=short, long=extension.long, length=extension.length)


def factors_in_mode(extension: Extension, mode: str) -> Scaling | Extension:
    """Return the factors with which a model computes what its checkpoint of a mode computes.

    A config has two sets. Where the model came with a short set of its own, ``dual`` keeps it beside the new long one.
    """
    if mode != "dual":
        return extension.long
    return replace(extension, short=extension.long) if extension.rope.has_two_sets else extension


def on_formula(extension: Extension) -> bool:
    """Return whether the long attention factor is sqrt(1 + ln s / ln L0), which engines compute by themselves."""
    formula = attention_factor("su", extension.rope, extension.length)
    return math.isclose(extension.long.attention_factor, formula, rel_tol=1e-6)


def yarn_fields(extension: Extension) -> dict[str, Any] | None:
    """Return the fields of a ``yarn`` scaling, which engines read for more model types; None if it is not one.

    Engines that compute the attention factor from the factor, 0.1·ln factor + 1, multiply it by ``attn_factor``. It is
    left out where it is 1.
    """
    long, short = extension.long, extension.short
    yarn = yarn_of(extension.rope, replace(long, length=extension.length))
    if yarn is None or (short.factors, short.attention_factor) != (long.factors, long.attention_factor):
        return None
    ratio = long.attention_factor / (0.1 * math.log(yarn["factor"]) + 1)
    others = {} if math.isclose(ratio, 1, rel_tol=1e-9) else {"attn_factor": ratio}
    return {"rope_type": "yarn", **yarn, **others}


def has_own_attention(config: Mapping[str, Any]) -> bool:
    """Return whether an exported config has an attention factor that some engines replace by a formula of theirs."""
    scaling = full_attention_fields(text_fields(config).get("rope_scaling"))
    return "short_mscale" in scaling or "attn_factor" in scaling


def refuse_quantized(config: Mapping[str, Any]) -> None:
    """Raise if a model's weights are quantised.

    Raises:
        LongRopeError: The config has a ``quantization_config``.
    """
    quantization = config.get("quantization_config")
    if quantization:
        method = dict(quantization).get("quant_method", "some method")
        raise LongRopeError(
            f"quantization_config.quant_method = {method!r}: the weights are quantised. Write the config alone (format "
            "config), or export the model that they were made from and quantise the result."
        )


def config_fields(config: Mapping[str, Any], extension: Extension) -> dict[str, Any]:
    """Return a checkpoint's config with an extension in it: as ``yarn`` if its one set is a YaRN, else as ``longrope``.

    ``rope_scaling`` is for transformers 4, vLLM, SGLang, mlx-lm and ExLlama; transformers 5 prefers it too.
    ``rope_parameters`` holds the same fields in transformers 5's own form.

    Args:
        config: Config of the model, as transformers 5 writes it.
        extension: Factors to write.

    Raises:
        LongRopeError: This model type has no field for what the extension needs.
    """
    if isinstance(config.get("text_config"), Mapping):
        return {**config, "text_config": config_fields(config["text_config"], extension)}
    _refuse_model(config)
    parameters, rope, attention = config["rope_parameters"], extension.rope, extension.long.attention_factor
    read_by_others = full_attention_name(parameters) in (None, FULL)  # transformers 5 alone has ropes of other names
    softmax_scale = _softmax_scale(parameters, extension)
    as_longrope = config["model_type"] in THREE_KEYS or softmax_scale or not read_by_others
    sets = {"short_factor": list(extension.short.factors), "long_factor": list(extension.long.factors)}
    yarn = None if as_longrope else yarn_fields(extension)
    scaling = yarn or {"rope_type": "longrope", **sets, "factor": extension.scale}
    scaling |= {**_other_fields(parameters), "original_max_position_embeddings": rope.original_length}
    scaling |= {"attention_factor": attention, **softmax_scale}
    fields: dict[str, Any] = {
        "max_position_embeddings": extension.length,
        "original_max_position_embeddings": rope.original_length,
        "rope_parameters": _rope_parameters(parameters, scaling),
    }
    if read_by_others:
        fields |= _fields_of_other_readers(config, extension, scaling)
    others = {name: value for name, value in config.items() if name != DECIDED}
    return raised({**others, **fields}, "config.json", extension.length)


def _refuse_model(config: Mapping[str, Any]) -> None:
    """Raise if transformers cannot read factors in the config of such a model, or gives them to other layers too.

    Raises:
        LongRopeError: The model has proportional ropes, layers of several bases, or is a PhiMoE.
    """
    model_type = config["model_type"]
    if model_type == "phimoe":
        raise LongRopeError(
            "model_type = 'phimoe': transformers reads only its short factors. Extend a model of another type."
        )
    if full_attention_fields(config["rope_parameters"]).get("rope_type") == "proportional":
        raise LongRopeError(
            f"model_type = {model_type!r}: its rope is proportional, and transformers does not read factors in the "
            f"config of such a model. {GENERATE}"
        )
    bases = set(config.get("layer_rope_theta") or ()) - {0}
    if len(bases) > 1:
        raise LongRopeError(
            f"layer_rope_theta: the layers have the bases {', '.join(f'{base:g}' for base in sorted(bases))}, and "
            f"transformers would give the factors to all of them. {GENERATE}"
        )


def _fields_of_other_readers(
    config: Mapping[str, Any], extension: Extension, scaling: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the fields in which transformers 4 and other engines read a scaling."""
    model_type, parameters, attention = config["model_type"], config["rope_parameters"], scaling["attention_factor"]
    by_formula = scaling["rope_type"] == "yarn" or on_formula(extension)
    mscales = {} if by_formula else {"short_mscale": attention, "long_mscale": attention}
    fields = {"rope_theta": extension.rope.base, "rope_scaling": {**scaling, **mscales}}
    if model_type in LOCAL_THETA:
        fields["rope_local_base_freq"] = parameters["sliding_attention"]["rope_theta"]
    partial = full_attention_fields(parameters).get("partial_rotary_factor")
    if partial is not None:
        fields["partial_rotary_factor"] = partial
    if model_type in THREE_KEYS:
        _refuse_attention_factor(model_type, extension)
        sets = {name: scaling[name] for name in ("short_factor", "long_factor")}
        fields["rope_scaling"] = {"type": "longrope", **sets}
    elif _takes_head_dim(model_type):
        fields["head_dim"] = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return fields


def _other_fields(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a rope that belong to the model, not to a scaling, as Ministral's scale of the queries."""
    names = GEOMETRY.union(*READ.values(), NEUTRAL)
    return {name: value for name, value in full_attention_fields(parameters).items() if name not in names}


def _softmax_scale(parameters: Mapping[str, Any], extension: Extension) -> dict[str, float]:
    """Return the field that keeps a model's own scale of its softmax, which DeepSeek's YaRN derives from the factor.

    The scale is the square of 0.1·mscale_all_dim·ln(factor) + 1.

    Raises:
        LongRopeError: The factor would be 1, which gives the scale 1 with any ``mscale_all_dim``.
    """
    fields = full_attention_fields(parameters)
    weight, kind = fields.get("mscale_all_dim"), fields.get("rope_type", "default")
    if not weight or kind == "default":
        return {}
    if extension.scale == 1:
        raise LongRopeError(
            f"length = {extension.length}: the model derives its softmax scale from mscale_all_dim = {weight:g} and "
            "the factor L / L0, which is 1 at this length. Use factors for a longer sequence."
        )
    return {"mscale_all_dim": weight * math.log(fields["factor"]) / math.log(extension.scale)}


def _takes_head_dim(model_type: str) -> bool:
    """Return whether a config can be given a head_dim; some, as Falcon's, compute it and stop at a stored one."""
    attribute = getattr(CONFIG_MAPPING[model_type], "head_dim", None) if model_type in CONFIG_MAPPING else None
    return not isinstance(attribute, property) or attribute.fset is not None


def _rope_parameters(parameters: Mapping[str, Any], scaling: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``rope_parameters`` with a scaling, which goes to full attention where layer types differ."""
    geometry = {name: value for name, value in full_attention_fields(parameters).items() if name in GEOMETRY - {"type"}}
    full = {**geometry, **scaling}
    name = full_attention_name(parameters)
    return {**parameters, name: full} if name else full


def _refuse_attention_factor(model_type: str, extension: Extension) -> None:
    """Raise if the attention factor is not the formula's, which is the only one that such a config can mean."""
    if not on_formula(extension):
        formula = attention_factor("su", extension.rope, extension.length)
        raise LongRopeError(
            f"attention_factor = {extension.long.attention_factor:g}: a {model_type} config has no field for it, and "
            f"readers compute {formula:.6g}. Use attention su and mode static."
        )
