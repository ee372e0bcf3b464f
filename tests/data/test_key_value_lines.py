from __future__ import annotations

import re

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from longrope.data.key_value_lines import KeyValueText, make_key_value_text
from longrope.errors import LongRopeError

LINE = re.compile(r"^([a-z]{6}) = (\w+ \w+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(["x = apple pearl\n"] * 9, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=bpe)


@pytest.fixture(scope="module")
def background(tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    return np.array(tokenizer("A" * 600)["input_ids"])


def runs(recall: KeyValueText) -> list[np.ndarray]:
    """The token ids of each stretch of answers."""
    edges = np.flatnonzero(np.diff(recall.answers, prepend=False, append=False))
    return [recall.tokens[first:last] for first, last in edges.reshape(-1, 2)]


@pytest.mark.parametrize(("needles", "asked"), [(1, 1), (3, 1), (3, 2), (5, 5)])
@pytest.mark.parametrize("seed", range(4))
def test_length_lines_and_answers(
    tokenizer: PreTrainedTokenizerFast, background: np.ndarray, needles: int, asked: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    recall = make_key_value_text(background, tokenizer, rng=rng, length=500, needles=needles, asked=asked)
    assert recall.tokens.shape == recall.answers.shape == (500,)
    assert recall.tokens.dtype == np.int64
    assert recall.answers.dtype == bool
    lines = LINE.findall(tokenizer.decode(recall.tokens))
    planted, repeated = lines[:needles], lines[needles:]
    assert len({key for key, _ in planted}) == needles
    assert len(repeated) == asked
    assert set(repeated) <= set(planted)
    assert [tokenizer.decode(run) for run in runs(recall)] == [f" {words}" for _, words in repeated]


def test_the_repeated_tokens_are_the_planted_ones(tokenizer: PreTrainedTokenizerFast, background: np.ndarray) -> None:
    recall = make_key_value_text(background, tokenizer, rng=np.random.default_rng(0), length=400, needles=4, asked=4)
    before = recall.tokens[: np.argmax(recall.answers)]
    for run in runs(recall):
        windows = np.lib.stride_tricks.sliding_window_view(before, run.size)
        assert (windows == run).all(1).any()


def test_the_rest_is_the_background_in_order(tokenizer: PreTrainedTokenizerFast) -> None:
    numbers = np.arange(1000, 1500)
    recall = make_key_value_text(numbers, tokenizer, rng=np.random.default_rng(1), length=300, needles=2, asked_at=0.5)
    kept = recall.tokens[recall.tokens >= 1000]
    assert np.array_equal(kept, numbers[: kept.size])


@pytest.mark.parametrize("asked_at", [0.6, 1.0])
@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 1.0])
def test_depth_is_honoured(tokenizer: PreTrainedTokenizerFast, depth: float, asked_at: float) -> None:
    numbers, rng = np.arange(1000, 3000), np.random.default_rng(2)
    recall = make_key_value_text(numbers, tokenizer, rng=rng, length=1000, needles=3, depth=depth, asked_at=asked_at)
    answer = runs(recall)[0]
    windows = np.lib.stride_tricks.sliding_window_view(recall.tokens, answer.size)
    planted, repeated = np.flatnonzero((windows == answer).all(1))[[0, -1]]
    room = (recall.tokens >= 1000).sum()
    before = [(recall.tokens[:place] >= 1000).sum() for place in (planted, repeated)]
    assert before == [round(depth * round(asked_at * room)), round(asked_at * room)]


def test_the_seed_decides(tokenizer: PreTrainedTokenizerFast, background: np.ndarray) -> None:
    first, again, other = (
        make_key_value_text(background, tokenizer, rng=np.random.default_rng(seed), length=300, needles=3).tokens
        for seed in (5, 5, 6)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_shortest_length_works_and_one_less_raises(
    tokenizer: PreTrainedTokenizerFast, background: np.ndarray
) -> None:
    with pytest.raises(LongRopeError, match="length=20 is too short for needles=2, asked=1: add") as raised:
        make_key_value_text(background, tokenizer, rng=np.random.default_rng(7), length=20, needles=2)
    shortest = 20 + int(re.search(r"add (\d+)", str(raised.value))[1])
    recall = make_key_value_text(background, tokenizer, rng=np.random.default_rng(7), length=shortest, needles=2)
    assert recall.tokens.size == shortest
    with pytest.raises(LongRopeError, match="add 1 tokens"):
        make_key_value_text(background, tokenizer, rng=np.random.default_rng(7), length=shortest - 1, needles=2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"asked": 3, "needles": 2}, "asked=3 must lie between 1 and needles=2"),
        ({"depth": 1.5}, "depth=1.5"),
        ({"asked_at": -0.1}, "asked_at=-0.1"),
        ({"length": 5000}, "background has 600 tokens"),
    ],
)
def test_wrong_arguments_name_themselves(
    tokenizer: PreTrainedTokenizerFast, background: np.ndarray, wrong: dict[str, float], message: str
) -> None:
    with pytest.raises(LongRopeError, match=message):
        make_key_value_text(background, tokenizer, **({"rng": np.random.default_rng(0), "length": 400} | wrong))
