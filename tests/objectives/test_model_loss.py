from __future__ import annotations

import math
from typing import Any

import families
import numpy as np
import pytest
from transformers import PreTrainedModel

from longrope.data.weighted_text import WeightedText, perplexity_texts
from longrope.errors import LongRopeError
from longrope.evaluation.losses import model_losses
from longrope.evaluation.perplexity import perplexity
from longrope.objectives.model_loss import ModelObjective
from longrope.rope import Rope
from longrope.scaling import Scaling
from longrope.schemes import scheme
from longrope.search.protocol import Batch, CandidateLoss

ROPE = Rope(dim=16, base=10000.0, original_length=64)
CANDIDATES = [
    Scaling.identity(ROPE),
    scheme("yarn", ROPE, 128),
    scheme("ntk", ROPE, 128),
    Scaling(np.linspace(1, 3, 8).tolist(), attention_factor=1.2, start_tokens=9),
]
TOKENS = families.tokens(3, 128).numpy()


def evaluate(objective: ModelObjective, batch: Batch, *, gradient: bool = False) -> list[CandidateLoss]:
    return next(iter(objective.evaluate([batch], gradient=gradient)))[1]


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_the_mean_is_the_log_of_the_perplexity(llama: PreTrainedModel, rows: int) -> None:
    objective = ModelObjective(llama, perplexity_texts(TOKENS))
    for factors in CANDIDATES:
        cell = perplexity(llama, TOKENS, [128], scaling=factors)[0]
        batches = [[(factors, i) for i in range(3)[start : start + rows]] for start in range(0, 3, rows)]
        answers = [answer for _, found in objective.evaluate(batches, gradient=False) for answer in found]
        assert np.mean([answer.loss for answer in answers]) == pytest.approx(math.log(cell.perplexity), rel=1e-6)
        assert [answer.loss for answer in answers] == pytest.approx(cell.losses, rel=1e-6)
        assert {type(answer.loss) for answer in answers} == {float}
        assert {answer.gradient for answer in answers} == {None}


@pytest.mark.parametrize("tail", [None, 10])
def test_candidates_and_documents_mixed_in_a_batch_equal_one_by_one(llama: PreTrainedModel, tail: int | None) -> None:
    objective = ModelObjective(llama, perplexity_texts(TOKENS, tail=tail))
    pairs = [(one, item) for item in (2, 0, 1) for one in CANDIDATES]
    expected = {one: model_losses(llama, one, TOKENS)[:, -(tail or 127) :].mean(axis=1) for one in CANDIDATES}
    for batch in (pairs, pairs[::-1], pairs[3:5]):
        losses = [answer.loss for answer in evaluate(objective, batch)]
        assert losses == pytest.approx([expected[one][item] for one, item in batch], abs=1e-5)
        assert losses == pytest.approx([evaluate(objective, [pair])[0].loss for pair in batch], abs=1e-5)


@pytest.mark.parametrize("family", ["gemma3_text", "cohere", "phi3", "gpt_neox", "mixtral"])
def test_rows_with_their_own_factors_in_other_families(family: str) -> None:
    model = families.build(family)
    half = Rope.of(model).dim // 2
    candidates = [Scaling([factor] * half, attention_factor=1.1, start_tokens=i) for i, factor in enumerate((1.5, 3))]
    pairs = [(one, item) for one in candidates for item in range(3)]
    expected = np.stack([model_losses(model, one, TOKENS).mean(axis=1) for one in candidates])
    answers = evaluate(ModelObjective(model, perplexity_texts(TOKENS)), pairs)
    assert [answer.loss for answer in answers] == pytest.approx(expected.flatten().tolist(), abs=1e-5)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3


def test_the_first_batch_of_a_model_may_mix_candidates() -> None:
    """The check of its layers has one row, so it runs before the factors of several rows are in the model."""
    model = families.build("llama", num_hidden_layers=1)
    answers = evaluate(ModelObjective(model, perplexity_texts(TOKENS)), [(one, 0) for one in CANDIDATES])
    expected = [model_losses(model, one, TOKENS[:1]).mean() for one in CANDIDATES]
    assert [answer.loss for answer in answers] == pytest.approx(expected, abs=1e-5)


def test_any_weights_are_those_of_the_tokens(llama: PreTrainedModel) -> None:
    """Also with different numbers of losses at the beginning that do not count."""
    rng = np.random.default_rng(0)
    weights = [np.concatenate([np.zeros(skip), rng.normal(size=127 - skip)]) for skip in (50, 0, 120)]
    items = [WeightedText(row, weight) for row, weight in zip(TOKENS, weights, strict=True)]
    answers = evaluate(ModelObjective(llama, items), [(CANDIDATES[1], i) for i in range(3)])
    expected = (model_losses(llama, CANDIDATES[1], TOKENS).astype(np.float64) * np.array(weights)).sum(axis=1)
    assert [answer.loss for answer in answers] == pytest.approx(expected.tolist(), abs=1e-5)


def test_it_tells_the_length_of_each_item_and_the_index_of_each_batch(llama: PreTrainedModel) -> None:
    objective = ModelObjective(llama, [*perplexity_texts(TOKENS), *perplexity_texts(TOKENS[:1, :70])])
    assert list(objective.tokens) == [128, 128, 128, 70]
    batches = [[(CANDIDATES[1], 3)], [(CANDIDATES[2], 0), (CANDIDATES[2], 1)]]
    assert [(i, len(found)) for i, found in objective.evaluate(batches, gradient=False)] == [(0, 1), (1, 2)]


def test_only_the_tail_goes_through_the_head(llama: PreTrainedModel) -> None:
    positions: list[int] = []
    objective = ModelObjective(llama, perplexity_texts(TOKENS, tail=20))
    with llama.lm_head.register_forward_hook(lambda *made: positions.append(made[2].shape[:-1].numel())):
        evaluate(objective, [(CANDIDATES[1], i) for i in range(3)])
        assert sum(positions) == 3 * 20
        evaluate(objective, [(CANDIDATES[1], 0)], gradient=True)
        assert sum(positions) == 4 * 20


@pytest.mark.parametrize("gradient", [False, True])
def test_nan_weights_give_the_worst_loss_and_no_error(gradient: bool) -> None:
    model = families.build("llama")
    model.model.norm.weight.data.fill_(float("nan"))
    objective = ModelObjective(model, perplexity_texts(TOKENS[:1]))
    assert evaluate(objective, [(CANDIDATES[1], 0)], gradient=gradient)[0].loss == np.inf


def test_a_model_without_rope_is_refused() -> None:
    gpt2 = families.build("gpt2", n_embd=64, n_layer=1, n_head=4, n_positions=64)
    with pytest.raises(LongRopeError, match="model type 'gpt2': its config has no rotary"):
        ModelObjective(gpt2, perplexity_texts(TOKENS))


def test_factors_of_another_rope_are_refused(llama: PreTrainedModel) -> None:
    objective, before = ModelObjective(llama, perplexity_texts(TOKENS)), families.logits(llama, families.tokens(1, 90))
    for gradient in (False, True):
        with pytest.raises(LongRopeError, match="factors: 3 values"):
            evaluate(objective, [(Scaling([1.0, 2.0, 3.0]), 0)], gradient=gradient)
    assert (families.logits(llama, families.tokens(1, 90)) == before).all()


@pytest.mark.parametrize("samples", [[], [[1, 2, 3]], ["a text"]])
def test_samples_that_are_no_weighted_texts_are_refused(llama: PreTrainedModel, samples: list[Any]) -> None:
    with pytest.raises(LongRopeError, match=r"^samples = .*: not weighted texts\. Make some with"):
        ModelObjective(llama, samples)
