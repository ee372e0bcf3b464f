"""What every test runs under: no network, quiet transformers, the same hypothesis examples each time."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

settings.register_profile("longrope", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("longrope")


@pytest.fixture(scope="session")
def llama() -> PreTrainedModel:
    """A random Llama with L0 = 64; tests leave it as it was."""
    import families

    return families.build("llama")


@pytest.fixture(scope="session")
def bytes_tokenizer() -> PreTrainedTokenizerFast:
    from small_tokenizers import byte_bpe

    return byte_bpe(300, ["x = apple pearl\n"])


@pytest.fixture(scope="session")
def bpe() -> PreTrainedTokenizerFast:
    from small_tokenizers import byte_bpe

    return byte_bpe(320)


@pytest.fixture(scope="session")
def other_bpe() -> PreTrainedTokenizerFast:
    from small_tokenizers import byte_bpe

    return byte_bpe(270)
