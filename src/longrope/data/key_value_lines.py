"""Key-value texts: `key = word word` lines planted in a background text and repeated later in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from longrope.data.tokenize import encode_within
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
    """A text in which some of the planted lines are repeated.

    Args:
        tokens: Token ids, int64 ``(length,)``.
        answers: Mask of the words of the repeated lines, bool ``(length,)``: only the planted line predicts them.
    """

    tokens: np.ndarray
    answers: np.ndarray

    @property
    def planted(self) -> KeyValueText:
        """The same text without answers."""
        return KeyValueText(self.tokens, np.zeros_like(self.answers))


def make_key_value_text(
    background: np.ndarray,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rng: np.random.Generator,
    length: int,
    needles: int = 1,
    queries: int = 1,
    depth: float | None = None,
    query_depth: float = 1.0,
) -> KeyValueText:
    """Plant lines in a background text and repeat some of them, in exactly ``length`` tokens.

    Args:
        background: Token ids of a text, ``(tokens,)``, of which as many are used as the lines leave room for.
        tokenizer: Tokenizer of the model.
        rng: Generator of the lines and their places.
        length: Length of the text in tokens.
        needles: Number of lines to plant.
        queries: Number of planted lines to repeat.
        depth: Place of the first repeated line in the background before the repeats, from 0 to 1. None draws it, as
            the places of all other lines are drawn.
        query_depth: Place of the repeats in the background, from 0 to 1, its end.

    Raises:
        LongRopeError: If ``length`` is too short for the lines, or longer than the background can fill.
    """
    _check(needles=needles, queries=queries, depth=depth, query_depth=query_depth)
    lines = make_lines(tokenizer, rng, needles)
    repeats = [lines[i] for i in rng.permutation(queries)]
    room = _room(background, length, lines, repeats)
    first = start_size(background[:room], tokenizer)
    query_start = max(first, round(query_depth * room))
    starts = rng.integers(0, query_start, size=needles, endpoint=True)
    if depth is not None:
        starts[0] = round(depth * query_start)
    starts = np.maximum(starts, first)
    planted = [lines[i].planted for i in np.argsort(starts, kind="stable")]
    cuts = [*np.sort(starts), *[query_start] * queries]
    return interleave(background[:room], planted + repeats, cuts)


def plant_key_value_lines(
    background: np.ndarray,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rng: np.random.Generator,
    length: int,
    depths: Sequence[float],
) -> tuple[KeyValueText, list[KeyValueText]]:
    """Plant lines in a background text, and return the text and the lines, each with its words as answers.

    The text and any one of the lines after it have at most ``length`` tokens.

    Args:
        background: Token ids of a text, ``(tokens,)``, of which as many are used as the lines leave room for.
        tokenizer: Tokenizer of the model.
        rng: Generator of the lines.
        length: Length of the text with the longest line after it, in tokens.
        depths: Place of each line in the background, from 0 to 1.

    Raises:
        LongRopeError: If ``length`` is too short for the lines, or longer than the background can fill.
    """
    lines = make_lines(tokenizer, rng, len(depths))
    room = _room(background, length, lines, [max(lines, key=lambda line: line.tokens.size)])
    first = start_size(background[:room], tokenizer)
    starts = np.array([max(first, round(depth * room)) for depth in depths])
    planted = [lines[i].planted for i in np.argsort(starts, kind="stable")]
    return interleave(background[:room], planted, np.sort(starts).tolist()), lines


def _room(background: np.ndarray, length: int, lines: list[KeyValueText], repeats: list[KeyValueText]) -> int:
    """Return the tokens that the lines and the repeats leave to the background."""
    room = length - sum(line.tokens.size for line in lines + repeats)
    if room < 0:
        raise LongRopeError(
            f"length = {length}: too short for needles = {len(lines)}, queries = {len(repeats)}. Add {-room} tokens."
        )
    if background.size < room:
        raise LongRopeError(
            f"background = {background.size} tokens: length = {length} needs {room}. Pass a longer text."
        )
    return room


def _check(*, needles: int, queries: int, depth: float | None, query_depth: float) -> None:
    if not 1 <= queries <= needles:
        raise LongRopeError(f"queries = {queries}: not between 1 and needles = {needles}. Plant more lines.")
    for name, value in (("depth", depth), ("query_depth", query_depth)):
        if value is not None and not 0 <= value <= 1:
            raise LongRopeError(f"{name} = {value}: not between 0 and 1. Give the share of the text before it.")


def make_lines(tokenizer: PreTrainedTokenizerBase, rng: np.random.Generator, count: int) -> list[KeyValueText]:
    """Return lines with different keys, whose words are marked as answers."""
    heads = [f"\n{key} =" for key in make_keys(rng, count)]
    tails = [f" {first} {second}" for first, second in rng.choice(WORDS.split(), size=(count, 2))]
    ids = encode_within(tokenizer, [*heads, *tails, "\n"])
    return [_line(ids[i], ids[count + i], ids[-1]) for i in range(count)]


def make_keys(rng: np.random.Generator, count: int) -> list[str]:
    """Return different keys: invented words of six letters."""
    keys: dict[str, None] = {}
    while len(keys) < count:
        keys[_key(rng)] = None
    return list(keys)


def _key(rng: np.random.Generator) -> str:
    return "".join(letters[rng.integers(len(letters))] for letters in (ONSETS, VOWELS, CODAS) * 2)


def _line(head: np.ndarray, answer: np.ndarray, end: np.ndarray) -> KeyValueText:
    answers = np.repeat([False, True, False], [len(head), len(answer), len(end)])
    return KeyValueText(np.concatenate([head, answer, end]), answers)


def start_size(tokens: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return 1 if a text begins with the tokenizer's beginning-of-text token, which stays its first one, else 0."""
    return int(len(tokens) > 0 and tokens[0] == tokenizer.bos_token_id)


def interleave(background: np.ndarray, lines: Sequence[KeyValueText], cuts: Sequence[int]) -> KeyValueText:
    """Return a background text with a line at each cut.

    Args:
        background: Token ids of the text, ``(tokens,)``.
        lines: Lines in the order of their places.
        cuts: Number of tokens of the background before each line, in ascending order.
    """
    first, *chunks = np.split(background, cuts)
    tokens = [first]
    answers = [np.zeros(first.size, dtype=bool)]
    for line, chunk in zip(lines, chunks, strict=True):
        tokens += [line.tokens, chunk]
        answers += [line.answers, np.zeros(chunk.size, dtype=bool)]
    return KeyValueText(np.concatenate(tokens).astype(np.int64), np.concatenate(answers))
