"""Models with an adapter of ``peft``, and refusals of those that a job cannot take."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from longrope.errors import LongRopeError
from longrope.models.adapter import switched_adapter
from longrope.models.runnable import check_runnable

WITH_ADAPTER = "Give its get_base_model(), which computes with the adapter"
WITHOUT_PROMPTS = "Give its get_base_model(), which computes without the prompts that peft has learned"


def learns_prompts(model: Any) -> bool:
    """Return whether a model is a ``PeftModel`` of learned prompts, which its own methods add to the tokens."""
    adapters = getattr(model, "peft_config", None) or {}
    return not isinstance(model, PreTrainedModel) and any(config.is_prompt_learning for config in adapters.values())


def check_plain_model(model: Any, remedy: str = WITH_ADAPTER) -> None:
    """Raise if a model is a ``PeftModel``, which wraps the model that transformers loads, or cannot run.

    Args:
        model: Loaded model.
        remedy: What to give instead, a sentence without its full stop.

    Raises:
        LongRopeError: The model is a ``PeftModel``, or cannot run by itself.
    """
    check_runnable(model)
    if getattr(model, "peft_config", None) and not isinstance(model, PreTrainedModel):
        remedy = WITHOUT_PROMPTS if learns_prompts(model) else remedy
        raise LongRopeError(f"model = a {type(model).__name__}: a wrapper of peft around the model. {remedy}.")


def refuse_adapter(model: PreTrainedModel) -> None:
    """Raise if a model has an adapter of ``peft`` that is not in its weights, except one switched with the factors.

    Raises:
        LongRopeError: The model is a ``PeftModel``, the model within one, or one that got an adapter by
            ``load_adapter``.
    """
    check_plain_model(model, "Give its merge_and_unload(), whose weights have the adapter")
    if switched_adapter(model) is None and any(hasattr(module, "base_layer") for module in model.modules()):
        raise LongRopeError(
            "model: it has an adapter of peft that is not in its weights. Save the adapter, and give longrope.load its "
            "folder, which merges it; or give merge_and_unload() of the PeftModel."
        )
