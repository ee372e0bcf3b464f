"""Split documents into disjoint sets for search, held-out and test, and draw some of a length in tokens."""

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

SPLITS = ("search", "held_out", "test")
BLOCK = ("search", "search", "held_out", "test", "test")


@dataclass(frozen=True)
class DocumentTokens:
    """Documents cut to one length.

    Args:
        tokens: Token ids, int64 ``(documents, length)``.
        names: Names of the documents.
    """

    tokens: np.ndarray
    names: tuple[str, ...]


def split_documents(documents: Sequence[Document], *, seed: int = 0) -> dict[str, list[Document]]:
    """Split documents into `SPLITS`, each in a random order that does not depend on the length drawn later.

    A search minimises the loss on ``search``, its winner is chosen on ``held_out``, and results are reported on
    ``test``. Of every five documents by size, two, one and two go to them, so that each gets long ones.

    Args:
        documents: All documents.
        seed: Seed of the split and the order.
    """
    rng = np.random.default_rng(seed)
    by_size = sorted(documents, key=lambda document: (-len(document.text), document.name))
    splits: dict[str, list[Document]] = {name: [] for name in SPLITS}
    for start in range(0, len(by_size), len(BLOCK)):
        for document, name in zip(by_size[start:], rng.permutation(BLOCK), strict=False):
            splits[str(name)].append(document)
    return {name: [members[i] for i in rng.permutation(len(members))] for name, members in splits.items()}


def draw_tokens(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    count: int,
    cache: Path | None = None,
) -> DocumentTokens:
    """Return the first ``length`` tokens of the first ``count`` documents that have as many.

    Args:
        documents: Documents in the order in which they are tried.
        tokenizer: Tokenizer of the model.
        length: Length in tokens.
        count: Number of documents.
        cache: Folder that keeps tokens from one call to the next.

    Raises:
        LongRopeError: If too few documents are long enough.
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
        f"data: {count} documents of {length} tokens are needed, but of the {len(documents)} in this split "
        f"{len(rows)} are that long (the longest has {longest} tokens). "
        "Give more or longer documents, a shorter length, or ask for fewer documents."
    )
