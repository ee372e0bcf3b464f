"""The questions that a person asks of an extension, answered from the numbers and their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from longrope.errors import suspect
from longrope.evaluation.figure import Number, percent, plain, share
from longrope.evaluation.paired_retrieval import CLEAR, RetrievalDifference
from longrope.report.comparison import (
    PerplexityGap,
    best_closed_form,
    lengths_of,
    long_alone,
    perplexity_at,
    perplexity_gap,
    retrieval_gap,
    retrieval_rate,
    short_context,
)
from longrope.report.engine_verdict import engines_verdict
from longrope.report.load import LoadedRun, read_runs
from longrope.schemes import is_scheme
from longrope.units import short_length

HOLDS, FINDS = 1.05, 0.8
RULE = (
    f"“Works” means that perplexity at the longest length is at most {HOLDS:g} times the original model's at L0, and "
    f"that {100 * FINDS:.0f}% or more of what is hidden there is found. Where the 95% interval of a number includes "
    "its limit, the page says that it cannot be told. A difference of perplexity counts if its 95% interval over "
    f"documents (Student's t) excludes 0, and one of retrieval if p is below {CLEAR:g} on the same prompts."
)
Reached = Literal["yes", "no", "unclear", "unmeasured", "not finite"]
WORKS: dict[tuple[Reached, Reached], str] = {
    ("yes", "yes"): "Works",
    ("yes", "no"): "Works by perplexity, but forgets what is hidden",
    ("yes", "unclear"): "Works by perplexity, with too few trials to tell retrieval",
    ("yes", "unmeasured"): "Works by perplexity, retrieval not measured",
    ("yes", "not finite"): "Works by perplexity, retrieval is not finite",
    ("no", "yes"): "Finds what is hidden, but perplexity is higher",
    ("no", "no"): "Does not work",
    ("no", "unclear"): "Does not work: perplexity is higher",
    ("no", "unmeasured"): "Does not work: perplexity is higher",
    ("no", "not finite"): "Does not work: perplexity is higher",
    ("unclear", "yes"): "Finds what is hidden, with too few documents to tell perplexity",
    ("unclear", "no"): "Forgets what is hidden, with too few documents to tell perplexity",
    ("unclear", "unclear"): "Cannot be told from so few documents and trials",
    ("unclear", "unmeasured"): "Cannot be told from so few documents, retrieval not measured",
    ("unclear", "not finite"): "Cannot be told from so few documents, retrieval is not finite",
}


@dataclass(frozen=True)
class Verdict:
    """A verdict in a few words, and the numbers behind it.

    Args:
        question: Question of a person.
        verdict: Answer in a few words.
        why: Sentences with all numbers.
        numbers: Numbers that decided, in a few words.
        advice: What to do next, in a few words; empty if nothing is missing.
    """

    question: str
    verdict: str
    why: str
    numbers: str = ""
    advice: str = ""

    def clause(self) -> str:
        """Return the answer as a clause with its numbers and the advice."""
        numbers = f" ({self.numbers})" if self.numbers else ""
        return self.verdict[0].lower() + self.verdict[1:] + numbers + (f"; {self.advice}" if self.advice else "")


def answers(run: LoadedRun) -> tuple[Verdict, ...]:
    """Return the answers: does it work, what does it cost, is it better than a closed form, and which engines run it.

    There are none without perplexities, and the last one needs an exported checkpoint.
    """
    candidate = subject(run)
    if candidate is None:
        return ()
    engines = () if run.checkpoint is None else (_engines(run),)
    return _works(run, candidate), _costs(run, candidate), _better(run, candidate), *engines


def sentences(run: LoadedRun) -> list[str]:
    """Return the verdict in at most three sentences: works, cost and gain, engines."""
    candidate = subject(run)
    if candidate is None and run.results.get("retrieval"):
        return _retrieval_alone(run)
    if candidate is None:
        command = f"longrope eval {run.results.model or 'MODEL'} … --factors {run.name}"
        return ["Nothing was measured on test documents yet.", f"Run {command}."]
    works, costs, better, *engines = answers(run)
    length, original = lengths_of(run)[-1], run.results.rope.original_length
    lines = [
        f"“{run.label(candidate)}” at {length:,} tokens: {works.clause()}.",
        f"At {original:,} tokens (L0) it {costs.clause()}; at {length:,} it is {better.clause()}.",
    ]
    if engines:
        return [*lines, f"Exported, it is {engines[0].clause()}."]
    if run.results.candidates[candidate].scaling is None:
        return lines
    return [*lines, "To see which engines run it as made, export it and add --checkpoint FOLDER to longrope report."]


def _retrieval_alone(run: LoadedRun) -> list[str]:
    """Return what each candidate finds at the longest length, for a run of retrieval tasks alone."""
    scores = run.results.get("retrieval")
    longest = max(record.length for records in scores.values() for record in records)
    rates = {candidate: retrieval_rate(run, candidate, longest) for candidate in scores}
    clauses = [f"“{run.label(candidate)}” finds {share(rate)} of what is hidden" for candidate, rate in rates.items()]
    return [f"At {longest:,} tokens {'; '.join(clauses)}.", "Perplexity was not measured."]


def verdict_of(folder: Path) -> list[str]:
    """Return the verdict on the run in a folder in at most three sentences, as the end of an extension prints it.

    Raises:
        LongRopeError: If the folder holds no results or damaged ones.
    """
    (run,) = read_runs([folder])
    return sentences(run)


def headlines(runs: Sequence[LoadedRun]) -> list[str]:
    """Return the headline of each run, after the run's name if there are several."""
    return [f"{run.name}: {headline(run)}" if len(runs) > 1 else headline(run) for run in runs]


def headline(run: LoadedRun) -> str:
    """Return the sentences of the verdict in one text."""
    return " ".join(sentences(run))


def subject(run: LoadedRun) -> str | None:
    """Return the candidate that the report is about.

    It is ``extended`` if there is one, else the best candidate that is not a scheme, else the best one. A row of the
    long factors alone is not meant where the extension itself was measured.
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
    alone = {long_alone(run, name) for name in others}
    searched = [name for name in others if not is_scheme(name) and name not in alone]
    return min(searched or others, key=lambda name: values[name], default="original" if values else None)


def _works(run: LoadedRun, candidate: str) -> Verdict:
    length, original = lengths_of(run)[-1], run.results.rope.original_length
    value, base = perplexity_at(run, candidate, length), perplexity_at(run, "original", original)
    rate, beyond = retrieval_rate(run, candidate, length), perplexity_at(run, "original", length)
    question = f"Does it work at {short_length(length)} tokens?"
    numbers = f"perplexity {plain(value)}"
    numbers += f", the original model's {plain(base)} at {original:,}" if base.value is not None else ""
    numbers += f"; finds {share(rate)} of what is hidden" if rate.value is not None else ""
    why = f"P{numbers[1:]}."
    if candidate != "original" and beyond.value is not None:
        why += f" The original model has {plain(beyond)} at {length:,} tokens."
    if rate.value is None:
        why += " Retrieval was not measured there." if rate.finite else " Retrieval is not finite there."
    if not all(number.finite for number in (value, base, beyond, rate)):
        why += f" {suspect(run.results.dtype)}"
    if length <= original:
        return Verdict(question, "No length above L0 was measured", why)
    if value.value is None:
        return Verdict(question, "Cannot be told: perplexity is not finite", why)
    if base.value is None:
        against = "nothing to hold it against" if base.finite else "an original model whose perplexity is not finite"
        return Verdict(question, f"Perplexity {plain(value)}, with {against}", why)
    gap = perplexity_gap(run, candidate, "original", length, against_length=original)
    states = _holds(gap), _finds(rate)
    return Verdict(question, WORKS[states], why, numbers, _advice(*states))


def _advice(holds: Reached, finds: Reached) -> str:
    """Return what to do next where an extension does not work, or that cannot be told."""
    missing = [name for name, state in (("--documents", holds), ("--trials", finds)) if state == "unclear"]
    if "no" in (holds, finds):
        return "fine-tune it (longrope plan, longrope extend), or aim at a shorter length"
    return f"measure again with more {' and '.join(missing)}" if missing else ""


def _holds(gap: PerplexityGap | None) -> Reached:
    """Return whether perplexity at L holds the original model's at L0."""
    above = None if gap is None else gap.above(100 * (HOLDS - 1))
    return "unclear" if above is None else "no" if above else "yes"


def _finds(rate: Number) -> Reached:
    """Return whether enough of what is hidden is found."""
    if rate.value is None:
        return "unmeasured" if rate.finite else "not finite"
    low, high = rate.interval or (0.0, 1.0)
    return "yes" if low >= FINDS else "no" if high < FINDS else "unclear"


def _costs(run: LoadedRun, candidate: str) -> Verdict:
    original = run.results.rope.original_length
    question = f"What does it cost at {short_length(original)} tokens?"
    gap, lost = perplexity_gap(run, candidate, "original", original), short_context(run, candidate)
    if not lost.finite:
        why = f"A perplexity is not finite. {suspect(run.results.dtype)}"
        return Verdict(question, "Has a perplexity that is not finite", why)
    if lost.value is None:
        advice = f"add {original} to --lengths"
        why = "It needs the original model and this row at L0."
        return Verdict(question, "Was not measured", why, advice=advice)
    number = lost if gap is None else gap.percent
    pair = retrieval_gap(run, candidate, "original", original)
    alone = long_alone(run, candidate)
    numbers = f"perplexity {percent(number)}"
    numbers += f", retrieval {pair.points:+.1f} points" if pair is not None and pair.finite else ""
    if alone is not None and short_context(run, alone).value is not None:
        gap_alone = perplexity_gap(run, alone, "original", original)
        number_alone = short_context(run, alone) if gap_alone is None else gap_alone.percent
        static = run.checkpoint is not None and run.checkpoint.is_static
        form = "as exported, with the long factors alone" if static else "long factors alone, as in a static export"
        numbers += f"; {form}, {percent(number_alone)}"
    why = f"Against the original model at its own length: {numbers}."
    above, less = None if gap is None else gap.above(), pair is not None and pair.clear and pair.points < 0
    if above:
        verdict = f"Costs {number.value or 0:.1f}% perplexity" + (" and retrieval" if less else "")
    elif less:
        verdict = "Costs retrieval"
    else:
        verdict = "Costs nothing that can be measured on these texts" if above is None else "Costs nothing"
    return Verdict(question, verdict, why, numbers)


def _better(run: LoadedRun, candidate: str) -> Verdict:
    question, length = "Is it better than the best closed form here?", lengths_of(run)[-1]
    if is_scheme(candidate):
        return Verdict(question, "A closed form itself", "No row of searched factors was measured.")
    best = best_closed_form(run, length)
    if best is None:
        advice = "run longrope eval with --schemes yarn,heuristic"
        return Verdict(question, "Not compared with a closed form", f"R{advice[1:]}.", advice=advice)
    label, gap = run.label(best), perplexity_gap(run, candidate, best, length)
    if gap is None or gap.percent.value is None:
        why = f"A perplexity is not finite. {suspect(run.results.dtype)}"
        return Verdict(question, f"Not compared with the best closed form, {label}", why)
    pair = retrieval_gap(run, candidate, best, length)
    numbers = f"perplexity {percent(gap.percent)}"
    numbers += f", lower on {gap.wins} of {gap.documents} documents" if gap.documents > 1 else ", on one document"
    if pair is not None and pair.finite:
        numbers += f"; retrieval {pair.points:+.1f} points, p = {pair.p:.2g}"
    rates = [retrieval_rate(run, name, length) for name in (candidate, best)]
    why = f"Of the closed forms, {label} has the lowest perplexity at {length:,} tokens. Against it: {numbers}."
    if all(rate.value is not None for rate in rates):
        why += f" Retrieval {share(rates[0])} against {share(rates[1])}."
    verdict = f"{_compared(gap, pair)} the best closed form, {label}"
    return Verdict(question, verdict, why, numbers)


def _compared(gap: PerplexityGap, pair: RetrievalDifference | None) -> str:
    """Return the words between a candidate and the best closed form."""
    above, points = gap.above(), pair.points if pair is not None and pair.clear else 0.0
    if above is None and not points:
        return "Not clearly different from"
    worse = "in perplexity" if above else "in retrieval" if points < 0 else ""
    better = "in retrieval" if points > 0 else "in perplexity" if above is False else ""
    if worse and better:
        return f"Better {better} and worse {worse} than"
    if better:
        return f"Better {'in perplexity and retrieval' if above is False and points > 0 else better} than"
    return f"Worse {'in perplexity and retrieval' if above and points < 0 else worse} than"


def _engines(run: LoadedRun) -> Verdict:
    assert run.checkpoint is not None
    verdict, why = engines_verdict(run.checkpoint)
    return Verdict("Which engines run it as made?", verdict, why)
