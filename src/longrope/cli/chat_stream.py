"""What ``longrope generate`` and ``longrope chat`` write while a model generates."""

from __future__ import annotations

from time import perf_counter
from typing import Any

from torch import Tensor
from transformers import TextStreamer


class Stream(TextStreamer):
    """Writes what is generated to standard output as it comes, and keeps its tokens."""

    def __init__(self, tokenizer: Any, *, quiet: bool = False) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.quiet, self.tokens, self.begin, self.times = quiet, [], perf_counter(), []

    def put(self, value: Tensor) -> None:
        """Take the prompt, then a token at a time."""
        if not self.next_tokens_are_prompt:
            self.tokens += value.tolist()
            self.times.append(perf_counter() - self.begin)
        super().put(value)

    @property
    def rate(self) -> float | None:
        """Tokens a second after the first one; None if there are none."""
        return (len(self.times) - 1) / (self.times[-1] - self.times[0]) if len(self.times) > 1 else None

    def speed(self) -> str:
        """How many tokens there are, and how fast they came."""
        first = f": the first after {self.times[0]:.1f} s" if self.times else ""
        rate = f", then {self.rate:.1f} tokens/s" if self.rate else ""
        return f"{len(self.tokens):,} new tokens in {perf_counter() - self.begin:.1f} s{first}{rate}"

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Take whole words."""
        if not self.quiet:
            print(text, flush=True, end="\n" if stream_end else "")
