from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from longrope.errors import LongRopeError
from longrope.units import parse_length, parse_lengths, parse_percent, short_length

UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}


@given(st.integers(2, 10**12 - 1))
def test_a_written_length_parses_to_itself(tokens: int) -> None:
    assert parse_length(short_length(tokens)) == tokens
    assert len(short_length(tokens)) <= len(str(tokens))


@example(524288, 35, "g", False)
@given(st.integers(0, 10**7), st.integers(0, 10**6 - 1), st.sampled_from(sorted(UNITS)), st.booleans())
def test_a_fraction_is_exact_or_refused(whole: int, part: int, unit: str, upper: bool) -> None:
    text = f" {whole}.{part:06}{unit} "
    exact = Fraction(f"{whole}.{part:06}") * UNITS[unit]
    if exact.denominator == 1 and exact >= 2:
        assert parse_length(text.upper() if upper else text) == exact
    else:
        with pytest.raises(LongRopeError, match=r"length = .* is not a number of tokens; write"):
            parse_length(text)


@given(st.text(max_size=9).filter(lambda text: not any(character.isdecimal() for character in text)))
def test_no_other_text_is_a_length(text: str) -> None:
    with pytest.raises(LongRopeError, match="depth = "):
        parse_length(text, "depth")


@given(st.lists(st.integers(2, 10**9), min_size=1, max_size=6))
def test_several_are_sorted_and_distinct(tokens: list[int]) -> None:
    assert parse_lengths(",".join(map(short_length, tokens))) == sorted(set(tokens))


@given(st.integers(0, 1000))
def test_a_percent_without_its_sign_is_not_a_share(percent: int) -> None:
    assert parse_percent(f"{percent}%", "share") == percent / 100
    if percent:
        with pytest.raises(LongRopeError, match=f"share = '{percent}': a share of 1 is 100%. Write {percent}%"):
            parse_percent(str(percent), "share")
