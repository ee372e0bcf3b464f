"""The gradient of a model's loss by the factors, against finite differences and against autograd."""

from __future__ import annotations

from functools import partial

import families
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from longrope.data.weighted_text import WeightedText, perplexity_texts
from longrope.errors import LongRopeError
from longrope.longcontext import token_losses as loss_module
from longrope.longcontext.tiling import tiled_layers
from longrope.models.rotary_slot import find_rotary_slot
from longrope.objectives import model_loss as objective_module
from longrope.objectives.model_loss import ModelObjective
from longrope.rope import Rope
from longrope.scaling import Scaling
from longrope.search.protocol import CandidateLoss

LENGTH = 100
CAPS = {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 10.0}
FIELDS = {"gemma2": CAPS, "cohere": {"logit_scale": 0.3}, "mixtral": {"experts_implementation": "eager"}}
FIELDS |= {"qwen2_moe": FIELDS["mixtral"]}


def build(family: str) -> PreTrainedModel:
    return families.build(family, **FIELDS.get(family, {}))


def items_of(rows: int = 1) -> list[WeightedText]:
    """Weights of every size, some of them negative, none in front."""
    weights = np.random.default_rng(0).normal(0.02, 0.01, (rows, LENGTH - 1))
    weights[:, :7] = 0
    return [
        WeightedText(row, weight) for row, weight in zip(families.tokens(rows, LENGTH).numpy(), weights, strict=True)
    ]


def scaling_of(model: PreTrainedModel, start_tokens: int = 0) -> Scaling:
    factors = np.linspace(1.1, 2.5, Rope.of(model).dim // 2).tolist()
    return Scaling(factors, attention_factor=1.1, start_tokens=start_tokens)


def answer_of(objective: ModelObjective, scaling: Scaling, *, gradient: bool = True, item: int = 0) -> CandidateLoss:
    return next(iter(objective.evaluate([[(scaling, item)]], gradient=gradient)))[1][0]


def slopes(model: PreTrainedModel, scaling: Scaling) -> np.ndarray:
    return np.array(answer_of(ModelObjective(model, items_of()), scaling).gradient)


class Plain(nn.Module):
    """Cos and sin in float64 as a formula that autograd differentiates."""

    def __init__(self, rope: Rope, scaling: Scaling) -> None:
        super().__init__()
        self.inv_freq, self.start_tokens = torch.from_numpy(rope.inv_freq), scaling.start_tokens
        logs = np.log([*scaling.factors, scaling.attention_factor])
        self.logs = nn.Parameter(torch.from_numpy(logs))

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        positions = position_ids[..., None].double()
        divided = torch.where(positions >= self.start_tokens, torch.exp(-self.logs[:-1]), 1.0)
        phases = (positions * divided * self.inv_freq).repeat(1, 1, 2)
        attention = torch.exp(self.logs[-1])
        return (attention * phases.cos()).to(x.dtype), (attention * phases.sin()).to(x.dtype)


def by_autograd(model: PreTrainedModel, scaling: Scaling) -> tuple[float, np.ndarray]:
    """Loss and gradient from the whole logits at once."""
    rotary, (item,) = find_rotary_slot(model), items_of()
    plain = Plain(rotary.rope, scaling)
    rotary.rescale(plain)
    try:
        tokens = torch.from_numpy(item.tokens)
        logits = model(input_ids=tokens[None], use_cache=False).logits[0, :-1].double()
        loss = torch.from_numpy(item.weights) @ cross_entropy(logits, tokens[1:], reduction="none")
        (slope,) = torch.autograd.grad(loss, plain.logs)
    finally:
        rotary.use_originals()
    return loss.item(), slope.numpy()


@pytest.mark.parametrize("start_tokens", [0, 5])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_it_is_what_autograd_says_of_the_formula(family: str, start_tokens: int) -> None:
    model = build(family)
    model = model if "moe" in family or family == "mixtral" else model.double()
    scaling = scaling_of(model, start_tokens)
    answer = answer_of(ModelObjective(model, items_of()), scaling)
    loss, expected = by_autograd(model, scaling)
    assert answer.loss == pytest.approx(loss, abs=1e-5)
    np.testing.assert_allclose(answer.gradient, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def differences(objective: ModelObjective, scaling: Scaling, step: float) -> np.ndarray:
    """Central ones by the log of each factor and of the attention factor."""
    logs = np.log([*scaling.factors, scaling.attention_factor])

    def loss(moved: np.ndarray) -> float:
        *factors, attention = np.exp(moved).tolist()
        candidate = Scaling(factors, attention_factor=attention, start_tokens=scaling.start_tokens)
        return answer_of(objective, candidate, gradient=False).loss

    moves = step * np.eye(len(logs))
    return np.array([(loss(logs + move) - loss(logs - move)) / (2 * step) for move in moves])


@pytest.mark.parametrize("start_tokens", [0, 5])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi3", "gpt_neox", "cohere", "glm"])
def test_it_is_what_finite_differences_say(family: str, start_tokens: int) -> None:
    """In float64, but for cos and sin: so the steps are not small, and two of them make the error one of h⁴."""
    model = build(family).double()
    objective, scaling = ModelObjective(model, items_of()), scaling_of(model, start_tokens)
    coarse, fine = (differences(objective, scaling, step) for step in (2e-3, 1e-3))
    slope = np.array(answer_of(objective, scaling).gradient)
    np.testing.assert_allclose(slope, (4 * fine - coarse) / 3, rtol=0, atol=5e-4)
    assert np.abs(slope).max() > 2e-3
    assert abs(slope[-1]) > 2e-3


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "granite", "mixtral"])
def test_the_loss_is_the_one_without_a_gradient(family: str) -> None:
    model = build(family)
    objective, scaling = ModelObjective(model, items_of()), scaling_of(model, 3)
    with_slope, without = (answer_of(objective, scaling, gradient=gradient).loss for gradient in (True, False))
    assert with_slope == pytest.approx(without, abs=1e-5)


def test_each_pair_of_a_batch_has_its_own(llama: PreTrainedModel) -> None:
    objective = ModelObjective(llama, items_of(2))
    pairs = [(scaling_of(llama), 1), (scaling_of(llama, 5), 0), (scaling_of(llama), 0)]
    ((_, answers),) = objective.evaluate([pairs], gradient=True)
    assert answers == [answer_of(objective, one, item=item) for one, item in pairs]


@pytest.mark.parametrize("at_once", [1, families.VOCABULARY * 7, families.VOCABULARY * 60])
@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere"])
def test_chunks_of_the_head_make_no_difference(family: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = build(family), []
    objective, scaling = ModelObjective(model, items_of()), scaling_of(model)
    whole = answer_of(objective, scaling)
    monkeypatch.setattr(loss_module, "LOGITS_AT_ONCE", at_once)
    with model.get_output_embeddings().register_forward_hook(lambda *made: sizes.append(made[2].numel())):
        parts = answer_of(objective, scaling)
    np.testing.assert_allclose(parts.gradient, whole.gradient, rtol=1e-4, atol=1e-6)
    assert parts.loss == pytest.approx(whole.loss, abs=1e-5)
    assert max(sizes) <= max(at_once, families.VOCABULARY)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_pieces_of_the_sequence_make_no_difference(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers run once more in the backward pass, piece by piece; windows shorter than a piece and longer."""
    model, seen = build(family), []
    objective, scaling = ModelObjective(model, items_of()), scaling_of(model)
    whole = answer_of(objective, scaling)
    monkeypatch.setattr(objective_module, "tiled_layers", partial(tiled_layers, chunk_size=23))
    mlp = next(module for name, module in model.base_model.layers[-1].named_children() if "mlp" in name)
    with mlp.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1])):
        parts = answer_of(objective, scaling)
    assert seen == [23, 23, 23, 23, 8, 8, 23, 23, 23, 23]
    assert parts.loss == pytest.approx(whole.loss, abs=1e-5)
    np.testing.assert_allclose(parts.gradient, whole.gradient, rtol=1e-3, atol=1e-6)


def test_dropout_is_off() -> None:
    """Also where the model is in training mode, which it then still is."""
    model = families.build("llama", attention_dropout=0.5)
    objective = ModelObjective(model, items_of())
    still = answer_of(objective, scaling_of(model))
    model.train()
    assert answer_of(objective, scaling_of(model)) == still
    assert all(module.training for module in model.modules())


def state(model: PreTrainedModel) -> list[object]:
    """All that a gradient might leave behind."""
    flags = [(name, parameter.requires_grad, parameter.grad) for name, parameter in model.named_parameters()]
    modes = [(name, type(module), module.training) for name, module in model.named_modules()]
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    kept = [(vars(one).get("gradient_checkpointing"), vars(one).get("_gradient_checkpointing_func")) for one in layers]
    names = [sorted(vars(module)) for module in model.modules()]
    return [flags, modes, kept, names, torch.is_grad_enabled()]


def half_frozen(family: str) -> PreTrainedModel:
    """Some weights are frozen, one layer is in training mode, as a user may have them."""
    model = families.build(family)
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 2 == 0)
    next(module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)).training = True
    return model


class BoomError(Exception):
    """What goes wrong."""


def boom(*_: object) -> None:
    raise BoomError


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("fails", ["", "backbone", "head", "backward"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_the_model_is_what_it_was(family: str, fails: str, gradient: bool) -> None:
    model, x = half_frozen(family), families.tokens(2, 90)
    objective, scaling = ModelObjective(model, items_of()), scaling_of(model)
    before, logits = state(model), families.logits(model, x)
    if fails == "head":
        hook = model.get_output_embeddings().register_forward_hook(boom)
    elif fails == "backward":
        hook = model.get_output_embeddings().register_full_backward_hook(boom)
    else:
        hook = model.base_model.layers[1].register_forward_hook(boom if fails else lambda *_: None)
    with hook:
        if fails and (gradient or fails != "backward"):
            with pytest.raises(BoomError):
                answer_of(objective, scaling, gradient=gradient)
        else:
            answer_of(objective, scaling, gradient=gradient)
    assert state(model) == before
    assert torch.equal(families.logits(model, x), logits)


def test_a_models_own_checkpointing_is_what_it_was() -> None:
    model = families.build("llama")
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    before = state(model)
    slope = slopes(model, scaling_of(model))
    assert state(model) == before
    np.testing.assert_allclose(slope, slopes(families.build("llama"), scaling_of(model)), rtol=1e-5)


def test_a_model_whose_weights_carry_gradients_keeps_them() -> None:
    model, x = families.build("llama"), families.tokens(1, 50)
    model(input_ids=x, labels=x).loss.backward()
    before = [parameter.grad.clone() for parameter in model.parameters()]
    slopes(model, scaling_of(model))
    assert all(torch.equal(one.grad, old) for one, old in zip(model.parameters(), before, strict=True))


def test_out_of_memory_names_the_length_and_a_remedy(llama: PreTrainedModel) -> None:
    def greedy(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    before = state(llama)
    with (
        llama.model.layers[1].register_full_backward_hook(greedy),
        pytest.raises(
            LongRopeError,
            match=r"out of memory at length 100 for a gradient on cpu; .*method without gradients \(cma\)",
        ),
    ):
        slopes(llama, scaling_of(llama))
    assert state(llama) == before


def test_bfloat16_gives_nearly_the_same() -> None:
    model = families.build("llama", num_hidden_layers=1)
    exact = slopes(model, scaling_of(model))
    coarse = slopes(model.to(torch.bfloat16), scaling_of(model))
    assert np.abs(coarse - exact).max() < 0.1 * np.abs(exact).max()
    assert not np.array_equal(coarse, exact)


def test_tail_items_have_the_gradient_of_their_tail() -> None:
    """The sum of the tail's gradient and of the rest's, by weight, is the whole's."""
    model, tokens = families.build("llama").double(), families.tokens(1, LENGTH).numpy()
    (whole,), (tail,) = perplexity_texts(tokens), perplexity_texts(tokens, tail=30)
    rest = WeightedText(whole.tokens, np.where(tail.weights > 0, 0, 1 / 69))
    found = [
        np.array(answer_of(ModelObjective(model, [one]), scaling_of(model)).gradient) for one in (whole, tail, rest)
    ]
    np.testing.assert_allclose(found[0], (30 * found[1] + 69 * found[2]) / 99, rtol=1e-4, atol=1e-6)
