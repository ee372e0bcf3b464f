"""Extending ``tiny`` 512 times: 256 → 131,072 tokens in one stage on sparse windows.

    make benchmark-extension                      # about three hours on two cores; continues where it stopped
    python benchmarks/extension.py sparse-0       # one run, or one measurement, such as table

Runs are those of ``longrope extend`` in ``build/extension``. All measurements are on one text of 131,072 tokens, test
documents joined: at every length it is cut into windows, so all lengths score the same tokens. Results in
``benchmarks/results/extension.json``. The rows *staged* and *once* there are from the recipe before, one jump in each
window (`git log` of this file has its plans).
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

import longrope as lr
from longrope.data.documents import load_documents
from longrope.data.split import split_documents
from longrope.data.tokenize import encode
from longrope.evaluation.statistics import mean_error
from longrope.formats.load_factors import load_extension
from longrope.models.average import mix_weights
from longrope.models.load import load_config
from longrope.provenance import provenance
from longrope.stages.average_test import choose_average
from longrope.stages.begin_run import begin_run
from longrope.stages.finetune import finetune
from longrope.stages.pipeline import extend
from longrope.stages.plan import Plan, parse_plan
from longrope.stages.plan_tables import Distill, Finetune
from longrope.stages.run_folder import StagedRun
from longrope.storage.atomic import write_json
from longrope.tasks.registry import make_prompts
from longrope.tasks.scoring import score_prompts
from longrope.units import parse_length

BUILD, RESULTS = Path("build/extension"), Path(__file__).parent / "results" / "extension.json"
ROPE = lr.Rope.of(load_config("tiny"))
TEXT, LENGTHS = 2**17, (2048, 8192, 32768, 131072)
AVERAGE, SEEDS = 0.37, (0, 1, 2)
RECALLED = {256: 100, 512: 100, 1024: 100, 2048: 100, 4096: 100, 8192: 50, 16384: 50}  # questions by length
QUESTIONS = 5  # on one document
MANY = ((16384, 5, 200), (16384, 25, 200), (32768, 25, 100))  # length, lines on one document, questions in all
PLAN = f"""\
version = 1
original_tokens = 17000000
export = "none"

[[stages]]
length = "128k"
factors = "ramp"

[stages.finetune]
steps = 277          # 1.13M tokens, 6.7% of the original ones
batch = 2            # one sparse window and eight short rows
rate = 1e-3
warmup = 0.06
window = "2k"
windows = "sparse"
short = 0.5
answers = 3
average = {AVERAGE}
dtype = "float32"
seed = SEED

[stages.finetune.distill]
weight = 1.0

[recovery.search]
documents = 32       # of 256 and 512 tokens
needles = 0

[data]
source = "stdlib:unseen"
train = "stdlib"
needles = 0.5

[evaluation]
lengths = []
"""
STEPS, SLICE = 40, 16384  # of an ablation: optimizer steps, and the first tokens of the text
ABLATIONS: dict[str, dict[str, Any]] = {  # changes of the recipe
    "recipe": {},
    "rate 1e-4": {"rate": 1e-4},
    "rate 3e-4": {"rate": 3e-4},
    "rate 3e-3": {"rate": 3e-3},
    "rate auto": {"rate": "auto"},
    "one jump": {"windows": "jump"},
    "keys without weights": {"key_bias": False},
    "no distillation": {"distill": None},
    "half distillation": {"distill": Distill(weight=0.5)},
    "hidden states": {"distill": Distill(hidden=4)},
    "hidden states, weight 16": {"distill": Distill(hidden=16)},
    "skipped positions": {"distill": Distill(skipped=0.5)},
    "hidden states and skipped positions": {"distill": Distill(hidden=16, skipped=0.5)},
    "hidden states and skipped positions, EMA": {"distill": Distill(hidden=16, skipped=0.5), "ema": 0.9},
    "EMA": {"ema": 0.9},
    "YaRN": {"factors": "yarn"},
    "heuristic": {"factors": "heuristic"},
}


KEEPING: dict[str, dict[str, Any]] = {  # changes of the whole recipe, which keep more of the original model
    "recipe": {},
    "LongReD": {"distill": Distill(hidden=16, skipped=0.5)},
    "EMA": {"ema": 0.95},
}
KEEPING_SEEDS = (0, 1)
ORDERS: dict[str, list[tuple[str, int]]] = {  # stages with equal tokens in all: length, optimizer steps
    "one stage": [("128k", 60)],
    "two stages": [("8k", 30), ("128k", 30)],
    "three stages": [("4k", 20), ("32k", 20), ("128k", 20)],
}


class Bench:
    """Runs, and one text to measure on."""

    @cached_property
    def text(self) -> np.ndarray:
        """``(TEXT,)``: test documents joined, the longest first."""
        documents = split_documents(load_documents("stdlib:unseen"), seed=0)["test"]
        tokens = [encode(document.text, self.tokenizer, length=TEXT) for document in documents]
        return np.concatenate(sorted(tokens, key=len, reverse=True))[:TEXT]

    @cached_property
    def tokenizer(self) -> Any:
        """Tokenizer of the model."""
        return lr.load("tiny")[1]

    def run(self, seed: int) -> StagedRun:
        """Carry out the plan with a seed, and return its run."""
        run = self.begun(f"sparse-{seed}", parse_plan(PLAN.replace("SEED", str(seed))))
        extend(run)
        return run

    def begun(self, name: str, plan: Plan) -> StagedRun:
        """Return a run of a plan in the build folder, with a bar of its progress."""
        BUILD.mkdir(parents=True, exist_ok=True)
        bar = tqdm(desc=name)

        def on_progress(step: str, done: int, total: int, note: str) -> None:
            bar.set_description(f"{name}, {step} {note}")
            bar.total, bar.n = total, done
            bar.refresh()

        run = StagedRun(BUILD / name, "tiny", plan, dtype="float32", on_progress=on_progress)
        begin_run(run, resume=True)
        return run

    @cached_property
    def seeds(self) -> list[int]:
        """Seeds whose runs are finished."""
        return [seed for seed in SEEDS if (BUILD / f"sparse-{seed}" / "extension.json").exists()]

    def model(self, seed: int | None, average: float = AVERAGE) -> PreTrainedModel:
        """Load the trained weights of a seed with a share of the original ones; the original ones for None."""
        if seed is None:
            return lr.load("tiny")[0]
        model, _ = lr.load(str(BUILD / f"sparse-{seed}" / "stage-1" / "model"))
        if average != AVERAGE:  # the run's weights hold that share
            mix_weights(model, lr.load("tiny")[0], 1 - (1 - average) / (1 - AVERAGE))
        return model

    def extension(self, seed: int) -> lr.Extension:
        """Return the extension of a run."""
        return load_extension(BUILD / f"sparse-{seed}" / "extension.json")

    def perplexity(self, model: PreTrainedModel, scaling: lr.Scaling | None, length: int, tokens: int = TEXT) -> float:
        """Return the perplexity of the text in windows of a length."""
        windows = self.text[:tokens].reshape(-1, length)
        return lr.perplexity(model, windows, [length], scaling=scaling, batch=max(1, 4096 // length))[0].perplexity


def measured(name: str, values: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """Measure each value once; the file in the build folder keeps it."""
    path = BUILD / f"measured-{name}.json"
    done: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for key, measure in tqdm(values.items(), desc=name):
        if key not in done:
            done[key] = measure()
            write_json(path, done)
    return {key: done[key] for key in values}


def table(bench: Bench) -> dict[str, Any]:
    """Perplexity at 8x, 32x, 128x and 512x of each seed."""
    values: dict[str, Callable[[], float]] = {}
    for seed in bench.seeds:
        training = BUILD / f"sparse-{seed}" / "stage-1" / "training.json"
        values[f"sparse-{seed} seconds of training"] = lambda path=training: json.loads(path.read_text())["seconds"]
        for length in LENGTHS:
            values[f"sparse-{seed} {length}"] = lambda seed=seed, length=length: bench.perplexity(
                bench.model(seed), bench.extension(seed).long, length
            )
    return measured("sparse-table", values)


def short(bench: Bench) -> dict[str, Any]:
    """Perplexity at 256 tokens: original, YaRN for 512x, and the extended models with three sets of factors."""
    yarn = lr.scheme("yarn", ROPE, TEXT)
    values: dict[str, Callable[[], float]] = {
        "original": lambda: bench.perplexity(bench.model(None), None, 256),
        "yarn": lambda: bench.perplexity(bench.model(None), yarn, 256),
    }
    choices: dict[str, Callable[[lr.Extension], lr.Scaling | None]] = {
        "recovered": lambda extension: extension.short,
        "plain RoPE": lambda _: None,
        "long factors": lambda extension: extension.long,
    }
    rows = [(f"sparse-{seed}", seed, AVERAGE) for seed in bench.seeds] + [("sparse-0, not averaged", 0, 0.0)]
    for row, seed, average in rows:
        for name, choose in choices.items():
            values[f"{row}, {name}"] = lambda seed=seed, average=average, choose=choose: bench.perplexity(
                bench.model(seed, average), choose(bench.extension(seed)), 256
            )
    return measured("sparse-short", values)


def averages(bench: Bench) -> dict[str, Any]:
    """Shares of the original weights, with and without those of queries and keys: perplexity at 256 and 32,768."""

    def value(share: float, *, all_weights: bool) -> dict[str, float]:
        model, original = bench.model(0, 0.0 if all_weights else share), dict(bench.model(None).named_parameters())
        with torch.no_grad():
            for name, parameter in model.named_parameters() if all_weights else ():
                parameter.lerp_(original[name], share)
        long = bench.extension(0).long
        return {"256, plain RoPE": bench.perplexity(model, None, 256), "32768": bench.perplexity(model, long, 32768)}

    def auto() -> dict[str, Any]:
        stage, file = parse_plan(PLAN.replace("SEED", "0")).stages[0], BUILD / "average.json"
        windows = bench.begun("averages", parse_plan(PLAN.replace("SEED", "0"))).data.held_out_windows(stage)
        original, _ = lr.load("tiny", dtype="float32")
        choose_average(bench.model(0, 0.0).float(), original, bench.extension(0).long, windows, file)
        return json.loads(file.read_text())

    values: dict[str, Callable[[], Any]] = {"auto": auto}
    for share in (0.0, 0.2, AVERAGE, 0.5):
        values[f"{share} but queries and keys"] = lambda share=share: value(share, all_weights=False)
        values[f"{share} of all"] = lambda share=share: value(share, all_weights=True)
    return measured("averages", values)


def recall(bench: Bench, model: PreTrainedModel, scaling: lr.Scaling, length: int, count: int, on_one: int) -> Any:
    """Return the exact recall of a number of planted lines, with some questions on one document."""
    texts = bench.text.reshape(-1, length)
    prompts = make_prompts("recall", bench.tokenizer, length=length, trials=count, texts=texts, questions=on_one)
    with lr.patch(model, scaling):
        scores = [prompt.score for prompt in score_prompts(model, bench.tokenizer, prompts)]
    mean, error = mean_error([score for score in scores if score is not None])
    return {"rate": mean, "standard_error": error, "trials": len(scores)}


def retrieval(bench: Bench) -> dict[str, Any]:
    """Exact recall of planted lines by length, five questions on a document."""
    values: dict[str, Callable[[], Any]] = {}
    for length in RECALLED:
        sizes = (length, RECALLED[length], min(QUESTIONS, length // 50))
        yarn = lr.scheme("yarn", ROPE, length) if length > 256 else lr.Scaling.identity(ROPE)
        if length <= 4096:
            values[f"yarn {length}"] = lambda f=yarn, s=sizes: recall(bench, bench.model(None), f, *s)
        for seed in bench.seeds:
            values[f"sparse-{seed} {length}"] = lambda seed=seed, s=sizes: recall(
                bench, bench.model(seed), bench.extension(seed).at(s[0]), *s
            )
    return measured("sparse-retrieval", values)


def questions(bench: Bench) -> dict[str, Any]:
    """Exact recall at the longest lengths, with few and with many planted lines on each document."""
    values: dict[str, Callable[[], Any]] = {}
    for seed in bench.seeds:
        for length, lines, count in MANY:
            values[f"sparse-{seed} {length}, {lines} lines"] = lambda seed=seed, s=(length, count, lines): recall(
                bench, bench.model(seed), bench.extension(seed).long, *s
            )
    return measured("sparse-questions", values)


def ablations(bench: Bench) -> dict[str, Any]:
    """Forty steps of each variant: perplexity of the first tokens of the text, and at 256 with plain RoPE."""

    def value(name: str, changes: dict[str, Any]) -> dict[str, float]:
        changes = dict(changes)
        factors, weighs, decay = changes.pop("factors", "ramp"), changes.pop("key_bias", True), changes.pop("ema", 0.0)
        stage = parse_plan(PLAN.replace("SEED", "0")).stages[0]
        assert stage.finetune is not None
        settings = stage.finetune.model_copy(update={"steps": STEPS, "average": 0.0, "save_every": STEPS, **changes})
        run = bench.begun("ablations", parse_plan(PLAN.replace("SEED", "0")))
        windows: Any = run.data.windows(stage.model_copy(update={"finetune": settings}))
        long = replace(lr.scheme(factors, ROPE, TEXT), attention_factor=lr.scheme("ramp", ROPE, TEXT).attention_factor)
        chosen: Any = windows if weighs else Unweighted(windows)
        folder = BUILD / "ablations" / name.replace(" ", "-")
        trained = trained_weights(long, chosen, settings, folder, decay)
        found = {str(length): bench.perplexity(trained, long, length, SLICE) for length in (2048, 16384)}
        rate = json.loads((folder / "rate.json").read_text()) if settings.rate == "auto" else {}
        return {**found, "256": bench.perplexity(trained, None, 256, SLICE), **rate}

    return measured("ablations", {name: lambda n=name, c=changes: value(n, c) for name, changes in ABLATIONS.items()})


def keeping(bench: Bench) -> dict[str, Any]:
    """Return what LongReD's terms and EMA bring to the whole recipe: perplexity of the text, and recall, by seed."""

    def value(seed: int, name: str) -> dict[str, Any]:
        run = bench.begun(f"keeping-{seed}", parse_plan(PLAN.replace("SEED", str(seed))))
        stage, folder = run.plan.stages[0], BUILD / f"keeping-{seed}" / name
        assert stage.finetune is not None
        changes = dict(KEEPING[name])
        decay, long = changes.pop("ema", 0.0), lr.scheme("ramp", ROPE, TEXT)
        settings = stage.finetune.model_copy(update={"average": 0.0, **changes})
        windows = run.data.windows(stage.model_copy(update={"finetune": settings}))
        model = trained_weights(long, windows, settings, folder, decay)
        mix_weights(model, bench.model(None), AVERAGE)
        found: dict[str, Any] = {str(length): bench.perplexity(model, long, length) for length in (2048, TEXT)}
        found["256"] = bench.perplexity(model, None, 256)
        return found | {"recall at 16384": recall(bench, model, long, 16384, 100, QUESTIONS)}

    return measured("keeping", {f"{n}, seed {s}": lambda s=s, n=n: value(s, n) for s in KEEPING_SEEDS for n in KEEPING})


def orders(bench: Bench) -> dict[str, Any]:
    """Plans of equal tokens, with the ramp in each stage: one stage or several."""

    def measure(model: PreTrainedModel, long: lr.Scaling) -> dict[str, float]:
        lengths = (2048, 16384)
        return {str(length): bench.perplexity(model, long, length, SLICE) for length in lengths} | {
            "131072": bench.perplexity(model, long, TEXT)
        }

    def trained(name: str) -> tuple[PreTrainedModel, lr.Scaling]:
        plan = parse_plan(PLAN.replace("SEED", "0"))
        first = plan.stages[0]
        assert first.finetune is not None
        stages: list[Any] = []
        for length, steps in ORDERS[name]:
            finetune = first.finetune.model_copy(update={"steps": steps, "average": 0.0, "save_every": steps})
            stages.append(first.model_copy(update={"length": parse_length(length), "finetune": finetune}))
        run = bench.begun(name.replace(" ", "-"), plan.model_copy(update={"stages": tuple(stages), "recovery": None}))
        extension = extend(run)
        return AutoModelForCausalLM.from_pretrained(run.stage_folder(len(stages)) / "model").eval(), extension.long

    return measured("orders", {name: lambda name=name: measure(*trained(name)) for name in ORDERS})


def trained_weights(long: lr.Scaling, windows: Any, settings: Finetune, folder: Path, decay: float) -> PreTrainedModel:
    """Train the original weights, and return the last ones, or their exponential moving average (EMA).

    A training that was stopped begins again, as its checkpoints do not hold the average.

    Args:
        long: Long factors.
        windows: Training sequences.
        settings: Settings of the training.
        folder: Folder of the training.
        decay: Share of the average that a step keeps; it begins with the original weights. 0 takes the last weights.
    """
    shutil.rmtree(folder, ignore_errors=True)
    model, mean = lr.load("tiny")[0], lr.load("tiny")[0]

    @torch.no_grad()
    def on_progress(*_: float) -> None:
        for kept, parameter in zip(mean.parameters(), model.parameters(), strict=True):
            kept.lerp_(parameter, 1 - decay)

    finetune(model, lr.Extension.of(ROPE, long), windows, settings, folder=folder, on_progress=on_progress)
    return mean.eval() if decay else AutoModelForCausalLM.from_pretrained(folder / "model").eval()


class Unweighted:
    """Training windows whose keys all weigh one token."""

    def __init__(self, windows: Any) -> None:
        self.windows, self.size = windows, windows.size

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        inputs = self.windows[index]
        return inputs | {"key_bias": 0 * inputs["key_bias"]} if "key_bias" in inputs else inputs


MEASURES = {
    "ablations": ablations,
    "keeping": keeping,
    "orders": orders,
    "table": table,
    "short": short,
    "averages": averages,
    "retrieval": retrieval,
    "questions": questions,
}


def main() -> None:
    """Make the runs, then the measurements, or those that are named; what is done is not done again."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    bench, names = Bench(), sys.argv[1:] or [*(f"sparse-{seed}" for seed in SEEDS), *MEASURES]
    for name in names:
        if name not in MEASURES:
            bench.run(int(name.removeprefix("sparse-")))
            continue
        values = MEASURES[name](bench)
        record = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        rows = record.get(name, {}) | values
        write_json(RESULTS, record | {name: rows, "plan": PLAN, "provenance": provenance()})
        print(json.dumps(values, indent=1))


if __name__ == "__main__":
    main()
