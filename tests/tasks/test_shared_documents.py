"""Prompts that ask several questions of one document."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruler_files import ruler_folder

from longrope.errors import LongRopeError
from longrope.models.load import load_tokenizer
from longrope.tasks.needle_task import NeedleDraft, NeedleTask
from longrope.tasks.prompts import Prompt
from longrope.tasks.registry import TASKS, make_prompts

TOKENIZER = load_tokenizer("tiny")
TEXTS = np.array(TOKENIZER("def f(x):\n    return x + 1\n" * 900)["input_ids"][:6000]).reshape(2, 3000)
SHARED = [
    "niah_single_1",
    "niah_single_2",
    "niah_single_3",
    "niah_multikey_1",
    "niah_multivalue",
    "niah_multiquery",
    "niah_multikey_2",
    "niah_multikey_3",
    "vt",
    "kv_retrieval",
    "json_kv",
    "mrcr",
    "graph_walks",
    "copy",
    "recall",
]
DEPTHS = (0.0, 0.5, 1.0)


def shared_prompts(task: str, **fields: object) -> list[Prompt]:
    """Return seven prompts of 2,500 tokens, four of the first document and three of the second."""
    return make_prompts(task, TOKENIZER, **{"length": 2500, "trials": 7, "questions": 4, "texts": TEXTS, **fields})


def read(tokens: np.ndarray) -> str:
    return str(TOKENIZER.decode(tokens))


@pytest.mark.parametrize("task", SHARED)
def test_a_document_holds_the_answers_of_all_its_questions(task: str) -> None:
    prompts = shared_prompts(task)
    for group in (prompts[:4], prompts[4:]):
        assert len({prompt.document for prompt in group}) == 1
        context = read(group[0].tokens[: group[0].shared])
        questions = [read(prompt.tokens[prompt.shared :]) for prompt in group]
        assert len(set(questions)) == len(group)
        for prompt in group:
            assert 2500 - 150 < len(prompt.tokens) + prompt.room <= 2500
            assert all(context.count(answer) >= 1 for answer in prompt.answers)
    assert prompts[0].document != prompts[4].document
    single = make_prompts(task, TOKENIZER, length=2500, trials=7, texts=TEXTS)
    assert task == "recall" or {prompt.room for prompt in prompts} == {prompt.room for prompt in single}


@pytest.mark.parametrize("task", ["niah_single_1", "niah_single_2", "niah_multikey_1", "niah_multivalue"])
def test_every_key_has_its_numbers_only(task: str) -> None:
    """The lines of the key that is asked for hold the answers, and no other trial's lines do."""
    values = 4 if task == "niah_multivalue" else 1
    for prompt in shared_prompts(task, trials=8):
        pairs = re.findall(r"special magic numbers for ([\w'-]+) is: (\d{7})\.", read(prompt.tokens[: prompt.shared]))
        (key,) = re.findall(r"What .*for ([\w'-]+) mentioned", read(prompt.tokens[prompt.shared :]))
        assert {number for name, number in pairs if name == key} == {*prompt.answers}
        assert len(pairs) == 4 * (4 if task in ("niah_multikey_1", "niah_multivalue") else 1)
        assert len({name for name, _ in pairs}) == len(pairs) // values


def test_the_variables_of_every_question_follow_from_the_text() -> None:
    for prompt in shared_prompts("vt"):
        variables: dict[str, str] = {}
        text = read(prompt.tokens).split("\n\n\n\n")[1]
        for name, copied, value in re.findall(r"VAR (\w+) = (?:VAR (\w+)|(\d+))", text):
            assert name not in variables
            variables[name] = variables[copied] if copied else value
        (queried,) = re.findall(r"assigned the value (\d+) in", text)
        assert {name for name, value in variables.items() if value == queried} == {*prompt.answers}


@pytest.mark.parametrize("task", ["niah_single_1", "niah_single_2", "recall"])
def test_each_needle_has_its_own_depth(task: str) -> None:
    prompts = shared_prompts(task, trials=8, depths=DEPTHS)
    assert [prompt.depth for prompt in prompts] == [DEPTHS[i % 3] for i in range(8)]
    for prompt in prompts:
        context = read(prompt.tokens[: prompt.shared])
        assert context.index(prompt.answers[0]) / len(context) == pytest.approx(prompt.depth, abs=0.12)
    random = [prompt.depth for prompt in shared_prompts(task)]
    assert random == [None] * 7 if task == "recall" else len(set(random)) == 7


@pytest.mark.parametrize("task", ["niah_single_1", "niah_single_2", "vt", "recall"])
@given(seed=st.integers(0, 2**32), trials=st.integers(1, 5), questions=st.integers(2, 4))
def test_a_seed_decides_and_more_trials_begin_with_the_same(task: str, seed: int, trials: int, questions: int) -> None:
    """Also where the last document has fewer questions than the others."""
    fewer, more = (shared_prompts(task, seed=seed, trials=count, questions=questions) for count in (trials, 6))
    for first, same in zip(fewer, more, strict=False):
        np.testing.assert_array_equal(first.tokens, same.tokens)
        assert (first.answers, first.wrong, first.depth) == (same.answers, same.wrong, same.depth)
    borders = [i + 1 for i, (a, b) in enumerate(pairwise(more)) if a.document != b.document]
    assert borders == [*range(questions, 6, questions)]


@pytest.mark.parametrize("task", [task for task in TASKS if task not in SHARED])
def test_tasks_without_keys_are_refused(task: str) -> None:
    with pytest.raises(LongRopeError, match=rf"questions = 4: task {task} has one .* Set questions = 1, or ask by key"):
        shared_prompts(task, ruler_data=ruler_folder())


def few_keys(rng: np.random.Generator, depth: float) -> NeedleDraft:
    key = str(rng.choice(["bolnak", "dimtur"]))
    return NeedleDraft("", (f"\n{key} = a\n",), (depth,), f"\n{key} =", ("a",), ("b",), (key,))


def test_a_task_with_too_few_keys_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "few", NeedleTask(few_keys, room=10))
    assert len({read(prompt.tokens) for prompt in shared_prompts("few", trials=2, questions=2)}) == 2
    with pytest.raises(LongRopeError, match=r"questions = 3: task few has too few keys.* Ask at most 2 questions"):
        shared_prompts("few", questions=3)


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(LongRopeError, match="questions = 0: not at least 1"):
        shared_prompts("recall", questions=0)
    with pytest.raises(LongRopeError, match=r"length = 60: too short for needles = 9, queries = 1\. Add \d+ tokens"):
        shared_prompts("recall", length=60, questions=9)
    with pytest.raises(LongRopeError, match=r"length = 300: too short for task vt .* Use at least \d+"):
        shared_prompts("vt", length=300)
    with pytest.raises(LongRopeError, match="shared = 5: not below the 5 tokens"):
        Prompt(np.arange(5), ("a",), (), None, 4, shared=5)
