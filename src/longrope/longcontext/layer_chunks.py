"""Run one layer of a model on chunks of the sequence, in the forward and the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from longrope.longcontext.cpu_offload import activation_budget

CACHES = ("past_key_values", "layer_past")  # names of the cache among the arguments of layers


def in_chunks(forward: Callable[..., Any], chunk_size: int, device: torch.device, *inputs: Any, **named: Any) -> Any:
    """Apply a token-wise module chunk by chunk: in place, or with recomputation in the backward pass."""
    if named or len(inputs) != 1 or inputs[0].dim() != 3 or not inputs[0].is_floating_point():
        return forward(*inputs, **named)
    x: Tensor = inputs[0]
    chunks = _chunks(x, chunk_size)
    if torch.is_grad_enabled():
        sizes = [chunk.stop - chunk.start for chunk in chunks]
        outputs = [checkpoint(forward, tokens, use_reentrant=False) for tokens in x.split(sizes, dim=1)]
        return torch.cat(outputs, dim=1)
    for chunk in chunks:
        x[:, chunk] = forward(x[:, chunk].to(device))
    return x


def layer_in_chunks(
    forward: Callable[..., Any], chunk_size: int, device: torch.device, hidden: Tensor, *rest: Any, **named: Any
) -> Any:
    """Run a decoder layer chunk by chunk; its attention sees the keys and values of all chunks so far.

    Args:
        forward: The layer's own forward.
        chunk_size: Tokens of all rows together in a chunk.
        device: Device of the layer; without gradients a large ``hidden`` moves to main memory.
        hidden: Hidden states ``(batch, tokens, hidden)``, overwritten with the result where gradients are off.
        rest: Further positional arguments; a layer with any runs once on all tokens.
        named: Keyword arguments that transformers' layers take, with cos and sin as ``position_embeddings``.
    """
    if rest or not isinstance(named.get("position_embeddings"), tuple):
        return forward(hidden, *rest, **named)
    cache = cache_name(named)
    chunks = [slice(0, hidden.shape[1])] if cache is None else _chunks(hidden, chunk_size)
    layer = Layer(forward, cache, named)
    inputs = (hidden, *named["position_embeddings"])
    if torch.is_grad_enabled():
        return _RecomputedLayer.apply(*inputs, layer, chunks)
    kv = _ChunkCache(hidden.shape[1]) if len(chunks) > 1 else None
    hidden = offloaded(hidden, device)
    for chunk in chunks:
        hidden[:, chunk] = layer.run([hidden[:, chunk].to(device), *take(inputs[1:], chunk)], kv)
    return hidden


def chunk_size_on(kind: str) -> int:
    """Return the tokens of a chunk on a kind of device: enough for full speed, with little memory."""
    return 16384 if kind == "cuda" else 2048


def offloaded(hidden: Tensor, device: torch.device) -> Tensor:
    """Return hidden states, in main memory if they exceed the device's `activation_budget`."""
    if hidden.nbytes <= activation_budget(device) or (copy := hidden.cpu()) is hidden:
        return hidden
    hidden.untyped_storage().resize_(0)  # the model's forward still refers to it
    return copy


def cache_name(named: Mapping[str, Any]) -> str | None:
    """Return a layer's name for its cache argument; None if its attention must see the whole sequence."""
    name = next((name for name in CACHES if name in named), None)
    return None if name is None or named[name] is not None or named.get("attention_mask") is not None else name


def chunk_slices(length: int, size: int) -> list[slice]:
    """Return the chunks of a sequence, each of ``size`` tokens; the last one may have fewer."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _chunks(hidden: Tensor, chunk_size: int) -> list[slice]:
    return chunk_slices(hidden.shape[1], max(1, chunk_size // hidden.shape[0]))


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
        return self.forward(hidden, **named)


class _ChunkCache:
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
            raise _KeysAndValuesReadyError
        return self.keys[:, :, : self.end], self.values[:, :, : self.end]


class _KeysAndValuesReadyError(Exception):
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


class _RecomputedLayer(torch.autograd.Function):
    """A layer that saves only its input; the backward pass recomputes each chunk, the last one first.

    When a chunk's turn comes, its keys and values have got their gradients from all later chunks.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, cos: Tensor, sin: Tensor, layer: Layer, chunks: list[slice]) -> Tensor:
        ctx.save_for_backward(hidden)
        ctx.embeddings, ctx.layer, ctx.chunks = (cos, sin), layer, chunks
        out = torch.empty_like(hidden)
        kv = _ChunkCache(hidden.shape[1]) if len(chunks) > 1 else None
        for chunk in chunks:
            out[:, chunk] = layer.run(take((hidden, cos, sin), chunk), kv)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
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


def _past(kv: _ChunkCache, chunk: slice) -> _PastCache:
    before = (kv.keys[:, :, : chunk.start], kv.values[:, :, : chunk.start])
    return _PastCache(tuple(tensor.detach().requires_grad_() for tensor in before))


def _keys_and_values(layer: Layer, chunks: list[slice], inputs: Sequence[Tensor]) -> _ChunkCache:
    """Recompute the keys and values of all chunks."""
    kv = _ChunkCache(inputs[0].shape[1], stop_after_update=True)
    for chunk in chunks:
        with suppress(_KeysAndValuesReadyError):
            layer.run(take(inputs, chunk), kv)
    return kv
