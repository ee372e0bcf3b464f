"""What every test runs under: no network, quiet transformers, the same hypothesis examples each time."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

settings.register_profile("longrope", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("longrope")


@pytest.fixture(scope="module", autouse=True)
def frozen_heap() -> None:
    """Later garbage collections leave out the objects so far: they took up to half of a test's time."""
    gc.collect()
    gc.freeze()


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


@pytest.fixture(scope="session", autouse=True)
def reopened_here() -> Iterator[Callable[..., object]]:
    """Exports are reopened in this process, which saves seconds; the value is the function of a fresh process."""
    from longrope.export import verify
    from longrope.export.plain_logits import open_checkpoint, text_logits

    def reopen(folder: Path, texts: Sequence[dict[str, Tensor]], output: Path) -> list[Tensor]:
        checkpoint = open_checkpoint(str(folder), "cpu")
        return [text_logits(checkpoint, text) for text in texts]

    fresh = verify._reopened_logits
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(verify, "_reopened_logits", reopen)
        yield fresh


@pytest.fixture
def fresh_process(reopened_here: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports are reopened in a fresh process, as outside of tests."""
    from longrope.export import verify

    monkeypatch.setattr(verify, "_reopened_logits", reopened_here)
