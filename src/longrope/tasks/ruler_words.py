"""Drafts of RULER's word-counting tasks, in RULER's words (Hsieh et al., arXiv 2404.06654; NVIDIA/RULER)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from longrope.tasks.word_list_task import WordListDraft, numbered
from longrope.tasks.words import all_words, compounds, letters

COMMON = 10
COMMON_INTRO = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n"
)
COMMON_QUESTION = "\nQuestion: What are the 10 most common words in the above list?"
COMMON_PREFIX = "Answer: The top 10 words that appear most often in the list are:"


def common_words(rng: np.random.Generator, length: int) -> WordListDraft:
    """Draft a common-words trial: ten words appear 30 times, others 3 times; below 4,096 tokens 6 times and once.

    A solved example of a short list comes first. Where the list of words is too short for the length, compounds of an
    adjective and a noun follow. The last words may appear fewer than three times, so that the length is exact.
    """
    often, seldom, example = (6, 1, (20, 3, 1)) if length < 4096 else (30, 3, (40, 10, 3))
    words = draw_words(rng, COMMON + length // (2 * seldom))
    rank = np.arange(len(words)) - COMMON

    def counts(others: int) -> np.ndarray:
        return np.where(rank < 0, often, np.where(rank < others, seldom, 0))

    return WordListDraft(
        f"{_common_example(rng, *example)}\n{COMMON_INTRO}",
        tuple(f" {word}" for word in words),
        counts,
        COMMON,
        COMMON_QUESTION,
        COMMON_PREFIX,
        tuple(words[:COMMON]),
        numbered=True,
    )


def draw_words(rng: np.random.Generator, count: int) -> list[str]:
    """Return distinct words in random order, compounds after the last."""
    known = all_words()
    words = [known[i] for i in rng.permutation(len(known))[:count]]
    return words + compounds(rng, count - len(words))


def _common_example(rng: np.random.Generator, count: int, often: int, seldom: int) -> str:
    """Return a solved task of that many words."""
    words = draw_words(rng, count)
    listed = words[:COMMON] * often + words[COMMON:] * seldom
    context = _join(rng.permutation(listed).tolist())
    return f"{COMMON_INTRO}{context}{COMMON_QUESTION} {COMMON_PREFIX}{_join(words[:COMMON])}"


def _join(words: Sequence[str]) -> str:
    return "".join(number + f" {word}" for number, word in zip(numbered(len(words)), words, strict=True))


def frequent_words(rng: np.random.Generator, length: int) -> WordListDraft:
    """Draft a frequent-words trial: coded words whose frequency falls with the square of their rank (Zipf).

    Dots are the most frequent word and fill the text up to its length. The answers are the next three words.
    """
    words = ["...", *letters(rng, max(COMMON, length // 50) - 1, 6)]
    shares = np.arange(1.0, len(words) + 1) ** -2 / (math.pi**2 / 6)  # zeta(2)
    return WordListDraft(
        "Read the following coded text and track the frequency of each coded word. Find the three most frequently "
        "appeared coded words.",
        tuple(f" {word}" for word in words),
        lambda total: np.floor(total * shares).astype(int),
        math.ceil(1 / (shares[3] - shares[4])),  # from here on the third and the fourth word never tie
        "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently "
        "appeared words in the above coded text?",
        "Answer: According to the coded text above, the three most frequently appeared words are:",
        tuple(words[1:4]),
    )
