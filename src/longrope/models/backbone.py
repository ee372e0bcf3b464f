"""The parts of a causal language model around its layers: the backbone between token ids and head, the embedding."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel


def backbone_of(model: PreTrainedModel) -> Any:
    """Return a model's backbone, also where ``base_model`` returns the model itself (Llama 4)."""
    backbone: Any = model.base_model
    children = (child for child in model.children() if isinstance(child, PreTrainedModel))
    return backbone if backbone is not model else next(children, model)


def vocabulary_of(model: PreTrainedModel) -> int:
    """Return the number of rows of a model's embedding, which every token id must be below."""
    embedding: Any = model.get_input_embeddings()
    return len(embedding.weight)
