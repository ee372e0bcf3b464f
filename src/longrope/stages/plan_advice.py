"""A plan that fits a model, and the pitfalls of one that does not."""

from __future__ import annotations

from typing import Literal

from longrope.errors import LongRopeError
from longrope.rope import Rope
from longrope.stages.plan import Plan
from longrope.stages.plan_tables import Data, Distill, Finetune, Recovery, Stage
from longrope.units import short_length

STEP = 8  # of a stage on whole sequences whose weights are trained next: 2K, 16K, 128K and 4K, 32K, 256K
LARGEST_STEP = 16  # of any stage on whole sequences, such as the last one of 128K to 2048K, which is search only
SPARSE_STEP = 64  # of a stage on sparse windows, which see all distances from the first step on
SHARE = 0.05  # of the original tokens that a stage trains on
MOST_TOKENS = 2**30  # of a stage; about as many took an 8B model to 4M tokens in one stage (arXiv 2504.06214)
ORIGINAL_TOKENS = 20  # a parameter, of a model for which they are not known (Hoffmann et al. 2022)
TOO_FEW = 0.5  # of the advised tokens
STEPS, LARGEST_BATCH = 200, 64  # optimizer steps that a proposal has at least, and sequences of a step at most
WINDOW = 2048  # tokens of a sparse window
NEEDLES = 0.5  # share of the sequences with planted lines
SMALL = 10_000_000  # parameters of a model that takes a high learning rate and reads no sentences


def with_lines(data: Data, parameters: int) -> Data:
    """Return the documents of a plan with planted lines, in several wordings if the model reads sentences.

    Args:
        data: Documents; what they say of the lines stays.
        parameters: Parameters of the model.
    """
    wordings = data.wordings
    if "wordings" not in data.model_fields_set:
        wordings = "one" if parameters <= SMALL else "several"
    return data.model_copy(update={"needles": data.needles or NEEDLES, "wordings": wordings})


def advice(plan: Plan, rope: Rope) -> list[str]:
    """Return the pitfalls of a plan for a model, each with its remedy: the five that every extension may have."""
    lines, length_before, last = [], rope.original_length, len(plan.stages) - 1
    for i, stage in enumerate(plan.stages):
        name, step = f"stages[{i}] ({short_length(stage.length)})", stage.length / length_before
        largest = SPARSE_STEP if stage.finetune is not None and stage.finetune.windows == "sparse" else LARGEST_STEP
        if step > largest:
            lines.append(f"{name}: {step:.3g}x in one stage, above {largest}x, is hard to learn: put one between")
        if stage.factors != "search" and stage.finetune is None:
            lines.append(f'{name}: {stage.factors} is not searched; factors = "search" finds better ones')
        if stage.finetune is None and i < last:
            lines.append(f"{name}: the next stage builds on weights that never saw these factors: add finetune")
        if stage.factors != "search" and "search" in stage.model_fields_set:
            lines.append(f"{name}: its table search has no effect, as its factors are those of {stage.factors}")
        if stage.finetune is not None and stage.finetune.answers != 1 and not plan.data.needles:
            lines.append(f"{name}: finetune.answers has no effect, as data.needles = 0 plants no lines")
        if stage.finetune is not None and plan.original_tokens is not None:
            tokens, advised = stage.finetune.token_count(stage.length), advised_tokens(plan.original_tokens)
            if tokens < TOO_FEW * advised:
                lines.append(
                    f"{name}: fine-tuning on {tokens:,} tokens where about {SHARE:.0%} of the original tokens, at most "
                    f"{MOST_TOKENS:,}, are advised: finetune.tokens = {round(advised)} would be that"
                )
        length_before = stage.length
    tuned = [stage.finetune for stage in plan.stages if stage.finetune is not None]
    original_below = tuned and (tuned[-1].short or not tuned[-1].merge)  # trained with, or the adapter is off there
    if plan.recovery is None and not original_below:
        lines.append("no short factors of its own: add a table [recovery], or short sequences lose")
    return lines


def advised_tokens(original_tokens: float) -> float:
    """Return how many tokens a stage should train on, after the original training on ``original_tokens``."""
    return min(SHARE * original_tokens, MOST_TOKENS)


def propose(
    rope: Rope,
    length: int,
    *,
    parameters: int,
    original_tokens: float | None = None,
    data: Data | None = None,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    sparse: bool = True,
) -> Plan:
    """Propose a plan that takes a model to a length with none of the pitfalls.

    With sparse windows it is one stage up to 64x and stages of 64x beyond, all of them fine-tuned. On whole sequences,
    stages of 8x are fine-tuned, and the last one, of at most 16x, is search only; a single stage is fine-tuned.

    Args:
        rope: Geometry of the model.
        length: Target length in tokens.
        parameters: Parameters of the model. Without ``original_tokens`` it counts as trained on 20 tokens for each, so
            that a stage trains on one token a parameter, at most `MOST_TOKENS`.
        original_tokens: Tokens that the model was trained on.
        data: Documents.
        dtype: Dtype of the products in fine-tuning.
        sparse: Whether the model's attention can weigh keys, so that it trains on sparse windows.

    Raises:
        LongRopeError: If the length is not above the original one.
    """
    check_above_original(length, rope)
    tokens = advised_tokens(original_tokens or ORIGINAL_TOKENS * parameters)
    unit = 2**20 if tokens > 2**23 else 2**10
    tokens = max(1, round(tokens / unit)) * unit
    data = data or Data()
    tuned, searched = [*_lengths(rope.original_length, length, SPARSE_STEP, SPARSE_STEP), length], []
    if sparse and tuned[0] > WINDOW:
        finetune = _sparse_finetune(tokens, dtype)
        data = with_lines(data, parameters)
    else:
        finetune = Finetune(tokens=tokens, rate="auto", dtype=dtype)
        between = _lengths(rope.original_length, length, STEP, LARGEST_STEP)
        tuned, searched = between or [length], [length] if between else []
    return Plan(
        stages=tuple(
            [Stage(length=stage_length, finetune=finetune) for stage_length in tuned]
            + [Stage(length=stage_length) for stage_length in searched]
        ),
        recovery=Recovery(),
        data=data,
        original_tokens=original_tokens,
    )


def _sparse_finetune(tokens: int, dtype: Literal["bfloat16", "float32"]) -> Finetune:
    """Return the fine-tuning on sparse windows and short rows, half of the tokens each."""
    return Finetune(
        tokens=tokens,
        batch=2 * min(LARGEST_BATCH // 2, max(1, tokens // (STEPS * 2 * WINDOW))),
        rate="auto",
        window=WINDOW,
        windows="sparse",
        short=0.5,
        answers=3.0,
        distill=Distill(),
        average="auto",
        dtype=dtype,
    )


def _lengths(original: int, length: int, step: int, last_step: int) -> list[int]:
    """Return the lengths of the stages before the last one, each ``step`` times the one before."""
    lengths = []
    reached, largest = original, step
    while length > largest * reached:
        reached, largest = reached * step, last_step
        lengths.append(reached)
    return lengths


def check_above_original(length: int, rope: Rope) -> None:
    """Refuse a target length that is not above the model's original one.

    Raises:
        LongRopeError: If it is not.
    """
    if length <= rope.original_length:
        raise LongRopeError(
            f"to = {length} is not above the model's original length {rope.original_length}; ask for a longer one"
        )
