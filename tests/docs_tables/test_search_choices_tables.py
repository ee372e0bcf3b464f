"""Tables of docs/search.md: spaces, objectives, short texts, YaRNs, the cost of an evaluation."""

from __future__ import annotations

from math import exp
from statistics import fmean, median
from typing import Any

from published import assert_says, assert_table, exact, perplexity_at, record, row

SEARCH = "docs/search.md"
SPACES = record("spaces.json")["ways"]
OBJECTIVES = record("objectives.json")["runs"]
COST = record("search-cost.json")
SPACE_ROWS = {
    "`auto`": "auto",
    "`auto`, ceiling 4s": "auto, ceiling 4s",
    "`auto`, ceiling s": "auto, ceiling s",
    "`auto`, start tokens searched too": "auto, start tokens searched",
    "`auto`, attention factor searched too": "auto, attention factor searched",
    "`auto`, twice the steps": "auto, twice the steps",
    "`auto`, then CMA-ES": "auto, then cma",
    "gradient, spline of 6 knots": "gradient, spline",
    "gradient, free, pairs of more than 10 turns frozen": "gradient, free, fast pairs frozen (10 turns)",
    "gradient, free": "gradient, free",
    "gradient, free, pairs of more than 3 turns frozen": "gradient, free, fast pairs frozen (3 turns)",
    "gradient, monotone": "gradient, monotone",
    "gradient, ramp (3 coordinates)": "gradient, ramp",
    "gradient, free, fast pairs not damped": "gradient, free, fast pairs not damped",
    "gradient, `critical` (LongRoPE2)": "gradient, critical",
    "CMA-ES, ramp": "cma, ramp",
    "CMA-ES, monotone": "cma, monotone",
    "CMA-ES, spline": "cma, spline",
    "CMA-ES, free": "cma, free",
    "CMA-ES, `critical`": "cma, critical",
}


def test_spaces_and_parts() -> None:
    rows = []
    for label, name in SPACE_ROWS.items():
        rows.append(row(label, f"{median(SPACES[name]['evaluations']):.0f}", f"{SPACES[name]['median']:.3f}"))
    assert_table(SEARCH, rows)


OBJECTIVE_ROWS = {
    "YaRN": "yarn",
    "heuristic": "heuristic",
    "`auto`, perplexity": "auto, perplexity, free",
    "`auto`, weight of needles 0.1": "auto, needles 0.1, free",
    "`auto`, weight of needles 0.2 (the default)": "auto, needles 0.2, free",
    "`auto`, weight of needles 0.5": "auto, needles 0.5, free",
    "`auto`, needles alone": "auto, needles alone, free",
    "`auto` in `critical`, perplexity": "auto, perplexity, critical",
    "`auto` in `critical`, needles alone (LongRoPE2's way)": "auto, needles alone, critical",
    "`paper`, perplexity": "paper, perplexity",
    "`cma`, perplexity": "cma, perplexity",
    "`gradient`, perplexity": "gradient, perplexity",
}


def test_objectives() -> None:
    rows, trials = [], record("objectives.json")["trials"]
    for label, name in OBJECTIVE_ROWS.items():
        perplexity, loss, recall = (
            fmean(run[key] for run in OBJECTIVES[name]) for key in ("perplexity", "recall_loss", "recall")
        )
        error = (recall * (1 - recall) / (trials * len(OBJECTIVES[name]))) ** 0.5
        digits = 1 if recall < 0.01 else 0
        rate = f"{100 * recall:.{digits}f} ± {100 * error:.{digits}f}%"
        rows.append(row(label, f"{perplexity:.2f}", f"{loss:.3f}", rate))
    assert_table(SEARCH, rows)


def test_one_set_for_short_texts() -> None:
    kept = record("keep-short.json")["keep_short"]
    rows = []
    for candidate in kept["trade_off"]:
        short = f"{candidate['short']:+.1%}" if candidate["short"] > 1e-9 else "0.0%"
        rows.append(row(short, f"{candidate['long']:.3f}"))
    assert_table(SEARCH, rows)
    assert_says(SEARCH, f"the winner costs {kept['change']:.1%} instead of {kept['trade_off'][-1]['short']:.1%}")


def yarn_row(results: Any, label: str, name: str) -> str:
    """Return a row of the table of YaRNs."""
    value = perplexity_at(results, name, 2048)
    right, trials = exact(results, name, 2048)
    error = (right / trials * (1 - right / trials) / trials) ** 0.5
    recall = f"{100 * right / trials:.0f} ± {100 * error:.0f}%"
    return row(label, f"{value['perplexity']:.2f} ± {value['standard_error']:.2f}", recall)


def test_a_yarn_that_is_searched() -> None:
    results = record("yarn.json")
    labels = [
        ("plain YaRN", "yarn"),
        ("`ramp`", "ramp"),
        ("its nearest YaRN (`longrope fit`)", "build/yarn/ramp-fit.json"),
        ("searched, free", "build/yarn/free"),
        ("its nearest YaRN (`longrope fit`)", "build/yarn/free-fit.json"),
        ("searched, `--parametrization yarn`", "build/yarn/yarn"),
    ]
    assert_table(SEARCH, [yarn_row(results, label, name) for label, name in labels])
    found = {name: results["rows"][f"build/yarn/{name}"]["factors"]["long"] for name in ("free", "yarn")}
    loss = {name: scaling["provenance"]["held_out_loss"] for name, scaling in found.items()}
    assert_says(
        SEARCH,
        f"the loss of the searched YaRN is {loss['yarn']['searched']:.3f}, that of the free factors "
        f"{loss['free']['searched']:.3f}, and plain YaRN's {loss['yarn']['yarn']:.3f}.",
    )


def test_a_short_search_of_smollm2_without_questions() -> None:
    searched, yarn = (record("smollm2-16k.json")["perplexity"][name]["lengths"][-1] for name in ("searched", "yarn"))
    pairs = zip(searched["losses"], yarn["losses"], strict=True)
    gains = [100 * (1 - exp(loss - reference)) for loss, reference in pairs]
    assert_says(SEARCH, f"gained {min(gains):.1f} to {max(gains):.1f}% over YaRN on three documents")


def test_the_time_of_passes_and_gradients() -> None:
    cells = record("scale.json")["cells"]
    forward = median(cells[f"forward smollm2 8192 ours {repeat}"]["seconds"] for repeat in range(3))
    longer = cells["forward smollm2 16384 ours 0"]["seconds"]
    gradient = cells["gradient smollm2 8192 ours 0"]["seconds"]
    assert_says(
        SEARCH,
        f"gradient over 8,192 tokens of SmolLM2 took {gradient / forward:.1f} times as long as a forward pass.",
        f"one pass over 16,384 tokens takes {longer:.0f} seconds or more on two",
    )


def test_the_cost_of_an_evaluation() -> None:
    short, long = COST["rows at 256 tokens"], COST["rows at 2,048 tokens"]
    scoring, dtype = COST["scoring"], COST["dtype"]["bfloat16"]
    *fewer, fewest = (f"{run['times_fewer']:.2f}" for run in COST["racing"])
    losses = [(run["with"]["best_loss"], run["without"]["best_loss"]) for run in COST["racing"]]
    worse = [f"{100 * (raced / plain - 1):+.1f}" if raced != plain else "0" for raced, plain in losses]
    counts = [run["evaluations"] for run in record("search-tiny-8x.json")["runs"]["paper"]]  # of 1,344 candidates
    assert_says(
        SEARCH,
        f"at 256 tokens | {short['rows 4']['times_faster']:.2f}x faster |",
        f"at 2,048 tokens | {long['rows 4']['times_faster']:.2f}x (16: {long['rows 16']['times_faster']:.2f}x) |",
        f"| bfloat16 | {dtype['times_faster']:.2f}x | loss differs by {dtype['largest_difference']:.4f} |",
        f"in chunks | {scoring['chunked head']['times_faster']:.2f}x (",
        f"differs by {scoring['chunked head']['largest_difference']:.0e}".replace("e-0", "e-"),
        f"tokens only | {scoring['tail']['times_faster']:.2f}x |",
        f"| {', '.join(fewer)}, {fewest}x fewer | best loss {', '.join(worse)}% |",
        f"| {1344 / max(counts):.2f}–{1344 / min(counts):.2f}x fewer evaluations |",
    )
