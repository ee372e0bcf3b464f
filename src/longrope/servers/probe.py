"""Find the set of factors that a running server computes with at each length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from longrope.servers.answers import Answer, ask, difference_of_starts, read_answers
from longrope.servers.client import Server
from longrope.servers.completion import choose_form
from longrope.servers.distances import squared_distances
from longrope.servers.probe_prompts import needle_prompts, text_prompts
from longrope.servers.probed_length import ProbedLength
from longrope.servers.served_sets import ServedSets

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OnStep = Callable[[str, int, int, str], None]  # step, done, total, note


@dataclass(frozen=True)
class ServerProbe:
    """What a server computes, by length.

    Args:
        server: The server.
        has_logprobs: Whether the server gives log-probabilities; else the tokens that it chose were compared.
        starts: Beginning-of-text tokens that the server reads more than the checkpoint's tokenizer writes.
        length: L, the longest sequence in tokens that the checkpoint is made for.
        lengths: Result at each length, ascending.
    """

    server: Server
    has_logprobs: bool
    starts: int
    length: int
    lengths: tuple[ProbedLength, ...]

    @property
    def departures(self) -> list[str]:
        """Differences from the checkpoint, as sentences without a full stop."""
        sentences = []
        if self.starts:
            verb, more = ("reads", "does not write") if self.starts > 0 else ("leaves out", "writes")
            sentences.append(f"the server {verb} a beginning-of-text token, which the checkpoint's tokenizer {more}")
        for fault, rows in groupby(self.lengths, key=lambda row: row.fault):
            group = list(rows)
            if fault:
                lengths = f"{group[0].length:,}" + (f" to {group[-1].length:,}" if len(group) > 1 else "")
                details = f" ({group[-1].details})" if group[-1].details else ""
                sentences.append(f"at {lengths} tokens the server {fault}{details}")
        longest, refused = self.server.longest, any(row.refusal for row in self.lengths)
        if longest is not None and longest < self.length and not refused:
            sentences.append(f"the server takes {longest:,} tokens, and the checkpoint is made for {self.length:,}")
        return sentences

    @property
    def ok(self) -> bool:
        """Whether the server computes as the checkpoint is made for."""
        return not self.departures


def probe_server(
    server: Server,
    served: ServedSets,
    tokenizer: PreTrainedTokenizerBase,
    documents: np.ndarray,
    lengths: Sequence[int],
    *,
    open_model: Callable[[], PreTrainedModel],
    on_progress: OnStep,
) -> ServerProbe:
    """Ask a server for the tokens after texts of each length, and compare them with a checkpoint's.

    Args:
        server: Server to ask.
        served: Sets of factors to compare.
        tokenizer: Tokenizer of the checkpoint.
        documents: Token ids of real documents, ``(documents, at least the longest length and one for each length)``.
        lengths: Lengths in tokens, ascending.
        open_model: Function that loads the checkpoint, called once the server has answered.
        on_progress: Called with the name of the step, the amounts done and in all, and a note.

    Raises:
        LongRopeError: The server fails, refuses all lengths, or has another tokenizer.
    """
    texts = text_prompts(tokenizer, documents, lengths)
    form, first = choose_form(server, texts[0].text)
    has_logprobs = bool(first.top)
    prompts = texts if has_logprobs else needle_prompts(tokenizer, documents, lengths)
    replies = ask(server, prompts, form, lambda done, total: on_progress("ask", done, total, server.address))
    starts = difference_of_starts(prompts, replies, tokenizer)
    answers = read_answers(prompts, replies, tokenizer, starts)
    compared = [answer for answer in answers if answer.generated]
    squared = squared_distances(
        open_model(), served, compared, lambda done, total, note: on_progress("compare", done, total, note)
    )

    def row(length: int) -> ProbedLength:
        group: list[Answer] = [answer for answer in answers if answer.prompt.length == length]
        distances = [by_set for answer, by_set in zip(compared, squared, strict=True) if answer.prompt.length == length]
        return ProbedLength.of(length, served.expected(length), group, distances)

    return ServerProbe(server, has_logprobs, starts, served.extension.length, tuple(map(row, lengths)))
