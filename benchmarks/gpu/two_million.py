"""Read one text of up to 2M tokens once: its perplexity by position, and questions on lines planted in it.

    python benchmarks/gpu/two_million.py run/stage-1/model --factors run     # ten minutes on an H200 for SmolLM2
    python benchmarks/gpu/two_million.py smollm2 --factors yarn              # a scheme for the length, plain weights
    python benchmarks/gpu/two_million.py tiny --factors ramp --length 16k --device cpu -o build/far.json   # a trial

The text is the longest test documents of ``--data``, one after the other, with a line for each question at a random
place. The questions are asked one by one after the whole text, whose keys and values are computed once (48 GB for
SmolLM2 at 2M). Results in ``benchmarks/results/gpu-two-million.json``, by model, factors and length; what is there is
not done again. For a pass of hours on a CPU, ``--save`` keeps what each layer has computed. ``in_windows`` says how
hard the text is at each position: the perplexity of the model without factors, which reads it in windows of L0 tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

import longrope as lr
from longrope.longcontext.token_losses import head_losses
from longrope.models.backbone import backbone_of
from longrope.models.cache import cache_argument
from longrope.provenance import provenance
from longrope.schemes import is_scheme
from longrope.storage.atomic import write_json
from longrope.tasks.registry import make_prompts
from longrope.tasks.scoring import score_prompts
from longrope.units import parse_length

sys.path.append(str(Path(__file__).parent.parent))
from measuring import long_text

RESULTS = Path(__file__).parent.parent / "results" / "gpu-two-million.json"
BINS = 16


def main() -> None:
    """Measure one model with one set of factors."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", help="model, or the folder of an adapter")
    parser.add_argument("--factors", required=True, help="scheme, factors file or run folder")
    parser.add_argument("--length", default="2m")
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--data", default="stdlib", help="source of texts; must be that of the training, if any")
    parser.add_argument("--save", type=Path, help="folder for what each layer has computed; a stopped pass continues")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    length = parse_length(arguments.length, "length")
    key = f"{arguments.model} {arguments.factors} {length}"
    rows: dict[str, Any] = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    if "in_windows" in rows.get(key, {}):
        print(key, rows[key])
        return
    model, tokenizer = lr.load(arguments.model, dtype="bfloat16", device=arguments.device)
    name, rope = arguments.factors, lr.Rope.of(model)
    factors = lr.scheme(name, rope, length) if is_scheme(name) else lr.load_factors(name)
    count = arguments.questions
    texts = long_text(tokenizer, length, arguments.data)
    prompts = make_prompts("recall", tokenizer, length=length, trials=count, texts=texts, questions=count)
    document = prompts[0].tokens[: prompts[0].shared]
    windows = in_windows(model, document, rope.original_length)
    if key in rows:
        rows[key]["in_windows"] = windows
        write_json(arguments.output, rows)
        return
    losses: list[np.ndarray] = []

    def keep_losses(tokens: Tensor, hidden: Tensor) -> None:
        losses.extend(values[0].cpu().numpy() for _, _, values in head_losses(model, tokens, hidden))

    if arguments.save:
        save_layers(model, arguments.save, length // 2)
    started = time.perf_counter()
    with lr.patch(model, factors.long if isinstance(factors, lr.Extension) else factors):
        scores = score_prompts(model, tokenizer, prompts, on_document=keep_losses)
    by_token = np.concatenate(losses).astype(np.float64)
    rows[key] = {
        "perplexity": float(np.exp(by_token.mean())),
        "perplexity_by_position": by_position(by_token),
        "in_windows": windows,
        "recall": float(np.mean([score.score for score in scores])),
        "questions": count,
        "data": arguments.data,
        "loss_of_answers": float(np.mean([score.loss for score in scores if score.loss is not None])),
        "seconds": time.perf_counter() - started,
        "peak_bytes": torch.cuda.max_memory_allocated() if arguments.device.startswith("cuda") else None,
        "provenance": provenance(arguments.device),
    }
    write_json(arguments.output, rows)
    print(key, rows[key])


def by_position(losses: np.ndarray) -> list[float]:
    """Return the perplexity of each of as many equal parts of a text as there are bins."""
    return [float(np.exp(part.mean())) for part in np.array_split(losses, BINS)]


def in_windows(model: PreTrainedModel, tokens: np.ndarray, window: int) -> list[float]:
    """Return the perplexity by position of a model that reads windows of a text, each on its own."""
    losses = lr.token_losses(model, [tokens[start : start + window] for start in range(0, len(tokens) - 1, window)])
    return by_position(np.concatenate(list(losses)).astype(np.float64))


def save_layers(model: PreTrainedModel, folder: Path, longest: int) -> None:
    """Make each layer save its keys, values and output of a long pass, and skip what a stopped pass has saved.

    Args:
        model: Model to change.
        folder: Folder of the files, for this model, these factors and this text alone.
        longest: Tokens of the longest pass that is not saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cache_name = cache_argument(model)

    def saving(number: int, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        path, following = folder / f"{number}.pt", folder / f"{number + 1}.pt"

        def run(hidden: Tensor, **named: Any) -> Tensor:
            if hidden.shape[1] <= longest:
                return forward(hidden, **named)
            if path.exists():
                keys, values, output = torch.load(path, map_location=hidden.device)
                named[cache_name].update(keys, values, number)
                return hidden if following.exists() else output
            output = forward(hidden, **named)
            saved = named[cache_name].layers[number]
            torch.save((saved.keys, saved.values, output), new := path.with_suffix(".new"))
            new.rename(path)
            print(f"layer {number}", time.strftime("%H:%M"), flush=True)
            return output

        return run

    for number, layer in enumerate(backbone_of(model).layers):
        layer.forward = saving(number, layer.forward)


if __name__ == "__main__":
    main()
