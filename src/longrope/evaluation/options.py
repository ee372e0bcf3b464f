"""The rarely used settings of an evaluation, with the defaults of ``longrope eval``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from longrope.checks import as_list, torch_name, whole
from longrope.evaluation.runner import OnProgress, ignore_progress
from longrope.units import token_count


@dataclass(frozen=True)
class EvalOptions:
    """Options of `evaluate` that have a default. Numbers of tokens may be strings such as ``"2k"``.

    Args:
        original: Whether the checkpoint as it is, ``original``, is a candidate too.
        documents: Test documents to draw from ``data``.
        text_key: Key or column of the text in JSON, ``.csv`` and ``.parquet``; None for ``text``.
        retrieval_lengths: Lengths for retrieval tasks in tokens; None takes those of the evaluation.
        trials: Questions of each retrieval task at each length. Fifty support a claim.
        questions: Questions that each text is asked; a text passes through the model once for all of them.
        depths: Depths of the needles, from 0 (beginning) to 1 (end), in turn. None draws them in RULER's tasks, as
            RULER does, and takes five depths in the others.
        chat: Whether prompts are in the tokenizer's chat template: ``on``, ``off``, or ``auto``, on if there is one.
        ruler_data: Folder of RULER's essays and questions, or ``hub``; None hides needles in the test documents.
        seed: Seed of the split of the documents and of the retrieval tasks.
        stride: Tokens between two windows of the sliding perplexity; None does not measure it.
        key_tokens: Name of the candidate that chooses key tokens (LongPPL); None does not measure them.
        measurements: Names of further rows of ``MEASUREMENTS``.
        batch: Documents in one forward pass.
        original_length: L0 of a named model in tokens, where its fields are wrong or disagree; None takes its own.
        dtype: Number format, where the model is given by name: a key of `longrope.models.load.DTYPES` or a torch dtype.
        device: torch device, where the model is given by name; ``auto`` for the accelerator if there is one.
        output: Folder that keeps a journal of the samples and ``results.json``. If it holds a journal, the evaluation
            resumes.
        on_progress: Called with the tokens done, the tokens in all, and what is measured.
    """

    original: bool = True
    documents: int = 4
    text_key: str | None = None
    retrieval_lengths: Sequence[int | str] | int | str | None = None
    trials: int = 50
    questions: int = 1
    depths: Sequence[float] | None = None
    chat: str = "auto"
    ruler_data: str | None = None
    seed: int = 0
    stride: int | None = None
    key_tokens: str | None = None
    measurements: Sequence[str] = ()
    batch: int = 1
    original_length: int | None = None
    dtype: str = "auto"
    device: str = "auto"
    output: str | Path | None = None
    on_progress: OnProgress = ignore_progress

    def __post_init__(self) -> None:
        for name in ("dtype", "device"):
            object.__setattr__(self, name, torch_name(getattr(self, name)))
        for name, least in {"documents": 1, "trials": 1, "questions": 1, "seed": 0, "batch": 1}.items():
            object.__setattr__(self, name, whole(name, getattr(self, name), least))
        for name, least in {"stride": 1, "original_length": 2}.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, token_count(name, getattr(self, name), least))
        if self.depths is not None:
            object.__setattr__(self, "depths", tuple(as_list(self.depths)))
        object.__setattr__(self, "measurements", tuple(as_list(self.measurements)))
