"""Factors as a YaRN: parameters found again, the nearest YaRN against an exhaustive search, and refusals."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_schemes import SETUPS, ours, theirs

from longrope.errors import LongRopeError
from longrope.rope import Rope
from longrope.scaling import Scaling
from longrope.schemes import SCHEMES, scheme, yarn
from longrope.yarn_fit import betas, distances, fit_yarn, nearest_yarn, turns, yarn_of

TINY = Rope(dim=64, base=1e4, original_length=256)
LLAMA3 = Rope(dim=128, base=5e5, original_length=8192)
bands = st.tuples(st.integers(0, 30), st.integers(0, 62)).map(lambda ends: (ends[0], max(ends[1], ends[0] + 1)))


@pytest.mark.parametrize("setup", SETUPS)
def test_plain_yarn_has_its_own_parameters(setup: tuple) -> None:
    rope, length = ours(setup)
    parameters = yarn_of(rope, scheme("yarn", rope, length))
    assert parameters is not None
    assert parameters["factor"] == pytest.approx(setup[4], rel=1e-9)
    np.testing.assert_allclose(yarn(rope, length, **parameters).factors, scheme("yarn", rope, length).factors)
    if rope.original_length > 5:
        assert (parameters["beta_fast"], parameters["beta_slow"]) == (32, 1)


@given(bands, st.floats(1, 2))
def test_every_band_of_whole_pairs_is_found_again(ends: tuple[int, int], stretch: float) -> None:
    parameters = {"factor": 8 * stretch, **betas(TINY, *ends)}
    scaling = yarn(TINY, 2048, **parameters)
    found = yarn_of(TINY, scaling)
    assert found is not None
    np.testing.assert_allclose(yarn(TINY, 2048, **found).factors, scaling.factors, rtol=1e-7)
    assert found["factor"] >= 8 * (1 - 1e-7)


@given(bands)
def test_betas_survive_transformers(ends: tuple[int, int]) -> None:
    """Transformers computes the band from the rounded turns, in its own way."""
    fields = {"factor": 9.0, **betas(TINY, *ends)}
    inv_freq, _ = theirs("yarn", (64, 1.0, 1e4, 256, 8), original_max_position_embeddings=256, **fields)
    np.testing.assert_allclose(yarn(TINY, 2048, **fields).inv_freq(TINY), inv_freq, rtol=1e-6)
    assert fields["beta_fast"] > fields["beta_slow"]


@given(st.floats(0, 31))
def test_turns_is_the_inverse_of_pair_of(pair: float) -> None:
    assert TINY.pair_of(turns(TINY, pair)) == pytest.approx(pair, abs=1e-9)


@pytest.mark.parametrize("name", sorted(set(SCHEMES) - {"yarn"}))
def test_other_schemes_are_not_a_yarn(name: str) -> None:
    assert yarn_of(LLAMA3, scheme(name, LLAMA3, 65_536)) is None


def test_what_engines_would_read_otherwise_is_not_a_yarn() -> None:
    scaling = scheme("yarn", TINY, 2048)
    assert yarn_of(TINY, replace(scaling, start_tokens=4)) is None
    assert yarn_of(TINY, replace(scaling, length=4096)) is None  # vLLM would stop at 2,048 tokens
    assert yarn_of(TINY, replace(scaling, length=None)) is None
    assert yarn_of(TINY, yarn(TINY, 2048, truncate=False)) is None
    assert yarn_of(TINY, Scaling.identity(TINY)) is None
    later = scheme("pi", TINY, 512).rope_after(TINY)
    assert yarn_of(later, scheme("yarn", later, 2048)) is None
    bent = [1.001 * factor if i == 7 else factor for i, factor in enumerate(scaling.factors)]
    assert yarn_of(TINY, replace(scaling, factors=bent)) is None


@pytest.mark.parametrize("name", ["ramp", "ntk", "tailspline", "heuristic"])
def test_the_nearest_yarn_is_the_nearest_of_all(name: str) -> None:
    """Against every band, each with 5,001 factors."""
    rope = Rope(dim=16, base=1e4, original_length=256)
    log_factors = np.log(scheme(name, rope, 2048).factors)
    weights = np.linspace(1, 0.2, 8)

    def distance(first: int, last: int, top: np.ndarray) -> np.ndarray:
        gamma = 1 - np.clip((np.arange(8) - first) / (last - first), 0, 1)
        return (weights * (log_factors + np.log((1 - gamma) * np.exp(-top) + gamma)) ** 2).sum(-1)

    tops = np.linspace(0, 5, 5001)[:, None]
    best = min(distance(first, last, tops).min() for first in range(7) for last in range(first + 1, 16))
    first, last, factor = nearest_yarn(rope, log_factors, weights=weights)
    assert best - 1e-5 <= distance(first, last, np.array([math.log(factor)])) <= best + 1e-12


@pytest.mark.parametrize("dim", [4, 8])
def test_every_yarn_is_nearest_to_itself(dim: int) -> None:
    """With equal weights, also beyond the last pair, and below a factor of 2."""
    rope = Rope(dim=dim, base=1e4, original_length=256)
    for first in range(dim // 2 - 1):
        for last in range(first + 1, dim):
            for factor in (1.5, 3.0):
                log_factors = np.log(yarn(rope, 2048, factor=factor, **betas(rope, first, last)).factors)
                band = nearest_yarn(rope, log_factors)
                nearest = yarn(rope, 2048, factor=band[2], **betas(rope, *band[:2]))
                np.testing.assert_allclose(np.log(nearest.factors), log_factors, atol=1e-8)


@pytest.mark.parametrize(("bounds", "nearest"), [({"most": 4.0}, 4.0), ({"least": 10.0}, 10.0), ({}, 8.0)])
def test_the_nearest_factor_has_bounds(bounds: dict[str, float], nearest: float) -> None:
    log_factors = np.log(scheme("yarn", TINY, 2048).factors)
    assert nearest_yarn(TINY, log_factors, **bounds)[2] == pytest.approx(nearest, rel=1e-9)


@pytest.mark.parametrize("original_length", range(200, 440, 40))
def test_betas_are_the_usual_ones_if_they_give_the_band(original_length: int) -> None:
    """32 turns may lie in the last third of a pair, beyond the other end of a narrow band."""
    rope = Rope(dim=16, base=1e4, original_length=original_length)
    for first in range(7):
        for last in range(first + 1, 15):
            fast, slow = betas(rope, first, last).values()
            assert rope.band(fast, slow) == (first, last)
            assert fast > slow
            assert (fast == 32) == (first == rope.band()[0] and slow < 32)
            assert (slow == 1) == (last == rope.band()[1] and fast > 1)


def test_a_yarn_is_its_own_nearest() -> None:
    scaling = replace(scheme("yarn", LLAMA3, 65_536), attention_factor=1.1)
    fitted, parameters = fit_yarn(LLAMA3, scaling)
    assert parameters == {"factor": pytest.approx(8, rel=1e-9), "beta_fast": 32, "beta_slow": 1}
    assert max(distances(LLAMA3, scaling, fitted).values()) < 1e-6
    assert (fitted.attention_factor, fitted.length, fitted.scheme) == (1.1, 65_536, "yarn")


@pytest.mark.parametrize("name", ["ramp", "ntk", "heuristic"])
def test_pairs_count_by_their_turns_within_the_length(name: str) -> None:
    """The distance of a pair is weighed by the square of the part of a turn that it makes, at most 1."""
    scaling = scheme(name, TINY, 2048)
    lam = np.asarray(scaling.factors)
    wavelengths = 2 * math.pi * lam * 1e4 ** (np.arange(32) / 32)
    weights = np.where(wavelengths < 2048, 1.0, 2048 / wavelengths) ** 2
    first, last, factor = nearest_yarn(TINY, np.log(lam), weights=weights, least=8.0)
    _, parameters = fit_yarn(TINY, scaling)
    assert parameters == {"factor": pytest.approx(factor, rel=1e-9), **betas(TINY, first, last)}


@pytest.mark.parametrize("name", SCHEMES)
def test_a_fit_can_be_exported_as_a_yarn(name: str) -> None:
    fitted, parameters = fit_yarn(LLAMA3, scheme(name, LLAMA3, 65_536))
    assert yarn_of(LLAMA3, fitted) is not None
    assert parameters["factor"] >= 8 * (1 - 1e-12)


def test_distances() -> None:
    rope = Rope(dim=4, base=100.0, original_length=64)
    first, second = Scaling([1.0, 2.0], length=128), Scaling([1.0, 4.0], length=128)
    turned = 128 * (0.1 / 2 - 0.1 / 4) / (2 * math.pi)
    assert distances(rope, first, second) == {
        "largest_log": pytest.approx(math.log(2)),
        "rms_log": pytest.approx(math.log(2) / math.sqrt(2)),
        "largest_turns": pytest.approx(turned),
        "rms_turns": pytest.approx(turned / math.sqrt(2)),
    }


@pytest.mark.parametrize(
    ("rope", "scaling", "message"),
    [
        (
            scheme("pi", TINY, 512).rope_after(TINY),
            Scaling([2.0] * 32, length=2048),
            "^rope.factors: the checkpoint .* A YaRN cannot express products. Fit the factors of a plain",
        ),
        (TINY, Scaling([2.0] * 32, length=2048, start_tokens=4), "start_tokens = 4: a YaRN has none"),
        (
            TINY,
            Scaling([2.0] * 32),
            "^length = None: a YaRN is for a target length in tokens. Set the scaling's length.$",
        ),
        (TINY, Scaling([2.0], length=2048), "belong to another model"),
        (TINY, Scaling([2.0] * 32, length=128), "below the model's original length"),
    ],
)
def test_a_fit_is_refused(rope: Rope, scaling: Scaling, message: str) -> None:
    with pytest.raises(LongRopeError, match=message):
        fit_yarn(rope, scaling)
