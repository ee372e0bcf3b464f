"""Tables and figures of SmolLM2 at 32,768 tokens in docs/search.md."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import numpy as np
import pytest
from published import assert_says, assert_table, record
from test_smollm2_16k_tables import README, SEARCH, exact_beyond_l0, passes, question_row

from longrope.evaluation.statistics import mean_error
from longrope.rope import Rope
from longrope.schemes import attention_factor, scheme
from longrope.yarn_fit import fit_yarn

ROWS = record("smollm2-32k-tests.json")["rows"]
ROPE = Rope(dim=64, base=1e5, original_length=8192)
BLOCK = 1024  # tokens whose mean loss is kept
LENGTHS = (8192, 24576, 32768)
ORDER = {"yarn": "YaRN", "tailspline": "TailSpline", "tailspline_su": "TailSpline, `--attention su`", "bm": "BM"} | {
    "searched_yarn": "searched, `--parametrization yarn`",
    "searched": "searched",
}


@pytest.mark.parametrize("corpus", ["code", "prose"])
def test_the_table_of_each_kind_of_question(corpus: str) -> None:
    rows = []
    for name, label in ORDER.items():
        values = ROWS[f"{corpus} {name}"]
        rows.append(question_row(label, values, LENGTHS, f"{values['perplexity']['8192']:.3f}"))
    assert_table(SEARCH, rows)
    trials = {length: ROWS["code searched"][f"recall {length}"]["trials"] for length in LENGTHS}
    assert_says(SEARCH, f"from 24,576 tokens on {trials[24576]} questions a cell, before {trials[8192]})")


def test_what_the_page_says_of_perplexity_and_answers() -> None:
    searched = ROWS["code searched"]
    text, answers = (
        {other: searched[f"{kind} L0 against {other}"] for other in ("yarn", "tailspline", "bm")}
        for kind in ("beyond", "answers beyond")
    )
    percent = {name: f"{-100 * x['nats']:.1f} ± {100 * x['standard_error']:.1f}%" for name, x in text.items()}
    nats = {name: f"{-x['nats']:.2f} ± {x['standard_error']:.2f}" for name, x in answers.items()}
    short = [ROWS[f"code {name}"]["perplexity"]["8192"] for name in ("yarn", "tailspline", "bm")]
    assert_says(
        SEARCH,
        f"beyond L0 perplexity is {percent['yarn']} lower, and the answers lose {nats['yarn']} nats less.",
        f"TailSpline's perplexity beyond L0 is {percent['tailspline']} higher and BM's {percent['bm']}, and their "
        f"answers lose {nats['tailspline']} and {nats['bm']} nats more.",
        f"{searched['perplexity']['8192']:.3f} at 8,192 tokens, where the closed forms have {min(short):.2f} to "
        f"{max(short):.2f}.",
    )
    assert_says("docs/guides/without-fine-tuning.md", f"[{percent['yarn']} below YaRN's]")


def against(name: str, other: str) -> tuple[str, str]:
    """Return how much lower perplexity and the answers' loss of a row are than another's beyond L0, on prose."""
    text, answers = (ROWS[f"prose {name}"][f"{kind} L0 against {other}"] for kind in ("beyond", "answers beyond"))
    percent = f"{-100 * text['nats']:.1f} ± {100 * text['standard_error']:.1f}%"
    return percent, f"{-answers['nats']:.2f} ± {answers['standard_error']:.2f}"


def test_prose() -> None:
    forms = ("yarn", "tailspline", "bm")
    text, answers = zip(*(against("searched_yarn", form) for form in forms), strict=True)
    exact = {name: exact_beyond_l0(f"prose {name}", ROWS, LENGTHS)[0] for name in ("searched_yarn", *forms)}
    free, own = against("searched", "yarn"), against("tailspline_su", "tailspline")
    lost = ROWS["prose searched"]["answers beyond L0 against tailspline"]
    documents = record("smollm2-32k-tests.json")["documents"]["prose"]
    assert len(documents) == ROWS["prose searched"]["documents"] == 3
    assert_says(
        SEARCH,
        f"is {text[0]} below YaRN's, {text[1]} below TailSpline's and {text[2]} below BM's.",
        f"Its answers lose {answers[0]} nats less than YaRN's and {answers[2]} less than BM's",
        f"to TailSpline's the difference is within the error ({answers[1].removeprefix('-')} more)",
        f"Of 192 answers {exact['searched_yarn']} are exact, with TailSpline {exact['tailspline']}, "
        f"BM {exact['bm']} and YaRN {exact['yarn']}.",
        f"perplexity is {free[0]} below YaRN's, and their answers lose {free[1]} nats less than YaRN's, but "
        f"{lost['nats']:.2f} ± {lost['standard_error']:.2f} nats more than TailSpline's.",
        f"TailSpline with `su` has one {own[0]} below its own.",
    )
    assert against("searched_yarn", "tailspline")[1].startswith("-")
    assert min(forms, key=lambda form: ROWS[f"prose {form}"]["perplexity"]["32768"]) == "bm"
    assert_says(README, f"(on prose {text[2]} and {answers[2]} nats, against BM)")


def test_the_searched_yarn_is_better_than_every_closed_form() -> None:
    run, yarn = record("smollm2-32k-search-yarn/run.json"), ROWS["code searched_yarn"]
    forms = ("yarn", "tailspline", "bm")
    text, answers = ([yarn[f"{kind} L0 against {form}"] for form in forms] for kind in ("beyond", "answers beyond"))
    assert all(x["nats"] + 2 * x["standard_error"] < 0 for x in (*text, *answers))
    percent = [f"{-100 * x['nats']:.1f} ± {100 * x['standard_error']:.1f}%" for x in text]
    nats = [f"{-x['nats']:.2f} ± {x['standard_error']:.2f}" for x in answers]
    own, formula = (attention_factor(policy, ROPE, 32768) for policy in ("su", "yarn"))
    nearest, _ = fit_yarn(ROPE, scheme("tailspline", ROPE, 32768))[:2]
    assert np.allclose(run["factors"], nearest.factors, rtol=1e-6)
    assert "budget of 256,000 token-evaluations is spent" in run["stopped"][0]
    journals = (passes(name, "smollm2-32k-search-yarn") for name in ("search-0.jsonl", "held-out.jsonl"))
    seconds = sum(line["seconds"] for journal in journals for lines in journal.values() for line in lines)
    assert_says(
        SEARCH,
        f"took {run['token_evaluations'] / 1000:.0f}K token-evaluations",
        f"{seconds / 60:.0f} minutes on one core beside other work",
        f"is {percent[0]} below YaRN's, {percent[1]} below TailSpline's and {percent[2]} below BM's. Its answers lose "
        f"{nats[0]}, {nats[1]} and {nats[2]} nats less.",
        f"(`su`, {own:.3f}), where the formulas have {formula:.3f}",
    )
    assert min(forms, key=lambda form: ROWS[f"code {form}"]["perplexity"]["32768"]) == "tailspline"
    assert_says(
        README, f"is {percent[1]} below that of TailSpline, the best of them, and its answers lose {nats[1]} nats"
    )
    assert_says("docs/guides/without-fine-tuning.md", f"{percent[1]} below TailSpline's.")
    assert_says("docs/faq.md", f"[{percent[1].replace('%', '% less perplexity')}](search.md")


def test_the_attention_factor_brings_most_of_it() -> None:
    other = ROWS["code tailspline_su"]
    text, answers = (other[f"{kind} L0 against tailspline"] for kind in ("beyond", "answers beyond"))
    percent = f"{-100 * text['nats']:.1f} ± {100 * text['standard_error']:.1f}%"
    nats = f"{-answers['nats']:.2f} ± {answers['standard_error']:.2f} nats"
    measured = record("smollm2-32k-tests.json")["measured"]
    pairs = [[_beyond(measured[f"code {i} {name}"]) for name in ("tailspline_su", "searched_yarn")] for i in range(3)]
    (more_text, text_error), (more, error) = (
        mean_error([theirs[k] - ours[k] for theirs, ours in pairs]) for k in (0, 1)
    )
    assert_says(
        SEARCH,
        f"is {percent} below TailSpline's own, and its answers lose {nats} less.",
        f"the searched YaRN gains {100 * more_text:.1f} ± {100 * text_error:.1f}% in perplexity and {more:.2f} ± "
        f"{error:.2f} nats in answers.",
    )
    assert_says(README, f"has the same perplexity, and its answers lose {more:.2f} ± {error:.2f} nats more.")


def test_the_attention_factor_on_tiny() -> None:
    rows = record("attention-factor.json")["rows"]
    said = {}
    for length in (2048, 8192):
        pairs = [pair for key, pair in rows.items() if key.endswith(f" {length}")]
        recalled = [
            round(sum(pair[name]["recall"] * pair[name]["questions"] for pair in pairs)) for name in ("own", "su")
        ]
        changes = [100 * (pair["su"]["perplexity"] / pair["own"]["perplexity"] - 1) for pair in pairs]
        said[length] = (
            recalled,
            f"{min(changes):+.1f} to {max(changes):+.1f}%",
            sum(p["su"]["questions"] for p in pairs),
        )
    (short, short_change, questions), (long, long_change, _) = said[2048], said[8192]
    assert_says(
        SEARCH,
        f"recall {short[1]} of {questions} lines at 8x, where they recall {short[0]} with their own, and {long[1]} "
        f"instead of {long[0]} at 32x.",
        f"Perplexity changes by {short_change} at 8x, and by {long_change} at 32x",
    )


def _beyond(document: dict[str, Any]) -> tuple[float, float]:
    """Return the mean losses of a document's tokens and of its answers beyond L0."""
    answers = [loss for key, asked in document["answers"].items() if not key.endswith(" 8192") for _, loss in asked]
    return fmean(document["losses"][8192 // BLOCK :]), fmean(answers)


def test_the_search() -> None:
    run = record("smollm2-32k-search/run.json")
    searched = passes("search-0.jsonl", "smollm2-32k-search")
    full, steps = searched["full"], searched["step"]
    losses = [fmean(line["loss"] for line in full[start : start + 2]) for start in range(0, len(full), 2)]
    held_out = {name: f"{value:.3f}" for name, value in run["held_out_loss"].items()}
    assert run["closed_form"] == "bm"
    assert_says(
        SEARCH,
        f"took {run['token_evaluations'] / 1000:.0f}K token-evaluations, with {len(full)} full passes and {len(steps)} "
        "steps in contexts.",
        f"from {min(losses[:4]):.3f} (BM) to {run['search_loss']:.3f}, where YaRN has {losses[0]:.3f}",
        f"is {held_out['searched']} on the held-out documents, that of BM {held_out['bm']}, and YaRN's "
        f"{held_out['yarn']}",
    )
