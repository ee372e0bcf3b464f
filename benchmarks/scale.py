"""Compare a pass through a model with plain transformers, in memory and time: how far does one machine go?

    make benchmark-scale           # an hour on two cores; continues where it stopped

Both variants have the same bfloat16 weights and read the same text, one sequence. They run in turn, each pass in a new
process. A ``forward`` gives the loss of every token, a ``gradient`` also its gradient by the factors. ``plain`` is the
model as transformers has it, with all logits, and for the gradient with its activation checkpointing. Memory is the
peak above the loaded model. The longest length in 8 GB is extrapolated on the line through the shortest and longest.
Results in ``benchmarks/results/scale.json``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import long_text, measure_in_processes, measure_pass, medians
from torch.nn.functional import cross_entropy

import longrope as lr
from longrope.models.rotary_slot import find_rotary_slot
from longrope.objectives.factor_gradient import Differentiable

RESULTS = Path(__file__).parent / "results" / "scale.json"
VARIANTS = ("ours", "plain")
TURNS = {  # runs of each variant, in this order
    "forward smollm2 8192": 3,
    "forward smollm2 16384": 1,
    "gradient smollm2 4096": 1,
    "gradient smollm2 8192": 1,
    "forward tiny 16384": 3,
    "forward tiny 65536": 1,
    "forward smollm2 32768": 1,
    "forward tiny 131072": 1,
}
BUDGET = 8 * 2**30


def summarize(runs: dict[str, Any]) -> dict[str, Any]:
    """Return medians: memory and time of plain transformers over ours, and the longest length of each in 8 GB."""
    ratios: dict[str, Any] = {}
    peaks: dict[str, dict[int, float]] = {}
    for case in TURNS:
        lean, plain = (medians(runs, f"{case} {variant}") for variant in VARIANTS)
        if not (lean and plain):
            continue
        ratios[case] = {
            "memory over ours": plain["peak_bytes"] / lean["peak_bytes"],
            "our time over theirs": lean["seconds"] / plain["seconds"],
            "difference of the mean loss": abs(plain["loss"] - lean["loss"]),
        }
        kind, name, length = case.split()
        for variant, run in (("ours", lean), ("plain", plain)):
            room = BUDGET - run["loaded_bytes"]
            peaks.setdefault(f"{kind} {name} {variant}", {})[int(length)] = run["peak_bytes"] / room
    for name, shares in peaks.items():
        if len(shares) > 1:
            short, long = min(shares), max(shares)
            slope = (shares[long] - shares[short]) / (long - short)
            ratios[f"{name}: longest in 8 GB"] = int(long + (1 - shares[long]) / slope)
    return ratios


def measure(kind: str, name: str, size: str, variant: str) -> dict[str, float]:
    """Return what `measure_pass` measures of one pass; the loss is the mean in nats."""
    length = int(size)
    model, tokenizer = lr.load(name, dtype="bfloat16")
    tokens = long_text(tokenizer, length)
    rope = lr.Rope.of(model)
    yarn = lr.scheme("yarn", rope, max(length, 2 * rope.original_length))
    objective = lr.ModelObjective(model, lr.perplexity_texts(tokens))

    def forward() -> float:
        with lr.patch(model, yarn):
            return float(lr.token_losses(model, tokens).mean(dtype=float))

    @torch.inference_mode()
    def plain_forward() -> float:
        with lr.patch(model, yarn):
            logits = model(input_ids=torch.from_numpy(tokens), use_cache=False).logits
            return float(cross_entropy(logits[0, :-1].float(), torch.from_numpy(tokens[0, 1:])))

    def gradient() -> float:
        return next(iter(objective.evaluate([[(yarn, 0)]], gradient=True)))[1][0].loss

    def plain_gradient() -> float:
        rotary = find_rotary_slot(model)
        module = Differentiable(lr.LongRoPE.static(rotary.rope, [yarn], reach=length))
        rotary.rescale(module)
        model.requires_grad_(False).train().gradient_checkpointing_enable({"use_reentrant": False})
        ids = torch.from_numpy(tokens)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        return float(loss.detach())

    passes: dict[str, Callable[[], float]] = {
        "forward ours": forward,
        "forward plain": plain_forward,
        "gradient ours": gradient,
        "gradient plain": plain_gradient,
    }
    return measure_pass(passes[f"{kind} {variant}"])


if __name__ == "__main__":
    measure_in_processes(RESULTS, TURNS, VARIANTS, measure, summarize)
