"""Documents as people have them (texts, or lists of token ids), as token ids of one length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from longrope.data.token_sequences import TokenSequences, as_sequences
from longrope.data.tokenize import encode
from longrope.errors import LongRopeError
from longrope.evaluation.losses import check_lengths

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def token_rows(sequences: TokenSequences, lengths: Sequence[int], *, field: str = "sequences") -> np.ndarray:
    """Return the first tokens of every sequence, int64 ``(sequences, the longest length)``.

    Args:
        sequences: Token ids: lists, arrays or tensors, which may differ in length.
        lengths: Lengths in tokens.
        field: Name of the argument in error messages.

    Raises:
        LongRopeError: If a sequence has fewer tokens than the longest length.
    """
    rows = as_sequences(sequences, field=field)
    for index, row in enumerate(rows):
        check_lengths(lengths, len(row), document=f"{field}[{index}]")
    return np.stack([row[: max(lengths)] for row in rows])


def encode_texts(
    texts: Sequence[Any] | np.ndarray, tokenizer: PreTrainedTokenizerBase, lengths: Sequence[int]
) -> np.ndarray:
    """Return the first tokens of every text, int64 ``(texts, the longest length)``.

    Args:
        texts: Strings or token ids.
        tokenizer: Tokenizer of the model.
        lengths: Lengths in tokens.

    Raises:
        LongRopeError: If a text has fewer tokens than the longest length.
    """
    if isinstance(texts, str):
        raise LongRopeError("texts: a single string. Pass a list of texts.")
    if isinstance(texts, Mapping):
        raise LongRopeError(f"texts: a mapping with the keys {', '.join(texts)}. Pass the tokenizer's input_ids.")
    longest = max(lengths, default=0)
    rows = [encode(text, tokenizer, length=longest) if isinstance(text, str) else text for text in texts]
    return token_rows(rows, lengths, field="texts")
