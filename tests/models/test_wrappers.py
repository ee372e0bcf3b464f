"""Models that read images: factors go to their text model, and images are read as before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import all_types
import families
import pytest
import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

import longrope as lr
from longrope.cost.model_shape import ModelShape
from longrope.errors import LongRopeError
from longrope.models.backbone import auto_class
from longrope.models.load import load_config
from longrope.models.patch import patch
from longrope.models.rotary_embedding import LongRoPE
from longrope.models.rotary_slot import RescaledRotary
from longrope.rope import Rope, full_attention_fields
from longrope.scaling import Extension, Scaling
from longrope.schemes import scheme

L0, LENGTH = all_types.L0, 4 * all_types.L0
QWEN = ["qwen2_5_vl", "qwen3_vl", "qwen3_5"]
KINDS = ["gemma3", "mistral3", *QWEN, "llama4", "internvl", "llava", "glm4v", "mllama", "hunyuan_vl"]
IDS = torch.randint(3, all_types.VOCABULARY, (1, 150), generator=torch.Generator().manual_seed(0))


def build(kind: str) -> PreTrainedModel:
    model = all_types.build(kind)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(4)
    return model


@torch.no_grad()
def logits(model: PreTrainedModel, ids: Tensor, **inputs: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False, **inputs).logits


@pytest.mark.parametrize("name", ["ntk", "yarn"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_text_model_is_extended_and_the_whole_model_exported(kind: str, name: str, tmp_path: Path) -> None:
    model = build(kind)
    rope = Rope.of(model)
    extension = Extension.of(rope, scheme(name, rope, LENGTH))
    before = logits(model, IDS[:, :L0])
    with patch(model, extension):
        assert (logits(model, IDS[:, :L0]) - before).abs().max() < 1e-3
        beyond = logits(model, IDS)
    losses = lr.perplexity(model, IDS.numpy(), [len(IDS[0])], scaling=extension)
    expected = torch.nn.functional.cross_entropy(beyond[0, :-1].float(), IDS[0, 1:])
    assert losses[0].perplexity == pytest.approx(float(expected.exp()), rel=1e-3)
    lr.export(model, families.tokenizer(), extension, tmp_path / "made")  # which compares the logits of texts
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    assert config["model_type"] == kind
    written = "longrope" if name == "ntk" and rope.dim > 4 else "yarn"  # NTK on two pairs is a YaRN
    assert full_attention_fields(config["text_config"]["rope_parameters"])["rope_type"] == written
    reopened = auto_class(model.config).from_pretrained(tmp_path / "made").eval()
    assert {name for name, _ in reopened.named_parameters()} == {name for name, _ in model.named_parameters()}
    torch.testing.assert_close(logits(reopened, IDS), beyond, rtol=0, atol=2e-3)


def test_applied_factors_are_saved_with_the_whole_model(tmp_path: Path) -> None:
    model = build("gemma3")
    before, config = logits(model, IDS), model.config.text_config.to_dict()
    scaling = scheme("ntk", Rope.of(model), LENGTH)
    lr.apply(model, scaling)
    applied = logits(model, IDS)
    assert not torch.equal(applied, before)
    model.save_pretrained(tmp_path)
    reopened = auto_class(model.config).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(reopened, IDS), applied, rtol=0, atol=2e-3)
    lr.detach(model)
    assert torch.equal(logits(model, IDS), before)
    names = config.keys() - {"architectures", "dtype"}  # which save_pretrained writes
    after = model.config.text_config.to_dict()
    assert {name: after[name] for name in names} == {name: config[name] for name in names}


def test_an_image_is_read_as_before_up_to_the_original_length() -> None:
    model = build("gemma3")
    rope, config = Rope.of(model), model.config
    model.model.multi_modal_projector.mm_input_projection_weight.data.normal_()
    count, size = config.mm_tokens_per_image, config.vision_config.image_size
    assert config.image_token_id >= all_types.VOCABULARY
    config.image_token_id = 5  # a word of the small vocabulary
    ids = IDS.clamp(min=6)[:, :40].clone()
    ids[0, 10 : 10 + count] = 5
    image = {"pixel_values": torch.randn(1, 3, size, size), "token_type_ids": (ids == 5).long()}
    before = logits(model, ids, **image)
    assert not torch.equal(before, logits(model, ids, **image | {"pixel_values": torch.zeros(1, 3, size, size)}))
    with patch(model, Extension.of(rope, scheme("yarn", rope, LENGTH))):
        torch.testing.assert_close(logits(model, ids, **image), before, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", QWEN)
def test_positions_of_images_beyond_the_length_are_refused(kind: str) -> None:
    """Texts are not, as in other models: the check would cost every pass."""
    model = build(kind)
    rope, axes = Rope.of(model), torch.stack([torch.arange(20), torch.arange(20) // 2, torch.arange(20) % 5])[:, None]
    with patch(model, Extension.of(rope, scheme("yarn", rope, LENGTH))):
        logits(model, IDS[:, :20], position_ids=axes + LENGTH - 20)
        message = (
            rf"position_ids = {LENGTH}: this text with images goes beyond the {LENGTH} tokens .* Use fewer or smaller"
        )
        with pytest.raises(LongRopeError, match=message):
            logits(model, IDS[:, :20], position_ids=axes + LENGTH - 19)


@pytest.mark.parametrize("kind", [*QWEN, "glm4v"])
def test_positions_along_three_axes_are_rotated_as_the_model_does(kind: str) -> None:
    """Factors of 1 through our module, beside the model's own; an attention factor near 1 makes it run."""
    model = build(kind)
    rope = Rope.of(model)
    axes = torch.stack([torch.arange(20), torch.arange(20) // 2, torch.arange(20) % 5 + 30])[:, None]
    before = logits(model, IDS[:, :20], position_ids=axes)
    nearly = Scaling([1.0] * (rope.dim // 2), attention_factor=1 + 1e-7)
    with patch(model, nearly):
        torch.testing.assert_close(logits(model, IDS[:, :20], position_ids=axes), before, rtol=0, atol=1e-3)
        swapped = logits(model, IDS[:, :20], position_ids=axes[[1, 0, 2]])
    assert (swapped - before).abs().max() > 0.01


def test_entries_of_a_pair_along_different_axes_are_rotated_as_the_model_does() -> None:
    """HunYuan-VL has four axes, and the first entries of all pairs follow others than the second ones."""
    config = all_types.small_config("hunyuan_vl_text")
    original, rope = AutoModel.from_config(config).rotary_emb, Rope.of(config)
    rotary = RescaledRotary(rope, original, LongRoPE.static(rope, [Scaling([1.0] * (rope.dim // 2))]))
    steps, x = torch.arange(20), torch.zeros(1, 20, 1)
    axes = torch.stack([steps, steps // 2, steps % 5, steps // 7])[:, None]
    for positions in (axes, axes[:1].expand(4, -1, -1)):
        torch.testing.assert_close(rotary(x, positions), original(x, positions), rtol=0, atol=1e-5)
    assert rotary.mrope_section == [2, 2, 2, 2]  # which the model reads there


def test_a_text_model_that_transformers_lists_among_those_of_images_is_loaded(tmp_path: Path) -> None:
    """Mistral 4 is in no other table of transformers."""
    model = build("mistral4")
    model.save_pretrained(tmp_path)
    families.tokenizer().save_pretrained(tmp_path)
    loaded, _ = lr.load(tmp_path)
    before, rope = logits(loaded, IDS), Rope.of(loaded)
    torch.testing.assert_close(before, logits(model, IDS))
    with patch(loaded, scheme("pi", rope, 4 * rope.original_length)):
        assert (logits(loaded, IDS) - before).abs().max() > 1e-3


def test_a_dtype_in_the_text_config_alone_is_the_checkpoints(tmp_path: Path) -> None:
    """As Qwen3-VL's config has it; such a model once counted as one in float32."""
    model: Any = build("qwen3_vl")
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    families.tokenizer().save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    del fields["dtype"]
    fields["text_config"]["dtype"] = "bfloat16"
    (tmp_path / "config.json").write_text(json.dumps(fields))
    config = load_config(tmp_path)
    assert config.dtype == lr.load(tmp_path)[0].dtype == torch.bfloat16
    assert ModelShape.of(config).dtype == "bfloat16"
