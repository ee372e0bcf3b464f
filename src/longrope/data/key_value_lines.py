"""Synthetic key-value recalls: `key = word word` lines planted in a text and repeated later in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from longrope.errors import LongRopeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ONSETS, VOWELS, CODAS = "bdfgklmnprstvz", "aeiou", "klmnrst"
WORDS = (
    "apple arrow beach bird blue boat bread brick cloud coral crown dance desert dream eagle earth fire "
    "flute forest frost garden glass gold grape green hand harbor honey horse house ice island jade king lake lamp "
    "leaf lemon light lion maple marble moon moss music night north ocean olive orange paper pearl pine plum "
    "queen rain red river road rose salt sand sea shell ship silver sky snow song south star stone storm sugar "
    "summer sun swan tea tiger tower train tree violet wall water west wheat white wind winter wolf wood yellow"
)


@dataclass(frozen=True)
class KeyValueText:
    """A text in which some planted lines are repeated: `tokens` (length,) int64, `answers` (length,) bool.

    `answers` marks the words of the repeated lines, the tokens that only the planted line can tell.
    """

    tokens: np.ndarray
    answers: np.ndarray


def make_key_value_text(
    background: np.ndarray,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rng: np.random.Generator,
    length: int,
    needles: int = 1,
    asked: int = 1,
    depth: float | None = None,
    asked_at: float = 1.0,
) -> KeyValueText:
    """Plant `needles` lines in a background of token ids and repeat `asked` of them; exactly `length` tokens.

    `asked_at` (0..1) is where in the background the repeats stand, 1 being the end; `depth` (0..1) is where in
    the background before them the first asked line is planted. Every other line, and that one too when
    `depth` is None, lies at a random place before the repeats. Raises LongRopeError when `length` is too short
    for the lines or longer than the background can fill.
    """
    _check(needles=needles, asked=asked, depth=depth, asked_at=asked_at)
    lines = _lines(tokenizer, rng, needles)
    repeats = [lines[i] for i in rng.permutation(asked)]
    room = length - sum(line.tokens.size for line in lines + repeats)
    if room < 0:
        raise LongRopeError(f"length={length} is too short for needles={needles}, asked={asked}: add {-room} tokens")
    if background.size < room:
        raise LongRopeError(f"background has {background.size} tokens but length={length} needs {room}: pass more text")
    question = round(asked_at * room)
    places = rng.integers(0, question, size=needles, endpoint=True)
    if depth is not None:
        places[0] = round(depth * question)
    planted = [
        KeyValueText(lines[i].tokens, np.zeros_like(lines[i].answers)) for i in np.argsort(places, kind="stable")
    ]
    cuts = [*np.sort(places), *[question] * asked]
    return _interleave(background[:room], planted + repeats, cuts)


def _check(*, needles: int, asked: int, depth: float | None, asked_at: float) -> None:
    if not 1 <= asked <= needles:
        raise LongRopeError(f"asked={asked} must lie between 1 and needles={needles}")
    for name, value in (("depth", depth), ("asked_at", asked_at)):
        if value is not None and not 0 <= value <= 1:
            raise LongRopeError(f"{name}={value} must lie between 0 and 1")


def _lines(tokenizer: PreTrainedTokenizerBase, rng: np.random.Generator, count: int) -> list[KeyValueText]:
    keys: dict[str, None] = {}
    while len(keys) < count:
        keys[_key(rng)] = None
    heads = [f"\n{key} =" for key in keys]
    tails = [f" {first} {second}" for first, second in rng.choice(WORDS.split(), size=(count, 2))]
    ids = tokenizer([*heads, *tails, "\n"], add_special_tokens=False)["input_ids"]
    return [_line(ids[i], ids[count + i], ids[-1]) for i in range(count)]


def _key(rng: np.random.Generator) -> str:
    return "".join(letters[rng.integers(len(letters))] for letters in (ONSETS, VOWELS, CODAS) * 2)


def _line(head: list[int], answer: list[int], end: list[int]) -> KeyValueText:
    answers = np.repeat([False, True, False], [len(head), len(answer), len(end)])
    return KeyValueText(np.array(head + answer + end, dtype=np.int64), answers)


def _interleave(background: np.ndarray, lines: list[KeyValueText], cuts: list[int]) -> KeyValueText:
    pieces = np.split(background, cuts)
    tokens, answers = [pieces[0]], [np.zeros(pieces[0].size, dtype=bool)]
    for line, piece in zip(lines, pieces[1:], strict=True):
        tokens += [line.tokens, piece]
        answers += [line.answers, np.zeros(piece.size, dtype=bool)]
    return KeyValueText(np.concatenate(tokens).astype(np.int64), np.concatenate(answers))
