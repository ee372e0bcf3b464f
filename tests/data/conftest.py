"""A tokenizer small enough to train in the test."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = ["the cat sat on the mat, and the dog sat on the cat\n" * 4, "def f(x):\n    return x + 1\n", "a" * 64]


def byte_bpe(size: int) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(TEXTS * 9, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=bpe)


@pytest.fixture(scope="session")
def bpe() -> PreTrainedTokenizerFast:
    return byte_bpe(320)


@pytest.fixture(scope="session")
def other_bpe() -> PreTrainedTokenizerFast:
    return byte_bpe(270)
