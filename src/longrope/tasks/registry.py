"""The retrieval tasks by name: passkey, RULER's tasks, and recall of planted lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from longrope.errors import LongRopeError, unknown
from longrope.tasks.key_value_task import KeyValueTask
from longrope.tasks.needle_task import NeedleDraft, NeedleTask
from longrope.tasks.prompts import Prompt, PromptRequest, Task
from longrope.tasks.ruler import common_words, frequent_words, niah, passkey, variables
from longrope.tasks.word_list_task import WordListTask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def _niah(**options: int) -> Callable[[np.random.Generator, float], NeedleDraft]:
    return partial(niah, **options)


TASKS: dict[str, Task] = {
    "passkey": NeedleTask(passkey, room=16),
    "niah_single_1": NeedleTask(niah, room=24),
    "niah_single_2": NeedleTask(niah, room=24, needs_texts=True),
    "niah_multikey_1": NeedleTask(_niah(keys=4), room=24, needs_texts=True),
    "niah_multivalue": NeedleTask(_niah(values=4), room=64, needs_texts=True),
    "niah_multiquery": NeedleTask(_niah(keys=4, queries=4), room=64, needs_texts=True),
    "vt": NeedleTask(variables, room=64),
    "cwe": WordListTask(common_words, room=128),
    "fwe": WordListTask(frequent_words, room=48),
    "recall": KeyValueTask(),
}


def make_prompts(
    task: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    trials: int,
    texts: np.ndarray | None = None,
    depths: Sequence[float] | None = None,
    seed: int = 0,
    questions: int = 1,
) -> list[Prompt]:
    """Return prompts of one task, each of exactly ``length`` tokens with the room for its answer.

    Equal seeds give equal prompts, and a larger number of trials begins with the same ones. Needles, sentences and
    words are encoded whole, so only the haystack is ever cut.

    Args:
        task: Key of `TASKS`; the names are RULER's (arXiv 2404.06654), the wording is not.
        tokenizer: Tokenizer of the model.
        length: Length of a prompt with its room, in tokens.
        trials: Number of prompts.
        texts: Token ids of real documents, for tasks that hide needles in them, ``(documents, at least length)``.
        depths: Depths of the needle, from 0 to 1, in turn; random ones if None. Tasks with several needles ignore them.
        seed: Seed of all random choices.
        questions: Number of prompts that share a document. Above 1, a document holds the needles of that many prompts,
            and `longrope.tasks.scoring.score_prompts` reads it once for all of them.

    Raises:
        LongRopeError: If the task is unknown, the length is too short, a number is out of range, texts are missing, or
            the task's questions cannot share a document.
    """
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    if trials < 1:
        raise LongRopeError(f"trials = {trials}: not at least 1. Ask for one trial or more.")
    if questions < 1:
        raise LongRopeError(f"questions = {questions}: not at least 1. Ask for one question a document or more.")
    for depth in depths or ():
        if not 0 <= depth <= 1:
            raise LongRopeError(f"depths = {depth}: not between 0 and 1, the beginning and the end. Give a share.")
    first = tokenizer("a")["input_ids"][:1]
    start = np.array(first if first == [tokenizer.bos_token_id] else [], dtype=np.int64)
    request = PromptRequest(task, tokenizer, length, trials, texts, depths, seed, start, questions)
    prompts = TASKS[task].prompts(request)
    if questions > 1 and not all(prompt.shared for prompt in prompts):
        raise request.not_shareable()
    return prompts
