"""The table of measurements, in the order of their figures in a report."""

from __future__ import annotations

from collections.abc import Iterable

from longrope.errors import LongRopeError, unknown
from longrope.evaluation.by_length import PERPLEXITY
from longrope.evaluation.by_position import POSITIONS
from longrope.evaluation.differences import DIFFERENCES
from longrope.evaluation.key_tokens import KEY_TOKENS
from longrope.evaluation.lm_eval import TASKS
from longrope.evaluation.measurement import EvalSpec, Measurement
from longrope.evaluation.paired_retrieval import PAIRED_RETRIEVAL
from longrope.evaluation.retrieval import RETRIEVAL
from longrope.evaluation.short_context import SHORT_CONTEXT
from longrope.evaluation.sliding_window import SLIDING

MEASUREMENTS: dict[str, Measurement] = {
    row.name: row
    for row in (
        PERPLEXITY,
        POSITIONS,
        RETRIEVAL,
        SLIDING,
        KEY_TOKENS,
        SHORT_CONTEXT,
        TASKS,
        DIFFERENCES,
        PAIRED_RETRIEVAL,
    )
}


def check_spec(spec: EvalSpec, candidates: Iterable[str]) -> None:
    """Refuse a spec that the candidates or the table do not fit.

    Args:
        spec: What to measure.
        candidates: Names of the candidates.

    Raises:
        LongRopeError: If a candidate or a measurement does not exist, or the stride is above every length.
    """
    names = list(candidates)
    if spec.key_tokens is not None and spec.key_tokens not in names:
        raise LongRopeError(f"key_tokens = {spec.key_tokens!r}: not a candidate. Choose one of {', '.join(names)}.")
    longest = max(spec.lengths, default=0)
    if spec.stride is not None and spec.stride > longest:
        raise LongRopeError(f"stride = {spec.stride}: above the longest of lengths, {longest}. Give a smaller one.")
    requested_measurements(spec)


def requested_measurements(spec: EvalSpec) -> list[Measurement]:
    """Return the rows that a spec requests.

    Raises:
        LongRopeError: If the spec names a row that does not exist, or one that a field of the spec requests.
    """
    for name in spec.measurements:
        if name not in MEASUREMENTS:
            raise unknown("measurements", name, MEASUREMENTS)
        if MEASUREMENTS[name].requested is not None:
            raise LongRopeError(
                f"measurements = {name!r}: it is not requested by name. It is measured always, or has an option."
            )
    return [row for row in MEASUREMENTS.values() if row.is_requested(spec)]
