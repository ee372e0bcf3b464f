"""Numbers of the pages that explain: docs/index.md, docs/how-it-works.md, docs/related.md, and the quoted verdict."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

import pytest
from published import RESULTS, assert_says, assert_table, page, perplexity_at, record, row

from longrope import Rope
from longrope.report.verdict import verdict_of

START, EXPLAINED, RELATED = "docs/index.md", "docs/how-it-works.md", "docs/related.md"
DEMO, PAIRS = record("demo.json"), record("pairs.json")["perplexity"]
SMOLLM2 = Rope(dim=64, base=100_000.0, original_length=8192)


def with_error(results: Any, name: str, length: int) -> str:
    """Return a perplexity with its standard error."""
    value = perplexity_at(results, name, length)
    return f"{value['perplexity']:.1f} ± {value['standard_error']:.1f}"


def test_the_numbers_of_the_demo() -> None:
    names = {
        "original model": "original",
        "YaRN, a formula": "yarn",
        "searched": "2k searched",
        "searched and fine-tuned": "2k fine-tuned",
        "extended: the same, with short factors up to 256 tokens": "extended",
    }
    rows = [row(label, *(with_error(DEMO, name, length) for length in (256, 2048))) for label, name in names.items()]
    assert_table(START, rows)
    extended, yarn = (perplexity_at(DEMO, name, 2048)["perplexity"] for name in ("extended", "yarn"))
    factors = DEMO["rows"]["extended"]["factors"]["long"]["factors"]
    slow = factors[14:]  # from the first pair that is slowed down 5 times
    assert_says(
        START,
        f"perplexity at 256 tokens is {perplexity_at(DEMO, 'extended', 256)['perplexity']:.1f}, as before.",
        f"at every length, would cost {DEMO['short_context']['2k fine-tuned']:.0f}%.",
        f"Here it is, by {1 - extended / yarn:.0%}.",
        f"become {min(slow):.0f} to {max(slow):.0f} times slower",
    )


def test_the_quoted_verdict() -> None:
    """The page quotes the report of the demo's folder, which has the checkpoint beside the results."""
    works, costs, _ = verdict_of(RESULTS / "demo.json")
    costs = costs.replace("long factors alone, as in a static export", "as exported, with the long factors alone")
    assert f"{works} {costs} Exported, it is run as made by" in page("docs/evaluation.md").replace("\n> ", " ")


def test_which_pairs_interpolation_harms() -> None:
    names = {
        "no pair: the original model": "from 32",
        "all pairs: PI": "from 0",
        "the two fastest pairs alone": "before 2",
        "pairs from 14 on alone": "from 14",
        "pairs from 18 on alone": "from 18",
    }
    values = {name: [found["perplexity"] for found in PAIRS[name]] for name in names.values()}
    assert_table(EXPLAINED, [row(label, *(f"{x:.1f}" for x in values[name])) for label, name in names.items()])
    assert_says(EXPLAINED, f"two fastest pairs costs {values['before 2'][0] / values['from 32'][0] - 1:.0%} at L0")
    assert values["before 2"][1] > values["from 32"][1], "improves nothing"
    assert Rope(dim=64, base=1e4, original_length=256).critical_pair == 13
    without, original = ([found["perplexity"] for found in PAIRS[name]] for name in ("from 20", "from 32"))
    assert without == pytest.approx(original, rel=0.02), "the pairs from 20 on make no difference"


def test_smollm2_beyond_its_window() -> None:
    original = record("smollm2-16k.json")["perplexity"]["original"]
    near, far = ({x["length"]: x["perplexity"] for x in original["lengths"]}[length] for length in (8192, 16384))
    last = f"{original['last_quarter']:.0f} on the last 4,096 of the 16,384 tokens"
    assert_says(EXPLAINED, f"perplexity is {near:.1f} at 8,192 tokens, {far:.0f} at 16,384, and {last}")


def test_angles_of_smollm2() -> None:
    angle = float(SMOLLM2.inv_freq[0])
    assert_says(
        EXPLAINED,
        f"Its pairs 0 to {SMOLLM2.critical_pair - 1} make at least one turn within",
        f"Pair 0 turns by {math.degrees(angle):.0f}° from one token to the next",
        f"between neighbours is {math.cos(angle):.2f}. With PI for 8x the angle is {math.degrees(angle / 8):.0f}° and "
        f"the cosine {math.cos(angle / 8):.3f}",
    )


def test_a_search_for_perplexity_alone() -> None:
    runs = record("objectives.json")["runs"]
    bad, yarn = (fmean(run["recall"] for run in runs[name]) for name in ("auto, perplexity, free", "yarn"))
    assert_says(EXPLAINED, f"at 2,048 tokens was {bad:.0%} with these factors and {yarn:.0%} with YaRN's")


def test_exact_angles() -> None:
    phases = record("phases.json")
    error = phases["cos and sin"]["2097152"]
    losses = phases["loss of tiny"].values()
    change = max(abs(loss["exact"] - loss["transformers"]) for loss in losses)
    assert error["ours error"] < 1e-6
    assert error["our time over theirs"] < 1
    assert_says(
        EXPLAINED,
        f"are off by {error['transformers error']:.2f},",
        f"changes the loss of `tiny` by only {change:.0e}".replace("e-0", "e-"),
    )


def test_rounded_wavelengths() -> None:
    results = record("resonance.json")
    rows = []
    for name in ("pi", "ntk", "yarn", "heuristic"):
        pairs = ((length, scheme) for length in (256, 2048) for scheme in (name, f"{name}+resonance"))
        rows.append(row(name, *(with_error(results, scheme, length) for length, scheme in pairs)))
    assert_table(RELATED, rows)


def test_closed_forms() -> None:
    results = record("schemes.json")
    ranked = sorted(results["perplexity"], key=lambda name: perplexity_at(results, name, 2048)["perplexity"])
    names = ["original", *[name for name in ranked if name != "original"]]
    rows = []
    for name in names:
        label = name if name == "original" else f"`{name}`"
        rows.append(row(label, *(with_error(results, name, length) for length in (256, 2048))))
    assert_table(RELATED, rows)
