"""The types of the values in a plan's tables, which are strict."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from longrope.errors import LongRopeError, did_you_mean
from longrope.schemes import SCHEMES, canonical
from longrope.search.registry import get_method
from longrope.tasks.question_task import QuestionTask
from longrope.tasks.registry import TASKS, check_task
from longrope.units import parse_length, short_length


def with_value_error(check: Callable[[Any], Any], value: Any) -> Any:
    """Return ``check(value)``, and raise its LongRopeError as the ValueError that pydantic expects."""
    try:
        return check(value)
    except LongRopeError as error:
        raise ValueError(str(error)) from None


def _tokens(value: Any) -> Any:
    return with_value_error(parse_length, value) if isinstance(value, str) else value


def _short(tokens: int) -> str | int:
    text = short_length(tokens)
    return tokens if text.isdecimal() or len(text) > 12 else text


def _method(name: str) -> str:
    with_value_error(get_method, name)
    return name


def _task(name: str) -> str:
    with_value_error(check_task, name)
    if isinstance(TASKS[name], QuestionTask):
        raise ValueError("asks questions that a plan cannot name. Leave it out; longrope eval --ruler-data has them")
    return name


def _source_of_factors(name: str) -> str:
    if name == "search" or Path(name).is_file():
        return name
    try:
        return canonical(name)
    except LongRopeError:
        close = did_you_mean(name, SCHEMES)
        raise ValueError(f"choose search, an existing factors file, or one of {', '.join(SCHEMES)}{close}") from None


def _rate(value: Any) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (0 < value < math.inf if number else value == "auto"):
        raise ValueError("choose auto, or a number above 0, such as 2e-5")
    return value


def _average(value: Any) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (0 <= value < 1 if number else value == "auto"):
        raise ValueError("choose auto, or a share from 0 to below 1, such as 0.2")
    return value


Tokens = Annotated[int, BeforeValidator(_tokens), Field(ge=2), PlainSerializer(_short, when_used="json-unless-none")]
Scheme = Annotated[str, AfterValidator(lambda name: with_value_error(canonical, name))]
Task = Annotated[str, AfterValidator(_task)]
Rate = Annotated[float | str, BeforeValidator(_rate)]
Average = Annotated[float | str, BeforeValidator(_average)]
Method = Annotated[str, AfterValidator(_method)]
Factors = Annotated[str, AfterValidator(_source_of_factors)]
Schedule = Literal[  # transformers' SchedulerType, less those that need numbers of their own
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"
]
# The file is strict: no "8" or true for a number. But TOML has lists where the plan has tuples.
FromList = Field(strict=False)


class PlanTable(BaseModel):
    """A table of a plan, in which unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
