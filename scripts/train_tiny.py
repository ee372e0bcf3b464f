"""Train `tiny`, the embedded reference model: a small Llama of 256 tokens on the standard library's source.

    python scripts/train_tiny.py --out build/tiny

Half of the sequences are plain source. The others also hold `key = word word` lines that are repeated later. The same
command continues from the last checkpoint.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from longrope.data.key_value_lines import make_key_value_text
from longrope.data.stdlib import is_unseen, stdlib_documents

LENGTH, VOCABULARY, THETA, END = 256, 2048, 10000.0, "<|endoftext|>"
ANSWER_WEIGHT, WARMUP, BETAS, WEIGHT_DECAY = 3.0, 200, (0.9, 0.95), 0.1
NEEDLE_COUNTS, NEEDLE_SHARES = (0, 1, 2, 3, 4, 5), (0.5, 0.2, 0.075, 0.075, 0.075, 0.075)
ASSETS = Path(__file__).resolve().parents[1] / "src" / "longrope" / "assets" / "tiny"


@dataclass
class Run:
    """The training state of a checkpoint: model, optimizer, batch generator, steps, loss and seconds."""

    model: LlamaForCausalLM
    optimizer: torch.optim.AdamW
    rng: np.random.Generator
    step: int = 0
    loss: float = math.nan
    seconds: float = 0.0


def main() -> None:
    """Train, write the model, evaluate the written model and write its card."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    seen = [text for name, text in stdlib_documents() if not is_unseen(name)]
    tokenizer = load_tokenizer(args.out, seen)
    stream = encode(tokenizer, seen)
    print(f"{len(seen)} documents, {stream.size:,} tokens to train on", flush=True)
    run = start_run(args)
    train(run, stream, tokenizer, args)
    save_release(run.model, tokenizer, args.assets)
    release = LlamaForCausalLM.from_pretrained(args.assets, dtype=torch.bfloat16).eval()
    numbers = evaluate(release, tokenizer, stream, seed=args.seed + 1)
    numbers |= {"steps": run.step, "tokens": run.step * args.batch * LENGTH, "final_loss": run.loss}
    numbers |= {"parameters": run.model.num_parameters(), "minutes": run.seconds / 60}
    print(json.dumps(numbers, indent=2), flush=True)
    (args.assets / "README.md").write_text(model_card(numbers, args), encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--assets", type=Path, default=ASSETS, help="folder of the finished model")
    parser.add_argument("--tokens", type=int, default=17_000_000, help="total training tokens")
    parser.add_argument("--batch", type=int, default=32, help="sequences per step")
    parser.add_argument("--lr", type=float, default=1.5e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16 is autocast")
    parser.add_argument("--compile", action="store_true", help="torch.compile the training step's forward")
    parser.add_argument("--checkpoint-minutes", type=float, default=3.0)
    return parser.parse_args()


def load_tokenizer(folder: Path, texts: list[str]) -> PreTrainedTokenizerFast:
    """Load the byte-level BPE tokenizer from `folder`, or train it on `texts` and save it there."""
    if (folder / "tokenizer.json").exists():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet)
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END, eos_token=END)
    tokenizer.save_pretrained(folder)
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    """Return all texts as one stream of ids (tokens,), with the end token after each text."""
    ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return np.concatenate([np.array([*document, tokenizer.eos_token_id]) for document in ids])


def start_run(args: argparse.Namespace) -> Run:
    """Return a new run, or the run of the checkpoint in `args.out`."""
    torch.manual_seed(args.seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    groups = [{"params": matrices}, {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)
    run = Run(model, optimizer, np.random.default_rng(args.seed))
    if (args.out / "checkpoint").is_dir():
        load_checkpoint(run, args.out / "checkpoint")
    return run


def save_checkpoint(run: Run, folder: Path) -> None:
    """Write the training state under a temporary name and rename it over the last checkpoint."""
    fresh, old = folder.with_suffix(".new"), folder.with_suffix(".old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir()
    tensors = {f"model.{name}": p.detach() for name, p in run.model.named_parameters()}
    for index, state in run.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
    save_file(tensors, fresh / "state.safetensors")
    facts = {"version": 1, "step": run.step, "loss": run.loss, "seconds": run.seconds}
    (fresh / "run.json").write_text(json.dumps(facts | {"rng": run.rng.bit_generator.state}, indent=1))
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(run: Run, folder: Path) -> None:
    """Load into `run` the state that `save_checkpoint` wrote."""
    facts = json.loads((folder / "run.json").read_text())
    run.step, run.loss, run.seconds = facts["step"], facts["loss"], facts["seconds"]
    run.rng.bit_generator.state = facts["rng"]
    state: dict[int, dict[str, torch.Tensor]] = {}
    weights = {}
    for name, tensor in load_file(folder / "state.safetensors").items():
        kind, rest = name.split(".", 1)
        if kind == "model":
            weights[rest] = tensor
        else:
            index, key = rest.split(".")
            state.setdefault(int(index), {})[key] = tensor
    run.model.load_state_dict(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]})
    run.optimizer.load_state_dict(run.optimizer.state_dict() | {"state": state})
    print(f"continuing from step {run.step}", flush=True)


def train(run: Run, stream: np.ndarray, tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> None:
    """Train up to `args.tokens`, with a checkpoint every `args.checkpoint_minutes` and at the end."""
    steps = args.tokens // (args.batch * LENGTH)
    losses = torch.compile(_losses) if args.compile else _losses
    saved = began = time.monotonic()
    while run.step < steps:
        batch = make_batch(stream, tokenizer, run.rng, size=args.batch)
        for group in run.optimizer.param_groups:
            group["lr"] = args.lr * _schedule(run.step, steps)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.precision == "bf16"):
            loss, recalled = losses(run.model, *batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.step += 1
        run.loss = loss.item() if math.isnan(run.loss) else 0.98 * run.loss + 0.02 * loss.item()
        now = time.monotonic()
        run.seconds, began = run.seconds + now - began, now
        if run.step % 20 == 0:
            rate = run.step * args.batch * LENGTH / run.seconds
            print(
                f"{run.step}/{steps} loss {run.loss:.3f} recalled {recalled.item():.3f} {rate:,.0f} tokens/s",
                flush=True,
            )
        if now - saved > 60 * args.checkpoint_minutes or run.step == steps:
            save_checkpoint(run, args.out / "checkpoint")
            saved = now


def make_batch(
    stream: np.ndarray, tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator, *, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (ids, answers), both (size, LENGTH): random windows of the stream, some with planted key-value lines."""
    ids, answers = np.zeros((size, LENGTH), dtype=np.int64), np.zeros((size, LENGTH), dtype=bool)
    for row, start in enumerate(rng.integers(stream.size - LENGTH, size=size)):
        ids[row] = window = stream[start : start + LENGTH]
        needles = int(rng.choice(NEEDLE_COUNTS, p=NEEDLE_SHARES))
        if needles:
            query_depth = rng.uniform(0.4, 1.0)
            text = make_key_value_text(
                window, tokenizer, rng=rng, length=LENGTH, needles=needles, queries=needles, query_depth=query_depth
            )
            ids[row], answers[row] = text.tokens, text.answers
    return torch.from_numpy(ids), torch.from_numpy(answers)


def _schedule(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARMUP) * 0.5 * (1.02 + 0.98 * math.cos(math.pi * step / steps))


def _losses(model: LlamaForCausalLM, ids: torch.Tensor, answers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weighted loss of a batch and the unweighted loss of its answer tokens, in nats per token."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    losses = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    is_answer = answers[:, 1:].flatten().float()
    weights = 1 + (ANSWER_WEIGHT - 1) * is_answer
    return (losses * weights).sum() / weights.sum(), (losses * is_answer).sum().detach() / is_answer.sum()


def save_release(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write bf16 weights, the tokenizer, and configs that older readers understand too."""
    release = LlamaForCausalLM(model.config)
    release.bfloat16()
    release.load_state_dict(model.state_dict())
    release.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=0)
    release.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    _edit(folder / "config.json", rope_theta=THETA, torch_dtype="bfloat16")
    _edit(
        folder / "tokenizer_config.json",
        tokenizer_class="PreTrainedTokenizerFast",
        is_local=None,
        local_files_only=None,
    )


def _edit(path: Path, **changes: object) -> None:
    """Set fields of a JSON file; None removes one."""
    fields = json.loads(path.read_text()) | changes
    remaining = {name: value for name, value in fields.items() if value is not None or name not in changes}
    path.write_text(json.dumps(remaining, indent=2, sort_keys=True) + "\n")


def evaluate(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seen: np.ndarray, *, seed: int, trials: int = 500
) -> dict[str, float]:
    """Return perplexities on unseen windows of LENGTH tokens, and exact recall rates of 1 and 3 planted lines."""
    unseen = encode(tokenizer, [text for _, text in stdlib_documents(unseen=True)])
    windows = unseen[: unseen.size // LENGTH * LENGTH].reshape(-1, LENGTH)
    counts = np.bincount(seen, minlength=VOCABULARY) + 1
    unigram = -np.log(counts / counts.sum())[windows[:, 1:]].mean()
    losses = [-_log_probabilities(model, chunk).mean(1) for chunk in torch.from_numpy(windows).split(64)]
    numbers = {"perplexity": math.exp(torch.cat(losses).mean()), "unigram_perplexity": math.exp(unigram)}
    rng = np.random.default_rng(seed)
    for needles in (1, 3):
        starts = rng.integers(unseen.size - LENGTH, size=trials)
        exact = [_recalls(model, tokenizer, unseen[i : i + LENGTH], rng=rng, needles=needles) for i in starts]
        numbers[f"recall_{needles}"] = float(np.mean(exact))
    return numbers | {"windows": len(windows), "trials": trials}


@torch.inference_mode()
def _log_probabilities(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    return logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]


@torch.inference_mode()
def _recalls(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    background: np.ndarray,
    *,
    rng: np.random.Generator,
    needles: int,
) -> bool:
    text = make_key_value_text(background, tokenizer, rng=rng, length=LENGTH, needles=needles)
    ids = torch.from_numpy(text.tokens)[None]
    best = model(input_ids=ids, use_cache=False).logits[0, :-1].argmax(-1).numpy()
    return bool((best == text.tokens[1:])[text.answers[1:]].all())


def model_card(numbers: dict[str, float], args: argparse.Namespace) -> str:
    """Return the README.md of the finished model."""
    flags = (
        f"--tokens {args.tokens} --batch {args.batch} --lr {args.lr} --seed {args.seed} --precision {args.precision}"
    )
    command = f"python scripts/train_tiny.py --out build/tiny {flags}{' --compile' if args.compile else ''}"
    facts = {name: f"{value:.4g}" if isinstance(value, float) else f"{value:,}" for name, value in numbers.items()}
    facts |= {"recall_1": f"{numbers['recall_1']:.1%}", "recall_3": f"{numbers['recall_3']:.1%}"}
    return CARD.format(
        **facts,
        command=command,
        seed=args.seed,
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        tokenizers=tokenizers.__version__,
        threads=args.threads,
        machine=f"{platform.system()} {platform.machine()}",
        cores=os.cpu_count(),
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    )


CARD = """\
---
language: [en, code]
library_name: transformers
pipeline_tag: text-generation
license: other
license_name: psf-2.0
license_link: https://docs.python.org/3/license.html
tags: [longrope, rope, long-context, reference-model]
---

# tiny

The embedded reference model of `longrope`: a Llama with {parameters} parameters (hidden 256, 4 layers, 4 heads of 64,
MLP 512, tied embeddings, rope_theta 10000) that was trained on sequences of 256 tokens. Use it to try RoPE
extension in a minute on a CPU; it is too small to write useful text.

**Data.** Source of the Python {python} standard library (PSF licence), the documents for which
`longrope.data.stdlib.is_unseen` is false, and synthetic `key = word word` lines planted in it and repeated later
(`longrope.data.key_value_lines`). Half of the sequences have no line, 20% one, 30% two to five. Repeated words have
a loss weight of 3.
The byte-level BPE of 2,048 tokens was trained on the same documents.

**Made by**

    {command}

on {date} ({machine}, CPU only, {threads} threads, {minutes} minutes; torch {torch}, transformers {transformers},
tokenizers {tokenizers}; seed {seed}): {steps} steps, {tokens} tokens, final weighted training loss {final_loss} nats.

| the bf16 weights, 256 tokens, documents never trained on | |
|---|---|
| perplexity ({windows} windows) | {perplexity} |
| perplexity of token frequencies alone | {unigram_perplexity} |
| exact recall, 1 planted line ({trials} trials) | {recall_1} |
| exact recall, one of 3 planted lines ({trials} trials) | {recall_3} |
"""


if __name__ == "__main__":
    main()
