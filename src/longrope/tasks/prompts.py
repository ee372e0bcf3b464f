"""The prompt of a retrieval task, and the interface of a task that makes prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from longrope.errors import LongRopeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Prompt:
    """A long text that ends in a question, with its answers.

    Args:
        tokens: Token ids of the prompt, int64 ``(length - room,)``.
        answers: All strings that the model should generate.
        wrong: Wrong answers of the same form, for a forced choice; empty where there are several right ones.
        depth: Place of the needle in the text, from 0 to 1; None for several needles, or a random place.
        room: Tokens reserved for the generated answer.
    """

    tokens: np.ndarray
    answers: tuple[str, ...]
    wrong: tuple[str, ...]
    depth: float | None
    room: int


@dataclass(frozen=True)
class PromptRequest:
    """A request for prompts of one task and length.

    Args:
        task: Name of the task, for error messages.
        tokenizer: Tokenizer of the model.
        length: Length of a prompt with its room, in tokens.
        trials: Number of prompts.
        texts: Token ids of real documents, ``(documents, at least length)``, or None.
        depths: Depths that the trials take in turn; random ones if None.
        seed: Seed of all random choices.
        start: Tokens that the tokenizer puts before every text.
    """

    task: str
    tokenizer: PreTrainedTokenizerBase
    length: int
    trials: int
    texts: np.ndarray | None
    depths: Sequence[float] | None
    seed: int
    start: np.ndarray

    def depth(self, trial: int) -> float | None:
        """Return the requested depth of a trial; None for a random one."""
        return self.depths[trial % len(self.depths)] if self.depths else None

    def text(self, trial: int) -> np.ndarray:
        """Return the document of a trial, without the tokenizer's start tokens.

        Raises:
            LongRopeError: If there are no documents, or they are too short.
        """
        if self.texts is None or not len(self.texts) or self.texts.shape[1] < self.length:
            shape = None if self.texts is None else self.texts.shape
            raise LongRopeError(
                f"texts = {shape}: task {self.task} at length {self.length} hides its needles in real documents. "
                f"Give token ids of the shape (documents, at least {self.length})."
            )
        text, size = self.texts[trial % len(self.texts)], len(self.start)
        return text[size:] if np.array_equal(text[:size], self.start) else text

    def generators(self) -> list[np.random.Generator]:
        """Return a generator for each trial, so that no trial depends on the draws of the one before."""
        return np.random.default_rng(self.seed).spawn(self.trials)

    def check_length(self, least: int) -> None:
        """Raise an error if fewer tokens are requested than a prompt needs.

        Args:
            least: Tokens that the prompt and its room need, without the start tokens.
        """
        least += len(self.start)
        if self.length < least:
            raise LongRopeError(
                f"length = {self.length}: too short for task {self.task} with this tokenizer. Use at least {least}."
            )


class Task(Protocol):
    """A kind of prompt that tests retrieval from a long text; a row of `TASKS`."""

    @property
    def needs_texts(self) -> bool:
        """Whether the prompts are made from real documents."""
        ...

    def prompts(self, request: PromptRequest) -> list[Prompt]:
        """Return ``request.trials`` prompts that have, with their room, ``request.length`` tokens each."""
        ...
