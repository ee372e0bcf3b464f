"""A plan that fits a model, and the pitfalls of one that does not."""

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
TOO_SMALL_SHARE = 0.025
RATES = ((1e9, 2e-5), (1e8, 1e-4), (0, 3e-4))  # parameters from which on a rate is used; 2e-5 is both papers'


def advice(plan: Plan, rope: Rope) -> list[str]:
    """Return the pitfalls of a plan for a model, each with its remedy: the four that every extension may have."""
    lines, length_before, last = [], rope.original_length, len(plan.stages) - 1
    for i, stage in enumerate(plan.stages):
        name, step = f"stages[{i}] ({short_length(stage.length)})", stage.length / length_before
        if step > LARGEST_STEP:
            lines.append(f"{name}: {step:.3g}x in one stage, above {LARGEST_STEP}x, is hard to learn: put one between")
        if stage.factors != "search":
            lines.append(f'{name}: the search is skipped for {stage.factors}; factors = "search" finds better ones')
        if stage.finetune is None and i < last:
            lines.append(f"{name}: the next stage builds on weights that never saw these factors: add finetune")
        if stage.finetune is not None and plan.original_tokens is not None:
            share = stage.finetune.token_count(stage.length) / plan.original_tokens
            if share < TOO_SMALL_SHARE:
                lines.append(
                    f"{name}: fine-tuning on {share:.2g} of the original tokens where about {SHARE} is advised: "
                    f"finetune.tokens = {round(SHARE * plan.original_tokens)} would be that"
                )
        length_before = stage.length
    tuned = [stage.finetune for stage in plan.stages if stage.finetune is not None]
    if plan.recovery is None and not (tuned and tuned[-1].short):  # those keep the original RoPE alive
        lines.append("no short factors of its own: add a table [recovery], or short sequences lose")
    return lines


def propose(
    rope: Rope,
    length: int,
    *,
    parameters: int,
    original_tokens: float | None = None,
    data: Data | None = None,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
) -> Plan:
    """Propose a plan that takes a model to a length with none of the pitfalls.

    Stages of 8x are fine-tuned; the last one, of at most 16x, is search only. A single stage is fine-tuned.

    Args:
        rope: Geometry of the model.
        length: Target length in tokens.
        parameters: Parameters of the model. Without ``original_tokens`` it counts as trained on 20 tokens for each
            (Hoffmann et al. 2022), so that a stage trains on one token a parameter. LongRoPE and LongRoPE2 took that
            number for 7B and 8B.
        original_tokens: Tokens that the model was trained on.
        data: Documents.
        dtype: Dtype of the products in fine-tuning.

    Raises:
        LongRopeError: If the length is not above the original one.
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
    tuned = _tuned_lengths(rope.original_length, length)
    stages = [Stage(length=stage_length, finetune=finetune) for stage_length in tuned or [length]]
    if tuned:
        stages.append(Stage(length=length))
    recovers_twice_the_length = length >= 2 * rope.original_length
    return Plan(
        stages=tuple(stages),
        recovery=Recovery() if recovers_twice_the_length else Recovery(lengths=(rope.original_length,)),
        data=data or Data(),
        original_tokens=original_tokens,
    )


def _tuned_lengths(original: int, length: int) -> list[int]:
    """Return the lengths of the fine-tuned stages before the last one."""
    lengths = []
    reached, largest = original, STEP
    while length > largest * reached:
        reached, largest = reached * STEP, LARGEST_STEP
        lengths.append(reached)
    return lengths
