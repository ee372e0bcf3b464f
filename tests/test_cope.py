"""CoPE, which goes on top of any factors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from longrope.errors import LongRopeError
from longrope.models.rotary_embedding import LongRoPE
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.scheme_modifiers import STILL, cope
from longrope.schemes import SCHEMES, canonical, is_scheme, scheme

LLAMA3 = Rope(dim=128, base=500_000.0, original_length=8192)
TINY = Rope(dim=64, base=1e4, original_length=256)


def published(inv_freq: np.ndarray, clipped: int) -> np.ndarray:
    """Clip the last frequencies as the paper's model code does, with torch."""
    weights = 0.5 * (1.0 + torch.cos(torch.linspace(0.0, math.pi, clipped, dtype=torch.float64))).numpy()
    return np.concatenate([inv_freq[:-clipped], inv_freq[-clipped:] * weights])


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("length", [8192, 65_536])
def test_llama_3_has_the_published_20_pairs(name: str, length: int) -> None:
    plain, clipped = scheme(name, LLAMA3, length), scheme(f"{name}+cope", LLAMA3, length)
    expected = published(plain.inv_freq(LLAMA3), 20)
    assert (expected[:45] == plain.inv_freq(LLAMA3)[:45]).all()
    np.testing.assert_allclose(clipped.inv_freq(LLAMA3)[:-1], expected[:-1], rtol=1e-12)
    assert expected[-1] == pytest.approx(0, abs=1e-20)
    assert clipped.attention_factor == plain.attention_factor
    assert (clipped.scheme, clipped.length) == (f"{name}+cope", length)


def test_the_last_pair_stands_still() -> None:
    scaling = scheme("yarn+cope", TINY, 131_072)
    assert scaling.factors[-1] == STILL
    assert 2**24 * scaling.inv_freq(TINY)[-1] < 2e-5
    assert (np.diff(scaling.factors) >= -1e-12).all()
    again = Extension.from_json(Extension.of(TINY, scaling).to_json())
    assert again.long.factors == scaling.factors
    module = LongRoPE(64, 131_072, 256, search_factors=scaling.factors)
    cos, sin = module(torch.zeros(1, 1, 1), position_ids=torch.tensor([[131_071]]), seq_len=131_072)
    assert cos[0, 0, 31] == pytest.approx(1 + math.log(512) / 10)  # the module's attention factor
    assert abs(sin[0, 0, 31]) < 1e-6


def test_clipped_twice_stays_finite() -> None:
    """A model that was fine-tuned with clipped pairs: those that stand still are left as they are."""
    first = scheme("yarn+cope", TINY, 2048)
    later = first.rope_after(TINY)
    second = scheme("pi+cope", later, 8192)
    assert second.factors[-1] == 4  # PI's own
    assert second.times(later.factors).factors[-1] == 4 * STILL
    assert np.isfinite(second.factors).all()
    assert min(second.factors) >= 1


def test_a_rope_whose_pairs_all_turn_is_not_clipped() -> None:
    rope = Rope(dim=16, base=100.0, original_length=4096)
    assert rope.critical_pair == 8
    assert scheme("yarn+cope", rope, 8192).factors == scheme("yarn", rope, 8192).factors


def test_names() -> None:
    assert canonical("linear+cope") == "pi+cope"
    assert is_scheme("ntk+cope+resonance")
    both = scheme("yarn+cope+resonance", TINY, 2048)
    assert both.scheme == "yarn+cope+resonance"
    wavelengths = 2 * math.pi / both.inv_freq(TINY)
    np.testing.assert_allclose(wavelengths[:-1], wavelengths[:-1].round(), rtol=1e-12)
    assert cope(TINY, cope(TINY, Scaling([1.0] * 32, scheme="mine"))).scheme == "mine+cope"
    for name in ("cope", "+cope", "yarn+cope+cope", "yarn+"):
        assert not is_scheme(name)
        with pytest.raises(LongRopeError, match=r"also with \+resonance or \+cope after it"):
            scheme(name, TINY, 512)
    with pytest.raises(LongRopeError, match="belong to another model"):
        cope(TINY, Scaling([1.0]))
