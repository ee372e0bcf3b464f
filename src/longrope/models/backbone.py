"""The backbone of a causal language model: the part between the token ids and the head."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel


def backbone_of(model: PreTrainedModel) -> Any:
    """Return a model's backbone, also where ``base_model`` returns the model itself (Llama 4)."""
    backbone: Any = model.base_model
    children = (child for child in model.children() if isinstance(child, PreTrainedModel))
    return backbone if backbone is not model else next(children, model)
