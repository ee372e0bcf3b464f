"""Gradients of a model's loss by its factors, through cos and sin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from longrope.models.rotary_embedding import LongRoPE


class Differentiable(nn.Module):
    """A `LongRoPE` with one scaling whose cos and sin carry gradients.

    ``offset`` is all zeros, ``(dim // 2 + 1,)``. It collects the gradient by the log of each factor, then by the log of
    the attention factor.
    """

    def __init__(self, embedding: LongRoPE) -> None:
        super().__init__()
        self.embedding = embedding
        self.offset = nn.Parameter(torch.zeros(embedding.rope.dim // 2 + 1, device=embedding.device))

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin as `LongRoPE.forward` does."""
        with torch.no_grad():
            cos, sin = self.embedding(x, position_ids)
        return _Phases.apply(self.offset, cos, sin, position_ids, self.embedding)  # pyright: ignore[reportReturnType]


class _Phases(torch.autograd.Function):
    """Cos and sin unchanged in the forward pass, with their gradients by log factors in the backward pass.

    d(A·cos φ) = -A·sin φ·dφ + A·cos φ·d(log A) and dφ = -φ·d(log λ).
    """

    @staticmethod
    def forward(
        ctx: Any, offset: Tensor, cos: Tensor, sin: Tensor, position_ids: Tensor, embedding: LongRoPE
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin, position_ids)
        ctx.embedding = embedding
        return cos.clone(), sin.clone()

    @staticmethod
    def backward(ctx: Any, by_cos: Tensor, by_sin: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        cos, sin, position_ids = ctx.saved_tensors
        by_cos, by_sin, cos, sin = (tensor.float() for tensor in (by_cos, by_sin, cos, sin))
        by_attention = (by_cos * cos + by_sin * sin).sum()
        by_phase = sum((by_sin * cos - by_cos * sin).chunk(2, dim=-1))
        scaling, embedding = ctx.embedding.scalings[0], ctx.embedding
        rescaled = position_ids * (position_ids >= scaling.start_tokens)
        inv_freq = torch.from_numpy(scaling.inv_freq(embedding.rope)).float().to(cos.device)
        by_factor = -(by_phase * rescaled[..., None]).flatten(0, -2).sum(0) * inv_freq
        return torch.cat([by_factor, by_attention[None]]), None, None, None, None


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """Turn off the gradients of the weights inside the block, and restore them afterwards."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
