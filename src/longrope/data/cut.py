"""Cut documents into parts that do not overlap, where there are too few of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from longrope.data.documents import Document
from longrope.data.tokenize import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORD = 200  # characters in which a cut looks for the end of a word


def cut_text(text: str, shares: Sequence[float]) -> list[str]:
    """Return a text in parts that end at the given shares of its characters, or soon after, at the end of a word.

    >>> cut_text("one two three four", [0.1, 0.5])
    ['one', ' two three', ' four']
    """
    cuts = [0]
    for share in shares:
        offset = max(int(share * len(text)), cuts[-1])
        blank = re.search(r"\s", text[offset : offset + WORD])
        cuts.append(offset + (blank.start() if blank else 0))
    return [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def share_texts(documents: Sequence[Document], shares: Mapping[str, float]) -> dict[str, list[Document]]:
    """Return one part of every document for each name, without the parts that hold no text.

    Args:
        documents: Documents to cut.
        shares: Share of each document by name, in the order of the parts; the shares add up to 1.
    """
    members: dict[str, list[Document]] = {name: [] for name in shares}
    ends = list(accumulate(shares.values()))
    for document in documents:
        texts = cut_text(document.text, ends[:-1])
        for split, share, end, text in zip(shares, shares.values(), ends, texts, strict=True):
            if text.strip():
                name = f"{document.name}, {end - share:.0%} to {end:.0%}"
                members[split].append(replace(document, name=name, text=text, part_of=document.name))
    return members


def cut_tokens(
    text: str, tokenizer: PreTrainedTokenizerBase, *, length: int, most: int, cache: Path | None
) -> list[np.ndarray]:
    """Return the first tokens of equal pieces of a text, of as many as have ``length`` tokens each; [] for one piece.

    Args:
        text: The text.
        tokenizer: Tokenizer of the model, which adds its special tokens to each piece.
        length: Length in tokens.
        most: Largest number of pieces.
        cache: Folder that keeps tokens from one call to the next.
    """
    pieces = min(most, len(encode(text, tokenizer, length=most * length, cache=cache)) // length)
    for count in range(pieces, 1, -1):
        texts = cut_text(text, [number / count for number in range(1, count)])
        rows = [encode(piece, tokenizer, length=length, cache=cache) for piece in texts]
        if min(map(len, rows)) == length:
            return rows
    return []
