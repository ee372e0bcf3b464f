from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import longrope


def test_all_is_sorted_and_complete() -> None:
    assert longrope.__all__ == sorted(set(longrope.__all__))
    assert {"Rope", "Scaling", "Extension", "LongRoPE", "LongRopeError", "SCHEMES", "METHODS", "patch"} <= set(
        longrope.__all__
    )


@pytest.mark.parametrize("name", longrope.__all__)
def test_every_name_is_there_and_documented(name: str) -> None:
    value = getattr(longrope, name)
    if callable(value):
        assert value.__name__ == name
        assert value.__module__.startswith("longrope.")
        assert inspect.getdoc(value)


def test_the_methods_are_the_ones_of_the_command_line() -> None:
    assert list(longrope.METHODS) == ["auto", "gradient", "cma", "paper", "simple"]


def test_every_name_is_typed_for_those_who_read_the_source() -> None:
    typed = [line.split(" as ")[1] for line in inspect.getsource(longrope).splitlines() if line.startswith("    from ")]
    assert sorted(typed) == longrope.__all__


def test_import_star() -> None:
    names: dict[str, object] = {}
    exec("from longrope import *", names)
    assert set(longrope.__all__) <= set(names)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(longrope, "Rop")
    with pytest.raises(AttributeError, match="'longrope' has no attribute 'Rop'"):
        longrope.Rop  # noqa: B018


def test_a_function_keeps_its_name_after_its_package_is_imported() -> None:
    """``longrope.search`` is a package too, and importing it would put the package in the function's place."""
    code = (
        "import importlib, longrope\n"
        "longrope._HOME_OF['search'] = 'search.find'\n"
        "package = importlib.import_module('longrope.search')\n"
        "assert 'search' not in vars(longrope), 'the package took the name'\n"
        "from longrope.search import find\n"
        "assert find.__name__ == 'longrope.search.find'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
