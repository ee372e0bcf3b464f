"""Logits of a checkpoint in plain transformers; a program too, which imports nothing of longrope.

The program reads texts as safetensors from standard input and writes logits as safetensors to standard output.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def open_checkpoint(folder: str, device: str) -> Any:
    """Return a checkpoint as plain transformers opens it, in float32 and in evaluation mode."""
    config = AutoConfig.from_pretrained(folder)
    is_text = config.get_text_config() is config and type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    images = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not is_text
    auto_class = AutoModelForImageTextToText if images else AutoModelForCausalLM
    model: Any = auto_class.from_pretrained(folder, dtype=torch.float32)
    return model.to(device).eval()


@torch.inference_mode()
def text_logits(model: Any, text: Mapping[str, Tensor]) -> Tensor:
    """Return some logits of a text in float64, on the CPU.

    Args:
        model: Causal language model.
        text: ``input_ids`` and ``position_ids``, each ``(1, tokens)``, and ``logits_to_keep``, ``(indices,)``.

    Returns:
        Logits ``(indices, vocab_size)``.
    """
    text = {name: tensor.to(model.device) for name, tensor in text.items()}
    mask = torch.ones_like(text["input_ids"])  # without one, transformers takes gaps for borders between documents
    logits, indices = model(**text, attention_mask=mask, use_cache=False).logits[0], text["logits_to_keep"]
    if len(logits) > len(indices):  # some model types ignore logits_to_keep
        logits = logits[indices]
    return logits.cpu().double()  # Apple's GPUs have no doubles


def main() -> None:
    """Write the logits that the checkpoint in the folder ``sys.argv[1]`` computes on the CPU."""
    output, sys.stdout = sys.stdout.buffer, sys.stderr
    texts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load(sys.stdin.buffer.read()).items():
        number, name = key.split(".")
        texts.setdefault(number, {})[name] = tensor
    model = open_checkpoint(sys.argv[1], "cpu")
    output.write(save({number: text_logits(model, text) for number, text in texts.items()}))


if __name__ == "__main__":
    main()
