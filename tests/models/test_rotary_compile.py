"""`LongRoPE` under torch.compile; apart from its other tests, since mutmut's changes cannot be compiled."""

from __future__ import annotations

import pytest
import torch

from longrope import LongRoPE


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_float_positions_compile() -> None:
    torch.compiler.reset()
    module = LongRoPE(8, search_factors=[1.0, 1.5, 4.0, 8.0], original_max_position=64, max_position=512)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    x, positions = torch.zeros(1, 100, 1), torch.arange(100)[None].float()
    assert torch.equal(compiled(x, positions)[0], module(x, positions)[0])
    with pytest.raises(IndexError):
        compiled(x, positions + 0.5)
