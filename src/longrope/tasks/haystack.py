"""Haystacks in tokens: sentences and needles are encoded alone and joined, so that a text has an exact length."""

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
    """Return the tokens that each text has within a longer one, int64, without special tokens.

    SentencePiece puts a blank before the first word of a text, which is not part of these tokens.
    """
    plain = tokenizer([*texts], add_special_tokens=False)["input_ids"]
    anchor, *joined = tokenizer([ANCHOR, *(ANCHOR + text for text in texts)], add_special_tokens=False)["input_ids"]
    size = len(anchor)
    tokens = [long[size:] if long[:size] == anchor else alone for long, alone in zip(joined, plain, strict=True)]
    return [np.array(ids, dtype=np.int64) for ids in tokens]


def noise(tokenizer: PreTrainedTokenizerBase, size: int) -> tuple[np.ndarray, list[int]]:
    """Return repeated sentences of ``size`` tokens, and the indices at which sentences begin."""
    sentences = encode_within(tokenizer, NOISE)
    times = size // sum(map(len, sentences)) + 1
    borders = accumulate((len(sentence) for sentence in sentences * times), initial=0)
    return np.concatenate(sentences * times)[:size], [border for border in borders if border <= size]


def plant(
    haystack: np.ndarray, borders: list[int] | None, lines: Sequence[np.ndarray], depths: Sequence[float]
) -> np.ndarray:
    """Return a text with lines planted at depths.

    Args:
        haystack: Token ids of the text.
        borders: Indices at which sentences begin, to plant lines between sentences; None plants them anywhere.
        lines: Token ids of each line.
        depths: Depth of each line, from 0 to 1.
    """
    indices = [round(depth * len(haystack)) for depth in depths]
    if borders is not None:
        indices = [min(borders, key=lambda border, index=index: abs(border - index)) for index in indices]
    order = np.argsort(indices, kind="stable")
    first, *chunks = np.split(haystack, [indices[i] for i in order])
    return np.concatenate([first, *chain(*zip((lines[i] for i in order), chunks, strict=True))])
