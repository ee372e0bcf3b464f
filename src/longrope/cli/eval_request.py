"""An evaluation of ``longrope eval`` before it runs, and the checks that refuse it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longrope.cli import distributed, options
from longrope.cli.layer_notes import note_rope
from longrope.errors import LongRopeError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from longrope.evaluation.candidate import Candidate
    from longrope.evaluation.measurement import Corpus, EvalSpec
    from longrope.rope import Rope


@dataclass(frozen=True)
class EvalRequest:
    """An evaluation whose inputs have been read and checked.

    Args:
        model: Name of the model.
        dtype: Number format of the models.
        device: torch device.
        rope: Geometry of the model.
        candidates: Candidates by name.
        corpora: Test documents.
        spec: What to measure.
        options: Further settings that a resumed evaluation must share.
        original_length: L0 of the model in tokens; None takes its own.
    """

    model: str
    dtype: str
    device: str
    rope: Rope
    candidates: Mapping[str, Candidate]
    corpora: Sequence[Corpus]
    spec: EvalSpec
    options: Mapping[str, Any]
    original_length: int | None = None

    def open_model(self, name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load the model of a candidate, and its tokenizer."""
        decided = self.original_length if name == self.model else None
        return distributed.open_model(name, self.dtype, self.device, decided)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the journal begins with. The first source has the documents of the prompts."""
        first = {"prompts_from": self.corpora[0].name} if len(self.corpora) > 1 else {}
        return {
            "model": self.model,
            "dtype": self.dtype,
            "data": {corpus.name: corpus.hash for corpus in self.corpora},
            "lengths": list(self.spec.lengths),
            "stride": self.spec.stride,
            "key_tokens": self.spec.key_tokens,
            **self.options,
            **first,
            **({} if self.original_length is None else {"original_length": self.original_length}),
        }

    @property
    def shared(self) -> dict[str, Any]:
        """Everything in which the processes of a launch must agree."""
        prompts = [(*key, len(prompts)) for key, prompts in self.spec.retrieval.items()]
        factors = {name: candidate.to_json() for name, candidate in self.candidates.items()}
        weights = {name: candidate.digest for name, candidate in self.candidates.items()}
        documents = [len(corpus.tokens) for corpus in self.corpora]
        others = {"measure": list(self.spec.measurements), "batch": self.spec.batch, "questions": self.spec.questions}
        data = {"documents": documents, "retrieval": prompts}
        return self.settings | {"factors": factors, "weights": weights} | data | others


def check_candidates(
    candidates: Mapping[str, Candidate],
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    *,
    batch: int,
    dtype: str,
    device: str,
    journal: Path | None,
) -> str:
    """Refuse candidates that cannot be compared or measured, before any model is loaded; return the dtype.

    Args:
        candidates: Candidates by name.
        config: The first model's config.
        tokenizer: The first model's tokenizer.
        length: Longest length in tokens.
        batch: Documents in one forward pass.
        dtype: Number format, or auto.
        device: torch device.
        journal: Folder of the evaluation that is resumed.

    Raises:
        LongRopeError: If the device is not there, factors are another model's, a model reads other tokens than the
            first, or a pass does not fit into memory.
    """
    from longrope.cost.choose_dtype import recorded_dtype
    from longrope.cost.memory_check import Placement, check_pass_memory
    from longrope.data.tokenize import fingerprint
    from longrope.evaluation.sample_store import JOURNAL
    from longrope.models.load import check_device, load_config, load_tokenizer
    from longrope.rope import Rope
    from longrope.scaling import check_rope

    check_device(device)
    names, first = list(dict.fromkeys(candidate.weights for candidate in candidates.values())), candidates["original"]
    configs = {weights: config if weights == first.weights else load_config(weights) for weights in names}
    ropes = {weights: Rope.of(config) for weights, config in configs.items()}
    for config in configs.values():
        note_rope(config)

    def check_memory(dtype: str) -> None:
        for config in configs.values():
            placement = Placement(dtype, device, processes=distributed.here())
            check_pass_memory(config, length, placement, batch=batch)

    recorded = recorded_dtype(journal / JOURNAL) if journal is not None else None
    dtype = options.choose_dtype(dtype, configs[first.weights], device, check_memory, recorded=recorded)
    check_memory(dtype)
    for weights in names:
        if fingerprint(load_tokenizer(weights)) != fingerprint(tokenizer):
            raise LongRopeError(
                f"{weights} has another tokenizer: perplexity of other tokens cannot be compared. Evaluate it alone."
            )
    for name, candidate in candidates.items():
        rope, original = ropes[candidate.weights], ropes[first.weights]
        if candidate.scaling is not None and rope != original:
            raise LongRopeError(f"{name}: its model has {rope}, but the original has {original}. Evaluate it alone.")
        if candidate.scaling is not None:
            check_rope(candidate.scaling, rope, name)
    return dtype


def claim_results(folder: Path | None, *, resume: bool, overwrite: bool) -> None:
    """Make sure that an evaluation may be written into a folder, or resumes there.

    Raises:
        LongRopeError: If the folder holds an evaluation that may not be replaced, or something else.
    """
    from longrope.evaluation.sample_store import JOURNAL
    from longrope.storage.lock import claim_output, refuse_other_files, refuse_staged_run

    if folder is None:
        if resume:
            raise LongRopeError("resume: there is no folder to continue. Give it with -o.")
        return
    refuse_staged_run(folder)
    refuse_other_files(folder, JOURNAL, "an evaluation")
    exists = (folder / JOURNAL).exists()
    also = "continue it with --resume, " if exists else ""
    claim_output(folder, overwrite=exists and (resume or overwrite), folder=True, also=also)
