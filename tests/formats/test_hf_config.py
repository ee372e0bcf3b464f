from __future__ import annotations

import contextlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from longrope.errors import LongRopeError
from longrope.export.hf_config import config_fields, for_mode
from longrope.formats.hf_config import FULL, extension_of_config
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import scheme

SIZE = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 2}
BASE = {**SIZE, "max_position_embeddings": 4096, "rope_theta": 500000.0}
SHORT, LONG = [1 + i / 100 for i in range(32)], [1 + i * i / 16 for i in range(32)]
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 1024}
SETS = {"short_factor": SHORT, "long_factor": LONG}
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "linear of v4": {"type": "linear", "factor": 2.7},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0},
    "yarn within": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    "yarn of an odd factor": {"type": "yarn", "factor": 2.6667, "original_max_position_embeddings": 1536},
    "yarn with betas": {"rope_type": "yarn", "factor": 8, "beta_fast": 16, "beta_slow": 2},
    "yarn of gpt-oss": {"rope_type": "yarn", "factor": 32.0, "truncate": False, "beta_fast": 32.0, "beta_slow": 1.0},
    "yarn of DeepSeek": {"rope_type": "yarn", "factor": 40.0, "mscale": 0.707, "mscale_all_dim": 1.0},
    "yarn with half of that": {"rope_type": "yarn", "factor": 40.0, "mscale": 0.707},
    "yarn with attention": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.25, "mscale": 2.0},
    "yarn of no factor": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 512},
    "yarn of nulls": {"rope_type": "yarn", "factor": 4.0, "beta_fast": None, "attention_factor": None},
    "llama3": {"rope_type": "llama3", **LLAMA3},
    "llama3, steep": {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 2.0, "high_freq_factor": 2.5, "factor": 3.3},
    "llama3, a step": {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4.0},
    "longrope": {"rope_type": "longrope", **SETS, "original_max_position_embeddings": 1024},
    "longrope with a factor": {"rope_type": "longrope", **SETS, "factor": 16.0},
    "longrope with attention": {"rope_type": "longrope", **SETS, "factor": 4.0, "attention_factor": 1.5},
    "longrope at once": {"rope_type": "longrope", **SETS},
}


def same_as_transformers(fields: dict[str, Any], kind: str = "llama", *, outside: bool = True) -> Extension:
    """What is read from the fields of a file, after it was compared with what transformers computes from them."""
    read = extension_of_config(json.loads(json.dumps({**fields, "model_type": kind})))
    config = AutoConfig.for_model(kind, **json.loads(json.dumps(fields)))
    config.standardize_rope_params()  # which the functions below do first
    layer = {"layer_type": FULL} if FULL in config.rope_parameters else {}
    parameters = config.rope_parameters.get(FULL, config.rope_parameters)
    original = parameters.get("original_max_position_embeddings") or config.max_position_embeddings
    if outside:
        same_as_the_rope(read, Rope.of(config), parameters["rope_type"])
    assert read.rope.original_length == original
    for scaling, length in ((read.short, original), (read.long, max(read.length, original + 1))):
        theirs, attention = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu", seq_len=length, **layer)
        np.testing.assert_allclose(scaling.inv_freq(read.rope), theirs.double().numpy(), rtol=3e-6)
        assert scaling.attention_factor == pytest.approx(attention, rel=1e-12)
    return read


def same_as_the_rope(read: Extension, rope: Rope, kind: str) -> None:
    """The rope of a model with this scaling is used to its long factors; dynamic ones begin beyond L0 only."""
    assert rope.plain == replace(read.rope, original_length=rope.original_length)
    if kind == "dynamic":
        assert rope == read.rope
        return
    assert (rope.factors, rope.attention_factor, rope.original_length) == (
        read.long.factors,
        read.long.attention_factor,
        read.length,
    )
    assert rope.short_factors == (read.short.factors if kind == "longrope" else ())


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters"])
def test_every_type_is_what_transformers_computes(field: str, name: str) -> None:
    theta = {"rope_theta": BASE["rope_theta"]} if field == "rope_parameters" else {}
    fields = {key: value for key, value in BASE.items() if key not in theta}
    same_as_transformers({**fields, field: {**SCALINGS[name], **theta}})


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("mistral", {"head_dim": None}),
        ("qwen3", {"head_dim": 64, "hidden_size": 128}),
        ("stablelm", {"partial_rotary_factor": 0.5, "hidden_size": 512}),
        ("gpt_neox", {"rotary_pct": 0.25, "rotary_emb_base": 25000, "rope_theta": None, "hidden_size": 1024}),
    ],
)
def test_every_type_in_other_models(kind: str, changed: dict[str, Any], name: str) -> None:
    fields = {key: value for key, value in {**BASE, **changed}.items() if value is not None or key == "head_dim"}
    same_as_transformers({**fields, "rope_scaling": SCALINGS[name]}, kind)


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("kind", ["gemma3_text", "olmo3"])
def test_full_attention_of_several_layer_types(kind: str, name: str) -> None:
    needed = {"original_max_position_embeddings": 4096} if name.startswith(("yarn", "longrope")) else {}
    own = {"rope_type" if key == "type" else key: value for key, value in SCALINGS[name].items()}
    full = {**needed, **own, "rope_theta": 1e6}
    parameters = {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}, FULL: full}
    same_as_transformers({**BASE, "head_dim": 64, "rope_parameters": parameters}, kind)
    same_as_transformers({**BASE, "head_dim": 64, "rope_scaling": full}, kind)


def test_what_is_outside_goes_before() -> None:
    """Phi-3 and others hold L0 outside, where transformers prefers it."""
    within = SCALINGS["yarn within"]
    read = same_as_transformers({**BASE, "original_max_position_embeddings": 2048, "rope_scaling": within})
    assert read.rope.original_length == 2048
    full = {"rope_parameters": {FULL: {**within, "rope_theta": 1e6}, "sliding_attention": {"rope_type": "default"}}}
    read = same_as_transformers({**BASE, "original_max_position_embeddings": 2048, **full}, "olmo3", outside=False)
    assert read.rope.original_length == 1024  # of layer types it takes what is inside


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 8192),
        ({"rope_scaling": SCALINGS["yarn within"]}, 4096),
        ({"max_position_embeddings": 40960, "rope_scaling": {"type": "yarn", "factor": 2.0}}, 81920),
        ({"rope_scaling": {"type": "llama3", **LLAMA3}}, 4096),
        ({"rope_scaling": SCALINGS["longrope"]}, 4096),
        ({"rope_scaling": SCALINGS["longrope at once"]}, 4096),
        ({"rope_scaling": SCALINGS["longrope with a factor"]}, 65536),
    ],
)
def test_the_length(fields: dict[str, Any], length: int) -> None:
    read = extension_of_config({**BASE, **fields})
    assert read.length == read.long.length == length


def test_the_schemes_are_ours() -> None:
    """Independent of transformers: what `longrope.schemes` gives at the same scale."""
    rope = Rope(dim=64, base=500000.0, original_length=1024)
    for name, kind in {"yarn": "yarn within", "llama3": "llama3", "pi": "linear"}.items():
        scaling = {**SCALINGS[kind], "factor": 4.0}
        long = 1024 if kind == "linear" else 4096
        read = extension_of_config({**BASE, "max_position_embeddings": long, "rope_scaling": scaling})
        ours = scheme(name, rope, 4096)
        np.testing.assert_allclose(read.long.factors, ours.factors, rtol=1e-12)
        assert read.rope == rope
        assert (read.long.attention_factor, read.long.scheme) == (pytest.approx(ours.attention_factor), name)
    dynamic = extension_of_config({**BASE, "rope_scaling": SCALINGS["dynamic"]})
    assert dynamic.short.is_identity
    assert dynamic.long.factors[-1] == pytest.approx(4 * 4 - 3)
    assert "16384 tokens" in dynamic.long.provenance["note"]


def test_phi3_of_old_and_of_now() -> None:
    fields = {**BASE, "original_max_position_embeddings": 1024, "pad_token_id": 0}
    read = same_as_transformers({**fields, "rope_scaling": {"type": "longrope", **SETS}}, "phi3")
    assert (read.short.factors, read.long.factors) == (tuple(SHORT), tuple(LONG))
    assert read.long.attention_factor == pytest.approx(math.sqrt(1 + math.log(4) / math.log(1024)))
    for kind in ("su", "yarn"):
        assert extension_of_config({**fields, "rope_scaling": {"type": kind, **SETS}}) == read


def test_phimoe_has_two_attention_factors() -> None:
    scaling = {"type": "longrope", **SETS, "short_mscale": 1.2, "long_mscale": 1.3}
    fields = {**BASE, "model_type": "phimoe", "original_max_position_embeddings": 1024, "rope_scaling": scaling}
    read = extension_of_config(fields)
    assert (read.short.attention_factor, read.long.attention_factor) == (1.2, 1.3)


@pytest.mark.parametrize(
    "names", [["text_config"], ["llm_config"], ["language_config"], ["thinker_config", "text_config"]]
)
def test_the_text_part_of_more(names: list[str]) -> None:
    """InternVL, DeepSeek-VL and Qwen-Omni were once said to run plain RoPE, whatever their text model has."""
    fields = {**BASE, "rope_scaling": SCALINGS["yarn"]}
    nested = fields
    for name in reversed(names):
        nested = {"model_type": "some_vl", "vision_config": {}, name: nested}
    assert extension_of_config(nested) == extension_of_config(fields)


LEFT_OUT = {
    "llama": {"hidden_size": 256, "num_attention_heads": 4},
    "cohere": {},
    "smollm3": {},
    "qwen3": {"hidden_size": 128},
    "gpt_oss": {"hidden_size": 512},
    "glm": {"head_dim": 64},
    "nemotron": BASE,
    "phi": BASE,
    "stablelm": SIZE,
    "gpt_neox": SIZE,
    "olmo3": SIZE,
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_what_a_file_leaves_out_is_what_transformers_takes(kind: str) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    same_as_transformers({**LEFT_OUT[kind], "rope_scaling": scaling}, kind)


def test_gpt_oss_has_a_scaling_that_its_file_may_leave_out() -> None:
    read = extension_of_config({"model_type": "gpt_oss"})
    assert (read.rope, read.length) == (Rope(dim=64, base=150000.0, original_length=4096), 131072)
    assert read.long.scheme == "yarn"


def test_gemma3_4b_as_it_was_published() -> None:
    """Its text part names neither lengths nor heads."""
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
    read = extension_of_config({"model_type": "gemma3", "text_config": text})
    assert read.rope == Rope(dim=256, base=1e6, original_length=131072)
    assert read.long.factors == (8.0,) * 128


REFUSED = {
    "none": ({}, "carries no rope scaling"),
    "null": ({"rope_scaling": None}, "carries no rope scaling"),
    "default": ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "carries no rope scaling"),
    "sliding only": ({"rope_parameters": {"sliding_attention": SCALINGS["linear"]}}, "carries no rope scaling"),
    "no object": ({"rope_scaling": [1]}, r"rope_scaling = \[1\] must be an object"),
    "no factor": ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
    "bad factor": ({"rope_scaling": {"type": "linear", "factor": "4"}}, "factor = '4' must be"),
    "negative factor": ({"rope_scaling": {"type": "yarn", "factor": -1}}, "factor = -1 must be"),
    "bad beta": ({"rope_scaling": {**SCALINGS["yarn"], "beta_fast": True}}, "beta_fast = True must be"),
    "no high": (
        {"rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 1}},
        "high_freq_factor is missing",
    ),
    "falling": ({"rope_scaling": {"type": "llama3", **LLAMA3, "low_freq_factor": 5}}, "is below low_freq_factor = 5"),
    "no short": (
        {"rope_scaling": {"type": "longrope", "long_factor": LONG}},
        "short_factor = None: not a list",
    ),
    "few": (
        {"rope_scaling": {**SCALINGS["longrope"], "short_factor": [1.0]}},
        "short_factor = 1 .*has 32 pairs",
    ),
    "words": ({"rope_scaling": {**SCALINGS["longrope"], "long_factor": ["a"] * 32}}, r"long_factor\[0\] = 'a'"),
    "no length": (
        {"max_position_embeddings": None, "rope_scaling": SCALINGS["yarn"]},
        "max_position_embeddings is miss",
    ),
    "half": ({"max_position_embeddings": 40.5, "rope_scaling": SCALINGS["yarn"]}, "must be a whole number"),
    "no heads": ({"num_attention_heads": None, "rope_scaling": SCALINGS["yarn"]}, "num_attention_heads is missing"),
    "wide": ({"head_dim": 1e9, "rope_scaling": SCALINGS["linear"]}, "more than any model has"),
    "no model": (
        {"model_type": "llama", "hidden_size": 250, "rope_scaling": SCALINGS["yarn"]},
        r"'llama': .*hidden size \(250",
    ),
    "no theta": (
        {"rope_theta": None, "model_type": "nobody's", "rope_scaling": SCALINGS["yarn"]},
        "rope_theta is missing",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_named(name: str) -> None:
    changed, said = REFUSED[name]
    with pytest.raises(LongRopeError, match=said):
        extension_of_config({**BASE, **changed})


def test_an_old_llama_without_theta() -> None:
    fields = {key: value for key, value in BASE.items() if key != "rope_theta"}
    assert same_as_transformers({**fields, "rope_scaling": SCALINGS["yarn"]}).rope.base == 10000.0


FACTOR = st.floats(0.1, 1000)


@settings(max_examples=30, deadline=None)
@given(st.data(), st.sampled_from(["llama", "qwen3", "stablelm", "gemma3_text", "olmo3"]))
def test_what_we_export_is_read_back(data: st.DataObject, kind: str) -> None:
    plain = families.config(kind)
    rope = Rope.of(plain)
    sets = [data.draw(st.lists(FACTOR, min_size=rope.dim // 2, max_size=rope.dim // 2)) for _ in range(2)]
    assume(sets[0] != sets[1])
    attention, length = data.draw(st.floats(0.5, 2)), data.draw(st.integers(65, 10**6))
    short, long = (
        Scaling(one, attention_factor=attention, scheme="longrope", length=n)
        for one, n in zip(sets, (64, length), strict=True)
    )
    made = Extension(rope=rope, short=short, long=long, length=length)
    for mode in ("dual", "static"):
        exported = for_mode(made, mode)
        fields = json.loads(json.dumps(config_fields(plain.to_dict(), exported)))
        read = extension_of_config(fields)
        assert read == exported
        v5 = extension_of_config({key: value for key, value in fields.items() if key != "rope_scaling"})
        assert v5 == exported


@pytest.mark.parametrize("name", sorted(set(SCALINGS) - {"dynamic"}))
def test_what_was_read_can_be_exported_and_read_again(name: str) -> None:
    read = extension_of_config({**BASE, "model_type": "llama", "rope_scaling": SCALINGS[name]})
    plain = AutoConfig.for_model("llama", **BASE).to_dict()
    again = extension_of_config(config_fields(plain, read))
    assert (again.rope, again.length) == (read.rope, read.length)
    assert (again.short.factors, again.long.factors) == (read.short.factors, read.long.factors)
    assert again.long.attention_factor == read.long.attention_factor


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-9, 9999), st.floats(), st.text(max_size=3), st.lists(FACTOR, max_size=3)
)
NAMES = sorted({*BASE, "head_dim", "partial_rotary_factor", "text_config", "original_max_position_embeddings"})
FIELDS = sorted({key for scaling in SCALINGS.values() for key in scaling} | {"rope_theta", FULL})


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_field_may_be_wrong(data: st.DataObject) -> None:
    scaling = {**SCALINGS[data.draw(st.sampled_from(sorted(SCALINGS)))]}
    scaling |= data.draw(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=2))
    fields = {**BASE, "model_type": data.draw(st.sampled_from(["llama", "olmo3", "gpt_neox", "some"]))}
    fields |= data.draw(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=2))
    with contextlib.suppress(LongRopeError):
        extension_of_config({**fields, data.draw(st.sampled_from(["rope_scaling", "rope_parameters"])): scaling})


PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "published_factors.json"


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published factors are not here")
def test_the_published_factors_of_phi3() -> None:
    arrays = json.loads(PUBLISHED.read_text(encoding="utf-8"))["arrays"]
    names = [name.removesuffix(".long") for name in arrays if name.endswith(".long")]
    assert names
    for name in names:
        sets = {"short_factor": arrays[f"{name}.short"], "long_factor": arrays[f"{name}.long"]}
        size = {"hidden_size": 3072, "num_attention_heads": 32, "rope_theta": 10000.0}
        lengths = {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096}
        read = same_as_transformers({**size, **lengths, "rope_scaling": {"type": "longrope", **sets}}, "phi3")
        assert read.rope == Rope(dim=96, base=10000.0, original_length=4096)
        assert read.long.attention_factor == pytest.approx(1.1902380714238083)
        assert len(read.short.factors) == len(read.long.factors) == 48


@pytest.mark.parametrize("kind", [[1.0], {"yarn": 1}, 3])
def test_a_rope_type_that_is_not_a_word_is_refused(kind: object) -> None:
    with pytest.raises(LongRopeError, match=r"rope_type = .*: longrope does not know this type"):
        extension_of_config({**BASE, "rope_scaling": {"rope_type": kind}})
