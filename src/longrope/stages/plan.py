"""A plan: the stages that take a model to its target length, as a strict TOML file."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import Field, ValidationError, field_validator, model_validator

from longrope.errors import LongRopeError, did_you_mean
from longrope.rope import Rope
from longrope.schemes import attention_factor
from longrope.stages.plan_tables import Data, Evaluation, Finetune, Recovery, Search, Stage
from longrope.stages.plan_values import PlanTable, Some, checked

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

VERSION = 1
FOLDER = Path(__file__).parent.parent / "plans"


class Plan(PlanTable):
    """All stages, in ascending order of length.

    Args:
        version: of the format.
        stages: at least one.
        recovery: not given: sequences up to L0 see the original RoPE on the last stage's weights.
        data: documents.
        evaluation: what is measured.
        attention: attention factor: su, yarn, none or a number.
        original_tokens: that the model was trained on, for the advice on fine-tuning.
        export: form of the checkpoint: static, dual, or none.
    """

    version: Literal[1] = VERSION
    stages: Annotated[tuple[Stage, ...], Some]
    recovery: Recovery | None = None
    data: Data = Data()
    evaluation: Evaluation = Evaluation()
    attention: str | float = "su"
    original_tokens: float | None = Field(default=None, gt=0)
    export: Literal["static", "dual", "none"] = "static"

    @field_validator("attention", mode="before")
    @classmethod
    def _policy(cls, value: Any) -> Any:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        policy = value if number or isinstance(value, str) else repr(value)
        checked(lambda policy: attention_factor(policy, Rope(2, 1e4, 256), 256), policy)
        return value

    @model_validator(mode="after")
    def _in_order(self) -> Plan:
        if not self.stages:
            raise ValueError("stages is empty; give at least one table [[stages]]")
        lengths = [stage.length for stage in self.stages]
        for i, (before, after) in enumerate(pairwise(lengths)):
            if after <= before:
                raise ValueError(
                    f"stages[{i + 1}].length = {after} is not above stages[{i}].length = {before}; "
                    "put the stages in ascending order"
                )
        for i, length in enumerate(self.recovery.lengths if self.recovery is not None else ()):
            if length > lengths[-1]:
                raise ValueError(
                    f"recovery.lengths[{i}] = {length} is above the last stage's length = {lengths[-1]}; "
                    "recover lengths up to about twice the original one"
                )
        return self

    @property
    def length(self) -> int:
        """The target length in tokens."""
        return self.stages[-1].length

    def evaluation_lengths(self, original: int) -> list[int]:
        """Lengths of the evaluation in ascending order, for a model of so many tokens: L0 and every stage's if none."""
        wanted = self.evaluation.lengths
        if wanted is None:
            wanted = (original, *(stage.length for stage in self.stages))
        return sorted(set(wanted))

    def recovery_lengths(self, original: int) -> tuple[int, ...]:
        """Lengths of the search for short factors, for a model of so many tokens: L0 and 2·L0 if none are given."""
        return (self.recovery.lengths if self.recovery is not None else ()) or (original, 2 * original)

    def fits(self, rope: Rope) -> None:
        """Refuse a model that is as long already as the first stage.

        Raises:
            LongRopeError: if it is.
        """
        if self.stages[0].length <= rope.original_length:
            raise LongRopeError(
                f"stages[0].length = {self.stages[0].length} is not above the model's original length "
                f"{rope.original_length}; drop that stage or ask for a longer one"
            )

    def to_toml(self) -> str:
        """The plan as a file, without what is as by default."""
        kept = self.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
        stages, top, tables = kept.pop("stages"), {"version": VERSION}, {}
        for name, value in kept.items():
            (tables if isinstance(value, dict) else top)[name] = value
        parts = [tomli_w.dumps(top)]
        for stage in stages:  # not as inline tables, which are hard to edit
            inner = {name: stage.pop(name) for name in ("search", "finetune") if name in stage}
            parts += ["[[stages]]\n" + tomli_w.dumps(stage)]
            parts += [f"[stages.{name}]\n" + tomli_w.dumps(value) for name, value in inner.items()]
        return "\n".join([*parts, *([tomli_w.dumps(tables)] if tables else [])])


TABLES: dict[str, type[PlanTable]] = {
    "stages": Stage,
    "search": Search,
    "finetune": Finetune,
    "recovery": Recovery,
    "data": Data,
    "evaluation": Evaluation,
}
SAID = {
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


def parse_plan(text: str, name: str = "plan") -> Plan:
    """A plan from the text of a file.

    Raises:
        LongRopeError: if it is no TOML, has an unknown key or a bad value; names each.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise LongRopeError(f"{name} is no TOML: {error}") from None
    version = data.get("version")
    if version is None:
        raise LongRopeError(f"{name}: version is missing; write version = {VERSION} at the top")
    if type(version) is not int or version != VERSION:
        raise LongRopeError(f"{name}: version = {version!r}, but this longrope reads {VERSION}: upgrade longrope")
    try:
        return Plan.model_validate(data)
    except ValidationError as error:
        raise LongRopeError(f"{name}: {'; '.join(_said(one) for one in error.errors())}") from None


def _said(error: Any) -> str:
    """One of pydantic's errors: the place in the file, the value, what is wrong and what to do."""
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).lstrip(".")
    if error["type"] == "extra_forbidden":
        *tables, key = (part for part in error["loc"] if isinstance(part, str))
        keys = (TABLES[tables[-1]] if tables else Plan).model_fields
        return f"{place} is no key of a plan; there are {', '.join(keys)}{did_you_mean(key, keys)}"
    shown = f" = {error['input']!r}" if isinstance(error["input"], (str, int, float)) else ""
    if error["type"] in SAID:
        return f"{place}{shown} {SAID[error['type']].format(**error.get('ctx', {}))}"
    message = error["msg"].removeprefix("Value error, ")
    if shown and shown in message:  # it names the value itself, by a name that the file may not know
        return f"{place}{shown}{message.partition(shown)[2]}"
    return f"{place}{shown}: {message}" if place else message


def ready_made() -> dict[str, Path]:
    """The plans that longrope ships, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}


def load_plan(name: str | Path) -> Plan:
    """The plan of a file, or a ready-made one by its name: ``tiny``, ``tiny.toml`` or ``plans/tiny.toml``.

    Raises:
        LongRopeError: if there is none, or it is not valid.
    """
    shipped, path, name = ready_made(), Path(name), str(name)
    try:
        if not path.is_file():
            path = shipped.get(name.removeprefix("plans/").removesuffix(".toml"), path)
        return parse_plan(path.read_text(encoding="utf-8"), name)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no UTF-8 text"
        known = ", ".join(shipped) + did_you_mean(name, shipped)
        raise LongRopeError(f"plan = {name!r} cannot be read: {reason}; give a file, or one of {known}") from None
