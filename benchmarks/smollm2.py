"""SmolLM2-135M from 8,192 to 16,384 tokens on a CPU: search, compare on test documents, export, reload.

    make benchmark-smollm2

Every step is done once: start it again after an interrupt and it goes on. The results are in
``benchmarks/results/smollm2-16k*.json``; the work, with the journal of the search, is in ``build/smollm2-16k*``, and
without those folders all is measured anew.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from longrope.data.documents import load_documents
from longrope.data.split import draw_tokens, split_documents
from longrope.evaluation.losses import model_losses
from longrope.evaluation.perplexity import perplexity_of_losses
from longrope.formats.load_factors import load_factors
from longrope.longcontext.token_losses import token_losses
from longrope.models.load import load
from longrope.provenance import provenance
from longrope.scaling import Extension
from longrope.schemes import scheme
from longrope.storage.atomic import write_json

LENGTH, LENGTHS = 16384, (2048, 4096, 8192, 12288, 16384)
TEST_DOCUMENTS = 3
RUN, CHECKPOINT = Path("build/smollm2-16k"), Path("build/smollm2-16k-checkpoint")
RESULTS = Path(__file__).parent / "results"
SEARCH = "smollm2 --length 16k --data stdlib --dtype bfloat16 --method paper --population 8 --schemes yarn,ntk"
SEARCH += f" --needles 0 --budget {12 * LENGTH} --search-documents 1 --held-out-documents 1 --resume"


def main() -> None:
    """Do what is not done yet."""
    longrope("search", *SEARCH.split(), "-o", str(RUN))
    model, tokenizer = load("smollm2", dtype="bfloat16")
    found = load_factors(RUN / "extension.json")
    assert isinstance(found, Extension)
    names = ("pi", "ntk", "yarn", "heuristic")
    candidates = {"original": None, **{name: scheme(name, found.rope, LENGTH) for name in names}}
    candidates["searched"] = found.long
    drawn = draw_tokens(
        split_documents(load_documents("stdlib"))["test"], tokenizer, length=LENGTH, count=TEST_DOCUMENTS
    )
    path = RUN / "compared.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"perplexity": {}}
    factors = list(found.long.factors)
    if record.get("factors", factors) != factors or record.get("documents", [*drawn.names]) != [*drawn.names]:
        raise SystemExit(f"{path} holds another run: remove it and {CHECKPOINT}")
    record |= {
        "factors": factors,
        "documents": list(drawn.names),
        "search": found.long.provenance,
        "search_command": f"longrope search {SEARCH}",
    }
    for name in [name for name in candidates if name not in record["perplexity"]]:
        losses = model_losses(model, candidates[name], drawn.tokens)
        row = [perplexity_of_losses(losses, length).model_dump(exclude={"corpus"}) for length in LENGTHS]
        last = losses[:, 3 * LENGTH // 4 :]
        record["perplexity"][name] = {"lengths": row, "last_quarter": float(np.exp(last.mean(dtype=np.float64)))}
        record["provenance"] = provenance()
        write_json(path, record)
    write_json(RESULTS / "smollm2-16k.json", record)
    if not CHECKPOINT.exists():
        longrope("export", "smollm2", "--factors", str(RUN), "-o", str(CHECKPOINT), "--dtype", "bfloat16")
    reloaded(drawn.tokens[:1], record)


def reloaded(tokens: np.ndarray, record: dict[str, Any]) -> None:
    """Perplexity of the first test document from the exported folder alone, and the parity of its logits."""
    path = RUN / "reloaded.json"
    if not path.exists():
        exported = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.bfloat16).eval()
        alone = perplexity_of_losses(token_losses(exported, tokens), LENGTH)
        ours = record["perplexity"]["searched"]["lengths"][-1]["losses"][0]
        command = [sys.executable, "-m", "longrope", "check", str(CHECKPOINT), "smollm2", "--json"]
        checked = json.loads(subprocess.run(command, stdout=subprocess.PIPE).stdout)
        both = {"from_pretrained": alone.perplexity, "patched": float(np.exp(ours)), "check": checked}
        write_json(path, both | {"document": record["documents"][0], "length": LENGTH, "provenance": provenance()})
    write_json(RESULTS / "smollm2-16k-reloaded.json", json.loads(path.read_text()))


def longrope(*arguments: str) -> None:
    """Run a command as a user would."""
    subprocess.run([sys.executable, "-m", "longrope", *arguments], check=True)


if __name__ == "__main__":
    main()
