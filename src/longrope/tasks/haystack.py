"""Haystacks in tokens: sentences and needles are encoded alone and joined, so that a text has an exact length."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from itertools import accumulate, chain
from typing import TYPE_CHECKING

import numpy as np

from longrope.data.tokenize import encode_within
from longrope.errors import LongRopeError
from longrope.tasks.prompts import PromptRequest
from longrope.tasks.ruler_data import essays_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
LEAST_BORDERS = 40  # RULER places a needle at 40 depths
TEXT_REDRAWS = 100  # of a text that names a planted key, after which it stays

Text = tuple[np.ndarray, Sequence[int]]  # token ids, and the indices at which a line may be planted
# of a document's number, its size in tokens, a generator, and the keys of the planted lines
Haystack = Callable[[PromptRequest, int, int, np.random.Generator, Collection[str]], Text]


def repeated(unit: str) -> Haystack:
    """Return the haystack that repeats a text; lines are planted between two repetitions."""

    def text(request: PromptRequest, number: int, size: int, rng: np.random.Generator, keys: Collection[str]) -> Text:
        (tokens,) = encode_within(request.tokenizer, [unit])
        return np.tile(tokens, size // len(tokens) + 1)[:size], range(0, size + 1, len(tokens))

    return text


REPEATED = repeated(f"{NOISE}\n")


def drawn(draw: Callable[[np.random.Generator], str], *, cut: bool = True) -> Haystack:
    """Return the haystack of drawn texts, such as needles that nobody asks for; lines are planted between two.

    A text that names a key of the planted lines is drawn again, as a second value would make the question ambiguous.

    Args:
        draw: Function of a random generator that returns the next text.
        cut: Whether the last text is cut if it does not fit; else it is left out.
    """

    def text(request: PromptRequest, number: int, size: int, rng: np.random.Generator, keys: Collection[str]) -> Text:
        names = [re.compile(rf"(?<![\w-]){re.escape(key)}(?![\w-])") for key in keys]
        units: list[np.ndarray] = []
        tokens = 0
        while tokens <= size:
            units += encode_within(request.tokenizer, [_draw_without(names, draw, rng) for _ in range(100)])
            tokens = sum(map(len, units))
        borders = [border for border in accumulate(map(len, units), initial=0) if border <= size]
        return np.concatenate(units)[: size if cut else borders[-1]], borders

    return text


def _draw_without(
    names: Sequence[re.Pattern[str]], draw: Callable[[np.random.Generator], str], rng: np.random.Generator
) -> str:
    """Draw a text in which none of the names occurs."""
    text = draw(rng)
    for _ in range(TEXT_REDRAWS):
        if not any(name.search(text) for name in names):
            break
        text = draw(rng)
    return text


def documents(request: PromptRequest, number: int, size: int, rng: np.random.Generator, keys: Collection[str]) -> Text:
    """Return the haystack that is the beginning of a real document; lines are planted between sentences."""
    tokens = request.text(number)[:size]
    return tokens, sentence_borders(request.tokenizer, tokens)


def essays(request: PromptRequest, number: int, size: int, rng: np.random.Generator, keys: Collection[str]) -> Text:
    """Return the haystack of RULER's essays from their beginning; a real document where there are no essays.

    Raises:
        LongRopeError: If the essays have fewer tokens.
    """
    text = essays_of(request.ruler_data)
    if text is None:
        return documents(request, number, size, rng, keys)
    tokens, borders = _encoded_essays(request.tokenizer, text)
    if len(tokens) < size:
        raise LongRopeError(
            f"ruler_data = {request.ruler_data}: its essays have {len(tokens):,} tokens, too short a haystack for "
            f"length {request.length:,}, which needs {size:,}. Add essays, or lower the length."
        )
    return tokens[:size], [border for border in borders if border <= size]


@lru_cache(maxsize=2)
def _encoded_essays(tokenizer: PreTrainedTokenizerBase, text: str) -> Text:
    (tokens,) = encode_within(tokenizer, [text])
    return tokens, sentence_borders(tokenizer, tokens)


def sentence_borders(tokenizer: PreTrainedTokenizerBase, tokens: np.ndarray) -> list[int]:
    """Return the indices at which sentences begin; those of words or of all tokens, where sentences are too few."""
    starts, ends = _token_classes(tokenizer)
    word = np.append(starts[tokens], True)  # the beginning and the end of the text are borders too
    word[0] = True
    sentence = word & np.append(True, ends[tokens])
    choices = (np.flatnonzero(sentence), np.flatnonzero(word))
    return next((c.tolist() for c in choices if len(c) >= LEAST_BORDERS), [*range(len(tokens) + 1)])


@lru_cache(maxsize=2)
def _token_classes(tokenizer: PreTrainedTokenizerBase) -> tuple[np.ndarray, np.ndarray]:
    """Return which tokens begin with a blank, and which end a sentence, by token id."""
    vocabulary = tokenizer.get_vocab()
    starts, ends = np.zeros((2, max(vocabulary.values()) + 1), dtype=bool)  # no token may have some ids
    for token, index in vocabulary.items():
        starts[index], ends[index] = token.startswith(("Ġ", "▁", " ")), token.endswith((".", "!", "?"))
    return starts, ends


def plant(
    haystack: np.ndarray, borders: Sequence[int], lines: Sequence[np.ndarray], depths: Sequence[float]
) -> np.ndarray:
    """Return a text with lines planted at depths.

    Args:
        haystack: Token ids of the text.
        borders: Indices at which a line may be planted, ascending.
        lines: Token ids of each line.
        depths: Depth of each line, from 0 to 1. Lines of equal depths keep their order.
    """
    places = np.asarray(borders)
    nearest = [places[np.abs(places - depth * len(haystack)).argmin()] for depth in depths]
    order = np.argsort(nearest, kind="stable")
    first, *chunks = np.split(haystack, [nearest[i] for i in order])
    return np.concatenate([first, *chain(*zip((lines[i] for i in order), chunks, strict=True))])
