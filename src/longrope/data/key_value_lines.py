"""Lines planted in a background text and asked for later in it: `key = word word`, or in other wordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from longrope.data.tokenize import encode_within
from longrope.data.wordings import KEY_VALUE, Wording
from longrope.errors import LongRopeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class KeyValueText:
    """A text in which some of the planted lines are asked for.

    Args:
        tokens: Token ids, int64 ``(length,)``.
        answers: Mask of the answers, bool ``(length,)``: only the planted line predicts them.
    """

    tokens: np.ndarray
    answers: np.ndarray


@dataclass(frozen=True)
class Line:
    """A line to plant, without answers, and the question for it, with its answer."""

    planted: KeyValueText
    question: KeyValueText

    @property
    def size(self) -> int:
        """Tokens of both."""
        return self.planted.tokens.size + self.question.tokens.size


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
    return plant_lines(
        background, tokenizer, lines, rng=rng, length=length, queries=queries, depth=depth, query_depth=query_depth
    )


def plant_lines(
    background: np.ndarray,
    tokenizer: PreTrainedTokenizerBase,
    lines: Sequence[Line],
    *,
    rng: np.random.Generator,
    length: int,
    queries: int,
    depth: float | None = None,
    query_depth: float = 1.0,
) -> KeyValueText:
    """Plant lines in a background text and ask for the first ``queries`` of them, in random order.

    The arguments and errors are those of `make_key_value_text`, with the lines in place of their number.
    """
    questions = [lines[i].question for i in rng.permutation(queries)]
    room = _room(background, length, lines, questions)
    first = start_size(background[:room], tokenizer)
    query_start = max(first, round(query_depth * room))
    starts = rng.integers(0, query_start, size=len(lines), endpoint=True)
    if depth is not None:
        starts[0] = round(depth * query_start)
    starts = np.maximum(starts, first)
    planted = [lines[i].planted for i in np.argsort(starts, kind="stable")]
    cuts = [*np.sort(starts), *[query_start] * queries]
    return interleave(background[:room], planted + questions, cuts)


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
    questions = [line.question for line in lines]
    room = _room(background, length, lines, [max(questions, key=lambda question: question.tokens.size)])
    first = start_size(background[:room], tokenizer)
    starts = np.array([max(first, round(depth * room)) for depth in depths])
    planted = [lines[i].planted for i in np.argsort(starts, kind="stable")]
    return interleave(background[:room], planted, np.sort(starts).tolist()), questions


def _room(background: np.ndarray, length: int, lines: Sequence[Line], questions: Sequence[KeyValueText]) -> int:
    """Return the tokens that the lines and the questions leave to the background."""
    room = length - sum(text.tokens.size for text in [*(line.planted for line in lines), *questions])
    if room < 0:
        raise LongRopeError(
            f"length = {length}: too short for needles = {len(lines)}, queries = {len(questions)}. Add {-room} tokens."
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


def make_lines(
    tokenizer: PreTrainedTokenizerBase,
    rng: np.random.Generator,
    count: int,
    wordings: Sequence[Wording] = (KEY_VALUE,),
) -> list[Line]:
    """Return ``count`` lines with different keys, all in one of the wordings, which is drawn."""
    wording = wordings[int(rng.integers(len(wordings)))] if len(wordings) > 1 else wordings[0]
    keys = wording.draw_keys(rng, count)
    values = wording.draw_values(rng, count)
    forms = (wording.line, wording.question, wording.end)
    ids = encode_within(tokenizer, [*values, *(form.replace("{}", key) for form in forms for key in keys), "\n"])
    values, lines, questions, ends = (ids[i * count : (i + 1) * count] for i in range(4))
    return [
        Line(_text(line, value, end, answer=False), _text(question, value, ids[-1], answer=True))
        for line, question, value, end in zip(lines, questions, values, ends, strict=True)
    ]


def _text(head: np.ndarray, value: np.ndarray, end: np.ndarray, *, answer: bool) -> KeyValueText:
    answers = np.repeat([False, answer, False], [len(head), len(value), len(end)])
    return KeyValueText(np.concatenate([head, value, end]), answers)


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
