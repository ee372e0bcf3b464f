"""Losses by token of a model with a scaling, at one length or at several."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from transformers import PreTrainedModel

from longrope.errors import LongRopeError
from longrope.longcontext.token_losses import token_losses
from longrope.models.patch import patch
from longrope.rope import Rope, rope_type_of
from longrope.scaling import Extension, Scaling


def model_losses(
    model: PreTrainedModel,
    scaling: Scaling | Extension | None,
    tokens: np.ndarray,
    *,
    batch: int = 1,
    on_progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Return `token_losses` of a model with a scaling; None leaves the model as it is."""
    with patch(model, scaling):
        return token_losses(model, tokens, batch=batch, on_progress=on_progress)


def losses_by_length(
    model: PreTrainedModel,
    scaling: Scaling | Extension | None,
    tokens: np.ndarray,
    lengths: Sequence[int],
    *,
    batch: int = 1,
    on_progress: Callable[[int], None] | None = None,
) -> dict[int, np.ndarray]:
    """Return the losses by token of documents at every length, ``(documents, at least length - 1)``.

    One forward pass of the longest length gives all lengths if the factors do not depend on it. An `Extension`, or a
    checkpoint with two sets of its own, takes a second pass for the lengths up to the original one, and a checkpoint
    with dynamic NTK takes a pass for each length beyond it.

    Args:
        model: A causal language model.
        scaling: Factors; None is the model as it is.
        tokens: Token ids ``(documents, at least the longest length)``.
        lengths: Lengths in tokens.
        batch: Documents in one forward pass.
        on_progress: Called with the number of documents finished in the pass of the longest length.

    Raises:
        LongRopeError: If the documents have fewer tokens than the longest length.
    """
    check_lengths(lengths, tokens.shape[1])
    borders = _borders(model, scaling, lengths)
    groups: dict[int, list[int]] = {}
    for length in lengths:
        groups.setdefault(sum(length > border for border in borders), []).append(length)
    losses: dict[int, np.ndarray] = {}
    for group in groups.values():
        longest = max(group)
        report = on_progress if longest == max(lengths) else None
        group_losses = model_losses(model, scaling, tokens[:, :longest], batch=batch, on_progress=report)
        losses |= dict.fromkeys(group, group_losses)
    return losses


def check_lengths(lengths: Sequence[int], tokens: int, *, document: str = "a document") -> None:
    """Refuse lengths that a document is too short for, or that have no loss.

    Args:
        lengths: Lengths in tokens.
        tokens: Tokens of the document.
        document: Name of the document for the error.

    Raises:
        LongRopeError: If there is such a length.
    """
    if not lengths or min(lengths) < 2:
        raise LongRopeError(f"lengths = {list(lengths)}: a loss needs 2 tokens. Pass lengths of 2 tokens or more.")
    if max(lengths) > tokens:
        raise LongRopeError(
            f"lengths = {list(lengths)}: {document} has {tokens} tokens, fewer than {max(lengths)}. "
            "Pass longer documents or shorter lengths."
        )


def _borders(model: PreTrainedModel, scaling: Scaling | Extension | None, lengths: Sequence[int]) -> tuple[int, ...]:
    """Return the longest texts in tokens of each set of factors but the last; () with one set for every length."""
    if isinstance(scaling, Extension):
        return scaling.rope.short_length, scaling.rope.original_length
    kind = rope_type_of(model)
    if scaling is not None or kind not in ("longrope", "dynamic"):
        return ()
    rope = Rope.of(model)
    border = rope.short_length or rope.original_length
    return (border, *(length for length in lengths if length > border)) if kind == "dynamic" else (border,)
