"""The questions that a person asks of an extension, answered from the numbers and their intervals."""

from __future__ import annotations

import math
from pathlib import Path
from shlex import quote

from longrope.evaluation.figure import share
from longrope.evaluation.paired_retrieval import CLEAR
from longrope.report.better_answer import better
from longrope.report.comparison import lengths_of, long_alone, perplexity_at, retrieval_rate
from longrope.report.costs_answer import costs
from longrope.report.engine_verdict import engines_verdict
from longrope.report.load import LoadedRun, read_runs
from longrope.report.verdict_answer import FINDS, HOLDS, VerdictAnswer
from longrope.report.works_answer import works
from longrope.schemes import is_scheme

RULE = (
    f"“Works” means that perplexity at the longest length is at most {HOLDS:g} times the original model's at L0, and "
    f"that {100 * FINDS:.0f}% or more of what is hidden there is found. If the 95% interval of a number includes its "
    "limit, the page says that it cannot be told. It also says so if the interval of a cost at L0 reaches beyond "
    f"{100 * (HOLDS - 1):.0f}%. A difference of perplexity counts if its 95% interval over "
    f"documents (Student's t) excludes 0, and one of retrieval if p is below {CLEAR:g} on the same prompts. “Run as "
    "made” means that an engine computes with the factors of the checkpoint."
)


def answers(run: LoadedRun) -> tuple[VerdictAnswer, ...]:
    """Return the answers: does it work, what does it cost, is it better than a closed form, and which engines run it.

    There are none without perplexities, and the last one needs an exported checkpoint.
    """
    candidate = subject(run)
    if candidate is None:
        return ()
    engines = () if run.checkpoint is None else (engines_verdict(run.checkpoint),)
    return works(run, candidate), costs(run, candidate), better(run, candidate), *engines


def sentences(run: LoadedRun) -> list[str]:
    """Return the verdict in at most three sentences: works, cost and gain, engines."""
    candidate = subject(run)
    if candidate is None and any(run.results.get("retrieval").values()):
        return _retrieval_alone(run)
    if candidate is None:
        model = quote(run.results.model or "MODEL")
        return ["Nothing was measured on test documents yet.", f"Run longrope eval {model} … --factors FOLDER."]
    success, cost, gain, *engines = answers(run)
    length, original = lengths_of(run)[-1], run.results.rope.original_length
    lines = [
        f"“{run.label(candidate)}” at {length:,} tokens: {success.clause()}.",
        f"At {original:,} tokens (L0) it {cost.clause()}; at {length:,} it is {gain.clause()}.",
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
