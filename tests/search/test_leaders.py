from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrope.scaling import Scaling
from longrope.search.leaders import LEADERS, evaluate_leaders
from longrope.search.protocol import CandidateLoss

CANDIDATES = [Scaling([1.0, 1.0 + i]) for i in range(9)]


def run(losses: dict[Scaling, float], in_context: dict[Scaling, float]) -> tuple[dict[Scaling, float], list[Scaling]]:
    """Return the losses that the search ends with, and the candidates that got a full pass."""
    full: list[Scaling] = []
    proposals = evaluate_leaders(list(losses))
    batch = next(proposals)
    while True:
        is_full = batch.reference is None or list(batch.candidates) == [batch.reference]
        full += batch.candidates if is_full else []
        source = losses if is_full else in_context
        try:
            batch = proposals.send([CandidateLoss(source[candidate]) for candidate in batch.candidates])
        except StopIteration as end:
            return end.value, full


@given(st.integers(1, 9), st.permutations(range(9)))
def test_the_first_and_the_leaders_of_its_contexts_get_full_passes(count: int, order: list[int]) -> None:
    candidates = CANDIDATES[:count]
    in_context = {candidate: float(order[i]) for i, candidate in enumerate(candidates)}
    losses = {candidate: float(np.sin(order[i])) for i, candidate in enumerate(candidates)}
    ended, full = run(losses, in_context)
    leaders = sorted(candidates[1:], key=in_context.__getitem__)[:LEADERS]
    assert full == [candidates[0], *leaders]
    assert ended == {candidate: losses[candidate] for candidate in full}


def test_contexts_of_a_first_candidate_without_a_loss_rank_nothing() -> None:
    losses = dict.fromkeys(CANDIDATES, 2.0) | {CANDIDATES[0]: math.nan, CANDIDATES[8]: 1.0}
    ended, full = run(losses, {})
    assert full == CANDIDATES
    assert ended == losses | {CANDIDATES[0]: math.inf}


@pytest.mark.parametrize("count", [1, 2])
def test_equal_candidates_are_evaluated_once(count: int) -> None:
    _, full = run(dict.fromkeys(CANDIDATES[:count] * 3, 1.0), dict.fromkeys(CANDIDATES, 1.0))
    assert full == CANDIDATES[:count]
