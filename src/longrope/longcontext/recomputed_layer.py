"""A layer that runs on chunks of the sequence and recomputes them in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def take(tensors: Sequence[Tensor], chunk: slice) -> list[Tensor]:
    """Return the tokens of a chunk from each tensor ``(batch, tokens, …)``."""
    return [tensor[:, chunk] for tensor in tensors]


@dataclass(frozen=True)
class Layer:
    """A layer's own forward, the name of its cache, and its other arguments."""

    forward: Callable[..., Any]
    cache: str | None
    named: dict[str, Any]

    def run(self, inputs: Sequence[Tensor], kv: Any) -> Tensor:
        """Return the layer's output for a chunk.

        Args:
            inputs: Hidden states, cos and sin of the chunk.
            kv: Keys and values of the chunks before, with an ``update`` like that of transformers' caches; None where
                the chunk is the whole sequence.
        """
        hidden, cos, sin = inputs
        named = {**self.named, "position_embeddings": (cos, sin)}
        if kv is not None and self.cache is not None:
            # attention takes jumps between positions for borders between documents: it gets no positions
            named |= {self.cache: kv, "position_ids": None}
        return self.forward(hidden, **named).to(hidden.device)  # a layer may be on another GPU


class ChunkCache:
    """Keys and values of one layer for all chunks so far; its attention takes it for a cache."""

    def __init__(self, length: int, *, stop_after_update: bool = False) -> None:
        self.length = length
        self.end = 0
        self.stop_after_update = stop_after_update
        self.keys = self.values = torch.empty(0)

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Add the keys and values of a chunk and return those of all chunks so far."""
        if not self.end:
            self.keys = key.new_empty(*key.shape[:2], self.length, key.shape[3])
            self.values = value.new_empty(*value.shape[:2], self.length, value.shape[3])
        start = self.end
        self.end += key.shape[2]
        self.keys[:, :, start : self.end] = key
        self.values[:, :, start : self.end] = value
        if self.stop_after_update:
            raise KeysAndValuesReadyError
        return self.keys[:, :, : self.end], self.values[:, :, : self.end]


class KeysAndValuesReadyError(Exception):
    """A signal to leave a layer as soon as its keys and values are computed."""


class _PastCache:
    """Keys and values of the chunks before, as leaves of a graph, followed by those of the chunk itself."""

    def __init__(self, past: tuple[Tensor, ...]) -> None:
        self.past = past
        self.chunk = ()

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, ...]:
        """Remember the chunk's keys and values and return them after those of the chunks before."""
        self.chunk = (key, value)
        return tuple(torch.cat(pair, dim=2) for pair in zip(self.past, self.chunk, strict=True))


class RecomputedLayer(torch.autograd.Function):
    """A layer that saves only its input; the backward pass recomputes each chunk, the last one first.

    When a chunk's turn comes, its keys and values have got their gradients from all later chunks.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, cos: Tensor, sin: Tensor, layer: Layer, chunks: list[slice]) -> Tensor:
        """Run the layer chunk by chunk and save its input."""
        ctx.save_for_backward(hidden)
        ctx.embeddings, ctx.layer, ctx.chunks = (cos, sin), layer, chunks
        out = torch.empty_like(hidden)
        kv = ChunkCache(hidden.shape[1]) if len(chunks) > 1 else None
        for chunk in chunks:
            out[:, chunk] = layer.run(take((hidden, cos, sin), chunk), kv)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        """Recompute each chunk and return the gradients of the hidden states, cos and sin."""
        layer, chunks, inputs = ctx.layer, ctx.chunks, (*ctx.saved_tensors, *ctx.embeddings)
        differentiable = [i for i in range(3) if ctx.needs_input_grad[i]]
        grads = [torch.zeros_like(inputs[i]) for i in differentiable]
        kv = _keys_and_values(layer, chunks, inputs) if len(chunks) > 1 else None
        grads_kv = [] if kv is None else [torch.zeros_like(kv.keys), torch.zeros_like(kv.values)]
        for chunk in reversed(chunks):
            with torch.enable_grad():
                leaves = [tensor.detach().requires_grad_() for tensor in take(inputs, chunk)]
                past = None if kv is None else _past(kv, chunk)
                outputs = [layer.run(leaves, past)]
            grad_outputs = [grad_out[:, chunk]]
            sources = [leaves[i] for i in differentiable]
            if past is not None:
                outputs += past.chunk
                grad_outputs += [grad[:, :, chunk] for grad in grads_kv]
                sources += past.past
            chunk_grads = torch.autograd.grad(outputs, sources, grad_outputs, allow_unused=True)
            totals = [*take(grads, chunk), *(grad[:, :, : chunk.start] for grad in grads_kv)]
            for total, grad in zip(totals, chunk_grads, strict=True):
                if grad is not None:  # a layer may not rotate at all
                    total += grad
        by_input = dict(zip(differentiable, grads, strict=True))
        return *(by_input.get(i) for i in range(3)), None, None


def _past(kv: ChunkCache, chunk: slice) -> _PastCache:
    before = (kv.keys[:, :, : chunk.start], kv.values[:, :, : chunk.start])
    return _PastCache(tuple(tensor.detach().requires_grad_() for tensor in before))


def _keys_and_values(layer: Layer, chunks: list[slice], inputs: Sequence[Tensor]) -> ChunkCache:
    """Recompute the keys and values of all chunks."""
    kv = ChunkCache(inputs[0].shape[1], stop_after_update=True)
    for chunk in chunks:
        with suppress(KeysAndValuesReadyError):
            layer.run(take(inputs, chunk), kv)
    return kv
