"""A key that stands for n tokens has the weight of n copies of it, in every family."""

from __future__ import annotations

import all_types
import families
import pytest
import torch
from torch import Tensor

from longrope.errors import LongRopeError
from longrope.longcontext.sparse_attention import (
    check_sparse_windows,
    sparse_inputs,
    sparse_masks,
    use_weighted_attention,
)
from longrope.models.backbone import backbone_of

FIRST, LAST, COPIES = 9, 11, 4
SLIDING = {"mistral": {"sliding_window": 30}, "gemma2": {"sliding_window": 30}}
CASES = [(name, {}) for name in families.FAMILIES] + [
    (name, SLIDING[name]) for name in SLIDING if name in families.FAMILIES
]


BY_MASKS = {"mistral", "gemma2", "stablelm", "nemotron", "gemma3_text", "olmo3"}  # sliding windows, or attention's code


def hidden(model: object, ids: Tensor, positions: Tensor, mask: object = None, **inputs: object) -> Tensor:
    inputs = inputs or {"attention_mask": mask}
    with torch.inference_mode():
        return backbone_of(model)(input_ids=ids, position_ids=positions, use_cache=False, **inputs)[0]


@pytest.mark.parametrize("attention", ["sdpa", "eager", "weighted"])
@pytest.mark.parametrize(("family", "fields"), CASES, ids=[f"{name}{'-sliding' * bool(more)}" for name, more in CASES])
def test_a_weighed_key_is_as_many_copies(family: str, fields: dict[str, int], attention: str) -> None:
    model = families.build(family, **fields)
    if family == "gemma2" and attention == "sdpa":
        pytest.skip("its soft cap needs eager attention")
    check_sparse_windows(model.config)
    if attention == "weighted":
        assert use_weighted_attention(model) == (family not in BY_MASKS)
    else:
        model.set_attn_implementation(attention)
    ids = families.tokens(1, FIRST + LAST)
    positions = torch.cat([torch.arange(FIRST), torch.arange(COPIES * FIRST, COPIES * FIRST + LAST)])[None]
    chunk_ids = (positions >= FIRST).long()
    key_bias = torch.where(chunk_ids == 0, torch.log(torch.tensor(float(COPIES))), 0.0)
    found = hidden(model, ids, positions, **sparse_inputs(model, positions, chunk_ids, key_bias))[:, FIRST:]

    copied_ids = torch.cat([ids[:, :FIRST]] * COPIES + [ids[:, FIRST:]], dim=1)
    copied_positions = torch.cat([positions[:, :FIRST]] * COPIES + [positions[:, FIRST:]], dim=1)
    copy = torch.cat([torch.arange(COPIES).repeat_interleave(FIRST), torch.full((LAST,), COPIES)])
    distance = copied_positions[0][:, None] - copied_positions[0]
    seen = (distance >= 0) & ((copy[:, None] == copy) | (copy[:, None] == COPIES))
    lowest = torch.finfo(torch.float32).min
    masks = {
        "full_attention": seen,
        "sliding_attention": seen & (distance < (getattr(model.config, "sliding_window", None) or 10**9)),
    }
    masks = {name: torch.zeros(seen.shape).masked_fill(~mask, lowest)[None, None] for name, mask in masks.items()}
    types = getattr(model.config, "layer_types", None) or ["sliding_attention"]
    wanted = hidden(model, copied_ids, copied_positions, masks if len(set(types)) > 1 else masks[types[0]])[:, -LAST:]
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)

    unweighed = hidden(model, ids, positions, **sparse_inputs(model, positions, chunk_ids, 0 * key_bias))[:, FIRST:]
    assert (unweighed - found).abs().max() > 1e-4


@pytest.mark.parametrize("family", families.FAMILIES)
def test_without_gaps_the_mask_is_the_causal_one(family: str) -> None:
    model, ids = families.build(family), families.tokens(2, 30)
    positions = torch.arange(30).expand(2, -1)
    zeros = torch.zeros(2, 30)
    found = hidden(model, ids, positions, sparse_masks(model, positions, zeros.long(), zeros))
    torch.testing.assert_close(found, hidden(model, ids, positions, None), atol=1e-5, rtol=1e-4)


def test_attention_that_takes_no_bias_is_refused() -> None:
    model = families.build("llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(LongRopeError, match=r"attention 'flash_attention_2' takes no weights of keys\. Load the model"):
        check_sparse_windows(model.config)


def test_layers_that_are_no_attention_are_refused() -> None:
    model = families.build("lfm2", layer_types=["conv", "full_attention"])
    with pytest.raises(LongRopeError, match=r"layers of the type conv need every token in between"):
        check_sparse_windows(model.config)


def test_a_layer_that_fails_with_more_dimensions_keeps_the_masks() -> None:
    model = all_types.build("jetmoe")
    assert not use_weighted_attention(model)
    assert model.config._attn_implementation == "sdpa"


def test_an_error_of_the_model_leaves_its_attention_as_it_was() -> None:
    model, passes = families.build("llama"), iter(range(2))

    def interrupt(*_: object) -> None:
        if next(passes):
            raise KeyboardInterrupt

    hook = model.model.norm.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        use_weighted_attention(model)
    hook.remove()
    assert model.config._attn_implementation == "sdpa"
