"""Measure a key-value cache past L0 (transformers' config with both sets, our policies) and a chat about a long file.

    make benchmark-generation                # tiny and tiny random models: a minute
    python benchmarks/generation.py smollm2  # the chat, with SmolLM2-135M: ten minutes on one core; continues

``generate`` is forced to give the tokens of documents, so every policy decodes as it always does. Results in
``benchmarks/results/generation.json``.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from pydoc_data.topics import topics  # Python's own manual, in English
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot
from transformers import AutoModelForCausalLM, PreTrainedModel

import longrope as lr
from longrope.cli.chat_cache import ChatCache
from longrope.cli.chat_session import ChatModel, Turn, join_prompt
from longrope.cli.chat_stream import Stream
from longrope.data.stdlib import stdlib_documents
from longrope.export.hf_config import config_fields
from longrope.models.generation import POLICIES
from longrope.provenance import provenance
from longrope.storage.atomic import write_json

sys.path.append(str(Path(__file__).parent.parent / "tests"))
import families

RESULTS = Path(__file__).parent / "results" / "generation.json"
SEED, DOCUMENTS, READ, LENGTH = 0, 16, 200, 512
FAMILIES = ("llama", "qwen3", "phi3")
SIZES, DEPTHS, NEW = (1500, 6000, 10000), (0.1, 0.5, 0.9), 32  # of the files, in tokens; L0 = 8,192
NEEDLE, QUESTION = "The special magic number is {}.", "What is the special magic number?"
NEXT = "Describe in some sentences what the text before is about."
THEIRS = "transformers, both sets"


def main() -> None:
    """Measure the chat, or all but the chat; the results file keeps the other results."""
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if sys.argv[1:]:
        chat(results)
        return
    for measure in (losses, first_logits):
        results[measure.__name__] = {**measure(), "seed": SEED, "provenance": provenance()}
        write_json(RESULTS, results)
        print(measure.__name__, json.dumps(results[measure.__name__], indent=1), flush=True)


def losses() -> dict[str, Any]:
    """Return the loss of ``tiny`` on tokens after texts of 257 to 511 tokens, with the heuristic at 8x."""
    model, tokenizer = lr.load("tiny", dtype="float32")
    rope = lr.Rope.of(model)
    long = replace(lr.scheme("heuristic", rope, 8 * rope.original_length), attention_factor=1.0)
    extension = lr.Extension.of(rope, long)
    texts = [text[:8000] for _, text in stdlib_documents(unseen=True) if len(text) > 9000][:DOCUMENTS]
    x = torch.tensor([ids[:LENGTH] for ids in tokenizer(texts, verbose=False)["input_ids"]])

    def loss(logits: Tensor) -> float:
        return cross_entropy(logits[:, rope.original_length - LENGTH + 1 :].transpose(1, 2), x[:, 257:]).item()

    with lr.patch(model, long):
        by_policy = {"long factors, no cache": loss(uncached(model, x[:, :-1]))}
    for policy in POLICIES:
        with lr.generating(model, extension, policy):
            by_policy[policy] = loss(forced(model, x, READ))
    by_policy[THEIRS] = loss(forced(dual(model, extension), x, READ))
    return {"model": "tiny", "documents": DOCUMENTS, "loss": by_policy}


def first_logits() -> dict[str, Any]:
    """Return the relative RMS difference of cached and uncached logits after L0 + 1 tokens, for random models."""
    differences = {}
    for family in FAMILIES:
        model, x = families.build(family), families.tokens(1, families.L0 + 2)  # no text has the last one
        rope = lr.Rope.of(model)
        extension = lr.Extension.of(rope, lr.scheme("heuristic", rope, 8 * rope.original_length))
        exported, read = dual(model, extension), families.L0 - 1
        expected = uncached(exported, x[:, :-1])[:, -1]
        differences[family] = {THEIRS: difference(forced(exported, x, read)[:, -1], expected)}
        with lr.patch(model, extension.long):
            expected = uncached(model, x[:, :-1])[:, -1]
        for policy in POLICIES:
            with lr.generating(model, extension, policy):
                differences[family][policy] = difference(forced(model, x, read)[:, -1], expected)
    return {"difference": differences}


def chat(results: dict[str, Any]) -> None:
    """Take two turns about each file that the results lack, as ``longrope chat`` does."""
    model, tokenizer = lr.load("smollm2", dtype="bfloat16")
    rope = lr.Rope.of(model)
    extension = lr.Extension.of(rope, lr.scheme("heuristic", rope, 4 * rope.original_length))
    speaker = ChatModel(model, tokenizer, extension, "pin", exported=False)
    ids = tokenizer("\n".join(topics.values()), verbose=False)["input_ids"]
    settings = {"model": "smollm2", "dtype": "bfloat16", "scheme": "heuristic", "length": extension.length}
    conversations: dict[str, Any] = results.get("chat", {}).get("cells", {})
    for depth, size in product(DEPTHS, SIZES):
        if (key := f"{size} {depth}") not in conversations:
            conversations[key] = two_turns(speaker, str(tokenizer.decode(ids[:size])), depth)
            results["chat"] = {**settings, "summary": summary(conversations), "cells": conversations, "seed": SEED}
            results["chat"]["provenance"] = provenance()
            write_json(RESULTS, results)
            print(key, json.dumps(conversations[key]), flush=True)


def two_turns(speaker: ChatModel, text: str, depth: float) -> dict[str, Any]:
    """Ask for a sentence planted in a text, then something else; return answers, speed, and the machine's load."""
    number = str(np.random.default_rng([SEED, round(100 * depth), len(text)]).integers(100_000, 1_000_000))
    index = text.index("\n", int(depth * len(text)))
    file = f"{text[:index]}\n{NEEDLE.format(number)}{text[index:]}"
    cache = ChatCache(speaker)
    turns: list[Turn] = []
    rows: list[dict[str, Any]] = []
    for message in (join_prompt(file, QUESTION), NEXT):
        tokens, stream = speaker.encode([*turns, (message, "")]), Stream(speaker.tokenizer, quiet=True)
        cache.answer(tokens, new=NEW, temperature=0, stream=stream)
        answer = str(speaker.tokenizer.decode(stream.tokens, skip_special_tokens=True))
        turns.append((message, answer))
        row = {"prompt_tokens": len(tokens), "tokens": len(stream.tokens), "answer": answer}
        row |= {"factors": speaker.factor_sets(tokens, NEW), "first_token_seconds": stream.times[0]}
        rows.append({**row, "rate": stream.rate, "load_average": os.getloadavg()[0]})
    return {"number": number, "found": number in turns[0][1], "turns": rows}


def summary(conversations: dict[str, Any]) -> dict[str, Any]:
    """Return medians over the depths, by size of the file."""
    rows = {}
    for size in dict.fromkeys(key.split()[0] for key in conversations):
        of = [conversation for key, conversation in conversations.items() if key.startswith(f"{size} ")]
        first, second = ([conversation["turns"][turn]["first_token_seconds"] for conversation in of] for turn in (0, 1))
        rows[size] = {
            "found": sum(conversation["found"] for conversation in of),
            "of": len(of),
            "first_token_seconds": median(first),
            "second_turn_seconds": median(second),
            "second_over_first": median(b / a for a, b in zip(first, second, strict=True)),
            "tokens_per_second": median(conversation["turns"][1]["rate"] for conversation in of),
        }
    return rows


def dual(model: PreTrainedModel, extension: lr.Extension) -> PreTrainedModel:
    """Return the same weights under transformers' own config with both sets, as a dual export has it."""
    fields = config_fields(model.config.to_dict(), extension)
    exported = AutoModelForCausalLM.from_config(type(model.config).from_dict(fields), dtype=torch.float32).eval()
    exported.load_state_dict(model.state_dict())
    return exported


@torch.inference_mode()
def uncached(model: Any, x: Tensor) -> Tensor:
    """Return the logits of every next token, without a cache."""
    return model(input_ids=x, use_cache=False).logits


def forced(model: Any, x: Tensor, read: int) -> Tensor:
    """Return raw logits after the first ``read`` tokens of a text, then after one more at a time."""

    def force(ids: Tensor, scores: Tensor) -> Tensor:
        return one_hot(x[:, ids.shape[1]], scores.shape[1]).float()

    output = model.generate(
        x[:, :read],
        attention_mask=torch.ones_like(x[:, :read]),
        max_new_tokens=x.shape[1] - read,
        do_sample=False,
        eos_token_id=None,
        logits_processor=[force],
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert torch.equal(output.sequences, x)
    return torch.stack(output.logits, dim=1)


def difference(logits: Tensor, expected: Tensor) -> float:
    """Return the RMS of the difference over the RMS of the expected logits."""
    return ((logits - expected).square().mean() / expected.square().mean()).sqrt().item()


if __name__ == "__main__":
    main()
