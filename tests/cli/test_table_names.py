"""The help of the command line has the names of the tables, whether these are loaded or not."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys

import pytest

from longrope.cli.table_names import listed, table_names

TABLES = {
    "SCHEMES": ("longrope.schemes", "scale", "--scheme"),
    "COMPARED": ("longrope.schemes", "eval", "--schemes"),
    "METHODS": ("longrope.search.registry", "search", "--method"),
    "PARAMETRIZATIONS": ("longrope.search.parametrizations", "search", "--parametrization"),
    "TASKS": ("longrope.tasks.registry", "eval", "--retrieval"),
    "EXPORTERS": ("longrope.export.registry", "export", "--to"),
    "ENGINES": ("longrope.engines.registry", "check", "--engine"),
    "DTYPES": ("longrope.models.load", "eval", "--dtype"),
    "BUILT_IN": ("longrope.models.load_errors", "eval", "MODEL"),
}


def shown(command: str, extra: str = "") -> str:
    """The rendered help of a command in a new process, without its lines and spaces."""
    script = f"{extra}\nfrom longrope.cli.main import app\napp(['{command}', '--help'])"
    environment = {"COLUMNS": "200", "TERM": "dumb", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return re.sub(r"[│\s]+", " ", done.stdout)


@pytest.mark.parametrize("table", sorted(TABLES))
def test_the_source_has_the_names_of_the_table(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = TABLES[table][0]
    loaded = tuple(getattr(importlib.import_module(module), table))
    assert table_names(module, table) == loaded
    monkeypatch.delitem(sys.modules, module)
    assert table_names(module, table) == loaded


@pytest.mark.parametrize("table", sorted(TABLES))
def test_the_help_has_every_name(table: str) -> None:
    module, command, option = TABLES[table]
    text = shown(command)
    place = text.split("COMMAND")[0] if option == "MODEL" else text[text.index(f" {option} ") :]
    for name in table_names(module, table):
        assert re.search(rf"\b{name}\b", place), name


def test_a_row_from_outside_is_in_the_help() -> None:
    extra = "from longrope import METHODS\nMETHODS['hills'] = METHODS['cma']"
    assert "paper, simple or hills." in shown("search", extra)
    assert "hills" not in shown("search")


def test_a_phrase_of_names() -> None:
    assert listed("longrope.schemes", "COMPARED") == "pi, ntk, yarn or heuristic"
