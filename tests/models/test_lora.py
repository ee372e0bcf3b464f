"""Adapters of a training read what autocast gives them."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import families
import pytest
import torch

from longrope.models.lora import add_lora, autocast_alone_casts

pytest.importorskip("peft")


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral"])
def test_adapters_without_casts_of_their_own_compute_the_same_bits(family: str) -> None:
    torch.manual_seed(0)
    model: Any = families.build(family)
    model = add_lora(model.to(torch.bfloat16), 4)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # which begins with zeros
            torch.nn.init.normal_(parameter, std=0.05)
    adapters = [module for name, module in model.named_modules() if name.endswith("lora_A.default")]
    tokens = torch.arange(24)[None] % families.VOCABULARY
    read: list[torch.dtype] = []
    for adapter in adapters:
        adapter.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].dtype))

    def gradients(context: Any) -> list[torch.Tensor]:
        read.clear()
        with context, torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=tokens, labels=tokens).loss
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return [loss, *torch.autograd.grad(loss, trained)]

    usual = gradients(nullcontext())
    assert set(read) == {torch.float32}
    ours = gradients(autocast_alone_casts(model))
    assert torch.bfloat16 in read
    assert all(torch.equal(*pair) for pair in zip(usual, ours, strict=True))
    assert any(gradient.any() for gradient in ours[1:])
    gradients(nullcontext())
    assert set(read) == {torch.float32}  # the casts are back
