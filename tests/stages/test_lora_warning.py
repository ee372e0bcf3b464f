"""LoRA begins without a warning about a call that is not the user's."""

from __future__ import annotations

import warnings

import families
import pytest

from longrope.stages.finetune import _with_lora
from longrope.stages.plan_tables import Finetune


def test_adapters_are_added_without_a_warning() -> None:
    pytest.importorskip("peft")
    model = families.build("llama", num_hidden_layers=1, vocab_size=300)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapted = _with_lora(model, Finetune(steps=1, lora=4))
    assert [str(warning.message) for warning in caught if warning.category is FutureWarning] == []
    assert any(parameter.requires_grad for parameter in adapted.parameters())
