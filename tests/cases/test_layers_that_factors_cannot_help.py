"""Which layers rotate and how far each sees, found on the model's own code; what factors cannot reach is named."""

from __future__ import annotations

from typing import Any

import families
import pytest
from test_hybrid_layers import LLAMA4, MAMBA

from longrope.errors import LongRopeError
from longrope.models.layer_survey import survey_layers
from longrope.rope import Rope

FOUR = {"num_hidden_layers": 4}
LOCAL = [(0, True, 16), (1, True, 16), (2, True, 16), (3, False, None)]
LAYERS: dict[str, tuple[dict[str, Any], list[tuple[int, bool, int | None]]]] = {
    "llama": ({}, [(0, True, None), (1, True, None)]),
    "mistral": ({"sliding_window": 16}, [(0, True, 16), (1, True, 16)]),
    "cohere2": ({**FOUR, "head_dim": 16, "sliding_window": 16, "logit_scale": 1.0}, LOCAL),
    "exaone4": ({**FOUR, "sliding_window": 16, "sliding_window_pattern": 4}, LOCAL),
    "llama4_text": ({**LLAMA4, "attention_chunk_size": 16}, LOCAL),
    "smollm3": (FOUR, [(0, True, None), (1, True, None), (2, True, None), (3, False, None)]),
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, [(1, True, None)]),
    "granitemoehybrid": (
        {"layer_types": ["mamba", "attention"], "position_embedding_type": "nope"},
        [(1, False, None)],
    ),
}
CANNOT_SEE = {"mistral": "sliding_window", "cohere2": "sliding_window", "exaone4": "sliding_window"}
CANNOT_SEE |= {"llama4_text": "attention_chunk_size"}


def survey(name: str) -> Any:
    fields = LAYERS[name][0] | (MAMBA if name == "granitemoehybrid" else {})
    return survey_layers(families.config(name, **fields))


@pytest.mark.parametrize("name", LAYERS)
def test_layers_that_rotate_and_their_windows(name: str) -> None:
    assert [(layer.index, layer.rotates, layer.window) for layer in survey(name).attention] == LAYERS[name][1]


@pytest.mark.parametrize("name", sorted(LAYERS.keys() - {"granitemoehybrid"}))
def test_a_warning_names_the_field_that_hides_earlier_tokens(name: str) -> None:
    warning = survey(name).warning(64)
    if name not in CANNOT_SEE:
        assert warning is None
        return
    assert warning.startswith(f"{CANNOT_SEE[name]} = 16: ")
    assert ("The full-attention layers do not rotate." in warning) == (name != "mistral")
    assert survey(name).warning(16) is None


@pytest.mark.parametrize(
    "parameters", [{"rope_type": "dynamic", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0}]
)
def test_a_model_with_a_scaling_is_surveyed_too(parameters: dict[str, Any]) -> None:
    config = families.config("llama", rope_parameters={"rope_theta": 1e4, **parameters})
    assert len(survey_layers(config).rotating) == 2
    assert config.rope_parameters["rope_type"] == parameters["rope_type"]


def test_a_model_without_a_rotating_layer_is_refused() -> None:
    with pytest.raises(LongRopeError, match="position_embedding_type = 'nope': no attention layer"):
        survey("granitemoehybrid").check()


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("granitemoehybrid", {"position_embedding_type": "nope"}, "position_embedding_type = 'nope'"),
        ("granitemoehybrid", {"position_embedding_type": None}, "position_embedding_type = None"),
        ("falcon", {"alibi": True}, "alibi = True"),
    ],
)
def test_fields_that_turn_the_rope_off_are_refused(name: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(LongRopeError, match=message):
        Rope.of(families.config(name, **fields))


def test_inspect_says_which_layers_rotate() -> None:
    text = survey("cohere2").describe()
    assert text.startswith("3 of 4 layers rotate (layers 0, 1, 2). 3 of these see a sliding window of 16 tokens")
    assert survey("llama").describe() is None
