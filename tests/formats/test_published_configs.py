"""The rope fields of well-known checkpoints, read and extended; a newly published config is one more row."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import all_types
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from longrope.export.hf_config import config_fields, for_mode
from longrope.models.patch import patch
from longrope.models.rotary_slot import find_rotary_slot
from longrope.rope import FULL, Rope
from longrope.scaling import Extension
from longrope.schemes import attention_factor, scheme
from longrope.storage.atomic import write_json

CHECKPOINTS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "data" / "published_configs.json").read_text(encoding="utf-8")
)["checkpoints"]
OWN = ("L0", "head_dim")


def build(name: str) -> PreTrainedModel:
    """A small model with the rope of a checkpoint."""
    row = CHECKPOINTS[name]
    small = all_types.small_config(row["model_type"]).to_dict()
    fields = {key: value for key, value in small.items() if key not in ("rope_parameters", "model_type", *row)}
    heads = {"hidden_size": 2 * row["head_dim"], "num_attention_heads": 2, "num_key_value_heads": 2}
    if "qk_rope_head_dim" in fields:
        heads = {"qk_rope_head_dim": row["head_dim"], "head_dim": row["head_dim"]}
    elif fields.pop("head_dim", None):
        heads["head_dim"] = row["head_dim"]
    own = {key: value for key, value in row.items() if key not in (*OWN, "model_type")}
    config = AutoConfig.for_model(row["model_type"], **{**fields, **heads, **own})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(3)
    return model


@pytest.mark.parametrize("name", CHECKPOINTS)
@torch.no_grad()
def test_the_rope_is_that_of_transformers_and_is_extended(name: str, tmp_path: Path) -> None:
    model = build(name)
    rope, module = Rope.of(model), find_rotary_slot(model).module
    assert rope.original_length == CHECKPOINTS[name]["L0"]
    prefix = f"{FULL}_" if hasattr(module, f"{FULL}_inv_freq") else ""
    theirs = getattr(module, f"{prefix}inv_freq").numpy()  # of the short set, if there are two
    ours = replace(rope, factors=rope.short_factors or rope.factors, short_factors=(), short_length=0).inv_freq
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert getattr(module, f"{prefix}attention_scaling") == pytest.approx(rope.attention_factor, rel=1e-6)

    length = 2 * rope.original_length
    attention = attention_factor("su", rope, length)
    extension = Extension.of(rope, replace(scheme("ntk", rope, length), attention_factor=attention))
    model.save_pretrained(tmp_path)
    write_json(tmp_path / "config.json", config_fields(model.config.to_dict(), for_mode(extension, "static")))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    positions = torch.linspace(0, length - 1, 24).long()[None]
    ids = torch.randint(3, all_types.VOCABULARY, (1, 24), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "position_ids": positions, "attention_mask": torch.ones_like(ids)}
    with patch(model, extension.long):
        expected = model(**inputs, use_cache=False).logits
    reopened = plain(**inputs, use_cache=False).logits
    assert difference(reopened, expected) < 0.01  # transformers' float32 phases at 131,072 tokens
    assert difference(model(**inputs, use_cache=False).logits, expected) > 0.05


def difference(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """The size of a difference, relative to the logits."""
    return float((logits - expected).norm() / expected.norm())
