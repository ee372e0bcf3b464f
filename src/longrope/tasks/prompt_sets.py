"""Probes of several tasks at several lengths, as far as they fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from longrope.errors import LongRopeError
from longrope.tasks.prompts import Prompt
from longrope.tasks.registry import make_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
PromptSets = dict[tuple[str, int], list[Prompt]]  # by task and length


def make_prompt_sets(
    tasks: Sequence[str],
    lengths: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    texts: np.ndarray,
    *,
    trials: int,
    depths: Sequence[float] = DEPTHS,
    seed: int = 0,
    some: bool = False,
) -> tuple[PromptSets, list[LongRopeError]]:
    """The probes of `make_prompts` for every task and length at which they fit, and why they do not at others.

    Args:
        tasks: names.
        lengths: in tokens.
        tokenizer: of the models that will read them.
        texts: real documents, ``(documents, at least the longest length)``.
        trials: of each task at each length.
        depths: that the trials take in turn.
        seed: of all that is random.
        some: whether it is enough if some task fits somewhere; else each must.

    Raises:
        LongRopeError: if there is no such task, or it fits at no length.
    """
    found: PromptSets = {}
    refusals: list[LongRopeError] = []
    for task in tasks:
        for length in lengths:
            made = _probes_or_why_not(
                task, tokenizer, length=length, trials=trials, texts=texts, depths=depths, seed=seed
            )
            if isinstance(made, LongRopeError):
                refusals.append(made)
            else:
                found[task, length] = made
        if not some and not any((task, length) in found for length in lengths):
            raise refusals[-1]
    if tasks and not found:
        raise refusals[-1]
    return found, refusals


def _probes_or_why_not(
    task: str, tokenizer: PreTrainedTokenizerBase, **options: object
) -> list[Prompt] | LongRopeError:
    try:
        return make_prompts(task, tokenizer, **options)  # pyright: ignore[reportArgumentType]
    except LongRopeError as error:
        return error
