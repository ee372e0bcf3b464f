"""The cache of what a model has read, kept from one turn of a chat to the next."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from longrope.cli.chat_session import ChatModel
from longrope.cli.chat_stream import Stream
from longrope.cli.progress import bar
from longrope.cost.memory_check import check_cache_memory
from longrope.errors import LongRopeError
from longrope.models.device_memory import explain_out_of_memory
from longrope.models.generation import factors_for, fill
from longrope.scaling import Scaling

CHUNK = 1024  # tokens of a prompt that go through the model at once


@dataclass
class ChatCache:
    """What a speaker has read: tokens, their cache, and the factors that it was made with."""

    speaker: ChatModel
    ids: list[int] = field(default_factory=list)
    cache: DynamicCache = field(default_factory=DynamicCache)
    factors: Scaling | None = None

    def keep(self, size: int) -> None:
        """Forget all but the first tokens, or everything where a layer has a sliding window that has moved on."""
        layers = [layer for layer in self.cache.layers if isinstance(layer, DynamicLayer)]
        sliding = any(layer.is_sliding and layer.get_seq_length() != size for layer in layers)
        if size == 0 or sliding:
            self.ids, self.cache = [], DynamicCache(config=self.speaker.model.config)
            return
        for layer in layers:  # crop() takes as many from every layer, but an interrupt leaves different lengths
            if not layer.is_sliding and layer.keys is not None and layer.values is not None:
                layer.keys, layer.values = layer.keys[..., :size, :], layer.values[..., :size, :]
        self.ids = self.ids[:size]

    def answer(self, ids: list[int], *, new: int, temperature: float, stream: Stream) -> None:
        """Go on from some tokens; what of them the memory holds is not read again.

        Raises:
            LongRopeError: if they and ``new`` more are longer than the extension, or memory runs out.
        """
        model, extension, policy = self.speaker.model, self.speaker.extension, self.speaker.policy
        if len(ids) + new > extension.length:
            raise LongRopeError(
                f"{len(ids)} tokens of prompt and --max-new-tokens {new} make {len(ids) + new}, above the extension's "
                f"length = {extension.length}; shorten the prompt, lower --max-new-tokens, or extend the model further"
            )
        factors = factors_for(extension, policy, len(ids), new)
        same = takewhile(lambda pair: pair[0] == pair[1], zip(self.ids, ids[:-1], strict=False))
        self.keep(len(list(same)) if factors == self.factors else 0)
        self.factors = factors
        dtype = str(model.dtype).removeprefix("torch.")
        check_cache_memory(model.config, len(ids) + new, cached=len(self.ids), dtype=dtype, device=str(model.device))
        with explain_out_of_memory(len(ids) + new, f"on {model.device}", "give a shorter text, or --dtype bfloat16"):
            self._read(ids[:-1])
            self._speak(ids, new, temperature, stream)

    def _read(self, ids: list[int]) -> None:
        """Fill the cache a chunk at a time; an interrupt loses the last chunk alone."""
        model, quiet = self.speaker.model, not sys.stderr.isatty() or len(ids) - len(self.ids) <= CHUNK
        tokens = torch.tensor([ids], dtype=torch.long, device=model.device)
        with bar("reading", len(ids), quiet=quiet) as update, self.speaker.patched(self.factors):
            for size in fill(model, tokens, self.cache, chunk=CHUNK):
                self.ids = ids[:size]
                update(size, f"{size:,} tokens")

    def _speak(self, ids: list[int], new: int, temperature: float, stream: Stream) -> None:
        model: Any = self.speaker.model
        options: dict[str, Any] = (
            {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        )
        tokens = torch.tensor([ids], device=model.device)
        options |= {"attention_mask": torch.ones_like(tokens), "past_key_values": self.cache, "streamer": stream}
        try:
            with self.speaker.generating():
                model.generate(tokens, max_new_tokens=new, **options)
        finally:  # also when interrupted: what was streamed has been read but for the last token
            self.ids = (ids + stream.tokens)[:-1]
            reached = len(ids) + len(stream.tokens)
            if self.speaker.policy == "switch" and self.speaker.extension.at(reached) != self.factors:
                self.factors = None  # the cache is the other set's, or half of it: to be read again
