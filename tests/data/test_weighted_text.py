from __future__ import annotations

import re
from typing import Any

import families
import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from longrope.data.weighted_text import (
    WeightedText,
    mix_texts,
    needle_texts,
    perplexity_texts,
)
from longrope.errors import LongRopeError
from longrope.longcontext.token_losses import token_losses
from longrope.models.patch import patch
from longrope.objectives.model_loss import ModelObjective
from longrope.scaling import Scaling

SCALING = Scaling(np.linspace(1, 3, 8).tolist(), attention_factor=1.1)
LINE = re.compile(r"^([a-z]{6}) = (\w+ \w+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def reader() -> PreTrainedModel:
    """A model of as many tokens as the bytes' tokenizer has."""
    return families.build("llama", vocab_size=300, num_hidden_layers=1)


@pytest.fixture(scope="module")
def background(bytes_tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """Three documents of 400 tokens."""
    return np.array([bytes_tokenizer(letter * 400)["input_ids"][:400] for letter in "QZJ"])


def losses_of(model: PreTrainedModel, tokens: np.ndarray) -> np.ndarray:
    with patch(model, SCALING):
        return token_losses(model, tokens).astype(np.float64)


def value(model: PreTrainedModel, texts: list[WeightedText]) -> float:
    """Return the loss that a search sees, with one text in a forward pass."""
    objective = ModelObjective(model, texts)
    losses = [batch[0] for _, batch in objective.evaluate([[(SCALING, i)] for i in range(len(texts))], gradient=False)]
    return float(np.mean([loss.loss for loss in losses]))


@pytest.mark.parametrize("tail", [None, 1, 20, 99])
def test_perplexity_is_the_mean_over_the_last_tokens(llama: PreTrainedModel, tail: int | None) -> None:
    tokens = families.tokens(3, 100).numpy()
    texts = perplexity_texts(tokens, tail=tail)
    expected = losses_of(llama, tokens)[:, -(tail or 99) :].mean()
    assert value(llama, texts) == pytest.approx(expected, rel=1e-6)
    assert [text.skip for text in texts] == [99 - (tail or 99)] * 3
    assert all(np.array_equal(text.tokens, row) for text, row in zip(texts, tokens, strict=True))


@pytest.mark.parametrize("tail", [0, -1, 100, 1000])
def test_tails_that_do_not_fit_are_refused(tail: int) -> None:
    with pytest.raises(LongRopeError, match=f"tail = {tail}: not between 1 and 99"):
        perplexity_texts(families.tokens(1, 100).numpy(), tail=tail)


@pytest.mark.parametrize(
    "weights", [np.ones(10), np.ones(8), np.zeros(9), np.array([np.nan, *[1] * 8]), np.array([np.inf, *[1] * 8]), []]
)
def test_bad_weights_are_refused(weights: np.ndarray) -> None:
    with pytest.raises(LongRopeError, match="a text of 10 tokens needs 9 finite weights, not all 0"):
        WeightedText(np.arange(10), np.asarray(weights))


def test_skip_counts_the_zeros_in_front_only() -> None:
    assert WeightedText(np.arange(6), np.array([0, 0, 2.0, 0, 1.0])).skip == 2
    assert WeightedText(np.arange(3), np.array([1.0, 0])).skip == 0


@pytest.mark.parametrize("needles", [1, 2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_only_the_answers_to_planted_lines_count(
    background: np.ndarray, bytes_tokenizer: PreTrainedTokenizerFast, needles: int, seed: int
) -> None:
    texts = needle_texts(background, bytes_tokenizer, needles=needles, seed=seed)
    assert len(texts) == 3
    for text in texts:
        assert text.tokens.shape == (400,)
        assert text.tokens.dtype == np.int64
        lines = LINE.findall(bytes_tokenizer.decode(text.tokens))
        planted, repeated = lines[:-needles], lines[-needles:]
        assert sorted(planted) == sorted(repeated)
        assert len(set(repeated)) == needles
        answers = bytes_tokenizer.decode(text.tokens[1:][text.weights > 0])
        assert answers == "".join(f" {words}" for _, words in repeated)
        assert text.weights.sum() == pytest.approx(1)
        assert len(set(text.weights)) == 2  # 0, and the same for every token of an answer


def test_needles_lie_in_their_own_documents(background: np.ndarray, bytes_tokenizer: PreTrainedTokenizerFast) -> None:
    texts = needle_texts(background, bytes_tokenizer, needles=2, each=2)
    decoded = [bytes_tokenizer.decode(text.tokens) for text in texts]
    assert [max("QZJ", key=text.count) for text in decoded] == list("QQZZJJ")
    assert len({LINE.findall(text)[0] for text in decoded}) == 6


def test_the_seed_decides_the_needles(background: np.ndarray, bytes_tokenizer: PreTrainedTokenizerFast) -> None:
    first, again, other = (
        np.stack([text.tokens for text in needle_texts(background, bytes_tokenizer, seed=seed)]) for seed in (4, 4, 5)
    )
    assert np.array_equal(first, again)
    assert (first != other).any(axis=1).all()


def test_the_loss_of_needles_is_that_of_their_answers(
    reader: PreTrainedModel, background: np.ndarray, bytes_tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = needle_texts(background, bytes_tokenizer, seed=1)
    losses = losses_of(reader, np.stack([text.tokens for text in texts]))
    answers = [row[text.weights > 0].mean() for row, text in zip(losses, texts, strict=True)]
    assert value(reader, texts) == pytest.approx(np.mean(answers), rel=1e-6)


def test_too_short_for_a_needle_is_refused(background: np.ndarray, bytes_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(LongRopeError, match=r"length = 20: too short for needles = 8.*Add \d+ tokens"):
        needle_texts(background[:, :20], bytes_tokenizer, needles=8)


@pytest.mark.parametrize(("length", "planted"), [(100, 1), (200, 3), (256, 4)])
def test_a_short_document_has_fewer_needles(
    background: np.ndarray, bytes_tokenizer: PreTrainedTokenizerFast, length: int, planted: int
) -> None:
    (text,) = needle_texts(background[:1, :length], bytes_tokenizer)
    assert len(text.tokens) == length
    assert bytes_tokenizer.decode(text.tokens).count(" = ") >= 2 * planted
    answers = np.flatnonzero(text.weights)
    assert 1 + np.count_nonzero(np.diff(answers) > 1) == planted


def test_a_mixture_is_the_weighted_sum_of_the_means(
    reader: PreTrainedModel, background: np.ndarray, bytes_tokenizer: PreTrainedTokenizerFast
) -> None:
    mixture = [
        (0.7, perplexity_texts(background)),
        (0.2, needle_texts(background, bytes_tokenizer, each=2)),
        (1.5, perplexity_texts(background[:1, :90], tail=10)),
    ]
    expected = sum(weight * value(reader, texts) for weight, texts in mixture)
    assert value(reader, mix_texts(mixture)) == pytest.approx(expected, rel=1e-6)


def test_one_set_of_weight_1_keeps_its_weights() -> None:
    texts = perplexity_texts(families.tokens(3, 20).numpy(), tail=4)
    for mixed, text in zip(mix_texts([(1.0, texts)]), texts, strict=True):
        assert np.array_equal(mixed.tokens, text.tokens)
        np.testing.assert_allclose(mixed.weights, text.weights)


@pytest.mark.parametrize(("weight", "count"), [(0, 2), (-1, 2), (float("nan"), 2), (1.0, 0)])
def test_empty_sets_and_weights_of_0_are_refused(weight: float, count: int) -> None:
    texts = perplexity_texts(families.tokens(2, 20).numpy())
    with pytest.raises(LongRopeError, match=rf"mixture = {weight} of {count} texts: the weight must be above 0"):
        mix_texts([(1.0, texts), (weight, texts[:count])])


@pytest.mark.parametrize("as_given", [list, torch.tensor, np.array])
def test_tokens_may_be_lists_or_tensors(as_given: Any, bytes_tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = families.tokens(2, 100).numpy()
    for given, expected in zip(perplexity_texts(as_given(tokens.tolist())), perplexity_texts(tokens), strict=True):
        np.testing.assert_array_equal(given.tokens, expected.tokens)
        np.testing.assert_array_equal(given.weights, expected.weights)
    text = WeightedText(as_given([1, 2, 3]), as_given([0, 1]), as_given([0, 5, 9]))
    assert (text.skip, text.reach, text.tokens.dtype, text.weights.dtype) == (1, 10, np.int64, np.float64)
    assert len(needle_texts(as_given(tokens.tolist()), bytes_tokenizer)) == 2


def test_documents_of_several_lengths_are_weighted_each_for_itself() -> None:
    assert [text.weights.tolist() for text in perplexity_texts([[1, 2, 3], [4, 5]])] == [[0.5, 0.5], [1.0]]
    with pytest.raises(LongRopeError, match=r"^tokens\[0\] = a text: not one sequence of token ids"):
        perplexity_texts(["a text"])
