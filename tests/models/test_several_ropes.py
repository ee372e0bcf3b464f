"""Models with several rotary modules, or with ropes under names of their own: full-attention layers get the factors."""

from __future__ import annotations

from pathlib import Path

import all_types
import families
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedModel

import longrope as lr
from longrope.errors import LongRopeError
from longrope.export.registry import ExportOptions
from longrope.models.adapter import ATTRIBUTE, NAME, SwitchedAdapter
from longrope.models.backbone import auto_class
from longrope.models.layer_survey import survey_layers
from longrope.models.patch import patch
from longrope.models.rotary_slot import RescaledRotary, find_rotary_slot
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import scheme

L0 = all_types.L0
IDS = torch.randint(3, all_types.VOCABULARY, (1, 150), generator=torch.Generator().manual_seed(0))
SITES = {
    "granite_swa": 2,
    "granitemoe_swa": 2,
    "moshi": 2,
    "deepseek_v4": 4,
    "zaya": 1,
    "zamba2": 1,
    "dots3_note_text": 1,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": L0 // 4}


def build(kind: str, **fields: object) -> PreTrainedModel:
    all_types.OVERRIDES[kind] = {**(before := all_types.OVERRIDES.get(kind, {})), **fields}
    try:
        model = all_types.build(kind)
    finally:
        all_types.OVERRIDES[kind] = before
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(4)
    return model


@torch.no_grad()
def logits(model: PreTrainedModel, ids: Tensor = IDS) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits


def exported(model: PreTrainedModel, scaling: Scaling, folder: Path, mode: str = "static") -> PreTrainedModel:
    options = ExportOptions(check=False)
    lr.export(model, families.tokenizer(), scaling, folder, mode=mode, options=options)
    return auto_class(model.config).from_pretrained(folder).eval()


@pytest.mark.parametrize("kind", SITES)
def test_every_site_gets_the_factors_and_the_export_computes_the_same(kind: str, tmp_path: Path) -> None:
    model = build(kind)
    rope, slot = Rope.of(model), find_rotary_slot(model)
    assert len(slot.sites) == SITES[kind]
    scaling, before = scheme("ntk", rope, 4 * L0), logits(model)
    with patch(model, scaling):
        assert all(isinstance(site.module, RescaledRotary) for site in find_rotary_slot(model).sites)
        patched = logits(model)
    assert (patched - before).abs().max() > 1e-3
    assert torch.equal(logits(model), before)
    torch.testing.assert_close(logits(exported(model, scaling, tmp_path / "made")), patched, rtol=0, atol=2e-3)


def test_only_the_base_of_the_full_attention_layers_gets_the_factors() -> None:
    model = build("granite_swa", layer_rope_theta=[5e5, 1e4])
    assert Rope.of(model).base == 5e5
    small, large = model.model.rotary_embs  # in order of their bases
    with patch(model, scheme("ntk", Rope.of(model), 4 * L0)):
        assert model.model.rotary_embs[0] is small
        assert model.model.rotary_embs[1].original is large
    assert list(model.model.rotary_embs) == [small, large]


def test_factors_of_one_base_are_not_exported_to_a_config_that_gives_them_to_all(tmp_path: Path) -> None:
    model = build("granite_swa", layer_rope_theta=[5e5, 1e4])
    with pytest.raises(LongRopeError, match="layer_rope_theta: the layers have the bases 10000, 500000, and"):
        exported(model, scheme("ntk", Rope.of(model), 4 * L0), tmp_path / "made")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("bases", "message"),
    [([0, 1e4], "full-attention layers have no RoPE"), ([1e4, 1e4, 5e5], "full-attention layers have several bases")],
)
def test_bases_that_one_set_of_factors_cannot_reach_are_refused(bases: list[float], message: str) -> None:
    types = ["full_attention", "sliding_attention", "full_attention"][: len(bases)]
    fields = {"layer_rope_theta": bases, "layer_types": types, "num_hidden_layers": len(bases)}
    with pytest.raises(LongRopeError, match=message):
        Rope.of(CONFIG_MAPPING["granite_swa"](**fields))


def test_frequencies_that_only_the_weights_hold_are_refused() -> None:
    """Factors would once have replaced Mistral Large 4's learned scale of each frequency."""
    with pytest.raises(LongRopeError, match="each frequency by a learned number"):
        Rope.of(CONFIG_MAPPING["mistral_large4"]())


def test_sliding_layers_of_a_model_with_its_own_names_keep_their_rope() -> None:
    model = build("zaya", layer_types=["hybrid", "hybrid_sliding"])
    original, positions, x = model.model.rotary_emb, torch.arange(40)[None], torch.zeros(1, 40, 1)
    with patch(model, scheme("pi", Rope.of(model), 4 * L0)):
        stand_in = model.model.rotary_emb
        for name, same in (("hybrid_sliding", True), ("hybrid", False)):
            pairs = zip(stand_in(x, positions, name), original(x, positions, name), strict=True)
            assert all(torch.equal(ours, theirs) == same for ours, theirs in pairs)


def test_the_scaling_of_compressed_keys_is_multiplied(tmp_path: Path) -> None:
    """DeepSeek-V4 writes YaRN for its compressed layers as one flat scaling."""
    model = build("deepseek_v4", rope_scaling=YARN)
    rope = Rope.of(model)
    assert (rope.base, rope.original_length, rope.attention_factor) == (160000.0, L0, 1.0)
    assert max(rope.factors) == 4
    before, short = logits(model), IDS[:, :20]
    with patch(model, Scaling.identity(rope)):
        assert torch.equal(logits(model), before)
    scaling = scheme("pi", rope, 4 * L0)
    with patch(model, scaling):
        patched, patched_short = logits(model), logits(model, short)
    reopened = exported(model, scaling, tmp_path / "made")
    assert reopened.config.rope_parameters["main"] == model.config.rope_parameters["main"]
    torch.testing.assert_close(logits(reopened), patched, rtol=0, atol=2e-3)
    torch.testing.assert_close(logits(reopened, short), patched_short, rtol=0, atol=2e-3)


def test_compressed_keys_are_not_taken_for_a_window() -> None:
    survey = survey_layers(all_types.small_config("deepseek_v4"))
    assert survey.reach is None
    assert len(survey.rotating) == 2
    assert survey_layers(all_types.small_config("dots3_note_text")).attention == ()  # nothing is known


def test_an_extension_switches_at_every_site() -> None:
    model = build("moshi")
    rope, ids = Rope.of(model), IDS[:, :L0]
    before = logits(model, ids)
    with patch(model, Extension.of(rope, scheme("ntk", rope, 4 * L0))):
        torch.testing.assert_close(logits(model, ids), before, rtol=0, atol=2e-3)
        assert not torch.equal(logits(model, IDS), before)


def test_an_adapter_is_off_again_after_a_patch_though_the_first_site_is_unused() -> None:
    """Granite SWA never runs the rotary module of its model; those of its bases turn the adapter off."""
    model = build("granite_swa")
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    inject_adapter_in_model(config, model, adapter_name=NAME)
    model.eval()
    adapter = SwitchedAdapter(model, find_rotary_slot(model).originals)
    setattr(model, ATTRIBUTE, adapter)
    before = logits(model)
    assert len(adapter.layers) == 2
    with patch(model, scheme("ntk", Rope.of(model), 4 * L0)):
        with_adapter = logits(model)
    assert torch.equal(logits(model), before)
    for layer in adapter.layers:
        layer.scaling[NAME] = 0.0
    delattr(model, ATTRIBUTE)
    with patch(model, scheme("ntk", Rope.of(model), 4 * L0)):
        assert not torch.equal(logits(model), with_adapter)
