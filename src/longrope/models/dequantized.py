"""Dequantised models: ask transformers for plain weights, and remove what would save others than the model has."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import PreTrainedModel


def dequantize() -> dict[str, Any]:
    """Return the arguments with which transformers loads the weights of a GGUF file as plain ones.

    From 5.18 on it keeps the blocks of some architectures otherwise, if the package ``kernels`` is installed.
    """
    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def forget_quantization(model: PreTrainedModel) -> None:
    """Remove the marks of a quantised model, with which a dequantised GGUF model refuses ``save_pretrained``."""
    for attribute, plain in (("hf_quantizer", None), ("quantization_method", None), ("is_quantized", False)):
        if hasattr(model, attribute):
            setattr(model, attribute, plain)
    vars(model.config).pop("quantization_config", None)


def forget_conversions(model: PreTrainedModel) -> None:
    """Remove the conversions with which ``save_pretrained`` would quantise a dequantised model's weights again.

    transformers keeps the conversions of loading and reverts them when it saves, though the config says by then that
    the weights are not quantised. Without them it uses those of the model type, which only rename and split.
    """
    conversions: Any = getattr(model, "_weight_conversions", None)
    if not conversions or getattr(model.config, "quantization_config", None) is not None:
        return
    operations = [operation for conversion in conversions for operation in getattr(conversion, "operations", ())]
    if any(hasattr(operation, "hf_quantizer") for operation in operations):
        vars(model)["_weight_conversions"] = None
