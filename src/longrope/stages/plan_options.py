"""The plans among which the hours choose: fine-tuning, a search, or a closed form, each with its evaluation."""

from __future__ import annotations

from longrope.cost.training_speed import RANK
from longrope.data.sparse_windows import SHORTEST_CHUNK
from longrope.stages.plan import Plan
from longrope.stages.plan_advice import (
    LARGEST_BATCH,
    ORIGINAL_TOKENS,
    SMALL,
    STEPS,
    WINDOW,
    advised_tokens,
    with_lines,
)
from longrope.stages.plan_goal import Goal, Machine
from longrope.stages.plan_tables import Data, Distill, FinalEvaluation, Finetune, Recovery, Search, Stage

MEASURED = 0.4  # of the time that the evaluation may take
SIDE_STEP = 0.1  # of the time that a search for short factors, or the test of rates, may take
LEAST_STEPS = 10  # optimizer steps, the fewest that were measured to bring something
LEAST_FULL_SHARE = 0.01  # of the parameters: on fewer tokens, LoRA instead of all weights
TASK = "recall"
REPEATS = 4  # passes over the training documents
RATE_TEST = 50  # passes over training sequences that the test of rates takes, for each sequence of a step
AVERAGED = 400  # sequences from which the share of the original weights is tested
# documents, then questions in all and on a text, at each length: from the best verdict to the least
EVALUATIONS = ((8, 50, 5), (6, 40, 5), (4, 24, 4), (2, 24, 4), (2, 20, 20), (2, 0, 1), (1, 0, 1))
SEARCHES = tuple((documents, population) for documents in (4, 2, 1) for population in (None, 20, 10, 4))


def closed_form_plan(goal: Goal) -> Plan:
    """Return the plan that trains and searches nothing."""
    return evaluated(goal, _plan_of(goal, Stage(length=goal.length, factors=goal.start)))


def searched_plan(goal: Goal) -> Plan | None:
    """Return the plan of the largest search that fits; None if not one does."""
    for documents, population in SEARCHES:
        search = Search(documents=documents, population=population)
        plan = evaluated(goal, _plan_of(goal, Stage(length=goal.length, search=search)))
        if documents <= goal.texts.search and goal.has_memory(plan) and goal.cost(plan) <= goal.budget:
            return plan
    return None


def trained_plan(goal: Goal) -> tuple[Plan | None, str]:
    """Return the plan that fine-tunes from a closed form for as long as it pays, and what keeps it from being longer.

    That is time, memory, texts, or nothing (``enough``).
    """
    useful = advised_tokens(ORIGINAL_TOKENS * goal.machine.shape.parameters)
    most = min(goal.texts.training_tokens * REPEATS, useful)
    if goal.machine.weights == "fixed":
        return None, "enough"
    limit, ranks = "memory", [0] if goal.machine.weights == "plain" else []
    for lora in [*ranks, RANK] if goal.machine.lora else ranks:
        plan = _plan_with(goal, _finetune(goal, 4, lora))
        if not goal.has_memory(plan):
            continue
        sequence = goal.cost(plan, "stage 1: fine-tune") / 4
        by_time = int((goal.budget - goal.cost(plan)) / sequence) + 4
        tokens = _window(goal) or goal.length
        sequences = min(by_time, int(most // tokens))
        limit = "time" if sequences == by_time else "texts" if most < useful else "enough"
        few = is_few(sequences * tokens, goal.machine)
        if (not lora and goal.machine.lora and few) or sequences < LEAST_STEPS * _batch(sequences):
            continue
        # kernels of quantised weights may let gradients through for one pass alone
        tested = goal.machine.weights == "plain" and RATE_TEST * _batch(sequences) <= SIDE_STEP * by_time
        tested = tested and goal.has_memory(_plan_with(goal, _finetune(goal, sequences, lora, tested=True)))
        if tested:
            sequences = min(sequences, by_time - RATE_TEST * _batch(sequences))
        return _plan_with(goal, _finetune(goal, sequences, lora, tested=tested)), limit
    return None, limit


def with_search(goal: Goal, trained: Plan) -> Plan | None:
    """Return a plan that trains with searched factors, if time and memory are enough for both; else None."""
    searched = searched_plan(goal)
    if searched is None:
        return None
    stage = trained.stages[0].model_copy(update={"factors": "search", "search": searched.stages[0].search})
    both = trained.model_copy(update={"stages": (stage,)})
    return both if goal.cost(both) <= goal.budget else None


def is_few(tokens: float, machine: Machine) -> bool:
    """Return whether so few training tokens suit an adapter better than all weights."""
    return tokens < LEAST_FULL_SHARE * machine.shape.parameters


def evaluated(goal: Goal, plan: Plan) -> Plan:
    """Return a plan with the best evaluation that fits its share of the time; the least one if none does."""
    schemes = ("yarn",) if goal.start == "yarn" else ("yarn", goal.start)
    for documents, trials, questions in EVALUATIONS:
        questions = min(questions, goal.texts.questions)
        tasks = {"retrieval": (TASK,), "trials": trials, "questions": questions} if trials and questions else {}
        evaluation = FinalEvaluation(documents=documents, schemes=schemes, stages=False, **tasks)
        plan = plan.model_copy(update={"evaluation": evaluation})
        if documents <= goal.texts.test and goal.cost(plan, "evaluation") <= MEASURED * goal.budget:
            return plan
    return plan


def _plan_of(goal: Goal, stage: Stage, data: Data | None = None) -> Plan:
    """Return the plan of one stage on the documents of the goal, or on others."""
    export = "static" if goal.machine.weights == "plain" else "none"
    return Plan(stages=(stage,), data=data or goal.data, original_length=goal.original_length, export=export)


def _window(goal: Goal) -> int | None:
    """Return the tokens of a training window; None for whole sequences, where half of the length is too short."""
    window = min(WINDOW, goal.length // 2)
    return None if window < 2 * SHORTEST_CHUNK else window


def _batch(sequences: int) -> int:
    """Return the sequences of a step: two up to `STEPS` steps, more of them then."""
    return 2 * max(1, min(LARGEST_BATCH // 2, sequences // (2 * STEPS)))


def _plan_with(goal: Goal, finetune: Finetune) -> Plan:
    """Return the plan of a fine-tuning; with short factors where all weights are trained and the time is enough."""
    data = with_lines(goal.data, goal.machine.shape.parameters).model_copy(update={"repeats": REPEATS})
    plan = _plan_of(goal, Stage(length=goal.length, factors=goal.start, finetune=finetune), data)
    if not finetune.lora and goal.texts.recovery:
        recovery = Recovery(search=Search(population=10, documents=2))
        recovered = plan.model_copy(update={"recovery": recovery})
        plan = recovered if goal.cost(recovered, "recovery") <= SIDE_STEP * goal.budget else plan
    return evaluated(goal, plan)


def _finetune(goal: Goal, sequences: int, lora: int, *, tested: bool = False) -> Finetune:
    """Return the settings for a number of sequences: all weights with short rows and a teacher, or an adapter."""
    batch = _batch(sequences)
    settings = Finetune(
        steps=max(1, sequences // batch),
        batch=batch,
        rate="auto" if tested else _rate(goal.machine, lora),
        window=_window(goal),
        windows="sparse" if goal.machine.sparse and _window(goal) else "jump",
        answers=3.0,
        dtype=goal.machine.train_dtype,
    )
    if lora:
        return settings.model_copy(update={"lora": lora, "merge": False})
    average = "auto" if sequences >= AVERAGED else 0.25
    return settings.model_copy(update={"short": 0.5, "distill": Distill(), "average": average})


def _rate(machine: Machine, lora: int) -> float:
    """Return a learning rate where there is no time to test several."""
    if lora:
        return 1e-3
    return 4e-4 if machine.shape.parameters <= SMALL else 1e-4
