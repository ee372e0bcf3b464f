"""The sizes of each attention layer of a model, and how far it sees, from the config alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from longrope.models.layer_windows import layer_kinds, window_fields

WITHOUT_ATTENTION = ("linear_attention", "conv", "moe", "mlp", "mamba", "recurrent")  # kinds of layers


@dataclass(frozen=True)
class LayerSizes:
    """The sizes of one attention layer.

    Args:
        head_dim: Dimensions of a head.
        query_features: Mean of the features of a token's queries and of its output.
        kv_features: Features of keys and values together, as attention reads them.
        cached_features: Features of keys and values together that a cache holds.
    """

    head_dim: int
    query_features: int
    kv_features: int
    cached_features: int


def layer_sizes(text: Any, *, keeps_latents: bool) -> list[LayerSizes]:
    """Return the sizes of every layer.

    Args:
        text: Config of the text model.
        keeps_latents: Whether caches of multi-head latent attention hold what its keys and values are computed from.
    """
    kinds, count = layer_kinds(text), text.num_hidden_layers
    # the last layers of Gemma 3n and Gemma 4 read the keys and values of earlier ones
    keeping = count - (getattr(text, "num_kv_shared_layers", None) or 0)
    sizes = []
    for index in range(count):
        layer = text.per_layer_config[index] if getattr(text, "is_heterogeneous", False) else text
        attends = kinds is None or kinds[index] not in WITHOUT_ATTENTION
        sizes.append(_sizes(layer, keeps_latents=keeps_latents, cached=attends and index < keeping))
    return sizes


def _sizes(layer: Any, *, keeps_latents: bool, cached: bool) -> LayerSizes:
    heads = layer.num_attention_heads
    head_dim = getattr(layer, "head_dim", None) or layer.hidden_size // heads
    if rank := getattr(layer, "kv_lora_rank", None):  # multi-head latent attention
        key, value = layer.qk_nope_head_dim + layer.qk_rope_head_dim, layer.v_head_dim
        kv, latents = heads * (key + value), rank + layer.qk_rope_head_dim
    else:
        key, value = head_dim, getattr(layer, "v_head_dim", None) or head_dim
        kv = latents = _kv_heads(layer) * (key + value)
    return LayerSizes(head_dim, heads * (key + value) // 2, kv, (latents if keeps_latents else kv) * cached)


def _kv_heads(layer: Any) -> int:
    if getattr(layer, "multi_query", False) and not getattr(layer, "new_decoder_architecture", False):  # Falcon
        return 1
    names = ("num_key_value_heads", "num_kv_heads", "num_attention_heads")
    return next(count for name in names if (count := getattr(layer, name, None)))


def windows(text: Any) -> tuple[int | None, ...]:
    """Return how many tokens one token attends to, for each layer; None means all, 0 that it has no attention."""
    kinds, fields = layer_kinds(text), window_fields(text)
    return tuple(
        0 if kinds and kinds[index] in WITHOUT_ATTENTION else getattr(text, field) if field else None
        for index, field in enumerate(fields)
    )
