"""Run each layer of a model on chunks of the sequence, so that a long one takes the memory of a few tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from longrope.errors import LongRopeError
from longrope.longcontext.attention import attend
from longrope.longcontext.chunk_check import reason_for_whole_layers
from longrope.longcontext.context_parallel import ContextParallelGroup, context_parallel_of, layer_on_processes
from longrope.longcontext.layer_chunks import chunk_size_on, in_chunks, layer_in_chunks
from longrope.models.backbone import backbone_of
from longrope.models.patch import evaluating, replacing

MLPS = ("mlp", "feed_forward")  # names of MLPs in layers
LONG = 4  # chunks of a sequence from which on training tiles its MLPs
NAME = "longrope"  # of our attention, among transformers' functions


@contextmanager
def tiled_layers(
    model: PreTrainedModel, chunk_size: int | None = None, *, shape: tuple[int, int] | None = None
) -> Iterator[None]:
    """Run the layers of a model on chunks of the sequence in this block; results are equal up to rounding.

    A layer takes its chunks in turn and keeps the keys and values of those before. Beside these only the residual
    stream is as long as the sequence, neither a mask nor queries nor activations of the MLP. Without gradients the
    stream is overwritten in place. With gradients each layer saves its input and recomputes the rest, chunk by chunk
    from the last one back. Weights get no gradient, so they must be frozen.

    Sequences must have no padding, and dropout is off. `attend` replaces transformers' ``sdpa`` and attention with soft
    caps; FlashAttention stays. Other attention (``eager``) sees the whole sequence.

    Layers whose chunks would not give the same, such as convolutions and linear attention, run as transformers runs
    them (`reason_for_whole_layers`).

    Args:
        model: A transformers model whose layers take gradient checkpointing.
        chunk_size: Tokens of all rows together in a chunk; `chunk_size_on` the model's device if None. A model under
            `context_parallel` has the chunk size given there.
        shape: Rows and tokens of the passes in the block; any if None.

    Raises:
        LongRopeError: If the layers must run whole and several processes share the model.
    """
    group = context_parallel_of(model)
    tokens, length = (None, None) if shape is None else (shape[0] * shape[1], shape[1])
    is_long = tokens is None or tokens > (chunk_size or chunk_size_on(model.device.type))
    reason = why_whole_layers(model, length=length, is_long=is_long)
    if reason and group:
        raise LongRopeError(
            f"model type {model.config.model_type!r}: several processes cannot share its layers ({reason}). Start one."
        )
    with evaluating(model) if reason else _tiled(model, chunk_size, group):
        yield


def why_whole_layers(model: PreTrainedModel, *, length: int | None = None, is_long: bool = False) -> str | None:
    """Return why a model's layers need more than keys and values of earlier tokens; None if these are enough.

    Arguments as for `reason_for_whole_layers`.
    """
    return reason_for_whole_layers(model, partial(_tiled, model), length=length, is_long=is_long)


@contextmanager
def _tiled(model: PreTrainedModel, chunk_size: int | None, group: ContextParallelGroup | None = None) -> Iterator[None]:
    """Run the layers of a model on chunks in this block, without a check of their kinds."""
    run_layer = partial(layer_on_processes, group) if group else layer_in_chunks
    with layers_run_by(model, run_layer, group.chunk_size if group else chunk_size):
        yield


@contextmanager
def layers_run_by(
    model: PreTrainedModel, run_layer: Callable[..., Any], chunk_size: int | None = None
) -> Iterator[None]:
    """Run every layer of a model by a function with the arguments of `layer_in_chunks`, and `attend` as attention.

    Args:
        model: A transformers model whose layers take gradient checkpointing.
        run_layer: Function (forward of the layer, chunk size, device, hidden states, …) that returns hidden states.
        chunk_size: Tokens of all rows together in a chunk; `chunk_size_on` the model's device if None.
    """
    device = model.device
    chunk_size = chunk_size or chunk_size_on(device.type)
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    token_wise = [module for module in backbone_of(model).children() if not isinstance(module, nn.ModuleList)]
    with (
        evaluating(model),
        _attention(model),
        _wrapped(layers, run_layer, chunk_size, device),
        _wrapped(token_wise, in_chunks, chunk_size, device),
    ):
        yield


def tile_mlps(model: PreTrainedModel) -> PreTrainedModel:
    """Make MLPs run long sequences chunk by chunk in training, and recompute them in the backward pass.

    Sequences of fewer than `LONG` chunks stay whole, where the saved memory is not worth the time. Mixtures of experts
    stay whole too. The change is permanent.

    Args:
        model: A transformers model whose layers take gradient checkpointing; returned.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for name, module in [pair for layer in layers for pair in layer.named_children()]:
        if name in MLPS and not any("expert" in inner for inner, _ in module.named_modules()):
            module.forward = partial(_long_in_chunks, module.forward)
    return model


def _long_in_chunks(forward: Callable[..., Any], x: Tensor) -> Tensor:
    chunk_size = chunk_size_on(x.device.type)
    long = x.shape[:-1].numel() >= LONG * chunk_size and torch.is_grad_enabled()
    return in_chunks(forward, chunk_size, x.device, x) if long else forward(x)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,  # transformers' name for the softmax scale
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Call `attend` with the arguments of transformers' ``AttentionInterface``."""
    options: dict[str, Any] = {"sliding_window": sliding_window, "softcap": softcap}
    return attend(module, query, key, value, attention_mask, softmax_scale=scaling, **options)


@contextmanager
def _attention(model: PreTrainedModel) -> Iterator[None]:
    config: Any = model.config.get_text_config()
    before = config._attn_implementation
    if before == "sdpa" or (before == "eager" and getattr(config, "attn_logit_softcapping", None)):
        AttentionInterface.register(NAME, _attend)
        config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


@contextmanager
def _wrapped(
    modules: Sequence[nn.Module], wrapper: Callable[..., Any], chunk_size: int, device: torch.device
) -> Iterator[None]:
    with ExitStack() as stack:
        for module in modules:
            wrapped = partial(wrapper, module.forward, chunk_size, device)
            stack.enter_context(replacing(module, "forward", wrapped))
        yield
