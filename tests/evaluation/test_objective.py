from __future__ import annotations

import math

import families
import numpy as np
import pytest
from transformers import PreTrainedModel

from longrope.evaluation.objective import perplexity_objective
from longrope.evaluation.perplexity import compare
from longrope.rope import Rope, Scaling
from longrope.schemes import scheme


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_it_is_the_log_of_the_perplexity(llama: PreTrainedModel, batch: int) -> None:
    rope, tokens = Rope.of(llama), families.tokens(3, 128).numpy()
    objective = perplexity_objective(llama, tokens, batch=batch)
    for factors in (Scaling.identity(rope), scheme("yarn", rope, 128), scheme("ntk", rope, 128)):
        cell = compare(llama, {"x": factors}, tokens, [128])["x"][0]
        assert objective(factors) == pytest.approx(math.log(cell.perplexity), rel=1e-6)
        assert type(objective(factors)) is float


def test_nan_weights_give_a_nan_and_no_error() -> None:
    model = families.build("llama")
    model.model.norm.weight.data.fill_(float("nan"))
    objective = perplexity_objective(model, families.tokens(1, 128).numpy())
    assert np.isnan(objective(scheme("pi", Rope.of(model), 128)))
