"""Run each layer of a model on pieces of the sequence: a long one then takes the memory of a few tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from longrope.longcontext.attention import attend
from longrope.longcontext.context_parallel import context_parallel_of, layer_on_processes
from longrope.longcontext.layer_chunks import in_pieces, layer_in_chunks, piece_on
from longrope.models.patch import evaluating

MLPS = ("mlp", "feed_forward")  # how layers call them
LONG = 4  # pieces, of a sequence in training
NAME = "longrope"  # of our attention, among transformers' functions


@contextmanager
def tiled_layers(model: PreTrainedModel, piece: int | None = None) -> Iterator[None]:
    """In the block, layers of a model see at most so many tokens at once; results stay the same to rounding.

    A layer takes its pieces in turn and keeps keys and values of those before, so that beside these only the residual
    stream is as long as the sequence: no mask, no queries, nothing of the MLP. Without gradients the stream is
    overwritten in place. With gradients each layer keeps its input and computes the rest anew, piece by piece from the
    last one back; weights get none, so they must be frozen.

    Sequences are taken to have no padding, and there is no dropout. Attention is `attend` in
    place of transformers' ``sdpa`` and of soft caps; FlashAttention stays. Other attention (``eager``) sees the whole.

    Args:
        model: a transformers model whose layers take gradient checkpointing.
        piece: tokens of all rows together; `piece_on` its device if None; of a `spread` model, what that was given.
    """
    how = context_parallel_of(model)
    device, piece = model.device, how.piece if how else piece or piece_on(model.device.type)
    of_layer = partial(layer_on_processes, how) if how else layer_in_chunks
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    alone = [module for module in model.base_model.children() if not isinstance(module, nn.ModuleList)]
    wrapped = _wrapped(layers, of_layer, piece, device), _wrapped(alone, in_pieces, piece, device)
    with evaluating(model), _attention(model), wrapped[0], wrapped[1]:
        yield


def tile_mlps(model: PreTrainedModel) -> PreTrainedModel:
    """For training: MLPs see a long sequence piece by piece and are computed anew backwards. For keeps.

    Long is what has `LONG` pieces: below, the memory is not worth the time. Mixtures of experts stay whole.

    Args:
        model: a transformers model whose layers take gradient checkpointing; returned.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for name, part in [pair for layer in layers for pair in layer.named_children()]:
        if name in MLPS and not any("expert" in inner for inner, _ in part.named_modules()):
            part.forward = partial(_long_in_pieces, part.forward)
    return model


def _long_in_pieces(forward: Callable[..., Any], x: Tensor) -> Tensor:
    piece = piece_on(x.device.type)
    long = x.shape[:-1].numel() >= LONG * piece and torch.is_grad_enabled()
    return in_pieces(forward, piece, x.device, x) if long else forward(x)


@contextmanager
def _attention(model: PreTrainedModel) -> Iterator[None]:
    config: Any = model.config.get_text_config()
    before = config._attn_implementation
    if before == "sdpa" or (before == "eager" and getattr(config, "attn_logit_softcapping", None)):
        AttentionInterface.register(NAME, attend)
        config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


@contextmanager
def _wrapped(
    modules: Sequence[nn.Module], wrapper: Callable[..., Any], piece: int, device: torch.device
) -> Iterator[None]:
    before = [vars(module).get("forward") for module in modules]
    try:
        for module in modules:
            vars(module)["forward"] = partial(wrapper, module.forward, piece, device)
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            del vars(module)["forward"]
            if forward is not None:
                vars(module)["forward"] = forward
