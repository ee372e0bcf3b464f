"""Texts whose positions jump, which let a search for a long context read short sequences."""

from __future__ import annotations

import families
import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from longrope.data.documents import Document
from longrope.data.search_texts import SearchTextSpec, search_texts
from longrope.data.weighted_text import (
    WeightedText,
    perplexity_texts,
    with_position_jumps,
)
from longrope.longcontext.token_losses import token_losses
from longrope.models.patch import patch
from longrope.objectives.model_loss import ModelObjective
from longrope.scaling import Scaling
from longrope.search.run import data_hash

SCALING = Scaling(np.linspace(1, 3, 8).tolist(), attention_factor=1.1)
SIZE, LENGTH = 60, 400


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return families.build("llama")


@pytest.fixture(scope="module")
def texts() -> list[WeightedText]:
    return with_position_jumps(perplexity_texts(families.tokens(4, SIZE).numpy()), LENGTH)


def test_one_jump_each_and_the_last_reaches_the_length(texts: list[WeightedText]) -> None:
    for number, text in enumerate(texts, start=1):
        assert text.positions is not None
        steps = np.diff(text.positions)
        jump = (LENGTH - SIZE) * number // len(texts)
        assert text.positions[0] == 0
        assert sorted(steps)[:-1] == [1] * (SIZE - 2)
        assert steps.max() == jump + 1
        assert text.reach == text.positions[-1] + 1 == SIZE + jump
    assert texts[-1].reach == LENGTH


def test_the_seed_decides_the_places() -> None:
    plain = perplexity_texts(families.tokens(4, SIZE).numpy())
    first, same, other = (with_position_jumps(plain, LENGTH, seed=seed) for seed in (1, 1, 2))
    assert data_hash(first) == data_hash(same)
    assert len({data_hash(first), data_hash(other), data_hash(plain)}) == 3


def test_the_losses_are_those_of_one_text_at_those_positions(model: PreTrainedModel, texts: list[WeightedText]) -> None:
    tokens, positions = np.stack([text.tokens for text in texts]), np.stack([text.positions for text in texts])
    losses = token_losses(model, tokens, positions=positions, batch=3)
    rows = torch.from_numpy(tokens)
    logits = model(
        input_ids=rows, position_ids=torch.from_numpy(positions), attention_mask=torch.ones_like(rows)
    ).logits
    chances = logits[:, :-1].double().log_softmax(-1)
    expected = -chances.gather(-1, rows[:, 1:, None])[..., 0].detach().numpy()
    np.testing.assert_allclose(losses, expected, atol=1e-5)
    assert np.abs(losses - token_losses(model, tokens)).max() > 1e-3


def test_positions_in_order_change_nothing(model: PreTrainedModel) -> None:
    tokens = families.tokens(2, SIZE).numpy()
    plain = np.tile(np.arange(SIZE), (2, 1))
    np.testing.assert_allclose(token_losses(model, tokens, positions=plain), token_losses(model, tokens), atol=1e-6)


def test_an_objective_reads_positions(model: PreTrainedModel, texts: list[WeightedText]) -> None:
    """Alone, in one batch with other candidates, and beside a text without positions."""
    mixture = [*texts, *perplexity_texts(families.tokens(1, SIZE).numpy())]
    objective, other = ModelObjective(model, mixture), Scaling([2.0] * 8)
    batch = [(SCALING, 3), (other, 3), (SCALING, 4)]
    together = next(iter(objective.evaluate([batch], gradient=False)))[1]
    for (scaling, index), answer in zip(batch, together, strict=True):
        text = mixture[index]
        positions = None if text.positions is None else text.positions[None]
        with patch(model, scaling):
            losses = token_losses(model, text.tokens[None], positions=positions)
        assert answer.loss == pytest.approx(float(losses[0] @ text.weights), abs=1e-5)


def test_the_slope_is_the_derivative(texts: list[WeightedText]) -> None:
    model = families.build("llama").double()
    objective, logs = ModelObjective(model, texts), np.log([*SCALING.factors, SCALING.attention_factor])

    def loss(logs: np.ndarray, *, gradient: bool = False) -> tuple[float, np.ndarray]:
        *factors, attention = np.exp(logs)
        scaling = Scaling(factors, attention_factor=attention)
        (answer,) = next(iter(objective.evaluate([[(scaling, 3)]], gradient=gradient)))[1]
        return answer.loss, np.array(answer.gradient or ())

    slopes = loss(logs, gradient=True)[1]
    moves = 1e-3 * np.eye(len(logs))
    expected = [(loss(logs + move)[0] - loss(logs - move)[0]) / 2e-3 for move in moves]
    np.testing.assert_allclose(slopes, expected, rtol=0.02, atol=1e-4)
    assert np.abs(slopes).max() > 1e-3


def test_short_documents_are_enough_for_a_long_length(bytes_tokenizer: PreTrainedTokenizerFast) -> None:
    documents = [Document(str(i), f"text number {i} " * 40) for i in range(3)]
    texts, names = search_texts(documents, bytes_tokenizer, SearchTextSpec([150, 5000], 2, needles=0.5, window=300))
    assert len(names) == 2
    assert {(len(text.tokens), text.positions is None) for text in texts} == {(150, True), (300, False)}
    assert max(text.reach for text in texts) == 5000
