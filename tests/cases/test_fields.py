"""Fields of a config that change what the model computes: each is read as transformers reads it, or refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.hunyuan_v1_dense.modeling_hunyuan_v1_dense import HunYuanDenseV1RotaryEmbedding

from longrope.errors import LongRopeError
from longrope.formats.hf_config import extension_of_config
from longrope.scaling import Extension

SIZE = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 2}
BASE = {**SIZE, "head_dim": 64, "max_position_embeddings": 8192, "rope_theta": 500000.0}
ORIGINAL = {"original_max_position_embeddings": 1024}
SETS = {"short_factor": [1 + i / 100 for i in range(32)], "long_factor": [1 + i / 4 for i in range(32)]}


def read(scaling: dict[str, Any], model_type: str = "llama", **fields: Any) -> Extension:
    return extension_of_config({**BASE, **fields, "model_type": model_type, "rope_scaling": dict(scaling)})


def assert_as_transformers(scaling: dict[str, Any], model_type: str = "llama") -> None:
    """Compare what we read with frequencies and attention factors of transformers' own function, at L0 and at L."""
    extension = read(scaling, model_type)
    config = AutoConfig.for_model(model_type, **BASE, rope_scaling=dict(scaling))
    config.standardize_rope_params()
    original = extension.rope.original_length
    for factors, length in ((extension.short, original), (extension.long, max(extension.length, original + 1))):
        function = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]]
        inv_freq, attention = function(config, "cpu", seq_len=length)
        np.testing.assert_allclose(factors.inv_freq(extension.rope), inv_freq.double().numpy(), rtol=1e-5)
        assert factors.attention_factor == pytest.approx(attention, rel=1e-6)


OPTIONAL_YARN = {
    "attention_factor": st.floats(0.5, 2),
    "beta_fast": st.floats(16, 64),
    "beta_slow": st.floats(0.5, 4),
    "mscale": st.floats(0.1, 2),
    "mscale_all_dim": st.floats(0.1, 2),
    "truncate": st.booleans(),
    "finetuned": st.booleans(),
}
FACTOR = {"factor": st.floats(1, 40)}
SCALINGS = st.one_of(
    st.fixed_dictionaries({"rope_type": st.just("linear"), **FACTOR}),
    # from 1.5: below, L is L0, and transformers' long factors begin one token beyond
    st.fixed_dictionaries({"rope_type": st.just("dynamic"), "factor": st.floats(1.5, 40)}),
    st.fixed_dictionaries(
        {"rope_type": st.just("yarn"), **FACTOR, "original_max_position_embeddings": st.integers(128, 8192)},
        optional=OPTIONAL_YARN,
    ),
    st.fixed_dictionaries(
        {
            "rope_type": st.just("llama3"),
            **FACTOR,
            "low_freq_factor": st.sampled_from([0.5, 1.0, 2.0]),
            "high_freq_factor": st.sampled_from([2.0, 4.0, 7.5]),
            "original_max_position_embeddings": st.integers(128, 8192),
        }
    ),
    st.fixed_dictionaries(
        {"rope_type": st.just("longrope"), **{name: st.just(value) for name, value in SETS.items()}},
        optional={**FACTOR, "attention_factor": st.floats(0.5, 2), "original_max_position_embeddings": st.just(1024)},
    ),
)


@settings(max_examples=150, deadline=None)
@given(SCALINGS, st.sampled_from(["llama", "qwen3", "olmo2"]))
def test_every_field_is_read_as_transformers_reads_it(scaling: dict[str, Any], model_type: str) -> None:
    assert_as_transformers(scaling, model_type)


@pytest.mark.parametrize("alpha", [1.0, 50.0, 1000.0])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_hunyuan_alpha_is_the_base_of_its_rotary_module(alpha: float, head_dim: int) -> None:
    scaling = {"type": "dynamic", "alpha": alpha, "factor": 1.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0}
    extension = read(scaling, "hunyuan_v1_dense", head_dim=head_dim)
    config = AutoConfig.for_model("hunyuan_v1_dense", **{**BASE, "head_dim": head_dim}, rope_scaling=dict(scaling))
    module = HunYuanDenseV1RotaryEmbedding(config)
    np.testing.assert_allclose(extension.long.inv_freq(extension.rope), module.inv_freq.double().numpy(), rtol=1e-5)
    assert extension.short.factors == extension.long.factors
    assert extension.length == 8192
    assert "beta_fast, beta_slow, mscale" in extension.long.provenance["note"]
    assert torch.isclose(torch.tensor(extension.long.factors[-1]), torch.tensor(alpha))


def test_hunyuan_without_alpha_is_dynamic() -> None:
    assert_as_transformers({"type": "dynamic", "factor": 4.0}, "hunyuan_v1_dense")


@pytest.mark.parametrize("model_type", ["phi3small", "phimoe"])
def test_each_set_has_its_own_attention_factor(model_type: str) -> None:
    scaling = {"type": "longrope", **SETS, "short_mscale": 1.2, "long_mscale": 1.24}
    extension = read(scaling, model_type, **ORIGINAL)
    assert (extension.short.attention_factor, extension.long.attention_factor) == (1.2, 1.24)
    one = read({"type": "su", **SETS, "long_mscale": 1.24}, "phi3small", **ORIGINAL)
    assert one.long.attention_factor == 1.24
    assert one.short.attention_factor == pytest.approx((1 + np.log(8) / np.log(1024)) ** 0.5)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "long_mscale in llama": ({"rope_type": "longrope", **SETS, **ORIGINAL, "long_mscale": 1.5}, "long_mscale = 1.5"),
    "alpha in llama": ({"rope_type": "dynamic", "factor": 2.0, "alpha": 8.0}, "alpha = 8.*'llama'"),
    "attn_factor": ({"rope_type": "yarn", "factor": 4.0, "attn_factor": 1.3}, "attn_factor = 1.3.*attention_factor"),
    "extrapolation_factor": ({"rope_type": "yarn", "factor": 4.0, "extrapolation_factor": 0.5}, "extrapolation_factor"),
    "unknown": ({"rope_type": "linear", "factor": 4.0, "beta": 0.1}, "beta = 0.1.*not a field"),
    "dynamic L0": ({"rope_type": "dynamic", "factor": 4.0, **ORIGINAL}, "original_max_position_embeddings = 1024"),
    "no type": ({"factor": 8.0}, "rope_type is missing, so factor has no effect"),
    "truncate": ({"rope_type": "yarn", "factor": 4.0, "truncate": "no"}, "truncate = 'no'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_field_that_engines_read_differently_is_refused_by_name(name: str) -> None:
    scaling, message = REFUSED[name]
    with pytest.raises(LongRopeError, match=message):
        read(scaling)


@pytest.mark.parametrize("field", [{"rope_ratio": 500}, {"use_dynamic_ntk": True}])
def test_a_field_beside_the_rope_is_refused_by_name(field: dict[str, Any]) -> None:
    with pytest.raises(LongRopeError, match=next(iter(field))):
        read({"rope_type": "linear", "factor": 4.0}, "chatglm", **field)


def test_a_field_without_effect_is_noted() -> None:
    extension = read({"rope_type": "yarn", "factor": 8.0, **ORIGINAL, "attn_factor": 1.0, "finetuned": True})
    assert extension.long.provenance["note"].endswith("rope_type yarn: attn_factor, finetuned")
    plain = read({"rope_type": "yarn", "factor": 8.0, **ORIGINAL, "alpha": None})
    assert plain.long.factors == extension.long.factors
    assert "note" not in plain.long.provenance


def test_linear_scaling_may_be_in_the_length_already() -> None:
    scaling = {"rope_type": "linear", "factor": 4.0}
    either = read(scaling)
    assert (either.length, either.rope.original_length) == (32768, 8192)
    assert "L0 = 2048, L = 8192" in either.long.provenance["note"]
    for decided in (read({**scaling, "original_max_position_embeddings": 2048}), read(scaling, **ORIGINAL)):
        assert decided.length == 8192
        assert "note" not in decided.long.provenance
    named = read(scaling, max_sequence_length=32768)  # as LongChat's configs have it
    assert (named.length, "note" in named.long.provenance) == (32768, False)


def test_gemma3_names_its_extended_length() -> None:
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
    extension = extension_of_config({"model_type": "gemma3", "text_config": text})
    assert (extension.length, extension.long.factors[0]) == (131072, 8.0)
