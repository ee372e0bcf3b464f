"""Staged extension of ``tiny``: 256 → 2K → 16K → 128K, 512 times its trained length.

    make benchmark-extension               # hours on two cores; continues where it stopped
    python benchmarks/extension.py staged  # one case, or one measurement: table, short, amounts, window, retrieval

Cases are runs of ``longrope extend`` in ``build/extension``. What is measured on them is on one text of 131,072 tokens,
test documents joined: at every length it is cut into windows, so all lengths score the same tokens. Results in
``benchmarks/results/extension.json``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.utils import logging

from longrope.data.documents import load_documents
from longrope.data.split import split_documents
from longrope.data.tokenize import encode
from longrope.errors import LongRopeError
from longrope.evaluation.perplexity import perplexity
from longrope.evaluation.statistics import mean_error
from longrope.formats.load_factors import load_extension
from longrope.models.load import load, load_config, load_tokenizer
from longrope.models.patch import patch
from longrope.provenance import provenance
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import attention_factor, scheme
from longrope.search.space import Space
from longrope.stages.pipeline import closed_form, extend
from longrope.stages.plan import parse_plan
from longrope.stages.run_folder import StagedRun, begin_run
from longrope.storage.atomic import write_json
from longrope.tasks.registry import make_prompts
from longrope.tasks.scoring import score_prompts

BUILD, RESULTS = Path("build/extension"), Path(__file__).parent / "results" / "extension.json"
TEXT, LENGTHS = 2**17, (2048, 8192, 32768, 131072)
REACHED = (2048, 16384, 131072)  # by the stages of the staged run
RECALLED = {256: 200, 512: 200, 1024: 200, 2048: 200, 4096: 50, 8192: 30, 16384: 20}  # trials by length
DATA = """\
version = 1
original_tokens = 17000000
export = "none"
[data]
source = "stdlib:unseen"
train = "stdlib"
needles = 0.5
[evaluation]
lengths = []
"""
PERCENT = 170_000  # of the tokens that tiny was trained on


def stage(
    length: str, percent: int, *, batch: int, short: float, window: str | None = None, searched: str | None = None
) -> str:
    """Return the table of a stage."""
    searched = searched or window
    search = "" if searched is None else f'[stages.search]\nwindow = "{searched}"\n'
    return f"""
[[stages]]
length = "{length}"
{search}[stages.finetune]
tokens = {percent * PERCENT}
batch = {batch}
rate = 1e-4
short = {short}
""" + ("" if window is None else f'window = "{window}"\n')


def first(percent: int, batch: int = 4) -> str:
    """Return the stage from 256 to 2K, on whole sequences."""
    return stage("2k", percent, batch=batch, short=0.5)


def further(length: str, percent: int) -> str:
    """Return a stage whose positions jump in windows of 4K: a whole sequence takes longer than its windows."""
    return stage(length, percent, batch=2, short=0.4, window="4k")


def wide(length: str, percent: int, window: str | None) -> str:
    """Return a stage on whole sequences or wide windows, whose search has windows of 4K."""
    return stage(length, percent, batch=2, short=0.5, window=window, searched="4k")


CASES = {
    "staged": DATA + first(5) + further("16k", 5) + further("128k", 3) + "[recovery]\n",
    "wide": DATA + first(5, 8) + wide("16k", 5, None) + wide("128k", 3, "32k") + "[recovery]\n",
    "direct": DATA + further("16k", 10),
    "once": DATA + further("128k", 13) + "[recovery]\n",
    "tokens-1": DATA + first(1),
    "tokens-10": DATA + first(10),
}
LAST = {"staged": 3, "wide": 3, "once": 1}  # the last stage of those that reach 128K


class Bench:
    """Runs, and one text to measure on."""

    rope = Rope.of(load_config("tiny"))

    @cached_property
    def text(self) -> np.ndarray:
        """``(TEXT,)``: test documents joined, the longest first."""
        tokenizer = load_tokenizer("tiny")
        documents = split_documents(load_documents("stdlib:unseen"), seed=0)["test"]
        tokens = [encode(document.text, tokenizer, length=TEXT) for document in documents]
        return np.concatenate(sorted(tokens, key=len, reverse=True))[:TEXT]

    def run(self, case: str) -> StagedRun:
        """Carry out a case, and return its run."""
        BUILD.mkdir(parents=True, exist_ok=True)
        with tqdm(desc=case) as bar:

            def on_progress(step: str, done: int, total: int, note: str) -> None:
                bar.set_description(f"{case}, {step} {note}")
                bar.total, bar.n = total, done
                bar.refresh()

            run = StagedRun(BUILD / case, "tiny", parse_plan(CASES[case], case), on_progress=on_progress)
            begin_run(run, resume=True)
            extend(run)
        return run

    def model(self, case: str, number: int) -> PreTrainedModel:
        """Load the weights of a stage of a run; of stage 0, the original ones."""
        model, _ = load(str(BUILD / case / f"stage-{number}" / "model") if number else "tiny")
        return model

    def extension(self, case: str, folder: str = "") -> Extension:
        """Return the extension of a run, or of a stage of it."""
        return load_extension(BUILD / case / folder / "extension.json")

    def long(self, case: str, number: int) -> Scaling:
        """Return the long factors of a stage of a run."""
        return self.extension(case, f"stage-{number}").long


def measured(name: str, values: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """Measure each value once; the file in the build folder keeps it."""
    path = BUILD / f"measured-{name}.json"
    done: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for key, measure in tqdm(values.items(), desc=name):
        if key not in done:
            try:
                done[key] = measure()
            except LongRopeError as error:  # its case was not run
                tqdm.write(f"{key}: {error}")
            write_json(path, done)
    return {key: done[key] for key in values if key in done}


def text_perplexity(bench: Bench, case: str, number: int, scaling: Scaling | None, length: int) -> float:
    """Return the perplexity of the text in windows of a length, on the weights of a stage."""
    model, windows = bench.model(case, number), bench.text.reshape(-1, length)
    return perplexity(model, windows, [length], scaling=scaling, batch=max(1, 4096 // length))[0].perplexity


def table(bench: Bench) -> dict[str, Any]:
    """Perplexity at 8x, 32x, 128x and 512x: schemes aimed at each length, searched factors, searched and fine-tuned."""
    values: dict[str, Callable[[], float]] = {}
    for name in ("yarn", "heuristic"):
        for length in LENGTHS:
            factors = scheme(name, bench.rope, length)
            values[f"{name} {length}"] = lambda f=factors, n=length: text_perplexity(bench, "staged", 0, f, n)
    for length in LENGTHS:
        number = next(i for i, reach in enumerate(REACHED, start=1) if reach >= length)
        stages = {"staged, searched": 0, "staged, fine-tuned": number, "wide, fine-tuned": number}
        stages |= {"staged, last stage": 3, "wide, last stage": 3} if number < 3 else {}
        stages |= {"once, fine-tuned": 1}
        for name, weights in stages.items():

            def value(name: str = name, weights: int = weights, number: int = number, length: int = length) -> float:
                case = name.split(",")[0]
                stage = 1 if case == "once" else max(weights, number)
                return text_perplexity(bench, case, weights, bench.long(case, stage), length)

            values[f"{name} {length}"] = value
    return measured("table", values)


def short(bench: Bench) -> dict[str, Any]:
    """Perplexity at 256 tokens: original, YaRN for 512x, the extended model with and without its short factors."""
    values: dict[str, Callable[[], float]] = {
        "original": lambda: text_perplexity(bench, "staged", 0, None, 256),
        "yarn": lambda: text_perplexity(bench, "staged", 0, scheme("yarn", bench.rope, TEXT), 256),
    }
    for case, last in LAST.items():
        rows: dict[str, Callable[[Extension], Scaling]] = {
            "recovered": lambda extension: extension.short,
            "plain RoPE": lambda extension: Scaling.identity(extension.rope),
            "long factors": lambda extension: extension.long,
        }
        for name, choose in rows.items():
            values[f"{case}, {name}"] = lambda case=case, last=last, choose=choose: text_perplexity(
                bench, case, last, choose(bench.extension(case)), 256
            )
    return measured("short", values)


def recalled(bench: Bench) -> dict[str, Any]:
    """Exact recall of a planted line by length: YaRN aimed at each on the original weights, and the extended model."""
    tokenizer = load_tokenizer("tiny")

    def value(case: str, number: int, factors: Scaling | None, length: int) -> dict[str, Any]:
        model, texts = bench.model(case, number), bench.text.reshape(-1, length)
        prompts = make_prompts("recall", tokenizer, length=length, trials=RECALLED[length], texts=texts)
        with patch(model, factors or Scaling.identity(bench.rope)):
            mean, error = mean_error([prompt.score for prompt in score_prompts(model, tokenizer, prompts)])
        return {"rate": mean, "standard_error": error, "trials": RECALLED[length]}

    values = {}
    for length in RECALLED:
        yarn = scheme("yarn", bench.rope, length) if length > bench.rope.original_length else None
        if length <= 4096:
            values[f"yarn {length}"] = lambda f=yarn, n=length: value("staged", 0, f, n)
        for case, last in LAST.items():
            values[f"{case} {length}"] = lambda c=case, i=last, n=length: value(c, i, bench.extension(c).at(n), n)
            for number in range(1, last):
                if length <= REACHED[number - 1]:
                    values[f"{case}, stage {number} {length}"] = lambda c=case, i=number, n=length: value(
                        c, i, Extension.of(bench.rope, bench.long(c, i)).at(n), n
                    )
    return measured("retrieval", values)


def amounts(bench: Bench) -> dict[str, Any]:
    """Direct against staged at 16K with as many tokens; fine-tuning on 1, 5 and 10% of the tokens at 2K."""
    rows = {
        "staged 16384": ("staged", 2, 16384),
        "direct 16384": ("direct", 1, 16384),
        "0% 2048": ("staged", 0, 2048),
        "1% 2048": ("tokens-1", 1, 2048),
        "5% 2048": ("staged", 1, 2048),
        "10% 2048": ("tokens-10", 1, 2048),
    }
    return measured(
        "amounts",
        {
            name: lambda c=case, i=i, n=length: text_perplexity(bench, c, i, bench.long(c, max(i, 1)), n)
            for name, (case, i, length) in rows.items()
        },
    )


def window(bench: Bench) -> dict[str, Any]:
    """Whole 16K texts on the weights of stage 1: what a search in windows of 4K found against closed forms."""
    su = attention_factor("su", bench.rope, 16384)
    space = Space(bench.rope, 16384, attention_factor=su, before=bench.long("staged", 1))

    rows = {"searched in windows": lambda: bench.long("staged", 2)}
    rows |= {name: lambda name=name: closed_form(name, space) for name in ("yarn", "heuristic")}
    return measured(
        "window",
        {name: lambda find=find: text_perplexity(bench, "staged", 1, find(), 16384) for name, find in rows.items()},
    )


def attention(bench: Bench) -> dict[str, Any]:
    """Measure *wide* with larger attention factors in its last stage, on the first two windows: attention thins out."""

    def value(times: float, length: int) -> float:
        model, long = bench.model("wide", 3), bench.long("wide", 3)
        scaling = replace(long, attention_factor=times * long.attention_factor)
        return perplexity(model, bench.text.reshape(-1, length)[:2], [length], scaling=scaling)[0].perplexity

    values = {
        f"su x {times:g} {length}": lambda t=times, n=length: value(t, n)
        for length in (8192, 32768)
        for times in (1.0, 1.05, 1.1)
    }
    return measured("attention", values)


MEASURES = {
    "table": table,
    "short": short,
    "amounts": amounts,
    "window": window,
    "attention": attention,
    "retrieval": recalled,
}


def main() -> None:
    """Cases, then measurements, or those that are named; what is done is not done again."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    bench, names = Bench(), sys.argv[1:] or [*CASES, *MEASURES]
    for case in (name for name in names if name in CASES):
        bench.run(case)
    for name in (name for name in names if name in MEASURES):
        record = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        values = MEASURES[name](bench)
        write_json(RESULTS, record | {name: values, "plans": CASES, "provenance": provenance()})
        print(json.dumps(values, indent=1))


if __name__ == "__main__":
    main()
