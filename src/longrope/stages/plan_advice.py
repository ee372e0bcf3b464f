"""What makes a plan a good one: a plan that fits a model, and what is wrong with one that does not."""

from __future__ import annotations

from typing import Literal

from longrope.errors import LongRopeError
from longrope.rope import Rope
from longrope.stages.plan import Plan
from longrope.stages.plan_tables import Data, Finetune, Recovery, Stage
from longrope.units import short_length

STEP = 8  # of a stage whose weights are trained next: 2K, 16K, 128K and 4K, 32K, 256K
LARGEST_STEP = 16  # of any stage, such as the last one of 128K to 2048K, which is search only
SHARE = 0.05  # of the original tokens that a stage trains on
FEW = 0.025  # a share below it is far below `SHARE`
RATES = ((1e9, 2e-5), (1e8, 1e-4), (0, 3e-4))  # parameters from which on a rate is used; 2e-5 is both papers'


def advice(plan: Plan, rope: Rope) -> list[str]:
    """The four pitfalls of an extension, where a plan for a model has them, each with its remedy."""
    found, before, last = [], rope.original_length, len(plan.stages) - 1
    for i, stage in enumerate(plan.stages):
        where, step = f"stages[{i}] ({short_length(stage.length)})", stage.length / before
        if step > LARGEST_STEP:
            found.append(f"{where}: {step:.3g}x in one stage, above {LARGEST_STEP}x, is hard to learn: put one between")
        if stage.factors != "search":
            found.append(f'{where}: the search is skipped for {stage.factors}; factors = "search" finds better ones')
        if stage.finetune is None and i < last:
            found.append(f"{where}: the next stage builds on weights that never saw these factors: add finetune")
        if stage.finetune is not None and plan.original_tokens is not None:
            share = stage.finetune.trained(stage.length) / plan.original_tokens
            if share < FEW:
                found.append(
                    f"{where}: fine-tuning on {share:.2g} of the original tokens where about {SHARE} is advised: "
                    f"finetune.tokens = {round(SHARE * plan.original_tokens)} would be that"
                )
        before = stage.length
    tuned = [stage.finetune for stage in plan.stages if stage.finetune is not None]
    if plan.recovery is None and not (tuned and tuned[-1].short):  # those keep the original RoPE alive
        found.append("no short factors of its own: add a table [recovery], or short sequences lose")
    return found


def propose(
    rope: Rope,
    length: int,
    *,
    parameters: int,
    original_tokens: float | None = None,
    data: Data | None = None,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
) -> Plan:
    """A plan that takes a model to a length with none of the pitfalls.

    Stages of 8x, fine-tuned; then one of at most 16x, search only. A single stage is fine-tuned.

    Args:
        rope: the model's geometry.
        length: the target in tokens.
        parameters: of the model. Unless told otherwise it was trained on 20 tokens for each (Hoffmann et al. 2022),
            so that a stage trains on one token a parameter; LongRoPE and LongRoPE2 took that many for 7B and 8B.
        original_tokens: that the model was trained on.
        data: documents.
        dtype: of the products in fine-tuning.

    Raises:
        LongRopeError: if the length is not above the original one.
    """
    if length <= rope.original_length:
        raise LongRopeError(
            f"to = {length} is not above the model's original length {rope.original_length}; ask for a longer one"
        )
    tokens = SHARE * (original_tokens or 20 * parameters)
    unit = 2**20 if tokens > 2**23 else 2**10
    finetune = Finetune(
        tokens=max(1, round(tokens / unit)) * unit,
        rate=next(rate for size, rate in RATES if parameters >= size),
        dtype=dtype,
    )
    lengths, largest = [], STEP
    before = rope.original_length
    while length > largest * before:
        before, largest = before * STEP, LARGEST_STEP
        lengths.append(before)
    stages = [Stage(length=one, finetune=finetune) for one in lengths or [length]]
    if lengths:
        stages.append(Stage(length=length))
    near = length < 2 * rope.original_length  # then it cannot recover that as well
    return Plan(
        stages=tuple(stages),
        recovery=Recovery(lengths=(rope.original_length,)) if near else Recovery(),
        data=data or Data(),
        original_tokens=original_tokens,
    )
