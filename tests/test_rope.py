from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, replace

import families
import mpmath
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import LlamaConfig, Qwen2VLConfig

from longrope.errors import LongRopeError
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling

GEOMETRIES = [(128, 1e4, 4096), (128, 5e5, 8192), (96, 1e4, 4096), (64, 1e5, 8192), (4, 1e4, 64), (2, 3.5, 7)]
BAD_NUMBERS = (0, 0.0, -1.5, math.nan, math.inf, -math.inf, True, "2", None)
ROPE = Rope(dim=8, base=1e4, original_length=64)

positive = st.floats(min_value=1e-300, allow_infinity=False, allow_nan=False)
ropes = st.builds(
    Rope,
    dim=st.integers(1, 40).map(lambda half: 2 * half),
    base=st.floats(1.5, 1e9),
    original_length=st.integers(7, 2**20),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)


@st.composite
def scalings(draw, pairs=None):
    count = draw(st.integers(0, 20)) if pairs is None else pairs
    return Scaling(
        draw(st.lists(positive, min_size=count, max_size=count)),
        attention_factor=draw(positive),
        start_tokens=draw(st.integers(0, 10**6)),
        scheme=draw(st.text()),
        length=draw(st.none() | st.integers(1, 2**40)),
        provenance=draw(st.dictionaries(st.text(), json_values, max_size=3)),
    )


@st.composite
def extensions(draw):
    rope = draw(ropes)
    short, long = draw(scalings(rope.dim // 2)), draw(scalings(rope.dim // 2))
    return Extension(rope=rope, short=short, long=long, length=rope.original_length + draw(st.integers(0, 2**30)))


@pytest.mark.parametrize(("dim", "base", "original"), GEOMETRIES)
def test_frequencies_and_wavelengths_against_mpmath(dim: int, base: float, original: int) -> None:
    rope = Rope(dim=dim, base=base, original_length=original)
    with mpmath.workdps(40):
        exact = [mpmath.mpf(base) ** (-mpmath.mpf(2 * i) / dim) for i in range(dim // 2)]
        turns = [2 * mpmath.pi / frequency for frequency in exact]
    assert rope.inv_freq.dtype == np.float64
    np.testing.assert_allclose(rope.inv_freq, np.array(exact, dtype=float), rtol=1e-14)
    np.testing.assert_allclose(rope.wavelengths, np.array(turns, dtype=float), rtol=1e-14)


@given(ropes)
@example(Rope(dim=128, base=5e5, original_length=8192))
@example(Rope(dim=4, base=1e9, original_length=7))
@example(Rope(dim=4, base=1.5, original_length=2**20))
def test_critical_pair_is_the_first_wavelength_beyond_the_original_length(rope: Rope) -> None:
    beyond = [i for i, wavelength in enumerate(rope.wavelengths) if wavelength > rope.original_length]
    assert rope.critical_pair == (beyond[0] if beyond else rope.dim // 2)
    formula = rope.dim / 2 * math.log(rope.original_length / (2 * math.pi), rope.base)
    assert rope.critical_pair == min(max(math.ceil(formula), 0), rope.dim // 2)


@pytest.mark.parametrize(("dim", "base", "original", "pair"), [(128, 5e5, 8192, 35), (96, 1e4, 2048, 31)])
def test_critical_pair_of_the_longrope2_paper(dim: int, base: float, original: int, pair: int) -> None:
    assert Rope(dim=dim, base=base, original_length=original).critical_pair == pair


@pytest.mark.parametrize("field", ["dim", "base", "original_length"])
@pytest.mark.parametrize("value", BAD_NUMBERS)
def test_rope_refuses_bad_numbers(field: str, value: object) -> None:
    with pytest.raises(LongRopeError) as error:
        replace(ROPE, **{field: value})
    assert field in str(error.value)
    assert repr(value) in str(error.value)


def test_rope_refuses_an_odd_dim() -> None:
    with pytest.raises(LongRopeError, match="dim = 7 must be even"):
        replace(ROPE, dim=7)


def test_scale_is_the_ratio_of_lengths() -> None:
    assert ROPE.scale(64) == 1
    assert ROPE.scale(96) == 1.5
    with pytest.raises(LongRopeError, match=r"length = 63 .* 64"):
        ROPE.scale(63)


def config(**fields: object) -> LlamaConfig:
    return LlamaConfig(hidden_size=64, num_attention_heads=4, max_position_embeddings=512, **fields)


@pytest.mark.parametrize(
    ("fields", "dim"),
    [
        ({}, 16),
        ({"head_dim": None}, 16),
        ({"head_dim": 32}, 32),
        ({"head_dim": 32, "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}}, 8),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": None}}, 16),
    ],
)
def test_rope_of_finds_the_rotated_dimensions(fields: dict, dim: int) -> None:
    assert Rope.of(config(**fields)) == Rope(dim=dim, base=10000.0, original_length=512)


def test_rope_of_a_config_without_head_dim() -> None:
    plain = families.config("gpt_neox", max_position_embeddings=512)
    assert not hasattr(plain, "head_dim")
    assert Rope.of(plain) == Rope(dim=4, base=10000.0, original_length=512)


def test_rope_of_takes_the_original_length_from_a_scaled_config() -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0, "original_max_position_embeddings": 128}
    assert Rope.of(config(rope_parameters=yarn)) == Rope(dim=16, base=5e5, original_length=128)
    phi3 = families.config("phi3", max_position_embeddings=512, original_max_position_embeddings=32)
    assert Rope.of(phi3).original_length == 32


@pytest.mark.parametrize("family", families.BY_LAYER)
def test_rope_of_nested_parameters_takes_full_attention(family: str) -> None:
    theta = {"full_attention": 7e5, "sliding_attention": 1e4}
    nested = {kind: {"rope_type": "default", "rope_theta": base} for kind, base in theta.items()}
    assert Rope.of(families.config(family, head_dim=16, rope_parameters=nested)) == Rope(16, 7e5, 64)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_rope_of_a_model_is_that_of_its_config(family: str) -> None:
    model = families.build(family)
    assert Rope.of(model) == Rope.of(model.config)


@pytest.mark.parametrize(("family", "why"), families.REFUSED.items())
def test_rope_of_names_the_model_type_it_refuses(family: str, why: str) -> None:
    with pytest.raises(LongRopeError, match=f"'{family}' .*{why}"):
        Rope.of(families.config(family))


def test_rope_of_refuses_multimodal_sections() -> None:
    mrope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    with pytest.raises(LongRopeError, match=r"'qwen2_vl.*mrope_section"):
        Rope.of(Qwen2VLConfig(text_config={"hidden_size": 64, "num_attention_heads": 4, "rope_parameters": mrope}))


@given(scalings())
def test_a_scaling_survives_json(scaling: Scaling) -> None:
    back = Scaling.from_json(scaling.to_json())
    assert back == scaling
    assert back.provenance == scaling.provenance
    assert hash(back) == hash(scaling)
    assert json.loads(scaling.to_json())["version"] == 1


@given(extensions())
def test_an_extension_survives_json(extension: Extension) -> None:
    back = Extension.from_json(extension.to_json())
    assert back == extension
    assert back.long.provenance == extension.long.provenance
    assert hash(back) == hash(extension)
    assert json.loads(extension.to_json())["version"] == 1


def test_numpy_numbers_survive_json() -> None:
    numbers = np.array([1.5, 2, 3, 4])
    made = Scaling(numbers, attention_factor=numbers[0], length=np.int64(128))
    assert Scaling.from_json(made.to_json()) == Scaling([1.5, 2, 3, 4], attention_factor=1.5, length=128)
    rope = Rope(dim=np.int64(8), base=np.float32(1e4), original_length=np.int64(64))
    assert Extension.from_json(Extension.of(rope, made).to_json()).rope == ROPE


def test_the_nouns_cannot_be_changed() -> None:
    numbers = [1.0, 2.0, 3.0, 4.0]
    scaling = Scaling(numbers, length=128)
    numbers[0] = 9.0
    assert scaling.factors == (1.0, 2.0, 3.0, 4.0)
    extension = Extension.of(ROPE, scaling)
    for noun, field in ((ROPE, "base"), (scaling, "factors"), (extension, "long")):
        with pytest.raises(FrozenInstanceError):
            setattr(noun, field, None)


@pytest.mark.parametrize("value", BAD_NUMBERS)
@pytest.mark.parametrize("position", [0, 3])
def test_scaling_refuses_bad_factors(value: object, position: int) -> None:
    factors: list = [1.0] * 4
    factors[position] = value
    with pytest.raises(LongRopeError) as error:
        Scaling(factors)
    assert f"factors[{position}] = {value!r}" in str(error.value)


@pytest.mark.parametrize("value", BAD_NUMBERS)
def test_scaling_refuses_a_bad_attention_factor(value: object) -> None:
    with pytest.raises(LongRopeError, match="attention_factor = "):
        Scaling([1.0], attention_factor=value)


@pytest.mark.parametrize("value", [-1, 1.0, True, "1", None, math.nan])
def test_scaling_refuses_bad_start_tokens(value: object) -> None:
    with pytest.raises(LongRopeError, match="start_tokens = "):
        Scaling([1.0], start_tokens=value)


@pytest.mark.parametrize("value", [0, -5, True, "128", math.inf])
def test_scaling_refuses_a_bad_length(value: object) -> None:
    with pytest.raises(LongRopeError, match="length = "):
        Scaling([1.0], length=value)


def test_inv_freq_divides_by_the_factors() -> None:
    factors = [1.0, 2.5, 3.0, 64.0]
    expected = [1 / (lam * 10000.0 ** (2 * i / 8)) for i, lam in enumerate(factors)]
    np.testing.assert_allclose(Scaling(factors).inv_freq(ROPE), expected, rtol=1e-15)


@pytest.mark.parametrize("count", [0, 3, 5, 8])
def test_a_wrong_number_of_factors_is_refused(count: int) -> None:
    wrong, right = Scaling([2.0] * count, length=128), Scaling.identity(ROPE)
    for use in (
        lambda: wrong.inv_freq(ROPE),
        lambda: Extension(rope=ROPE, short=wrong, long=right, length=128),
        lambda: Extension(rope=ROPE, short=right, long=wrong, length=128),
    ):
        with pytest.raises(LongRopeError, match=f"factors: {count} values .* dim 8, which has 4 pairs"):
            use()


def test_identity() -> None:
    identity = Scaling.identity(ROPE)
    assert identity.is_identity
    assert np.array_equal(identity.inv_freq(ROPE), ROPE.inv_freq)
    assert not replace(identity, attention_factor=1.1).is_identity
    assert not replace(identity, factors=[1.0, 1.0, 1.0, 1.0 + 1e-12]).is_identity


def test_extension_of_leaves_short_sequences_alone() -> None:
    extension = Extension.of(ROPE, Scaling([2.0] * 4, attention_factor=1.2, length=512))
    assert extension.short.is_identity
    assert (extension.length, extension.scale) == (512, 8.0)
    with pytest.raises(LongRopeError, match="length is not set"):
        Extension.of(ROPE, Scaling([2.0] * 4))
    with pytest.raises(LongRopeError, match="length = 32 is below"):
        Extension.of(ROPE, Scaling([2.0] * 4, length=32))


SCALING_JSON = Scaling([1.0, 2.0, 3.0, 4.0], length=128).to_json()
EXTENSION_JSON = Extension.of(ROPE, Scaling.from_json(SCALING_JSON)).to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version = 2, .*reads up to 1: upgrade"),
        ({"version": None}, "version = None"),
        ({"version": "1"}, "version = '1'"),
        ({"kind": "plan"}, "kind"),
        ({"surprise": 1}, "surprise"),
        ({"length": "long"}, "length"),
        ({"length": True}, "length"),
    ],
)
@pytest.mark.parametrize("noun", [Scaling, Extension])
def test_from_json_refuses_what_it_does_not_know(noun: type, change: dict, message: str) -> None:
    text = SCALING_JSON if noun is Scaling else EXTENSION_JSON
    with pytest.raises(LongRopeError, match=message):
        noun.from_json(json.dumps(json.loads(text) | change))


@pytest.mark.parametrize("change", [{"factors": [1.0, math.nan]}, {"factors": 3}, {"factors": "12"}, {"factors": None}])
def test_from_json_refuses_bad_factors(change: dict) -> None:
    with pytest.raises(LongRopeError, match="factors"):
        Scaling.from_json(json.dumps(json.loads(SCALING_JSON) | change))


@pytest.mark.parametrize("missing", ["rope", "short", "long", "length"])
def test_from_json_names_a_missing_field(missing: str) -> None:
    fields = json.loads(EXTENSION_JSON)
    del fields[missing]
    with pytest.raises(LongRopeError, match=missing):
        Extension.from_json(json.dumps(fields))


@pytest.mark.parametrize("part", ["rope", "short", "long"])
@pytest.mark.parametrize("value", [{"surprise": 1}, None, 3, []])
def test_from_json_refuses_bad_parts(part: str, value: object) -> None:
    fields = json.loads(EXTENSION_JSON)
    fields[part] = fields[part] | value if isinstance(value, dict) else value
    with pytest.raises(LongRopeError, match=r"surprise|mapping|missing"):
        Extension.from_json(json.dumps(fields))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"scaling"'])
@pytest.mark.parametrize("noun", [Scaling, Extension])
def test_from_json_refuses_other_texts(noun: type, text: str) -> None:
    with pytest.raises(LongRopeError, match=r"not JSON|not a longrope"):
        noun.from_json(text)


# reasonable factors: their products and quotients are exact to the last digits
factors_of_8 = st.lists(st.floats(0.5, 100), min_size=4, max_size=4)


@given(factors_of_8, st.integers(64, 10**6))
def test_after_a_stage_the_weights_are_used_to_its_frequencies(factors: list[float], length: int) -> None:
    scaling = Scaling(factors, length=length, attention_factor=1.3)
    later = scaling.rope_after(ROPE)
    np.testing.assert_allclose(later.inv_freq, scaling.inv_freq(ROPE), rtol=1e-14)
    np.testing.assert_allclose(later.wavelengths, ROPE.wavelengths * factors, rtol=1e-14)
    assert (later.dim, later.base, later.original_length) == (8, 1e4, length)
    assert later.scale(2 * length) == 2
    np.testing.assert_allclose(Scaling.identity(later).inv_freq(later), scaling.inv_freq(ROPE), rtol=1e-14)
    assert hash(later) == hash(scaling.rope_after(ROPE))


@given(factors_of_8, factors_of_8)
def test_factors_of_a_later_stage_multiply(first: list[float], second: list[float]) -> None:
    """They are said of the rope after the first one; their product is what a file holds."""
    before, relative = Scaling(first, length=128), Scaling(second, length=512, scheme="mine", attention_factor=1.2)
    later, whole = before.rope_after(ROPE), relative.times(before.factors)
    np.testing.assert_allclose(whole.factors, np.multiply(first, second), rtol=1e-15)
    np.testing.assert_allclose(whole.inv_freq(ROPE), relative.inv_freq(later), rtol=1e-14)
    assert replace(whole, factors=second) == relative


@given(factors_of_8, factors_of_8)
def test_after_two_stages(first: list[float], second: list[float]) -> None:
    """The same whether the second scaling is said of the rope after the first, or of the plain one."""
    before, relative = Scaling(first, length=128), Scaling(second, length=512)
    later = relative.rope_after(before.rope_after(ROPE))
    np.testing.assert_allclose(later.inv_freq, relative.inv_freq(before.rope_after(ROPE)), rtol=1e-14)
    np.testing.assert_allclose(later.inv_freq, relative.times(first).rope_after(ROPE).inv_freq, rtol=1e-14)
    assert later.original_length == 512


def test_after_refuses_what_it_cannot_know() -> None:
    with pytest.raises(LongRopeError, match="length is not set"):
        Scaling([2.0] * 4).rope_after(ROPE)
    with pytest.raises(LongRopeError, match=r"factors: 3 values .* dim 8, which has 4 pairs"):
        Scaling([2.0] * 3, length=128).rope_after(ROPE)
    with pytest.raises(ValueError, match="argument 2 is longer"):
        Scaling([2.0] * 4).times([2.0] * 5)


@given(ropes, st.floats(1e-6, 1e6))
def test_the_pair_of_some_turns_turns_so_often(rope: Rope, turns: float) -> None:
    wavelength = 2 * math.pi * rope.base ** (2 * rope.pair_of(turns) / rope.dim)
    assert rope.original_length / wavelength == pytest.approx(turns, rel=1e-6)


@given(ropes, st.floats(-1, 2))
def test_factors_of_1_leave_the_pairs_where_they_are(rope: Rope, part: float) -> None:
    """Also as far outside as there are pairs."""
    place = part * (rope.dim // 2 - 1)
    turns = rope.original_length / (2 * math.pi * rope.base ** (2 * place / rope.dim))
    same = Scaling.identity(rope).rope_after(rope)
    assert same.factors == (1.0,) * (rope.dim // 2)
    assert rope.pair_of(turns) == pytest.approx(place, abs=1e-6)
    assert same.pair_of(turns) == pytest.approx(place, abs=1e-6)


@pytest.mark.parametrize("turns", [1e-12, 1e-6, 1e6, 1e12])
def test_factors_of_1_leave_the_pairs_where_they_are_far_outside(turns: float) -> None:
    rope = Rope(dim=4, base=3.0, original_length=4096)
    assert Scaling.identity(rope).rope_after(rope).pair_of(turns) == pytest.approx(rope.pair_of(turns), abs=1e-6)


rising = st.lists(st.floats(1, 4), min_size=8, max_size=8).map(lambda found: sorted(found))


@given(rising, st.floats(0, 7))
def test_the_pair_of_some_turns_after_a_stage(factors: list[float], place: float) -> None:
    """Between two pairs the log of the wavelength rises in a straight line."""
    later = Scaling(factors, length=256).rope_after(Rope(dim=16, base=1e4, original_length=64))
    low = min(int(place), 6)
    below, above = np.log(later.wavelengths[low : low + 2])
    turns = 256 / math.exp(below + (place - low) * (above - below))
    assert later.pair_of(turns) == pytest.approx(place, abs=1e-9)


@given(st.lists(st.floats(0.5, 100), min_size=8, max_size=8))
def test_fewer_turns_are_later_pairs(factors: list[float]) -> None:
    """Even where the wavelengths do not rise: then just below the first pair that turns no more often."""
    later = Scaling(factors, length=256).rope_after(Rope(dim=16, base=1e4, original_length=64))
    turns = np.geomspace(1e4, 1e-4, 60)
    places = np.array([later.pair_of(one) for one in turns])
    assert (np.diff(places) >= -1e-9).all()
    slow = 256 / later.wavelengths <= turns[:, None]
    first = np.where(slow.any(axis=1), slow.argmax(axis=1), 8)
    assert (places <= first + 1e-9)[first < 8].all()
    assert (places > first - 1 - 1e-9)[first > 0].all()


def test_an_extension_is_relative_to_the_plain_rope() -> None:
    long = Scaling([1.0, 2.0, 3.0, 4.0], length=512)
    later = Scaling([1.0, 1.5, 2.0, 2.0], length=128).rope_after(ROPE)
    with pytest.raises(LongRopeError, match=r"rope\.factors.*multiply"):
        Extension.of(later, long)
    fields = json.loads(Extension.of(ROPE, long).to_json())
    assert fields["rope"] == {"dim": 8, "base": 1e4, "original_length": 64}
    fields["rope"]["factors"] = [1.0, 1.5, 2.0, 2.0]
    with pytest.raises(LongRopeError, match=r"rope\.factors"):
        Extension.from_json(json.dumps(fields))


@pytest.mark.parametrize("factors", [(2.0,), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 0.0), (1.0, 1.0, 1.0, math.nan)])
def test_rope_refuses_bad_factors(factors: tuple[float, ...]) -> None:
    with pytest.raises(LongRopeError, match="factors"):
        replace(ROPE, factors=factors)
