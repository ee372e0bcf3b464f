from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from longrope.models.rotary_embedding import LongRoPE
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import attention_factor

FILE = Path(__file__).parents[2] / "shared" / "data" / "published_factors.json"
ARRAYS = json.loads(FILE.read_text(encoding="utf-8"))["arrays"] if FILE.exists() else {}
PHI3 = sorted(name.removesuffix(".long") for name in ARRAYS if name.endswith(".long"))

pytestmark = pytest.mark.skipif(not ARRAYS, reason="the published factors are not here")


@pytest.mark.parametrize("name", ARRAYS)
def test_every_published_array_is_a_scaling(name: str) -> None:
    rope = Rope(dim=2 * len(ARRAYS[name]), base=10000.0, original_length=4096)
    scaling = Scaling(ARRAYS[name], scheme=name)
    assert list(scaling.factors) == ARRAYS[name]
    assert Scaling.from_json(scaling.to_json()) == scaling
    np.testing.assert_allclose(scaling.inv_freq(rope) * ARRAYS[name], rope.inv_freq, rtol=1e-12)


def test_some_are_not_monotone() -> None:
    assert any((np.diff(array) < 0).any() for array in ARRAYS.values())


@pytest.mark.parametrize("name", PHI3)
def test_phi3_arrays_as_transformers_reads_them(name: str) -> None:
    short, long = ARRAYS[f"{name}.short"], ARRAYS[f"{name}.long"]
    config = Phi3Config(
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": short, "long_factor": long},
    )
    rope = Rope(dim=96, base=10000.0, original_length=4096)
    carried = Rope.of(config)
    assert (carried.plain, carried.short_length) == (replace(rope, original_length=131072), 4096)
    assert (carried.short_factors, carried.factors) == (tuple(short), tuple(long))
    for factors, length in ((short, 4096), (long, 4097)):
        theirs, attention = ROPE_INIT_FUNCTIONS["longrope"](config, "cpu", seq_len=length)
        np.testing.assert_allclose(Scaling(factors).inv_freq(rope), theirs.numpy(), rtol=1e-6)
        assert attention == pytest.approx(attention_factor("su", rope, 131072), rel=1e-12)


@pytest.mark.parametrize("name", PHI3)
def test_phi3_arrays_rotate_as_published(name: str) -> None:
    rope = Rope(dim=96, base=10000.0, original_length=4096)
    su = attention_factor("su", rope, 131072)
    short, long = (Scaling(ARRAYS[f"{name}.{which}"], attention_factor=su) for which in ("short", "long"))
    embedding = LongRoPE.of(Extension(rope=rope, short=short, long=long, length=131072))
    positions = torch.tensor([[7, 131071]])
    cos, _ = embedding(torch.zeros(1, 2, 1), positions)
    phases = positions[0].double()[:, None] * torch.from_numpy(long.inv_freq(rope))
    torch.testing.assert_close(cos[0, :, :48].double(), 1.1902380714238083 * phases.cos(), rtol=0, atol=1e-6)
