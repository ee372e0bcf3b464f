"""Long texts of exact length in tokens that end in a question: passkey, RULER's tasks and recall of planted lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from longrope.errors import LongRopeError, unknown
from longrope.tasks.prompts import Prompt, PromptRequest, key_value_prompts, needle_prompts, word_list_prompts
from longrope.tasks.ruler import (
    NeedleDraft,
    common_words,
    frequent_words,
    niah,
    passkey,
    variables,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Task:
    """How the probes of a task are made, and whether that needs real documents."""

    make: Callable[[PromptRequest], list[Prompt]]
    real: bool = False


def make_prompts(
    task: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    trials: int,
    texts: np.ndarray | None = None,
    depths: Sequence[float] | None = None,
    seed: int = 0,
) -> list[Prompt]:
    """Probes of one task, each of exactly ``length`` tokens with the room for the answer.

    The same seed gives the same probes, and more of them begin with the same ones. Texts are put together from the
    tokens of whole needles, sentences and words, so only the haystack is ever cut.

    Args:
        task: a key of `TASKS`; the names are RULER's (arXiv 2404.06654), the words are not.
        tokenizer: of the model.
        length: in tokens.
        trials: probes.
        texts: real documents for the tasks that hide needles in them, ``(documents, at least length)``.
        depths: where the asked needle lies, from 0 to 1, in turn; random if None. Only where a single one is asked.
        seed: of all that is random.

    Raises:
        LongRopeError: if the task is unknown, the length too short (says which is enough), a number out of range,
            or texts are missing.
    """
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    if trials < 1:
        raise LongRopeError(f"trials = {trials} must be at least 1")
    for depth in depths or ():
        if not 0 <= depth <= 1:
            raise LongRopeError(f"depths = {depth} must lie between 0 and 1, the beginning and the end of the text")
    first = tokenizer("a")["input_ids"][:1]
    start = np.array(first if first == [tokenizer.bos_token_id] else [], dtype=np.int64)
    return TASKS[task].make(PromptRequest(task, tokenizer, length, trials, texts, depths, seed, start))


def _needles(draft: Callable[..., NeedleDraft], *, room: int, real: bool = False, **options: int) -> Task:
    return Task(partial(needle_prompts, draft=partial(draft, **options), room=room, real=real), real)


TASKS = {
    "passkey": _needles(passkey, room=16),
    "niah_single_1": _needles(niah, room=24),
    "niah_single_2": _needles(niah, room=24, real=True),
    "niah_multikey_1": _needles(niah, room=24, real=True, keys=4),
    "niah_multivalue": _needles(niah, room=64, real=True, values=4),
    "niah_multiquery": _needles(niah, room=64, real=True, keys=4, asked=4),
    "vt": _needles(variables, room=64),
    "cwe": Task(partial(word_list_prompts, draft=common_words, room=128)),
    "fwe": Task(partial(word_list_prompts, draft=frequent_words, room=48)),
    "recall": Task(key_value_prompts, real=True),
}
