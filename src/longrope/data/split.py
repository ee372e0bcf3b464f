"""Split documents, disjoint and seeded, into search, held-out and test, and draw some of a length in tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from longrope.data.documents import Document
from longrope.data.tokenize import encode
from longrope.errors import LongRopeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PARTS = ("search", "held_out", "test")
BLOCK = ("search", "search", "held_out", "test", "test")


@dataclass(frozen=True)
class DocumentTokens:
    """Documents cut to one length: ``tokens`` int64 ``(documents, length)`` and their names."""

    tokens: np.ndarray
    names: tuple[str, ...]


def split_documents(documents: Sequence[Document], *, seed: int = 0) -> dict[str, list[Document]]:
    """Every document's part, one of `PARTS`, in a seeded random order; the same whatever length is drawn later.

    ``search`` is what a search minimises, ``held_out`` what its winner is chosen on, ``test`` what is reported. In
    each run of five documents by size, two, one and two go to them, so that long ones are shared out evenly.
    """
    rng = np.random.default_rng(seed)
    by_size = sorted(documents, key=lambda document: (-len(document.text), document.name))
    parts: dict[str, list[Document]] = {part: [] for part in PARTS}
    for start in range(0, len(by_size), len(BLOCK)):
        for document, part in zip(by_size[start:], rng.permutation(BLOCK), strict=False):
            parts[str(part)].append(document)
    return {part: [found[i] for i in rng.permutation(len(found))] for part, found in parts.items()}


def draw_tokens(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    count: int,
    cache: Path | None = None,
) -> DocumentTokens:
    """The first ``length`` tokens of the first ``count`` documents that have as many.

    Args:
        documents: in the order in which they are tried.
        tokenizer: of the model that will read them.
        length: in tokens.
        count: how many documents are wanted.
        cache: a folder that keeps tokens from one call to the next.

    Raises:
        LongRopeError: if too few documents are long enough; says how many were found and how long.
    """
    rows: list[np.ndarray] = []
    names: list[str] = []
    longest = 0
    for document in documents:
        tokens = encode(document.text, tokenizer, length=length, cache=cache)
        longest = max(longest, len(tokens))
        if len(tokens) == length:
            rows.append(tokens)
            names.append(document.name)
        if len(rows) == count:
            return DocumentTokens(np.stack(rows), tuple(names))
    raise LongRopeError(
        f"data: {count} documents of {length} tokens are needed, but of the {len(documents)} found for this part "
        f"{len(rows)} are that long (the longest has {longest} tokens); "
        "give more or longer documents, a shorter length, or ask for fewer documents"
    )
