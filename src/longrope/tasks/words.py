"""Random words, numbers and identifiers for the tasks' needles."""

from __future__ import annotations

import string
import uuid
from functools import cache
from importlib import import_module

import numpy as np

from longrope.errors import LongRopeError

CHOICES = 4  # options of a forced choice: the right answer and three wrong ones of its form


@cache
def word_lists() -> tuple[list[str], list[str], list[str]]:
    """Return the adjectives, nouns and verbs of the package wonderwords, RULER's source of words.

    Raises:
        LongRopeError: If the package is missing.
    """
    try:
        wonderwords = import_module("wonderwords")
    except ImportError:
        raise LongRopeError(
            "wonderwords: not installed; RULER's words come from it. Run pip install wonderwords."
        ) from None
    words = wonderwords.RandomWord()
    adjectives, nouns, verbs = (
        sorted(set(words.filter(include_categories=[category]))) for category in ("adjective", "noun", "verb")
    )
    return adjectives, nouns, verbs


@cache
def all_words() -> list[str]:
    """Return every word of the lists once, sorted."""
    return sorted({word for words in word_lists() for word in words})


def compounds(rng: np.random.Generator, count: int) -> list[str]:
    """Return distinct key words: an adjective and a noun with a hyphen."""
    adjectives, nouns, _ = word_lists()
    names: dict[str, None] = {}
    while len(names) < count:
        names[f"{adjectives[rng.integers(len(adjectives))]}-{nouns[rng.integers(len(nouns))]}"] = None
    return [*names]


def numbers(rng: np.random.Generator, count: int, *, digits: int = 7) -> list[str]:
    """Return distinct numbers of that many digits."""
    least = 10 ** (digits - 1)
    return [str(least + number) for number in rng.choice(9 * least, size=count, replace=False)]


def uuids(rng: np.random.Generator, count: int) -> list[str]:
    """Return random UUIDs of version 4."""
    return [str(uuid.UUID(bytes=rng.bytes(16), version=4)) for _ in range(count)]


def letters(rng: np.random.Generator, count: int, size: int, alphabet: str = string.ascii_lowercase) -> list[str]:
    """Return distinct strings of random letters."""
    strings: dict[str, None] = {}
    while len(strings) < count:
        strings["".join(alphabet[i] for i in rng.integers(len(alphabet), size=size))] = None
    return [*strings]
