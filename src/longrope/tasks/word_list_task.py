"""Tasks that ask for the most frequent words of a long list."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from longrope.tasks.haystack import encode_within, noise
from longrope.tasks.prompts import Prompt, PromptRequest


@dataclass(frozen=True)
class WordListDraft:
    """The strings of one trial of a word-list task.

    Args:
        intro: Text before the list.
        words: Distinct words of the list, each with the blank before it.
        counts: Function of a size n that returns how often each word appears; every count grows with n.
        least: Smallest size with an unambiguous answer.
        question: Text after the list, which the answer follows.
        answers: The most frequent words.
    """

    intro: str
    words: tuple[str, ...]
    counts: Callable[[int], np.ndarray]
    least: int
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class WordListTask:
    """A task that lists words in random order, as many as fit.

    Args:
        draft: Function of a random generator and the length in tokens that returns the strings of a trial.
        room: Tokens to reserve for the generated answer.
    """

    draft: Callable[[np.random.Generator, int], WordListDraft]
    room: int
    needs_texts: bool = False

    def prompts(self, request: PromptRequest) -> list[Prompt]:
        """Return a prompt for each trial, of exactly the requested length."""
        rngs = request.generators()
        drafts = [self.draft(rng, request.length) for rng in rngs]
        encoded = [encode_within(request.tokenizer, [draft.intro, draft.question, *draft.words]) for draft in drafts]
        request.check_length(self.room + max(map(_least_size, drafts, encoded)))
        return [
            Prompt(self._tokens(request, rng, draft, strings), draft.answers, (), None, self.room)
            for rng, draft, strings in zip(rngs, drafts, encoded, strict=True)
        ]

    def _tokens(
        self, request: PromptRequest, rng: np.random.Generator, draft: WordListDraft, encoded: list[np.ndarray]
    ) -> np.ndarray:
        intro, question, *words = encoded
        sizes = _lengths(words)
        available = request.length - len(request.start) - self.room - len(intro) - len(question)
        largest = bisect_right(range(available), available, key=lambda n: draft.counts(n) @ sizes) - 1
        counts = draft.counts(largest)
        order = rng.permutation(np.repeat(np.arange(len(words)), counts))
        padding, _ = noise(request.tokenizer, available - int(counts @ sizes))
        return np.concatenate([request.start, padding, intro, *[words[i] for i in order], question])


def _least_size(draft: WordListDraft, encoded: list[np.ndarray]) -> int:
    """Return the tokens of the shortest prompt, without its room."""
    intro, question, *words = encoded
    return len(intro) + len(question) + int(draft.counts(draft.least) @ _lengths(words))


def _lengths(words: list[np.ndarray]) -> np.ndarray:
    return np.array([len(word) for word in words])
