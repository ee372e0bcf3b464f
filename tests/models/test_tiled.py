from __future__ import annotations

import families
import pytest
import torch
from families import build, tokens
from torch import Tensor
from transformers import PreTrainedModel

from longrope.models import tiled as module
from longrope.models.tiled import tiled


def hidden(model: PreTrainedModel, x: Tensor) -> Tensor:
    return model.base_model(input_ids=x, use_cache=False).last_hidden_state


@pytest.mark.parametrize("family", families.FAMILIES)
def test_pieces_give_what_the_whole_gives(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, seen = build(family), tokens(2, 50), []
    plain = module._in_pieces

    def watched(forward, piece, hidden, *given, **named):
        seen.append(hidden.shape[1])
        return plain(forward, piece, hidden, *given, **named)

    monkeypatch.setattr(module, "_in_pieces", watched)
    with torch.no_grad():
        whole = hidden(model, x)
        with tiled(model, 14):
            assert torch.allclose(hidden(model, x), whole, rtol=1e-4, atol=1e-4)
        assert torch.equal(hidden(model, x), whole)
    assert len(seen) >= 2 * model.config.num_hidden_layers  # an MLP and a norm of every layer at least
    assert not any("forward" in vars(part) for part in model.modules())


def test_no_mlp_sees_more_than_a_piece() -> None:
    model, sizes = build("llama"), []
    for layer in model.model.layers:
        layer.mlp.gate_proj.register_forward_hook(lambda _, given, __: sizes.append(given[0].shape[:2].numel()))
    with torch.no_grad(), tiled(model, 14):
        hidden(model, tokens(2, 50))
    assert max(sizes) == 14
    assert sum(sizes) == 2 * 100


def test_an_error_inside_restores_the_model() -> None:
    model = build("llama")
    with pytest.raises(RuntimeError, match="mine"), tiled(model, 7):
        raise RuntimeError("mine")
    assert not any("forward" in vars(part) for part in model.modules())
