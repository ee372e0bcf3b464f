from __future__ import annotations

import numpy as np
import pytest
from transformers import PreTrainedModel

from longrope.errors import LongRopeError
from longrope.evaluation.key_tokens import key_tokens
from longrope.evaluation.losses import model_losses
from longrope.evaluation.sliding_window import sliding_losses
from longrope.models.load import load
from longrope.rope import Rope
from longrope.scaling import Extension
from longrope.schemes import scheme

TEXT = np.random.default_rng(0).integers(1, 60, 150)


@pytest.mark.parametrize(("length", "stride"), [(64, 32), (64, 63), (64, 1), (50, 7), (150, 10), (149, 148)])
def test_each_token_is_scored_by_the_first_window_that_has_it(llama: PreTrainedModel, length: int, stride: int) -> None:
    found = sliding_losses(llama, None, TEXT, length=length, stride=stride, batch=3)
    starts = [*range(0, len(TEXT) - length, stride), len(TEXT) - length]
    for token in range(1, len(TEXT)):
        start = next(one for one in starts if token < one + length)
        alone = model_losses(llama, None, TEXT[start : start + length][None])[0]
        assert found[token - 1] == pytest.approx(alone[token - start - 1], abs=1e-5)


def test_factors_are_those_of_the_window_not_of_the_text(llama: PreTrainedModel) -> None:
    rope = Rope.of(llama)
    extension = Extension.of(rope, scheme("ntk", rope, 150))
    plain = sliding_losses(llama, None, TEXT, length=64, stride=20)
    assert np.array_equal(sliding_losses(llama, extension, TEXT, length=64, stride=20), plain)
    long = sliding_losses(llama, extension, TEXT, length=65, stride=20)
    assert np.allclose(long, sliding_losses(llama, extension.long, TEXT, length=65, stride=20))
    assert not np.allclose(long, sliding_losses(llama, None, TEXT, length=65, stride=20))


@pytest.mark.parametrize(("length", "stride"), [(151, 3), (64, 64), (64, 0)])
def test_windows_that_do_not_fit(llama: PreTrainedModel, length: int, stride: int) -> None:
    with pytest.raises(LongRopeError, match=f"stride = {stride} with windows of {length} tokens over a text of 150"):
        sliding_losses(llama, None, TEXT, length=length, stride=stride)


def test_key_tokens_are_those_that_were_planted_far_before() -> None:
    """`tiny` recalls `key = word word` lines: beyond the window, the words are key tokens."""
    model, tokenizer = load("tiny")
    rng = np.random.default_rng(0)
    filler = tokenizer("\n".join(f"x{i} = f(y[{rng.integers(99)}])" for i in range(60)))["input_ids"][:400]
    line = tokenizer("\nbolkar = violet harbor\n", add_special_tokens=False)["input_ids"]
    text = np.array(filler[:100] + line + filler[100:200] + line)
    indices = set(key_tokens(model, None, text, window=64))
    words = set(range(len(text) - 1 - len(line), len(text) - 1))
    assert indices & words
    assert len(indices - words) <= 2
    with pytest.raises(LongRopeError, match="windows of 4096 tokens over a text of"):
        key_tokens(model, None, text, window=4096)
