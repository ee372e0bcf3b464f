"""Tasks that ask for the most frequent words of a long list."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import numpy as np

from longrope.data.tokenize import encode_within
from longrope.tasks.prompts import Prompt, PromptRequest


@dataclass(frozen=True)
class WordListDraft:
    """The strings of one trial of a word-list task.

    Args:
        intro: Text before the list.
        words: Distinct words of the list, each with the blank before it.
        counts: Function of a size n that returns how often each word appears; every count grows with n.
        least: Smallest size with an unambiguous answer.
        question: Text after the list.
        prefix: Beginning of the answer, which the model continues.
        answers: The most frequent words.
        numbered: Whether each word of the list has its number before it. Words that do not appear at the largest size
            then fill the list up to the length, else the first word does.
    """

    intro: str
    words: tuple[str, ...]
    counts: Callable[[int], np.ndarray]
    least: int
    question: str
    prefix: str
    answers: tuple[str, ...]
    numbered: bool = False


@dataclass(frozen=True)
class EncodedList:
    """A draft in tokens; ``label_ends[n]`` is the number of tokens of the first n numbers of the list."""

    draft: WordListDraft
    intro: np.ndarray
    words: list[np.ndarray]
    ending: np.ndarray
    labels: list[np.ndarray]
    label_ends: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """The tokens of each word."""
        return np.array([len(word) for word in self.words])

    def size(self, n: int) -> int:
        """Return the tokens of the list of size n."""
        counts = self.draft.counts(n)
        return int(counts @ self.sizes + self.label_ends[min(counts.sum(), len(self.labels))])


@dataclass(frozen=True)
class WordListTask:
    """A task that lists words in random order, as many as fit.

    Args:
        draft: Function of a random generator and the length in tokens that returns the strings of a trial.
        room: Tokens to reserve for the generated answer.
    """

    draft: Callable[[np.random.Generator, int], WordListDraft]
    room: int

    def prompts(self, request: PromptRequest) -> list[Prompt]:
        """Return a prompt for each trial, of exactly the requested length where a word of the missing size exists."""
        rngs = request.generators()
        drafts = [self.draft(rng, request.length) for rng in rngs]
        most = max(request.length // 2, *(draft.counts(draft.least).sum() for draft in drafts))
        labels = encode_within(request.tokenizer, numbered(most))
        encoded = [self._encode(request, draft, labels) for draft in drafts]
        request.check_length(self.room + max(map(_least_size, encoded)))
        return [
            Prompt(
                self._tokens(request, rng, e), e.draft.answers, (), None, self.room, chat=request.template is not None
            )
            for rng, e in zip(rngs, encoded, strict=True)
        ]

    def _encode(self, request: PromptRequest, draft: WordListDraft, labels: list[np.ndarray]) -> EncodedList:
        intro, *words = encode_within(request.tokenizer, [draft.intro, *draft.words])
        labels = labels if draft.numbered else [np.zeros(0, dtype=np.int64)] * (2 * len(labels))
        label_ends = np.cumsum([0, *map(len, labels)])
        return EncodedList(draft, intro, words, request.ending(draft.question, draft.prefix), labels, label_ends)

    def _tokens(self, request: PromptRequest, rng: np.random.Generator, encoded: EncodedList) -> np.ndarray:
        available = request.length - len(request.opening) - self.room - len(encoded.intro) - len(encoded.ending)
        counts = _fitting_counts(encoded, available)
        order = rng.permutation(np.repeat(np.arange(len(encoded.words)), counts))
        listed = chain.from_iterable(
            (label, encoded.words[i]) for label, i in zip(encoded.labels, order.tolist(), strict=False)
        )
        return np.concatenate([request.opening, encoded.intro, *listed, encoded.ending])


def numbered(count: int) -> list[str]:
    """Return the labels of a list: 1., 2. and so on, each with the blank before it but for the first."""
    return [f"{' ' if i > 1 else ''}{i}." for i in range(1, count + 1)]


def _fitting_counts(encoded: EncodedList, available: int) -> np.ndarray:
    """Return how often each word appears in the longest list of at most ``available`` tokens."""
    largest = bisect_right(range(available), available, key=encoded.size) - 1
    if not encoded.draft.numbered:
        counts = encoded.draft.counts(largest)
        counts[0] += (available - encoded.size(largest)) // len(encoded.words[0])
        return counts
    sizes = [n for n in (largest, largest - 1) if n >= encoded.draft.least]  # the rest of the largest may be too small
    filled = [_fill(encoded, encoded.draft.counts(n), available - encoded.size(n)) for n in sizes]
    return min(filled, key=lambda counts_and_rest: counts_and_rest[1])[0]


def _fill(encoded: EncodedList, counts: np.ndarray, rest: int) -> tuple[np.ndarray, int]:
    """Return the counts with words that do not appear yet added once each, and the tokens that are still missing."""
    unused = np.flatnonzero(counts == 0)
    while rest and len(unused):
        label = len(encoded.labels[counts.sum()])
        after = rest - label - encoded.sizes[unused]
        fitting = np.flatnonzero((after == 0) | (after > label))  # no rest, or one that another word fills
        if not len(fitting):
            break
        chosen = fitting[after[fitting].argmin()]
        rest, counts[unused[chosen]] = int(after[chosen]), 1
        unused = np.delete(unused, chosen)
    return counts, rest


def _least_size(encoded: EncodedList) -> int:
    """Return the tokens of the shortest prompt, without its room."""
    return len(encoded.intro) + len(encoded.ending) + encoded.size(encoded.draft.least)
