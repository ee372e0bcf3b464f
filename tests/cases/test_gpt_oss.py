"""gpt-oss with plain rope: its rotary module returns one value for each pair, where others repeat it."""

from __future__ import annotations

from typing import Any

import families
import torch
from families import build, logits, tokens
from transformers import PreTrainedModel

from longrope.models.patch import patch
from longrope.rope import Rope
from longrope.scaling import Scaling
from longrope.schemes import scheme


def gpt_oss(**rope_parameters: Any) -> PreTrainedModel:
    fields = {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16}
    return build("gpt_oss", **fields, rope_parameters={"rope_theta": 1e4, **rope_parameters})


def test_factors_in_gpt_oss_are_those_of_transformers() -> None:
    model, sample = gpt_oss(rope_type="default"), tokens(1, 2 * families.L0)
    rope = Rope.of(model)
    plain = logits(model, sample)
    with patch(model, Scaling.identity(rope)):
        assert torch.equal(logits(model, sample), plain)
    with patch(model, scheme("pi", rope, 8 * families.L0)):
        extended = logits(model, sample)
    assert (extended - plain).abs().max() > 0.1
    torch.testing.assert_close(extended, logits(gpt_oss(rope_type="linear", factor=8.0), sample), atol=1e-4, rtol=1e-4)
    assert torch.equal(logits(model, sample), plain)
