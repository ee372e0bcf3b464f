from __future__ import annotations

import families
import pytest

from longrope.errors import LongRopeError
from longrope.export.hf_config import config_fields, for_mode, refuse_quantized
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import attention_factor

LENGTH = 512
LLAMA, PHI3 = (families.config(family, rope_parameters=None).to_dict() for family in ("llama", "phi3"))
ROPE = Rope(dim=16, base=10000.0, original_length=64)
SU = attention_factor("su", ROPE, LENGTH)
SHORT, LONG = [1 + i / 10 for i in range(8)], [1.0 + i for i in range(8)]


def extension(attention: float = SU, **fields: object) -> Extension:
    short, long = Scaling(SHORT, attention_factor=attention), Scaling(LONG, attention_factor=attention)
    return Extension(**{"rope": ROPE, "short": short, "long": long, "length": LENGTH, **fields})


def changed(before: dict, after: dict) -> dict:
    return {key: value for key, value in after.items() if key not in before or before[key] != value}


def test_exact_fields_of_a_llama() -> None:
    full = {
        "rope_type": "longrope",
        "short_factor": SHORT,
        "long_factor": LONG,
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "attention_factor": SU,
    }
    assert changed(LLAMA, config_fields({**LLAMA, "head_dim": None}, extension())) == {
        "max_position_embeddings": LENGTH,
        "original_max_position_embeddings": 64,
        "rope_theta": 10000.0,
        "rope_scaling": full,
        "rope_parameters": {**full, "rope_theta": 10000.0},
    }


def test_exact_fields_of_a_phi3() -> None:
    made = changed(PHI3, config_fields(PHI3, extension()))
    assert made.pop("rope_parameters") == {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 1.0,
        "short_factor": SHORT,
        "long_factor": LONG,
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "attention_factor": SU,
    }
    assert made == {
        "max_position_embeddings": LENGTH,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 1.0,
        "rope_scaling": {"type": "longrope", "short_factor": SHORT, "long_factor": LONG},
    }


def test_a_softmax_scale_of_yarn_needs_a_factor_above_1() -> None:
    """DeepSeek's attention derives the scale from mscale_all_dim and the factor."""
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "mscale_all_dim": 0.7}
    made = config_fields({**LLAMA, "rope_parameters": yarn}, extension())
    assert made["rope_parameters"]["mscale_all_dim"] == pytest.approx(0.7 * 2 / 3)
    with pytest.raises(LongRopeError, match=r"length = 64: .*mscale_all_dim = 0\.7.*Use factors for a longer"):
        config_fields({**LLAMA, "rope_parameters": yarn}, extension(length=64))


@pytest.mark.parametrize("family", sorted(set(families.FAMILIES) - set(families.BY_LAYER) - {"phi3"}))
def test_fields_that_every_other_reader_needs(family: str) -> None:
    config = families.config(family)
    rope = Rope.of(config)
    identity = Scaling.identity(rope)
    made = config_fields(config.to_dict(), Extension(rope=rope, short=identity, long=identity, length=LENGTH))
    assert made["head_dim"] == 16
    assert (made["rope_theta"], made["rope_parameters"]["rope_theta"]) == (rope.base, rope.base)
    assert (made["max_position_embeddings"], made["original_max_position_embeddings"]) == (LENGTH, 64)
    assert made["rope_scaling"]["rope_type"] == "longrope"
    assert "type" not in made["rope_scaling"]
    if rope.dim != 16:
        partial = (made["rope_parameters"]["partial_rotary_factor"], made["partial_rotary_factor"])
        assert partial == (rope.dim / 16, rope.dim / 16)


def test_the_given_config_is_left_alone() -> None:
    before = {**LLAMA, "rope_parameters": dict(LLAMA["rope_parameters"])}
    config_fields(LLAMA, extension())
    assert before == LLAMA


@pytest.mark.parametrize("attention", [1.0, SU * 1.001])
def test_mscale_holds_an_attention_factor_off_the_formula(attention: float) -> None:
    made = config_fields(LLAMA, extension(attention))
    for field in ("attention_factor", "short_mscale", "long_mscale"):
        assert made["rope_scaling"][field] == attention
    assert made["rope_parameters"]["attention_factor"] == attention
    assert not {"short_mscale", "long_mscale"} & set(config_fields(LLAMA, extension())["rope_scaling"])


@pytest.mark.parametrize("attention", [1.0, SU * 1.001])
def test_a_phi3_holds_no_other_attention_factor(attention: float) -> None:
    with pytest.raises(LongRopeError, match=f"attention_factor = {attention:g}.*phi3.*{SU:.6g}"):
        config_fields(PHI3, extension(attention))


def test_of_a_rope_for_each_layer_type_that_of_full_attention_is_extended() -> None:
    nested = {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
    nested["sliding_attention"] = {"rope_type": "default", "rope_theta": 500.0}
    config = families.config("gemma3_text", head_dim=16, rope_parameters=nested).to_dict()
    made = changed(config, config_fields(config, extension()))
    assert made["rope_parameters"] == {**nested, "full_attention": {**nested["full_attention"], **made["rope_scaling"]}}
    assert made["rope_scaling"]["long_factor"] == LONG
    assert (made["rope_theta"], made["rope_local_base_freq"]) == (1e4, 500.0)


def test_what_is_refused() -> None:
    with pytest.raises(LongRopeError, match=r"'phimoe'.*short factors"):
        config_fields({**LLAMA, "model_type": "phimoe"}, extension())
    proportional = {"rope_type": "proportional", "rope_theta": 1e4, "partial_rotary_factor": 0.25}
    with pytest.raises(LongRopeError, match="its rope is proportional"):
        config_fields({**LLAMA, "rope_parameters": proportional}, extension())
    with pytest.raises(LongRopeError, match=r"quant_method = 'gptq': .*Write the config alone"):
        refuse_quantized({**LLAMA, "quantization_config": {"quant_method": "gptq"}})


def test_modes() -> None:
    dual = extension()
    assert for_mode(dual, "dual") == dual
    static = for_mode(dual, "static")
    assert (static.short, static.long, static.length) == (dual.long, dual.long, dual.length)
    with pytest.raises(LongRopeError, match=r"mode = 'both'.*dual, static"):
        for_mode(dual, "both")


def test_dual_needs_one_attention_factor_and_static_does_not() -> None:
    two = Extension.of(ROPE, Scaling(LONG, attention_factor=SU, length=LENGTH))
    with pytest.raises(LongRopeError, match=r"attention_factor = 1 \(short\) and .*static"):
        for_mode(two, "dual")
    assert for_mode(two, "static").short.attention_factor == SU


@pytest.mark.parametrize(("mode", "which"), [("dual", "short"), ("dual", "long"), ("static", "long")])
def test_start_tokens_are_refused(mode: str, which: str) -> None:
    with pytest.raises(LongRopeError, match=f"{which}.start_tokens = 4"):
        for_mode(extension(**{which: Scaling(LONG, attention_factor=SU, start_tokens=4)}), mode)


def test_start_tokens_of_the_short_set_do_not_matter_where_it_is_left_out() -> None:
    for_mode(extension(short=Scaling(SHORT, start_tokens=4)), "static")
