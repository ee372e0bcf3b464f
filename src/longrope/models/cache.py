"""Caches of a model: which argument takes one, and how a text that was read is continued several times."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from longrope.errors import LongRopeError
from longrope.models.backbone import backbone_of
from longrope.models.grouped_attention import grouped_attention
from longrope.models.growing_cache import GrowingLayer, growing_cache

CACHES = ("cache", "past_key_values", "layer_past")  # arguments that take a cache; the first from transformers 5.24 on


def cache_argument(model: PreTrainedModel) -> str:
    """Return the name of the argument of a model's forward that takes a cache."""
    arguments = signature(type(backbone_of(model)).forward).parameters
    return next((name for name in CACHES if name in arguments), "past_key_values")


def can_forget(cache: Cache) -> bool:
    """Return whether a cache's last tokens can be removed: it holds keys and values alone, no state of a recurrence."""
    plain = (type(layer) in (DynamicLayer, DynamicSlidingWindowLayer, GrowingLayer) for layer in cache.layers)
    return type(cache) is DynamicCache and all(plain)


@dataclass
class ReadText:
    """The first tokens of a text, which a model has read, and its cache of them.

    Args:
        model: Causal language model, with its factors installed.
        cache: Keys and values of the tokens, or whatever else the model keeps; None before the first.
        size: Number of tokens.
    """

    model: PreTrainedModel
    cache: Cache | None = None
    size: int = 0

    def read(self, tokens: Tensor) -> Tensor:
        """Read the next tokens ``(rows, tokens)``, and return their last hidden states ``(rows, tokens, hidden)``."""
        return self._pass(backbone_of(self.model), tokens).last_hidden_state

    def logits(self, tokens: Tensor) -> Tensor:
        """Read the next tokens ``(rows, tokens)``, and return their logits ``(rows, tokens, vocabulary)``."""
        return self._pass(self.model, tokens).logits

    @contextmanager
    def continued(self) -> Iterator[ReadText]:
        """Yield the text to read on from; afterwards this one is as it was."""
        if self.cache is None or not can_forget(self.cache):
            yield replace(self, cache=copy.deepcopy(self.cache))
            return
        continued = replace(self)
        try:
            yield continued
        finally:
            layers: Any = self.cache.layers
            for layer in layers:  # an error in a pass leaves some with more tokens than others
                more = layer.get_seq_length() - self.size
                if more > 0:
                    layer.crop(-more)

    def _pass(self, module: Any, tokens: Tensor) -> Any:
        name = cache_argument(self.model)
        cache = _new_cache(self.model) if self.cache is None else self.cache
        with grouped_attention(tokens.device):
            output = module(input_ids=tokens, use_cache=True, **{name: cache})
        self.cache = output.get(name)
        if self.cache is None:
            raise LongRopeError(f"model type {self.model.config.model_type!r} keeps no cache to continue a text from")
        self.size += tokens.shape[1]
        return output


def _new_cache(model: PreTrainedModel) -> DynamicCache | None:
    """Return an empty cache that keeps all tokens, also outside of a window; None where the model must make it."""
    return growing_cache() if can_forget(DynamicCache(config=model.config)) else None
