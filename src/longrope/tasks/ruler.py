"""What RULER's tasks hide and ask (Hsieh et al., arXiv 2404.06654), in our own words, before it has a length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from longrope.data.key_value_lines import CODAS, ONSETS, VOWELS, WORDS

CHOICES = 4  # of a forced choice: the right one and three of its form


@dataclass(frozen=True)
class NeedleDraft:
    """Lines to plant at depths between 0 and 1, what stands before and after the text, and what is wanted."""

    intro: str
    lines: tuple[str, ...]
    depths: tuple[float, ...]
    question: str
    answers: tuple[str, ...]
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True)
class WordListDraft:
    """Words, the most frequent of which are wanted; ``counts(n)`` of each grow with n, which is at least ``least``."""

    intro: str
    words: tuple[str, ...]
    counts: Callable[[int], np.ndarray]
    least: int
    question: str
    answers: tuple[str, ...]


def passkey(rng: np.random.Generator, depth: float) -> NeedleDraft:
    """A number of five digits."""
    key, *wrong = _numbers(rng, CHOICES, digits=5)
    return NeedleDraft(
        "Somewhere in the text below stands a pass key. Remember it: you will be asked for it.\n",
        (f"\nThe pass key is {key}.\n",),
        (depth,),
        "\n\nWhat is the pass key? The pass key is",
        (key,),
        tuple(wrong),
    )


def niah(rng: np.random.Generator, depth: float, *, keys: int = 1, values: int = 1, asked: int = 1) -> NeedleDraft:
    """Needles in a haystack: numbers of seven digits under some key words; all numbers of the asked ones are wanted."""
    picked = rng.choice(WORDS.split(), size=(keys, 2), replace=False)
    names = [f"{first}-{second}" for first, second in picked]
    numbers = _numbers(rng, max(keys * values, CHOICES))
    pairs = [(name, number) for name in names for number in [numbers.pop(0) for _ in range(values)]]
    answers = tuple(number for _, number in pairs[: asked * values])
    wrong = [number for _, number in pairs[1:]] + numbers  # other keys' numbers are the hardest to tell apart
    single, wanted = len(answers) == 1, " and ".join(names[:asked])
    asks, says = ("What is the", "number for") if single else ("What are all", "numbers for")
    return NeedleDraft(
        "Secret numbers are hidden in the text below. Remember them: you will be asked for some.\n",
        tuple(f"\nA secret number for {name} is {number}.\n" for name, number in pairs),
        (depth, *rng.random(len(pairs) - 1)),
        f"\n\n{asks} secret {says} {wanted}? The secret {says} {wanted} {'is' if single else 'are'}",
        answers,
        tuple(wrong) if single else (),
    )


def variables(rng: np.random.Generator, _: float, *, chains: int = 2, hops: int = 4) -> NeedleDraft:
    """Variable tracking: chains of assignments in their order; the variables of the first chain are wanted."""
    names = np.array([word.upper() for word in invented(rng, chains * (hops + 1))]).reshape(chains, hops + 1)
    values = _numbers(rng, chains, digits=5)
    sources = [[value, *(f"VAR {name}" for name in row[:-1])] for value, row in zip(values, names, strict=True)]
    queues = [list(zip(row, source, strict=True)) for row, source in zip(names, sources, strict=True)]
    turns = rng.permutation(np.repeat(np.arange(chains), hops + 1))
    assignments = [queues[turn].pop(0) for turn in turns]
    return NeedleDraft(
        "Assignments to variables are hidden in the text below. Follow them: you will be asked about a value.\n",
        tuple(f"\nVAR {name} = {source}\n" for name, source in assignments),
        tuple(np.sort(rng.random(len(turns)))),
        f"\n\nWhich {hops + 1} variables have the value {values[0]}? The variables with the value {values[0]} are",
        tuple(names[0].tolist()),
    )


def common_words(rng: np.random.Generator, length: int) -> WordListDraft:
    """Ten words that appear 30 times among words that appear three times; 10 times and once below 4,096 tokens."""
    often, seldom = (30, 3) if length >= 4096 else (10, 1)
    words = invented(rng, 20 + length // (2 * seldom))
    place = np.arange(len(words)) - 10

    def counts(others: int) -> np.ndarray:
        return np.where(place < 0, often, np.where(place < others, seldom, 0))

    return WordListDraft(
        "Below is a list of words. A few of them appear much more often than the others.\n",
        tuple(f" {word}" for word in words),
        counts,
        10,
        "\n\nWhich 10 words appear most often in the list? The 10 most common words are",
        tuple(words[:10]),
    )


def frequent_words(rng: np.random.Generator, _: int) -> WordListDraft:
    """Coded words whose frequency falls with the square of their rank (Zipf); dots are the first, the next 3 wanted."""
    words = ["...", *invented(rng, 499)]  # the last of them appear in millions of words only
    shares = 1 / np.arange(1.0, len(words) + 1) ** 2
    shares /= shares.sum()
    return WordListDraft(
        "Below is a coded text. Find out which of its words appear most often; the dots do not count.\n",
        tuple(f" {word}" for word in words),
        lambda total: np.floor(total * shares).astype(int),
        int(np.ceil(1 / (shares[3] - shares[4]))),  # so many that the third and the fourth word never tie
        "\n\nWhich three words appear most often in the coded text? The three most frequent words are",
        tuple(words[1:4]),
    )


def invented(rng: np.random.Generator, count: int) -> list[str]:
    """Distinct words of six letters; more of them begin with the same ones."""
    kinds = [ONSETS, VOWELS, CODAS] * 2
    sizes = [len(letters) for letters in kinds]
    places = np.unravel_index(rng.permutation(int(np.prod(sizes)))[:count], sizes)
    return ["".join(letters[i] for letters, i in zip(kinds, word, strict=True)) for word in zip(*places, strict=True)]


def _numbers(rng: np.random.Generator, count: int, *, digits: int = 7) -> list[str]:
    least = 10 ** (digits - 1)
    return [str(least + number) for number in rng.choice(9 * least, size=count, replace=False)]
