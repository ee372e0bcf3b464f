"""What waits for the backward pass: as much as may stays, the rest moves, and gradients are the same."""

from __future__ import annotations

import families
import numpy as np
import pytest
import torch
from torch import Tensor

from longrope.data.weighted_text import WeightedText
from longrope.longcontext import cpu_offload, layer_chunks, tiling
from longrope.longcontext.cpu_offload import activation_budget
from longrope.longcontext.token_losses import token_losses
from longrope.longcontext.training_loss import use_chunked_loss
from longrope.objectives.model_loss import ModelObjective
from longrope.rope import Rope
from longrope.schemes import scheme

LENGTH, LAYERS = 60, 4
INPUTS = LAYERS * LENGTH * 64 * 4  # bytes of those of all layers


@pytest.fixture(autouse=True)
def _without_the_check_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first pass of a model checks its chunks in two more passes, whose tensors would be counted."""
    monkeypatch.setattr(tiling, "reason_for_whole_layers", lambda *_, **__: None)


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each tensor that went to main memory."""
    sizes: list[int] = []

    def to_main(one: Tensor) -> Tensor:
        if one.nbytes > 1000:  # factors move too
            sizes.append(one.nbytes)
        return one.clone()

    monkeypatch.setattr(Tensor, "cpu", to_main)
    return sizes


def limit(monkeypatch: pytest.MonkeyPatch, room: float) -> None:
    monkeypatch.setattr(cpu_offload, "SMALL", 1000)
    for module in (cpu_offload, layer_chunks):
        monkeypatch.setattr(module, "activation_budget", lambda _: room)


def of_weights() -> list[Tensor]:
    model = use_chunked_loss(families.build("llama", num_hidden_layers=LAYERS)).train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    x = families.tokens(1, LENGTH)
    model(input_ids=x, labels=x).loss.backward()
    return [one.grad for one in model.parameters() if one.grad is not None]


def of_factors() -> list[Tensor]:
    model = families.build("llama", num_hidden_layers=LAYERS)
    item = WeightedText(families.tokens(1, LENGTH)[0].numpy(), np.full(LENGTH - 1, 1 / (LENGTH - 1)))
    yarn = scheme("yarn", Rope.of(model), 256)
    (answer,) = next(iter(ModelObjective(model, [item]).evaluate([[(yarn, 0)]], gradient=True)))[1]
    return [torch.tensor(answer.gradient)]


@pytest.mark.parametrize("gradients", [of_weights, of_factors])
def test_the_inputs_of_layers(gradients: object, moved: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = gradients()
    assert not moved  # on a CPU all stays
    limit(monkeypatch, 0)
    for one, other in zip(gradients(), wanted, strict=True):
        assert torch.equal(one, other)
    assert INPUTS <= sum(moved) < 2 * INPUTS
    everything = sum(moved)
    moved.clear()
    limit(monkeypatch, INPUTS / 2)
    gradients()
    assert INPUTS / 2 - INPUTS / LAYERS <= everything - sum(moved) <= INPUTS / 2


def test_the_residual_stream(moved: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = families.build("llama"), families.tokens(1, LENGTH).numpy()
    wanted = token_losses(model, x)
    limit(monkeypatch, LENGTH * 64 * 4 - 1)
    assert np.array_equal(token_losses(model, x), wanted)
    assert moved
    assert set(moved) == {LENGTH * 64 * 4}


def test_room_on_other_devices_has_no_end() -> None:
    assert activation_budget("cpu") == float("inf")
