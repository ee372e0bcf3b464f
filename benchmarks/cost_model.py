"""Compute what a search at 2M tokens costs by our formulas: 1B, 8B and 70B models on 1, 8 and 64 devices.

    python benchmarks/cost_model.py     # seconds

FLOPs come from `longrope.cost.model_shape` (2 a parameter and token, 4 a query feature and pair of tokens; a gradient
3 and 4.5 times that), counts of passes from the methods themselves. Time is FLOPs over an assumed rate: 156 TFLOP/s a
device, half of an A100's bf16 peak, spread over the devices without loss. It is a model, not a measurement. The
``paper`` search has its population halved, as the paper does above 512K, but not its 40 iterations. The first model
holds it against the paper's own figure: about 50 minutes for an evaluation of LLaMA2-7B at 2M on 8 A100s.
Results in ``benchmarks/results/cost-model.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

import longrope as lr
from longrope.cost import peak_memory
from longrope.cost.model_shape import Flops, ModelShape
from longrope.provenance import provenance
from longrope.stages.plan_cost import costs
from longrope.storage.atomic import write_json

RESULTS = Path(__file__).parent / "results" / "cost-model.json"
RATE, LENGTH, WINDOW, TRAINED = 156e12, 2**21, 2**15, 2048
DEVICES = (1, 8, 64)
FIELDS = "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads vocab_size".split()
SHAPES = {
    "LLaMA2-7B": (4096, 11008, 32, 32, 32, 32000),
    "1B": (2048, 8192, 16, 32, 8, 128256),
    "8B": (4096, 14336, 32, 32, 8, 128256),
    "70B": (8192, 28672, 80, 64, 8, 128256),
}
SEARCHES: dict[str, dict[str, Any]] = {
    "paper": {"method": "paper", "documents": 5, "needles": 0, "population": 32},
    "ours": {"method": "auto", "documents": 2},
    "ours, windows of 32K": {"method": "auto", "documents": 2, "window": WINDOW},
}


def main() -> None:
    """Compute all costs and write the results."""
    models: dict[str, Any] = {}
    for name, sizes in SHAPES.items():
        fields: dict[str, Any] = dict(zip(FIELDS, sizes, strict=True))
        config = LlamaConfig(**fields, max_position_embeddings=4096, dtype="bfloat16")
        shape = ModelShape.of(config)
        memory = peak_memory.of_pass(shape, LENGTH, gradient=False)
        rows = {"one forward pass": {**_row(shape.forward(LENGTH)), "memory_bytes": memory}}
        for search, settings in SEARCHES.items():
            stage = {"length": LENGTH, "search": settings}
            plan = lr.Plan.model_validate({"version": 1, "stages": [stage], "evaluation": {"lengths": []}})
            cost = costs(plan, shape, lr.Rope.of(config))[0]
            passes = cost.search_tokens / cost.length
            rows[search] = {**_row(sum(cost.flops.values(), Flops())), "passes": passes, "memory_bytes": cost.memory}
        models[name] = rows
    memory = {name: _training_memory(name) for name in ("1B", "8B")}
    write_json(
        RESULTS,
        {
            "models": models,
            "training_memory_bytes": memory,
            "flops_per_second": RATE,
            "length": LENGTH,
            "provenance": provenance(),
        },
    )
    print(json.dumps(models | {"training memory": memory}, indent=1))


def _training_memory(name: str) -> dict[str, int]:
    """Return the bytes that a fine-tuning on windows of 2,048 tokens takes; Llama 3.2 1B shares its embeddings."""
    fields: dict[str, Any] = dict(zip(FIELDS, SHAPES[name], strict=True))
    shape = ModelShape.of(LlamaConfig(**fields, tie_word_embeddings=name == "1B"), "bfloat16")
    lora, weights = (peak_memory.of_training(shape, TRAINED, lora=rank, mixed=True) for rank in (8, 0))
    return {"LoRA of rank 8": lora, "all weights": weights, "with a teacher": weights + shape.bytes * shape.parameters}


def _row(flops: Flops) -> dict[str, Any]:
    hours = {f"hours on {count}": flops.total / RATE / count / 3600 for count in DEVICES}
    return {"linear_flops": flops.linear, "attention_flops": flops.attention, **hours}


if __name__ == "__main__":
    main()
