"""The three questions that a person asks, answered from the numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from longrope.evaluation.results import PerplexityRecord
from longrope.report.figure import Number, percent, plain, share
from longrope.report.load import LoadedRun
from longrope.schemes import is_scheme
from longrope.units import short_length

HOLDS, FINDS = 1.05, 0.8
RULE = (
    f"“Works” means that perplexity at the longest length is at most {HOLDS:g} times the original model's at L0, and "
    f"that {100 * FINDS:.0f}% or more of what is hidden there is found. “Better” means by more than two standard "
    "errors of the paired difference."
)


@dataclass(frozen=True)
class Verdict:
    """A verdict in a few words, and the numbers behind it."""

    question: str
    verdict: str
    why: str


def answers(run: LoadedRun) -> tuple[Verdict, ...]:
    """Does it work, what does it cost, is it better than YaRN; empty if no perplexity was measured."""
    row = subject(run)
    return () if row is None else (_works(run, row), _costs(run, row), _better(run, row))


def headlines(runs: Sequence[LoadedRun]) -> list[str]:
    """One of each run, after the run's name where there are several."""
    return [f"{run.name}: {headline(run)}" if len(runs) > 1 else headline(run) for run in runs]


def headline(run: LoadedRun) -> str:
    """The answers in one sentence."""
    row, found = subject(run), answers(run)
    if row is None:
        remedy = f"longrope eval {run.results.model or 'MODEL'} … --scaling {run.name}"
        return f"Nothing was measured on test documents yet. Run {remedy}."
    works, costs, better = (one.verdict[0].lower() + one.verdict[1:] for one in found)
    return f"“{run.label(row)}” at {lengths_of(run)[-1]:,} tokens: {works}; {costs}; {better}."


def lengths_of(run: LoadedRun) -> list[int]:
    """The lengths at which perplexity was measured, ascending."""
    return sorted({cell.length for cells in run.results.perplexity.values() for cell in cells})


def subject(run: LoadedRun) -> str | None:
    """The row that the report is about: ``extended``, or the best that is no formula, or the best of these."""
    lengths = lengths_of(run)
    at = {row: _cell(run, row, lengths[-1]) for row in run.results.perplexity} if lengths else {}
    rows = {row: cell.perplexity or math.inf for row, cell in at.items() if cell is not None and row != "original"}
    own = [row for row in rows if not is_scheme(row)]
    if "extended" in rows:
        return "extended"
    return min(own or rows, key=lambda row: rows[row], default="original" if at.get("original") else None)


def recall(run: LoadedRun, row: str) -> float | None:
    """The mean retrieval score over tasks and depths at the longest length of all; None if not measured there."""
    cells = run.results.retrieval.get(row, ())
    scores = [cell.score for cell in cells if cell.length == lengths_of(run)[-1] and cell.score is not None]
    return fmean(scores) if scores else None


def _gap(run: LoadedRun, row: str, against: str, length: int) -> tuple[Number, str] | None:
    """By how many percent a perplexity is above another's, and on how many of the same documents it is lower."""
    for one in run.results.differences.get(row, ()):
        if (one.against, one.length) == (against, length) and one.percent is not None:
            wins = f", lower on {one.wins} of {one.wins + one.losses} documents" if one.wins + one.losses > 1 else ""
            return Number(one.percent, one.standard_error), wins
    return None


def _cell(run: LoadedRun, row: str, length: int) -> PerplexityRecord | None:
    """Of the first corpus."""
    return next((cell for cell in run.results.perplexity.get(row, ()) if cell.length == length), None)


def _works(run: LoadedRun, row: str) -> Verdict:
    length, original = lengths_of(run)[-1], run.results.rope.original_length
    here, before = _cell(run, row, length), _cell(run, "original", original)
    untouched, found = _cell(run, "original", length), recall(run, row)
    value = here.perplexity if here is not None else None
    base = before.perplexity if before is not None else None
    why = f"Perplexity {plain(value)} there"
    why += f"; the original model has {plain(base)} at its own {original:,} tokens" if base is not None else ""
    why += f" and {plain(untouched.perplexity)} at {length:,}" if untouched is not None and row != "original" else ""
    why += ". Retrieval was not measured there." if found is None else f". It finds {share(found)} of what is hidden."
    holds = value is not None and base is not None and value <= HOLDS * base
    if length <= original:
        verdict = "No length above L0 was measured"
    elif value is None:
        verdict = "Does not work"
    elif base is None:
        verdict = f"Perplexity {plain(value)}, with nothing to hold it against"
    elif found is None:
        verdict = "Works by perplexity, retrieval not measured" if holds else "Does not work: perplexity is higher"
    else:
        finds = found >= FINDS
        verdict = (
            ("Works" if holds else "Finds what is hidden, but perplexity is higher")
            if finds
            else ("Works by perplexity, but forgets what is hidden" if holds else "Does not work")
        )
    return Verdict(f"Does it work at {short_length(length)} tokens?", verdict, why)


def _costs(run: LoadedRun, row: str) -> Verdict:
    original = run.results.rope.original_length
    question = f"What does it cost at {short_length(original)} tokens?"
    found = _gap(run, row, "original", original)
    lost, yarn = run.results.short_context.get(row), run.results.short_context.get("yarn")
    if lost is None:
        return Verdict(question, "Cost at L0 not measured", "It needs the original model and this row at L0.")
    why = f"Perplexity {percent(lost)} against the original model at its own length"
    why = f"Perplexity {percent(found[0])} against the original model{found[1]}" if found is not None else why
    why += f"; YaRN costs {percent(yarn)}." if yarn is not None and row != "yarn" else "."
    verdict = f"Costs {lost:.1f}% perplexity at L0" if lost > 0 else f"Costs nothing at L0: perplexity {percent(lost)}"
    return Verdict(question, verdict, why)


def _better(run: LoadedRun, row: str) -> Verdict:
    question, length = "Is it better than the one-line YaRN edit?", lengths_of(run)[-1]
    if row == "yarn":
        return Verdict(question, "Is YaRN itself", "No row of searched factors was measured.")
    found = _gap(run, row, "yarn", length)
    if found is None or found[0].value is None:
        return Verdict(question, "Not compared with YaRN", "Run longrope eval with --schemes yarn.")
    gap, wins = found
    ours, theirs = recall(run, row), recall(run, "yarn")
    why = f"Perplexity {percent(gap)} against YaRN at {length:,} tokens{wins}."
    why += f" Retrieval {share(ours)} against {share(theirs)}." if ours is not None and theirs is not None else ""
    assert gap.value is not None
    if gap.error is None or abs(gap.value) <= 2 * gap.error:
        return Verdict(question, "No clear difference from YaRN in perplexity", why)
    side = "lower" if gap.value < 0 else "higher"
    verdict = "Better" if gap.value < 0 else "Worse"
    return Verdict(question, f"{verdict} than YaRN: perplexity {abs(gap.value):.1f}% {side}", why)
