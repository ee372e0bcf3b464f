"""``tiny`` extended 8,192 times, 256 → 2,097,152 tokens, with the recipe and the text of ``benchmarks/extension.py``.

    make benchmark-extension-2m                # an hour on one core; continues where it stopped
    python benchmarks/extension_2m.py YaRN     # the measurements of some rows: original, trained, ramp, YaRN

The plan is that of 512x but for its length: sparse windows of 2,048 tokens reach over 2.4M tokens of joined documents.
The trained model stands beside the ramp and YaRN for the same length on the original weights. Measurements: perplexity
in windows of the text; perplexity by position in one pass; recall; and *far*, windows of two chunks with the text
between them left out as in training, where lines of the first chunk are asked for in the second.
Results in ``benchmarks/results/extension-2m.json``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from extension import BUILD, PLAN, QUESTIONS, ROPE, Bench, recall
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.utils import logging

import longrope as lr
from longrope.data.key_value_lines import make_lines
from longrope.evaluation.statistics import mean_error
from longrope.longcontext.sparse_attention import sparse_inputs, use_weighted_attention
from longrope.longcontext.token_losses import token_losses
from longrope.provenance import provenance
from longrope.stages.pipeline import extend
from longrope.stages.plan import parse_plan
from longrope.storage.atomic import write_json

RESULTS, RUN, LENGTH = Path(__file__).parent / "results" / "extension-2m.json", BUILD / "two-million", 2**21
FACTORS = {"trained": "ramp", "ramp": "ramp", "YaRN": "yarn"}  # of each row; the last two have the original weights
WINDOWS, SLICE, PASS, BLOCK = (2048, 8192, 16384), 2**14, 2**17, 2**14  # windows of the slice
RECALLED = {512: 100, 2048: 100, 8192: 50, 16384: 50, 32768: 20}  # questions by length
FILES = ("training", "average")  # of the stage
CHUNK, LINES, SAMPLES = 1024, 8, 13
DISTANCES = (2**10, 2**13, 2**17, 2**20, LENGTH - CHUNK)  # from chunk to chunk, in tokens


def plan() -> str:
    """Return the plan: that of 512x for 2M tokens, without short factors, and with the share by held-out text."""
    text = PLAN.replace("128k", "2m").replace("average = 0.37", 'average = "auto"').replace("SEED", "0")
    first, last = text.split("[recovery.search]")
    return f"{first}[data]{last.partition('[data]')[2]}"


def model(row: str) -> PreTrainedModel:
    """Load the weights of a row."""
    return lr.load(str(RUN / "stage-1" / "model") if row == "trained" else "tiny")[0]


def by_position(bench: Bench, row: str, long: lr.Scaling) -> dict[str, Any]:
    """Return the perplexity of a pass over the text, of all of it and of each block of tokens."""
    with lr.patch(model(row), long) as patched:
        losses = token_losses(patched, bench.text[None, :PASS])[0].astype(np.float64)
    blocks = [losses[start : start + BLOCK].mean() for start in range(0, PASS - 1, BLOCK)]
    return {"perplexity": float(np.exp(losses.mean())), "blocks": np.exp(blocks).tolist()}


@torch.inference_mode()
def far(bench: Bench, row: str, long: lr.Scaling, distance: int) -> dict[str, float]:
    """Return recall and the text's loss in a second chunk, whose lines stand in a first one ``distance`` before it.

    An answer counts if each of its tokens is the likeliest one after the tokens before it, as in greedy decoding.
    """
    weights = model(row).float()
    assert use_weighted_attention(weights)
    answered: list[float] = []
    losses: list[float] = []
    for sample in range(SAMPLES):
        tokens, answers, lines = _two_chunks(bench, np.random.default_rng([0, sample]))
        positions = np.arange(2 * CHUNK) + np.repeat([0, distance - CHUNK], CHUNK)
        bias = np.where(lines, 0, np.repeat([np.log1p((distance - CHUNK) / CHUNK), 0], CHUNK))
        inputs: list[Tensor] = [torch.from_numpy(array)[None] for array in (tokens, positions)]
        chunk_ids = torch.arange(2).repeat_interleave(CHUNK)[None]
        with lr.patch(weights, long) as patched:
            others = sparse_inputs(patched, inputs[1], chunk_ids, torch.from_numpy(bias).float()[None])
            logits = patched(input_ids=inputs[0], position_ids=inputs[1], use_cache=False, **others).logits[0]
        right = (logits[:-1].argmax(-1) == inputs[0][0, 1:]).numpy()
        answered += [float(right[answers[1:] == number].all()) for number in range(1, LINES + 1)]
        second = np.arange(1, 2 * CHUNK) >= CHUNK + 8
        by_token = cross_entropy(logits[:-1], inputs[0][0, 1:], reduction="none").numpy()
        losses.append(float(by_token[second & ~lines[1:]].mean()))
    rate, error = mean_error(answered)
    return {"recall": rate, "standard_error": error, "perplexity": float(np.exp(np.mean(losses)))}


def _two_chunks(bench: Bench, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return tokens of two chunks, the number of the answer that each is in, of the second one, and a mask of lines."""
    lines = [line.question for line in make_lines(bench.tokenizer, rng, LINES)]
    room = CHUNK - sum(line.tokens.size for line in lines)
    chunks: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    begin = int(rng.integers(PASS - 2 * room))
    for asked, start in ((False, begin), (True, begin + room)):
        cuts, order = np.sort(rng.integers(1, room, size=LINES)), rng.permutation(LINES)
        at = np.repeat(cuts, [lines[i].tokens.size for i in order])
        numbers = np.concatenate([asked * (i + 1) * lines[i].answers for i in order])
        text = np.insert(bench.text[start : start + room], at, np.concatenate([lines[i].tokens for i in order]))
        empty = np.zeros(room, dtype=np.int64)
        chunks.append((text.astype(np.int64), np.insert(empty, at, numbers), np.insert(empty, at, 1)))
    tokens, answers, planted = (np.concatenate(arrays) for arrays in zip(*chunks, strict=True))
    return tokens, answers, planted.astype(bool)


def measurements(bench: Bench) -> dict[str, Callable[[], Any]]:
    """Return all measurements by name, the cheap ones first."""
    values: dict[str, Callable[[], Any]] = {
        "original, perplexity 256": lambda: bench.perplexity(model("ramp"), None, 256, SLICE),
        "trained, plain RoPE, perplexity 256": lambda: bench.perplexity(model("trained"), None, 256, SLICE),
    }
    scalings = {row: lr.scheme(name, ROPE, LENGTH) for row, name in FACTORS.items()}
    for row, long in scalings.items():
        for length in WINDOWS:
            key = f"{row}, perplexity {length}"
            values[key] = lambda row=row, long=long, n=length: bench.perplexity(model(row), long, n, SLICE)
        for distance in DISTANCES:
            values[f"{row}, far {distance}"] = lambda row=row, long=long, n=distance: far(bench, row, long, n)
    for length in RECALLED:
        for row, long in scalings.items():
            if row == "trained" or length <= WINDOWS[1]:
                values[f"{row}, recall {length}"] = lambda row=row, long=long, n=length: recall(
                    bench, model(row), long, n, RECALLED[n], QUESTIONS
                )
    for row, long in scalings.items():
        values[f"{row}, one pass"] = lambda row=row, long=long: by_position(bench, row, long)
    return values


def read() -> dict[str, Any]:
    """Return the results so far."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def train(bench: Bench) -> None:
    """Carry out the plan, and write what the training took and which share of the original weights it chose."""
    extend(run := bench.begun(RUN.name, parse_plan(plan())))
    training, average = (json.loads((run.stage_folder(1) / f"{name}.json").read_text()) for name in FILES)
    summary = {"seconds": training["seconds"], "loss": training["loss"], "average": average}
    write_json(RESULTS, read() | {"plan": plan(), "training": summary})


def main() -> None:
    """Carry out the plan, then measure what is missing, or only that of the rows that are named."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    bench, names = Bench(), tuple(sys.argv[1:])
    if not names:
        train(bench)
    for key, measure in measurements(bench).items():
        if key in read().get("values", {}) or (names and not key.startswith(names)):
            continue
        value = measure()
        print(key, value, flush=True)
        record = read()  # another process may have measured meanwhile
        record.setdefault("values", {})[key] = value
        write_json(RESULTS, record | {"provenance": provenance()})


if __name__ == "__main__":
    main()
