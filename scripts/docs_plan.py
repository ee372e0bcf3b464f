"""Write docs/reference/plan.md, the keys of a plan, from the types that read it. With ``--check``, only compare."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from generated import write_or_check
from pydantic.fields import FieldInfo

from longrope.stages.plan import Plan
from longrope.stages.plan_values import Average, Factors, Method, PlanTable, Rate, Scheme, Task, Tokens

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "plan.md"
NAMED: dict[Any, str] = {
    Tokens: "tokens",
    Scheme: "name of a scheme",
    Task: "name of a task",
    Method: "name of a method",
    Factors: "text",
    Rate: 'number above 0, or `"auto"`',
    Average: 'number from 0 to below 1, or `"auto"`',
    int: "whole number",
    float: "number",
    str: "text",
    bool: "`true` or `false`",
}
LIMITS = {"gt": "above {:g}", "ge": "at least {:g}", "lt": "below {:g}", "le": "at most {:g}"}
PARAGRAPH = "\n\n"
COLUMNS = ["| key | | type | default |", "|---|---|---|---|"]
HEAD = """\
# Plan files

`python scripts/docs_plan.py` writes this page from the types that read a plan. [A plan](../extension.md#a-plan) has an
example and says what a stage does. The file is TOML, and an unknown key is an error. *Tokens* are a whole number, or
text with a unit: `"32k"` is 32,768 and `"2m"` is 2,097,152. Every key that is not required may be left out.

"""


def main() -> int:
    """Write the page, or with ``--check`` only compare it."""
    return write_or_check(PAGE, page(), "docs_plan.py")


def page() -> str:
    """Return the whole page: the keys outside of tables, then one section for each table."""
    headers: dict[type[PlanTable], list[str]] = {}
    for header, table in tables(Plan):
        headers.setdefault(table, []).append(header)
    sections = [section([], Plan), *(section(names, table) for table, names in headers.items())]
    return HEAD + PARAGRAPH.join(sections) + "\n"


def tables(table: type[PlanTable], path: str = "") -> Iterator[tuple[str, type[PlanTable]]]:
    """Yield the header and the type of each table within a table, such as ``[stages.search]``."""
    for name, type_ in get_type_hints(table, include_extras=True).items():
        inner = inner_table(type_)
        if inner is not None:
            yield (f"[[{path}{name}]]" if is_list(type_) else f"[{path}{name}]"), inner
            yield from tables(inner, f"{path}{name}.")


def inner_table(type_: Any) -> type[PlanTable] | None:
    """Return the table that a type holds, alone or in a list; None without one."""
    if isinstance(type_, type) and issubclass(type_, PlanTable):
        return type_
    return next((table for table in map(inner_table, get_args(type_)) if table is not None), None)


def is_list(type_: Any) -> bool:
    """Return whether a type is a list in the file."""
    return get_origin(type_) is tuple or any(map(is_list, get_args(type_)))


def section(headers: Sequence[str], table: type[PlanTable]) -> str:
    """Return the section of one table: how it begins in the file, what it is, and its keys."""
    text = inspect.cleandoc(table.__doc__ or "").replace("``", "`")
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
    meanings = {name: " ".join(entry.split()) for name, entry in entries}
    types = get_type_hints(table, include_extras=True)
    rows = [
        f"| `{name}` | {meanings[name]} | {kind(types[name], field)} | {default(field)} |"
        for name, field in table.model_fields.items()
    ]
    title = headers[0].strip("[]") if headers else "Top of the file"
    begins = " or ".join(f"`{header}`" for header in headers)
    description = f"Header: {begins}. {text.splitlines()[0]}" if headers else text.splitlines()[0]
    return PARAGRAPH.join([f"## {title}", description, "\n".join([*COLUMNS, *rows])])


def kind(type_: Any, field: FieldInfo) -> str:
    """Return the type of a key's value in words, with its limits."""
    inner = inner_table(type_)
    if inner is not None:
        anchor = next(header for header, table in tables(Plan) if table is inner).strip("[]").replace(".", "")
        return f"[{'tables' if is_list(type_) else 'table'}](#{anchor})"
    rules = () if type_ == Tokens else field.metadata  # every number of tokens is at least 2
    limits = [LIMITS[name].format(value) for rule in rules for name, value in limits_of(rule)]
    return ", ".join([words(type_), *limits])


def limits_of(rule: Any) -> list[tuple[str, float]]:
    """Return the limits that a rule of pydantic sets, by the names in `LIMITS`."""
    return [(name, getattr(rule, name)) for name in LIMITS if hasattr(rule, name)]


def words(type_: Any) -> str:
    """Return a type in words."""
    if type_ in NAMED:
        return NAMED[type_]
    origin, parts = get_origin(type_), [part for part in get_args(type_) if part not in (type(None), Ellipsis)]
    if origin is Literal:
        return ", ".join(f"`{json.dumps(part)}`" for part in parts)
    if origin is tuple:
        return f"list: {words(parts[0])}"
    if origin in (Union, UnionType):
        return " or ".join(words(part) for part in parts)
    return words(parts[0])  # of Annotated


def default(field: FieldInfo) -> str:
    """Return the default of a key as the file would have it; a table's defaults are those of its keys."""
    if field.is_required():
        return "required"
    if field.default is None or isinstance(field.default, PlanTable):
        return ""
    return f"`{json.dumps(field.default)}`"


if __name__ == "__main__":
    sys.exit(main())
