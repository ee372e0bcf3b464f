"""Keep a model's key/value cache from one turn of a chat to the next."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, LogitsProcessorList
from transformers.cache_utils import DynamicLayer

from longrope.checks import check_vocabulary
from longrope.cli.chat_session import ChatModel
from longrope.cli.chat_stream import Stream
from longrope.cli.progress import bar
from longrope.cost.memory_check import check_cache_memory
from longrope.errors import LongRopeError
from longrope.models.backbone import vocabulary_of
from longrope.models.cache import cache_argument, can_forget
from longrope.models.device_memory import explain_out_of_memory
from longrope.models.finite_logits import FiniteLogits
from longrope.models.generation import factors_for, fill
from longrope.models.growing_cache import growing_cache
from longrope.scaling import Scaling

CHUNK = 1024  # tokens of a prompt in one forward pass


@dataclass
class ChatCache:
    """The tokens that a chat model has read, and their keys and values.

    Args:
        chat_model: Model with its extension.
        ids: Tokens in the cache.
        cache: Keys and values of the tokens.
        factors: Factors that the keys were computed with.
    """

    chat_model: ChatModel
    ids: list[int] = field(default_factory=list)
    cache: DynamicCache = field(default_factory=DynamicCache)
    factors: Scaling | None = None

    def crop(self, size: int) -> None:
        """Forget all but the first ``size`` tokens, or all where a window or a recurrence has moved past them."""
        layers = [layer for layer in self.cache.layers if isinstance(layer, DynamicLayer)]
        moved = any(layer.is_sliding and layer.get_seq_length() != size for layer in layers)
        if size == 0 or moved or (size != len(self.ids) and not can_forget(self.cache)):
            self.ids, self.cache = [], growing_cache(self.chat_model.model.config)
            return
        for layer in layers:  # crop() takes as many from every layer, but an interrupt leaves different lengths
            if not layer.is_sliding and layer.keys is not None and layer.values is not None:
                layer.keys, layer.values = layer.keys[..., :size, :], layer.values[..., :size, :]
        self.ids = self.ids[:size]

    def answer(self, ids: list[int], *, new: int, temperature: float, stream: Stream) -> None:
        """Continue a text, and read only the tokens that the cache does not hold.

        Args:
            ids: Tokens of the text.
            new: Largest number of tokens to generate.
            temperature: Sampling temperature; 0 takes the likeliest token.
            stream: Receiver of the generated tokens.

        Raises:
            LongRopeError: The text and its continuation are longer than the extension, a token has no embedding, memory
                runs out, or logits are not finite.
        """
        model, extension, policy = self.chat_model.model, self.chat_model.extension, self.chat_model.policy
        if len(ids) + new > extension.length:
            raise LongRopeError(
                f"{len(ids)} tokens of prompt and --max-new-tokens {new} make {len(ids) + new}, above the extension's "
                f"length = {extension.length}; shorten the prompt, lower --max-new-tokens, or extend the model further"
            )
        check_vocabulary([np.array(ids)], vocabulary_of(model), self.chat_model.tokenizer, field="prompt")
        factors = factors_for(extension, policy, len(ids), new)
        same = takewhile(lambda pair: pair[0] == pair[1], zip(self.ids, ids[:-1], strict=False))
        self.crop(len(list(same)) if factors == self.factors else 0)
        self.factors = factors
        dtype = str(model.dtype).removeprefix("torch.")
        check_cache_memory(model.config, len(ids) + new, cached=len(self.ids), dtype=dtype, device=str(model.device))
        with explain_out_of_memory(len(ids) + new, f"on {model.device}", "give a shorter text, or --dtype bfloat16"):
            try:
                self._read(ids[:-1])
                self._generate(ids, new, temperature, stream)
            except BaseException:
                if not can_forget(self.cache):  # a recurrence may be anywhere
                    self.crop(0)
                raise

    def _read(self, ids: list[int]) -> None:
        """Fill the cache chunk by chunk; an interrupt loses only the last chunk."""
        model, quiet = self.chat_model.model, not sys.stderr.isatty() or len(ids) - len(self.ids) <= CHUNK
        tokens = torch.tensor([ids], dtype=torch.long, device=model.device)
        with bar("reading", len(ids), quiet=quiet) as update, self.chat_model.patched(self.factors):
            for size in fill(model, tokens, self.cache, chunk=CHUNK):
                self.ids = ids[:size]
                update(size, f"{size:,} tokens")

    def _generate(self, ids: list[int], new: int, temperature: float, stream: Stream) -> None:
        model: Any = self.chat_model.model
        options: dict[str, Any] = (
            {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        )
        tokens = torch.tensor([ids], device=model.device)
        options |= {"attention_mask": torch.ones_like(tokens), cache_argument(model): self.cache, "streamer": stream}
        options["logits_processor"] = LogitsProcessorList([FiniteLogits(model.dtype)])
        try:
            with self.chat_model.generating():
                model.generate(tokens, max_new_tokens=new, **options)
        finally:  # also when interrupted: the cache holds all streamed tokens but the last
            self.ids = (ids + stream.tokens)[:-1]
            reached = len(ids) + len(stream.tokens)
            if self.chat_model.policy == "switch" and self.chat_model.extension.at(reached) != self.factors:
                self.factors = None  # the cache has the other set's keys, or some of them: read again
