"""The runs that a report compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

from longrope.errors import LongRopeError
from longrope.evaluation.results import EvalResults, printable
from longrope.evaluation.sample_store import JOURNAL
from longrope.formats.load_factors import load_factors
from longrope.report.engine_verdict import Checkpoint, read_checkpoint
from longrope.report.search_history import SearchHistory, read_searches, results_of_search
from longrope.report.training_history import TrainingHistory, read_trainings


@dataclass(frozen=True)
class LoadedRun:
    """One run of a report.

    Args:
        name: Name of the folder or file, unique in the report.
        results: Everything that was measured.
        searches: Journals of the run's searches.
        trainings: Fine-tunings of the run.
        checkpoint: Exported checkpoint of the run; None if it has none.
        clashes: Names of candidates that other runs have too.
    """

    name: str
    results: EvalResults
    searches: tuple[SearchHistory, ...] = ()
    trainings: tuple[TrainingHistory, ...] = ()
    checkpoint: Checkpoint | None = None
    clashes: frozenset[str] = frozenset()

    def label(self, candidate: str) -> str:
        """Return the candidate's name in this report."""
        return f"{self.name}: {candidate}" if candidate in self.clashes else candidate


def read_runs(paths: Sequence[Path], *, checkpoint: Path | None = None) -> tuple[LoadedRun, ...]:
    """Read folders of ``longrope eval``, ``extend`` or ``search``, or files of results.

    Args:
        paths: Folders and files.
        checkpoint: Exported checkpoint of the only run; None takes the run's own folder ``checkpoint`` if it has one.

    Raises:
        LongRopeError: If a folder or file holds no results or damaged ones, or is given twice.
    """
    folders = [path.parent if path.name == "results.json" else path for path in (path.resolve() for path in paths)]
    if len(set(folders)) < len(folders):
        raise LongRopeError(f"runs = {', '.join(map(str, paths))}: a run is given twice. Give it once.")
    short = [folder.name.removesuffix(".json") for folder in folders]
    names = [name if short.count(name) == 1 else str(path) for name, path in zip(short, paths, strict=True)]
    runs = with_clashes([replace(_read(path), name=printable(name)) for name, path in zip(names, paths, strict=True)])
    if checkpoint is None:
        return runs
    run, *others = runs
    if others:
        raise LongRopeError(f"checkpoint = {str(checkpoint)!r}: it belongs to one run. Report that run alone.")
    return (replace(run, checkpoint=read_checkpoint(checkpoint)),)


def with_clashes(runs: Sequence[LoadedRun]) -> tuple[LoadedRun, ...]:
    """Return the runs of one report with the names of candidates that several of them have."""
    names = [name for run in runs for name in run.results.candidates]
    clashes = frozenset(name for name in names if names.count(name) > 1)
    return tuple(replace(run, clashes=clashes) for run in runs)


def _read(folder: Path) -> LoadedRun:
    """Return the run in a folder or a file, by its bare name."""
    if folder.is_file():
        _refuse_factors(folder)
        return LoadedRun(folder.name, EvalResults.load(folder))
    if not folder.is_dir():
        raise LongRopeError(
            f"run = {str(folder)!r}: not a folder and not a file. "
            "Give a folder of longrope eval, extend or search, or its results.json."
        )
    searches = read_searches(folder)
    if (folder / "results.json").exists():
        exported = folder / "checkpoint"
        checkpoint = read_checkpoint(exported) if (exported / "config.json").exists() else None
        return LoadedRun(folder.name, EvalResults.load(folder), searches, read_trainings(folder), checkpoint)
    if (folder / "run.json").exists() and not any(folder.glob("search-*.jsonl")):
        measure = f", or run longrope eval … --factors {quote(str(folder))} -o eval, and report that"
        remedy = "Finish the run with --resume" + (measure if (folder / "extension.json").exists() else "")
        raise LongRopeError(f"run = {str(folder)!r}: it has no results.json. {remedy}.")
    if not searches:
        stopped = (folder / JOURNAL).exists()
        remedy = "Finish the evaluation with --resume" if stopped else "Run longrope eval … -o eval, and report that"
        raise LongRopeError(f"run = {str(folder)!r}: it has no results.json. {remedy}.")
    return LoadedRun(folder.name, results_of_search(folder, searches), searches)


def _refuse_factors(path: Path) -> None:
    """Raise an error that says what to do with a file of factors, which holds no measurement."""
    try:
        load_factors(path)
    except LongRopeError:
        return
    factors = quote(str(path))
    raise LongRopeError(
        f"run = {str(path)!r}: the file holds factors, and no measurement. longrope inspect MODEL --factors {factors} "
        f"shows them, longrope eval MODEL --lengths … --factors {factors} -o eval measures them."
    )


def warnings(runs: Sequence[LoadedRun]) -> list[str]:
    """Return the reasons why the numbers of several runs cannot be compared."""
    reasons = []
    models = {run.results.model for run in runs}
    if len(models) > 1:
        reasons.append(f"These runs are of different models ({', '.join(sorted(models))}).")
    if len({run.results.rope for run in runs}) > 1:
        lengths = [f"{run.name}: {run.results.rope.original_length:,}" for run in runs]
        reasons.append(f"Their rotary embeddings or original lengths L0 differ ({'; '.join(lengths)} tokens).")
    # a search measured nothing on test documents, and the dtype of a server is not known
    runs = [run for run in runs if run.results.get("perplexity") or run.results.get("retrieval")]
    dtypes = {run.results.dtype for run in runs if run.results.dtype}
    if len(dtypes) > 1:
        reasons.append(f"They were measured in different precisions ({', '.join(sorted(dtypes))}).")
    corpora = [{name: corpus.get("hash") for name, corpus in run.results.corpora.items()} for run in runs]
    if any(hashes != corpora[0] for hashes in corpora):
        reasons.append("They were measured on different documents.")
    return [f"{reason} Compare the numbers within a run only." for reason in reasons]
