"""Tokens of strings that are joined to a longer text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANCHOR = "."


def encode_within(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[np.ndarray]:
    """Return the tokens that each text has within a longer one, int64, without special tokens.

    SentencePiece puts a blank before the first word of a text, which is not part of these tokens.
    """
    plain = tokenizer([*texts], add_special_tokens=False)["input_ids"]
    anchor, *joined = tokenizer([ANCHOR, *(ANCHOR + text for text in texts)], add_special_tokens=False)["input_ids"]
    size = len(anchor)
    tokens = [long[size:] if long[:size] == anchor else alone for long, alone in zip(joined, plain, strict=True)]
    return [np.array(ids, dtype=np.int64) for ids in tokens]
