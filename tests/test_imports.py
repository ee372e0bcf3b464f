"""Who may import whom: imports run downwards only."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "longrope"
BASE = {"errors", "checks", "units", "rope", "scaling", "storage"}
MAY_IMPORT = {
    "errors": set(),
    "checks": {"errors"},
    "units": {"errors", "checks"},
    "storage": {"errors"},
    "rope": {"errors", "checks", "formats"},  # in Rope.of, which reads a model's config
    "scaling": {"errors", "checks", "units", "rope"},
    "mixed_radix": {"rope", "scaling"},
    "scheme_modifiers": {"rope", "scaling"},
    "schemes": BASE - {"storage"} | {"mixed_radix", "scheme_modifiers"},
    "yarn_fit": {"errors", "rope", "scaling", "schemes"},
    "provenance": BASE,
    "formats": BASE | {"schemes", "scheme_modifiers"},
    "data": BASE,
    "models": BASE | {"schemes", "formats"},
    "longcontext": BASE | {"data", "models"},
    "tasks": BASE | {"data", "models"},
    "search": BASE | {"schemes", "yarn_fit", "data"},
    "objectives": BASE | {"schemes", "provenance", "formats", "data", "models", "longcontext", "cost", "search"},
    "evaluation": BASE | {"schemes", "provenance", "data", "models", "longcontext", "cost", "tasks"},
    "stages": BASE
    | {
        "schemes",
        "provenance",
        "formats",
        "data",
        "models",
        "longcontext",
        "tasks",
        "search",
        "objectives",
        "evaluation",
        "cost",
    },
    "cost": BASE | {"schemes", "models", "longcontext"},
    "engines": BASE | {"schemes"},
    "export": BASE | {"schemes", "yarn_fit", "formats", "models", "engines"},
    "servers": BASE | {"schemes", "formats", "models", "longcontext", "data", "tasks", "evaluation"},
    "report": BASE | {"schemes", "yarn_fit", "formats", "search", "evaluation", "engines"},
}
MAY_IMPORT["cli"] = set(MAY_IMPORT)
FREE = {"__init__", "__main__"}


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted names of all imports, including those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import: write the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = {str(path.relative_to(SOURCE)): path for path in sorted(SOURCE.rglob("*.py"))}
PART_OF = {name: Path(name).parts[0].removesuffix(".py") for name in FILES}


def imports(name: str) -> list[str]:
    return list(imported(ast.parse(FILES[name].read_text(encoding="utf-8"))))


def test_every_part_has_a_row() -> None:
    assert set(PART_OF.values()) - FREE == set(MAY_IMPORT)


@pytest.mark.parametrize("name", FILES)
def test_the_arrows(name: str) -> None:
    part = PART_OF[name]
    packages = {module.split(".")[1] for module in imports(name) if module.startswith("longrope.")} - {"__version__"}
    allowed = set(MAY_IMPORT) if part in FREE else MAY_IMPORT[part] | {part}
    assert packages <= allowed
    assert "longrope" not in imports(name), "import from the module that defines the name"


@pytest.mark.parametrize("part", ["search", "rope", "scaling", "checks", "units", "storage", "schemes", "errors"])
def test_no_torch_and_no_transformers(part: str) -> None:
    for name in (name for name in FILES if PART_OF[name] == part):
        assert not {"torch", "transformers"} & {module.split(".")[0] for module in imports(name)}, name


def at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes outside of functions."""
    for child in ast.iter_child_nodes(tree):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from at_import(child)


@pytest.mark.parametrize("name", FILES)
def test_ray_is_imported_inside_functions_only(name: str) -> None:
    """Ray is an extra and slow to import."""
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    nodes = [node for node in at_import(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert "ray" not in {module.split(".")[0] for node in nodes for module in imported(node)}


def test_every_other_package_is_a_dependency() -> None:
    """Compare the imported packages outside of Python with the dependencies and extras."""
    project = (SOURCE.parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    packages = {module.split(".")[0] for name in FILES for module in imports(name)}
    packages -= sys.stdlib_module_names | {"longrope"}
    missing = {package for package in packages if f'"{package.replace("_", "-")}' not in project}
    assert packages >= {"torch", "numpy", "cmaes", "ray"}
    assert not missing


def test_the_walk_sees_imports() -> None:
    tree = ast.parse("import torch.nn as n\ndef f():\n    from longrope.cli import main\n")
    assert list(imported(tree)) == ["torch.nn", "longrope.cli.main"]


@pytest.mark.parametrize(
    "code",
    [
        "import longrope",
        "import longrope.search.loop",
        "import longrope.search.registry, longrope.objectives.local_workers",
        "from longrope import METHODS, Budget, Space, Rope; Space(Rope(8, 1e4, 64), 512)",
        "from longrope import Rope, Scaling, scheme; scheme('yarn', Rope(8, 1e4, 64), 512)",
        "from longrope.cli.main import app; app(['--help'], standalone_mode=False)",
        "from longrope.cli.main import app; app(['search', '--help'], standalone_mode=False)",
        "import longrope.formats.load_factors, longrope.formats.gguf",
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_needed(code: str) -> None:
    check = "import sys; print(sorted({'torch', 'transformers', 'altair', 'ray'} & set(sys.modules)))"
    completed = subprocess.run([sys.executable, "-c", f"{code}\n{check}"], capture_output=True, text=True, check=True)
    assert completed.stdout.splitlines()[-1] == "[]"
