from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from searching import SMALL, quadratic, search_with, slope

from longrope.scaling import Scaling
from longrope.search.protocol import CandidateLoss, FunctionObjective


def test_a_function_answers_every_pair_in_its_place() -> None:
    pairs = [(Scaling([1.0 + i] * 8), 0) for i in range(5)]
    found = dict(FunctionObjective(quadratic, slope).evaluate([pairs[:2], pairs[2:]], gradient=True))
    assert found[0] + found[1] == [CandidateLoss(quadratic(one), tuple(slope(one))) for one, _ in pairs]
    plain = dict(FunctionObjective(quadratic, slope).evaluate([pairs], gradient=False))
    assert plain == {0: [CandidateLoss(quadratic(one)) for one, _ in pairs]}


def test_a_function_without_slope_has_no_gradient() -> None:
    batches = [[(Scaling([2.0] * 8), 0)]]
    assert dict(FunctionObjective(quadratic).evaluate(batches, gradient=False))
    [(_, losses)] = FunctionObjective(quadratic).evaluate(batches, gradient=True)
    assert losses[0].gradient is None


def test_a_loss_may_be_a_number_of_numpy(tmp_path: Path) -> None:
    outcome = search_with(tmp_path / "j", SMALL["paper"], objective=lambda one: np.float32(quadratic(one)), tokens=20)
    again = search_with(tmp_path / "j", SMALL["paper"], objective=quadratic, tokens=20, resume=True)
    assert again.ranked == outcome.ranked
    json.dumps([loss for loss, _ in outcome.ranked])


@given(st.floats(), st.lists(st.floats(), max_size=3))
def test_what_is_not_finite_is_the_worst(loss: float, slopes: list[float]) -> None:
    """And all else is what it was, as a plain float."""
    found = CandidateLoss(np.float64(loss), tuple(map(np.float64, slopes)))
    assert found.gradient is not None
    for value, given_ in zip((found.loss, *found.gradient), (loss, *slopes), strict=True):
        assert type(value) is float
        assert value == (given_ if math.isfinite(given_) else math.inf)
    assert CandidateLoss(loss).gradient is None
    assert found == CandidateLoss(found.loss, found.gradient)
