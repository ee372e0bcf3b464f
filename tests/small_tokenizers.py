"""Byte-level tokenizers small enough to train in a test."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = ["the cat sat on the mat, and the dog sat on the cat\n" * 4, "def f(x):\n    return x + 1\n", "a" * 64]


def byte_bpe(size: int, texts: list[str] = TEXTS) -> PreTrainedTokenizerFast:
    """Read any text with at most ``size`` token ids."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(texts * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe)
