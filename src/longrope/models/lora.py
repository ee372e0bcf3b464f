"""LoRA for a training: which layers get an adapter, and in which dtype the adapters read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from longrope.errors import LongRopeError
from longrope.models.adapter import no_peft_warnings
from longrope.models.backbone import backbone_of


def add_lora(model: PreTrainedModel, rank: int) -> Any:
    """Return a ``PeftModel`` around a model, in place, whose linear layers have adapters with random weights.

    Raises:
        LongRopeError: The package ``peft`` is missing.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise LongRopeError(f'finetune.lora = {rank} needs the package peft: pip install "longrope[lora]"') from None
    task = "CAUSAL_LM" if model.can_generate() else None  # a backbone alone has none
    targets: Any = {"target_modules": "all-linear", "exclude_modules": _without_adapter(model) or None}
    with no_peft_warnings():
        return get_peft_model(model, LoraConfig(task_type=task, r=rank, lora_alpha=2 * rank, **targets))


@contextmanager
def autocast_alone_casts(model: Any) -> Iterator[None]:
    """Keep adapters from casting what they read to their own float32, which autocast casts back to the same bits."""
    from peft.helpers import disable_input_dtype_casting

    with disable_input_dtype_casting(model):
        yield


def _without_adapter(model: PreTrainedModel) -> list[str]:
    """Return the names of the linear modules that get no adapter.

    Those that read images see no training text. Llama 4's routers and DeepSeek-V4's grouped projections compute more
    than a product.
    """
    text = set(backbone_of(model).modules())
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and (module not in text or type(module).__module__.startswith("transformers.models."))
        and module is not model.get_output_embeddings()
    ]
