"""Error messages about a plan's file, made from those of pydantic."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from longrope.errors import did_you_mean
from longrope.stages.plan_tables import Data, Distill, FinalEvaluation, Finetune, Recovery, Search, Stage
from longrope.stages.plan_values import PlanTable

TABLES: dict[str, type[PlanTable]] = {
    "stages": Stage,
    "search": Search,
    "finetune": Finetune,
    "distill": Distill,
    "recovery": Recovery,
    "data": Data,
    "evaluation": FinalEvaluation,
}
MESSAGES = {
    "missing": "is missing",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be text in quotes",
    "finite_number": "must be a finite number",
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be {ge} or more",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be {le:g} or less",
    "literal_error": "must be {expected}",
    "model_type": "must be a table",
    "tuple_type": "must be a list",
}


def describe_errors(error: ValidationError, plan: type[PlanTable]) -> str:
    """Describe every error of a plan's file.

    Args:
        error: The errors that pydantic found.
        plan: The type of the whole file.
    """
    return "; ".join(_describe(fault, plan) for fault in error.errors())


def _describe(error: Any, plan: type[PlanTable]) -> str:
    """Describe one of pydantic's errors: the key in the file, the value, the fault and the remedy."""
    key = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error["loc"]).lstrip(".")
    if error["type"] == "extra_forbidden":
        *tables, last = (step for step in error["loc"] if isinstance(step, str))
        keys = (TABLES[tables[-1]] if tables else plan).model_fields
        return f"{key} is not a key of a plan; the keys are {', '.join(keys)}{did_you_mean(last, keys)}"
    value = f" = {error['input']!r}" if isinstance(error["input"], (str, int, float)) else ""
    if error["type"] in MESSAGES:
        return f"{key}{value} {MESSAGES[error['type']].format(**error.get('ctx', {}))}"
    message = error["msg"].removeprefix("Value error, ")
    if value and value in message:  # the message names the value itself, by a name that the file may not know
        return f"{key}{value}{message.partition(value)[2]}"
    return f"{key}{value}: {message}" if key else message
