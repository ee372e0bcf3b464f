"""What a run has reached, on test documents: perplexity by length, and what the short context lost."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from longrope.evaluation.evaluate import EvalSpec, evaluate
from longrope.evaluation.measurements import Corpus
from longrope.evaluation.runner import JOURNAL, Candidate, SampleStore
from longrope.models.load import load
from longrope.provenance import provenance
from longrope.scaling import Extension
from longrope.schemes import scheme
from longrope.stages.run_folder import StagedRun
from longrope.storage.atomic import write_json
from longrope.storage.jsonl import JsonlFile
from longrope.units import short_length

EXTENDED = "extended"


def measure(run: StagedRun, extension: Extension) -> None:
    """Perplexities by length: ``results.json``, document by document, so that it goes on where it was stopped.

    Rows: ``original``, the plan's schemes on the original weights, each stage with its factors before and after its
    fine-tuning, and ``extended``: the last weights with short factors up to L0 and long ones beyond.
    """
    path, lengths = run.folder / "results.json", list(run.material.lengths)
    if not lengths or path.exists():
        return
    drawn = run.material.test()
    corpus = Corpus(run.plan.data.source or "stdlib", drawn.tokens, drawn.names)
    settings = {"model": run.model, "dtype": run.dtype, "lengths": lengths, "data": corpus.hash}
    with closing(JsonlFile(run.folder / JOURNAL, settings, of="an evaluation", resume=True)) as lines:
        record = evaluate(
            _rows(run, extension),
            [corpus],
            EvalSpec(lengths, retrieval=run.material.probes()),
            rope=run.rope,
            open_model=lambda name: load(run.located(name), dtype=run.dtype, device=run.device),
            cells=SampleStore(lines),
            tell=lambda done, total, note: run.tell("measure", done, total, note),
        )
    write_json(path, {"model": run.model, "dtype": run.dtype, **record, "provenance": provenance(run.device)})


def _rows(run: StagedRun, extension: Extension) -> dict[str, Candidate]:
    rows = {"original": Candidate(run.model)}
    for name in run.plan.evaluation.schemes:
        rows[name] = Candidate(run.model, scheme(name, run.rope, run.plan.length))
    for number, stage in enumerate(run.plan.stages, start=1):
        name = f"{short_length(stage.length)} {'searched' if stage.factors == 'search' else Path(stage.factors).stem}"
        rows[name] = Candidate(run.begins_with(number), run.factors(number))
        if stage.finetune is not None:
            name = f"{short_length(stage.length)} fine-tuned"
            rows[name] = Candidate(run.begins_with(number + 1), run.factors(number))
    return rows | {EXTENDED: Candidate(run.begins_with(len(run.plan.stages) + 1), extension)}
