"""One forward pass by several real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrope.models.spread import Spread

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node")


@given(st.integers(1, 9), st.integers(1, 4), st.integers(9, 3000), st.integers(1, 500))
def test_every_token_is_someones_and_all_have_as_much_to_do(count: int, rows: int, length: int, piece: int) -> None:
    each = [Spread(rank, count, piece).own(rows, length) for rank in range(count)]
    tokens = sorted(token for own in each for part in own for token in range(part.start, part.stop))
    assert tokens == list(range(length))
    sizes = [part.stop - part.start for own in each for part in own]
    assert max(sizes) * rows <= max(piece, rows)
    assert min(map(len, each)) >= max(1, max(map(len, each)) - 1)


@pytest.mark.parametrize("count", [2, 3])
def test_processes_give_what_one_gives(count: int) -> None:
    script = Path(__file__).parent / "spread_processes.py"
    paths = os.pathsep.join([str(script.parent.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*TORCHRUN, str(count), str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["equal"] * count
