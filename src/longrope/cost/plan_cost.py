"""What a plan costs on a model: tokens, FLOPs, memory and time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from longrope.cost import peak_memory
from longrope.cost.device_speed import DeviceSpeed
from longrope.cost.memory_check import check_pass_memory
from longrope.cost.model_shape import Flops, ModelShape
from longrope.errors import LongRopeError
from longrope.models.device_memory import free_memory
from longrope.rope import Rope
from longrope.schemes import COMPARED
from longrope.search.auto import Auto
from longrope.search.find import FINALISTS
from longrope.search.gradient import Gradient
from longrope.search.protocol import BACKWARD_COST
from longrope.search.registry import Method, method, planned
from longrope.stages.pipeline import PARTS
from longrope.stages.plan import Plan
from longrope.stages.plan_tables import Finetune, Search

REMEDIES = "a window, lora, a search without gradients (method = 'cma'), or more devices"


@dataclass(frozen=True)
class Cost:
    """Of one part of a plan.

    Args:
        part: its name.
        length: in tokens.
        searched: token-evaluations of the search and of choosing its winner: 1 for every token of a forward pass, 3
            with the backward pass.
        trained: tokens that weights are trained on.
        work: FLOPs by the dtype that they are done in.
        memory: peak bytes on one device, one sequence at a time.
        waits: bytes of main memory beside them, for what is too much for a GPU.
    """

    part: str
    length: int
    searched: int
    trained: int
    work: Mapping[str, Flops]
    memory: int
    waits: int = 0

    @property
    def flops(self) -> float:
        """Of all dtypes."""
        return sum(work.flops for work in self.work.values())

    def seconds(self, rates: Mapping[str, DeviceSpeed]) -> float:
        """How long it takes one device, given its rates by dtype."""
        return sum(rates[dtype].seconds(work) for dtype, work in self.work.items())


def costs(plan: Plan, anatomy: ModelShape, rope: Rope) -> list[Cost]:
    """Of every stage, of the recovery and of the evaluation, in this order.

    Not counted: what retrieval tasks generate, loading models and documents, and writing files.
    """
    found = _stages(plan, anatomy, rope)
    if plan.recovery is not None:
        lengths = plan.recovered(rope.original_length)
        part = _search(plan.recovery.search, lengths, anatomy, starts=len(PARTS), compared=0)
        found.append(_joined("recovery", max(lengths), [part]))
    measured = plan.evaluated(rope.original_length)
    if measured:
        tuned = sum(stage.finetune is not None for stage in plan.stages)
        longest, rows = max(measured), 2 + len(plan.evaluation.schemes) + len(plan.stages) + tuned
        count, memory = plan.evaluation.documents * rows, peak_memory.of_pass(anatomy, longest, gradient=False)
        probes = rows * plan.evaluation.trials * len(plan.evaluation.retrieval)
        work = anatomy.forward(longest).times(count)
        work = sum((anatomy.forward(length).times(probes) for length in measured), work)
        tokens = count * longest + probes * sum(measured)
        waits = peak_memory.moved_in_pass(anatomy, longest, gradient=False)
        found.append(Cost("evaluation", longest, tokens, 0, {anatomy.dtype: work}, memory, waits))
    return found


def check_plan_memory(plan: Plan, config: PreTrainedConfig, *, dtype: str, device: str) -> None:
    """Refuse a plan whose parts cannot fit on one device.

    Raises:
        LongRopeError: if a part takes more memory than the device has free; says which, and what would help.
    """
    free = free_memory(device)
    if free is None:
        return
    main = free_memory("cpu") or 0
    for part in costs(plan, ModelShape.of(config, dtype, device), Rope.of(config)):
        if part.waits > main:
            raise LongRopeError(
                f"{part.part}: length = {part.length} takes about {part.waits / 2**30:.1f} GiB of main memory beside "
                f"{device} where {main / 2**30:.1f} GiB are free: {REMEDIES}"
            )
        if part.memory > free:
            raise LongRopeError(
                f"{part.part}: length = {part.length} takes about {part.memory / 2**30:.1f} GiB where {device} has "
                f"{free / 2**30:.1f} GiB free: {REMEDIES}"
            )


def check_search_memory(chosen: Method, config: PreTrainedConfig, length: int, *, rows: int, **place: Any) -> None:
    """Refuse a search whose passes cannot fit into memory, those backwards too if the method has them.

    Args:
        chosen: the method.
        config: of the model.
        length: of a pass, in tokens.
        rows: of a pass.
        place: dtype, device and workers as for `check_pass_memory`.

    Raises:
        LongRopeError: as `check_pass_memory` does.
    """
    check_pass_memory(config, length, batch=rows, **place)
    if slopes(chosen):
        check_pass_memory(config, length, batch=1, gradient=True, **place)


def _stages(plan: Plan, anatomy: ModelShape, rope: Rope) -> list[Cost]:
    found = []
    for i, stage in enumerate(plan.stages):
        parts = []
        if stage.factors == "search":
            starts = len(method(stage.search.method).starts)
            parts.append(_search(stage.search, [stage.length], anatomy, starts=starts, compared=len(COMPARED)))
        if stage.finetune is not None:
            parts.append(_finetune(stage.finetune, stage.length, anatomy, rope))
        found.append(_joined(f"stage {i + 1}", stage.length, parts))
    return found


def _joined(name: str, length: int, parts: Sequence[Cost]) -> Cost:
    work: dict[str, Flops] = {}
    for dtype, part in (pair for one in parts for pair in one.work.items()):
        work[dtype] = work.get(dtype, Flops()) + part
    searched, trained = sum(one.searched for one in parts), sum(one.trained for one in parts)
    memory, waits = (max((getattr(one, of) for one in parts), default=0) for of in ("memory", "waits"))
    return Cost(name, length, searched, trained, work, memory, waits)


def _search(search: Search, lengths: Sequence[int], anatomy: ModelShape, *, starts: int, compared: int) -> Cost:
    """Of a search, and of judging the finalists, the starts and what is compared with them on as many other items."""
    kinds = 1 if search.needles in (0, 1) else 2  # an item for its perplexity, one with needles
    chosen = method(search.method, search.population, max(lengths))
    lengths = [min(length, search.window or length) for length in lengths]
    items = [length for length in lengths for _ in range(kinds * search.documents)]
    chosen, _ = planned(chosen, items, search.budget if search.population is None else None)
    once = sum(items) / len(items)
    more = len(items) * (starts - len(chosen.starts))
    passes = round(min(chosen.passes(len(items)) + more, (search.budget or math.inf) / once))
    steps = min(slopes(chosen), passes // BACKWARD_COST)
    judged = len(items) * (FINALISTS + starts + compared)
    each = [(anatomy.forward(length), anatomy.backward(length, trained=False)) for length in lengths]
    forward, backward = (sum(work, Flops()).times(1 / len(lengths)) for work in zip(*each, strict=True))
    work = forward.times(passes - BACKWARD_COST * steps + judged) + backward.times(steps)
    formulas = peak_memory.of_pass, peak_memory.moved_in_pass
    memory, waits = (of(anatomy, max(lengths), gradient=steps > 0) for of in formulas)
    return Cost("search", max(lengths), round((passes + judged) * once), 0, {anatomy.dtype: work}, memory, waits)


def slopes(chosen: Method) -> int:
    """How many of a method's passes have a backward pass."""
    chosen = chosen.gradient if isinstance(chosen, Auto) else chosen
    return chosen.steps if isinstance(chosen, Gradient) else 0


def _finetune(how: Finetune, length: int, anatomy: ModelShape, rope: Rope) -> Cost:
    """Of training; short documents see no other."""
    tokens, short = how.sequence(length), min(rope.original_length, how.sequence(length))
    long_one, short_one = (anatomy.backward(size, trained=not how.lora) for size in (tokens, short))
    sequence = long_one.times(1 - how.short) + short_one.times(how.short * tokens / short)
    mixed = how.dtype == "bfloat16"
    formulas = peak_memory.of_training, peak_memory.moved_in_training
    memory, waits = (of(anatomy, tokens, lora=how.lora, mixed=mixed) for of in formulas)
    work = sequence.times(how.count(length) * how.batch)
    return Cost("finetune", length, 0, how.trained(length), {how.dtype: work}, memory, waits)
