"""Measure how many small changes of the core its own tests notice: mutation testing by mutmut.

    make mutation                                 # every file of `FILES` (about an hour on two cores)
    python scripts/mutation.py rope.py search/cma.py
    python scripts/mutation.py rope.py --again    # only survivors, after tests were added and nothing else changed

mutmut changes each file in a copy of the tree under ``build/mutation`` and runs the test files that mirror it, with 10
examples per property. mutmut skips decorated functions, so the copy replaces ``@property`` above a function by
``name = property(name)`` below it. Constants, defaults of dataclass fields, decorators and annotations are not mutated.
``benchmarks/results/mutation.json`` lists the mutants that survive. The "why" of a survivor is written by hand and
stays as long as the mutant survives.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from longrope.provenance import provenance
from longrope.storage.atomic import write_json

ROOT = Path(__file__).parent.parent
RESULTS, BUILD = ROOT / "benchmarks" / "results" / "mutation.json", ROOT / "build" / "mutation"
MUTMUT = Path(sys.executable).with_name("mutmut")
FILES = {
    "rope.py": "test_rope test_scaling",
    "scaling.py": "test_scaling test_rope",
    "schemes.py": "test_schemes test_resonance",
    "mixed_radix.py": "test_mixed_radix test_schemes",
    "scheme_modifiers.py": "test_resonance test_cope",
    "yarn_fit.py": "test_yarn_fit",
    "checks.py": "test_checks test_rope test_scaling",
    "models/rotary_embedding.py": "models/test_rotary_embedding models/test_rotary_state",
    "search/auto.py": "search/test_auto",
    "search/budget.py": "search/test_budget",
    "search/cma.py": "search/test_cma",
    "search/evaluator.py": "search/test_evaluator",
    "search/evolution.py": "search/test_evolution",
    "search/gradient.py": "search/test_gradient_method",
    "search/journal.py": "search/test_journal",
    "search/registry.py": "search/test_registry",
    "search/protocol.py": "search/test_protocol",
    "search/genetic_operators.py": "search/test_genetic_operators",
    "search/racing.py": "search/test_racing",
    "search/loop.py": "search/test_loop",
    "search/parametrizations.py": "search/test_parametrizations search/test_space",
    "search/space.py": "search/test_space",
}
EXCLUDED = {
    "objectives/ray_workers.py": "needs a Ray cluster for every mutant",
    "objectives/local_workers.py": "its tests kill and replace processes, two minutes a mutant",
}
GROUPS = {
    "rope": ("rope.py", "scaling.py", "checks.py"),
    "schemes": ("schemes.py",),
    "embedding": ("models/rotary_embedding.py",),
}
SLOW = "compiled or killed or interrupted or recovers"  # they take minutes; torch.compile cannot trace a mutant
PROFILE = """
import gc
gc.disable()
from hypothesis import HealthCheck, Phase
settings.register_profile("mutation", settings.get_profile("longrope"), max_examples=10,
    phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck))
settings.load_profile("mutation")
"""
STATUS = {1: "killed", 3: "killed", 0: "survived", 5: "no tests", 33: "no tests", -24: "timeout", 24: "timeout"}
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
TOOLS = {name: version(name) for name in ("mutmut", "pytest", "hypothesis")}
NOTICED = ("killed", "timeout")


def main() -> None:
    """Mutate the given files and update the results."""
    parser = argparse.ArgumentParser(description="Mutation testing of the core.")
    parser.add_argument(
        "files", nargs="*", default=list(FILES), help="paths below src/longrope (default: all of FILES)"
    )
    parser.add_argument("--again", action="store_true", help="run only the survivors, after tests were added")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    record = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {"files": {}}
    for name in options.files:
        folder = BUILD / name.replace("/", "-").removesuffix(".py")
        copy(name, folder, again=options.again)
        run = [MUTMUT, "run", "--max-children", str(options.processes)]
        run += unnoticed(statuses(name, folder)) if options.again else []
        subprocess.run(run, cwd=folder, check=True, env={**os.environ, **ENVIRONMENT}, stdout=sys.stderr)
        record["files"][name] = outcome(name, folder, record["files"].get(name, {}))
        origin = provenance() | {"command": "make mutation"} | TOOLS
        write_json(RESULTS, {**summary(record["files"]), "provenance": origin})
        print(name, {key: value for key, value in record["files"][name].items() if key != "survivors"}, flush=True)


def copy(name: str, folder: Path, *, again: bool) -> None:
    """Copy the tree for the mutation of one file; with `again`, update only the tests of the existing copy."""
    if not again:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
        source = folder / "src" / "longrope" / name
        source.write_text(undecorated(source.read_text("utf-8")), "utf-8")
    (folder / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)
    shutil.copytree(ROOT / "tests", folder / "tests", dirs_exist_ok=True)
    with (folder / "tests" / "conftest.py").open("a") as conftest:
        conftest.write(PROFILE)
    shutil.copy(ROOT / "pyproject.toml", folder)
    tests = [f"tests/{test}.py" for test in FILES[name].split()]
    lines = ["[mutmut]", "source_paths = src", f"only_mutate = src/longrope/{name}"]
    lines += ["timeout_multiplier = 5.0", "timeout_constant = 6.0", "pytest_add_cli_args ="]
    lines += [" -k", f" not ({SLOW})", " -p", " no:unraisableexception"]  # it collects garbage five times per mutant
    lines += ["pytest_add_cli_args_test_selection =", *(f" {test}" for test in tests)]
    (folder / "setup.cfg").write_text("\n".join(lines) + "\n", "utf-8")


def undecorated(text: str) -> str:
    """Return the source with ``name = property(name)`` below each function that had ``@property`` above it."""
    lines = text.split("\n")
    functions = [
        node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef) and node.decorator_list
    ]
    for function in sorted(functions, key=lambda node: -node.lineno):
        (decorator,) = function.decorator_list
        if isinstance(decorator, ast.Name) and decorator.id in ("property", "cached_property"):
            indent = " " * function.col_offset
            lines.insert(function.end_lineno or 0, f"{indent}{function.name} = {decorator.id}({function.name})")
            del lines[decorator.lineno - 1]
    return "\n".join(lines)


def statuses(name: str, folder: Path) -> dict[str, str]:
    """Return the status of each mutant."""
    meta = json.loads((folder / "mutants" / "src" / "longrope" / f"{name}.meta").read_text("utf-8"))
    return {key: STATUS.get(code, "suspicious") for key, code in meta["exit_code_by_key"].items()}


def unnoticed(status_by_mutant: dict[str, str]) -> list[str]:
    """Return the mutants that no test noticed."""
    return [mutant for mutant, status in status_by_mutant.items() if status not in NOTICED]


def outcome(name: str, folder: Path, before: dict[str, Any]) -> dict[str, Any]:
    """Count the mutants of a file by status and list the survivors."""
    status_by_mutant = statuses(name, folder)
    known = [survivor for survivor in before.get("survivors", ()) if survivor.get("why")]
    why = {(survivor["in"], *survivor["change"]): survivor["why"] for survivor in known}
    survivors = []
    for key in unnoticed(status_by_mutant):
        shown = subprocess.run([MUTMUT, "show", key], cwd=folder, check=True, capture_output=True, text=True)
        change = [" ".join(line.split()) for line in shown.stdout.splitlines() if re.match(r"[-+](?![-+])\s*\S", line)]
        function = key.rpartition(".")[2].partition("__mutmut")[0].removeprefix("x_").strip("xǁ").replace("ǁ", ".")
        survivors.append({"in": function, "change": change, "why": why.get((function, *change), "")})
    endings = list(status_by_mutant.values())
    counts = {status: endings.count(status) for status in sorted({*STATUS.values(), "suspicious"})}
    return {"mutants": len(endings), **counts, "tests": FILES[name].split(), "survivors": survivors}


def summary(files: dict[str, Any]) -> dict[str, Any]:
    """Return the score of each group (killed and timed-out mutants over all mutants) and the files."""
    ordered = {name: files[name] for name in FILES if name in files}
    groups = {}
    for group in (*GROUPS, "search"):
        names = GROUPS.get(group, [name for name in FILES if name.startswith("search/")])
        outcomes = [files[name] for name in names if name in files]
        mutants = sum(file["mutants"] for file in outcomes)
        noticed = sum(file[status] for file in outcomes for status in NOTICED)
        equivalent = sum(bool(survivor["why"]) for file in outcomes for survivor in file["survivors"])
        score = round(noticed / mutants, 4) if mutants else None
        groups[group] = {"mutants": mutants, "noticed": noticed, "equivalent": equivalent, "score": score}
    missing = [name for name in FILES if name not in files]
    return {"groups": groups, "not yet measured": missing, "excluded": EXCLUDED, "files": ordered}


if __name__ == "__main__":
    main()
