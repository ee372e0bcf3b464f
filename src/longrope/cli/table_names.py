"""The names in longrope's tables, for ``--help``, which must not wait for the packages that the tables need."""

from __future__ import annotations

import ast
import re
import sys
from importlib.util import find_spec
from pathlib import Path

STATEMENT = r"^{}\b.*=.*\n(?:[ )}}\]].*\n)*"  # one statement without blank lines; parsing whole modules takes 9 ms


def table_names(module: str, table: str) -> tuple[str, ...]:
    """Return the names in a table of a module: the keys of a dict, or the texts of a tuple.

    The names are read from the module's source unless the module is loaded. A row that other code added is in a loaded
    table, so the help shows it too.

    Args:
        module: Name of the module, such as ``longrope.schemes``.
        table: Name of the table in it, such as ``SCHEMES``.

    >>> table_names("longrope.search.registry", "METHODS")[:2]
    ('auto', 'gradient')
    """
    loaded = getattr(sys.modules.get(module), table, None)
    if loaded is not None:
        return tuple(loaded)
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8")
    for statement in re.findall(STATEMENT.format(table), source, re.MULTILINE):
        match ast.parse(statement).body:
            case [ast.Assign(value=value) | ast.AnnAssign(value=value)] if isinstance(value, (ast.Dict, ast.Tuple)):
                elements = value.keys if isinstance(value, ast.Dict) else value.elts
                return tuple(ast.literal_eval(element) for element in elements if element is not None)
    raise AssertionError(f"{module} has no table {table}")


def listed(module: str, table: str) -> str:
    """Return the names in a table as a phrase for ``--help``.

    >>> listed("longrope.search.registry", "METHODS")
    'auto, gradient, cma, paper or simple'
    """
    *names, last = table_names(module, table)
    return f"{', '.join(names)} or {last}"
