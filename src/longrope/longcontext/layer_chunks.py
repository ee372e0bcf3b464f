"""Run one layer of a model on chunks of the sequence, in the forward and the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from longrope.longcontext.cpu_offload import activation_budget
from longrope.longcontext.recomputed_layer import ChunkCache, Layer, RecomputedLayer, take
from longrope.models.cache import CACHES


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
        return RecomputedLayer.apply(*inputs, layer, chunks)
    kv = ChunkCache(hidden.shape[1]) if len(chunks) > 1 else None
    return run_in_place(layer, inputs, chunks, kv, device)


def run_in_place(
    layer: Layer, inputs: Sequence[Tensor], chunks: Sequence[slice], kv: ChunkCache | None, device: torch.device
) -> Tensor:
    """Run a layer chunk by chunk, and return the hidden states, overwritten with the result.

    Args:
        layer: The layer.
        inputs: Hidden states, cos and sin of the whole sequence.
        chunks: Chunks of the sequence.
        kv: Cache that gets the keys and values of all chunks; None where one chunk is the whole sequence.
        device: Device of the layer.
    """
    hidden = offloaded(inputs[0], device)
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
