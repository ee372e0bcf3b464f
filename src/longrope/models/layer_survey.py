"""Find which layers of a model rotate and how far each sees, by running its own code without weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from longrope.models.attention_layers import AttentionLayer, LayerSurvey
from longrope.models.backbone import auto_class, backbone_of
from longrope.models.layer_windows import CHUNK, SLIDING, layer_kinds, window_fields
from longrope.rope import FULL_NAMES, Rope

NAME = "longrope_survey"  # of the recording attention, among transformers' functions
TOKENS = 8


class _AttentionReachedError(Exception):
    """A signal to leave a layer at its attention."""


def require_rotating_layers(config: PreTrainedConfig) -> LayerSurvey:
    """Return the survey of a model, and refuse one whose layers do not rotate.

    Raises:
        LongRopeError: The config has no RoPE that longrope describes, or no layer rotates.
    """
    Rope.of(config)
    survey = survey_layers(config)
    survey.check()
    return survey


def survey_layers(config: PreTrainedConfig) -> LayerSurvey:
    """Return which layers of a model rotate and how far each sees.

    The model is built without memory for weights. Each layer runs on a few tokens up to its attention. A layer rotates
    if its queries or keys there depend on the output of the rotary module. A model whose code cannot run like this has
    a survey without attention layers.
    """
    config = _plain(config)
    text: Any = config.get_text_config()
    layers, attention = 0, []
    try:
        with torch.device("meta"):
            model: Any = auto_class(config).from_config(config).requires_grad_(False).eval()
        modules = [module for module in backbone_of(model).modules() if isinstance(module, GradientCheckpointingLayer)]
        modules = modules[: text.num_hidden_layers]  # those that read images or sound follow (Phi-4 multimodal)
        layers, attention = len(modules), _attention_layers(model, modules)
    except Exception:  # each model's code fails in its own way; nothing is known of its layers then
        attention = []
    return LayerSurvey(layers, tuple(attention), _position_field(text), _window_field(text))


def _attention_layers(model: Any, modules: Sequence[nn.Module]) -> list[AttentionLayer]:
    calls: list[tuple[bool, int | None]] = []

    def record(module: nn.Module, query: torch.Tensor, key: torch.Tensor, *_: Any, **options: Any) -> None:
        calls.append((query.requires_grad or key.requires_grad, options.get("sliding_window")))
        raise _AttentionReachedError

    AttentionInterface.register(NAME, record)
    text: Any = model.config.get_text_config()
    text._attn_implementation = NAME
    for module in model.modules():
        if any("inv_freq" in name for name, _ in module.named_buffers(recurse=False)):
            module.register_forward_hook(_tracked)
    arguments = _layer_arguments(model, modules[0])
    kinds, fields = layer_kinds(text) or [""] * len(modules), window_fields(text)
    attention = []
    for index, module in enumerate(modules):
        calls.clear()
        try:
            module(*arguments[0], **arguments[1])
        except Exception:
            if not calls and kinds[index] in FULL_NAMES:
                return []  # an attention that the survey does not reach
        if calls:  # else a layer without attention
            rotates, window = calls[0]
            if "compressed" in kinds[index]:  # it also sees all earlier tokens, as compressed keys (DeepSeek-V4)
                window = None
            elif not window and fields[index]:  # a mask alone limits what it sees
                window = getattr(text, fields[index])
            attention.append(AttentionLayer(index, rotates, window))
    return attention


def _tracked(_: nn.Module, __: Any, output: Any) -> Any:
    """Return the rotary module's output as leaves of a graph, so that whatever is computed from it shows."""
    if isinstance(output, tuple):
        return tuple(tensor.detach().requires_grad_() for tensor in output)
    return output.detach().requires_grad_()


def _layer_arguments(model: Any, layer: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments that the model calls its first layer with."""
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def stop(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        arguments.append((positional, named))
        raise _AttentionReachedError

    hook = layer.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        tokens = torch.zeros(1, TOKENS, dtype=torch.long, device="meta")
        backbone_of(model)(input_ids=tokens, use_cache=False)
    except _AttentionReachedError:
        pass
    finally:
        hook.remove()
    return arguments[0]


def _plain(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a copy of a config whose rope needs no values of positions, which tensors without memory do not have."""
    config = copy.deepcopy(config)
    text: Any = config.get_text_config()
    parameters = getattr(text, "rope_parameters", None)
    for fields in [parameters, *(parameters or {}).values()]:
        if isinstance(fields, dict) and fields.get("rope_type") in ("longrope", "dynamic"):
            fields["rope_type"] = "default"
    return config


def _position_field(text: Any) -> str:
    names = ("position_embedding_type", "alibi", "no_rope_layers", "layer_types", "rope_parameters")
    name = next((name for name in names if getattr(text, name, None) is not None), "rope_parameters")
    return f"{name} = {getattr(text, name, None)!r}"[:200]


def _window_field(text: Any) -> str:
    name = next((name for name in (SLIDING, CHUNK) if getattr(text, name, None)), "layer_types")
    return f"{name} = {getattr(text, name, None)!r}"[:200]
