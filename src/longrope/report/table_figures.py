"""Figures that are tables only: all candidates at a glance, held-out losses, provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from longrope.evaluation.figure import MISSING, Column, Figure, Number, integer, nats, percent, plain, share
from longrope.report.comparison import lengths_of, perplexity_at, perplexity_record, retrieval_rate, short_context
from longrope.report.factor_figures import search_name
from longrope.report.load import LoadedRun


def glance(runs: Sequence[LoadedRun]) -> list[Figure]:
    """Return all candidates with the numbers that decide."""
    table = []
    for run in runs:
        longest = max(lengths_of(run), default=0)
        for name, candidate in run.results.candidates.items():
            if perplexity_record(run, name, longest) is not None:
                scores = (
                    perplexity_at(run, name, longest),
                    retrieval_rate(run, name, longest),
                    short_context(run, name),
                )
                table.append([run.label(name), longest, *scores, candidate.weights or MISSING])
    columns = (
        *(Column("row"), Column("length", integer), Column("perplexity there", plain), Column("retrieval", share)),
        *(Column("perplexity at L0", percent), Column("weights")),
    )
    says = (
        "Every row at the longest length measured: perplexity (lower is better), the mean share of hidden answers "
        "found there (higher is better), and how much perplexity rose at the original length."
    )
    return [Figure("glance", "works", "All rows at a glance", says, columns, table)] if table else []


def trainings(runs: Sequence[LoadedRun]) -> list[Figure]:
    """Return a table of the fine-tunings of runs, short context first."""
    says = (
        "Each fine-tuning of the run: how much higher perplexity is at the original length than the original model's, "
        "with the stage's factors, and perplexity at the longest length with these factors before and after the "
        "training, where both were measured. The last row is the extended model, which has its short factors, or "
        "without them the original RoPE, up to the original length."
    )
    rows = []
    for run in runs:
        names = list(run.results.candidates)
        longest = max(lengths_of(run), default=0)
        for training in run.trainings:
            after = next((name for name in names if run.results.candidates[name].weights == training.weights), None)
            before = _untrained(run, after) if after is not None else None
            ends = [perplexity_at(run, name, longest) if name else Number(None) for name in (before, after)]
            lost = short_context(run, after) if after else Number(None)
            minutes = Number(training.seconds / 60)
            cost = (training.tokens, minutes, Number(training.loss), training.recipe or MISSING)
            rows.append([run.label(after or training.weights), lost, *ends, *cost])
        if run.trainings and "extended" in names:
            ends = [Number(None), perplexity_at(run, "extended", longest)]
            rows.append([run.label("extended"), short_context(run, "extended"), *ends, *[Number(None)] * 3, MISSING])
    columns = (
        *(Column("row"), Column("perplexity at L0", percent), Column("before", plain), Column("after", plain)),
        *(Column("tokens", integer), Column("minutes", plain), Column("training loss", plain), Column("settings")),
    )
    return [Figure("trainings", "cost", "What each fine-tuning cost and brought", says, columns, rows)] if rows else []


def _untrained(run: LoadedRun, trained: str) -> str | None:
    """Return the candidate that has a trained one's long factors and the weights from before the training."""
    scalings = {name: candidate.scalings.get("") for name, candidate in run.results.candidates.items()}
    factors = {name: list(scaling.factors) for name, scaling in scalings.items() if scaling is not None}
    earlier = list(scalings)[: list(scalings).index(trained)][::-1]
    return next((name for name in earlier if name in factors and factors[name] == factors.get(trained)), None)


def held_out(runs: Sequence[LoadedRun]) -> list[Figure]:
    """Return the losses that chose the winner of a search."""
    losses = {
        (search_name(run, search, runs).rpartition("seed")[0].strip(" :") or run.name, name): loss
        for run in runs
        for search in run.searches
        for name, loss in search.held_out.items()
    }
    columns = (Column("search"), Column("factors"), Column("held-out loss", nats))
    says = "What chose the winner of a search: the mean loss in nats on documents that it did not search on."
    rows = [[stage, name, loss] for (stage, name), loss in losses.items()]
    return [Figure("held-out", "found", "Held-out comparison", says, columns, rows)] if rows else []


def provenance(runs: Sequence[LoadedRun]) -> list[Figure]:
    """Return a table of where the numbers come from."""
    rows = []
    for run in runs:
        results = run.results
        rope = f"{results.rope.dim} dimensions, rope_theta {results.rope.base:,.0f}"
        facts = {"model": results.model, "dtype": results.dtype, "rope": rope}
        facts["original length L0"] = f"{results.rope.original_length:,} tokens"
        for name, corpus in results.corpora.items():
            documents = f"{len(corpus.get('documents', ()))} documents"
            facts[f"corpus {name}"] = f"{documents}, hash {corpus.get('hash', MISSING)}"
        for number, search in enumerate(run.searches, start=1):
            seed, data = search.settings.get("seed", MISSING), search.settings.get("data", MISSING)
            facts[f"search {number}"] = f"{search.name}: seed {seed}, data hash {data}"
        rows += [[run.name, key, str(value)] for key, value in (facts | _flat(results.provenance)).items() if value]
    says = "What was run, with what, on what, and when: enough to run it again."
    columns = (Column("run"), Column("what"), Column("value"))
    return [Figure("provenance", "origin", "Provenance", says, columns, rows)]


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by the words of their keys."""
    values: dict[str, Any] = {}
    for key, value in data.items():
        values |= _flat(value, f"{prefix}{key} ") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return values
