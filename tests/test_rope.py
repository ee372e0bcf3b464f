from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import families
import mpmath
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from ropes import BAD_NUMBERS, ROPE, ropes
from transformers import CONFIG_MAPPING, LlamaConfig, Qwen2VLConfig

from longrope.checks import positive, whole
from longrope.errors import LongRopeError
from longrope.rope import Rope, full_attention_fields, text_fields
from longrope.scaling import Scaling
from longrope.schemes import yarn

GEOMETRIES = [(128, 1e4, 4096), (128, 5e5, 8192), (96, 1e4, 4096), (64, 1e5, 8192), (4, 1e4, 64), (2, 3.5, 7)]


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
    assert str(error.value).startswith(f"rope {field} = {value!r} must be ")


@given(st.floats(), st.sampled_from([float, np.float64, np.float32]))
def test_a_positive_number_is_itself_and_no_other_is_one(value: float, kind: type) -> None:
    with np.errstate(over="ignore"):
        value = kind(value)
    if 0 < value < math.inf:
        number = positive("rate", value)
        assert (number, type(number)) == (value, float)
        return
    with pytest.raises(LongRopeError) as error:
        positive("rate", value)
    assert str(error.value) == f"rate = {value!r} must be a finite number above 0"


@example(2**53, 0, int)
@example(2**53 + 1, 0, int)
@given(st.integers(-3, 2**60), st.integers(0, 3), st.sampled_from([int, np.int64]))
def test_a_whole_number_is_itself_from_the_least_on(value: int, least: int, kind: type) -> None:
    if least <= value <= 2**53:
        number = whole("count", kind(value), least)
        assert (number, type(number)) == (value, int)
        return
    with pytest.raises(LongRopeError) as error:
        whole("count", value, least)
    most = ", 2^53 at most" if value > 2**53 else ""
    assert str(error.value) == f"count = {value} must be a whole number, {least} or more{most}"


def test_rope_refuses_an_odd_dim_and_a_base_of_1() -> None:
    with pytest.raises(LongRopeError, match="dim = 7 must be even"):
        replace(ROPE, dim=7)
    with pytest.raises(LongRopeError, match=r"base = 1\.0 must be above 1"):
        replace(ROPE, base=1)
    assert replace(ROPE, dim=2, base=1.0001, original_length=2).dim == 2  # the least of each


@given(ropes)
def test_each_pair_turns_slower_than_the_one_before_by_the_same_ratio(rope: Rope) -> None:
    assert rope.inv_freq[0] == 1
    np.testing.assert_allclose(rope.inv_freq[1:] / rope.inv_freq[:-1], rope.base ** (-2 / rope.dim), rtol=1e-12)
    np.testing.assert_allclose(rope.wavelengths * rope.inv_freq, 2 * math.pi, rtol=1e-14)


@given(ropes, st.integers(-7, 2**40))
def test_scale_is_the_ratio_of_lengths(rope: Rope, more: int) -> None:
    length = rope.original_length + more
    if more >= 0:
        assert rope.scale(length) * rope.original_length == pytest.approx(length, rel=1e-15)
        return
    with pytest.raises(LongRopeError, match=rf"length = {length} .* {rope.original_length}. Use a longer one.$"):
        rope.scale(length)


def test_a_pair_that_turns_exactly_once_within_the_original_length_is_not_critical() -> None:
    once, slower = 8 / (2 * math.pi), 8.1 / (2 * math.pi)
    rope = Rope(dim=4, base=2.0, original_length=8, factors=(once, slower / math.sqrt(2)))
    assert rope.wavelengths.tolist() == [8.0, pytest.approx(8.1)]
    assert rope.critical_pair == 1


def test_the_critical_pair_of_carried_factors_that_let_wavelengths_fall() -> None:
    rope = Rope(dim=8, base=1e4, original_length=500, factors=(1.0, 20.0, 0.5, 1.0))
    assert [wavelength > 500 for wavelength in rope.wavelengths] == [False, True, False, True]
    assert rope.critical_pair == 1


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


def test_rope_of_a_scaled_config_is_used_to_its_factors_up_to_their_length() -> None:
    fields = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0, "original_max_position_embeddings": 128}
    factors = yarn(Rope(dim=16, base=5e5, original_length=128), 512)
    rope = Rope.of(config(rope_parameters=fields))
    assert rope == Rope(16, 5e5, 512, factors.factors, attention_factor=factors.attention_factor)
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
    with pytest.raises(LongRopeError, match=f"'{family}': .*{why}"):
        Rope.of(families.config(family))


def plain(theta: object = 1e4, partial: object = None, **fields: object) -> SimpleNamespace:
    """A config of another make than transformers', with fields that say the same."""
    parameters = {"rope_theta": theta, "partial_rotary_factor": partial}
    least = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 512}
    return SimpleNamespace(**{**least, "rope_parameters": parameters, **fields})


def test_rope_of_any_config_with_the_fields() -> None:
    assert Rope.of(plain()) == Rope(dim=16, base=1e4, original_length=512)
    assert Rope.of(plain(original_max_position_embeddings=128)).original_length == 128
    assert Rope.of(SimpleNamespace(config=plain(partial=0.5))).dim == 8
    assert Rope.of(plain(max_position_embeddings=2)).original_length == 2
    assert Rope.of(plain(hidden_size=2, num_attention_heads=1)).dim == 2
    assert Rope.of(plain(hidden_size=67)).dim == 16  # as transformers divides


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": None}, "hidden_size = None must be a whole number, 1 or more"),
        ({"hidden_size": 0}, "hidden_size = 0 must be a whole number, 1 or more"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0 must be a whole number, 1 or more"),
        ({"head_dim": "16"}, "head_dim = '16' must be a finite number above 0"),
        ({"head_dim": -16}, "head_dim = -16 must be a finite number above 0"),
        ({"partial": "half"}, "partial_rotary_factor = 'half' must be a finite number above 0"),
        ({"partial": 0.0}, "partial_rotary_factor = 0.0 must be a finite number above 0"),
        (
            {"partial": 1.5},
            "partial_rotary_factor = 1.5: more than the whole of each head would rotate. Write 1 or less.",
        ),
        ({"theta": None}, "rope_theta = None must be a finite number above 0"),
        ({"theta": "1e4"}, "rope_theta = '1e4' must be a finite number above 0"),
        ({"max_position_embeddings": None}, "max_position_embeddings = None must be a whole number, 2 or more"),
        ({"max_position_embeddings": 1}, "max_position_embeddings = 1 must be a whole number, 2 or more"),
        ({"original_max_position_embeddings": 0.5}, "rope original_length = 0.5 must be a whole number, 2 or more"),
    ],
)
def test_rope_of_names_the_field_of_a_config_that_is_odd(fields: dict, message: str) -> None:
    with pytest.raises(LongRopeError) as error:
        Rope.of(plain(**fields))
    assert str(error.value) == f"model type 'SimpleNamespace': {message}"


@pytest.mark.parametrize("missing", ["hidden_size", "num_attention_heads", "max_position_embeddings"])
def test_rope_of_names_the_field_that_a_config_lacks(missing: str) -> None:
    lacking = plain()
    delattr(lacking, missing)
    with pytest.raises(LongRopeError, match=f"^model type .*: {missing} = None must be a whole number"):
        Rope.of(lacking)


@pytest.mark.parametrize("value", ["tiny", 3, None, (1, 2)])
def test_rope_of_refuses_what_is_no_model(value: object) -> None:
    with pytest.raises(LongRopeError, match=r"^model = .*: not a model or a config\. Give the first value"):
        Rope.of(value)


def outcome(model_type: str) -> str:
    """Return what `Rope.of` makes of the default config of a model type: a rope, a message, or "" without a config."""
    try:
        config = CONFIG_MAPPING[model_type]()
    except Exception:  # a few composite classes have no default
        return ""
    try:
        return repr(Rope.of(config))
    except LongRopeError as error:
        return str(error)


@pytest.mark.filterwarnings("ignore")
def test_rope_of_any_config_class_is_a_rope_or_a_refusal() -> None:
    outcomes = {model_type: outcome(model_type) for model_type in CONFIG_MAPPING}
    assert all(text.startswith(("Rope(", "model type '")) for text in outcomes.values() if text)
    assert list(outcomes.values()).count("") < 10
    assert sum(text.startswith("Rope(") for text in outcomes.values()) > 100
    assert outcomes["llama"] == "Rope(dim=128, base=10000.0, original_length=2048)"


def test_rope_of_a_gemma_4_config_is_that_of_its_full_attention_layers() -> None:
    """They have another head_dim than the others, and a quarter of the pairs of a head rotates."""
    rope = Rope.of(CONFIG_MAPPING["gemma4"]())
    assert (rope.dim, rope.base, rope.original_length) == (512, 1e6, 131072)
    np.testing.assert_allclose(rope.inv_freq[:64], 1e6 ** (-2 * np.arange(64) / 512))
    assert rope.inv_freq[64:].max() < 1e-12


def test_rope_of_reads_three_equal_axes_as_one() -> None:
    fields = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 512}
    assert Rope.of(Qwen2VLConfig(text_config={**sizes, "rope_parameters": fields})) == Rope(16, 1e4, 512)


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


@pytest.mark.parametrize("count", [1, 3, 5, 8])
def test_rope_refuses_factors_of_another_rope(count: int) -> None:
    with pytest.raises(LongRopeError, match=f"^rope factors: {count} values for a rope of 4 pairs$"):
        replace(ROPE, factors=(1.0,) * count)


@pytest.mark.parametrize("value", BAD_NUMBERS)
def test_rope_refuses_bad_factors(value: object) -> None:
    with pytest.raises(LongRopeError) as error:
        replace(ROPE, factors=(1.0, 1.0, 1.0, value))
    assert str(error.value).startswith(f"rope factors[3] = {value!r} must be ")


@pytest.mark.parametrize("name", ["factors", "short_factors"])
@pytest.mark.parametrize("value", [5, "1234", None])
def test_rope_refuses_factors_that_are_not_a_list(name: str, value: object) -> None:
    with pytest.raises(LongRopeError) as error:
        replace(ROPE, **{name: value})
    assert str(error.value) == f"rope {name} = {value!r} must be a list of numbers"


@pytest.mark.parametrize("kind", [list, np.array, iter])
def test_factors_of_any_kind_are_kept_as_a_tuple_of_numbers(kind: Callable) -> None:
    rope = replace(ROPE, factors=kind([1, 2, 3, 4]))
    assert rope.factors == (1.0, 2.0, 3.0, 4.0)
    assert rope == replace(ROPE, factors=rope.factors)
    assert len({rope, ROPE}) == 2
    np.testing.assert_allclose(rope.inv_freq, ROPE.inv_freq / [1, 2, 3, 4], rtol=1e-15)


@pytest.mark.parametrize("value", BAD_NUMBERS)
def test_rope_refuses_a_bad_attention_factor(value: object) -> None:
    with pytest.raises(LongRopeError) as error:
        replace(ROPE, attention_factor=value)
    assert str(error.value).startswith(f"rope attention_factor = {value!r} must be ")
    assert type(replace(ROPE, attention_factor=2).attention_factor) is float


SHORT = {"factors": (2.0,) * 4, "short_factors": (1.0,) * 4, "short_length": 32}


@pytest.mark.parametrize("missing", SHORT)
def test_short_factors_come_with_their_length_and_with_long_ones(missing: str) -> None:
    with pytest.raises(LongRopeError) as error:
        replace(ROPE, **{name: value for name, value in SHORT.items() if name != missing})
    assert str(error.value) == "rope short_factors: they come with short_length and factors. Give all three or none."


def test_short_factors_are_for_texts_of_at_most_the_original_length() -> None:
    assert replace(ROPE, **SHORT | {"short_length": 64}).short_length == ROPE.original_length == 64
    with pytest.raises(LongRopeError) as error:
        replace(ROPE, **SHORT | {"short_length": 65})
    assert str(error.value) == (
        "rope original_length = 64: the checkpoint's short factors are for texts of up to 65 tokens. "
        "Give at least that length."
    )


@pytest.mark.parametrize("value", [4.5, "4", None, -1])
def test_the_length_of_short_factors_is_a_whole_number(value: object) -> None:
    with pytest.raises(LongRopeError, match=r"^rope short_length = .* must be a whole number, 0 or more$"):
        replace(ROPE, **SHORT | {"short_length": value})


def test_a_rope_is_shown_with_its_first_and_last_factor() -> None:
    assert repr(ROPE) == "Rope(dim=8, base=10000.0, original_length=64)"
    shown = repr(replace(ROPE, factors=(1.0, 2.0, 3.0, 4.0), attention_factor=1.25))
    assert shown == "Rope(dim=8, base=10000.0, original_length=64, factors=(1 … 4), attention_factor=1.25)"


def test_the_text_model_of_a_config_has_the_type_of_the_whole() -> None:
    plain_fields = {"model_type": "llama", "hidden_size": 64}
    assert text_fields(plain_fields) is plain_fields
    whole_model = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "hidden_size": 32}}
    assert text_fields(whole_model) == {"model_type": "gemma3", "hidden_size": 32}


def test_one_set_of_rope_fields_is_that_of_all_layers() -> None:
    one_set, by_layer = {"rope_theta": 1e4}, {"hybrid": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    assert full_attention_fields(one_set) is one_set
    assert full_attention_fields(None) == {}
    assert full_attention_fields(by_layer) == {"rope_theta": 1e6}
