"""Prompts of several tasks at several lengths, where they fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from longrope.errors import LongRopeError
from longrope.tasks.prompts import Prompt
from longrope.tasks.registry import RULER, make_prompts

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
    require_each: bool = True,
    **draw: Any,
) -> tuple[PromptSets, list[LongRopeError]]:
    """Return the prompts of every task at every length where it fits, and the errors of the others.

    Args:
        tasks: Names of tasks.
        lengths: Lengths in tokens.
        tokenizer: Tokenizer of the models.
        texts: Token ids of real documents, ``(documents, at least the longest length)``.
        require_each: Whether each task must fit at some length; else one task that does is enough.
        **draw: Further arguments of `make_prompts`. Depths that are None or missing are random in RULER's tasks, as in
            RULER, and `DEPTHS` in the others.

    Raises:
        LongRopeError: If a task is unknown, or fits at no length.
    """
    prompts: PromptSets = {}
    refusals: list[LongRopeError] = []
    for task in tasks:
        for length in lengths:
            depths = draw.get("depths") or (None if task in RULER else DEPTHS)
            options = {**draw, "length": length, "texts": texts, "depths": depths}
            result = _prompts_or_error(task, tokenizer, **options)
            if isinstance(result, LongRopeError):
                refusals.append(result)
            else:
                prompts[task, length] = result
        if require_each and not any((task, length) in prompts for length in lengths):
            raise refusals[-1]
    if tasks and not prompts:
        raise refusals[len(lengths) - 1]  # of the first task at the longest length
    return prompts, refusals


def _prompts_or_error(task: str, tokenizer: PreTrainedTokenizerBase, **options: Any) -> list[Prompt] | LongRopeError:
    try:
        return make_prompts(task, tokenizer, **options)
    except LongRopeError as error:
        return error
