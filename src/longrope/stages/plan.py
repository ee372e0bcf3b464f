"""A plan, the stages that take a model to its target length, as a strict TOML file."""

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
from longrope.stages.plan_errors import describe_errors
from longrope.stages.plan_tables import Data, FinalEvaluation, Recovery, Stage
from longrope.stages.plan_values import FromList, PlanTable, Tokens, with_value_error

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

VERSION = 1
FOLDER = Path(__file__).parent.parent / "plans"


class Plan(PlanTable):
    """The stages of an extension, in ascending order of length.

    Args:
        version: Version of the format.
        stages: Stages, at least one.
        recovery: Search for short factors; without it, sequences up to L0 see the original RoPE on the last weights.
        data: Documents.
        evaluation: Measurements at the end.
        attention: Attention factor: su, yarn, none or a number.
        original_length: L0 in tokens, where the checkpoint's fields are wrong or disagree; its own if not given.
        original_tokens: Tokens that the model was trained on, for the advice on fine-tuning.
        export: Form of the checkpoint: static, dual, or none.
    """

    version: Literal[1] = VERSION
    stages: Annotated[tuple[Stage, ...], FromList]
    recovery: Recovery | None = None
    data: Data = Data()
    evaluation: FinalEvaluation = FinalEvaluation()
    attention: str | float = "su"
    original_length: Tokens | None = None
    original_tokens: float | None = Field(default=None, gt=0)
    export: Literal["static", "dual", "none"] = "static"

    @field_validator("attention", mode="before")
    @classmethod
    def _policy(cls, value: Any) -> Any:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        policy = value if number or isinstance(value, str) else repr(value)
        with_value_error(lambda policy: attention_factor(policy, Rope(2, 1e4, 256), 256), policy)
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
        if self.data.wordings != "one" and not self.data.needles:
            raise ValueError(
                f'data.wordings = "{self.data.wordings}" with data.needles = 0: no line is planted. '
                "Give data.needles, such as 0.5, or leave wordings out"
            )
        trained = [stage.finetune for stage in self.stages if stage.finetune is not None]
        adapters = [finetune for finetune in trained if not finetune.merge]
        if adapters and len(trained) > 1:
            raise ValueError(
                "merge = false beside another fine-tuning: up to L0 the model would not be the original one. "
                "Leave merge out, or fine-tune one stage alone"
            )
        if adapters and self.recovery is not None:
            raise ValueError(
                "recovery with merge = false: up to L0 the model is the original one. Leave [recovery] out"
            )
        if adapters and self.export == "dual":
            raise ValueError(
                'export = "dual" with merge = false: a checkpoint cannot switch weights with its factors. '
                "Take static, which merges the adapter, or none"
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
        """Return the lengths of the evaluation in ascending order.

        Args:
            original: L0 in tokens. It and the length of every stage are taken if the plan gives no lengths.
        """
        lengths = self.evaluation.lengths
        if lengths is None:
            lengths = (original, *(stage.length for stage in self.stages))
        return sorted(set(lengths))

    def recovery_lengths(self, original: int) -> tuple[int, ...]:
        """Return the lengths of the search for short factors.

        Args:
            original: L0 in tokens. It and 2·L0, if the plan goes that far, are taken if the plan gives no lengths.
        """
        lengths = self.recovery.lengths if self.recovery is not None else ()
        return lengths or tuple(length for length in (original, 2 * original) if length <= self.length)

    def check_fits(self, rope: Rope) -> None:
        """Refuse a model that is as long already as the first stage.

        Raises:
            LongRopeError: If it is.
        """
        if self.stages[0].length <= rope.original_length:
            raise LongRopeError(
                f"stages[0].length = {self.stages[0].length} is not above the model's original length "
                f"{rope.original_length}; drop that stage or ask for a longer one"
            )

    def to_toml(self) -> str:
        """Return the plan as a TOML file, without the values that are defaults."""
        fields = self.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
        stages, values, tables = fields.pop("stages"), {"version": VERSION}, {}
        for name, value in fields.items():
            (tables if isinstance(value, dict) else values)[name] = value
        sections = [tomli_w.dumps(values)]
        for stage in stages:  # not as inline tables, which are hard to edit
            sections += _sections("[[stages]]", "stages", stage)
        if tables:
            sections.append(tomli_w.dumps(tables))
        return "\n".join(sections)


def parse_plan(text: str, name: str = "plan") -> Plan:
    """Read a plan from the text of a file.

    Raises:
        LongRopeError: If the text is not TOML, or has an unknown key or a bad value; names each of them.
    """
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise LongRopeError(f"{name} is not a TOML file: {error}") from None
    version = data.get("version")
    if version is None:
        raise LongRopeError(f"{name}: version is missing; write version = {VERSION} at the top")
    if type(version) is not int or version != VERSION:
        raise LongRopeError(f"{name}: version = {version!r}, but this longrope reads {VERSION}: upgrade longrope")
    try:
        return Plan.model_validate(data)
    except ValidationError as error:
        raise LongRopeError(f"{name}: {describe_errors(error, Plan)}") from None


def shipped_plans() -> dict[str, Path]:
    """Return the files of the plans that longrope ships, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}


def load_plan(name: str | Path) -> Plan:
    """Load a plan from a file, or one that longrope ships by its name: ``tiny``, ``tiny.toml`` or ``plans/tiny.toml``.

    Raises:
        LongRopeError: If the file does not exist, or is not a valid plan.
    """
    shipped, path, name = shipped_plans(), Path(name), str(name)
    try:
        if not path.is_file():
            path = shipped.get(name.removeprefix("plans/").removesuffix(".toml"), path)
        return parse_plan(path.read_text(encoding="utf-8-sig"), name)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no UTF-8 text"
        known = ", ".join(shipped) + did_you_mean(name, shipped)
        raise LongRopeError(f"plan = {name!r} cannot be read: {reason}; give a file, or one of {known}") from None


def _sections(header: str, name: str, table: dict[str, Any]) -> list[str]:
    """Return the text of a table and then of each table in it."""
    inner = {key: value for key, value in table.items() if isinstance(value, dict)}
    sections = [f"{header}\n" + tomli_w.dumps({key: value for key, value in table.items() if key not in inner})]
    for key, value in inner.items():
        sections += _sections(f"[{name}.{key}]", f"{name}.{key}", value)
    return sections
