"""Whether an extension is better than the best closed form: the verdict's third question."""

from __future__ import annotations

from longrope.errors import suspect
from longrope.evaluation.figure import percent, share
from longrope.evaluation.paired_retrieval import RetrievalDifference
from longrope.report.comparison import (
    PerplexityGap,
    best_closed_form,
    lengths_of,
    perplexity_gap,
    perplexity_record,
    retrieval_gap,
    retrieval_rate,
)
from longrope.report.load import LoadedRun
from longrope.report.verdict_answer import VerdictAnswer
from longrope.schemes import is_scheme


def better(run: LoadedRun, candidate: str) -> VerdictAnswer:
    """Return whether a candidate is better than the best closed form at the longest length."""
    question, length = "Is it better than the best closed form here?", lengths_of(run)[-1]
    if candidate == "original":
        return VerdictAnswer(question, "The model as it is", "No other row was measured.")
    if is_scheme(candidate):
        return VerdictAnswer(question, "A closed form itself", "No row of searched factors was measured.")
    best = best_closed_form(run, length)
    schemes = [name for name in run.results.candidates if is_scheme(name) and perplexity_record(run, name, length)]
    if best is None and schemes:
        names = ", ".join(map(run.label, schemes))
        why = f"Perplexity of {names} at {length:,} tokens is not finite. {suspect(run.results.dtype)}"
        return VerdictAnswer(question, "Not compared: no closed form has a finite perplexity", why)
    if best is None:
        advice = "run longrope eval with --schemes yarn,heuristic"
        return VerdictAnswer(question, "Not compared with a closed form", f"R{advice[1:]}.", advice=advice)
    label, gap = run.label(best), perplexity_gap(run, candidate, best, length)
    if gap is None or gap.percent.value is None:
        infinite = f"A perplexity is not finite. {suspect(run.results.dtype)}"
        why = "These results do not hold the losses of the same documents." if gap is None else infinite
        return VerdictAnswer(question, f"Not compared with the best closed form, {label}", why)
    pair = retrieval_gap(run, candidate, best, length)
    numbers = f"perplexity {percent(gap.percent)}"
    numbers += f", lower on {gap.wins} of {gap.documents} documents" if gap.documents > 1 else ", on one document"
    if pair is not None and pair.finite:
        sure = "on one text" if pair.texts == 1 else f"p = {pair.p:.2g}"
        numbers += f"; retrieval {pair.points:+.1f} points, {sure}"
    rates = [retrieval_rate(run, name, length) for name in (candidate, best)]
    why = f"Of the closed forms, {label} has the lowest perplexity at {length:,} tokens. Against it: {numbers}."
    if all(rate.value is not None for rate in rates):
        why += f" Retrieval {share(rates[0])} against {share(rates[1])}."
    verdict = f"{_compared(gap, pair)} the best closed form, {label}"
    return VerdictAnswer(question, verdict, why, numbers)


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
