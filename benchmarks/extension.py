"""Staged extension of ``tiny``: 256 → 2K → 16K → 128K, 512 times its trained length.

    make benchmark-extension               # hours on two cores; continues where it stopped
    python benchmarks/extension.py staged  # one case, or one measurement: table, short, amounts, window, retrieval

Cases are runs of ``longrope extend`` in ``build/extension``. What is measured on them is on one text of 131,072 tokens,
test documents joined: at every length it is cut into windows, so all lengths score the same tokens. Results in
``benchmarks/results/extension.json``.
"""

from __future__ import annotations

import json
import math
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
from longrope.evaluation.statistics import mean_error
from longrope.formats.load_factors import load_factors
from longrope.longcontext.token_losses import token_losses
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
    """A table of a plan."""
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
    """256 to 2K, on whole sequences."""
    return stage("2k", percent, batch=batch, short=0.5)


def further(length: str, percent: int) -> str:
    """To a length whose positions jump in windows of 4K: a whole sequence takes longer than all its windows."""
    return stage(length, percent, batch=2, short=0.4, window="4k")


def wide(length: str, percent: int, window: str | None) -> str:
    """On whole sequences, or in wide windows; the search in windows of 4K all the same."""
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
        """A finished run."""
        BUILD.mkdir(parents=True, exist_ok=True)
        with tqdm(desc=case) as bar:

            def tell(part: str, done: int, total: int, note: str) -> None:
                bar.set_description(f"{case}, {part} {note}")
                bar.total, bar.n = total, done
                bar.refresh()

            found = StagedRun(BUILD / case, "tiny", parse_plan(CASES[case], case), on_progress=tell)
            begin_run(found, resume=True)
            extend(found)
        return found

    def model(self, case: str, number: int) -> PreTrainedModel:
        """The weights that a stage of a run left; of stage 0, the original ones."""
        model, _ = load(str(BUILD / case / f"stage-{number}" / "model") if number else "tiny")
        return model

    def extension(self, case: str, folder: str = "") -> Extension:
        """What a run, or a stage of it, found."""
        found = load_factors(BUILD / case / folder / "extension.json")
        assert isinstance(found, Extension)
        return found

    def long(self, case: str, number: int) -> Scaling:
        """The long factors of a stage of a run."""
        return self.extension(case, f"stage-{number}").long


def measured(name: str, cells: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """The values of some cells, each measured once and kept."""
    path = BUILD / f"measured-{name}.json"
    done: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for key, measure in tqdm(cells.items(), desc=name):
        if key not in done:
            try:
                done[key] = measure()
            except LongRopeError as error:  # its case was not run
                tqdm.write(f"{key}: {error}")
            write_json(path, done)
    return {key: done[key] for key in cells if key in done}


def perplexity(bench: Bench, case: str, number: int, factors: Scaling | Extension | None, length: int) -> float:
    """Of the whole text in windows of a length."""
    model, windows = bench.model(case, number), bench.text.reshape(-1, length)
    batch = max(1, 4096 // length)
    if factors is None:
        losses = token_losses(model, windows, batch=batch)
    else:
        with patch(model, factors):
            losses = token_losses(model, windows, batch=batch)
    return math.exp(losses.mean(dtype=np.float64))


def table(bench: Bench) -> dict[str, Any]:
    """Perplexity at 8x, 32x, 128x and 512x: schemes aimed at each length, searched factors, searched and fine-tuned."""
    cells: dict[str, Callable[[], float]] = {}
    for name in ("yarn", "heuristic"):
        for length in LENGTHS:
            factors = scheme(name, bench.rope, length)
            cells[f"{name} {length}"] = lambda f=factors, n=length: perplexity(bench, "staged", 0, f, n)
    for length in LENGTHS:
        number = next(i for i, reach in enumerate(REACHED, start=1) if reach >= length)
        stages = {"staged, searched": 0, "staged, fine-tuned": number, "wide, fine-tuned": number}
        stages |= {"staged, last stage": 3, "wide, last stage": 3} if number < 3 else {}
        stages |= {"once, fine-tuned": 1}
        for name, weights in stages.items():

            def cell(name: str = name, weights: int = weights, number: int = number, length: int = length) -> float:
                case = name.split(",")[0]
                stage = 1 if case == "once" else max(weights, number)
                return perplexity(bench, case, weights, bench.long(case, stage), length)

            cells[f"{name} {length}"] = cell
    return measured("table", cells)


def short(bench: Bench) -> dict[str, Any]:
    """Perplexity at 256 tokens: original, YaRN for 512x, the extended model with and without its short factors."""
    cells: dict[str, Callable[[], float]] = {
        "original": lambda: perplexity(bench, "staged", 0, None, 256),
        "yarn": lambda: perplexity(bench, "staged", 0, scheme("yarn", bench.rope, TEXT), 256),
    }
    for case, last in LAST.items():
        rows: dict[str, Callable[[Extension], Scaling]] = {
            "recovered": lambda extension: extension.short,
            "plain RoPE": lambda extension: Scaling.identity(extension.rope),
            "long factors": lambda extension: extension.long,
        }
        for name, choose in rows.items():
            cells[f"{case}, {name}"] = lambda case=case, last=last, choose=choose: perplexity(
                bench, case, last, choose(bench.extension(case)), 256
            )
    return measured("short", cells)


def recalled(bench: Bench) -> dict[str, Any]:
    """Exact recall of a planted line by length: YaRN aimed at each on the original weights, and the extended model."""
    tokenizer = load_tokenizer("tiny")

    def cell(case: str, number: int, factors: Scaling | None, length: int) -> dict[str, Any]:
        model, texts = bench.model(case, number), bench.text.reshape(-1, length)
        probes = make_prompts("recall", tokenizer, length=length, trials=RECALLED[length], texts=texts)
        with patch(model, factors or Scaling.identity(bench.rope)):
            mean, error = mean_error([outcome.score for outcome in score_prompts(model, tokenizer, probes)])
        return {"rate": mean, "standard_error": error, "trials": RECALLED[length]}

    cells = {}
    for length in RECALLED:
        yarn = scheme("yarn", bench.rope, length) if length > bench.rope.original_length else None
        if length <= 4096:
            cells[f"yarn {length}"] = lambda f=yarn, n=length: cell("staged", 0, f, n)
        for case, last in LAST.items():
            cells[f"{case} {length}"] = lambda c=case, i=last, n=length: cell(c, i, bench.extension(c).at(n), n)
            for number in range(1, last):
                if length <= REACHED[number - 1]:
                    cells[f"{case}, stage {number} {length}"] = lambda c=case, i=number, n=length: cell(
                        c, i, Extension.of(bench.rope, bench.long(c, i)).at(n), n
                    )
    return measured("retrieval", cells)


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
            name: lambda c=case, i=i, n=length: perplexity(bench, c, i, bench.long(c, max(i, 1)), n)
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
        {name: lambda find=find: perplexity(bench, "staged", 1, find(), 16384) for name, find in rows.items()},
    )


def attention(bench: Bench) -> dict[str, Any]:
    """Does attention thin out? The last stage of *wide* with larger attention factors, on the first two windows."""

    def cell(times: float, length: int) -> float:
        model, long = bench.model("wide", 3), bench.long("wide", 3)
        with patch(model, replace(long, attention_factor=times * long.attention_factor)):
            losses = token_losses(model, bench.text.reshape(-1, length)[:2])
        return math.exp(losses.mean(dtype=np.float64))

    cells = {
        f"su x {times:g} {length}": lambda t=times, n=length: cell(t, n)
        for length in (8192, 32768)
        for times in (1.0, 1.05, 1.1)
    }
    return measured("attention", cells)


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
    bench, wanted = Bench(), sys.argv[1:] or [*CASES, *MEASURES]
    for case in (name for name in wanted if name in CASES):
        bench.run(case)
    for name in (name for name in wanted if name in MEASURES):
        record = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        found = MEASURES[name](bench)
        write_json(RESULTS, record | {name: found, "plans": CASES, "provenance": provenance()})
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
