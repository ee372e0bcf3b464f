"""What an extension costs at L0: the verdict's second question."""

from __future__ import annotations

from longrope.errors import suspect
from longrope.evaluation.figure import percent
from longrope.report.comparison import long_alone, perplexity_gap, retrieval_gap, short_context
from longrope.report.load import LoadedRun
from longrope.report.verdict_answer import HOLDS, VerdictAnswer
from longrope.units import short_length


def costs(run: LoadedRun, candidate: str) -> VerdictAnswer:
    """Return what a candidate costs against the original model at L0."""
    original = run.results.rope.original_length
    question = f"What does it cost at {short_length(original)} tokens?"
    if candidate == "original":
        return VerdictAnswer(question, "Is the model as it is", "No other row was measured.")
    gap, lost = perplexity_gap(run, candidate, "original", original), short_context(run, candidate)
    if not lost.finite:
        why = f"A perplexity is not finite. {suspect(run.results.dtype)}"
        return VerdictAnswer(question, "Has a perplexity that is not finite", why)
    if lost.value is None:
        advice = f"add {original} to --lengths"
        why = "It needs the original model and this row at L0."
        return VerdictAnswer(question, "Was not measured", why, advice=advice)
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
    if gap is None and not less:
        unknown = "Differs by an amount that cannot be told without the losses of each document"
        return VerdictAnswer(question, unknown, why, numbers, "measure again")
    if gap is not None and above is None and gap.may_exceed(100 * (HOLDS - 1)) and not less:
        few = f"Differs by an amount that {gap.documents} document{'s' if gap.documents > 1 else ''} cannot tell"
        return VerdictAnswer(question, few, why, numbers, "measure again with more --documents")
    if above:
        verdict = f"Costs {number.value or 0:.1f}% perplexity" + (" and retrieval" if less else "")
    elif less:
        verdict = "Costs retrieval"
    else:
        verdict = "Costs nothing that can be measured on these texts" if above is None else "Costs nothing"
    return VerdictAnswer(question, verdict, why, numbers)
