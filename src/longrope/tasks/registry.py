"""The retrieval tasks by name: RULER's thirteen, and others that need no download."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from longrope.errors import LongRopeError, unknown
from longrope.tasks.conversation import mrcr, random_turn
from longrope.tasks.graph import graph_walks, random_edge
from longrope.tasks.haystack import NOISE, drawn, essays, repeated
from longrope.tasks.key_value_task import KeyValueTask
from longrope.tasks.lookups import copy, json_kv, kv_retrieval, number_string, passkey, random_pair, random_word
from longrope.tasks.needle_task import NeedleTask
from longrope.tasks.prompts import Prompt, PromptRequest, Task
from longrope.tasks.question_task import QuestionTask
from longrope.tasks.ruler import distractor, niah, variables
from longrope.tasks.ruler_words import common_words, frequent_words
from longrope.tasks.word_list_task import WordListTask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def _niah_essay(**options: Any) -> NeedleTask:
    return NeedleTask(partial(niah, line=" {}", **options), room=128, haystack=essays)


def _niah_needles(key: str, value: str) -> NeedleTask:
    haystack = drawn(partial(distractor, key=key, value=value))
    return NeedleTask(partial(niah, key=key, value=value), room=128, haystack=haystack)


TASKS: dict[str, Task] = {
    "niah_single_1": NeedleTask(niah, room=128),
    "niah_single_2": _niah_essay(),
    "niah_single_3": _niah_essay(value="uuids"),
    "niah_multikey_1": _niah_essay(keys=4),
    "niah_multikey_2": _niah_needles("words", "numbers"),
    "niah_multikey_3": _niah_needles("uuids", "uuids"),
    "niah_multivalue": _niah_essay(values=4),
    "niah_multiquery": _niah_essay(keys=4, queries=4),
    "vt": NeedleTask(variables, room=30, haystack=repeated(f" {NOISE}\n")),
    "cwe": WordListTask(common_words, room=120),
    "fwe": WordListTask(frequent_words, room=50),
    "qa_1": QuestionTask("squad"),
    "qa_2": QuestionTask("hotpotqa"),
    "passkey": NeedleTask(passkey, room=16),
    "number_string": NeedleTask(number_string, room=24),
    "kv_retrieval": NeedleTask(kv_retrieval, room=64, haystack=drawn(random_pair, cut=False)),
    "json_kv": NeedleTask(json_kv, room=64, haystack=drawn(random_pair, cut=False)),
    "mrcr": NeedleTask(mrcr, room=128, haystack=drawn(random_turn)),
    "graph_walks": NeedleTask(graph_walks, room=64, haystack=drawn(random_edge, cut=False)),
    "copy": NeedleTask(copy, room=64, haystack=drawn(random_word)),
    "recall": KeyValueTask(),
}
RULER = (
    *("niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3"),
    *("niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "qa_1", "qa_2"),
)
OTHER_NAMES = {  # of the same tasks in other suites
    "ruler_vt": "vt",
    "ruler_cwe": "cwe",
    "ruler_fwe": "fwe",
    "ruler_qa_squad": "qa_1",
    "ruler_qa_hotpot": "qa_2",
    "number_retrieval": "number_string",
    "passkey_retrieval": "passkey",
    "graphwalks": "graph_walks",
}


def task_names(names: Sequence[str]) -> list[str]:
    """Return the names of tasks with ``ruler`` and ``all`` replaced by the tasks that they stand for."""
    groups = {"ruler": RULER, "all": tuple(TASKS)}
    return list(dict.fromkeys(task for name in names for task in groups.get(name, (name,))))


def check_task(task: str) -> None:
    """Raise an error if there is no such task, with the name that it has here if it is another suite's.

    Raises:
        LongRopeError: If the task is unknown.
    """
    if task in OTHER_NAMES:
        raise LongRopeError(f"task = {task!r}: another suite's name. Here the task is {OTHER_NAMES[task]}.")
    if task not in TASKS:
        raise unknown(
            "task", task, TASKS, " (tasks of lm-evaluation-harness are not retrieval tasks: give them as tasks)"
        )


def make_prompts(task: str, tokenizer: PreTrainedTokenizerBase, **fields: Any) -> list[Prompt]:
    """Return prompts of one task, each of ``length`` tokens with the room for its answer.

    Equal seeds give equal prompts, and a larger number of trials begins with the same ones. Needles, sentences and
    words are encoded whole, so only the haystack is ever cut. Where a list of whole entries is the haystack, a prompt
    may be shorter by less than one entry.

    Args:
        task: Key of `TASKS`; those of `RULER` have RULER's words, parameters and scores (arXiv 2404.06654).
        tokenizer: Tokenizer of the model.
        **fields: Further fields of `longrope.tasks.prompts.PromptRequest`: ``length`` and ``trials``, and ``texts``,
            ``depths``, ``seed``, ``questions``, ``chat`` and ``ruler_data``.

    Raises:
        LongRopeError: If the task is unknown, the length is too short, a number is out of range, texts are missing, or
            the task's questions cannot share a document.
    """
    check_task(task)
    request = PromptRequest(task, tokenizer, **fields)
    prompts = TASKS[task].prompts(request)
    if request.questions > 1 and not all(prompt.shared for prompt in prompts):
        raise request.not_shareable()
    return prompts
