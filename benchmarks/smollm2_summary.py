"""Summary of what ``benchmarks/smollm2.py`` measured: perplexity by length, answers, paired differences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from smollm2_case import KINDS, Case

from longrope.evaluation.statistics import mean_error, rate_interval

L0, BLOCK = 8192, 1024  # tokens; a block is a run of tokens whose mean loss is kept
ROWS = (
    *("searched", "yarn", "tailspline", "original", "ntk", "heuristic", "ramp"),
    *("searched_yarn", "searched_24_questions", "halfway", "nearest_yarn", "tailspline_su", "bm", "mrrope_pro", "pi"),
)


def correlation(measured: Mapping[str, Any]) -> float:
    """Return how alike exact answers to questions about one document are: the mean intraclass correlation.

    It is Fisher's estimate by analysis of variance, of each row, kind and length with three documents or more; NaN
    where there are none.
    """
    found: list[float] = []
    for corpus, row in {(key.split()[0], key.split()[2]) for key in measured}:
        documents = [value["answers"] for key, value in measured.items() if key.split()[::2] == [corpus, row]]
        for key in documents[0] if len(documents) > 2 else ():
            right = np.array([[exact for exact, _ in answers[key]] for answers in documents], dtype=float)
            count = right.shape[1]
            between = count * right.mean(axis=1).var(ddof=1)
            within = right.var(axis=1, ddof=1).mean()
            if between + within > 0:
                found.append((between - within) / (between + (count - 1) * within))
    return float(np.mean(found)) if found else float("nan")


def summary(measured: Mapping[str, Any], case: Case) -> dict[str, Any]:
    """Return perplexity by length, differences in nats to other rows, and rates, on documents that these rows share."""
    rows: dict[str, Any] = {}
    for corpus in ("code", "prose"):
        keys = {row: [f"{corpus} {number} {row}" for number in range(case.documents)] for row in ROWS}
        compared = zip(*(keys[row] for row in ("searched", *case.against)), strict=True)
        done = [number for number, names in enumerate(compared) if measured.keys() >= {*names}]
        whole = {
            row: [measured[names[number]] for number in done if names[number] in measured]
            for row, names in keys.items()
        }
        whole = {row: documents for row, documents in whole.items() if done and len(documents) == len(done)}
        for row, documents in whole.items():
            found: dict[str, Any] = {"documents": len(done), "perplexity": {}}
            found["last_quarter"] = perplexity(stretch(documents, case.length * 3 // 4, case.length))
            for length in case.lengths:
                losses = stretch(documents, 0, length)
                found["perplexity"][length] = perplexity(losses)
            for other in (name for name in case.against if name in whole and name != row):
                beyond = zip(stretch(documents, L0, case.length), stretch(whole[other], L0, case.length), strict=True)
                nats, error = mean_error([ours - theirs for ours, theirs in beyond])
                found[f"beyond L0 against {other}"] = {"nats": nats, "standard_error": error}
                answers = zip(answer_losses(documents, case), answer_losses(whole[other], case), strict=True)
                nats, error = mean_error([ours - theirs for ours, theirs in answers])
                found[f"answers beyond L0 against {other}"] = {"nats": nats, "standard_error": error}
            for key in documents[0]["answers"]:
                right, losses = zip(
                    *(answer for document in documents for answer in document["answers"][key]), strict=True
                )
                low, high = rate_interval(
                    right, np.repeat(range(len(documents)), len(right) // len(documents)).tolist()
                )
                rate = {"rate": sum(right) / len(right), "low": low, "high": high, "trials": len(right)}
                found[key] = rate | {"loss": float(np.mean(losses))}
            rows[f"{corpus} {row}"] = found
    return rows


def answer_losses(documents: list[Any], case: Case) -> list[float]:
    """Return the mean loss of each document's answers to the questions after more than L0 tokens."""
    keys = [f"{kind} {length}" for kind in KINDS for length in case.questions if length > L0]
    return [float(np.mean([loss for key in keys for _, loss in d["answers"][key]])) for d in documents]


def stretch(documents: list[Any], start: int, end: int) -> list[float]:
    """Return the mean loss of each document from one token to another."""
    return [float(np.mean(document["losses"][start // BLOCK : end // BLOCK])) for document in documents]


def perplexity(losses: list[float]) -> float:
    """Return the perplexity of documents from their mean losses."""
    return float(np.exp(np.mean(losses)))
