from __future__ import annotations

import families
import pytest
import torch
from families import build, tokens
from torch import Tensor
from transformers import PreTrainedModel

from longrope.errors import LongRopeError
from longrope.longcontext.frozen_context import FrozenLayer, capture_context, hidden_in_context
from longrope.longcontext.key_rotation import KeyRotation
from longrope.models.patch import patch
from longrope.rope import Rope
from longrope.scaling import Scaling

LENGTH = 120
SELECTED = torch.cat([torch.arange(40, 48), torch.arange(90, 100), torch.tensor([119])])
VARIANTS = {
    "gemma2, capped": ("gemma2", {"sliding_window": 9, "attn_logit_softcapping": 2.0}),
    "mistral, windows": ("mistral", {"sliding_window": 9}),
    **{name: (name, {}) for name in families.FAMILIES},
}


def hidden(model: PreTrainedModel, x: Tensor) -> Tensor:
    return model.base_model(input_ids=x, use_cache=False).last_hidden_state


def factors(model: PreTrainedModel, largest: float) -> Scaling:
    pairs = Rope.of(model).dim // 2
    return Scaling(torch.linspace(1, largest, pairs).tolist())


def positions(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1])[None]


def in_context(model: PreTrainedModel, x: Tensor, contexts: list[FrozenLayer], selected: Tensor = SELECTED) -> Tensor:
    with hidden_in_context(model, x, positions(x), selected, contexts) as last:
        return last


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_selected_tokens_are_those_of_a_full_pass_in_their_own_context(variant: str) -> None:
    family, fields = VARIANTS[variant]
    model, x = build(family, **fields), tokens(1, LENGTH)
    with patch(model, factors(model, 4.0)):
        whole = hidden(model, x)
        contexts, last = capture_context(model, x, positions(x))
        assert torch.allclose(last, whole, rtol=1e-4, atol=1e-4)
        selected = in_context(model, x, contexts)
    assert torch.allclose(selected, whole[:, SELECTED], rtol=1e-3, atol=1e-3)
    assert not any("forward" in vars(part) for part in model.modules())


@pytest.mark.parametrize("variant", ["llama", "gemma2, capped"])
@torch.no_grad()
def test_rotations_that_were_found_serve_other_texts_and_factors(variant: str) -> None:
    family, fields = VARIANTS[variant]
    model, x = build(family, **fields), tokens(1, LENGTH)
    found = [layer.rotation for layer in capture_context(model, x.flip(1), positions(x))[0]]
    with patch(model, factors(model, 4.0)):
        contexts, last = capture_context(model, x, positions(x))
        again, same = capture_context(model, x, positions(x), rotations=found)
    assert torch.equal(last, same)
    for layer, other in zip(contexts, again, strict=True):
        assert torch.equal(layer.keys, other.keys)
        assert torch.equal(layer.values, other.values)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in families.BY_LAYER])
@torch.no_grad()
def test_contexts_rotate_anew(variant: str) -> None:
    """The first layer's keys before rotation do not depend on factors, so it is exact in any context."""
    family, fields = VARIANTS[variant]
    model, x = build(family, **{**fields, "num_hidden_layers": 1}), tokens(1, LENGTH)
    with patch(model, factors(model, 4.0)):
        contexts, _ = capture_context(model, x, positions(x))
        before = in_context(model, x, contexts)
    with patch(model, factors(model, 2.0)):
        whole = hidden(model, x)
        selected = in_context(model, x, contexts)
    assert torch.allclose(selected, whole[:, SELECTED], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(before, selected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "olmo2", "olmo3"])
@torch.no_grad()
def test_contexts_of_bfloat16_models_whose_cos_and_sin_may_be_float32(family: str) -> None:
    model, x = build(family).to(torch.bfloat16), tokens(1, LENGTH)
    contexts, whole = capture_context(model, x, positions(x))
    assert {layer.keys.dtype for layer in contexts} == {torch.bfloat16}
    selected = in_context(model, x, contexts).float()
    assert (selected - whole[:, SELECTED]).norm() < 0.05 * whole[:, SELECTED].norm()


@torch.no_grad()
def test_all_tokens_selected_are_a_full_pass_in_any_context() -> None:
    model, x = build("llama"), tokens(1, LENGTH)
    with patch(model, factors(model, 4.0)):
        contexts, _ = capture_context(model, x, positions(x))
    with patch(model, factors(model, 2.0)):
        whole = hidden(model, x)
        selected = in_context(model, x, contexts, torch.arange(LENGTH))
    assert torch.allclose(selected, whole, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_deeper_layers_see_the_hidden_states_of_the_reference() -> None:
    model, x = build("llama"), tokens(1, LENGTH)
    with patch(model, factors(model, 4.0)):
        contexts, _ = capture_context(model, x, positions(x))
    with patch(model, factors(model, 1.5)):
        whole = hidden(model, x)[:, SELECTED]
        selected = in_context(model, x, contexts)
    assert not torch.allclose(selected, whole, rtol=1e-3, atol=1e-3)


def test_layers_that_are_not_rotated_in_pairs_are_refused() -> None:
    mixing = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    key = torch.randn(1, 2, 4, 8, generator=torch.Generator().manual_seed(1))
    with pytest.raises(LongRopeError, match="not rotated in pairs"):
        KeyRotation.of(lambda cos, sin: key * cos[:, None] + (key @ mixing) * sin[:, None], torch.ones(1, 4, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("passed", [0, 4])
def test_a_rotation_is_found_and_undone(*, interleaved: bool, passed: int, dtype: torch.dtype) -> None:
    """Half-split or interleaved, with dimensions that do not rotate in front."""
    generator = torch.Generator().manual_seed(2)
    key = torch.randn(1, 2, 4, passed + 8, generator=generator).to(dtype)
    angles = torch.rand(1, 4, 4, generator=generator)
    cos, sin = (part.repeat(1, 1, 2).to(dtype) for part in (1.1 * angles.cos(), 1.1 * angles.sin()))

    def keys_of(cos: Tensor, sin: Tensor) -> Tensor:
        x = key[..., passed:]
        if interleaved:
            by_pair = [part[:, None, :, :4].repeat_interleave(2, dim=-1) for part in (cos, sin)]
            turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
        else:
            by_pair = [cos[:, None], sin[:, None]]
            turned = torch.cat([-x[..., 4:], x[..., :4]], dim=-1)
        return torch.cat([key[..., :passed], x * by_pair[0] + turned * by_pair[1]], dim=-1)

    rotation = KeyRotation.of(keys_of, cos)
    rotated = keys_of(cos, sin)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    assert torch.allclose(rotation.rotate(key, cos, sin), rotated, atol=tolerance)
    assert torch.allclose(rotation.undo(rotated, cos, sin), key, atol=tolerance)
    assert (rotation.sign != 0).sum() == 8
