"""The costs of a plan on a model: tokens, FLOPs, memory and time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedConfig

from longrope.cost import peak_memory
from longrope.cost.device_speed import Computation, DeviceSpeed
from longrope.cost.model_shape import Flops, ModelShape
from longrope.errors import LongRopeError
from longrope.models.device_memory import free_memory
from longrope.objectives.frozen_samples import LARGEST_COST, expected_cost
from longrope.rope import Rope
from longrope.schemes import COMPARED
from longrope.search.find import FINALISTS
from longrope.search.leaders import LEADERS
from longrope.search.options import default_documents
from longrope.search.protocol import BACKWARD_COST
from longrope.search.registry import fit_to_budget, get_method
from longrope.stages.pipeline import RECOVERY_POWERS
from longrope.stages.plan import Plan
from longrope.stages.plan_tables import Finetune, Search, Stage
from longrope.stages.rate_test import JUDGED, RATES, STEPS

REMEDIES = "a window, lora, a search without gradients (method = 'cma'), or more devices"


@dataclass(frozen=True)
class Cost:
    """The cost of one step of a plan.

    Args:
        name: The step's name, such as ``stage 1``.
        length: Target length in tokens.
        search_tokens: Token-evaluations of the search and of choosing its winner: 1 for every token of a forward pass,
            3 with the backward pass.
        train_tokens: Tokens that weights are trained on.
        flops: FLOPs by what is computed: the dtype of the products, and whether it is a training.
        memory: Peak bytes on one device, one sequence at a time.
        main_memory: Bytes of main memory for what does not stay on a GPU.
    """

    name: str
    length: int
    search_tokens: int
    train_tokens: int
    flops: Mapping[Computation, Flops]
    memory: int
    main_memory: int = 0

    @property
    def total_flops(self) -> float:
        """FLOPs of all computations."""
        return sum(flops.total for flops in self.flops.values())

    def seconds(self, speeds: Mapping[str, DeviceSpeed]) -> float:
        """Return the seconds that one device takes, given its speeds by dtype."""
        return sum(speeds[each.dtype].seconds(flops, each.kind) for each, flops in self.flops.items())


def costs(plan: Plan, shape: ModelShape, rope: Rope) -> list[Cost]:
    """Return the costs of every stage, of the recovery and of the evaluation, in this order.

    They leave out the questions and answers of retrieval tasks, loading models and documents, and writing files.
    """
    steps = [
        _joined(f"stage {number}", stage.length, _steps_of_stage(number, stage, shape, rope))
        for number, stage in enumerate(plan.stages, start=1)
    ]
    return steps + _costs_after_stages(plan, shape, rope)


def part_costs(plan: Plan, shape: ModelShape, rope: Rope) -> list[Cost]:
    """Return the costs as `costs` does, with search and fine-tuning of a stage apart, by the names of `extend`."""
    stages = [_steps_of_stage(number, stage, shape, rope) for number, stage in enumerate(plan.stages, start=1)]
    return [step for steps in stages for step in steps] + _costs_after_stages(plan, shape, rope)


def _costs_after_stages(plan: Plan, shape: ModelShape, rope: Rope) -> list[Cost]:
    steps: list[Cost] = []
    if plan.recovery is not None:
        lengths = plan.recovery_lengths(rope.original_length)
        search = _search(plan.recovery.search, lengths, shape, starts=len(RECOVERY_POWERS), compared=0)
        steps.append(_joined("recovery", max(lengths), [search]))
    lengths = plan.evaluation_lengths(rope.original_length)
    return [*steps, _evaluation(plan, lengths, shape)] if lengths else steps


def check_plan_memory(plan: Plan, config: PreTrainedConfig, *, dtype: str, device: str) -> None:
    """Refuse a plan with a step that cannot fit on one device.

    Raises:
        LongRopeError: If a step takes more memory than is free; names the step and the remedies.
    """
    free = free_memory(device)
    if free is None:
        return
    main_free = free_memory("cpu") or 0
    for step in costs(plan, ModelShape.of(config, dtype, device), Rope.of(config)):
        if step.main_memory > main_free:
            raise LongRopeError(
                f"{step.name}: length = {step.length} takes about {step.main_memory / 2**30:.1f} GiB of main memory "
                f"beside {device} where {main_free / 2**30:.1f} GiB are free: {REMEDIES}"
            )
        if step.memory > free:
            raise LongRopeError(
                f"{step.name}: length = {step.length} takes about {step.memory / 2**30:.1f} GiB where {device} has "
                f"{free / 2**30:.1f} GiB free: {REMEDIES}"
            )


def _steps_of_stage(number: int, stage: Stage, shape: ModelShape, rope: Rope) -> list[Cost]:
    steps = []
    if stage.factors == "search":
        starts = len(get_method(stage.search.method).schemes)
        search = _search(stage.search, [stage.length], shape, starts=starts, compared=len(COMPARED))
        steps.append(replace(search, name=f"stage {number}: search"))
    if stage.finetune is not None:
        finetune = _finetune(stage.finetune, stage.length, shape, rope)
        steps.append(replace(finetune, name=f"stage {number}: fine-tune"))
    return steps


def _joined(name: str, length: int, steps: Sequence[Cost]) -> Cost:
    """Return the cost of several steps, one after the other."""
    flops: dict[Computation, Flops] = {}
    for step in steps:
        for computation, step_flops in step.flops.items():
            flops[computation] = flops.get(computation, Flops()) + step_flops
    return Cost(
        name,
        length,
        sum(step.search_tokens for step in steps),
        sum(step.train_tokens for step in steps),
        flops,
        max((step.memory for step in steps), default=0),
        max((step.main_memory for step in steps), default=0),
    )


def _search(search: Search, lengths: Sequence[int], shape: ModelShape, *, starts: int, compared: int) -> Cost:
    """Return the cost of a search, and of judging the finalists, the starts and the compared schemes.

    The judges are as many held-out samples as those that are searched on.
    """
    search_method = get_method(search.method, search.population, max(lengths))
    lengths = [min(length, search.window or length) for length in lengths]
    count = search.documents or default_documents(max(lengths))
    samples = [length for length in lengths for _ in range(count)]
    context_cost = min(1.0, sum(expected_cost(length, search.needles) for length in samples) / sum(samples))
    context_cost = context_cost if context_cost <= LARGEST_COST else 0.0
    budget = search.budget if search.population is None else None
    search_method, _ = fit_to_budget(search_method, samples, budget, context_cost)
    mean_length = sum(samples) / len(samples)
    more_passes = len(samples) * (starts - len(search_method.schemes))
    sizes: tuple[Any, ...] = (len(samples), context_cost) if search_method.uses_contexts else (len(samples),)
    own_passes = search_method.passes(*sizes)
    passes = round(min(own_passes + more_passes, (search.budget or math.inf) / mean_length))
    steps = min(search_method.gradient_steps(*sizes), passes // BACKWARD_COST)
    judged = len(samples) * (FINALISTS + starts + compared)
    if search_method.uses_contexts and context_cost:
        judged = math.ceil(len(samples) * (1 + LEADERS + (1 + starts + compared) * context_cost))
    forward = sum((shape.forward(length) for length in lengths), Flops()).times(1 / len(lengths))
    backward = sum((shape.backward(length, trained=False) for length in lengths), Flops()).times(1 / len(lengths))
    flops = forward.times(passes - BACKWARD_COST * steps + judged) + backward.times(steps)
    return Cost(
        "search",
        max(lengths),
        round((passes + judged) * mean_length),
        0,
        {Computation(shape.dtype): flops},
        peak_memory.of_pass(shape, max(lengths), gradient=steps > 0),
        peak_memory.moved_in_pass(shape, max(lengths), gradient=steps > 0),
    )


def _finetune(finetune: Finetune, length: int, shape: ModelShape, rope: Rope) -> Cost:
    """Return the cost of fine-tuning with its test of rates; short documents do not attend to each other."""
    tokens = finetune.sequence_length(length)
    short_tokens = min(rope.original_length, tokens)
    mixed = finetune.dtype == "bfloat16"
    recomputed = peak_memory.recomputes_layers(shape, tokens, lora=finetune.lora, mixed=mixed)
    long_pass, short_pass = (
        shape.backward(size, trained=not finetune.lora, recomputed=recomputed) for size in (tokens, short_tokens)
    )
    teacher = 0  # bytes
    if finetune.distill is not None and finetune.distill.has_teacher:
        short_pass = short_pass + shape.forward(short_tokens)
        teacher = shape.parameters * (2 if mixed else 4)
        if finetune.distill.hidden:
            teacher += peak_memory.of_hidden_states(shape, tokens, lora=finetune.lora, mixed=mixed)
    tested = peak_memory.of_rate_test(shape, lora=finetune.lora) if finetune.rate == "auto" else (0, 0)
    sequence = long_pass.times(1 - finetune.short) + short_pass.times(finetune.short * tokens / short_tokens)
    steps, flops = finetune.step_count(length), {}
    if finetune.rate == "auto":
        steps += len(RATES) * STEPS
        flops[Computation(finetune.dtype)] = shape.forward(tokens).times((1 + len(RATES)) * JUDGED)
    trained = Computation(finetune.dtype, "adapters" if finetune.lora else "training")
    flops[trained] = sequence.times(steps * finetune.batch)
    return Cost(
        "finetune",
        length,
        0,
        finetune.token_count(length),
        flops,
        peak_memory.of_training(shape, tokens, lora=finetune.lora, mixed=mixed) + teacher + tested[0],
        peak_memory.moved_in_training(shape, tokens, lora=finetune.lora, mixed=mixed) + tested[1],
    )


def _evaluation(plan: Plan, lengths: Sequence[int], shape: ModelShape) -> Cost:
    tuned = sum(stage.finetune is not None for stage in plan.stages)
    candidates = 2 + len(plan.evaluation.schemes) + (len(plan.stages) + tuned) * plan.evaluation.stages
    longest, passes = max(lengths), plan.evaluation.documents * candidates
    texts = math.ceil(plan.evaluation.trials / plan.evaluation.questions)
    prompts = candidates * texts * len(plan.evaluation.retrieval)
    flops = shape.forward(longest).times(passes)
    flops = sum((shape.forward(length).times(prompts) for length in lengths), flops)
    return Cost(
        "evaluation",
        longest,
        passes * longest + prompts * sum(lengths),
        0,
        {Computation(shape.dtype): flops},
        peak_memory.of_pass(shape, longest, gradient=False),
        peak_memory.moved_in_pass(shape, longest, gradient=False),
    )
