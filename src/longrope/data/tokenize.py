"""Text to token ids, kept on disk from one call to the next."""

from __future__ import annotations

import contextlib
import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from longrope.errors import LongRopeError
from longrope.storage.atomic import write_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLE = "The 3 tokenizers, été\n\tdef f(x): return {x}"


def encode(text: str, tokenizer: PreTrainedTokenizerBase, *, length: int, cache: Path | None = None) -> np.ndarray:
    """The first ``length`` tokens of a text, or all if it has fewer, int64.

    Args:
        text: any.
        tokenizer: its special tokens are added as for the model's own inputs.
        length: in tokens.
        cache: a folder that keeps tokens from one call to the next.

    Raises:
        LongRopeError: if the cache cannot be written.
    """
    if len(text) > 24 * length:  # so long a head has more than enough tokens in nearly every language
        words = text[: 12 * length].rsplit(None, 1)  # none where it begins with so many blanks
        head = _cached(words[0] if words else "", tokenizer, cache)
        if len(head) > length:
            return head[:length]
    return _cached(text, tokenizer, cache)[:length]


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Alike for tokenizers that read texts alike."""
    return f"{len(tokenizer)} {tokenizer.encode(SAMPLE)}"


def _cached(text: str, tokenizer: PreTrainedTokenizerBase, cache: Path | None) -> np.ndarray:
    if cache is None:
        return _encode(text, tokenizer)
    state = f"{type(tokenizer).__name__} {fingerprint(tokenizer)}"
    key = hashlib.sha256(f"{state}\0{text}".encode()).hexdigest()
    path = cache / f"{key[:32]}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):  # not there, or damaged: make it again
        return np.load(path, allow_pickle=False).astype(np.int64)
    tokens, buffer = _encode(text, tokenizer), io.BytesIO()
    np.save(buffer, tokens.astype(np.int32), allow_pickle=False)
    try:
        write_bytes(path, buffer.getvalue())
    except LongRopeError as error:
        raise LongRopeError(f"{error}, or another --cache") from None
    return tokens


def _encode(text: str, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    return np.array(tokenizer(text, verbose=False)["input_ids"], dtype=np.int64)
