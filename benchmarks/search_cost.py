"""Measure what makes an evaluation cheaper: each measure alone, side by side in one run, medians of several.

    make benchmark-search-cost

Results in ``benchmarks/results/search-cost.json``. Duplicates that are not evaluated again show in the evaluations of
``benchmarks/results/search-tiny-8x.json``: the paper's search asks for 1,344 candidates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from measuring import measure_in_turn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import longrope as lr
from longrope.data.split import draw_tokens, split_documents
from longrope.provenance import provenance
from longrope.search.evolution import Paper
from longrope.storage.atomic import write_json

RESULTS, ROUNDS, DATA = Path(__file__).parent / "results" / "search-cost.json", 5, "stdlib:unseen"


def side_by_side(variants: dict[str, Callable[[], Any]]) -> dict[str, dict[str, Any]]:
    """Return the median seconds of each way, and the difference of its losses from those of the first way."""
    seconds, losses = measure_in_turn(variants, ROUNDS)
    first, medians = next(iter(variants)), {name: median(times) for name, times in seconds.items()}
    return {
        name: {
            "seconds": round(medians[name], 4),
            "times_faster": round(medians[first] / medians[name], 3),
            "largest_difference": float(np.max(np.abs(np.subtract(losses[name], losses[first])))),
        }
        for name in variants
    }


def losses(objective: lr.ModelObjective, candidates: Sequence[lr.Scaling], batch: int = 1) -> list[float]:
    """Return the losses of candidates on the first document, a number of them in each forward pass."""
    pairs = [(candidate, 0) for candidate in candidates]
    batches = [pairs[start : start + batch] for start in range(0, len(pairs), batch)]
    return [loss.loss for _, answers in objective.evaluate(batches, gradient=False) for loss in answers]


def rows(model: PreTrainedModel, document: np.ndarray) -> dict[str, Any]:
    """Measure sixteen candidates on one document: one, four or sixteen of them in a forward pass."""
    rng, yarn = np.random.default_rng(0), np.array(lr.scheme("yarn", lr.Rope.of(model), document.shape[1]).factors)
    candidates = [lr.Scaling((yarn * rng.uniform(1, 1.1, len(yarn))).tolist()) for _ in range(16)]
    objective = lr.ModelObjective(model, lr.perplexity_texts(document))
    return side_by_side({f"rows {size}": partial(losses, objective, candidates, size) for size in (1, 4, 16)})


def scoring(model: PreTrainedModel, document: np.ndarray) -> dict[str, Any]:
    """Score a text with the logits of all tokens at once, with the head in chunks, and its last 256 tokens alone."""
    yarn = lr.scheme("yarn", lr.Rope.of(model), document.shape[1])
    all_tokens, tail = (lr.ModelObjective(model, lr.perplexity_texts(document, tail=tail)) for tail in (None, 256))

    @torch.inference_mode()
    def plain() -> float:
        with lr.patch(model, yarn):
            ids = torch.from_numpy(document)
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            return float(cross_entropy(logits, ids[0, 1:]))

    chunked, last = partial(losses, all_tokens, [yarn]), partial(losses, tail, [yarn])
    return side_by_side({"whole logits": plain, "chunked head": chunked, "tail": last})


def dtypes(document: np.ndarray) -> dict[str, Any]:
    """Measure the same evaluation in float32 and bfloat16."""
    variants = {}
    for dtype in ("float32", "bfloat16"):
        model, _ = lr.load("tiny", dtype=dtype)
        objective = lr.ModelObjective(model, lr.perplexity_texts(document))
        yarn = lr.scheme("yarn", lr.Rope.of(model), document.shape[1])
        variants[dtype] = partial(losses, objective, [yarn])
    return side_by_side(variants)


def racing(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Search by the paper's algorithm, small, on eight documents, without racing and with it: cost and best losses."""
    searches: dict[str, list[dict[str, float]]] = {}
    for name, race in (("without", False), ("with", True)):
        options = lr.SearchOptions(
            racing=race, seeds=3, population=16, needles=0, search_documents=8, held_out_documents=1
        )
        method = Paper(generations=10)
        result = lr.search(model, tokenizer, length=1024, data=DATA, method=method, options=options)
        searches[name] = [
            {"evaluations": outcome.tokens / (8 * 1024), "best_loss": outcome.ranked[0][0]}
            for outcome in result.outcomes
        ]
    pairs = zip(searches["without"], searches["with"], strict=True)
    return [
        {"without": plain, "with": raced, "times_fewer": plain["evaluations"] / raced["evaluations"]}
        for plain, raced in pairs
    ]


def main() -> None:
    """Measure everything."""
    model, tokenizer = lr.load("tiny")
    documents = split_documents(lr.load_documents(DATA))["search"]
    short, long = (draw_tokens(documents, tokenizer, length=length, count=1).tokens for length in (256, 2048))
    record = {
        "rows at 256 tokens": rows(model, short),
        "rows at 2,048 tokens": rows(model, long),
        "scoring": scoring(model, long),
        "dtype": dtypes(long),
        "racing": racing(model, tokenizer),
        "provenance": provenance(),
    }
    write_json(RESULTS, record)
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
