"""Run what a layer does to each token alone on pieces of the sequence, so that a long one takes less memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

PIECE = 2048  # tokens: enough for full speed, few beside the residual stream


@contextmanager
def tiled(model: PreTrainedModel, piece: int = PIECE) -> Iterator[None]:
    """In the block, MLPs, experts and norms of a model see at most so many tokens at once; results stay the same.

    What is as wide as an MLP then exists for a piece alone. Attention sees the whole sequence. For forward passes: with
    gradients, all pieces would be kept.

    Args:
        model: a transformers model whose layers take gradient checkpointing.
        piece: tokens of all rows together.
    """
    modules = [module for layer in _layers(model) for module in layer.children() if _alone(module)]
    before = [vars(module).get("forward") for module in modules]
    try:
        for module in modules:
            vars(module)["forward"] = partial(_in_pieces, module.forward, piece)
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            del vars(module)["forward"]
            if forward is not None:
                vars(module)["forward"] = forward


def _layers(model: PreTrainedModel) -> Iterator[nn.Module]:
    return (module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))


def _alone(module: nn.Module) -> bool:
    """Whether a part of a layer looks at one token at a time: attention knows the layer's number, for its cache."""
    return not any(hasattr(part, "layer_idx") for part in module.modules())


def _in_pieces(forward: Callable[..., Any], piece: int, hidden: Tensor, *given: Any, **named: Any) -> Any:
    if hidden.dim() != 3 or hidden.shape[0] * hidden.shape[1] <= piece or given or named:
        return forward(hidden, *given, **named)
    piece = max(1, piece // hidden.shape[0])
    out = None
    for begin in range(0, hidden.shape[1], piece):
        part = forward(hidden[:, begin : begin + piece].contiguous())
        if out is None:
            out = part.new_empty(part.shape[0], hidden.shape[1], *part.shape[2:])
        out[:, begin : begin + piece] = part
    return out
