from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ropes import BAD_NUMBERS, ROPE, ropes

from longrope.errors import LongRopeError
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling, as_extension, check_rope

positive = st.floats(min_value=1e-300, allow_infinity=False, allow_nan=False)
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


@pytest.mark.parametrize("value", [-1, 1.5, True, "1", None, math.nan])
def test_scaling_refuses_bad_start_tokens(value: object) -> None:
    with pytest.raises(LongRopeError, match="start_tokens = "):
        Scaling([1.0], start_tokens=value)


@pytest.mark.parametrize("value", [0, -5, True, "wide", math.inf])
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
        with pytest.raises(
            LongRopeError, match=f"^factors: {count} values .* 4 pairs; these factors belong to another model$"
        ):
            use()


def test_identity() -> None:
    identity = Scaling.identity(ROPE)
    assert identity.is_identity
    assert (identity.scheme, identity.length, identity.start_tokens) == ("original", 64, 0)
    assert np.array_equal(identity.inv_freq(ROPE), ROPE.inv_freq)
    assert not replace(identity, attention_factor=1.1).is_identity
    assert not replace(identity, factors=[1.0, 1.0, 1.0, 1.0 + 1e-12]).is_identity


def test_extension_of_leaves_short_sequences_alone() -> None:
    extension = Extension.of(ROPE, Scaling([2.0] * 4, attention_factor=1.2, length=512))
    assert extension.short.is_identity
    assert (extension.length, extension.scale) == (512, 8.0)
    for make in (Extension.of, lambda rope, long: as_extension(long, rope, "mine.json")):
        with pytest.raises(LongRopeError, match=r"^length = None: .* Set the scaling's length.$"):
            make(ROPE, Scaling([2.0] * 4))
    with pytest.raises(LongRopeError, match="length = 32 is below"):
        Extension.of(ROPE, Scaling([2.0] * 4, length=32))


@given(extensions(), st.integers(-8, 8))
def test_an_extension_is_short_up_to_the_original_length_and_long_beyond(extension: Extension, more: int) -> None:
    original = extension.rope.original_length
    extension = replace(extension, short=replace(extension.short, scheme="short"))
    assert extension.at(original + more) is (extension.short if more <= 0 else extension.long)
    assert extension.scale * original == pytest.approx(extension.length, rel=1e-15)


@pytest.mark.parametrize("value", [0, -5, 128.5, True, None])
def test_an_extension_refuses_a_bad_length(value: object) -> None:
    one = Scaling.identity(ROPE)
    with pytest.raises(LongRopeError) as error:
        Extension(rope=ROPE, short=one, long=one, length=value)
    assert str(error.value) == f"length = {value!r} must be a whole number, 1 or more"


@pytest.mark.parametrize("name", ["short", "long"])
@pytest.mark.parametrize("value", [None, [1.0, 2.0, 3.0, 4.0]])
def test_an_extension_has_scalings(name: str, value: object) -> None:
    fields = {"short": Scaling.identity(ROPE), "long": Scaling.identity(ROPE), name: value}
    with pytest.raises(LongRopeError) as error:
        Extension(rope=ROPE, length=512, **fields)
    assert str(error.value) == f"{name} = {value!r}: not a Scaling. Write Scaling(factors)."


@pytest.mark.parametrize("value", [None, [], "searched"])
def test_provenance_is_an_object(value: object) -> None:
    with pytest.raises(LongRopeError, match=r"^provenance = .* must be an object. Write {}\.$"):
        Scaling([1.0], provenance=value)


def test_lengths_of_numpy_become_whole_numbers() -> None:
    one = Scaling.identity(ROPE)
    assert type(Extension(rope=ROPE, short=one, long=one, length=np.int64(128)).length) is int
    assert type(Scaling([1.0], length=np.int64(128)).length) is int
    assert type(Scaling([1.0], start_tokens=np.int64(4)).start_tokens) is int
    assert type(Scaling([1.0], attention_factor=2).attention_factor) is float


@given(scalings(), st.floats(0.5, 2))
def test_only_factors_and_attention_of_1_are_the_identity(scaling: Scaling, other: float) -> None:
    same = replace(scaling, factors=[1.0] * len(scaling.factors), attention_factor=1.0)
    assert same.is_identity
    assert replace(same, factors=[*same.factors, other]).is_identity == (other == 1)
    assert replace(same, attention_factor=other).is_identity == (other == 1)
    assert scaling.is_identity == (scaling == same)


@given(ropes, st.data())
def test_inv_freq_times_the_factors_is_the_ropes(rope: Rope, data: st.DataObject) -> None:
    factors = data.draw(st.lists(st.floats(0.5, 100), min_size=rope.dim // 2, max_size=rope.dim // 2))
    inv_freq = Scaling(factors).inv_freq(rope)
    assert inv_freq.dtype == np.float64
    np.testing.assert_allclose(inv_freq * factors, rope.inv_freq, rtol=1e-14)


def test_a_file_holds_one_factor_a_line_and_no_number_that_json_has_not() -> None:
    lines = SCALING_JSON.splitlines()
    assert lines[lines.index(' "factors": [') + 1 :][:4] == ["  1.0,", "  2.0,", "  3.0,", "  4.0"]
    assert SCALING_JSON.endswith("}\n")
    with pytest.raises(ValueError, match="not JSON compliant"):
        Scaling([1.0], provenance={"loss": math.nan}).to_json()


@pytest.mark.parametrize(
    ("field", "message"), [("kind", 'its "kind" field must say so'), ("version", "version = None,")]
)
@pytest.mark.parametrize("noun", [Scaling, Extension])
def test_from_json_needs_kind_and_version(noun: type, field: str, message: str) -> None:
    fields = json.loads(SCALING_JSON if noun is Scaling else EXTENSION_JSON)
    del fields[field]
    with pytest.raises(LongRopeError, match=message):
        noun.from_json(json.dumps(fields))


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


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"scaling"', {"kind": "scaling"}, None])
@pytest.mark.parametrize("noun", [Scaling, Extension])
def test_from_json_refuses_other_texts(noun: type, text: object) -> None:
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
    later, product = before.rope_after(ROPE), relative.times(before.factors)
    np.testing.assert_allclose(product.factors, np.multiply(first, second), rtol=1e-15)
    np.testing.assert_allclose(product.inv_freq(ROPE), relative.inv_freq(later), rtol=1e-14)
    assert replace(product, factors=second) == relative


@given(factors_of_8, factors_of_8)
def test_after_two_stages(first: list[float], second: list[float]) -> None:
    """The same whether the second scaling is said of the rope after the first, or of the plain one."""
    before, relative = Scaling(first, length=128), Scaling(second, length=512)
    later = relative.rope_after(before.rope_after(ROPE))
    np.testing.assert_allclose(later.inv_freq, relative.inv_freq(before.rope_after(ROPE)), rtol=1e-14)
    np.testing.assert_allclose(later.inv_freq, relative.times(first).rope_after(ROPE).inv_freq, rtol=1e-14)
    assert later.original_length == 512


def test_after_refuses_what_it_cannot_know() -> None:
    with pytest.raises(LongRopeError, match=r"^length = None: the rope after fine-tuning needs the trained length"):
        Scaling([2.0] * 4).rope_after(ROPE)
    with pytest.raises(LongRopeError, match=r"factors: 3 values .* dim 8, which has 4 pairs"):
        Scaling([2.0] * 3, length=128).rope_after(ROPE)
    with pytest.raises(ValueError, match="argument 2 is longer"):
        Scaling([2.0] * 4).times([2.0] * 5)


def test_an_extension_of_a_scaled_checkpoint() -> None:
    """Factors multiply those that the weights are used to, and the file says which these are."""
    used_to = Scaling([1.0, 1.5, 2.0, 2.0], length=128)
    later = replace(used_to.rope_after(ROPE), attention_factor=1.25)
    extension = Extension.of(later, Scaling([1.0, 2.0, 3.0, 4.0], length=512, attention_factor=2.0))
    assert Extension.from_json(extension.to_json()) == extension
    total = extension.total
    assert (total.rope, total.length) == (replace(ROPE, original_length=128), 512)
    assert (total.short.factors, total.short.attention_factor) == (used_to.factors, 1.25)
    assert (total.long.factors, total.long.attention_factor) == ((1.0, 3.0, 6.0, 8.0), 2.5)
    assert total.total == total
    fields = json.loads(Extension.of(ROPE, Scaling([1.0, 2.0, 3.0, 4.0], length=512)).to_json())
    assert fields["rope"] == {"dim": 8, "base": 1e4, "original_length": 64}


def test_an_extension_of_a_checkpoint_with_two_sets_keeps_its_short_one() -> None:
    rope = Rope(8, 1e4, 256, factors=(1, 2, 3, 4), attention_factor=1.5, short_factors=(1, 1, 2, 2), short_length=64)
    extension = Extension.of(rope, Scaling([2.0] * 4, length=1024))
    assert [extension.at(length).factors for length in (64, 65, 256, 257)] == [
        (1, 1 / 2, 2 / 3, 1 / 2),
        (1, 1, 1, 1),
        (1, 1, 1, 1),
        (2, 2, 2, 2),
    ]
    total = extension.total
    assert (total.rope, total.length) == (ROPE, 1024)
    np.testing.assert_allclose(total.short.factors, rope.short_factors)
    assert total.long.factors == (2, 4, 6, 8)
    assert total.short.attention_factor == total.long.attention_factor == 1.5
    assert Extension.from_json(extension.to_json()) == extension


def test_a_scaling_becomes_the_long_set_of_an_extension() -> None:
    scaling = Scaling([1.0, 2.0, 3.0, 4.0], attention_factor=1.2, length=512)
    extension = as_extension(scaling, ROPE)
    assert (extension.short, extension.long, extension.length) == (Scaling.identity(ROPE), scaling, 512)
    assert as_extension(extension, ROPE) is extension


@pytest.mark.parametrize("scheme", [3, None, b"yarn", chr(0xD800), chr(0xDFFF), "a" + chr(0xDC00)])
def test_a_scheme_is_text_that_files_can_hold(scheme: object) -> None:
    with pytest.raises(LongRopeError) as error:
        Scaling([1.0], scheme=scheme)
    assert str(error.value) == f"scheme = {scheme!r} must be text, without half characters"
    assert Scaling([1.0], scheme="\ud7ff\ue000😀").scheme == "\ud7ff\ue000😀"


def test_two_sets_differ_in_factors_or_attention() -> None:
    one = Extension.of(ROPE, Scaling.identity(ROPE))
    assert not one.has_two_sets
    assert replace(one, long=Scaling([1.0, 1.0, 1.0, 2.0])).has_two_sets
    assert replace(one, long=replace(one.long, attention_factor=1.1)).has_two_sets
    assert not replace(one, long=replace(one.long, scheme="mine")).has_two_sets


def test_the_short_set_of_a_checkpoint_says_what_it_is() -> None:
    rope = Rope(8, 1e4, 256, factors=(1, 2, 3, 4), short_factors=(1, 1, 2, 2), short_length=64)
    extension = Extension.of(rope, Scaling([2.0] * 4, length=1024))
    assert extension.at(64).scheme == "original"
    assert extension.total.short.length == 64


CARRIED = replace(ROPE, original_length=256, factors=(2.0,) * 4)


def refused(scaling: Scaling | Extension, rope: Rope, *source: str) -> str:
    with pytest.raises(LongRopeError) as error:
        check_rope(scaling, rope, *source)
    with pytest.raises(LongRopeError) as same:
        as_extension(scaling, rope, *source)
    assert str(same.value) == str(error.value)
    return str(error.value)


def test_factors_of_another_rope_are_refused_by_name() -> None:
    pairs = "factors: 3 values for a rope of dim 8, which has 4 pairs; these factors belong to another model"
    assert refused(Scaling([1.0] * 3, length=128), ROPE) == pairs
    assert refused(Scaling([1.0] * 3, length=128), ROPE, "mine.json") == f"mine.json: {pairs}"
    extension = Extension.of(ROPE, Scaling([2.0] * 4, length=512))
    other = replace(ROPE, base=5e5)
    assert refused(extension, other) == (
        f"extension.rope = {ROPE}: the model has {other}. Use factors made for this model."
    )
    assert refused(extension, CARRIED, "mine.json") == (
        f"mine.json: extension.rope = {ROPE}: the model has {CARRIED}, because its checkpoint carries a rope scaling. "
        "Use factors made for this model, or load the checkpoint that they were made for."
    )


def test_factors_for_a_length_that_a_checkpoint_has_already_are_refused() -> None:
    for length in (128, 256):
        assert refused(Scaling([2.0] * 4, length=length), CARRIED, "mine.json") == (
            f"mine.json: length = {length}: the model's checkpoint carries a rope scaling for 256 tokens already, "
            "which factors multiply. Use factors for a longer sequence."
        )
    for allowed in (Scaling([2.0] * 4, length=257), Scaling([2.0] * 4), Scaling.identity(CARRIED)):
        check_rope(allowed, CARRIED)
    check_rope(Scaling([2.0] * 4, length=32), ROPE)  # a rope without factors of its own


@pytest.mark.parametrize("number", ["NaN", "1e999"])
def test_a_number_that_is_not_finite_in_the_record_of_a_file_is_refused(number: str) -> None:
    text = json.dumps(json.loads(SCALING_JSON) | {"provenance": {"loss": 0.5}}).replace("0.5", number)
    with pytest.raises(LongRopeError) as error:
        Scaling.from_json(text)
    assert str(error.value) == "provenance: a number is not finite; write null"


def test_files_are_indented_by_one_space() -> None:
    assert [line.rstrip(",") for line in SCALING_JSON.splitlines()[:3]] == ["{", ' "version": 1', ' "kind": "scaling"']
