from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from longrope import schemes
from longrope.errors import LongRopeError
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.scheme_modifiers import resonance
from longrope.schemes import SCHEMES, attention_factor, canonical, scheme

# head_dim, partial rotary, rope_theta, L0, s
SETUPS = [
    (128, 1.0, 1e4, 4096, 8),
    (128, 1.0, 5e5, 8192, 32),
    (64, 1.0, 1e5, 8192, 2),
    (96, 1.0, 1e4, 2048, 512),
    (80, 0.4, 1e4, 2048, 4),
    (64, 0.25, 1e6, 512, 16),
    (16, 1.0, 1e4, 64, 8),
    (64, 1.0, 20.0, 3000, 8),
    (16, 1.0, 1e4, 5, 8),  # no pair turns once within L0
]
ROPE = Rope(dim=64, base=10000.0, original_length=256)

ropes = st.builds(
    Rope,
    dim=st.integers(2, 64).map(lambda half: 2 * half),
    base=st.floats(100, 1e8),
    original_length=st.integers(16, 2**17),
)
scales = st.floats(1, 1024)


def theirs(kind: str, setup: tuple, seq_len: int | None = None, **fields: float) -> tuple[np.ndarray, float]:
    """Inverse frequencies and attention factor as transformers computes them."""
    head_dim, partial, base, original, scale = setup
    parameters = {"rope_type": kind, "rope_theta": base, "factor": float(scale), "partial_rotary_factor": partial}
    reach = original if kind == "dynamic" else original * scale
    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=reach,
        rope_parameters={**parameters, **fields},
    )
    inv_freq, attention = ROPE_INIT_FUNCTIONS[kind](config, device="cpu", seq_len=seq_len)
    return inv_freq.double().numpy(), attention


def ours(setup: tuple) -> tuple[Rope, int]:
    head_dim, partial, base, original, scale = setup
    return Rope(dim=int(head_dim * partial), base=base, original_length=original), original * scale


def assert_same(scaling: Scaling, rope: Rope, reference: tuple[np.ndarray, float], rtol: float = 1e-6) -> None:
    inv_freq, attention = reference
    np.testing.assert_allclose(scaling.inv_freq(rope), inv_freq, rtol=rtol)
    assert scaling.attention_factor == pytest.approx(attention, rel=1e-12)


@pytest.mark.parametrize("setup", SETUPS)
def test_pi_is_transformers_linear(setup: tuple) -> None:
    rope, length = ours(setup)
    assert_same(schemes.linear(rope, length), rope, theirs("linear", setup))


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("fields", [{}, {"beta_fast": 16.0, "beta_slow": 2.0}])
def test_yarn_is_transformers_yarn(setup: tuple, fields: dict) -> None:
    rope, length = ours(setup)
    reference = theirs("yarn", setup, original_max_position_embeddings=setup[3], **fields)
    assert_same(schemes.yarn(rope, length, **fields), rope, reference)


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("edges", [(1.0, 4.0), (2.0, 16.0)])
def test_llama3_is_transformers_llama3(setup: tuple, edges: tuple[float, float]) -> None:
    rope, length = ours(setup)
    fields = dict(zip(("low_freq_factor", "high_freq_factor"), edges, strict=True))
    reference = theirs("llama3", setup, original_max_position_embeddings=setup[3], **fields)
    # transformers' ramp is float32 and near 0 at its end, where an error in it counts s times
    assert_same(schemes.llama3(rope, length, **fields), rope, reference, rtol=max(1e-6, setup[4] * 1e-8))


@pytest.mark.parametrize("kind", ["yarn", "llama3"])
@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("factor", [1.0, 3.0, 40.0])
def test_a_factor_may_differ_from_the_ratio_of_lengths(kind: str, setup: tuple, factor: float) -> None:
    """As configs have it: transformers computes both kinds from the factor alone."""
    rope, length = ours(setup)
    edges = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}  # the defaults of ours
    reference = theirs(kind, setup, original_max_position_embeddings=setup[3], **{**edges, "factor": factor})
    scaling = getattr(schemes, kind)(rope, length, factor=factor)
    assert_same(scaling, rope, reference, rtol=max(1e-6, factor * 1e-7))
    assert (scaling.scheme, scaling.length) == (kind, length)


@pytest.mark.parametrize("setup", SETUPS)
def test_yarn_without_whole_pairs_is_transformers_untruncated(setup: tuple) -> None:
    rope, length = ours(setup)
    reference = theirs("yarn", setup, original_max_position_embeddings=setup[3], truncate=False)
    assert_same(schemes.yarn(rope, length, truncate=False), rope, reference)


@given(ropes, scales, st.floats(1, 8), st.floats(0.1, 1))
def test_llama3_leaves_fast_pairs_alone_and_interpolates_slow_ones(
    rope: Rope, scale: float, high: float, low: float
) -> None:
    length = math.ceil(rope.original_length * scale)
    scaling = schemes.llama3(rope, length, low_freq_factor=low, high_freq_factor=high + 0.5)
    turns, lam = rope.original_length / rope.wavelengths, np.array(scaling.factors)
    assert (lam[turns >= high + 0.5] == 1).all()
    np.testing.assert_allclose(lam[turns <= low], length / rope.original_length, rtol=1e-12)


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("factor", [1.0, 2.0, 3.5])
def test_dynamic_ntk_is_transformers_dynamic(setup: tuple, factor: float) -> None:
    rope, length = ours(setup)
    reference = theirs("dynamic", setup, seq_len=length, factor=factor)
    assert_same(schemes.dynamic_ntk(rope, length, factor=factor), rope, reference)


@pytest.mark.parametrize("setup", SETUPS)
def test_dynamic_ntk_takes_s_for_its_factor(setup: tuple) -> None:
    rope, length = ours(setup)
    assert_same(scheme("dynamic_ntk", rope, length), rope, theirs("dynamic", setup, seq_len=length))


@pytest.mark.parametrize("setup", SETUPS)
def test_ntk_is_a_larger_base(setup: tuple) -> None:
    rope, length = ours(setup)
    s = length / rope.original_length
    larger = rope.base * s ** (rope.dim / (rope.dim - 2))
    expected = [larger ** (-2 * i / rope.dim) for i in range(rope.dim // 2)]
    scaling = scheme("ntk", rope, length)
    np.testing.assert_allclose(scaling.inv_freq(rope), expected, rtol=1e-12)
    assert scaling.factors[-1] == pytest.approx(s, rel=1e-12)


@pytest.mark.parametrize("setup", SETUPS)
def test_heuristic_formula(setup: tuple) -> None:
    rope, length = ours(setup)
    s = length / rope.original_length
    expected = []
    for i in range(rope.dim // 2):
        ratio = 2 * math.pi * rope.base ** (2 * i / rope.dim) / rope.original_length
        expected.append(1 + (s - 1) / (1 + math.exp(-4 * (math.log(ratio) / math.log(s) - 0.5))))
    scaling = scheme("heuristic", rope, length)
    np.testing.assert_allclose(scaling.factors, expected, rtol=1e-10)
    assert scaling.attention_factor == pytest.approx(math.sqrt(1 + math.log(s) / math.log(rope.original_length)))


@pytest.mark.parametrize("name", SCHEMES)
@given(rope=ropes)
def test_no_scheme_changes_a_model_at_its_own_length(name: str, rope: Rope) -> None:
    scaling = scheme(name, rope, rope.original_length)
    assert set(scaling.factors) == {1.0}
    assert scaling.attention_factor == 1.0
    assert scaling.is_identity


@pytest.mark.parametrize("name", SCHEMES)
@given(rope=ropes, scale=scales)
@example(rope=Rope(dim=128, base=1e4, original_length=4096), scale=4097 / 4096)
@example(rope=Rope(dim=2, base=1e4, original_length=16), scale=8)
@example(rope=Rope(dim=4, base=1e4, original_length=5), scale=8)
def test_factors_lie_between_1_and_s_and_rise(name: str, rope: Rope, scale: float) -> None:
    length = math.ceil(rope.original_length * scale)
    scaling = scheme(name, rope, length)
    s = length / rope.original_length
    ceiling = {"dynamic_ntk": s * s - (s - 1), "ramp": 1.15 * s}.get(
        name, s
    )  # factor·L/L0 - (factor - 1) at factor = s
    lam = np.array(scaling.factors)
    assert lam.shape == (rope.dim // 2,)
    assert lam.min() >= 1 - 1e-12
    assert lam.max() <= ceiling * (1 + 1e-9)
    assert (np.diff(lam) >= -1e-12 * s).all()
    assert scaling.attention_factor >= 1
    assert scaling.start_tokens == 0
    assert (scaling.scheme, scaling.length) == (name, length)


@pytest.mark.parametrize("name", SCHEMES)
def test_a_length_below_the_original_is_refused(name: str) -> None:
    with pytest.raises(LongRopeError, match=r"length = 255 .* 256"):
        scheme(name, ROPE, 255)


@pytest.mark.parametrize("length", [512.5, None])
def test_a_length_that_is_not_a_whole_number_is_refused(length: object) -> None:
    with pytest.raises(LongRopeError, match=f"^length = {length!r} must be a whole number, 1 or more$"):
        scheme("yarn", ROPE, length)


def test_a_length_may_be_text_or_a_whole_float_and_a_rope_a_config() -> None:
    expected = scheme("yarn", ROPE, 32768)
    for length in ("32k", 32768.0, np.int64(32768)):
        assert scheme("yarn", ROPE, length) == expected
    assert attention_factor("yarn", ROPE, "32k") == expected.attention_factor
    assert replace(expected, length="32k") == expected
    with pytest.raises(LongRopeError, match=r"^length = 'wide' is not a number of tokens; write 16384, 16k or 2m"):
        scheme("yarn", ROPE, "wide")
    config = LlamaConfig(hidden_size=64, num_attention_heads=1, max_position_embeddings=256)
    assert scheme("yarn", config, "32k") == expected
    assert Extension.of(config, expected) == Extension.of(ROPE, expected)


@pytest.mark.parametrize("order", [("yarn", 512, ROPE), (ROPE, "yarn", 512), ("yarn", "tiny", 512)])
def test_arguments_in_another_order_are_refused(order: tuple[Any, Any, Any]) -> None:
    with pytest.raises(LongRopeError, match=r"^(model|scheme) = "):
        scheme(*order)


def test_linear_is_another_name_for_pi() -> None:
    assert scheme("linear", ROPE, 1024) == scheme("pi", ROPE, 1024)


@pytest.mark.parametrize("name", ["su", "NTK", "", "nonlinear"])
def test_an_unknown_scheme_lists_the_known_ones(name: str) -> None:
    with pytest.raises(LongRopeError) as error:
        scheme(name, ROPE, 1024)
    assert str(error.value).startswith(f"scheme = {name!r} is unknown")
    assert all(text in str(error.value) for text in SCHEMES)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("su", math.sqrt(1 + math.log(8) / math.log(256))),
        ("yarn", 1 + 0.1 * math.log(8)),
        ("none", 1.0),
        (1.25, 1.25),
        (2, 2.0),
        ("1.25", 1.25),
    ],
)
def test_attention_policies(policy: str | float, expected: float) -> None:
    assert attention_factor(policy, ROPE, 2048) == pytest.approx(expected, rel=1e-15)


@given(ropes, scales, st.floats(1e-6, 1e6))
def test_attention_is_what_its_policy_says(rope: Rope, scale: float, number: float) -> None:
    """A number at any length; otherwise a factor that grows with the length."""
    length = math.ceil(rope.original_length * scale)
    assert attention_factor(number, rope, length) == attention_factor(repr(number), rope, length) == number
    assert attention_factor("none", rope, length) == 1
    log_s = math.log(length / rope.original_length)
    assert attention_factor("yarn", rope, length) == pytest.approx(1 + log_s / 10, rel=1e-14)
    su = attention_factor("su", rope, length)
    assert (su**2 - 1) * math.log(rope.original_length) == pytest.approx(log_s, abs=1e-12)


@pytest.mark.parametrize("name", ["pi", "linear", *SCHEMES])
def test_a_scheme_carries_its_canonical_name(name: str) -> None:
    assert canonical(name) == scheme(name, ROPE, 1024).scheme
    assert canonical(canonical(name)) == canonical(name)


def test_a_resonant_pair_turns_at_most_half_a_turn_a_token() -> None:
    scaling = resonance(ROPE, Scaling([0.01] * 32))
    assert (2 * math.pi / scaling.inv_freq(ROPE)).min() == pytest.approx(2)


@pytest.mark.parametrize("policy", ["su", "yarn", "none"])
def test_attention_is_1_at_the_original_length(policy: str) -> None:
    assert attention_factor(policy, ROPE, 256) == 1.0


@pytest.mark.parametrize("setup", SETUPS)
def test_su_is_the_attention_factor_of_transformers_longrope(setup: tuple) -> None:
    rope, length = ours(setup)
    ones = [1.0] * (rope.dim // 2)
    fields = {"short_factor": ones, "long_factor": ones, "original_max_position_embeddings": rope.original_length}
    _, attention = theirs("longrope", setup, **fields)
    assert attention_factor("su", rope, length) == pytest.approx(attention, rel=1e-12)


@pytest.mark.parametrize("policy", ["sue", "", "nan", "inf", "0", -1, 0.0, math.nan, None])
def test_a_bad_attention_policy_is_refused(policy: object) -> None:
    with pytest.raises(LongRopeError, match=r"attention = .*su, yarn, none or a number"):
        attention_factor(policy, ROPE, 2048)


def after(name: str, rope: Rope, length: int) -> Rope:
    return scheme(name, rope, length).rope_after(rope)


def test_pi_after_pi_multiplies() -> None:
    later = after("pi", ROPE, 512)
    second = scheme("pi", later, 2048)
    assert set(second.factors) == {4.0}
    assert second.times(later.factors) == scheme("pi", ROPE, 2048)
    assert set(second.times(later.factors).factors) == {8.0}


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("setup", SETUPS)
def test_after_pi_a_scheme_sees_the_same_model(name: str, setup: tuple) -> None:
    """Length and wavelengths have grown alike: every pair turns as often within the length as it did before."""
    rope, length = ours(setup)
    later = after("pi", rope, 4 * rope.original_length)
    scaling, plain = scheme(name, later, 4 * length), scheme(name, rope, length)
    np.testing.assert_allclose(scaling.factors, plain.factors, rtol=1e-9)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("setup", SETUPS)
def test_factors_of_1_before_change_nothing(name: str, setup: tuple) -> None:
    rope, length = ours(setup)
    same = Scaling.identity(rope).rope_after(rope)
    scaling, plain = scheme(name, same, length), scheme(name, rope, length)
    np.testing.assert_allclose(scaling.factors, plain.factors, rtol=1e-9)
    assert scaling.attention_factor == plain.attention_factor


@pytest.mark.parametrize("first", SCHEMES)
@pytest.mark.parametrize("second", SCHEMES)
@given(rope=ropes, scales=st.tuples(scales, scales))
def test_schemes_after_a_stage(first: str, second: str, rope: Rope, scales: tuple[float, float]) -> None:
    """They lie between 1 and the scale of their own stage, and the whole never falls below the first."""
    length = math.ceil(rope.original_length * scales[0])
    later = after(first, rope, length)
    scaling = scheme(second, later, math.ceil(length * scales[1]))
    s = scaling.length / length
    ceiling = {"dynamic_ntk": s * s - (s - 1), "ramp": 1.15 * s}.get(second, s)
    lam = np.array(scaling.factors)
    assert lam.shape == (rope.dim // 2,)
    assert np.isfinite(lam).all()
    assert lam.min() >= 1 - 1e-12
    assert lam.max() <= ceiling * (1 + 1e-9)
    assert (np.array(scaling.times(later.factors).factors) >= np.array(later.factors) * (1 - 1e-12)).all()
    assert 1 <= scaling.attention_factor < 3
    again = scheme(second, later, length)
    assert set(again.factors) == {1.0}
    assert again.attention_factor == 1.0


@pytest.mark.parametrize("first", SCHEMES)
def test_yarn_after_a_stage_looks_at_the_wavelengths_of_then(first: str) -> None:
    """Pairs that turn more often than `beta_fast` within the length of then are left alone, slow ones are not."""
    later = after(first, ROPE, 1024)
    lam, turns = np.array(scheme("yarn", later, 8192).factors), 1024 / later.wavelengths
    assert (lam[turns >= 32 * 1.5] == 1).all()
    np.testing.assert_allclose(lam[turns <= 1 / 1.5], 8)
    assert ((lam > 1) & (lam < 8)).any()
