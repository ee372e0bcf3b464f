"""The embedded reference model does what its card says, from its bf16 weights."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

import longrope
from longrope.data.key_value_lines import make_key_value_text
from longrope.data.stdlib import stdlib_documents

FOLDER, LENGTH = Path(longrope.__file__).parent / "assets" / "tiny", 256


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.bfloat16).eval()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def windows(tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """(64, LENGTH): four windows from each of 16 documents that the model never saw."""
    texts = [text[:8000] for _, text in stdlib_documents(unseen=True) if len(text) > 20_000][:16]
    ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return np.concatenate([np.reshape(document[: 4 * LENGTH], (4, LENGTH)) for document in ids])


@torch.inference_mode()
def logits(model: LlamaForCausalLM, ids: np.ndarray) -> torch.Tensor:
    """What the model says about tokens 1 and on: (rows, LENGTH - 1, vocabulary)."""
    return model(input_ids=torch.from_numpy(ids), use_cache=False).logits[:, :-1].float()


def test_perplexity_is_far_below_that_of_token_frequencies(model: LlamaForCausalLM, windows: np.ndarray) -> None:
    targets = windows[:, 1:]
    chances = logits(model, windows).log_softmax(-1).gather(-1, torch.from_numpy(targets)[..., None])
    shares = np.unique(targets, return_counts=True)[1] / targets.size
    frequencies = math.exp(-(shares * np.log(shares)).sum())  # of these very tokens: the best a unigram could do
    assert math.exp(-chances.mean()) < 0.4 * frequencies


@pytest.mark.parametrize("needles", [1, 3])
def test_recall_is_exact_inside_the_window(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, windows: np.ndarray, needles: int
) -> None:
    rng, exact = np.random.default_rng(0), []
    for _ in range(2):
        recalls = [
            make_key_value_text(window, tokenizer, rng=rng, length=LENGTH, needles=needles) for window in windows
        ]
        ids = np.stack([recall.tokens for recall in recalls])
        right = logits(model, ids).argmax(-1).numpy() == ids[:, 1:]
        exact += [row[recall.answers[1:]].all() for row, recall in zip(right, recalls, strict=True)]
    assert np.mean(exact) >= 0.95, f"{np.mean(exact):.1%} of {len(exact)}"


def test_the_config_is_readable_by_old_and_new_readers() -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["head_dim"], config["max_position_embeddings"], config["rope_theta"]) == (64, 256, 10000.0)
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0}


def test_the_tokenizer_gives_text_back(tokenizer: PreTrainedTokenizerFast) -> None:
    text = 'def f(x):\n    """Ünïcode ✓"""\n\treturn  x ** 2\n'
    assert len(tokenizer) == 2048
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == 0
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
