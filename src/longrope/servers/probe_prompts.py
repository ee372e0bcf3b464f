"""The prompts of a probe: real texts, and texts that end in a question about their first line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from longrope.errors import LongRopeError
from longrope.tasks.registry import make_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STEPS = 16  # tokens that a server generates after each prompt
NEEDLES = "recall"  # task of the prompts for a server without log-probabilities


@dataclass(frozen=True)
class ProbePrompt:
    """A prompt that is sent to a server as text.

    Args:
        length: Length in tokens that it is for, with the tokens to generate.
        text: The text.
        tokens: Token ids that the checkpoint's tokenizer makes of the text.
        answers: Strings that the continuation should hold; empty if the prompt asks nothing.
    """

    length: int
    text: str
    tokens: tuple[int, ...]
    answers: tuple[str, ...] = ()


def probe_lengths(original: int, length: int) -> list[int]:
    """Return the lengths to probe in tokens: half of L0, L0, just beyond L0, and its doubles up to L.

    >>> probe_lengths(256, 2048)
    [128, 256, 288, 512, 1024, 2048]
    """
    doubles = [original * 2**power for power in range(1, (length // original).bit_length())]
    lengths = {original // 2, original, original + 2 * STEPS, *doubles, length}
    return sorted(tokens for tokens in lengths if tokens <= length)


def check_lengths(lengths: Sequence[int], longest: int) -> None:
    """Refuse lengths that cannot be probed.

    Args:
        lengths: Lengths in tokens, ascending.
        longest: L of the checkpoint in tokens.

    Raises:
        LongRopeError: A length leaves no room for a prompt, or is beyond L.
    """
    if lengths[0] < 4 * STEPS:
        raise LongRopeError(f"lengths = {lengths[0]}: too short for a prompt. Use at least {4 * STEPS} tokens.")
    if lengths[-1] > longest:
        raise LongRopeError(
            f"lengths = {lengths[-1]}: the checkpoint is made for {longest} tokens. Use at most that length."
        )


def text_prompts(
    tokenizer: PreTrainedTokenizerBase, documents: np.ndarray, lengths: Sequence[int]
) -> list[ProbePrompt]:
    """Return a prompt of every document at every length, each with a beginning of its own.

    Prompts that began alike would let a server reuse keys that it computed with other factors.

    Args:
        tokenizer: Tokenizer of the checkpoint.
        documents: Token ids, ``(documents, at least the longest length and one for each length)``.
        lengths: Lengths in tokens.
    """
    return [
        _of_tokens(tokenizer, document[start : start + length - STEPS], length)
        for start, length in enumerate(lengths)
        for document in documents
    ]


def needle_prompts(
    tokenizer: PreTrainedTokenizerBase, documents: np.ndarray, lengths: Sequence[int]
) -> list[ProbePrompt]:
    """Return prompts as `text_prompts`, whose first line holds the answer to a question at the end, where it fits."""
    prompts = []
    for seed, length in enumerate(lengths):
        try:
            questions = make_prompts(
                NEEDLES,
                tokenizer,
                length=length - STEPS,
                trials=len(documents),
                texts=documents,
                depths=[0.0],
                seed=seed,
            )
        except LongRopeError:  # too short for a question
            prompts += text_prompts(tokenizer, documents, [length])
            continue
        prompts += [_of_tokens(tokenizer, prompt.tokens, length, prompt.answers) for prompt in questions]
    return prompts


def _of_tokens(
    tokenizer: PreTrainedTokenizerBase, tokens: np.ndarray, length: int, answers: tuple[str, ...] = ()
) -> ProbePrompt:
    """Return the prompt whose text has at most ``length - STEPS`` tokens, without leading ones that do not fit."""
    most = length - STEPS
    tokens = tokens[-most:]
    while True:
        decoded = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        text = str(decoded).strip("\N{REPLACEMENT CHARACTER}")
        ids = tokenizer(text)["input_ids"]
        if len(ids) <= most or len(tokens) < 2:
            return ProbePrompt(length, text, tuple(ids), answers)
        tokens = tokens[len(ids) - most :]
