"""Stream generated text to standard output for ``longrope generate`` and ``longrope chat``."""

from __future__ import annotations

from time import perf_counter
from typing import Any

from torch import Tensor
from transformers import TextStreamer


class Stream(TextStreamer):
    """A streamer that writes generated text to standard output and records its tokens and times."""

    def __init__(self, tokenizer: Any, *, quiet: bool = False) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.quiet, self.tokens, self.begin, self.times = quiet, [], perf_counter(), []

    def put(self, value: Tensor) -> None:
        """Receive the prompt, then one token after another."""
        if not self.next_tokens_are_prompt:
            self.tokens += value.tolist()
            self.times.append(perf_counter() - self.begin)
        super().put(value)

    @property
    def rate(self) -> float | None:
        """Tokens per second after the first token; None with fewer than two tokens."""
        return (len(self.times) - 1) / (self.times[-1] - self.times[0]) if len(self.times) > 1 else None

    def speed(self) -> str:
        """Return the number of tokens and their speed as text."""
        first = f": the first after {self.times[0]:.1f} s" if self.times else ""
        rate = f", then {self.rate:.1f} tokens/s" if self.rate else ""
        return f"{len(self.tokens):,} new tokens in {perf_counter() - self.begin:.1f} s{first}{rate}"

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Write complete words."""
        if not self.quiet:
            print(text, flush=True, end="\n" if stream_end else "")
