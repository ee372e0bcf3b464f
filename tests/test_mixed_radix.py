"""MrRoPE and its variants, compared with their definitions by radices and with the published exponents."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from longrope import schemes
from longrope.rope import Rope

LLAMA3 = Rope(dim=128, base=500_000.0, original_length=8192)
QWEN = Rope(dim=128, base=1_000_000.0, original_length=32768)
TINY = Rope(dim=64, base=10_000.0, original_length=256)
NAMES = ("mrrope_uni", "mrrope_pro", "bm", "tailspline")


def smoothest(n: int, *, fixed_start: bool) -> np.ndarray:
    """Growth of n radices that sums to 1 and changes least, 0 after the last and perhaps before the first."""
    laplacian = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    if not fixed_start:
        laplacian[0, 0] = 1
    growth = np.linalg.solve(laplacian, np.ones(n))
    return growth / growth.sum()


def growth(name: str, n: int) -> np.ndarray:
    """Power of s by which each of the n radices of the band grows, from its definition."""
    if name == "mrrope_uni":
        return np.full(n, 1 / n)
    if name == "mrrope_pro":  # 2(1 + j - d_l) / ((1 + d_h - d_l)(d_h - d_l))
        return np.array([2 * (1 + j) / ((1 + n) * n) for j in range(n)])
    return smoothest(n, fixed_start=name == "bm")


def band(rope: Rope) -> tuple[int, int]:
    """The last pair with more than 32 turns and the first with fewer than one, counted."""
    turns = rope.original_length * rope.base ** (-2 * np.arange(rope.dim // 2) / rope.dim) / (2 * math.pi)
    return int(np.flatnonzero(turns > 32)[-1]), int(np.flatnonzero(turns < 1)[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rope", [LLAMA3, QWEN, TINY])
@pytest.mark.parametrize("scale", [4, 16])
def test_factors_are_products_of_radices(name: str, rope: Rope, scale: int) -> None:
    first, last = band(rope)
    radices = np.ones(rope.dim // 2)
    radices[first + 1 : last + 1] = scale ** growth(name, last - first)
    scaling = schemes.scheme(name, rope, scale * rope.original_length)
    np.testing.assert_allclose(scaling.factors, np.cumprod(radices), rtol=1e-12)
    assert scaling.attention_factor == pytest.approx(1 + math.log(scale) / 10, rel=1e-15)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [1, 2, 17, 18, 64])
def test_exponents_as_fractions(name: str, n: int) -> None:
    """The formulas of the issue, in exact arithmetic, against sums of the growth."""
    formulas = {
        "mrrope_uni": lambda q: Fraction(q, n),
        "mrrope_pro": lambda q: Fraction(q * (q + 1), n * (n + 1)),
        "bm": lambda q: Fraction(q * (q + 1) * (3 * n + 2 - 2 * q), n * (n + 1) * (n + 2)),
        "tailspline": lambda q: Fraction(q * (3 * n**2 + 3 * n + 1 - q**2), n * (n + 1) * (2 * n + 1)),
    }
    exact = [float(formulas[name](q)) for q in range(1, n + 1)]
    np.testing.assert_allclose(np.cumsum(growth(name, n)), exact, rtol=1e-10)


def test_the_band_of_llama_3() -> None:
    assert band(LLAMA3) == (18, 35)
    for name in NAMES:
        factors = np.array(schemes.scheme(name, LLAMA3, 131_072).factors)
        assert (factors[:19] == 1).all()
        assert factors[19] > 1
        assert factors[34] < 16
        np.testing.assert_allclose(factors[35:], 16, rtol=1e-12)


def test_pro_keeps_fast_pairs_and_tailspline_does_not() -> None:
    """Inside the band, MrRoPE-Pro changes every pair least and TailSpline most."""
    first, last = band(LLAMA3)
    inside = {name: np.array(schemes.scheme(name, LLAMA3, 65_536).factors)[first + 1 : last - 1] for name in NAMES}
    assert (inside["mrrope_pro"] < inside["mrrope_uni"]).all()
    assert (inside["mrrope_uni"] < inside["tailspline"]).all()
    assert (inside["mrrope_pro"] < inside["bm"]).all()


def test_a_rope_without_fast_pairs_begins_its_band_at_the_first() -> None:
    rope = Rope(dim=16, base=1e4, original_length=64)  # 10 turns at most
    factors = schemes.scheme("mrrope_uni", rope, 512).factors
    last = int(np.flatnonzero(rope.original_length / rope.wavelengths < 1)[0])
    np.testing.assert_allclose(factors, [8 ** min(i / last, 1) for i in range(8)], rtol=1e-12)
