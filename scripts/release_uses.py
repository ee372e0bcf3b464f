"""What an installed longrope must do in an empty folder, with torch and without it."""

from __future__ import annotations

USES = (
    ("-c", "import longrope; print(len([getattr(longrope, name) for name in longrope.__all__]), 'public names')"),
    ("-m", "longrope", "--version"),
    ("-m", "longrope", "doctor"),
    ("-m", "longrope", "inspect", "tiny", "--json"),
    ("-m", "longrope", "scale", "tiny", "--scheme", "yarn", "--length", "2k", "-o", "factors.json"),
    ("-m", "longrope", "generate", "tiny", "def main():", "--factors", "factors.json", "--max-new-tokens", "4"),
)
IMPORT_ALL = """
import importlib, pkgutil, longrope
for module in pkgutil.walk_packages(longrope.__path__, "longrope."):
    try:
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "accelerate"):
            raise
"""
SEARCH = """
from pathlib import Path
import longrope as lr
from longrope.search.run import SearchObjectives
rope = lr.Rope(dim=64, base=10000.0, original_length=256)
yarn, ramp = (lr.scheme(name, rope, 2048) for name in ("yarn", "ramp"))
distance = lr.FunctionObjective(lambda scaling: sum((a - b) ** 2 for a, b in zip(scaling.factors, ramp.factors)))
objectives = SearchObjectives(distance, distance, {"search": "distance", "held_out": "distance"})
found = lr.find_factors(lr.Space(rope, 2048), objectives, Path("run"), method=lr.METHODS["cma"], starts=[yarn])
assert distance.loss(found.extension.long) < distance.loss(yarn)
Path("ramp.json").write_text(lr.Extension(rope=rope, short=lr.Scaling([1.0] * 32), long=ramp, length=2048).to_json())
"""
USES_WITHOUT_TORCH = (
    ("-c", IMPORT_ALL),
    ("-m", "longrope", "--version"),
    ("-m", "longrope", "extend", "--help"),
    ("-c", SEARCH),
    ("-m", "longrope", "compare-factors", "run", "ramp.json"),
    ("-m", "longrope", "fit", "ramp.json", "-o", "yarn.json"),
)
