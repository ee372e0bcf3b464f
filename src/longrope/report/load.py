"""The runs that a report compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from longrope.errors import LongRopeError
from longrope.evaluation.results import EvalResults, printable, read_results
from longrope.report.search_history import SearchHistory, read_searches, results_of_search


@dataclass(frozen=True)
class LoadedRun:
    """One run folder.

    Args:
        name: of the folder, unique in the report.
        results: what was measured.
        searches: its journals.
        clashes: names of rows that other runs have too.
    """

    name: str
    results: EvalResults
    searches: tuple[SearchHistory, ...] = ()
    clashes: frozenset[str] = frozenset()

    def label(self, row: str) -> str:
        """The row's name in this report."""
        return f"{self.name}: {row}" if row in self.clashes else row


def read_runs(folders: Sequence[Path]) -> tuple[LoadedRun, ...]:
    """Read the folders of ``longrope eval``, ``extend`` or ``search``.

    Raises:
        LongRopeError: if a folder holds no results, or damaged ones, or is given twice.
    """
    places = [folder.resolve() for folder in folders]
    if len(set(places)) < len(places):
        raise LongRopeError(f"runs = {', '.join(map(str, folders))}: a folder is given twice; give it once")
    short = [place.name for place in places]
    names = [name if short.count(name) == 1 else str(given) for name, given in zip(short, folders, strict=True)]
    read = [_read(folder) for folder in folders]
    rows = [row for results, _ in read for row in results.rows]
    clashes = frozenset(row for row in rows if rows.count(row) > 1)
    return tuple(
        LoadedRun(printable(name), results, searches, clashes)
        for name, (results, searches) in zip(names, read, strict=True)
    )


def _read(folder: Path) -> tuple[EvalResults, tuple[SearchHistory, ...]]:
    if not folder.is_dir():
        raise LongRopeError(f"run = {str(folder)!r} is no folder; give one of longrope eval, extend or search")
    searches = read_searches(folder)
    if (folder / "results.json").exists():
        return read_results(folder / "results.json"), searches
    if (folder / "run.json").exists() and not any(folder.glob("search-*.jsonl")):
        remedy = f"finish the run with --resume, or run longrope eval … --scaling {folder} -o eval, and report that"
        raise LongRopeError(f"{folder} has no results.json: {remedy}")
    if not searches:
        raise LongRopeError(f"{folder} has no results.json; make one: run longrope eval … -o eval, and report that")
    return results_of_search(folder, searches), searches


def warnings(runs: Sequence[LoadedRun]) -> list[str]:
    """What keeps the numbers of several runs from being compared."""
    told = []
    models = {run.results.model for run in runs}
    if len(models) > 1:
        told.append(f"These runs are of different models ({', '.join(sorted(models))}).")
    if len({run.results.rope for run in runs}) > 1:
        lengths = [f"{run.name}: {run.results.rope.original_length:,}" for run in runs]
        told.append(f"Their rotary embeddings or original lengths L0 differ ({'; '.join(lengths)} tokens).")
    runs = [run for run in runs if run.results.perplexity]  # a search measured nothing on test documents
    kinds = {run.results.dtype for run in runs}
    if len(kinds) > 1:
        told.append(f"They were measured in different precisions ({', '.join(sorted(kinds))}).")
    corpora = [{name: corpus.get("hash") for name, corpus in run.results.corpora.items()} for run in runs]
    if any(one != corpora[0] for one in corpora):
        told.append("They were measured on different documents.")
    return [f"{one} Compare the numbers within a run only." for one in told]
