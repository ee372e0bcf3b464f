"""Frozen contexts: some tokens of a text under new factors, with the keys and values of an earlier pass for all others.

The earlier pass keeps every layer's values, and its keys before their rotation. New factors rotate these keys. So only
the hidden states that the keys and values come from are those of the earlier factors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from longrope.errors import LongRopeError
from longrope.longcontext.key_rotation import KeyRotation
from longrope.longcontext.layer_chunks import cache_name, chunk_slices, run_in_place
from longrope.longcontext.recomputed_layer import ChunkCache, KeysAndValuesReadyError, Layer
from longrope.longcontext.tiling import layers_run_by
from longrope.longcontext.token_losses import last_hidden

PROBE = 4  # tokens of the passes that find a layer's rotation


@dataclass(frozen=True)
class FrozenLayer:
    """The context of one layer.

    Args:
        rotation: Rotation of the layer's keys.
        keys: Keys before their rotation, ``(1, key heads, tokens, head_dim)``.
        values: Values, ``(1, key heads, tokens, value dim)``.
    """

    rotation: KeyRotation
    keys: Tensor
    values: Tensor


@torch.no_grad()
def capture_context(
    model: PreTrainedModel,
    tokens: Tensor,
    positions: Tensor,
    *,
    keep_on: torch.device | None = None,
    rotations: Sequence[KeyRotation] = (),
) -> tuple[list[FrozenLayer], Tensor]:
    """Run a model on a text, and return the context of every layer and the last hidden states ``(1, tokens, hidden)``.

    Args:
        model: Causal language model under the factors of the context.
        tokens: Token ids, ``(1, tokens)``.
        positions: Position ids, ``(1, tokens)``.
        keep_on: Device of the context, to which each layer's keys and values move at once; the model's if None.
        rotations: Rotation of every layer, as an earlier call found it; none to find it here by twelve short runs.

    Raises:
        LongRopeError: If a layer does not keep keys and values, or rotates them in another way than in pairs.
    """
    contexts: list[FrozenLayer] = []

    def run_layer(
        forward: Callable[..., Any], chunk_size: int, device: torch.device, hidden: Tensor, *rest: Any, **named: Any
    ) -> Tensor:
        layer, cos, sin = _layer(forward, rest, named)

        def keys_of(cos: Tensor, sin: Tensor) -> Tensor:
            kv = ChunkCache(PROBE, stop_after_update=True)
            with suppress(KeysAndValuesReadyError):
                layer.run([hidden[:, :PROBE].to(device), cos, sin], kv)
            return kv.keys

        rotation = rotations[len(contexts)] if rotations else KeyRotation.of(keys_of, cos[:, :PROBE])
        kv = ChunkCache(hidden.shape[1])
        hidden = run_in_place(layer, (hidden, cos, sin), chunk_slices(hidden.shape[1], chunk_size), kv, device)
        keys = rotation.undo(kv.keys, cos, sin)
        contexts.append(FrozenLayer(rotation, keys.to(keep_on or device), kv.values.to(keep_on or device)))
        return hidden

    with layers_run_by(model, run_layer):
        return contexts, last_hidden(model, tokens, positions)


@contextmanager
def hidden_in_context(
    model: PreTrainedModel, tokens: Tensor, positions: Tensor, selected: Tensor, contexts: Sequence[FrozenLayer]
) -> Iterator[Tensor]:
    """Yield the last hidden states of selected tokens, ``(1, selected, hidden)``, with gradients by cos and sin.

    The backward pass recomputes the layers, so it belongs into the block.

    Args:
        model: Causal language model under any factors.
        tokens: Token ids of the whole text, ``(1, tokens)``.
        positions: Position ids of the whole text, ``(1, tokens)``.
        selected: Indices of the tokens to compute, in ascending order, ``(selected,)``.
        contexts: Context of every layer, for all other tokens.
    """
    count, layers = len(selected), iter(contexts)
    seen = (torch.arange(tokens.shape[1], device=tokens.device) <= selected[:, None])[None, None]

    def run_layer(
        forward: Callable[..., Any], _size: int, device: torch.device, hidden: Tensor, *rest: Any, **named: Any
    ) -> Tensor:
        layer, cos, sin = _layer(forward, rest, named)
        context, layer = next(layers), replace(layer, named=layer.named | {"attention_mask": seen})

        def run(hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            kv = _ContextCache(context, cos[:, count:], sin[:, count:], selected)
            return layer.run([hidden, cos[:, :count], sin[:, :count]], kv)

        if torch.is_grad_enabled():
            return checkpoint(run, hidden, cos, sin, use_reentrant=False)  # pyright: ignore[reportReturnType]
        return run(hidden, cos, sin)

    with layers_run_by(model, run_layer):
        yield last_hidden(model, tokens[:, selected], torch.cat([positions[:, selected], positions], dim=1))


class _ContextCache:
    """The keys and values of a context, rotated by given cos and sin; attention takes it for a cache."""

    def __init__(self, context: FrozenLayer, cos: Tensor, sin: Tensor, selected: Tensor) -> None:
        self.context, self.cos, self.sin, self.selected = context, cos, sin, selected

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return the keys and values of the whole text, with those of the selected tokens in their places."""
        keys = self.context.rotation.rotate(self.context.keys.to(key.device), self.cos, self.sin)
        values = self.context.values.to(value.device)
        return keys.index_copy(2, self.selected, key), values.index_copy(2, self.selected, value)


def _layer(forward: Callable[..., Any], rest: Sequence[Any], named: dict[str, Any]) -> tuple[Layer, Tensor, Tensor]:
    """Return a layer with its cos and sin ``(1, tokens, dim)``."""
    cache, embeddings = cache_name(named), named.get("position_embeddings")
    if rest or cache is None or not isinstance(embeddings, tuple) or embeddings[0].dim() != 3:
        raise LongRopeError("its layers do not take cos, sin and a cache of keys and values alone")
    return Layer(forward, cache, named), *embeddings
