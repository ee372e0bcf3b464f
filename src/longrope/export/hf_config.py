"""The fields of an exported ``config.json``, as each reader wants them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from longrope.engines.predict import extension_in_config
from longrope.errors import LongRopeError, unknown
from longrope.rope import FULL, full_attention_fields
from longrope.scaling import Extension
from longrope.schemes import attention_factor

MODES = ("dual", "static")
THREE_KEYS = ("phi3",)
LOCAL_THETA = ("gemma3_text",)  # transformers 4 keeps the base of the other layers in a field of its own


def for_mode(extension: Extension, mode: str) -> Extension:
    """The extension that a checkpoint of a mode holds: ``dual`` keeps both sets, ``static`` has the long one twice.

    Raises:
        LongRopeError: if configs cannot express it: start tokens, or attention factors that differ.
    """
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    short = extension.short if mode == "dual" else extension.long
    for name, scaling in (("long", extension.long), ("short", short)):
        if scaling.start_tokens:
            raise LongRopeError(
                f"{name}.start_tokens = {scaling.start_tokens}: no config can hold start tokens; search without them"
            )
    if short.attention_factor != extension.long.attention_factor:
        raise LongRopeError(
            f"attention_factor = {short.attention_factor:g} (short) and {extension.long.attention_factor:g} (long): "
            "transformers applies one to both; use --mode static, or search with --attention none"
        )
    return Extension(rope=extension.rope, short=short, long=extension.long, length=extension.length)


def on_formula(extension: Extension) -> bool:
    """Whether the long attention factor is sqrt(1 + ln s / ln L0), which engines compute by themselves."""
    formula = attention_factor("su", extension.rope, extension.length)
    return math.isclose(extension.long.attention_factor, formula, rel_tol=1e-6)


def holds(config: Mapping[str, Any], extension: Extension) -> bool:
    """Return whether a config describes this very extension."""
    try:
        current = extension_in_config(config)
    except LongRopeError:
        return False
    attention, wanted = current.long.attention_factor, extension.long.attention_factor
    return (current.rope, current.length) == (extension.rope, extension.length) and (
        (current.short.factors, current.long.factors) == (extension.short.factors, extension.long.factors)
        and math.isclose(attention, wanted, rel_tol=1e-6)
    )


def refuse_quantized(config: Mapping[str, Any]) -> None:
    """Take unquantised weights only.

    Raises:
        LongRopeError: if the config says that its weights are quantised.
    """
    quantization = config.get("quantization_config")
    if quantization:
        method = dict(quantization).get("quant_method", "some method")
        raise LongRopeError(
            f"quantization_config: the weights are quantised ({method}); export the model that they were made from, "
            "then quantise the result"
        )


def config_fields(config: Mapping[str, Any], extension: Extension) -> dict[str, Any]:
    """A checkpoint's config with the extension in it, from the config of the plain model as transformers 5 writes it.

    ``rope_scaling`` is what transformers 4, vLLM, SGLang, mlx-lm and ExLlama read (transformers 5 prefers it too);
    ``rope_parameters`` is transformers 5's own form of the same.

    Raises:
        LongRopeError: if this model type has no field for what the extension needs, or the weights are quantised.
    """
    kind, rope, attention = config["model_type"], extension.rope, extension.long.attention_factor
    by_layer = FULL in config["rope_parameters"]
    parameters = full_attention_fields(config["rope_parameters"])
    refuse_quantized(config)
    if kind == "phimoe":
        raise LongRopeError("model type 'phimoe': transformers reads only its short factors; export is not supported")
    sets = {"short_factor": list(extension.short.factors), "long_factor": list(extension.long.factors)}
    full = {"rope_type": "longrope", **sets, "factor": extension.scale}
    full |= {"original_max_position_embeddings": rope.original_length, "attention_factor": attention}
    fields = {
        "max_position_embeddings": extension.length,
        "original_max_position_embeddings": rope.original_length,
        "rope_theta": rope.base,
        "rope_parameters": {**parameters, **full},
        "rope_scaling": full
        if on_formula(extension)
        else {**full, "short_mscale": attention, "long_mscale": attention},
    }
    if by_layer:
        fields["rope_parameters"] = {**config["rope_parameters"], FULL: fields["rope_parameters"]}
    if kind in LOCAL_THETA:
        fields["rope_local_base_freq"] = config["rope_parameters"]["sliding_attention"]["rope_theta"]
    partial = parameters.get("partial_rotary_factor")
    if partial is not None:
        fields["partial_rotary_factor"] = partial
    if kind in THREE_KEYS:
        if not on_formula(extension):
            raise LongRopeError(
                f"attention_factor = {attention:g}: a {kind} config holds none, and readers take "
                f"{attention_factor('su', rope, extension.length):.6g}; use --attention su and --mode static"
            )
        fields["rope_scaling"] = {"type": "longrope", **sets}
    else:
        fields["head_dim"] = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return {**config, **fields}
