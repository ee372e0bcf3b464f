"""Resonance RoPE, which goes on top of any factors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrope.errors import LongRopeError
from longrope.rope import Rope
from longrope.scaling import Scaling
from longrope.scheme_modifiers import resonance
from longrope.schemes import SCHEMES, canonical, is_scheme, scheme

ROPE = Rope(dim=64, base=1e4, original_length=256)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("length", [256, 2048, 131072])
def test_every_scheme_with_whole_wavelengths(name: str, length: int) -> None:
    plain, rounded = scheme(name, ROPE, length), scheme(f"{name}+resonance", ROPE, length)
    wavelengths = 2 * math.pi / rounded.inv_freq(ROPE)
    np.testing.assert_allclose(wavelengths, np.round(2 * math.pi / plain.inv_freq(ROPE)), rtol=1e-12)
    assert rounded.attention_factor == plain.attention_factor
    assert (rounded.scheme, rounded.length) == (f"{name}+resonance", length)


def test_features_repeat_exactly() -> None:
    """What the paper is about: at a distance of one wavelength, a rotation meets itself."""
    rounded = scheme("yarn+resonance", ROPE, 2048)
    periods = np.round(2 * math.pi / rounded.inv_freq(ROPE))
    short = periods <= ROPE.original_length
    assert short.sum() >= 10
    positions = np.arange(1, 5)[:, None] * periods[short]
    np.testing.assert_allclose(np.cos(positions * rounded.inv_freq(ROPE)[short]), 1, atol=1e-12)
    plain = scheme("yarn", ROPE, 2048).inv_freq(ROPE)
    assert np.cos(positions * plain[short]).min() < 0.9


@given(
    factors=st.lists(st.floats(0.01, 1e4), min_size=4, max_size=4),
    attention=st.floats(0.1, 3),
    start=st.integers(0, 64),
    earlier=st.lists(st.floats(0.5, 64), min_size=4, max_size=4) | st.just([]),
)
def test_any_factors(factors: list[float], attention: float, start: int, earlier: list[float]) -> None:
    rope = Rope(dim=8, base=500.0, original_length=64, factors=tuple(earlier))
    given = Scaling(factors, attention_factor=attention, start_tokens=start, scheme="mine", length=128)
    rounded = resonance(rope, given)
    before, after = (2 * math.pi / one.inv_freq(rope) for one in (given, rounded))
    assert np.abs(after - before)[before >= 2].max(initial=0) <= 0.5 + 1e-9
    np.testing.assert_allclose(after, np.round(after), rtol=1e-12)
    assert after.min() >= 2 - 1e-12  # a rotation of one token would be none
    again = resonance(rope, rounded)
    assert again.scheme == rounded.scheme == "mine+resonance"
    np.testing.assert_allclose(again.factors, rounded.factors, rtol=1e-12)
    assert (rounded.attention_factor, rounded.start_tokens, rounded.length) == (attention, start, 128)


def test_names() -> None:
    assert canonical("linear+resonance") == "pi+resonance"
    assert is_scheme("ntk+resonance")
    assert not is_scheme("resonance")
    for name in ("+resonance", "bogus+resonance", "yarn+resonance+resonance", "yarn+"):
        with pytest.raises(
            LongRopeError, match=r"is unknown; choose one of pi, .*, also with \+resonance or \+cope after it"
        ):
            scheme(name, ROPE, 512)
    with pytest.raises(LongRopeError, match="belong to another model"):
        resonance(ROPE, Scaling([1.0]))
