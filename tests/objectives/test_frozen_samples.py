from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from families import build

from longrope.data.weighted_text import WeightedText
from longrope.objectives import frozen_samples
from longrope.objectives.frozen_samples import BLOCK, BLOCKS, COST, LEAD, FrozenSample, FrozenSamples
from longrope.objectives.model_loss import ModelObjective
from longrope.scaling import Scaling
from longrope.search.protocol import CandidateLoss, context_tokens

LENGTH, CPU = 2048, torch.device("cpu")


def text(length: int, counted: slice = slice(None), seed: int = 0) -> WeightedText:
    weights = np.zeros(length - 1)
    weights[counted] = 1 / len(weights[counted])
    return WeightedText(np.random.default_rng(seed).integers(3, 128, length), weights)


def losses(objective: ModelObjective, candidate: Scaling, **context: Scaling) -> list[float]:
    return [answer.loss for answer in answers(objective, candidate, gradient=False, **context)]


def answers(
    objective: ModelObjective, candidate: Scaling, *, gradient: bool, **context: Scaling
) -> list[CandidateLoss]:
    batches = [[(candidate, index)] for index in range(len(objective.samples))]
    evaluate = objective.evaluate_in_context if context else objective.evaluate
    return [answer for _, (answer,) in evaluate(batches, gradient=gradient, **context)]


def scaling(largest: float) -> Scaling:
    return Scaling(np.linspace(1, largest, 8).tolist())


@pytest.fixture(scope="module")
def objective() -> ModelObjective:
    """Two long samples: all losses count, or the last 40."""
    return ModelObjective(build("llama"), [text(LENGTH), text(LENGTH, slice(LENGTH - 41, None), seed=1)])


def test_blocks_lie_in_all_parts_and_weigh_as_much_as_the_sample() -> None:
    sample = text(LENGTH, slice(500, None))
    frozen = FrozenSample.of(sample, (3,), CPU)
    selected = frozen.selected.numpy()
    assert (np.diff(selected) >= 1).all()
    assert len(selected) <= BLOCKS * BLOCK
    assert selected[0] >= 500
    assert selected[-1] < LENGTH - 1
    parts = np.histogram(selected, np.linspace(500, LENGTH - 1, BLOCKS + 1))[0]
    assert (parts > 0).all()
    assert frozen.weights.sum() == pytest.approx(sample.weights.sum())
    assert torch.equal(frozen.targets[0, 1:], frozen.tokens[0, frozen.selected + 1])


def test_seeds_choose_other_blocks_and_equal_seeds_the_same() -> None:
    first, same, other = (FrozenSample.of(text(LENGTH), seed, CPU).selected for seed in ((0, 1), (0, 1), (0, 2)))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_losses_that_lie_together_are_all_computed() -> None:
    sample = text(LENGTH, slice(LENGTH - 41, None))
    frozen = FrozenSample.of(sample, (0,), CPU)
    assert torch.equal(frozen.selected, torch.arange(LENGTH - 41 - LEAD, LENGTH - 1))
    assert frozen.weights == pytest.approx(sample.weights[LENGTH - 41 - LEAD :])


def test_answers_in_a_document_are_all_computed_with_their_own_weights() -> None:
    sample, answers = text(LENGTH), slice(LENGTH - 30, LENGTH - 10)
    sample.weights[answers] = 0.2 / 20
    frozen = FrozenSample.of(sample, (0,), CPU)
    selected, weights = frozen.selected.numpy(), frozen.weights
    assert set(range(LENGTH - 30 - LEAD, LENGTH - 10)) <= set(selected)
    is_answer = (selected >= answers.start) & (selected < answers.stop)
    assert weights[is_answer] == pytest.approx(0.2 / 20)
    assert weights[~is_answer].sum() == pytest.approx(sample.weights.sum() - 0.2)
    assert len(selected) <= BLOCKS * BLOCK + 20 + LEAD


@pytest.mark.parametrize("weights", [[0.125] * 8, [0.1] * 7 + [0.3], [-0.125] * 8])
def test_few_losses_far_apart_are_all_computed(weights: list[float]) -> None:
    """Also fewer than blocks, and with negative weights."""
    sample, places = text(LENGTH, slice(0, 1)), np.linspace(7, LENGTH - 9, 8).astype(int)
    sample.weights[:] = 0
    sample.weights[places] = weights
    frozen = FrozenSample.of(sample, (0,), CPU)
    selected = frozen.selected.numpy()
    assert frozen.weights[np.isin(selected, places)] == pytest.approx(weights)
    assert frozen.weights.sum() == pytest.approx(sum(weights))
    assert len(selected) <= 8 * (BLOCK + LEAD + 1)


def test_the_reference_itself_gets_a_full_pass(objective: ModelObjective) -> None:
    assert losses(objective, scaling(4.0), reference=scaling(4.0)) == pytest.approx(losses(objective, scaling(4.0)))


def test_in_its_own_context_a_gradient_is_that_of_the_selected_tokens(objective: ModelObjective) -> None:
    """The answers of the second sample are all selected, so the loss is that of a full pass too."""
    reference = scaling(4.0)
    full, frozen = (
        answers(objective, reference, gradient=True, **context)[1] for context in ({}, {"reference": reference})
    )
    assert frozen.loss == pytest.approx(full.loss, rel=1e-5)
    assert full.gradient is not None
    assert frozen.gradient is not None
    assert np.corrcoef(full.gradient[2:], frozen.gradient[2:])[0, 1] > 0.9


def test_a_gradient_in_a_context_is_the_slope_of_the_loss_there(objective: ModelObjective) -> None:
    reference, candidate, step = scaling(4.0), scaling(3.5), 1e-3
    answer = answers(objective, candidate, gradient=True, reference=reference)[0]
    assert answer.gradient is not None
    for pair in (5, 7):
        sides = []
        for sign in (1, -1):
            factors = list(candidate.factors)
            factors[pair] *= float(np.exp(sign * step))
            sides.append(losses(objective, Scaling(factors), reference=reference)[0])
        assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(answer.gradient[pair], rel=0.02, abs=1e-4)


def test_losses_do_not_depend_on_what_was_asked_before(objective: ModelObjective) -> None:
    fresh = ModelObjective(objective.model, objective.samples)
    losses(objective, scaling(2.0), reference=scaling(2.0))
    expected = losses(objective, scaling(3.0), reference=scaling(4.0))
    assert losses(fresh, scaling(3.0), reference=scaling(4.0)) == expected


def test_costs(objective: ModelObjective) -> None:
    assert context_tokens(objective) == (COST * BLOCKS * BLOCK, COST * (40 + LEAD))


def test_short_samples_have_no_contexts(caplog: pytest.LogCaptureFixture) -> None:
    assert context_tokens(ModelObjective(build("llama"), [text(300)])) == ()
    assert not caplog.records


def test_a_layer_that_the_capture_cannot_reach_means_full_passes(caplog: pytest.LogCaptureFixture) -> None:
    model = build("llama")
    model.set_attn_implementation("eager")
    assert context_tokens(ModelObjective(model, [text(LENGTH)])) == ()
    assert "full passes instead of frozen contexts" in caplog.text


def test_contexts_without_room_mean_full_passes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(frozen_samples, "free_memory", lambda _device: 1000)
    assert context_tokens(ModelObjective(build("llama"), [text(LENGTH)])) == ()
    assert "more than half of the free memory" in caplog.text


def test_only_the_latest_contexts_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    samples: Sequence[WeightedText] = [text(LENGTH), text(LENGTH, seed=1)]
    frozen = FrozenSamples(build("llama"), samples)
    assert frozen.why_full_passes() is None
    monkeypatch.setattr(frozen, "_most", 2)
    for largest in (2.0, 3.0):
        frozen.capture(scaling(largest), 0)
    frozen.capture(scaling(3.0), 1)
    assert [frozen.has(scaling(largest), 0) for largest in (2.0, 3.0)] == [False, True]
    frozen.release()
    assert not frozen.has(scaling(3.0), 0)
