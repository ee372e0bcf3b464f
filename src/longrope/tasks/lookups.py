"""Drafts of tasks that look something up: a pass key, a number, a value under a key, the words after others."""

from __future__ import annotations

import numpy as np

from longrope.tasks.needle_task import NeedleDraft
from longrope.tasks.words import CHOICES, all_words, numbers, uuids

JSON_TASK = "Extract the value corresponding to the specified key in the JSON object below.\n\n"
DEMOS = 2  # solved keys of json_kv
COPIED = 8  # words of the copy task's question, and as many of its answer


def passkey(rng: np.random.Generator, depth: float) -> NeedleDraft:
    """Draft a passkey trial (Mohtashami and Jaggi, arXiv 2305.16300): a number of five digits, in their words."""
    key, *wrong = numbers(rng, CHOICES, digits=5)
    return NeedleDraft(
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I will quiz you "
        "about the important information there.\n",
        (f"The pass key is {key}. Remember it. {key} is the pass key.\n",),
        (depth,),
        "\nWhat is the pass key?",
        (key,),
        tuple(wrong),
        prefix="The pass key is",
    )


def number_string(rng: np.random.Generator, depth: float) -> NeedleDraft:
    """Draft a number trial (InfiniteBench, arXiv 2402.13718): five digits, each repeated at once, in our words."""
    number, *wrong = ("".join(str(digit) * 2 for digit in rng.integers(1, 10, size=5)) for _ in range(CHOICES))
    wrong = [*dict.fromkeys(other for other in wrong if other != number)]
    return NeedleDraft(
        "A long number is hidden in the following text, which is otherwise irrelevant. Memorize it. I will quiz you "
        "about it afterwards.\n",
        (f"The sequence of digits is {number}. Remember it. {number} is the sequence of digits.\n",),
        (depth,),
        "\nWhat is the sequence of digits?",
        (number,),
        tuple(wrong),
        prefix="The sequence of digits is",
    )


def pair(key: str, value: str) -> str:
    """Return a line of a JSON object."""
    return f' "{key}": "{value}",\n'


def random_pair(rng: np.random.Generator) -> str:
    """Return a line of a JSON object with a random key and value."""
    return pair(*uuids(rng, 2))


def kv_retrieval(rng: np.random.Generator, depth: float) -> NeedleDraft:
    """Draft a key-value trial (Liu et al., arXiv 2307.03172; InfiniteBench): the value of one key of a JSON object."""
    key, value, *wrong = uuids(rng, CHOICES + 1)
    last = random_pair(rng).removesuffix(",\n")
    return NeedleDraft(
        f"{JSON_TASK}{{\n",
        (pair(key, value),),
        (depth,),
        f'{last}\n}}\n\nKey: "{key}"',
        (value,),
        tuple(wrong),
        (key,),
        prefix="The value associated with the specified key is:",
    )


def json_kv(rng: np.random.Generator, depth: float) -> NeedleDraft:
    """Draft a JSON trial (HELMET, arXiv 2410.02694): the value of a key, after two solved keys of the same object."""
    strings = uuids(rng, 2 * (DEMOS + 1) + CHOICES - 1)
    pairs = list(zip(strings[::2], strings[1::2], strict=False))[: DEMOS + 1]
    (key, value), *demos = pairs
    last = random_pair(rng).removesuffix(",\n")
    solved = "".join(f'Key: "{name}"\nCorresponding value: "{text}"\n\n' for name, text in demos)
    return NeedleDraft(
        f"{JSON_TASK}{{\n",
        tuple(pair(*entry) for entry in pairs),
        (depth, *rng.random(DEMOS)),
        f'{last}\n}}\n\n{solved}Key: "{key}"',
        (value,),
        tuple(strings[-(CHOICES - 1) :]),
        tuple(name for name, _ in pairs),
        prefix="Corresponding value:",
    )


def random_word(rng: np.random.Generator) -> str:
    """Return a random word with the blank before it."""
    words = all_words()
    return f" {words[rng.integers(len(words))]}"


def copy(rng: np.random.Generator, depth: float) -> NeedleDraft:
    """Draft a copy trial (n-gram lookup, Jelassi et al., arXiv 2402.01032): the words that follow eight others."""
    passages = ["".join(random_word(rng) for _ in range(COPIED)).strip() for _ in range(CHOICES + 1)]
    start, following, *wrong = passages
    return NeedleDraft(
        "Below is a list of words in random order. I will quiz you about the order afterwards.\n",
        (f" {start} {following}",),
        (depth,),
        f'\nQuestion: Which {COPIED} words follow directly after "{start}" in the list?',
        (following,),
        tuple(wrong),
        (start,),
        prefix="Answer: The words that follow are",
    )
