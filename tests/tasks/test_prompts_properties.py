from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruler_files import ruler_folder

from longrope.models.load import load_tokenizer
from longrope.tasks.registry import TASKS, make_prompts

TOKENIZER = load_tokenizer("tiny")
TEXTS = np.array(TOKENIZER("def f(x):\n    return x + 1\n" * 900)["input_ids"][:4000])[None]
EXAMPLES = settings(max_examples=4)
REQUEST = {"length": st.integers(1500, 3000), "trials": st.integers(1, 3), "seed": st.integers(0, 2**32)}
DATA = {"texts": TEXTS, "ruler_data": ruler_folder()}
ENTRY = 120  # tokens of a pair of identifiers, the longest entry that is never cut
DEPTHS = st.none() | st.lists(st.floats(0, 1), min_size=1, max_size=3)


@pytest.mark.parametrize("task", TASKS)
@EXAMPLES
@given(**REQUEST, depths=DEPTHS)
def test_every_answer_is_in_the_prompt_and_the_length_is_exact(
    task: str, length: int, trials: int, seed: int, depths: list[float] | None
) -> None:
    prompts = make_prompts(task, TOKENIZER, length=length, trials=trials, depths=depths, seed=seed, **DATA)
    assert len(prompts) == trials
    for prompt in prompts:
        text = TOKENIZER.decode(prompt.tokens)
        assert length - ENTRY <= len(prompt.tokens) + prompt.room <= length
        assert prompt.answers
        assert all(answer in text for answer in prompt.answers)
        assert not set(prompt.answers) & set(prompt.wrong)


@pytest.mark.parametrize("task", TASKS)
@EXAMPLES
@given(**REQUEST, depths=DEPTHS)
def test_a_seed_decides_the_prompts_and_more_begin_with_the_same(
    task: str, length: int, trials: int, seed: int, depths: list[float] | None
) -> None:
    request = {"length": length, "depths": depths, "seed": seed, **DATA}
    fewer, more = (make_prompts(task, TOKENIZER, trials=count, **request) for count in (trials, trials + 2))
    for first, same in zip(fewer, more, strict=False):
        np.testing.assert_array_equal(first.tokens, same.tokens)
        assert (first.answers, first.wrong, first.depth) == (same.answers, same.wrong, same.depth)


@pytest.mark.parametrize("task", ["passkey", "niah_single_1", "niah_single_2"])
@given(seed=st.integers(0, 2**32))
def test_a_deeper_needle_comes_later(task: str, seed: int) -> None:
    depths = [0.0, 0.25, 0.5, 0.75, 1.0]
    prompts = make_prompts(task, TOKENIZER, length=2000, trials=5, texts=TEXTS, depths=depths, seed=seed)
    places = [TOKENIZER.decode(prompt.tokens).index(prompt.answers[0]) for prompt in prompts]
    assert places == sorted(places)
    assert len(set(places)) == 5
