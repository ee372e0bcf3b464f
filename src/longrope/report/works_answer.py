"""Whether an extension works at its longest length: the verdict's first question."""

from __future__ import annotations

from typing import Literal

from longrope.errors import suspect
from longrope.evaluation.figure import Number, plain, share
from longrope.report.comparison import (
    PerplexityGap,
    lengths_of,
    perplexity_at,
    perplexity_gap,
    retrieval_rate,
    shared_documents,
)
from longrope.report.load import LoadedRun
from longrope.report.verdict_answer import FINDS, HOLDS, VerdictAnswer
from longrope.units import short_length

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


def works(run: LoadedRun, candidate: str) -> VerdictAnswer:
    """Return whether a candidate keeps perplexity and finds what is hidden at the longest length."""
    length, original = lengths_of(run)[-1], run.results.rope.original_length
    value, base = perplexity_at(run, candidate, length), perplexity_at(run, "original", original)
    rate, beyond = retrieval_rate(run, candidate, length), perplexity_at(run, "original", length)
    question = f"Does it work at {short_length(length)} tokens?"
    numbers = f"perplexity {plain(value)}"
    numbers += f", the original model's {plain(base)} at {original:,}" if base.value is not None else ""
    trained_form = ", in lines of a form that it was trained on" if _trained_on_questions(run, candidate) else ""
    numbers += f"; finds {share(rate)} of what is hidden{trained_form}" if rate.value is not None else ""
    why = f"P{numbers[1:]}."
    if candidate != "original" and beyond.value is not None:
        why += f" The original model has {plain(beyond)} at {length:,} tokens."
    if rate.value is None:
        why += " Retrieval was not measured there." if rate.finite else " Retrieval is not finite there."
    why += shared_documents(run)
    if not all(number.finite for number in (value, base, beyond, rate)):
        why += f" {suspect(run.results.dtype)}"
    if length <= original:
        return VerdictAnswer(question, "No length above L0 was measured", why)
    if value.value is None:
        return VerdictAnswer(question, "Cannot be told: perplexity is not finite", why)
    if base.value is None:
        against = "nothing to hold it against" if base.finite else "an original model whose perplexity is not finite"
        return VerdictAnswer(question, f"Perplexity {plain(value)}, with {against}", why)
    gap = perplexity_gap(run, candidate, "original", length, against_length=original)
    states = _holds(gap), _finds(rate)
    return VerdictAnswer(question, WORKS[states], why, numbers, _advice(*states))


def _trained_on_questions(run: LoadedRun, candidate: str) -> bool:
    """Return whether all questions are for `key = word word` lines, and the candidate's training planted such lines."""
    tasks = {record.task for record in run.results.get("retrieval").get(candidate, ())}
    planted = {training.weights for training in run.trainings if training.needles}
    return tasks == {"recall"} and run.results.candidates[candidate].weights in planted


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
