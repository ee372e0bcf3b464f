"""Drafts of RULER's tasks (Hsieh et al., arXiv 2404.06654): the same needles and questions in another wording."""

from __future__ import annotations

import numpy as np

from longrope.data.key_value_lines import CODAS, ONSETS, VOWELS, WORDS
from longrope.tasks.needle_task import NeedleDraft
from longrope.tasks.word_list_task import WordListDraft

CHOICES = 4  # options of a forced choice: the right answer and three wrong ones of its form


def passkey(rng: np.random.Generator, depth: float) -> NeedleDraft:
    """Draft a passkey trial: one number of five digits."""
    key, *wrong = _numbers(rng, CHOICES, digits=5)
    return NeedleDraft(
        "Somewhere in the text below stands a pass key. Remember it: you will be asked for it.\n",
        (f"\nThe pass key is {key}.\n",),
        (depth,),
        "\n\nWhat is the pass key? The pass key is",
        (key,),
        tuple(wrong),
    )


def niah(rng: np.random.Generator, depth: float, *, keys: int = 1, values: int = 1, queries: int = 1) -> NeedleDraft:
    """Draft a needle-in-a-haystack trial: numbers of seven digits under key words; the answers are all numbers of some.

    Args:
        rng: Generator of the words, numbers and depths.
        depth: Depth of the first needle, from 0 to 1.
        keys: Number of key words.
        values: Numbers under each key word.
        queries: Number of key words in the question.
    """
    picked = rng.choice(WORDS.split(), size=(keys, 2), replace=False)
    names = [f"{first}-{second}" for first, second in picked]
    numbers = _numbers(rng, max(keys * values, CHOICES))
    pairs = [(name, number) for name in names for number in [numbers.pop(0) for _ in range(values)]]
    answers = tuple(number for _, number in pairs[: queries * values])
    wrong = [number for _, number in pairs[1:]] + numbers  # other keys' numbers are the hardest to tell apart
    single = len(answers) == 1
    queried = " and ".join(names[:queries])
    asks, says = ("What is the", "number for") if single else ("What are all", "numbers for")
    return NeedleDraft(
        "Secret numbers are hidden in the text below. Remember them: you will be asked for some.\n",
        tuple(f"\nA secret number for {name} is {number}.\n" for name, number in pairs),
        (depth, *rng.random(len(pairs) - 1)),
        f"\n\n{asks} secret {says} {queried}? The secret {says} {queried} {'is' if single else 'are'}",
        answers,
        tuple(wrong) if single else (),
        tuple(names),
    )


def variables(rng: np.random.Generator, _: float, *, chains: int = 2, hops: int = 4) -> NeedleDraft:
    """Draft a variable-tracking trial: chains of assignments in order; the answers are the first chain's variables."""
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
        keys=(*values, *names.ravel().tolist()),
    )


def common_words(rng: np.random.Generator, length: int) -> WordListDraft:
    """Draft a common-words trial: ten words appear 30 times, others 3 times; below 4,096 tokens 10 times and once."""
    often, seldom = (30, 3) if length >= 4096 else (10, 1)
    words = invented(rng, 20 + length // (2 * seldom))
    rank = np.arange(len(words)) - 10

    def counts(others: int) -> np.ndarray:
        return np.where(rank < 0, often, np.where(rank < others, seldom, 0))

    return WordListDraft(
        "Below is a list of words. A few of them appear much more often than the others.\n",
        tuple(f" {word}" for word in words),
        counts,
        10,
        "\n\nWhich 10 words appear most often in the list? The 10 most common words are",
        tuple(words[:10]),
    )


def frequent_words(rng: np.random.Generator, _: int) -> WordListDraft:
    """Draft a frequent-words trial: coded words whose frequency falls with the square of their rank (Zipf).

    Dots are the most frequent word; the answers are the next three.
    """
    words = ["...", *invented(rng, 499)]  # the last of them appear in millions of words only
    shares = 1 / np.arange(1.0, len(words) + 1) ** 2
    shares /= shares.sum()
    return WordListDraft(
        "Below is a coded text. Find out which of its words appear most often; the dots do not count.\n",
        tuple(f" {word}" for word in words),
        lambda total: np.floor(total * shares).astype(int),
        int(np.ceil(1 / (shares[3] - shares[4]))),  # from here on the third and the fourth word never tie
        "\n\nWhich three words appear most often in the coded text? The three most frequent words are",
        tuple(words[1:4]),
    )


def invented(rng: np.random.Generator, count: int) -> list[str]:
    """Return distinct words of six letters; a larger count begins with the same words."""
    kinds = [ONSETS, VOWELS, CODAS] * 2
    sizes = [len(letters) for letters in kinds]
    places = np.unravel_index(rng.permutation(int(np.prod(sizes)))[:count], sizes)
    return ["".join(letters[i] for letters, i in zip(kinds, word, strict=True)) for word in zip(*places, strict=True)]


def _numbers(rng: np.random.Generator, count: int, *, digits: int = 7) -> list[str]:
    least = 10 ** (digits - 1)
    return [str(least + number) for number in rng.choice(9 * least, size=count, replace=False)]
