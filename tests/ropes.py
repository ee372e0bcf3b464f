"""A small rope, drawn ropes, and what no number may be."""

from __future__ import annotations

import math

from hypothesis import strategies as st

from longrope.rope import Rope

BAD_NUMBERS = (0, 0.0, -1.5, math.nan, math.inf, -math.inf, True, "2", None)
ROPE = Rope(dim=8, base=1e4, original_length=64)

ropes = st.builds(
    Rope,
    dim=st.integers(1, 40).map(lambda half: 2 * half),
    base=st.floats(1.5, 1e9),
    original_length=st.integers(7, 2**20),
)
