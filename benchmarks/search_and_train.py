"""Does a search before the training pay, or one after it? On ``tiny`` at 8x and 512x.

    make benchmark-search-and-train                     # an hour on one core; continues where it stopped
    python benchmarks/search_and_train.py 8x search     # the rows of one scale that begin so

Sixty steps of the recipe of ``benchmarks/extension.py`` from factors of closed forms, or of the default search on the
original weights. All see the same sequences; documents of the searches are not among them. Then the default search runs
on the trained weights, from the same closed forms and the factors of the training. Results in
``benchmarks/results/search-and-train.json``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from extension import BUILD, PLAN, ROPE, Bench, recall
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

import longrope as lr
from longrope.formats.load_factors import load_extension
from longrope.provenance import provenance
from longrope.search.options import SearchOptions
from longrope.stages.finetune import finetune
from longrope.stages.plan import parse_plan
from longrope.stages.plan_tables import Recovery, Search
from longrope.storage.atomic import write_json

RESULTS = Path(__file__).parent / "results" / "search-and-train.json"
STEPS, FACTORS = 60, ("yarn", "ramp", "search")
AGAIN = {"8x": ("yarn", "search"), "512x": ("ramp", "search")}  # trainings that are followed by a search
# target length, tokens of a training window, rate, window of the search, lengths of perplexity, tokens of the text
SCALES: dict[str, tuple[int, int, float, int | None, tuple[int, ...], int]] = {
    "8x": (2048, 1024, 4e-4, None, (2048,), 2**17),  # at 1e-3 YaRN's perplexity rises from 14.4 to 14.8
    "512x": (2**17, 2048, 1e-3, 4096, (2048, 16384), 2**14),
}
RECALLED, QUESTIONS = 2048, 100


class Scale:
    """Searches, trainings and measurements for one target length."""

    def __init__(self, name: str) -> None:
        self.name, self.bench = name, Bench()
        self.length, self.window, self.rate, self.search_window, self.lengths, self.tokens = SCALES[name]
        self.folder = BUILD / f"search-{name}"

    def searched(self, name: str, model: PreTrainedModel | None, *starts: lr.Scaling) -> lr.Scaling:
        """Search factors on some weights, the original ones for None, from closed forms and other starts."""
        folder = self.folder / f"search-{name}"
        if not (folder / "extension.json").exists():
            options = SearchOptions(window=self.search_window, factors=starts, existing="resume", dtype="float32")
            loaded = (model.float(), self.bench.tokenizer) if model is not None else lr.load("tiny", dtype="float32")
            lr.search(*loaded, length=self.length, data="stdlib:unseen", output=folder, options=options)
        return load_extension(folder / "extension.json").long

    def factors(self, name: str) -> lr.Scaling:
        """Return the factors of a training."""
        if name == "search":
            return self.searched("before", None)
        attention = lr.scheme("ramp", ROPE, self.length).attention_factor
        return replace(lr.scheme(name, ROPE, self.length), attention_factor=attention)

    def trained(self, name: str) -> PreTrainedModel:
        """Train from some factors, and return the weights."""
        folder = self.folder / name
        if not (folder / "model").exists():
            plan = parse_plan(self.plan())
            searches = Recovery(lengths=(self.length,), search=Search(window=self.search_window))  # are not trained on
            stage = plan.stages[0]
            assert stage.finetune is not None
            changes = {"steps": STEPS, "average": 0.0, "save_every": STEPS, "window": self.window, "rate": self.rate}
            settings = stage.finetune.model_copy(update=changes)
            run = self.bench.begun(f"search-{self.name}-data", plan.model_copy(update={"recovery": searches}))
            windows = run.data.windows(stage.model_copy(update={"finetune": settings}))
            extension = lr.Extension.of(ROPE, self.factors(name))
            finetune(self.bench.model(None), extension, windows, settings, folder=folder)
        return AutoModelForCausalLM.from_pretrained(folder / "model").eval()

    def plan(self) -> str:
        """Return the recipe for the target length and the window."""
        return PLAN.replace("128k", str(self.length)).replace("2k", str(self.window)).replace("SEED", "0")

    def measure(self, model: PreTrainedModel, long: lr.Scaling) -> dict[str, Any]:
        """Return perplexity and recall on the test text."""
        values: dict[str, Any] = {}
        for length in self.lengths:
            values[f"perplexity {length}"] = self.bench.perplexity(model, long, length, self.tokens)
        rate = recall(self.bench, model, long, RECALLED, QUESTIONS, 5)
        return values | {f"recall {RECALLED}": rate["rate"], "standard error": rate["standard_error"]}

    def rows(self) -> dict[str, Callable[[], Any]]:
        """Return the measurements by name."""
        rows: dict[str, Callable[[], Any]] = {}
        for name in FACTORS:
            rows[f"{name}, not trained"] = lambda n=name: self.measure(self.bench.model(None), self.factors(n))
        for name in FACTORS:
            rows[f"{name}, trained"] = lambda n=name: self.measure(self.trained(n), self.factors(n))
        for name in AGAIN[self.name]:
            rows[f"{name}, trained, searched again"] = lambda n=name: self.again(n)
        return rows

    def again(self, name: str) -> dict[str, Any]:
        """Measure the factors of a search on trained weights."""
        long = self.searched(f"after-{name}", self.trained(name), self.factors(name))
        return self.measure(self.trained(name), long) | {"winner": long.scheme}


def read() -> dict[str, Any]:
    """Return the results so far."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def main() -> None:
    """Measure what is missing, for all scales or the one that is named."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    first, start = (*sys.argv[1:], "", "")[:2]
    for name in [first] if first else SCALES:
        for row, measure in Scale(name).rows().items():
            if row in read().get(name, {}) or not row.startswith(start):
                continue
            values = measure()
            print(name, row, values, flush=True)
            record = read()  # another process may have measured meanwhile
            record.setdefault(name, {})[row] = values
            write_json(RESULTS, record | {"plan": PLAN, "provenance": provenance()})


if __name__ == "__main__":
    main()
