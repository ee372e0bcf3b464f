"""Measure candidates side by side, sample by sample, and sum up the samples as `EvalResults`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from longrope.checks import check_vocabulary
from longrope.evaluation.candidate import Candidate
from longrope.evaluation.key_tokens import choose_key_tokens
from longrope.evaluation.losses import check_lengths
from longrope.evaluation.measurement import Corpus, EvalSpec, Records, SampleSet, Subject
from longrope.evaluation.registry import check_spec, requested_measurements
from longrope.evaluation.results import EvalResults
from longrope.evaluation.sample_store import SampleStore
from longrope.evaluation.text_samples import text_samples
from longrope.models.device_memory import release_memory
from longrope.rope import Rope

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OpenModel = Callable[[str], tuple["PreTrainedModel", "PreTrainedTokenizerBase"]]
OnProgress = Callable[[int, int, str], None]  # tokens done, tokens in all, what is measured now


def ignore_progress(done: int, total: int, note: str) -> None:
    """Report nothing."""


@dataclass(frozen=True, eq=False)
class EvalContext:
    """Candidates, documents and samples of one evaluation.

    Args:
        candidates: Candidates by name; ``original`` and ``yarn`` are the ones that others are compared with.
        corpora: Test documents.
        spec: What to measure.
        rope: Geometry of the model before it was extended.
        open_model: Function (name) that loads a model and its tokenizer.
        store: Samples measured before; it gets the others.
        on_progress: Called with the tokens done, the tokens in all, and what is measured.

    Attributes:
        records: Records by measurement and candidate, in the order in which the measurements are summed up.
    """

    candidates: Mapping[str, Candidate]
    corpora: Sequence[Corpus]
    spec: EvalSpec
    rope: Rope
    open_model: OpenModel
    store: SampleStore = field(default_factory=SampleStore)
    on_progress: OnProgress = ignore_progress
    records: dict[str, Records] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_spec(self.spec, self.candidates)
        for corpus in self.corpora:
            check_lengths(self.spec.lengths, corpus.tokens.shape[1], document=f"a document of {corpus.name}")

    @cached_property
    def key_tokens(self) -> dict[str, dict[int, list[int]]]:
        """Return the key tokens by corpus and document, if the spec names a candidate that chooses them."""
        if self.spec.key_tokens is None:
            return {}
        return {corpus.name: choose_key_tokens(self, corpus) for corpus in self.corpora}

    @cached_property
    def texts(self) -> dict[str, SampleSet]:
        """Return the samples of the losses by length and position, by corpus."""
        lengths, batch = self.spec.lengths, self.spec.batch
        return {
            corpus.name: text_samples(corpus, lengths, batch=batch, key_tokens=self.key_tokens.get(corpus.name))
            for corpus in self.corpora
        }

    def samples(self, candidate: str, samples: SampleSet) -> list[Any]:
        """Return the measured values of a candidate."""
        return self.store.samples(self.candidates[candidate], samples)

    def measure(self, sample_sets: Iterable[SampleSet], candidates: Iterable[str] | None = None) -> None:
        """Measure the samples that are missing; load every model once, and only if it is needed.

        Args:
            sample_sets: Samples to measure; sets of one name are measured once.
            candidates: Names of the candidates; all if None.
        """
        chosen = {name: self.candidates[name] for name in candidates or self.candidates}
        sets = {samples.name: samples for samples in sample_sets}.values()
        measure_missing(self.store, chosen, list(sets), self._open, self.on_progress)

    def _open(self, weights: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load a model and its tokenizer; refuse tokens that it has no embedding for."""
        from longrope.models.backbone import vocabulary_of

        model, tokenizer = self.open_model(weights)
        prompts = (prompt.tokens for prompts in self.spec.retrieval.values() for prompt in prompts)
        check_vocabulary([*(corpus.tokens for corpus in self.corpora), *prompts], vocabulary_of(model), tokenizer)
        return model, tokenizer


def measure_missing(
    store: SampleStore,
    candidates: Mapping[str, Candidate],
    sample_sets: Sequence[SampleSet],
    open_model: OpenModel,
    on_progress: OnProgress = ignore_progress,
) -> None:
    """Measure the samples of every candidate that a store lacks, candidates of one model after each other.

    Args:
        store: Samples measured before; it gets the others.
        candidates: Candidates by name. Those with equal factors at the length of the samples are measured once.
        sample_sets: Samples to measure of every candidate.
        open_model: Function (name) that loads a model and its tokenizer.
        on_progress: Called with the tokens done, the tokens in all, and what is measured.
    """
    distinct: dict[tuple[str, str], tuple[str, Candidate, SampleSet]] = {}
    for name, candidate in candidates.items():
        for samples in sample_sets:
            distinct.setdefault((candidate.at(samples.length).key, samples.name), (name, candidate, samples))
    runs = list(distinct.values())
    total = sum(samples.count * samples.tokens for _, _, samples in runs)
    done = total - sum(len(store.missing(candidate, samples)) * samples.tokens for _, candidate, samples in runs)
    number = 1 + sum(not store.missing(candidate, samples) for _, candidate, samples in runs)
    for weights in dict.fromkeys(candidate.weights for candidate in candidates.values()):
        unfinished = [run for run in runs if run[1].weights == weights and store.missing(*run[1:])]
        opened = subject = None
        release_memory()  # of the model before
        opened = open_model(weights) if unfinished else None
        for name, candidate, samples in unfinished:
            assert opened is not None
            note = f"{number}/{len(runs)} {name}: {samples.name}"
            on_progress(done, total, note)
            subject = Subject(*opened, candidate.scaling)
            for index, value in samples.measure(subject, store.missing(candidate, samples)):
                store.add(candidate, samples, index, value)
                done += samples.tokens
                on_progress(done, total, note)
            number += 1


def run_evaluation(evaluation: EvalContext) -> EvalResults:
    """Measure everything that the spec requests, and sum it up.

    Raises:
        LongRopeError: If a candidate's factors do not fit the model, or the documents are too short.
    """
    measurements = requested_measurements(evaluation.spec)
    sample_sets = [samples for row in measurements for samples in row.sample_sets(evaluation)]
    evaluation.measure(sample_sets)
    for row in measurements:
        aggregated = {name: row.aggregate(evaluation, name) for name in evaluation.candidates}
        evaluation.records[row.name] = {
            name: tuple(records) for name, records in aggregated.items() if records is not None
        }
    return EvalResults(
        rope=evaluation.rope,
        candidates=evaluation.candidates,
        records=evaluation.records,
        lengths=tuple(evaluation.spec.lengths),
        corpora={
            corpus.name: {"documents": list(corpus.documents), "hash": corpus.hash} for corpus in evaluation.corpora
        },
    )
