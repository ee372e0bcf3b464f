from __future__ import annotations

import numpy as np
import pytest

from longrope.checks import OTHER_TOKENIZER, check_vocabulary
from longrope.errors import LongRopeError


class Words:
    """A tokenizer of three words."""

    def __len__(self) -> int:
        return 3

    def convert_ids_to_tokens(self, token: int) -> str:
        return ["zero", "one", "two"][token]


def test_token_ids_that_have_a_row_are_taken() -> None:
    check_vocabulary([np.array([0, 1]), np.array([], dtype=int), np.array([[1], [0]])], 2)
    check_vocabulary([], 1)
    check_vocabulary([np.array([0])], 1)


def test_a_token_id_beyond_the_embedding_is_named() -> None:
    tokens = [np.array([0, 1]), np.array([[2, 0]])]
    remedy = f"and the model's embedding ends at 1 (vocab_size = 2). {OTHER_TOKENIZER}"
    for arguments, fields, start in (
        ((None,), {}, "data: the tokenizer makes token 2, "),
        ((Words(),), {"field": "prompt"}, "prompt: the tokenizer makes token 2 ('two') of 3 tokens, "),
    ):
        with pytest.raises(LongRopeError) as error:
            check_vocabulary(tokens, 2, *arguments, **fields)
        assert str(error.value) == start + remedy
    with pytest.raises(LongRopeError, match=r"ends at 1499 \(vocab_size = 1,500\)"):
        check_vocabulary([np.array([1500])], 1500)
