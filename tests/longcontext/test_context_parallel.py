"""One forward pass by several real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import families
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrope.errors import LongRopeError
from longrope.longcontext.context_parallel import ContextParallelGroup, context_parallel

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node")


@given(st.integers(1, 9), st.integers(1, 4), st.integers(9, 3000), st.integers(1, 500))
def test_every_token_is_someones_and_every_process_has_some(count: int, rows: int, length: int, piece: int) -> None:
    each = [ContextParallelGroup(rank, count, piece).rank_chunks(rows, length) for rank in range(count)]
    tokens = sorted(token for own in each for part in own for token in range(part.start, part.stop))
    assert tokens == list(range(length))
    sizes = [part.stop - part.start for own in each for part in own]
    assert max(sizes) * rows <= max(piece, rows)
    assert min(map(len, each)) >= max(1, max(map(len, each)) - 1)


def slowest(count: int, length: int) -> float:
    """The attention that the processes wait for, turn by turn, over what each has to do if all have the same."""
    parts = ContextParallelGroup(0, count, 16384).chunks(1, length)
    scores = [(part.stop - part.start) * (part.start + part.stop) / 2 for part in parts]
    return sum(max(scores[i : i + count]) for i in range(0, len(scores), count)) / (sum(scores) / count)


def test_waiting_for_the_last_piece_costs_little() -> None:
    assert slowest(8, 2**21) < 1.06
    assert slowest(8, 2**17) < 1.25  # with whole pieces, in one turn, it would be 1.88
    sizes = {part.stop - part.start for part in ContextParallelGroup(0, 8, 16384).chunks(1, 2**17)}
    assert sizes == {4096}


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_processes_give_what_one_gives(count: int) -> None:
    script = Path(__file__).parent / "context_parallel_processes.py"
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


def test_without_a_group_of_processes_the_remedy_is_named() -> None:
    with pytest.raises(LongRopeError, match=r"no group of processes\. Start them with torchrun"):
        context_parallel(families.build("llama"))
