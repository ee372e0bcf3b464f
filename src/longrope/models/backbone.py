"""The parts of a causal language model around its layers: class, backbone and embedding."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def auto_class(config: PreTrainedConfig) -> Any:
    """Return transformers' class that loads a whole model of this config: of text alone, or of images and text.

    transformers lists some models of text alone, such as Mistral 4, among those of images and text only.
    """
    is_text = config.get_text_config() is config and type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    images = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not is_text
    return AutoModelForImageTextToText if images else AutoModelForCausalLM


def text_model_of(model: PreTrainedModel) -> Any:
    """Return the text model within a model that reads more; a model that reads text alone is returned itself."""
    return model if model.config.get_text_config() is model.config else model.get_decoder()


def backbone_of(model: PreTrainedModel) -> Any:
    """Return the backbone of a model's text model, also where ``base_model`` returns the model itself (Llama 4)."""
    if (text_model := text_model_of(model)) is not model:
        return backbone_of(text_model)
    backbone: Any = model.base_model
    children = (child for child in model.children() if isinstance(child, PreTrainedModel))
    return backbone if backbone is not model else next(children, model)


def random_backbone(config: PreTrainedConfig, device: str) -> Any:
    """Return the backbone of a config's text model with random weights in float32, without the rest of the model."""
    with torch.device("meta"):
        backbone = backbone_of(auto_class(config).from_config(config))
    with torch.device(device):
        return type(backbone)(config.get_text_config())


def vocabulary_of(model: PreTrainedModel) -> int:
    """Return the number of rows of a model's embedding, which every token id must be below."""
    embedding: Any = model.get_input_embeddings()
    return len(embedding.weight)
