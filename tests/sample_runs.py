"""Run folders as ``eval``, ``extend`` and ``search`` leave them, with made-up numbers of a realistic size."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from longrope.evaluation.paired_retrieval import paired_retrieval
from longrope.evaluation.records import document_perplexity, paired_difference
from longrope.evaluation.retrieval_score import RetrievalScore
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import scheme

ROPE = Rope(dim=64, base=1e4, original_length=256)
LENGTHS = (256, 512, 1024, 2048)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
HARD = {"original": 1.3, "pi": 1.2, "ntk": 0.5, "yarn": 0.06, "heuristic": 0.3, "2k searched": 0.04, "extended": 0.0}
EVIL = "<script>alert(1)</script>"
CORPUS = "stdlib:unseen"


def factors_of(name: str) -> Scaling | Extension | None:
    rng = np.random.default_rng(5)
    if name == "original":
        return None
    if name in ("pi", "ntk", "yarn", "heuristic"):
        return scheme(name, ROPE, LENGTHS[-1])
    base = np.array(scheme("yarn", ROPE, LENGTHS[-1]).factors)
    long = Scaling((base * np.exp(rng.normal(0, 0.15, 32))).tolist(), scheme="searched", length=LENGTHS[-1])
    if name == "2k searched":
        return long
    short = Scaling((base**0.3).tolist(), scheme="searched", length=256)
    return Extension(ROPE, short, long, LENGTHS[-1])


def results(names: tuple[str, ...] = tuple(HARD), *, model: str = "tiny", seed: int = 0) -> dict[str, Any]:
    """All of results.json; a name that `HARD` does not know is as hard as the heuristic."""
    rng = np.random.default_rng(seed)
    documents = rng.normal(3.2, 0.4, 6)
    record: dict[str, Any] = {
        "version": 1,
        "model": model,
        "dtype": "torch.float32",
        "rope": {key: value for key, value in asdict(ROPE).items() if key != "factors"},
        "lengths": list(LENGTHS),
        "corpora": {CORPUS: {"documents": [f"document_{i}.py" for i in range(6)], "hash": "0123456789abcdef"}},
        "provenance": {
            "command": "longrope eval tiny --lengths 256,512,1k,2k -o run",
            "versions": {"longrope": "0.1.0", "torch": "2.13.0"},
            "machine": {"system": "Linux x86_64", "cores": 2, "device": "cpu"},
            "date": "2026-01-02",
        },
        "rows": {},
        "short_context": {},
    }
    for measure in ("perplexity", "differences", "positions", "sliding", "key_tokens", "retrieval", "tasks"):
        record[measure] = {}
    for name in names:
        hard, factors = HARD.get(name, 0.3), factors_of(name)
        weights = "run/stage-1/model" if name == "extended" else model
        record["rows"][name] = {"weights": weights, "factors": factors and json.loads(factors.to_json())}
        record["perplexity"][name] = cells = [perplexity(documents, hard, length, rng) for length in LENGTHS]
        if name != "original":
            before = record["perplexity"]["original"][0]["perplexity"]
            record["short_context"][name] = 100 * (cells[0]["perplexity"] / before - 1)
        record["positions"][name] = [
            {"corpus": CORPUS, "start": max(start, 1), "end": start + 64, "standard_error": 0.1}
            | {"loss": float(3 + hard * start / 2048 * 2 + 1.5 * math.exp(-start / 80) + rng.normal(0, 0.05))}
            for start in range(0, 2048, 64)
        ]
        last = cells[-1]
        record["sliding"][name] = [last | {"length": 256, "stride": 64}]
        record["key_tokens"][name] = [{"corpus": CORPUS, "length": 2048, "share": 0.04, "chosen_by": "extended"}]
        record["key_tokens"][name][0]["perplexity"] = last["perplexity"] * 0.4
        record["retrieval"][name] = retrieval(hard, rng)
        record["tasks"][name] = {"local_task": {"acc": 0.5 - hard / 10, "acc_stderr": 0.0123, "alias": "local"}}
    compare(record)
    return record


def compare(record: dict[str, Any]) -> None:
    """Paired differences of the rows that are there."""
    record["differences"] = {
        name: [
            paired_difference(
                *(
                    document_perplexity(np.array(row["losses"], dtype=float), row["length"], corpus=CORPUS)
                    for row in (ours, reference)
                ),
                against=other,
            ).model_dump()
            for other in ("original", "yarn")
            if other in record["perplexity"] and other != name
            for ours, reference in zip(cells, record["perplexity"][other], strict=True)
        ]
        for name, cells in record["perplexity"].items()
    }
    scores = {
        name: [RetrievalScore.model_validate(cell) for cell in cells]
        for name, cells in record.get("retrieval", {}).items()
    }
    pairs = {
        name: [
            paired_retrieval(rows, scores[other], length=length, against=other)
            for other in ("original", "yarn")
            if other in scores and other != name
            for length in LENGTHS
        ]
        for name, rows in scores.items()
    }
    record["paired_retrieval"] = {name: [pair.model_dump() for pair in rows if pair] for name, rows in pairs.items()}


def perplexity(documents: np.ndarray, hard: float, length: int, rng: np.random.Generator) -> dict[str, Any]:
    losses = (
        documents
        + hard * math.log2(length / 256) / 3
        + 0.05 * (hard < 1.3)
        - 0.12 * math.log2(length / 256)
        + rng.normal(0, 0.03, 6)
    )
    value = math.exp(losses.mean())
    error = value * losses.std(ddof=1) / 6**0.5
    parts = {"corpus": CORPUS, "length": length, "perplexity": value, "standard_error": float(error)}
    return parts | {"losses": losses.tolist()}


def retrieval(hard: float, rng: np.random.Generator) -> list[dict[str, Any]]:
    found = []
    for task in ("passkey", "niah_multikey"):
        for length in LENGTHS:
            for depth in DEPTHS:
                score = float(np.clip(1 - hard * math.log2(length / 128) / 3 + rng.normal(0, 0.05), 0, 1))
                score = round(score * 20) / 20
                cell = {"task": task, "length": length, "depth": depth, "score": score, "trials": 20}
                cell["scores"] = [1.0] * round(20 * score) + [0.0] * round(20 * (1 - score))
                cell |= {"standard_error": math.sqrt(score * (1 - score) / 20), "chance": 0.2}
                found.append(cell | {"choice": min(1.0, score + 0.05) if task == "passkey" else None})
    return found


def journal(folder: Path, seed: int = 0) -> Path:
    """A search of 60 candidates on two items after some steps of the gradient; its last line was cut by a crash."""
    rng, path = np.random.default_rng(seed), folder / f"search-{seed}.jsonl"
    space = {"rope": asdict(ROPE), "length": 2048}
    lines: list[dict[str, Any]] = [
        {"version": 1, "settings": {"model": "tiny", "dtype": "torch.float32", "space": space, "seed": seed}}
    ]
    for i in range(60):
        factors = [float(value) for value in rng.uniform(1, 8, 32)]
        about = {"start_tokens": 0, "attention_factor": 1.0, "factors": factors}
        losses = 3.4 - 0.4 * math.log1p(i) / math.log(61) + rng.normal(0, 0.05, 2)
        if i % 4 == 1:
            lines.append({"item": 0, "loss": 0.1, "seconds": 0.7, "gradient": [0.0] * 32} | about)  # not comparable
            continue
        lines += [{"item": item, "loss": float(loss), "seconds": 0.25} | about for item, loss in enumerate(losses)]
        lines.append({"generation": i, "state": {}})
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"item": 0, "lo', encoding="utf-8")
    return path


def write_run(folder: Path, record: dict[str, Any] | None = None) -> Path:
    """The folder of an extension: results, and a stage's search with its winner."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results() if record is None else record)
    (folder / "results.json").write_text(text, encoding="utf-8")
    write_search(folder / "stage-1" / "search")
    return folder


def write_search(folder: Path) -> Path:
    for seed in (0, 1):
        journal(folder, seed)
    extension = factors_of("extended")
    assert isinstance(extension, Extension)
    held_out = {"searched": 3.0123, "yarn": 3.0456, "pi": 4.5}
    long = Scaling(extension.long.factors, scheme="searched", length=2048, provenance={"held_out_loss": held_out})
    (folder / "extension.json").write_text(Extension.of(ROPE, long).to_json(), encoding="utf-8")
    return folder
