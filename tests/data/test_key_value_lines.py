from __future__ import annotations

import re
import string

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from longrope.data.key_value_lines import KeyValueText, make_key_value_text, plant_key_value_lines
from longrope.data.questions import TEXT, ask_questions
from longrope.data.tokenize import encode_within
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
def blank_first() -> PreTrainedTokenizerFast:
    """A tokenizer of characters that puts ``<s>`` and a blank before every text, as SentencePiece in Llama 2."""
    vocabulary = {token: number for number, token in enumerate(["<s>", *string.printable, "▁"])}
    characters = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    characters.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    characters.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    characters.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=characters, bos_token="<s>")


@pytest.fixture(scope="module")
def background(tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    return np.array(tokenizer("A" * 600)["input_ids"])


def runs(text: KeyValueText) -> list[np.ndarray]:
    """Return the token ids of each run of answers."""
    edges = np.flatnonzero(np.diff(text.answers, prepend=False, append=False))
    return [text.tokens[first:last] for first, last in edges.reshape(-1, 2)]


@pytest.mark.parametrize(("needles", "queries"), [(1, 1), (3, 1), (3, 2), (5, 5)])
@pytest.mark.parametrize("seed", range(4))
def test_length_lines_and_answers(
    tokenizer: PreTrainedTokenizerFast, background: np.ndarray, needles: int, queries: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    text = make_key_value_text(background, tokenizer, rng=rng, length=500, needles=needles, queries=queries)
    assert text.tokens.shape == text.answers.shape == (500,)
    assert text.tokens.dtype == np.int64
    assert text.answers.dtype == bool
    lines = LINE.findall(tokenizer.decode(text.tokens))
    planted, repeated = lines[:needles], lines[needles:]
    assert len({key for key, _ in planted}) == needles
    assert len(repeated) == queries
    assert set(repeated) <= set(planted)
    assert [tokenizer.decode(run) for run in runs(text)] == [f" {words}" for _, words in repeated]


def test_the_repeated_tokens_are_the_planted_ones(tokenizer: PreTrainedTokenizerFast, background: np.ndarray) -> None:
    text = make_key_value_text(background, tokenizer, rng=np.random.default_rng(0), length=400, needles=4, queries=4)
    before = text.tokens[: np.argmax(text.answers)]
    for run in runs(text):
        windows = np.lib.stride_tricks.sliding_window_view(before, run.size)
        assert (windows == run).all(1).any()


def test_the_rest_is_the_background_in_order(tokenizer: PreTrainedTokenizerFast) -> None:
    numbers = np.arange(1000, 1500)
    text = make_key_value_text(numbers, tokenizer, rng=np.random.default_rng(1), length=300, needles=2, query_depth=0.5)
    left_over = text.tokens[text.tokens >= 1000]
    assert np.array_equal(left_over, numbers[: left_over.size])


@pytest.mark.parametrize("query_depth", [0.6, 1.0])
@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 1.0])
def test_depth_is_honoured(tokenizer: PreTrainedTokenizerFast, depth: float, query_depth: float) -> None:
    numbers, rng = np.arange(1000, 3000), np.random.default_rng(2)
    text = make_key_value_text(
        numbers, tokenizer, rng=rng, length=1000, needles=3, depth=depth, query_depth=query_depth
    )
    answer = runs(text)[0]
    windows = np.lib.stride_tricks.sliding_window_view(text.tokens, answer.size)
    planted, repeated = np.flatnonzero((windows == answer).all(1))[[0, -1]]
    room = (text.tokens >= 1000).sum()
    before = [(text.tokens[:index] >= 1000).sum() for index in (planted, repeated)]
    assert before == [round(depth * round(query_depth * room)), round(query_depth * room)]


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
    with pytest.raises(LongRopeError, match=r"length = 20: too short for needles = 2, queries = 1\. Add") as raised:
        make_key_value_text(background, tokenizer, rng=np.random.default_rng(7), length=20, needles=2)
    shortest = 20 + int(re.search(r"Add (\d+)", str(raised.value))[1])
    text = make_key_value_text(background, tokenizer, rng=np.random.default_rng(7), length=shortest, needles=2)
    assert text.tokens.size == shortest
    with pytest.raises(LongRopeError, match="Add 1 tokens"):
        make_key_value_text(background, tokenizer, rng=np.random.default_rng(7), length=shortest - 1, needles=2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"queries": 3, "needles": 2}, "queries = 3: not between 1 and needles = 2"),
        ({"depth": 1.5}, "depth = 1.5: not between 0 and 1"),
        ({"query_depth": -0.1}, "query_depth = -0.1: not between 0 and 1"),
        ({"length": 5000}, "background = 600 tokens: length = 5000 needs"),
    ],
)
def test_wrong_arguments_name_themselves(
    tokenizer: PreTrainedTokenizerFast, background: np.ndarray, wrong: dict[str, float], message: str
) -> None:
    with pytest.raises(LongRopeError, match=message):
        make_key_value_text(background, tokenizer, **({"rng": np.random.default_rng(0), "length": 400} | wrong))


def test_lines_have_no_blank_that_a_tokenizer_puts_before_a_text(blank_first: PreTrainedTokenizerFast) -> None:
    document = np.array(blank_first("A" * 900)["input_ids"])
    text = make_key_value_text(document, blank_first, rng=np.random.default_rng(0), length=600, needles=3, queries=3)
    lines = LINE.findall(blank_first.decode(text.tokens))
    assert len(lines) == 6
    for run, (_, words) in zip(runs(text), lines[3:], strict=True):
        assert np.array_equal(run, encode_within(blank_first, [f" {words}"])[0])
    tokens, labels = ask_questions(document, blank_first, np.random.default_rng(0))
    lines = LINE.findall(blank_first.decode(tokens))
    assert len(lines) == 2 * len({key for key, _ in lines}) == 14
    assert not re.search(" [ \\n]", blank_first.decode(tokens[labels != TEXT]))


@pytest.mark.parametrize("seed", range(12))
def test_a_beginning_of_text_token_stays_the_first_one(blank_first: PreTrainedTokenizerFast, seed: int) -> None:
    """A model has never seen it after a line, and many rely on it as the first token."""
    document, rng = np.array(blank_first("A" * 300)["input_ids"]), np.random.default_rng(seed)
    texts = [
        make_key_value_text(document, blank_first, rng=rng, length=70, needles=2).tokens,
        make_key_value_text(document, blank_first, rng=rng, length=200, depth=0.0, query_depth=0.0).tokens,
        plant_key_value_lines(document, blank_first, rng=rng, length=200, depths=[0.0, 0.5])[0].tokens,
        ask_questions(document[:110], blank_first, rng, ["value"])[0],
    ]
    assert [np.flatnonzero(text == blank_first.bos_token_id).tolist() for text in texts] == [[0]] * 4
