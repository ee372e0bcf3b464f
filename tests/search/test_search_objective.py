from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from searching import SMALL, quadratic, run_search, slope

from longrope.rope import Scaling
from longrope.search.objective import Answer, Function, mean

NUMBERS = st.floats(-1e6, 1e6)


def test_a_function_answers_every_pair_in_its_place() -> None:
    pairs = [(Scaling([1.0 + i] * 8), 0) for i in range(5)]
    found = dict(Function(quadratic, slope).evaluate([pairs[:2], pairs[2:]], gradient=True))
    assert found[0] + found[1] == [Answer(quadratic(one), tuple(slope(one))) for one, _ in pairs]
    plain = dict(Function(quadratic, slope).evaluate([pairs], gradient=False))
    assert plain == {0: [Answer(quadratic(one)) for one, _ in pairs]}


def test_a_loss_may_be_a_number_of_numpy(tmp_path: Path) -> None:
    outcome = run_search(tmp_path / "j", SMALL["paper"], objective=lambda one: np.float32(quadratic(one)), tokens=20)
    again = run_search(tmp_path / "j", SMALL["paper"], objective=quadratic, tokens=20, resume=True)
    assert again.ranked == outcome.ranked
    json.dumps([loss for loss, _ in outcome.ranked])


@given(st.lists(st.tuples(NUMBERS, st.tuples(NUMBERS, NUMBERS, NUMBERS)), min_size=1, max_size=6))
def test_the_mean_is_that_of_losses_and_of_gradients(answers: list[tuple[float, tuple[float, ...]]]) -> None:
    found, count = mean([Answer(*one) for one in answers]), len(answers)
    assert found.loss == pytest.approx(math.fsum(loss for loss, _ in answers) / count, abs=1e-6)
    assert found.gradient is not None
    for i, slope_i in enumerate(found.gradient):
        assert slope_i == pytest.approx(math.fsum(gradient[i] for _, gradient in answers) / count, abs=1e-6)


def test_one_answer_is_its_own_mean_and_without_all_gradients_there_is_none() -> None:
    assert mean([Answer(0.1, (1.0, 2.0))]) == Answer(0.1, (1.0, 2.0))
    assert mean([Answer(1.0, (1.0,)), Answer(2.0)]) == Answer(1.5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_item_that_is_not_finite_makes_the_mean_not_finite(bad: float) -> None:
    assert not math.isfinite(mean([Answer(1.0), Answer(bad), Answer(2.0)]).loss)
