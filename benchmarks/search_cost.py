"""What makes an evaluation cheaper, each measure alone, side by side in one run, medians of several.

    make benchmark-search-cost

Results in ``benchmarks/results/search-cost.json``. Duplicates that are not evaluated again show in the evaluations of
``benchmarks/results/search-tiny-8x.json``: the paper's search asks for 1,344 candidates.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from longrope.data.documents import load_documents
from longrope.data.split import draw_tokens, split_documents
from longrope.data.weighted_text import perplexity_texts
from longrope.models.load import load
from longrope.objectives.model_loss import ModelObjective
from longrope.provenance import provenance
from longrope.rope import Rope
from longrope.scaling import Scaling
from longrope.schemes import attention_factor, scheme
from longrope.search.evolution import Paper
from longrope.search.journal import Journal
from longrope.search.loop import run_search
from longrope.search.space import Space
from longrope.storage.atomic import write_json

RESULTS, ROUNDS = Path(__file__).parent / "results" / "search-cost.json", 5


def documents(count: int, length: int) -> np.ndarray:
    """Search documents of ``tiny``."""
    _, tokenizer = load("tiny")
    return draw_tokens(
        split_documents(load_documents("stdlib:unseen"))["search"], tokenizer, length=length, count=count
    ).tokens


def side_by_side(ways: dict[str, Callable[[], Any]]) -> dict[str, dict[str, Any]]:
    """Median seconds of each way, in turn, and what it gave; the first way is what the others are compared with."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    gave: dict[str, Any] = {}
    for _ in range(ROUNDS + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            gave[name] = way()
            seconds[name].append(time.perf_counter() - started)
    middle = {name: median(times[1:]) for name, times in seconds.items()}
    first = next(iter(ways))
    return {
        name: {
            "seconds": round(middle[name], 4),
            "times_faster": round(middle[first] / middle[name], 3),
            "largest_difference": float(np.max(np.abs(np.subtract(gave[name], gave[first])))),
        }
        for name in ways
    }


def mutants(rope: Rope, length: int, count: int) -> list[Scaling]:
    """Different candidates."""
    rng, yarn = np.random.default_rng(0), np.array(scheme("yarn", rope, length).factors)
    return [Scaling((yarn * rng.uniform(1, 1.1, len(yarn))).tolist()) for _ in range(count)]


def rows(model: PreTrainedModel, length: int) -> dict[str, Any]:
    """Sixteen candidates on one document: one, four or sixteen of them in a forward pass."""
    objective = ModelObjective(model, perplexity_texts(documents(1, length)))
    pairs = [(one, 0) for one in mutants(objective.rotary.rope, length, 16)]

    def way(size: int) -> Callable[[], list[float]]:
        batches = [pairs[start : start + size] for start in range(0, len(pairs), size)]
        return lambda: [one.loss for _, found in objective.evaluate(batches, gradient=False) for one in found]

    return side_by_side({f"rows {size}": way(size) for size in (1, 4, 16)})


def scoring(model: PreTrainedModel) -> dict[str, Any]:
    """The last 256 of 2,048 tokens scored, all, and all with the logits of the whole text at once."""
    tokens = documents(1, 2048)
    yarn = scheme("yarn", Rope.of(model), 2048)
    whole, tail = (ModelObjective(model, perplexity_texts(tokens, tail=tail)) for tail in (None, 256))

    @torch.inference_mode()
    def plain() -> float:
        with whole._installed(whole._embedding([yarn], 2048)):
            ids = torch.from_numpy(tokens)
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            return float(torch.nn.functional.cross_entropy(logits, ids[0, 1:]))

    def loss(objective: ModelObjective) -> float:
        return next(objective.evaluate([[(yarn, 0)]], gradient=False))[1][0].loss

    return side_by_side({"whole logits": plain, "chunked head": lambda: loss(whole), "tail": lambda: loss(tail)})


def dtypes() -> dict[str, Any]:
    """The same evaluation in float32 and bfloat16."""
    tokens = documents(1, 2048)
    ways = {}
    for dtype in ("float32", "bfloat16"):
        model, _ = load("tiny", dtype=dtype)
        objective, yarn = ModelObjective(model, perplexity_texts(tokens)), scheme("yarn", Rope.of(model), 2048)
        ways[dtype] = lambda objective=objective, yarn=yarn: (
            next(objective.evaluate([[(yarn, 0)]], gradient=False))[1][0].loss
        )
    return side_by_side(ways)


def racing(model: PreTrainedModel, seed: int) -> dict[str, Any]:
    """The paper's algorithm, small, on eight documents: token-evaluations with racing and without, and the results."""
    tokens, rope = documents(8, 1024), Rope.of(model)
    objective, method = ModelObjective(model, perplexity_texts(tokens)), Paper(generations=10).with_population(16)
    space = Space(rope, 1024, attention_factor=attention_factor("su", rope, 1024))
    starts = [scheme(one, rope, 1024) for one in method.schemes]
    found = {}
    for name, race in (("without", False), ("with", True)):
        with TemporaryDirectory() as folder:
            journal = Journal(Path(folder) / "journal.jsonl", {})
            conversation = method.propose(space, starts, np.random.default_rng(seed))
            outcome = run_search(objective, conversation, journal, racing=race)
            journal.close()
        found[name] = {"evaluations": outcome.tokens / tokens.size, "best_loss": outcome.ranked[0][0]}
    return found | {"times_fewer": found["without"]["evaluations"] / found["with"]["evaluations"]}


def main() -> None:
    """Measure everything."""
    model, _ = load("tiny")
    record = {
        "rows at 256 tokens": rows(model, 256),
        "rows at 2,048 tokens": rows(model, 2048),
        "scoring": scoring(model),
        "dtype": dtypes(),
        "racing": [racing(model, seed) for seed in range(3)],
        "provenance": provenance(),
    }
    write_json(RESULTS, record)
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
