"""A text that is read on and continued, in the caches of transformers."""

from __future__ import annotations

from typing import Any

import families
import pytest
import torch

from longrope.models.backbone import backbone_of
from longrope.models.cache import ReadText


def _fail(*_: Any) -> None:
    raise MemoryError


@torch.inference_mode()
def test_an_error_while_reading_on_leaves_the_text_as_it_was() -> None:
    model, tokens = families.build("llama"), families.tokens(1, 40)
    text = ReadText(model)
    text.read(tokens[:, :20])
    with pytest.raises(RuntimeError, match="Scalar"), text.continued() as question:
        question.read(tokens[:, :10]).item()
    second: Any = backbone_of(model).layers[1]
    with second.register_forward_pre_hook(_fail), pytest.raises(MemoryError), text.continued() as question:
        question.read(tokens[:, :10])  # when the first layer has read them
    with text.continued():
        pass  # no question at all
    assert text.cache.get_seq_length() == text.size == 20
    expected = families.logits(model, tokens)[:, 20:]
    torch.testing.assert_close(text.logits(tokens[:, 20:]), expected, rtol=1e-4, atol=1e-3)
