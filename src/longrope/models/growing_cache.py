"""A key/value cache with room for more tokens, so that reading a token copies none of those before it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

LEAST_ROOM = 64  # tokens


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer, each the beginning of a larger tensor.

    transformers' layer makes a new tensor of all tokens for each pass. This one writes new tokens behind the others,
    and makes a longer tensor, by a sixteenth, only when there is no room. New tokens overwrite those that ``crop``
    removed.
    """

    key_room: Tensor | None = None
    value_room: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Add keys and values ``(rows, key heads, tokens, head_dim)``, and return those of all tokens so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        size = self.get_seq_length()
        self.key_room = _with_room(self.key_room, self.keys, size, key_states)
        self.value_room = _with_room(self.value_room, self.values, size, value_states)
        end = size + key_states.shape[-2]
        self.keys, self.values = self.key_room[..., :end, :], self.value_room[..., :end, :]
        return self.keys, self.values


def growing_cache(config: PreTrainedConfig | None = None) -> DynamicCache:
    """Return an empty cache as ``DynamicCache(config=config)``, with room in the layers that keep all tokens."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    if not cache.layers:
        cache.layer_class_to_replicate = GrowingLayer
    return cache


def _with_room(room: Tensor | None, states: Tensor | None, size: int, new: Tensor) -> Tensor:
    """Return a tensor that begins with ``size`` states and the new ones; the given one if it has room for them."""
    end = size + new.shape[-2]
    # states of another tensor come from a new order of rows, or from another device
    if room is None or states is None or states.data_ptr() != room.data_ptr() or end > room.shape[-2]:
        room = new.new_empty(*new.shape[:-2], end + max(end // 16, LEAST_ROOM), new.shape[-1])
        if size and states is not None:
            room[..., :size, :] = states
    room[..., size:end, :] = new
    return room
