from __future__ import annotations

import copy
from typing import Any

import families
import pytest
import torch
from families import build, from_config, logits, tokens
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from longrope.errors import LongRopeError
from longrope.models.cache import cache_argument
from longrope.models.patch import install_factors, patch
from longrope.models.rotary_slot import find_rotary_slot
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import scheme

LENGTH = 512
each_family = pytest.mark.parametrize("family", families.FAMILIES)


def yarn(model: PreTrainedModel) -> Scaling:
    return scheme("yarn", Rope.of(model), LENGTH)


def patched(model: PreTrainedModel, factors: object, x: Tensor) -> Tensor:
    with patch(model, factors):
        return logits(model, x)


@pytest.fixture
def llama() -> PreTrainedModel:
    return build("llama")


@each_family
def test_identity_leaves_the_logits_bit_equal(family: str) -> None:
    model, x = build(family), tokens(2, 100)
    assert torch.equal(patched(model, Scaling.identity(Rope.of(model)), x), logits(model, x))


def test_identity_leaves_a_dynamic_scaling_as_it_was() -> None:
    """The probe's passes of 2·L0 tokens grow its frequencies, which transformers keeps for a text of L0 tokens."""
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    model = build("llama", rope_parameters=dynamic)
    x = tokens(1, families.L0)
    before = logits(model, x)
    assert torch.equal(patched(model, Scaling.identity(Rope.of(model)), x), before)
    assert torch.equal(logits(model, x), before)


def test_frequencies_in_float16_are_those_of_the_config() -> None:
    """The lowest ones lie near its smallest numbers, 6e-8 apart."""
    model = build("llama", head_dim=128, rope_parameters={"rope_type": "default", "rope_theta": 1e7}).half()
    assert model.model.rotary_emb.inv_freq.dtype == torch.float16
    assert find_rotary_slot(model).rope.base == 1e7


@each_family
def test_factors_of_almost_1_leave_the_logits_almost_equal(family: str) -> None:
    model, x = build(family), tokens(2, 100)
    near = Scaling([1 + 1e-5] * (Rope.of(model).dim // 2))
    torch.testing.assert_close(patched(model, near, x), logits(model, x), rtol=0, atol=2e-2)


@each_family
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_cos_and_sin_look_like_the_originals(family: str, dtype: torch.dtype) -> None:
    model = build(family)
    x, positions = torch.zeros(2, 70, 64, dtype=dtype), torch.arange(70).expand(2, -1)
    layer_type = ["full_attention"] if family in families.BY_LAYER else []
    theirs = find_rotary_slot(model).module(x, positions, *layer_type)
    with patch(model, Scaling([1 + 1e-5] * (Rope.of(model).dim // 2))):
        stand_in = find_rotary_slot(model).module
        assert stand_in is not find_rotary_slot(model).originals[0]
        for one, other in zip(stand_in(x, positions, *layer_type), theirs, strict=True):
            torch.testing.assert_close(one, other.expand_as(one), rtol=0, atol=1e-2)  # also the dtypes


@each_family
def test_yarn_is_transformers_yarn(family: str) -> None:
    model, x = build(family), tokens(2, 150)
    config = copy.deepcopy(model.config)
    parameters = config.rope_parameters.get("full_attention", config.rope_parameters)
    parameters.update(rope_type="yarn", factor=LENGTH / families.L0, original_max_position_embeddings=families.L0)
    config.max_position_embeddings = LENGTH
    before, ours, theirs = logits(model, x), patched(model, yarn(model), x), logits(from_config(config), x)
    assert 0.1 < theirs.std() < 10
    assert (ours - before).abs().max() > 1e-2
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


@each_family
def test_a_patch_undoes_itself(family: str) -> None:
    model, x = build(family), tokens(2, 100)
    before, modules = logits(model, x), [(name, type(module)) for name, module in model.named_modules()]
    changed = patched(model, yarn(model), x)
    assert not torch.equal(changed, before)
    assert torch.equal(logits(model, x), before)
    assert [(name, type(module)) for name, module in model.named_modules()] == modules


@pytest.mark.parametrize("family", families.BY_LAYER)
def test_sliding_layers_keep_their_rotation(family: str) -> None:
    model, x = build(family), tokens(1, 100)
    rotary = next(module for module in model.modules() if hasattr(module, "full_attention_inv_freq"))
    hidden, positions = torch.zeros(1, 100, 64), torch.arange(100)[None]
    with patch(model, yarn(model)):
        stand_in = model.model.rotary_emb
        assert stand_in is not rotary
        ours = [stand_in(hidden, positions, kind)[0] for kind in ("sliding_attention", "full_attention")]
    theirs = [rotary(hidden, positions, kind)[0] for kind in ("sliding_attention", "full_attention")]
    assert torch.equal(ours[0], theirs[0])
    assert not torch.allclose(ours[1], theirs[1])
    kinds = set(model.config.layer_types)
    assert kinds == {"sliding_attention", "full_attention"}
    model.config.layer_types = ["sliding_attention"] * len(model.config.layer_types)
    all_sliding = from_config(model.config)
    with pytest.raises(LongRopeError):
        patched(all_sliding, yarn(model), x)


def test_a_patch_undoes_itself_when_the_body_raises(llama: PreTrainedModel) -> None:
    x = tokens(1, 100)
    before = logits(llama, x)
    with pytest.raises(KeyboardInterrupt), patch(llama, yarn(llama)):
        raise KeyboardInterrupt
    assert torch.equal(logits(llama, x), before)


def test_patches_nest_and_the_inner_one_counts_from_the_plain_model(llama: PreTrainedModel) -> None:
    x, outer, inner = tokens(1, 100), yarn(llama), Scaling([3.0] * 8)
    before, with_outer, with_inner = logits(llama, x), patched(llama, outer, x), patched(llama, inner, x)
    with patch(llama, outer):
        assert torch.equal(patched(llama, inner, x), with_inner)
        assert torch.equal(patched(llama, Scaling([1.0] * 8), x), before)
        assert torch.equal(logits(llama, x), with_outer)
    assert torch.equal(logits(llama, x), before)


def test_attach_is_for_keeps(llama: PreTrainedModel) -> None:
    x, kept = tokens(1, 100), yarn(llama)
    with_kept, with_other = patched(llama, kept, x), patched(llama, Scaling([3.0] * 8), x)
    assert install_factors(llama, kept) is llama
    assert torch.equal(logits(llama, x), with_kept)
    assert torch.equal(patched(llama, Scaling([3.0] * 8), x), with_other)
    assert torch.equal(logits(llama, x), with_kept)
    install_factors(llama, Scaling([3.0] * 8))
    assert torch.equal(logits(llama, x), with_other)


def test_attached_factors_survive_a_patch_that_fails(llama: PreTrainedModel) -> None:
    x = tokens(1, 100)
    install_factors(llama, yarn(llama))
    attached = logits(llama, x)
    attention = llama.model.layers[1].self_attn
    llama.model.layers[1].self_attn = None
    with pytest.raises(TypeError), patch(llama, Scaling([3.0] * 8)):
        pass
    llama.model.layers[1].self_attn = attention
    assert torch.equal(logits(llama, x), attached)


@each_family
def test_each_row_has_its_own_scaling(family: str) -> None:
    model, x = build(family), tokens(3, 100)
    rope = Rope.of(model)
    rows = [scheme("yarn", rope, LENGTH), Scaling.identity(rope), scheme("pi", rope, 96)]
    together = patched(model, rows, x)
    for row, scaling in enumerate(rows):
        alone = patched(model, scaling, x[row : row + 1])
        torch.testing.assert_close(together[row], alone[0], rtol=0, atol=2e-5)
    assert (together[0] - logits(model, x)[0]).abs().max() > 1e-2


def test_one_row_alone_is_allowed(llama: PreTrainedModel) -> None:
    x = tokens(1, 100)
    assert torch.equal(patched(llama, [yarn(llama)], x), patched(llama, yarn(llama), x))


@pytest.mark.parametrize("length", [64, 65, 96, 128])
def test_rows_made_for_short_lengths(llama: PreTrainedModel, length: int) -> None:
    rope, x = Rope.of(llama), tokens(2, 200)
    rows = [scheme("pi", rope, length), scheme("pi", rope, length)]
    alone = patched(llama, rows[0], x)
    torch.testing.assert_close(patched(llama, rows, x), alone, rtol=0, atol=2e-5)


def test_no_rows_are_refused(llama: PreTrainedModel) -> None:
    with pytest.raises(LongRopeError), patch(llama, []):
        pass


@each_family
def test_an_extension_is_short_up_to_the_original_length(family: str) -> None:
    model = build(family)
    rope = Rope.of(model)
    short = Scaling([1.2] * (rope.dim // 2), attention_factor=0.9)
    long = scheme("yarn", rope, LENGTH)
    for length, scaling in ((63, short), (64, short), (65, long), (100, long)):
        x = tokens(2, length)
        made = patched(model, Extension(rope=rope, short=short, long=long, length=LENGTH), x)
        torch.testing.assert_close(made, patched(model, scaling, x), rtol=0, atol=2e-5)
        assert (made - logits(model, x)).abs().max() > 1e-3


def test_an_extension_of_identity_factors_is_no_change(llama: PreTrainedModel) -> None:
    rope, x = Rope.of(llama), tokens(1, 100)
    extension = Extension.of(rope, scheme("yarn", rope, rope.original_length))
    torch.testing.assert_close(patched(llama, extension, x), logits(llama, x), rtol=0, atol=2e-5)


@each_family
def test_a_bfloat16_model(family: str) -> None:
    model, x = build(family), tokens(1, 100)
    exact = patched(model, yarn(model), x)
    model = model.to(torch.bfloat16)
    before = logits(model, x)
    made = patched(model, yarn(model), x)
    assert made.dtype == torch.bfloat16
    assert (made.float() - exact).square().mean().sqrt() < 0.15 * exact.std()
    assert torch.equal(logits(model, x), before)
    assert torch.equal(patched(model, Scaling.identity(Rope.of(model)), x), before)


def test_generation_with_a_cache_equals_one_forward(llama: PreTrainedModel) -> None:
    x = tokens(1, 90)
    with patch(llama, yarn(llama)), torch.inference_mode():
        whole = logits(llama, x)
        cached: Any = {cache_argument(llama): DynamicCache(config=llama.config)}
        llama(x[:, :80], use_cache=True, **cached)
        rest = llama(x[:, 80:], use_cache=True, **cached)
    torch.testing.assert_close(rest.logits, whole[:, 80:], rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", families.REFUSED)
def test_families_without_such_a_rope_are_refused(family: str) -> None:
    with pytest.raises(LongRopeError, match=f"'{family}'"), patch(build(family), Scaling([2.0] * 8)):
        pass


@pytest.mark.parametrize("scaling", ["yarn", 2.0, [2.0, 2.0], torch.ones(8), {"factors": [1.0]}], ids=str)
def test_what_is_no_scaling_is_refused_with_the_remedy(llama: PreTrainedModel, scaling: Any) -> None:
    with pytest.raises(LongRopeError, match=r"^scaling = .*longrope\.scheme"), patch(llama, scaling):
        pass


def test_factors_of_another_model_are_refused(llama: PreTrainedModel) -> None:
    x = tokens(1, 100)
    before = logits(llama, x)
    other = Rope(dim=16, base=5e5, original_length=64)
    for factors, message in (
        (Scaling([2.0] * 4), "4 values .* dim 16"),
        ([Scaling([2.0] * 8), Scaling([2.0] * 4)], "4 values .* dim 16"),
        (Extension.of(other, Scaling([2.0] * 8, length=LENGTH)), "500000"),
        (Scaling([1.0] * 9), "9 values"),
    ):
        with pytest.raises(LongRopeError, match=message), patch(llama, factors):
            pass
        assert torch.equal(logits(llama, x), before)


class Elsewhere(nn.Module):
    """A backbone that shows its own rotary module and computes with that of another."""

    def __init__(self, shown: nn.Module, used: nn.Module) -> None:
        super().__init__()
        self.rotary_emb, self.embed_tokens = shown.rotary_emb, shown.embed_tokens
        self.hidden = [used]

    def forward(self, **inputs: object) -> object:
        return self.hidden[0](**inputs)


def test_the_guard_notices_a_model_that_ignores_its_rotary_module(llama: PreTrainedModel) -> None:
    used = build("llama").model
    llama.model = Elsewhere(llama.model, used)
    rotary, x = llama.model.rotary_emb, tokens(1, 100)
    before = logits(llama, x)
    with pytest.raises(LongRopeError, match="'llama' did not change the logits"), patch(llama, yarn(llama)):
        pass
    assert llama.model.rotary_emb is rotary
    assert torch.equal(logits(llama, x), before)


def test_of_several_rotary_modules_those_of_the_models_rope_are_replaced(llama: PreTrainedModel) -> None:
    second, third = copy.deepcopy(llama.model.rotary_emb), copy.deepcopy(llama.model.rotary_emb)
    third.inv_freq /= 2
    third.original_inv_freq /= 2
    llama.model.second, llama.model.third = second, third
    with patch(llama, yarn(llama)):
        assert llama.model.second is not second
        assert llama.model.third is third
    assert llama.model.second is second


@pytest.mark.parametrize("mode", [True, False])
def test_training_mode_is_restored_module_by_module(llama: PreTrainedModel, mode: bool) -> None:
    llama.train(mode)
    llama.model.layers[0].train(not mode)
    before = {name: module.training for name, module in llama.named_modules()}
    with patch(llama, yarn(llama)):
        inside = {name: module.training for name, module in llama.named_modules() if name in before}
    assert inside == before
    assert {name: module.training for name, module in llama.named_modules()} == before


def test_the_probe_leaves_no_gradient_and_gradients_flow(llama: PreTrainedModel) -> None:
    x = tokens(1, 20)
    with patch(llama, yarn(llama)):
        assert all(parameter.grad is None for parameter in llama.parameters())
        llama(input_ids=x, labels=x).loss.backward()
    assert all(parameter.grad is not None for parameter in llama.parameters())


def test_factors_that_rounding_hides_are_no_error() -> None:
    """In bfloat16 the slowest pair turns so little that a factor near 1 changes no logit."""
    model = families.build("llama").to(torch.bfloat16)
    pairs = Rope.of(model).dim // 2
    with (
        patch(model, Scaling([1.0] * (pairs - 1) + [1 + 1e-6])),
        patch(model, Scaling([2.0] * pairs, start_tokens=1024)),
    ):
        pass


def test_a_length_whose_double_lies_beyond_the_tables() -> None:
    """Llama 4 Scout has 10,485,760 positions, and the tables end at 16,777,216."""
    model, x = build("llama", max_position_embeddings=10_485_760), tokens(1, 20)
    before = logits(model, x)
    assert not torch.equal(patched(model, Scaling([1.5] * 8, length=2**24), x), before)
    assert torch.equal(logits(model, x), before)
