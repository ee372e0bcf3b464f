"""A tiny random Llama and texts that it can learn, for fine-tuning and whole runs: L0 = 64, 128 tokens."""

from __future__ import annotations

from pathlib import Path

import families
import numpy as np
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from longrope.data.training_windows import TrainingWindows
from longrope.rope import Rope
from longrope.scaling import Scaling
from longrope.schemes import scheme

L0, LENGTH = families.L0, 256
ROPE = Rope(dim=16, base=10000.0, original_length=L0)
FACTORS = scheme("yarn", ROPE, LENGTH)


def build(**fields: object) -> PreTrainedModel:
    """A Llama of one layer."""
    return families.build("llama", **{"num_hidden_layers": 1, **fields})


def document(seed: int, tokens: int) -> np.ndarray:
    """Token ids of a text with much repetition."""
    rng = np.random.default_rng(seed)
    return np.resize(rng.integers(3, families.VOCABULARY, 23), tokens)


def windows(count: int, *, length: int = LENGTH, tokens: int = 700, **options: object) -> TrainingWindows:
    """So many training sequences, most of which hold a border between two documents."""
    documents = [document(seed, tokens) for seed in range(count * length // tokens + 2)]
    return TrainingWindows(documents, length=length, count=count, original_length=L0, **options)


def text_folder(folder: Path, *, documents: int = 20, tokens: int = 700) -> Path:
    """A folder of text files, each a little longer than the one before."""
    folder.mkdir(parents=True)
    for i in range(documents):
        words = [f"t{token}" for token in document(i, tokens + 10 * i)]
        (folder / f"{i:02}.txt").write_text(" ".join(words), encoding="utf-8")
    return folder


def save(folder: Path, dtype: torch.dtype = torch.float32, **fields: object) -> Path:
    """The model and its tokenizer in a folder."""
    build(**fields).to(dtype).save_pretrained(folder)
    families.tokenizer().save_pretrained(folder)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def assert_equal(found: Path, wanted: Path) -> None:
    """Two checkpoints hold the same, bit by bit."""
    one, other = weights(found), weights(wanted)
    assert one.keys() == other.keys()
    assert one
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype
        assert torch.equal(tensor, other[name]), name


def scheme_for(model: PreTrainedModel) -> Scaling:
    """YaRN's factors for twice a model's length."""
    rope = Rope.of(model)
    return scheme("yarn", rope, 2 * rope.original_length)
