"""The costs of a plan, for people and machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from longrope.cost.device_speed import DeviceSpeed
    from longrope.cost.plan_cost import Cost
    from longrope.stages.plan import Plan


@dataclass(frozen=True)
class Report:
    """What a plan costs, how fast the device is by dtype (nothing if it was not timed), and what is amiss."""

    parts: Sequence[Cost]
    rates: Mapping[str, DeviceSpeed]
    advice: Sequence[str]

    def seconds(self, part: Cost) -> float | None:
        """Of a part, if the device was timed."""
        return part.seconds(self.rates) if self.rates else None


def report(plan: Plan, config: PreTrainedConfig, device: str, *, dtype: str, measure: bool) -> Report:
    """The costs of a plan for a model.

    Args:
        plan: what is to be done.
        config: of the model.
        device: where.
        dtype: of searches and evaluations; auto: the checkpoint's.
        measure: whether the device is timed.

    Raises:
        LongRopeError: if the dtype is unknown.
    """
    from longrope.cost.device_speed import measure_device_speed
    from longrope.cost.model_shape import ModelShape
    from longrope.cost.plan_cost import REMEDIES, costs
    from longrope.models.device_memory import device_memory
    from longrope.rope import Rope
    from longrope.stages.plan_advice import advice

    rope = Rope.of(config)
    parts = costs(plan, ModelShape.of(config, dtype, device), rope)
    dtypes = sorted({dtype for part in parts for dtype in part.work}) if measure else []
    rates = {dtype: measure_device_speed(config, device=device, dtype=dtype) for dtype in dtypes}
    large = [
        f"{part.part}: needs about {si(needed, 'B')} at its peak where {place} has {si(there, 'B')}: {REMEDIES}"
        for part in parts
        for place, needed, there in (
            (device, part.memory, device_memory(device)),
            ("main memory", part.waits, device_memory("cpu")),
        )
        if there is not None and needed > there
    ]
    return Report(parts, rates, [*advice(plan, rope), *large])


def as_record(report: Report) -> dict[str, Any]:
    """As JSON values."""
    parts = [
        {
            "part": part.part,
            "length": part.length,
            "search_tokens": part.searched,
            "train_tokens": part.trained,
            "flops": part.flops,
            "memory_bytes": part.memory,
            "seconds": report.seconds(part),
        }
        for part in report.parts
    ]
    rates = {dtype: vars(rate) for dtype, rate in report.rates.items()}
    return {"costs": parts, "flops_per_second": rates, "advice": list(report.advice)}


def show(report: Report, title: str, *, err: bool) -> None:
    """Print the table and the advice, to standard error if the plan itself goes to standard output."""
    from rich.console import Console
    from rich.table import Table

    table = Table("part", "length", "search tokens", "train tokens", "FLOP", "peak memory", "time", title=title)
    for part in report.parts:
        table.add_row(part.part, f"{part.length:,}", *_cells([part], report))
    table.add_section()
    table.add_row("all", "", *_cells(report.parts, report))
    console = Console(stderr=err, markup=False)
    console.print(table)
    for dtype, rate in report.rates.items():
        console.print(
            f"Here, in {dtype}: {si(rate.linear, 'FLOP/s')} in layers, {si(rate.attention, 'FLOP/s')} in attention."
        )
    console.print("One device, one sequence at a time; tensors only: an allocator may hold more.")
    for line in report.advice:
        console.print(f"Advice: {line}.", style="yellow", markup=False, highlight=False, soft_wrap=True)


def _cells(parts: Sequence[Cost], report: Report) -> list[str]:
    times = [report.seconds(part) for part in parts]
    return [
        si(sum(part.searched for part in parts)),
        si(sum(part.trained for part in parts)),
        si(sum(part.flops for part in parts)),
        si(max(part.memory for part in parts), "B"),
        span(sum(time for time in times if time is not None)) if report.rates else "-",
    ]


def si(value: float, unit: str = "") -> str:
    """Three digits and a prefix.

    >>> si(0), si(16384), si(2.5e15, "FLOP")
    ('0', '16.4 k', '2.5 PFLOP')
    """
    prefixes = ["", "k", "M", "G", "T", "P", "E", "Z", "Y"]
    while value >= 999.5 and len(prefixes) > 1:
        value /= 1000
        del prefixes[0]
    return f"{value:.3g} {prefixes[0]}{unit}".rstrip()


def span(seconds: float) -> str:
    """A time as people say it.

    >>> span(7.2), span(99.7), span(1800), span(86400), span(1e7)
    ('7.2 s', '1.7 min', '30 min', '24 h', '116 d')
    """
    for unit, size, most in (("s", 1, 99.5), ("min", 60, 99.5), ("h", 3600, 48)):
        if seconds < most * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds / 86400:.3g} d"
