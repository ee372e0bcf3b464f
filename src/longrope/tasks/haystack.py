"""Haystacks in tokens: whole pieces are encoded alone and put together, so that a text has an exact length."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANCHOR = "."
NOISE = (
    " The river runs down to the sea.",
    " A bird sits in the old tree.",
    " The hills are quiet today.",
    " Soon the sun will be up again.",
    " The road goes on and on.",
)


def encode_within(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[np.ndarray]:
    """The tokens of each text as it stands within a longer one, int64: nothing special before it.

    SentencePiece puts a blank before the first word of all, which is not wanted here.
    """
    plain = tokenizer([*texts], add_special_tokens=False)["input_ids"]
    anchor, *joined = tokenizer([ANCHOR, *(ANCHOR + text for text in texts)], add_special_tokens=False)["input_ids"]
    size = len(anchor)
    found = [long[size:] if long[:size] == anchor else alone for long, alone in zip(joined, plain, strict=True)]
    return [np.array(tokens, dtype=np.int64) for tokens in found]


def noise(tokenizer: PreTrainedTokenizerBase, size: int) -> tuple[np.ndarray, list[int]]:
    """``(size,)`` tokens of repeated sentences, and where sentences begin."""
    sentences = encode_within(tokenizer, NOISE)
    times = size // sum(map(len, sentences)) + 1
    borders = accumulate((len(sentence) for sentence in sentences * times), initial=0)
    return np.concatenate(sentences * times)[:size], [border for border in borders if border <= size]


def plant(
    hay: np.ndarray, borders: list[int] | None, lines: Sequence[np.ndarray], depths: Sequence[float]
) -> np.ndarray:
    """Lines at depths of a text; between sentences if their borders are given."""
    places = [round(depth * len(hay)) for depth in depths]
    if borders is not None:
        places = [min(borders, key=lambda border, place=place: abs(border - place)) for place in places]
    order = np.argsort(places, kind="stable")
    pieces = np.split(hay, [places[i] for i in order])
    return np.concatenate([pieces[0], *chain(*zip((lines[i] for i in order), pieces[1:], strict=True))])
