"""The language rules of CONTRIBUTING, for names, docstrings, phrases and sizes.

Each rule lists its violations as ``file:line text``. `ALLOWED` is the number of violations that the source still has.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "longrope"
MARKDOWN = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md"), *SOURCE.rglob("*.md")]

VAGUE_NAMES = set(
    "about asked begun beside cell cells found given held here how item items kept made many much own ours part parts "
    "place so some such theirs there thing things told wanted way ways what where whole work".split()
)
FRAGMENT_STARTS = "as by in of that when which whose with".split()
SYMBOLS = ("exp", "float", "int64", "torch", "λ", "n̂")  # an entry may begin with the name of a function or type
NOT_A_VERB = set(
    "a all an as by each every for how in it its of one so that the there these this those what when where whether "
    "which".split()
)
ODD_PHRASES = re.compile(
    r"""
    (?<!there\ )\b(is|are|was|were)\ no\ (?!longer|more\b|less\b|need|way\b|reason)\w+  # "is not a …" is plainer
    | \b(anew|amiss|so\ many|by\ heart|without\ a\ word|as\ it\ were)\b
    | \b(is|are)\ told\b
    | \bwhat\ (is|are|was)\ (asked|left|said|told|wanted)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
MOST_LINES, MOST_PARAMETERS = 45, 8
COMMANDS = {"cli/search.py": 60, "cli/eval.py": 60}

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Module(NamedTuple):
    """A source file: its path below the package, its text and its syntax tree."""

    path: str
    text: str
    tree: ast.Module

    @property
    def functions(self) -> list[Function]:
        return [node for node in ast.walk(self.tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def module(path: str, text: str) -> Module:
    return Module(path, text, ast.parse(text))


MODULES = [
    module(path.relative_to(SOURCE).as_posix(), path.read_text(encoding="utf-8"))
    for path in sorted(SOURCE.rglob("*.py"))
]


def vague_names(modules: list[Module]) -> Iterator[str]:
    """Yield each parameter and variable whose name says nothing of its value."""
    for path, _, tree in modules:
        for node in ast.walk(tree):
            if isinstance(node, ast.arg) and node.arg in VAGUE_NAMES:
                yield f"{path}:{node.lineno} {node.arg}"
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in VAGUE_NAMES:
                yield f"{path}:{node.lineno} {node.id}"


def is_property(function: Function) -> bool:
    """Say whether a function is a property or the setter of one, which a noun phrase describes."""
    decorators = [ast.unparse(decorator) for decorator in function.decorator_list]
    return any(name.endswith(("property", ".setter")) for name in decorators)


def docstrings_without_a_verb(modules: list[Module]) -> Iterator[str]:
    """Yield each function whose docstring begins with an article, a pronoun or the like."""
    for each in modules:
        for function in each.functions:
            first_line = (ast.get_docstring(function) or "-").splitlines()[0]
            words = re.findall(r"[A-Za-z]+", first_line)
            if words and words[0].lower() in NOT_A_VERB and not is_property(function):
                yield f"{each.path}:{function.lineno} {first_line}"


def argument_entries(docstring: str) -> Iterator[tuple[str, str]]:
    """Yield (name, description) of the entries below ``Args:``."""
    section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)*)", docstring, re.MULTILINE)
    if section:
        yield from re.findall(r"^ {4}\*{0,2}(\w+): (.*)$", section[1], re.MULTILINE)


def argument_fragments(modules: list[Module]) -> Iterator[str]:
    """Yield each entry below ``Args:`` that is not a noun phrase with a capital."""
    for each in modules:
        for node in ast.walk(each.tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                for name, description in argument_entries(ast.get_docstring(node) or ""):
                    first = description.split(maxsplit=1)[0]
                    lower = first[0].islower() and not first.startswith(SYMBOLS)
                    if lower or first.lower() in FRAGMENT_STARTS:
                        yield f"{each.path}:{node.lineno} {name}: {description}"


def odd_phrases(modules: list[Module]) -> Iterator[str]:
    """Yield each line with a phrase that a reader has to decode."""
    for path, text, _ in modules:
        yield from (
            f"{path}:{number} {line.strip()}"
            for number, line in enumerate(text.splitlines(), 1)
            if ODD_PHRASES.search(line)
        )


def classes_defined_twice(modules: list[Module]) -> Iterator[str]:
    """Yield each public class name that two modules define."""
    homes = defaultdict(list)
    for path, _, tree in modules:
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(path)
    yield from (f"{name}: {', '.join(paths)}" for name, paths in homes.items() if len(paths) > 1)


def size(function: Function) -> tuple[int, int]:
    """Return (lines of the body without its docstring, parameters without ``self``)."""
    arguments = function.args
    parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    body = function.body[1:] if ast.get_docstring(function) else function.body
    lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
    return lines, len([one for one in parameters if one.arg not in ("self", "cls")])


def large_functions(modules: list[Module]) -> Iterator[str]:
    """Yield each function with too many lines or parameters; a command may have as many parameters as options."""
    for each in modules:
        for function in each.functions:
            lines, parameters = size(function)
            location = f"{each.path}:{function.lineno} {function.name}: {lines} lines, {parameters} parameters"
            if each.path.startswith("cli/"):
                if lines > COMMANDS.get(each.path, lines):
                    yield location
            elif lines > MOST_LINES or parameters > MOST_PARAMETERS:
                yield location


RULES: dict[str, Callable[[list[Module]], Iterator[str]]] = {
    rule.__name__: rule
    for rule in (
        vague_names,
        docstrings_without_a_verb,
        argument_fragments,
        odd_phrases,
        classes_defined_twice,
        large_functions,
    )
}
ALLOWED = {
    "vague_names": 11,
    "pages": 4,
}


@pytest.mark.parametrize("rule", RULES)
def test_the_source_keeps_the_rule(rule: str) -> None:
    violations = list(RULES[rule](MODULES))
    assert len(violations) <= ALLOWED.get(rule, 0), "\n".join(violations)


def test_pages_have_no_odd_phrases() -> None:
    pages = [Module(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"), ast.Module()) for path in MARKDOWN]
    violations = list(odd_phrases(pages))
    assert len(violations) <= ALLOWED.get("pages", 0), "\n".join(violations)


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        ("vague_names", "a.py", "def f(what: int) -> None: ...\n"),
        ("vague_names", "a.py", "xs = [found for found in range(3)]\n"),
        ("docstrings_without_a_verb", "a.py", 'def f() -> None:\n    """The loss."""\n'),
        (
            "argument_fragments",
            "a.py",
            'def f(seed: int) -> None:\n    """Draw.\n\n    Args:\n        seed: of everything.\n    """\n',
        ),
        (
            "argument_fragments",
            "a.py",
            'class C:\n    """A draw.\n\n    Args:\n        seed: Of everything.\n    """\n',
        ),
        ("odd_phrases", "a.py", "# the cache is computed anew\n"),
        ("odd_phrases", "a.py", "x = 'a Llama is no Mistral'\n"),
        ("large_functions", "a.py", "def f(a, b, c, d, e, f, g, h, i): ...\n"),
        ("large_functions", "a.py", "def f():\n" + "    x = 1\n" * 46),
        ("large_functions", "cli/search.py", "def run():\n" + "    x = 1\n" * 61),
    ],
)
def test_a_rule_sees_its_violation(rule: str, path: str, source: str) -> None:
    assert len(list(RULES[rule]([module(path, source)]))) == 1


def test_two_classes_of_one_name_are_seen() -> None:
    modules = [module("a.py", "class Row: ...\n"), module("b.py", "class Row: ...\n")]
    assert list(classes_defined_twice(modules)) == ["Row: a.py, b.py"]


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        ("vague_names", "def f(length: int) -> None: ...\n"),
        ("docstrings_without_a_verb", 'class C:\n    @property\n    def x(self) -> int:\n        """The loss."""\n'),
        ("docstrings_without_a_verb", 'def f() -> None:\n    """Return the loss."""\n'),
        (
            "argument_fragments",
            'def f(x):\n    """Do.\n\n    Args:\n        x: Its length.\n\n    Raises:\n        E: in.\n    """\n',
        ),
        ("odd_phrases", "# there is no cache, and no more of it is no longer needed\n"),
        ("large_functions", "class C:\n    def f(self, a, b, c, d, e, f, g, h): ...\n"),
    ],
)
def test_a_rule_allows_plain_code(rule: str, source: str) -> None:
    assert not list(RULES[rule]([module("a.py", source)]))
