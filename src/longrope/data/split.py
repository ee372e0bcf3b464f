"""Split documents into disjoint sets for search, held-out and test, and draw texts of a length in tokens."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from longrope.data.cut import cut_tokens, share_texts
from longrope.data.documents import Document
from longrope.data.tokenize import encode
from longrope.errors import CorpusWarning, LongRopeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BLOCK = ("search", "search", "held_out", "test", "test")
SHARES = {"search": 0.4, "held_out": 0.2, "test": 0.4}  # of each document, where there are fewer than in a block
SPLITS = tuple(SHARES)
NO_LIMIT = 2**40  # tokens; more than any document has


class Split(list[Document]):
    """The documents of one split, in the order in which they are drawn.

    Args:
        documents: Documents of the split.
        splits: All splits by name, this one included.
    """

    def __init__(self, documents: Iterable[Document], splits: Mapping[str, Split]) -> None:
        super().__init__(documents)
        self.splits = splits


@dataclass(frozen=True)
class DocumentTokens:
    """Texts of one length.

    Args:
        tokens: Token ids, int64 ``(texts, length)``.
        names: Name of the document of each row; several rows may be from one document.
    """

    tokens: np.ndarray
    names: tuple[str, ...]


def split_documents(documents: Sequence[Document], *, seed: int = 0) -> dict[str, Split]:
    """Split documents into `SPLITS`, each in a random order that does not depend on the length drawn later.

    A search minimises the loss on ``search``, its winner is chosen on ``held_out``, and results are reported on
    ``test``. Of every five documents by size, two, one and two go to them, so that each gets long ones. Fewer than five
    documents are cut: the first 40% of each are for ``search``, the next 20% for ``held_out``, the rest for ``test``.

    Args:
        documents: All documents.
        seed: Seed of the split and the order.
    """
    rng = np.random.default_rng(seed)
    by_size = sorted(documents, key=lambda document: (-len(document.text), document.name))
    if 0 < len(by_size) < len(BLOCK):
        members = share_texts(by_size, SHARES)
        shares = ", ".join(f"{share:.0%}" for share in SHARES.values())
        message = (
            f"data: {_counted(len(by_size))}, fewer than the {len(BLOCK)} that are split into search, held-out and "
            f"test. Each is cut into parts of {shares} for them, which do not overlap."
        )
        warnings.warn(CorpusWarning(message), stacklevel=2)
    else:
        members = _share_documents(by_size, rng)
    splits: dict[str, Split] = {}
    for name in SPLITS:
        order = rng.permutation(len(members[name]))
        splits[name] = Split((members[name][i] for i in order), splits)
    return splits


def draw_tokens(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    count: int,
    cache: Path | None = None,
) -> DocumentTokens:
    """Return the first ``length`` tokens of the first ``count`` documents that have as many.

    Where too few documents are long enough, they are cut into equal pieces that are, and the first tokens of each piece
    are returned.

    Args:
        documents: Documents in the order in which they are tried.
        tokenizer: Tokenizer of the model.
        length: Length in tokens.
        count: Number of texts.
        cache: Folder that keeps tokens from one call to the next.

    Raises:
        LongRopeError: If there are too few documents, or too short ones.
    """
    texts: list[tuple[Document, list[np.ndarray]]] = []
    longest = 0
    for document in documents:
        tokens = encode(document.text, tokenizer, length=length, cache=cache)
        longest = max(longest, len(tokens))
        if len(tokens) == length:
            texts.append((document, [tokens]))
        if len(texts) == count:
            break
    if len(texts) < count:
        texts = [
            (document, cut_tokens(document.text, tokenizer, length=length, most=count, cache=cache) or rows)
            for document, rows in texts
        ]
        if sum(len(rows) for _, rows in texts) < count:
            raise _too_few(documents, tokenizer, length=length, count=count, longest=longest)
        message = (
            f"data: {_counted(count, 'text')} of {length} tokens are taken from {_counted(len(texts))}, as no others "
            "are long enough. Texts of one document are alike, which standard errors do not show."
        )
        warnings.warn(CorpusWarning(message), stacklevel=2)
    rounds = zip_longest(*([(row, document.name) for row in rows] for document, rows in texts))
    drawn = [text for texts_of_round in rounds for text in texts_of_round if text is not None][:count]
    return DocumentTokens(np.stack([row for row, _ in drawn]), tuple(name for _, name in drawn))


def _counted(number: int, noun: str = "document") -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def whole_texts(splits: Mapping[str, Sequence[Document]]) -> dict[str, str]:
    """Return the texts of all documents by name, put together again where they were cut."""
    wholes: dict[str, str] = {}
    for document in (document for split in SPLITS for document in splits[split]):
        name = document.part_of or document.name
        wholes[name] = wholes.get(name, "") + document.text
    return wholes


def _share_documents(by_size: Sequence[Document], rng: np.random.Generator) -> dict[str, list[Document]]:
    """Return the members of each split, where each document goes to one of them."""
    members: dict[str, list[Document]] = {name: [] for name in SPLITS}
    for start in range(0, len(by_size), len(BLOCK)):
        for document, name in zip(by_size[start:], rng.permutation(BLOCK), strict=False):
            members[str(name)].append(document)
    return members


def _too_few(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, *, length: int, count: int, longest: int
) -> LongRopeError:
    """Return the error for too few texts of a length, with the longest document's tokens.

    Args:
        documents: Documents that texts were drawn from.
        tokenizer: Tokenizer of the model.
        length: Length in tokens.
        count: Number of texts.
        longest: Most tokens, up to ``length``, that a document was found to have.
    """

    def tokens_of(texts: Iterable[str]) -> int:
        return len(encode(max(texts, key=len, default=""), tokenizer, length=NO_LIMIT))

    in_split = f"the longest of which has {max(longest, tokens_of(document.text for document in documents))} tokens"
    corpus = f"Of {_counted(len(documents))}, {in_split}" if documents else "There are no documents"
    if isinstance(documents, Split):
        wholes = whole_texts(documents.splits)
        split = f"{len(documents)} are in this split" + (f", {in_split}" if documents else "")
        corpus = (
            f"Of {_counted(len(wholes))} in all, split into {', '.join(SPLITS)}, {split}; "
            f"the longest in all has {max(longest, tokens_of(wholes.values()))}"
        )
    return LongRopeError(
        f"data: {_counted(count, 'text')} of {length} tokens {'is' if count == 1 else 'are'} needed. {corpus}. "
        "Give more or longer documents (short ones may be joined into one file), a shorter length, or ask for fewer "
        "documents."
    )
