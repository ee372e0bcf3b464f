"""How many tokens each layer sees: by the config, as transformers' caches and the models themselves have it."""

from __future__ import annotations

import all_types
import pytest
import torch
from transformers import DynamicCache

from longrope.cost.attention_sizes import windows
from longrope.models.backbone import backbone_of
from longrope.models.layer_survey import survey_layers
from longrope.models.layer_windows import CHUNK, SLIDING, window_fields

# a model of several, one that reads another model's keys, and one with a cache of its own
OTHERS = {"blt", "gemma4_unified_assistant", "deepseek_v4"}


@pytest.mark.parametrize("kind", [kind for kind in all_types.causal_types() if kind not in OTHERS])
def test_windows_are_those_of_transformers_cache(kind: str) -> None:
    text = all_types.small_config(kind).get_text_config()
    layers = DynamicCache(config=text).layers
    assert [window or None for window in windows(text)] == [getattr(layer, SLIDING, None) for layer in layers]


def test_each_kind_of_layer_has_its_field() -> None:
    text = all_types.small_config("zaya").get_text_config()
    text.layer_types, text.sliding_window = ["hybrid", "hybrid_sliding"], 8
    assert window_fields(text) == ["", SLIDING]
    text.sliding_window = None
    assert window_fields(text) == ["", ""]
    assert window_fields(all_types.small_config("llama4_text")) == [CHUNK, ""]


@pytest.mark.parametrize("kind", ["mistral", "phimoe", "doge", "smollm3"])
@torch.inference_mode()
def test_a_token_reaches_as_far_as_the_surveyed_windows(kind: str) -> None:
    """PhiMoE and Doge have their window in a mask alone, of which the survey once knew nothing."""
    model = all_types.build(kind)
    ids = torch.randint(3, all_types.VOCABULARY, (1, 120), generator=torch.Generator().manual_seed(0))
    hidden = backbone_of(model)(input_ids=ids, use_cache=False).last_hidden_state
    ids[0, 0] += 1
    changed = (backbone_of(model)(input_ids=ids, use_cache=False).last_hidden_state != hidden).any(dim=-1)[0]
    survey = survey_layers(model.config)
    assert survey.layers == len(survey.attention) == model.config.num_hidden_layers
    reach = sum(120 if layer.window is None else layer.window - 1 for layer in survey.attention)
    assert int(changed.nonzero().max()) == min(reach, 119)


def test_layers_that_read_images_or_sound_are_not_surveyed() -> None:
    config = all_types.small_config("phi4_multimodal")
    survey = survey_layers(config)
    assert survey.layers == len(survey.attention) == config.num_hidden_layers
