"""The prompt of a retrieval task, and the interface of a task that makes prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

from longrope.data.tokenize import encode_within
from longrope.errors import LongRopeError, unknown
from longrope.tasks.chat import CHAT, ChatFormat, chat_format

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Prompt:
    """A long text that ends in a question, with its answers.

    Args:
        tokens: Token ids of the prompt, int64, at most ``(length - room,)``.
        answers: All strings that the model should generate.
        wrong: Wrong answers of the same form, for a forced choice; empty where there are several right ones.
        depth: Place of the needle in the text, from 0 to 1; None for several needles, or a place that is not known.
        room: Tokens reserved for the generated answer; with 0 none is generated.
        shared: Number of leading tokens that all questions of one document share; 0 for a document with one question.
        any_answer: Whether one of the answers is enough.
        chat: Whether the prompt is in the format of a chat template.
        own_haystack: Whether a document of the user is in place of the haystack that the task's definition names.
        drawn: Whether the depth was drawn at random, not requested.

    Raises:
        LongRopeError: If the shared tokens leave no token to the question.
    """

    tokens: np.ndarray
    answers: tuple[str, ...]
    wrong: tuple[str, ...]
    depth: float | None
    room: int
    shared: int = 0
    any_answer: bool = False
    chat: bool = False
    own_haystack: bool = False
    drawn: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.shared < len(self.tokens):
            raise LongRopeError(
                f"shared = {self.shared}: not below the {len(self.tokens)} tokens of the prompt. Leave a question."
            )

    @property
    def document(self) -> bytes | None:
        """Key that the questions of one document have in common; None for a document with one question."""
        return self.tokens[: self.shared].tobytes() if self.shared else None

    def score(self, text: str) -> float:
        """Return the share of the answers that occur in a text, or 1 if one does where one is enough."""
        return string_match(text, self.answers, any_answer=self.any_answer)


def string_match(text: str, answers: Sequence[str], *, any_answer: bool = False) -> float:
    """Return the share of the answers that occur in a text, in any case (RULER's string_match_all, arXiv 2404.06654).

    Args:
        text: Generated text.
        answers: All right answers.
        any_answer: Whether one of them is enough for 1 (RULER's string_match_part).

    >>> string_match("They are KAPPA and 12.", ["kappa", "12", "13", "14"])
    0.5
    >>> string_match("They are KAPPA and 12.", ["kappa", "13"], any_answer=True)
    1.0
    """
    matches = [answer.lower() in text.lower() for answer in answers]
    return float(any(matches)) if any_answer else sum(matches) / len(matches)


@dataclass(frozen=True)
class PromptRequest:
    """A request for prompts of one task and length.

    Args:
        task: Name of the task.
        tokenizer: Tokenizer of the model.
        length: Length of a prompt with its room, in tokens.
        trials: Number of prompts.
        texts: Token ids of real documents, for tasks that hide needles in them, ``(documents, at least length)``.
        depths: Depths of the needle, from 0 to 1, in turn; random ones if None. Tasks with several needles have the
            first one there.
        seed: Seed of all random choices.
        questions: Number of prompts that share a document; the last document may have fewer. Above 1, a document holds
            the needles of that many prompts, and `longrope.tasks.scoring.score_prompts` reads it once for all of them.
        chat: Whether prompts are in the tokenizer's chat template: ``on``, ``off``, or ``auto``, on if there is one.
        ruler_data: Folder of RULER's essays and questions, or ``hub``, which downloads them. Without it the texts
            replace the essays, and the prompts are marked ``own_haystack``.

    Raises:
        LongRopeError: If a number is out of range.
    """

    task: str
    tokenizer: PreTrainedTokenizerBase
    length: int
    trials: int
    texts: np.ndarray | None = None
    depths: Sequence[float] | None = None
    seed: int = 0
    questions: int = 1
    chat: str = "auto"
    ruler_data: str | None = None

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise LongRopeError(f"trials = {self.trials}: not at least 1. Ask for one trial or more.")
        if self.questions < 1:
            raise LongRopeError(
                f"questions = {self.questions}: not at least 1. Ask for one question a document or more."
            )
        for depth in self.depths or ():
            if not 0 <= depth <= 1:
                raise LongRopeError(f"depths = {depth}: not between 0 and 1, the beginning and the end. Give a share.")
        if self.chat not in CHAT:
            raise unknown("chat", self.chat, CHAT)

    @cached_property
    def start(self) -> np.ndarray:
        """Return the tokens that the tokenizer puts before every text."""
        first = self.tokenizer("a")["input_ids"][:1]
        return np.array(first if first == [self.tokenizer.bos_token_id] else [], dtype=np.int64)

    @cached_property
    def template(self) -> ChatFormat | None:
        """Return the text around the user's message; None for plain prompts."""
        return chat_format(self.tokenizer, self.chat)

    @cached_property
    def opening(self) -> np.ndarray:
        """Return the tokens before every prompt: the start tokens, or the chat template's up to the user's message."""
        if self.template is None:
            return self.start
        return np.array(self.tokenizer(self.template.before, add_special_tokens=False)["input_ids"], dtype=np.int64)

    def ending(self, question: str, prefix: str) -> np.ndarray:
        """Return the tokens after a haystack.

        Args:
            question: Text after the haystack, the end of the user's message.
            prefix: Beginning of the answer, which the model continues.
        """
        if self.template is None:
            return encode_within(self.tokenizer, [f"{question} {prefix}" if prefix else question])[0]
        return np.concatenate(encode_within(self.tokenizer, [question, self.template.after + prefix]))

    @property
    def documents(self) -> list[range]:
        """The trials of each document; those of the last one may exceed the number of prompts."""
        firsts = range(0, self.trials, self.questions)
        return [range(first, first + self.questions) for first in firsts]

    def depth(self, trial: int) -> float | None:
        """Return the requested depth of a trial; None for a random one."""
        return self.depths[trial % len(self.depths)] if self.depths else None

    def text(self, number: int) -> np.ndarray:
        """Return the tokens of a document by its number, without the tokenizer's start tokens.

        Raises:
            LongRopeError: If there are no documents, or they are too short.
        """
        if self.texts is None or not len(self.texts) or self.texts.shape[1] < self.length:
            shape = None if self.texts is None else self.texts.shape
            raise LongRopeError(
                f"texts = {shape}: task {self.task} at length {self.length} hides its needles in real documents. "
                f"Give token ids of the shape (documents, at least {self.length})."
            )
        count, depths = len(self.texts), len(self.depths or (None,))
        if self.questions == 1 and math.gcd(count, depths) > 1:  # else a depth would always meet the same documents
            number += number // math.lcm(count, depths)
        text, size = self.texts[number % count], len(self.start)
        return text[size:] if np.array_equal(text[:size], self.start) else text

    def generators(self) -> list[np.random.Generator]:
        """Return a generator for each trial of `documents`, so that none depends on the draws of another document."""
        return np.random.default_rng(self.seed).spawn(len(self.documents) * self.questions)

    def check_length(self, least: int) -> None:
        """Raise an error if fewer tokens are requested than a prompt needs.

        Args:
            least: Tokens that the prompt and its room need, without the opening.
        """
        least += len(self.opening)
        if self.length < least:
            raise LongRopeError(
                f"length = {self.length}: too short for task {self.task} with this tokenizer. Use at least {least}."
            )

    def not_shareable(self) -> LongRopeError:
        """Return the error for a task whose questions cannot share a document."""
        return LongRopeError(
            f"questions = {self.questions}: task {self.task} has one question a document. "
            "Set questions = 1, or ask by key, as recall and niah_single_1 do."
        )


class Task(Protocol):
    """A kind of prompt that tests retrieval from a long text; a row of `TASKS`."""

    def prompts(self, request: PromptRequest) -> list[Prompt]:
        """Return ``request.trials`` prompts that have, with their room, at most ``request.length`` tokens each."""
        ...
