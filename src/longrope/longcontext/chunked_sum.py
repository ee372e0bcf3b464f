"""A sum over chunks of a sequence whose gradients are ready when it is, so that no chunk is kept or computed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def sum_over_chunks(
    function: Callable[..., Tensor],
    hidden: Tensor,
    others: Sequence[Tensor | None],
    weights: Sequence[Tensor],
    size: int,
) -> Tensor:
    """Return the sum of a function over chunks of a sequence, with gradients of hidden states and weights.

    Memory holds what one chunk saves for its backward pass, which follows its forward pass at once.

    Args:
        function: Function of a chunk of the hidden states and of each of ``others``; returns a scalar.
        hidden: Hidden states ``(rows, tokens, hidden)``.
        others: Arrays ``(rows, tokens, …)`` without gradients, or None.
        weights: All tensors that the function reads and that need gradients, beside the hidden states; it need not
            read them all.
        size: Tokens of a chunk.
    """
    chunks = [slice(start, start + size) for start in range(0, hidden.shape[1], size)]
    if len(chunks) == 1:
        return function(hidden, *others)
    if torch.is_grad_enabled():
        return _SumOverChunks.apply(function, chunks, others, hidden, *weights)  # pyright: ignore[reportReturnType]
    return torch.stack([function(*_cut(chunk, hidden, *others)) for chunk in chunks]).sum()


def _cut(chunk: slice, *arrays: Tensor | None) -> list[Tensor | None]:
    return [None if array is None else array[:, chunk] for array in arrays]


class _SumOverChunks(torch.autograd.Function):
    """The sum; its gradients are computed in the forward pass and multiplied in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        function: Callable[..., Tensor],
        chunks: Sequence[slice],
        others: Sequence[Tensor | None],
        hidden: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        total = torch.zeros((), device=hidden.device)
        of_hidden, of_weights = torch.zeros_like(hidden), [None] * len(weights)
        for chunk in chunks:
            states = hidden[:, chunk].detach().requires_grad_()
            with torch.enable_grad():
                value = function(states, *_cut(chunk, *others))
            gradients = torch.autograd.grad(value, (states, *weights), allow_unused=True)
            of_hidden[:, chunk] = gradients[0]
            of_weights = [_added(*pair) for pair in zip(of_weights, gradients[1:], strict=True)]
            total += value.detach()
        ctx.save_for_backward(of_hidden, *of_weights)
        return total

    @staticmethod
    def backward(ctx: Any, by_total: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradients = (None if saved is None else saved * by_total for saved in ctx.saved_tensors)
        return None, None, None, *gradients


def _added(total: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    """Return the sum of two gradients, in the memory of the first; None stands for 0."""
    if total is None:
        return gradient
    return total if gradient is None else total.add_(gradient)
