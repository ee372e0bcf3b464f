"""Wordings of a planted line and of the question for it, with random keys and values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ONSETS, VOWELS, CODAS = "bdfgklmnprstvz", "aeiou", "klmnrst"
WORDS = (
    "apple arrow beach bird blue boat bread brick cloud coral crown dance desert dream eagle earth fire "
    "flute forest frost garden glass gold grape green hand harbor honey horse house ice island jade king lake lamp "
    "leaf lemon light lion maple marble moon moss music night north ocean olive orange paper pearl pine plum "
    "queen rain red river road rose salt sand sea shell ship silver sky snow song south star stone storm sugar "
    "summer sun swan tea tiger tower train tree violet wall water west wheat white wind winter wolf wood yellow"
)
DIGITS = 4, 8  # fewest and most of a number


@dataclass(frozen=True)
class Wording:
    """Text around the value of a planted line, and of the question for it; ``{}`` is the key.

    Args:
        line: Text before the value.
        end: Text after it.
        question: Text before the answer, after which a line break follows.
        numbers: Whether values are numbers, and keys sometimes two words; else values are two words.
    """

    line: str
    end: str
    question: str
    numbers: bool = False

    def draw_keys(self, rng: np.random.Generator, count: int) -> list[str]:
        """Return different keys: invented words of six letters, or two words with a hyphen."""
        if not self.numbers or rng.random() < 0.5:
            return make_keys(rng, count)
        pairs = rng.permutation(len(WORDS.split()))
        words = [WORDS.split()[i] for i in pairs]
        return [f"{words[i]}-{words[-1 - i]}" for i in range(count)]

    def draw_values(self, rng: np.random.Generator, count: int) -> list[str]:
        """Return a value for each key, with a blank before it."""
        if not self.numbers:
            return [f" {first} {second}" for first, second in rng.choice(WORDS.split(), size=(count, 2))]
        digits = int(rng.integers(*DIGITS, endpoint=True))
        return [f" {number}" for number in rng.integers(10 ** (digits - 1), 10**digits, size=count)]


KEY_VALUE = Wording("\n{} =", "\n", "\n{} =")  # the question repeats the line
WORDINGS = (
    KEY_VALUE,
    Wording("\nPlease note: the code of {} is", ".\n", "\nWhat is the code of {}? The code of {} is", numbers=True),
    Wording("\nMost of all {} likes", ".\n", "\nQuestion: What does {} like most?\nAnswer:"),
    Wording('\n"{}":', ",\n", '\nThe value of "{}" is', numbers=True),
    Wording("\nCall extension", " to reach {}.\n", "\nQ: Which extension reaches {}?\nA:", numbers=True),
    Wording("\nThe house of {} is beside the", ".\n", "\nAccording to the text above, the house of {} is beside the"),
)


def make_keys(rng: np.random.Generator, count: int) -> list[str]:
    """Return different keys: invented words of six letters."""
    keys: dict[str, None] = {}
    while len(keys) < count:
        keys[_key(rng)] = None
    return list(keys)


def _key(rng: np.random.Generator) -> str:
    return "".join(letters[rng.integers(len(letters))] for letters in (ONSETS, VOWELS, CODAS) * 2)
