"""A text that is read on and continued, in the caches of transformers."""

from __future__ import annotations

import families
import pytest
import torch

from longrope.models.cache import ReadText


@torch.inference_mode()
def test_an_error_while_reading_on_leaves_the_text_as_it_was() -> None:
    model, tokens = families.build("llama"), families.tokens(1, 40)
    text = ReadText(model)
    text.read(tokens[:, :20])
    with pytest.raises(RuntimeError, match="Scalar"), text.continued() as question:
        question.read(tokens[:, :10]).item()
    assert text.cache.get_seq_length() == text.size == 20
    expected = families.logits(model, tokens)[:, 20:]
    torch.testing.assert_close(text.logits(tokens[:, 20:]), expected, rtol=1e-4, atol=1e-3)
