"""The three questions that a person asks, answered from the numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from longrope.errors import suspect
from longrope.evaluation.figure import Number, percent, plain, share
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
    """Return the answers: does it work, what does it cost, is it better than YaRN; empty without perplexities."""
    candidate = subject(run)
    return () if candidate is None else (_works(run, candidate), _costs(run, candidate), _better(run, candidate))


def headlines(runs: Sequence[LoadedRun]) -> list[str]:
    """Return the headline of each run, after the run's name if there are several."""
    return [f"{run.name}: {headline(run)}" if len(runs) > 1 else headline(run) for run in runs]


def headline(run: LoadedRun) -> str:
    """Return the answers in one sentence."""
    candidate = subject(run)
    if candidate is None:
        command = f"longrope eval {run.results.model or 'MODEL'} … --factors {run.name}"
        return f"Nothing was measured on test documents yet. Run {command}."
    works, costs, better = (
        answer.verdict[0].lower() + answer.verdict[1:]
        for answer in (_works(run, candidate), _costs(run, candidate), _better(run, candidate))
    )
    return f"“{run.label(candidate)}” at {lengths_of(run)[-1]:,} tokens: {works}; {costs}; {better}."


def lengths_of(run: LoadedRun) -> list[int]:
    """Return the lengths at which perplexity was measured, ascending."""
    return sorted({record.length for records in run.results.get("perplexity").values() for record in records})


def subject(run: LoadedRun) -> str | None:
    """Return the candidate that the report is about.

    It is ``extended`` if there is one, else the best candidate that is not a scheme, else the best one.
    """
    longest = max(lengths_of(run), default=0)
    values = {
        name: perplexity_at(run, name, longest).value or math.inf
        for name, records in run.results.get("perplexity").items()
        if any(record.length == longest for record in records)
    }
    others = [name for name in values if name != "original"]
    if "extended" in others:
        return "extended"
    searched = [name for name in others if not is_scheme(name)]
    return min(searched or others, key=lambda name: values[name], default="original" if values else None)


def retrieval_score(run: LoadedRun, candidate: str) -> Number:
    """Return the mean score over tasks and depths at the longest length of all."""
    records = run.results.get("retrieval").get(candidate, ())
    scores = [record.score for record in records if record.length == lengths_of(run)[-1]]
    return Number.of(fmean(scores) if scores else None)


def short_context(run: LoadedRun, candidate: str) -> Number:
    """Return the percent of perplexity that the candidate costs at L0."""
    records = run.results.get("short_context").get(candidate, ())
    return Number.of(records[0].percent if records else None)


def perplexity_at(run: LoadedRun, candidate: str, length: int) -> Number:
    """Return the perplexity on the first corpus."""
    records = run.results.get("perplexity").get(candidate, ())
    return Number.of(next((record.perplexity for record in records if record.length == length), None))


def _gap(run: LoadedRun, candidate: str, against: str, length: int) -> tuple[Number, str] | None:
    """Return the percent by which a perplexity is above another's, and on how many documents it is lower."""
    for record in run.results.get("differences").get(candidate, ()):
        number = Number.of(record.percent, record.standard_error)
        if (record.against, record.length) == (against, length):
            documents = record.wins + record.losses
            wins = f", lower on {record.wins} of {documents} documents" if documents > 1 else ""
            return number, wins
    return None


def _works(run: LoadedRun, candidate: str) -> Verdict:
    length, original = lengths_of(run)[-1], run.results.rope.original_length
    value, base = perplexity_at(run, candidate, length), perplexity_at(run, "original", original)
    score = retrieval_score(run, candidate)
    beyond = perplexity_at(run, "original", length)
    why = f"Perplexity {plain(value)} there" if value.finite else "Perplexity is not finite there"
    why += f"; the original model has {plain(base)} at its own {original:,} tokens" if base.value is not None else ""
    if candidate != "original" and beyond.value is not None:
        why += f" and {plain(beyond)} at {length:,}"
    elif not (base.finite and beyond.finite):
        why += "; the original model's is not finite"
    why += f". {_found(score)}"
    if not all(number.finite for number in (value, base, beyond, score)):
        why += f" {suspect(run.results.dtype)}"
    question = f"Does it work at {short_length(length)} tokens?"
    if length <= original:
        return Verdict(question, "No length above L0 was measured", why)
    return Verdict(question, _verdict(value, base, score), why)


def _found(score: Number) -> str:
    """Return the retrieval score in a sentence."""
    if not score.finite:
        return "Retrieval is not finite there."
    return "Retrieval was not measured there." if score.value is None else f"It finds {share(score)} of what is hidden."


def _verdict(value: Number, base: Number, score: Number) -> str:
    """Return whether an extension works.

    Args:
        value: Perplexity at the longest length.
        base: Perplexity of the original model at L0.
        score: Retrieval score at the longest length.
    """
    if value.value is None:
        return "Cannot be told: perplexity is not finite"
    if base.value is None:
        against = "nothing to hold it against" if base.finite else "an original model whose perplexity is not finite"
        return f"Perplexity {plain(value)}, with {against}"
    holds = value.value <= HOLDS * base.value
    if score.value is None:
        retrieval = "retrieval not measured" if score.finite else "retrieval is not finite"
        return f"Works by perplexity, {retrieval}" if holds else "Does not work: perplexity is higher"
    if score.value >= FINDS:
        return "Works" if holds else "Finds what is hidden, but perplexity is higher"
    return "Works by perplexity, but forgets what is hidden" if holds else "Does not work"


def _costs(run: LoadedRun, candidate: str) -> Verdict:
    original = run.results.rope.original_length
    question = f"What does it cost at {short_length(original)} tokens?"
    gap = _gap(run, candidate, "original", original)
    lost, yarn = short_context(run, candidate), short_context(run, "yarn")
    if not lost.finite:
        return Verdict(
            question, "Cost at L0 is not finite", f"A perplexity is not finite. {suspect(run.results.dtype)}"
        )
    if lost.value is None:
        return Verdict(question, "Cost at L0 not measured", "It needs the original model and this row at L0.")
    why = f"Perplexity {percent(lost)} against the original model at its own length"
    why = f"Perplexity {percent(gap[0])} against the original model{gap[1]}" if gap is not None else why
    why += f"; YaRN costs {percent(yarn)}." if yarn.value is not None and candidate != "yarn" else "."
    if lost.value > 0:
        return Verdict(question, f"Costs {lost.value:.1f}% perplexity at L0", why)
    return Verdict(question, f"Costs nothing at L0: perplexity {percent(lost)}", why)


def _better(run: LoadedRun, candidate: str) -> Verdict:
    question, length = "Is it better than the one-line YaRN edit?", lengths_of(run)[-1]
    if candidate == "yarn":
        return Verdict(question, "Is YaRN itself", "No row of searched factors was measured.")
    gap = _gap(run, candidate, "yarn", length)
    if gap is None:
        return Verdict(question, "Not compared with YaRN", "Run longrope eval with --schemes yarn.")
    number, wins = gap
    if number.value is None:
        return Verdict(question, "Not compared with YaRN", f"A perplexity is not finite. {suspect(run.results.dtype)}")
    score, yarn_score = retrieval_score(run, candidate), retrieval_score(run, "yarn")
    why = f"Perplexity {percent(number)} against YaRN at {length:,} tokens{wins}."
    if score.value is not None and yarn_score.value is not None:
        why += f" Retrieval {share(score)} against {share(yarn_score)}."
    if number.error is None or abs(number.value) <= 2 * number.error:
        return Verdict(question, "No clear difference from YaRN in perplexity", why)
    side, verdict = ("lower", "Better") if number.value < 0 else ("higher", "Worse")
    return Verdict(question, f"{verdict} than YaRN: perplexity {abs(number.value):.1f}% {side}", why)
