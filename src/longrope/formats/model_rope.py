"""The rope of a transformers model: its geometry, and the factors of a scaling that its checkpoint carries."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from longrope.checks import positive, whole
from longrope.errors import LongRopeError
from longrope.formats.hf_config import extension_of_config
from longrope.formats.lengths import DECIDED
from longrope.formats.rope_fields import ORIGINAL, check_share, with_layer_base
from longrope.rope import FULL, Rope, full_attention_fields

LEARNED = ("mistral_large4_text",)  # model types whose frequencies depend on their weights


def rope_of(model_or_config: Any) -> Rope:
    """Return the geometry that a transformers model or its config describes; see `Rope.of`.

    A model that holds factors of `longrope.patch` or `longrope.apply` has the rope that these are relative to.

    Raises:
        LongRopeError: The config has no RoPE, or one that rescale factors cannot describe.
    """
    model_or_config = getattr(model_or_config, "module", model_or_config)  # of torch's wrapper for several devices
    for module in model_or_config.modules() if hasattr(model_or_config, "modules") else ():
        if isinstance(rope := getattr(module, "rope", None), Rope):
            return rope
    config = getattr(model_or_config, "config", model_or_config)
    if not hasattr(config, "__dict__"):  # a name, or the pair that longrope.load returns
        raise LongRopeError(
            f"model = {config!r:.60}: not a model or a config. Give the first value of longrope.load(NAME)."
        )
    model_type = getattr(config, "model_type", None) or type(config).__name__
    try:
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        model_type = getattr(config, "model_type", None) or model_type
        return _rope_of_text(config)
    except LongRopeError as error:
        raise LongRopeError(f"model type {model_type!r}: {error}") from None
    except Exception as error:  # config classes raise errors of their own, as Gemma 4's for its per-layer fields
        reason = " ".join(str(error).split())
        raise LongRopeError(
            f"model type {model_type!r}: its config describes no single rotary embedding ({reason[:200]}). "
            "longrope does not support this model type."
        ) from error


def _rope_of_text(config: Any) -> Rope:
    _check_rotates(config)
    bases, layer_types = (getattr(config, name, None) for name in ("layer_rope_theta", "layer_types"))
    parameters = with_layer_base(full_attention_fields(getattr(config, "rope_parameters", None)), bases, layer_types)
    if not parameters:
        raise LongRopeError("its config has no rotary position embedding (rope_parameters). longrope cannot extend it.")
    if "rope_theta" not in parameters:
        raise LongRopeError(f"rope_parameters = {parameters}: not a plain RoPE. longrope does not support it.")
    rope = _plain_rope(config, parameters) if _is_plain(parameters) else _scaled_rope(config)
    decided = getattr(config, DECIDED, None)
    return rope if decided is None else replace(rope, original_length=decided)


def _is_plain(parameters: Any) -> bool:
    """Return whether a rope is plain up to L0; transformers' ``dynamic`` changes it beyond only."""
    kind = parameters.get("rope_type", "default")
    return kind == "default" or (kind == "dynamic" and parameters.get("alpha") is None)


def _plain_rope(config: Any, parameters: Any) -> Rope:
    head_dim = getattr(config, "head_dim", None)
    if not head_dim:
        hidden_size = whole("hidden_size", getattr(config, "hidden_size", None), 1)
        head_dim = hidden_size // whole("num_attention_heads", getattr(config, "num_attention_heads", None), 1)
    rotary_share = check_share(parameters.get("partial_rotary_factor"))
    original_length = getattr(config, ORIGINAL, None) or parameters.get(ORIGINAL)
    max_position = getattr(config, "max_position_embeddings", None)
    _check_reach(config, original_length or max_position)
    return Rope(
        dim=int(positive("head_dim", head_dim) * rotary_share),
        base=positive("rope_theta", parameters["rope_theta"]),
        original_length=original_length or whole("max_position_embeddings", max_position, 2),
    )


def _scaled_rope(config: Any) -> Rope:
    """Return the rope of a config whose scaling has the same factors at every length, or two sets of them."""
    scaled = extension_of_config(config.to_dict())
    long, short, plain = scaled.long, scaled.short, scaled.rope
    if short.attention_factor != long.attention_factor:
        raise LongRopeError(
            f"short_mscale = {short.attention_factor:g} and long_mscale = {long.attention_factor:g}: the attention "
            "factor of this checkpoint changes with the length. Not supported."
        )
    two_sets = {"short_factors": tuple(short.factors), "short_length": plain.original_length}
    return Rope(
        dim=plain.dim,
        base=plain.base,
        original_length=scaled.length,
        factors=tuple(long.factors),
        attention_factor=long.attention_factor,
        **(two_sets if long.scheme == "longrope" else {}),
    )


def _check_rotates(config: Any) -> None:
    """Refuse a config that has fields of a RoPE, and another field that turns it off or changes it.

    Raises:
        LongRopeError: The model has no RoPE, or one whose frequencies stand in its weights.
    """
    if getattr(config, "model_type", None) in LEARNED:
        raise LongRopeError(
            "rope_parameters: the model multiplies each frequency by a learned number, which only its weights hold "
            "(rotary_emb.alpha). longrope cannot extend it."
        )
    field = "position_embedding_type"
    kind = getattr(config, field, "rope")
    if kind not in ("rope", "rotary"):
        raise LongRopeError(
            f"{field} = {kind!r}: the model has no rotary position embedding. longrope cannot extend it."
        )
    if getattr(config, "alibi", False) is True:
        raise LongRopeError("alibi = True: the model has ALiBi instead of RoPE. longrope cannot extend it.")
    if getattr(config, "use_mem_rope", True) is False:
        raise LongRopeError(
            "use_mem_rope = False: the model has no rotary position embedding. longrope cannot extend it."
        )
    if getattr(config, "patcher_config", None) is not None:
        raise LongRopeError(
            "patcher_config: some parts of this model count positions in bytes, and others in patches of bytes. "
            "longrope extends models with one length."
        )
    parameters = getattr(config, "rope_parameters", None) or {}
    if FULL in parameters and parameters[FULL] is None:
        raise LongRopeError(
            f"rope_parameters[{FULL!r}] = None: the full-attention layers have no RoPE, so factors change nothing. "
            "longrope cannot extend it."
        )


def _check_reach(config: Any, length: object) -> None:
    """Refuse a model that was made for texts of any length, because its attention sees a window only.

    Raises:
        LongRopeError: The config names a window, and no length.
    """
    window = getattr(config, "sliding_window", None)
    if length is None and window:
        raise LongRopeError(
            f"max_position_embeddings: this config has none, and every attention layer sees the last {window} tokens "
            "alone. Factors change nothing at longer texts."
        )
