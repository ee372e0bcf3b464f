"""Token ids as people have them (lists, arrays, tensors, ragged or not), converted and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from longrope.checks import OTHER_TOKENIZER
from longrope.errors import LongRopeError

TokenSequences: TypeAlias = Sequence[Any] | np.ndarray | Any  # the last is a torch tensor: no torch is imported here
LEAST = 2  # tokens of a sequence: the first one is not predicted
MOST = 2**31 - 1  # the largest token id where the vocabulary is not known


def as_sequences(
    sequences: TokenSequences, *, vocabulary: int | None = None, field: str = "sequences"
) -> list[np.ndarray]:
    """Return every sequence of token ids as an int64 array ``(tokens,)``.

    Args:
        sequences: Lists of ids, a list of arrays or tensors, or one array or tensor ``(sequences, tokens)``, of any
            number type and on any device. The sequences may differ in length.
        vocabulary: Number of rows of the model's embedding, which every id must be below; None skips this check.
        field: Name of the argument in error messages.

    Raises:
        LongRopeError: If a sequence has fewer than two tokens, or an id is not a whole number of the vocabulary.
    """
    rows = as_array(sequences) if hasattr(sequences, "shape") else sequences
    if isinstance(rows, (str, bytes, Mapping)) or getattr(rows, "ndim", 1) == 0 or not hasattr(rows, "__len__"):
        raise LongRopeError(f"{field} = {_short(rows)}: not a list of token ids. Pass the tokenizer's input_ids.")
    if len(rows) == 0:
        raise LongRopeError(f"{field} = []: there is nothing to compute a loss of. Pass at least one sequence.")
    return [_checked(row, f"{field}[{index}]", vocabulary) for index, row in enumerate(rows)]


def same_length(sequences: Sequence[np.ndarray]) -> bool:
    """Return whether all sequences have the same number of tokens."""
    return len({len(sequence) for sequence in sequences}) == 1


def as_array(values: Any) -> np.ndarray:
    """Return a list, an array, or a tensor on any device as an array; of objects where inner lists differ in length."""
    if hasattr(values, "detach"):  # a torch tensor
        values = values.detach().cpu()
        return (values.double() if values.is_floating_point() else values).numpy()
    try:
        return np.asarray(values)
    except ValueError:  # nested lists of several lengths
        return np.asarray(values, dtype=object)


def _checked(row: Any, field: str, vocabulary: int | None) -> np.ndarray:
    ids = as_array(row)
    if ids.ndim != 1:
        raise LongRopeError(f"{field} = {_short(row)}: not one sequence of token ids. Pass a list of sequences.")
    if len(ids) < LEAST:
        raise LongRopeError(f"{field} = {_short(row)}: a loss needs two tokens or more. Drop this sequence.")
    _refuse(ids, ~_are_whole(ids), field, "not a whole number. Pass the tokenizer's input_ids.")
    _refuse(ids, ids < 0, field, "a token id is 0 or more. Pass input_ids, without labels or padding.")
    most = MOST if vocabulary is None else vocabulary - 1
    limit = f"above {MOST}" if vocabulary is None else f"beyond the model's vocabulary (vocab_size = {vocabulary})"
    _refuse(ids, ids > most, field, f"{limit}. {OTHER_TOKENIZER}")
    return ids.astype(np.int64, copy=False)


def _are_whole(ids: np.ndarray) -> np.ndarray:
    if ids.dtype.kind == "f":
        return np.isfinite(ids) & (ids == np.floor(ids))
    if ids.dtype.kind == "O":
        return np.array([isinstance(value, (int, np.integer)) and not isinstance(value, bool) for value in ids])
    return np.full(ids.shape, ids.dtype.kind in "iu")


def _refuse(ids: np.ndarray, wrong: np.ndarray, field: str, problem: str) -> None:
    if wrong.any():
        index = int(wrong.argmax())
        raise LongRopeError(f"{field}[{index}] = {ids[index]}: {problem}")


def _short(value: Any) -> str:
    text = " ".join(str(value).split()) or repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."
