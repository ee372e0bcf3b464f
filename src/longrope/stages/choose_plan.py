"""Choose a plan by the time and the memory that there are: a closed form, a search, fine-tuning, or both.

The rules, and the measurements that they come from, are in docs/extension.md, "By the hours that you have".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from longrope.errors import LongRopeError
from longrope.stages.plan import Plan
from longrope.stages.plan_cost import Cost, part_costs
from longrope.stages.plan_goal import OVERHEAD, USED, Goal
from longrope.stages.plan_options import closed_form_plan, searched_plan, trained_plan, with_search

Kind = Literal["closed form", "search", "fine-tuning", "search and fine-tuning"]
TRUSTED = 4  # test documents from which standard errors mean something


@dataclass(frozen=True)
class Choice:
    """A plan for some hours.

    Args:
        plan: The plan.
        kind: Kind of extension.
        start: Closed form that it starts from.
        costs: Costs of the plan's steps, by the names that `longrope.stages.pipeline.extend` reports.
        seconds: Estimated seconds of the whole run.
        limit: What keeps the training from being longer: time, memory, texts, or nothing (``enough``).
    """

    plan: Plan
    kind: Kind
    start: str
    costs: tuple[Cost, ...]
    seconds: float
    limit: str


def choose_plan(goal: Goal) -> Choice:
    """Choose the plan that brings most within a time.

    Fine-tuning from a closed form comes first, as it brings most for its time. A search before it is worth its time
    once the training has all the tokens that it can use. Without room for training, it is a search, and else a closed
    form.

    Raises:
        LongRopeError: If the length is not above the original one, or time or memory is too small for any plan.
    """
    least = closed_form_plan(goal)
    least.check_fits(goal.rope)
    if not goal.has_memory(least):
        raise LongRopeError(
            f"to = {goal.length}: a pass of {goal.length} tokens does not fit into the free memory. "
            "Take a shorter length, dtype bfloat16, or another device."
        )
    if goal.cost(least) > goal.budget:
        raise _too_short(goal, goal.spent + (goal.cost(least) + OVERHEAD) / USED)
    plan, limit = trained_plan(goal)
    if plan is not None:
        both = with_search(goal, plan) if limit == "enough" else None
        return _choice(goal, both or plan, "fine-tuning" if both is None else "search and fine-tuning", limit)
    searched = searched_plan(goal)
    return _choice(goal, searched or least, "closed form" if searched is None else "search", limit)


def more_time(choice: Choice, longer: Choice) -> str:
    """Return what a longer time would buy, in a clause.

    Args:
        choice: The choice for the time that there is.
        longer: The choice for the longer time.
    """
    gains = [f"{longer.kind} instead of {choice.kind}"] if longer.kind != choice.kind else []
    length = choice.plan.length
    before, after = (each.plan.stages[0].finetune for each in (choice, longer))
    if before is not None and after is not None and after.token_count(length) > before.token_count(length):
        windows = f"{after.steps * after.batch} training windows" if after.steps is not None else "more windows"
        gains.append(f"{windows} instead of {(before.steps or 0) * before.batch}")
    tests = [each.plan.evaluation for each in (choice, longer)]
    if tests[1].documents > tests[0].documents:
        gains.append(f"{tests[1].documents} test documents instead of {tests[0].documents}")
    if tests[1].retrieval and not tests[0].retrieval:
        gains.append("a test of retrieval")
    short_of = {"texts": "without more texts", "memory": "without more memory"}.get(longer.limit, "more")
    return " and ".join(gains) or f"nothing {short_of}"


def _choice(goal: Goal, plan: Plan, kind: Kind, limit: str) -> Choice:
    steps = tuple(part_costs(plan, goal.machine.shape, goal.rope))
    return Choice(plan, kind, goal.start, steps, goal.cost(plan) + OVERHEAD, limit)


def _too_short(goal: Goal, least: float) -> LongRopeError:
    return LongRopeError(
        f"hours = {goal.seconds / 3600:.3g}: too short for {goal.length} tokens here. "
        f"The least is about {1.05 * least / 3600:.2g} hours. "
        f"That is enough for the factors of {goal.start}, not trained, measured on one text."
    )
