"""Which field of a config limits how many tokens each layer of a model sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SLIDING, CHUNK = "sliding_window", "attention_chunk_size"
FIELDS = {"sliding_attention": SLIDING, "hybrid_sliding": SLIDING, "chunked_attention": CHUNK}


def layer_kinds(text: Any) -> Sequence[str] | None:
    """Return the kind of every layer; None if the config of a text model names none."""
    kinds = getattr(text, "layer_types", None)
    return kinds if kinds and len(kinds) == text.num_hidden_layers else None


def window_fields(text: Any) -> list[str]:
    """Return for each layer the field that limits how many tokens a token sees; empty where none does.

    If the config names no kinds of layers, a field limits all of them, as in transformers' masks and caches.

    Args:
        text: Config of the text model.
    """
    kinds, limits = layer_kinds(text), [field for field in (SLIDING, CHUNK) if (getattr(text, field, None) or 0) > 0]
    if kinds is None:
        return [limits[0] if limits else ""] * text.num_hidden_layers
    fields = [FIELDS.get(kind, "") for kind in kinds]
    return [field if field in limits else "" for field in fields]
