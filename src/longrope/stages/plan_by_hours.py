"""Make a plan for a model by the hours that there are: measure the device and the documents, rank starts, choose."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from statistics import fmean

from transformers import PreTrainedConfig

from longrope.cost.bfloat16_speed import is_bfloat16_slow
from longrope.cost.device_speed import DeviceSpeed, measure_device_speed
from longrope.cost.model_shape import ModelShape
from longrope.errors import LongRopeError
from longrope.longcontext.sparse_attention import why_not_sparse
from longrope.models.device_memory import free_memory
from longrope.models.quantized import method_of, trains_adapters
from longrope.stages.choose_plan import Choice, choose_plan
from longrope.stages.plan import Plan
from longrope.stages.plan_goal import Goal, Machine, Texts
from longrope.stages.plan_options import TASK, is_few
from longrope.stages.plan_tables import Data, FinalEvaluation, Finetune, Stage
from longrope.stages.rank_starts import LEAST_WINDOWS, STARTS, best_start, rank_starts
from longrope.stages.requirements import check_disk
from longrope.stages.run_folder import StagedRun
from longrope.tasks.registry import make_prompts

QUESTIONS = (20, 10, 5, 1)  # on a text
RANKED = 0.05  # of the time that the ranking of starts may take
FEWER = 0.85  # of the training tokens, where the ends of documents leave too few windows
CUTS_FOR_RECOVERY, MOST_CUTS = 4, 40  # numbers of tries, the first one without a cut


@dataclass(frozen=True)
class Advice:
    """A plan for some hours, and what it is chosen by.

    Args:
        choice: The plan with its costs.
        hour_more: The plan for one more hour.
        machine: The model on the device.
        starts: Mean loss of each closed form on training windows, in nats; empty if there was no time to rank them.
    """

    choice: Choice
    hour_more: Choice
    machine: Machine
    starts: Mapping[str, float]

    @property
    def wants_lora(self) -> bool:
        """Whether the plan would train an adapter if the package ``peft`` were there."""
        plan = self.choice.plan
        finetune = plan.stages[0].finetune
        few = (
            self.choice.limit == "memory"
            if finetune is None
            else is_few(finetune.token_count(plan.length), self.machine)
        )
        return few and not self.machine.lora and self.machine.weights != "fixed"


def plan_by_hours(run: StagedRun, hours: float, speeds: Mapping[str, DeviceSpeed] | None = None) -> Advice:
    """Choose the plan of a run that has none yet.

    Args:
        run: Run whose plan has the target length, the documents and L0, and nothing else.
        hours: Time that the run may take, this choice included.
        speeds: Speeds of the device by dtype; measured if None.

    Raises:
        LongRopeError: If hours, documents, memory or disk are too small for any plan, or the model cannot be extended.
    """
    started, rope, length, data = time.monotonic(), run.rope, run.plan.length, run.plan.data
    original = run.plan.original_length
    texts = _long_texts(run)
    machine = measure_machine(run.config, run.dtype, run.device, speeds)

    def choose(extra: float, start: str, texts: Texts) -> Choice:
        seconds, spent = 3600 * (hours + extra), time.monotonic() - started
        return choose_plan(Goal(rope, length, seconds, machine, start, texts, data, spent, original))

    first = choose(1, STARTS[0], texts)
    texts = replace(texts, training_tokens=_training_tokens(run, first))
    choose(0, STARTS[0], texts)  # raises if the hours are too few
    losses = _losses_of_starts(run, first.plan.stages[0].finetune, machine, hours)
    start = best_start(losses) if losses else STARTS[0]
    choice, texts = _with_documents(run, texts, lambda texts: choose(0, start, texts))
    check_disk(choice.plan, machine.shape, run.folder, dtype=run.config.dtype)
    starts = {name: fmean(values) for name, values in losses.items()}
    return Advice(choice, choose(1, choice.start, texts), machine, starts)


def _losses_of_starts(
    run: StagedRun, finetune: Finetune | None, machine: Machine, hours: float
) -> Mapping[str, Sequence[float]]:
    """Return the losses of the closed forms as starts of a training; empty without time or texts to compare them."""
    if finetune is None:
        return {}
    forward = machine.shape.forward(finetune.window or run.plan.length)
    seconds = machine.speeds[machine.shape.dtype].seconds(forward)
    windows = int(RANKED * 3600 * hours / (seconds * len(STARTS)))
    if windows >= LEAST_WINDOWS:
        with suppress(LongRopeError):
            return rank_starts(run, finetune, windows)
    return {}


def _with_documents(run: StagedRun, texts: Texts, choose: Callable[[Texts], Choice]) -> tuple[Choice, Texts]:
    """Return a choice for which the documents are enough.

    Where they are too few, it has fewer training tokens, or no short factors if these would cost too much training.

    Raises:
        LongRopeError: If they are too few without training.
    """
    choice = choose(texts)
    if choice.plan.stages[0].finetune is None:
        replace(run, plan=choice.plan).data.check()
        return choice, texts
    tokens, trained = texts.training_tokens, min(texts.training_tokens, _trained_tokens(choice))
    cuts = [(True, cut) for cut in range(CUTS_FOR_RECOVERY)] if choice.plan.recovery is not None else []
    for recovery, cut in [*cuts, *((False, cut) for cut in range(MOST_CUTS))]:
        fewer = replace(texts, training_tokens=FEWER**cut * trained if cut else tokens, recovery=recovery)
        choice = choose(fewer)
        if choice.plan.stages[0].finetune is not None:
            with suppress(LongRopeError):
                replace(run, plan=choice.plan).data.check()
                return choice, fewer
    return _with_documents(run, replace(texts, training_tokens=0.0), choose)


def _trained_tokens(choice: Choice) -> float:
    """Return the tokens that each pass over the documents gives to the training."""
    finetune, passes = choice.plan.stages[0].finetune, choice.plan.data.repeats
    return float("inf") if finetune is None else finetune.token_count(choice.plan.length) / passes


def measure_machine(
    config: PreTrainedConfig, dtype: str, device: str, speeds: Mapping[str, DeviceSpeed] | None = None
) -> Machine:
    """Measure the device for a model: its speeds in some seconds, its free memory, and what it can train with."""
    shape = ModelShape.of(config, dtype, device)
    train_dtype, plain = "float32" if is_bfloat16_slow(device) else "bfloat16", method_of(config) is None
    if speeds is None:
        dtypes = {shape.dtype, train_dtype}
        speeds = {
            name: measure_device_speed(config, device=device, dtype=name, training=name == train_dtype)
            for name in sorted(dtypes)
        }
    return Machine(
        shape,
        speeds,
        memory=free_memory(device),
        main_memory=free_memory("cpu"),
        train_dtype=train_dtype,
        sparse=why_not_sparse(config) is None,
        lora=find_spec("peft") is not None,
        weights="plain" if plain else "adapted" if trains_adapters(config, device) else "fixed",
    )


def bare_plan(length: int, data: Data) -> Plan:
    """Return the plan of a run before its choice: a length and documents."""
    return Plan(stages=(Stage(length=length, factors=STARTS[0]),), data=data, evaluation=FinalEvaluation(documents=1))


def _long_texts(run: StagedRun) -> Texts:
    """Count the documents of the target length, as far as they matter.

    Raises:
        LongRopeError: If there is no test document of that length.
    """
    counts = {}
    for split, most in (("test", 8), ("search", 4), ("held_out", 4)):
        counts[split] = run.data.count_long(split, run.plan.length, most)
    if not counts["test"]:
        run.data.long_documents("test", run.plan.length, 1)  # raises
    return Texts(counts["test"], min(counts["search"], counts["held_out"]), _most_questions(run))


def _most_questions(run: StagedRun) -> int:
    """Return the most questions that a test document of the target length has room for; 0 if not one fits."""
    tokens = run.data.long_documents("test", run.plan.length, 1).tokens
    for count in QUESTIONS:
        with suppress(LongRopeError):
            make_prompts(TASK, run.data.tokenizer, length=run.plan.length, trials=count, texts=tokens, questions=count)
            return count
    return 0


def _training_tokens(run: StagedRun, choice: Choice) -> float:
    """Return the tokens of the training documents, counted up to those that a choice can use."""
    finetune = choice.plan.stages[0].finetune
    if finetune is None:
        return float("inf")
    return run.data.training_tokens(finetune.token_count(choice.plan.length))
