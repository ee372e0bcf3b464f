from __future__ import annotations

import families
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def llama() -> PreTrainedModel:
    """Random weights, L0 = 64; tests leave it as it was."""
    return families.build("llama")


@pytest.fixture(scope="session")
def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """Reads any text in at most 300 tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(["x = apple pearl\n"] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe)
