"""Averages of two models' weights, on tiny random models of several kinds of attention."""

from __future__ import annotations

import copy
from typing import Any

import all_types
import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from longrope.models.average import mix_weights
from longrope.models.backbone import backbone_of

HIDDEN = torch.randn(1, 8, 64, generator=torch.Generator().manual_seed(0))


class ReachedError(Exception):
    """A signal to leave the model at its attention."""


def queries_and_keys(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """Return what the first layer's attention makes of `HIDDEN`."""
    backbone: Any = backbone_of(model)
    attention, seen = backbone.layers[0].self_attn, []

    def record(_: Any, query: Tensor, key: Tensor, *__: Any, **___: Any) -> None:
        seen.append((query, key))
        raise ReachedError

    AttentionInterface.register("recorded", record)
    monkeypatch.setattr(attention.config, "_attn_implementation", "recorded")
    embeddings = backbone.rotary_emb(HIDDEN, torch.arange(8)[None])
    with torch.no_grad(), pytest.raises(ReachedError):
        attention(hidden_states=HIDDEN, position_embeddings=embeddings, attention_mask=None)
    return seen[0]


@pytest.mark.parametrize("kind", ["qwen3", "phi3", "deepseek_v2", "deepseek_v3", "hunyuan_v1_dense"])
def test_queries_and_keys_stay_the_models_own(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In DeepSeek, low-rank projections make them."""
    model = all_types.build(kind)
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.data.normal_(generator=torch.Generator().manual_seed(1))
    before = queries_and_keys(model, monkeypatch)
    mix_weights(model, other, 1.0)
    for own, mixed, others in zip(
        before, queries_and_keys(model, monkeypatch), queries_and_keys(other, monkeypatch), strict=True
    ):
        assert torch.equal(mixed, own)
        assert not torch.allclose(mixed, others)
    name = "model.layers.0.self_attn.o_proj.weight"
    assert torch.equal(model.get_parameter(name), other.get_parameter(name))
