"""Measure a staged run on test documents: perplexity by length, retrieval, and the cost at short length."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

from longrope.evaluation.candidate import Candidate
from longrope.evaluation.measurement import Corpus, EvalSpec
from longrope.evaluation.runner import EvalContext, run_evaluation
from longrope.evaluation.sample_store import JOURNAL, SampleStore
from longrope.provenance import provenance
from longrope.scaling import Extension
from longrope.schemes import scheme
from longrope.stages.run_folder import StagedRun
from longrope.storage.jsonl import JsonlFile
from longrope.units import short_length

EXTENDED = "extended"


def measure(run: StagedRun, extension: Extension) -> None:
    """Write ``results.json`` of a run. A journal keeps every sample, so a stopped measurement resumes.

    The candidates are ``original``, the plan's schemes on the original weights, each stage's factors before and after
    its fine-tuning (``evaluation.stages``), and ``extended``: the last weights with short factors up to L0 and long
    ones beyond.

    Args:
        run: Run whose stages are finished.
        extension: Factors of the run.
    """
    path, lengths = run.folder / "results.json", list(run.data.evaluation_lengths)
    if not lengths or path.exists():
        return
    test = run.data.test_documents()
    corpus = Corpus(run.plan.data.source or "stdlib", test.tokens, test.names)
    settings = {"model": run.model, "dtype": run.dtype, "lengths": lengths, "data": corpus.hash}
    with closing(JsonlFile(run.folder / JOURNAL, settings, subject="an evaluation", resume=True)) as journal:
        evaluation = EvalContext(
            _candidates(run, extension),
            [corpus],
            EvalSpec(lengths, retrieval=run.data.prompts(), questions=run.plan.evaluation.questions),
            run.rope,
            lambda name: run.load(run.weights_path(name), dtype=run.dtype, device=run.device),
            SampleStore(journal),
            lambda done, total, note: run.on_progress("measure", done, total, note),
        )
        results = run_evaluation(evaluation)
    replace(results, model=run.model, dtype=run.dtype, provenance=provenance(run.device)).save(path)


def _candidates(run: StagedRun, extension: Extension) -> dict[str, Candidate]:
    candidates = {"original": Candidate(run.model)}
    for name in run.plan.evaluation.schemes:
        candidates[name] = Candidate(run.model, scheme(name, run.rope, run.plan.length))
    for number, stage in enumerate(run.plan.stages if run.plan.evaluation.stages else (), start=1):
        source = "searched" if stage.factors == "search" else Path(stage.factors).stem
        scaling = run.long_scaling(number)
        candidates[f"{short_length(stage.length)} {source}"] = Candidate(run.weights_name(number), scaling)
        if stage.finetune is not None:
            name = f"{short_length(stage.length)} fine-tuned"
            candidates[name] = Candidate(run.weights_name(number + 1), scaling)
    return candidates | {EXTENDED: Candidate(run.weights_name(len(run.plan.stages) + 1), extension)}
