"""Checkpoints of ``tiny`` for 512 tokens, and real documents."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from real_servers import drop_factors
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longrope.data.documents import load_documents
from longrope.data.split import draw_tokens, split_documents
from longrope.data.stdlib import stdlib_documents
from longrope.export.exporter import ExportOptions
from longrope.export.registry import export
from longrope.models.load import load
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import scheme

LENGTH = 512


def extension_for(mode: str, rope: Rope) -> Extension:
    """Return the ramp for 512 tokens, alone or with the original short set, or YaRN."""
    if mode == "dual":  # both sets have the attention factor 1
        long = Scaling(scheme("ramp", rope, LENGTH).factors, length=LENGTH)
        return Extension(rope=rope, short=Scaling.identity(rope), long=long, length=LENGTH)
    return Extension.of(rope, scheme("yarn" if mode == "yarn" else "ramp", rope, LENGTH))


@pytest.fixture(scope="session")
def tiny() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The plain model; tests leave it as it was."""
    return load("tiny", dtype="float32")


@pytest.fixture(scope="session")
def checkpoint(tiny, tmp_path_factory) -> Callable[[str], Path]:
    """Function of ``static``, ``dual``, ``yarn`` or ``dropped`` that returns the folder of a checkpoint."""
    folder, made = tmp_path_factory.mktemp("checkpoints"), {}

    def make(mode: str) -> Path:
        if mode == "dropped":
            shutil.copytree(make("static"), folder / mode)
            return drop_factors(folder / mode)
        options = ExportOptions(overwrite=True)
        written = "dual" if mode == "dual" else "static"
        export(*tiny, extension_for(mode, Rope.of(tiny[0])), folder / mode, mode=written, options=options)
        return folder / mode

    def get(mode: str) -> Path:
        made[mode] = made.get(mode) or make(mode)
        return made[mode]

    return get


@pytest.fixture(scope="session")
def texts(tmp_path_factory) -> Path:
    """A folder of twelve texts that ``tiny`` was not trained on."""
    folder = tmp_path_factory.mktemp("texts")
    long = [text for _, text in stdlib_documents(unseen=True) if len(text) > 8000]
    for number, text in enumerate(long[:12]):
        (folder / f"{number:02}.txt").write_text(text[:8000], encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def documents(tiny, texts) -> np.ndarray:
    """Two texts that ``tiny`` was not trained on."""
    return draw_tokens(split_documents(load_documents(str(texts)))["test"], tiny[1], length=LENGTH + 10, count=2).tokens
