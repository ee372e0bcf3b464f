"""Find the factors that each engine uses with an exported checkpoint, and how far its numbers are from ours.

    python benchmarks/serving.py vllm=PATH/python mlx-lm=PATH/python transformers-4.57=PATH/python \
        exllamav2=PATH/python exllamav3=PATH/python sglang=PATH/python

Each engine is named with the interpreter that it is installed in (docs/serving.md shows how to make one on a CPU). The
first three run checkpoints of ``tiny`` and of tiny random models. The log-probability of every next token is compared
with ours, computed with the long factors, the short ones and none. The last three need CUDA, so only their code for the
rotary embedding runs. Measurements in ``benchmarks/results/serving.json`` are not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from serving_engines import CODE, SEED, next_tokens

import longrope as lr
from longrope.provenance import provenance
from longrope.storage.atomic import write_json

sys.path.append(str(Path(__file__).parent.parent / "tests"))
import families

RESULTS = Path(__file__).parent / "results" / "serving.json"
BUILD, ENGINES = Path("build/serving"), Path(__file__).with_name("serving_engines.py")
LAUNCHED = ("vllm", "exllamav2", "exllamav3")  # engines whose factors depend on the maximum length
BOTH = ("tiny", "phi3")  # models that are exported in both modes and launched for both lengths
HEADS = {"hidden_size": 256, "head_dim": 64}  # vLLM's attention on CPUs needs heads of 32 or more
TOLERANCE = 0.05  # nats, or relative for frequencies; other factors differ by tenths


def main() -> None:
    """Measure what is not in the results yet."""
    parser = argparse.ArgumentParser()
    parser.add_argument("engines", nargs="+", help="NAME=INTERPRETER")
    parser.add_argument("--models", default="", help="Models by commas (default: all).")
    arguments = parser.parse_args()
    measurements: dict[str, Any] = json.loads(RESULTS.read_text())["cells"] if RESULTS.exists() else {}
    models = [name for name in arguments.models.split(",") if name]
    for model, mode in checkpoints():
        if models and model not in models:
            continue
        folder = export_checkpoint(model, mode)
        reference = json.loads((folder / "reference.json").read_text())
        for engine, python in (word.split("=", 1) for word in arguments.engines):
            if engine in CODE and model not in BOTH:
                continue
            limits = reference["limits"]
            for limit in limits if engine in LAUNCHED and model in BOTH else limits[-1:]:
                key = f"{engine} {model} {mode} {limit}"
                if key not in measurements:
                    measurements[key] = measure(engine, python, folder, reference, limit)
                    print(key, measurements[key], flush=True)
                    ordered = dict(sorted(measurements.items()))
                    source = {**provenance(), "command": "serving.py ENGINE=PYTHON ..."}
                    write_json(RESULTS, {"seed": SEED, "cells": ordered, "provenance": source})


def checkpoints() -> list[tuple[str, str]]:
    """Return models and modes: ``tiny`` and Phi-3 in both modes, and one dual checkpoint of every other family."""
    both = [(model, mode) for model in BOTH for mode in ("dual", "static")]
    return both + [(family, "dual") for family in families.FAMILIES if family != "phi3"]


def export_checkpoint(name: str, mode: str) -> Path:
    """Export a model and write ``reference.json``: our log-probabilities with each set of factors."""
    folder = BUILD / f"{name}-{mode}"
    if (folder / "reference.json").exists():
        return folder
    model, tokenizer = lr.load("tiny", dtype="float32") if name == "tiny" else (plain_model(name), families.tokenizer())
    rope = lr.Rope.of(model)
    long = lr.scheme("heuristic", rope, 8 * rope.original_length)
    ramp = [1 + i / rope.dim for i in range(rope.dim // 2)]
    short = lr.Scaling(ramp, attention_factor=long.attention_factor, scheme="ramp", length=rope.original_length)
    extension = lr.Extension(rope=rope, short=short, long=long, length=8 * rope.original_length)
    written = lr.export(model, tokenizer, extension, folder, mode=mode, options=lr.ExportOptions(overwrite=True))
    (folder / "reference.json").write_text(json.dumps(reference_of(model, written)))
    return folder


def reference_of(model: Any, extension: Any) -> dict[str, Any]:
    """Return our log-probabilities and frequencies with the long factors, the short ones and none."""
    rope, start = extension.rope, extension.rope.original_length
    lengths = [start - 1, start, start + 1, start + 2, 3 * start]
    generator = torch.Generator().manual_seed(SEED)
    tokens = torch.randint(3, model.config.vocab_size, (lengths[-1],), generator=generator)
    logprobs: dict[str, Any] = {}
    for name, scaling in {"long": extension.long, "short": extension.short, "none": None}.items():
        with lr.patch(model, scaling), torch.inference_mode():
            logits = [model(input_ids=tokens[None, :length], use_cache=False).logits[0] for length in lengths]
        logprobs[name] = {str(n): next_tokens(values, tokens[:n]) for n, values in zip(lengths, logits, strict=True)}
    scalings = {"long": extension.long, "short": extension.short, "none": lr.Scaling.identity(rope)}
    return {
        "tokens": tokens.tolist(),
        "lengths": lengths,
        "limits": [start, extension.length],
        "original_length": start,
        "logprobs": logprobs,
        "inv_freq": {name: scaling.inv_freq(rope).tolist() for name, scaling in scalings.items()},
        "attention_factor": extension.long.attention_factor,
    }


def plain_model(family: str) -> Any:
    """Build a tiny random model whose rotary embedding is not scaled."""
    fields = {name: size for name, size in HEADS.items() if name in ("hidden_size", *families.FAMILIES[family])}
    return families.build(family, **fields, **({"rope_parameters": None} if family == "phi3" else {}))


def measure(engine: str, python: str, folder: Path, reference: dict[str, Any], limit: int) -> dict[str, Any]:
    """Launch an engine for a maximum length and compare its numbers at each length, or return its error."""
    job = {**reference, "folder": str(folder.resolve()), "limit": limit}
    job["lengths"] = [length for length in reference["lengths"] if length < limit]
    (folder / "job.json").write_text(json.dumps(job))
    answer = folder / "answer.json"
    answer.unlink(missing_ok=True)
    command = [python, str(ENGINES), engine, str(folder / "job.json"), str(answer)]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=900)
    output: dict[str, Any] = json.loads(answer.read_text()) if answer.exists() else {"error": "no answer"}
    if "error" in output:  # vLLM's process says less than the one that it started
        lines = re.findall(r"\w+Error: .*", completed.stdout + completed.stderr)
        causes = [line for line in lines if "ngine core" not in line and "EngineCore" not in line]
        return {"error": (causes or [output["error"]])[0][:200]}
    verified = "code path" if engine in CODE else "run"
    comparisons = {length: compare(values, reference, int(length)) for length, values in output["values"].items()}
    return {"version": output["version"], "verified": verified, "lengths": comparisons}


def compare(values: Any, reference: dict[str, Any], length: int) -> dict[str, Any]:
    """Return the set of factors that is nearest to an engine's numbers, and the distance from each set."""
    extra = {}
    if isinstance(values, dict):
        sets = reference["inv_freq"]
        distance = {name: rms(values["inv_freq"], inv_freq, relative=True) for name, inv_freq in sets.items()}
        extra = {name: value for name, value in values.items() if name != "inv_freq"}
    else:
        distance = {name: rms(values, by_length[str(length)]) for name, by_length in reference["logprobs"].items()}
    due = "short" if length <= reference["original_length"] else "long"
    nearest = min(distance, key=lambda name: distance[name])
    nearest = nearest if distance[nearest] < TOLERANCE else "other"
    return {"set": nearest, "from ours": distance[due], "from each": distance, **extra}


def rms(values: list[float], references: list[float], *, relative: bool = False) -> float:
    """Return the root mean square of the difference."""
    pairs = zip(values, references, strict=True)
    differences = [(value - reference) / (reference if relative else 1) for value, reference in pairs]
    return math.sqrt(sum(difference**2 for difference in differences) / len(differences))


if __name__ == "__main__":
    main()
