"""Text to token ids: documents, with a cache on disk, and strings that are joined to a longer text."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from longrope.errors import LongRopeError
from longrope.storage.atomic import write_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANCHORS = ".", "a"  # before a text that is encoded within another; some tokenizers merge the first with a stop
SAMPLE = "The 3 tokenizers, été\n\tdef f(x): return {x}"


def encode(text: str, tokenizer: PreTrainedTokenizerBase, *, length: int, cache: Path | None = None) -> np.ndarray:
    """Return the first ``length`` tokens of a text, or all if it has fewer, int64.

    Args:
        text: The text.
        tokenizer: Tokenizer that adds its special tokens as for the model's own inputs.
        length: Length in tokens.
        cache: Folder that keeps tokens from one call to the next.

    Raises:
        LongRopeError: If the cache cannot be written.
    """
    if len(text) > 24 * length:  # in nearly every language half of this has enough tokens
        words = text[: 12 * length].rsplit(None, 1)  # empty where the text begins with this many blanks
        head = _cached(words[0] if words else "", tokenizer, cache)
        if len(head) > length:
            return head[:length]
    return _cached(text, tokenizer, cache)[:length]


def encode_within(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[np.ndarray]:
    """Return the tokens that each text has within a longer one, int64, without special tokens.

    SentencePiece puts a blank before the first word of a text, which is not part of these tokens.
    """
    tokens = dict(enumerate(tokenizer([*texts], add_special_tokens=False)["input_ids"]))
    left = [*tokens]
    for anchor in ANCHORS:
        after = [anchor, *(anchor + texts[i] for i in left)]
        first, *joined = tokenizer(after, add_special_tokens=False)["input_ids"]
        encoded = {i: ids[len(first) :] for i, ids in zip(left, joined, strict=True) if ids[: len(first)] == first}
        tokens |= encoded
        left = [i for i in left if i not in encoded]
    return [np.array(ids, dtype=np.int64) for ids in tokens.values()]


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a string that is equal for tokenizers that encode texts equally."""
    return f"{len(tokenizer)} {tokenizer.encode(SAMPLE)}"


def _cached(text: str, tokenizer: PreTrainedTokenizerBase, cache: Path | None) -> np.ndarray:
    if cache is None:
        return _encode(text, tokenizer)
    state = f"{type(tokenizer).__name__} {fingerprint(tokenizer)}"
    key = hashlib.sha256(f"{state}\0{text}".encode()).hexdigest()
    path = cache / f"{key[:32]}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):  # missing or damaged: written again below
        return np.load(path, allow_pickle=False).astype(np.int64)
    tokens = _encode(text, tokenizer)
    buffer = io.BytesIO()
    np.save(buffer, tokens.astype(np.int32), allow_pickle=False)
    try:
        write_bytes(path, buffer.getvalue())
    except LongRopeError as error:
        raise LongRopeError(f"{str(error).rstrip('.')}. Or choose another folder for the cache.") from None
    return tokens


def _encode(text: str, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    return np.array(tokenizer(text, verbose=False)["input_ids"], dtype=np.int64)
