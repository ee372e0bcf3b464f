"""The costs of a plan, for people and machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from longrope.cost.device_speed import DeviceSpeed
    from longrope.stages.plan import Plan
    from longrope.stages.plan_cost import Cost


@dataclass(frozen=True)
class Report:
    """The costs of a plan's steps, the device's speeds by dtype (empty if it was not timed), and advice."""

    steps: Sequence[Cost]
    speeds: Mapping[str, DeviceSpeed]
    advice: Sequence[str]

    def seconds(self, step: Cost) -> float | None:
        """Return the seconds of a step; None if the device was not timed."""
        return step.seconds(self.speeds) if self.speeds else None


def report(plan: Plan, config: PreTrainedConfig, device: str, *, dtype: str, measure: bool) -> Report:
    """Compute the costs of a plan for a model.

    Args:
        plan: The plan.
        config: The model's config.
        device: A torch device.
        dtype: Dtype of searches and evaluations; ``auto`` is the checkpoint's.
        measure: Whether to time the device.

    Raises:
        LongRopeError: If the dtype is unknown.
    """
    from longrope.cost.device_speed import measure_device_speed
    from longrope.cost.model_shape import ModelShape
    from longrope.rope import Rope
    from longrope.stages.plan_advice import advice
    from longrope.stages.plan_cost import costs

    rope = Rope.of(config)
    steps = costs(plan, ModelShape.of(config, dtype, device), rope)
    computed = {each for step in steps for each in step.flops} if measure else set()
    trained = {each.dtype for each in computed if each.kind != "passes"}
    speeds = {
        dtype: measure_device_speed(config, device=device, dtype=dtype, training=dtype in trained)
        for dtype in sorted({each.dtype for each in computed})
    }
    return Report(steps, speeds, [*advice(plan, rope), *_memory_advice(steps, device)])


def _memory_advice(steps: Sequence[Cost], device: str) -> list[str]:
    """Return a line for each step that needs more memory than there is on the device or beside it."""
    from longrope.models.device_memory import device_memory
    from longrope.stages.plan_cost import REMEDIES

    memories = [(device, device_memory(device)), ("main memory", device_memory("cpu"))]
    lines = []
    for step in steps:
        for (memory, size), needed in zip(memories, (step.memory, step.main_memory), strict=True):
            if size is not None and needed > size:
                lines.append(
                    f"{step.name}: needs about {si(needed, 'B')} at its peak where {memory} has {si(size, 'B')}: "
                    f"{REMEDIES}"
                )
    return lines


def as_record(report: Report) -> dict[str, Any]:
    """Return the costs as JSON values."""
    steps = [
        {
            "part": step.name,
            "length": step.length,
            "search_tokens": step.search_tokens,
            "train_tokens": step.train_tokens,
            "flops": step.total_flops,
            "memory_bytes": step.memory,
            "seconds": report.seconds(step),
        }
        for step in report.steps
    ]
    speeds = {name: {"linear": speed.linear, "attention": speed.attention} for name, speed in report.speeds.items()}
    times = {name: {"all": speed.training, "adapters": speed.adapters} for name, speed in report.speeds.items()}
    return {"costs": steps, "flops_per_second": speeds, "times_in_training": times, "advice": list(report.advice)}


def show(report: Report, title: str, *, err: bool) -> None:
    """Print the table and the advice, to standard error if the plan itself goes to standard output."""
    from rich.console import Console
    from rich.table import Table

    table = Table("part", "length", "tokens read", "tokens trained", "FLOP", "peak memory", "time", title=title)
    for step in report.steps:
        table.add_row(step.name, f"{step.length:,}", *_columns([step], report))
    table.add_section()
    table.add_row("all", "", *_columns(report.steps, report))
    console = Console(stderr=err, markup=False)
    console.print(table)
    for dtype, speed in report.speeds.items():
        rates = f"{si(speed.linear, 'FLOP/s')} in layers, {si(speed.attention, 'FLOP/s')} in attention"
        training = f"; a FLOP of training takes {speed.training:.1f} times as long, with adapters {speed.adapters:.1f}"
        console.print(f"Here, in {dtype}: {rates}{training if speed.training != 1 else ''}.")
    console.print("For one device and one sequence at a time. Memory is that of tensors; the allocator may hold more.")
    for line in report.advice:
        console.print(f"Advice: {line}.", style="yellow", markup=False, highlight=False, soft_wrap=True)


def _columns(steps: Sequence[Cost], report: Report) -> list[str]:
    times = [report.seconds(step) for step in steps]
    return [
        si(sum(step.search_tokens for step in steps)),
        si(sum(step.train_tokens for step in steps)),
        si(sum(step.total_flops for step in steps)),
        si(max(step.memory for step in steps), "B"),
        span(sum(time for time in times if time is not None)) if report.speeds else "-",
    ]


def si(value: float, unit: str = "") -> str:
    """Format a number with three digits and a prefix.

    >>> si(0), si(16384), si(2.5e15, "FLOP")
    ('0', '16.4 k', '2.5 PFLOP')
    """
    prefixes = ["", "k", "M", "G", "T", "P", "E", "Z", "Y"]
    while value >= 999.5 and len(prefixes) > 1:
        value /= 1000
        del prefixes[0]
    return f"{value:.3g} {prefixes[0]}{unit}".rstrip()


def span(seconds: float) -> str:
    """Format a time in the unit that people would use.

    >>> span(7.2), span(99.7), span(1800), span(86400), span(1e7)
    ('7.2 s', '1.7 min', '30 min', '24 h', '116 d')
    """
    for unit, size, most in (("s", 1, 99.5), ("min", 60, 99.5), ("h", 3600, 48)):
        if seconds < most * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds / 86400:.3g} d"
