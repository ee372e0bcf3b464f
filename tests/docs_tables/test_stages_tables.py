"""Tables of docs/results.md about the recipe of three stages, from benchmarks/results/extension.json."""

from __future__ import annotations

import re
from typing import Any

from published import assert_says, assert_table, extension, row

RESULTS = "docs/results.md"
EXTENSION = extension()
TABLE, SHORT, RECALL, AMOUNTS = (EXTENSION[name] for name in ("table", "short", "retrieval", "amounts"))
LENGTHS = (2048, 8192, 32768, 131072)
ROWS = {
    "YaRN": "yarn",
    "heuristic": "heuristic",
    "searched": "staged, searched",
    "searched and fine-tuned": "staged, fine-tuned",
    "weights and factors of the last stage": "staged, last stage",
    "*wide*, searched and fine-tuned: stage 2 on whole sequences, stage 3 in windows of 32K": "wide, fine-tuned",
    "*once*: 256 → 128K in one stage, as many tokens, windows of 4K": "once, fine-tuned",
}
SHORT_ROWS = {
    "original weights": "original",
    "YaRN for 512x, original weights": "yarn",
    "extended, recovered short factors": "staged, recovered",
    "extended, plain RoPE": "staged, plain RoPE",
    "extended, long factors": "staged, long factors",
    "*wide*, recovered": "wide, recovered",
    "*once*, recovered": "once, recovered",
}
RECALL_ROWS = {
    "stage 1 (for 2,048)": "staged, stage 1",
    "extended (for 131,072)": "staged",
    "*wide* (for 131,072)": "wide",
    "*once* (for 131,072)": "once",
}


def rises(name: str) -> list[str]:
    """Return by how many percent the perplexity of a row at 8,192 tokens and more is above that at 2,048."""
    values = [TABLE[f"{name} {length}"] for length in LENGTHS]
    return [f"{value / values[0] - 1:.0%}" for value in values[1:]]


def test_perplexity_by_length() -> None:
    rows = []
    for label, name in ROWS.items():
        rows.append(row(label, *(f"{TABLE[f'{name} {length}']:.1f}" for length in LENGTHS)))
    assert_table(RESULTS, rows)
    near, middle, far = rises("staged, fine-tuned")
    _, once_middle, once_far = rises("once, fine-tuned")
    assert_says(
        RESULTS,
        f"perplexity is {near} higher at 8,192, {middle} at 32,768 and {far} at 131,072.",
        f"{once_middle} above its value at 2,048 tokens at 32,768, and {once_far} at 131,072",
    )


def steps(name: str, windows: tuple[int, ...]) -> list[int]:
    """Return the steps of each stage of a plan, from its tokens, its batch and the tokens of a sequence."""
    tokens, batches = (
        [int(value) for value in re.findall(rf"^{key} = (\d+)$", EXTENSION["plans"][name], re.MULTILINE)]
        for key in ("tokens", "batch")
    )
    return [round(count / (batch * size)) for count, batch, size in zip(tokens, batches, windows, strict=True)]


def test_the_steps_of_the_stages() -> None:
    first, second, third = steps("staged", (2048, 4096, 4096))
    _, second_wide, third_wide = steps("wide", (2048, 16384, 32768))
    [once] = steps("once", (4096,))
    assert first == second
    assert_says(
        RESULTS,
        f"Stages 1 and 2 each train on 5% of the original tokens ({first} steps), stage 3 on 3%.",
        f"It trains for {once} steps with its final factors, the third stage of the staged run for {third}:",
        f"({second_wide} and {third_wide}, where windows of 4K allow {second} and {third})",
        f"Stage 3 trained for {third} steps only.",
    )


def test_attention_factors_above_su() -> None:
    shares = ("1", "1.05", "1.1")
    near, far = (
        ", ".join(f"{EXTENSION['attention'][f'su x {share} {length}']:.1f}" for share in shares)
        for length in (8192, 32768)
    )
    assert_says(RESULTS, f"({near} at 8,192 tokens; {far} at 32,768; the first two windows)")


def test_short_context() -> None:
    rows = []
    for label, name in SHORT_ROWS.items():
        change = 100 * (SHORT[name] / SHORT["original"] - 1)
        rows.append(row(label, f"{SHORT[name]:.2f}", f"{change:+.1f}%"))
    assert_table(RESULTS, rows)


def recall(value: Any, *, with_error: bool) -> str:
    """Return a rate with its standard error; a dash where it was not measured."""
    if value is None:
        return "-"
    digits = 1 if 0.99 < value["rate"] < 1 else 0  # a question was missed
    return f"{value['rate']:.{digits}%}" + (f" ± {100 * value['standard_error']:.0f}" if with_error else "")


def test_retrieval() -> None:
    rows = []
    for label, name in RECALL_ROWS.items():
        values = [RECALL.get(f"{name} {2**power}") for power in range(8, 15)]
        errors = [not label.startswith("*")] * 6 + [not label.startswith("*wide")]
        rows.append(row(label, *(recall(v, with_error=error) for v, error in zip(values, errors, strict=True))))
    assert_table(RESULTS, rows)


def test_tokens_of_fine_tuning_and_stages() -> None:
    shares = {"none": "0%", "1%": "1%", "5%": "5%", "10%": "10%"}
    assert_table(RESULTS, [row(label, f"{AMOUNTS[f'{share} 2048']:.2f}") for label, share in shares.items()])
    two, one = AMOUNTS["staged 16384"], AMOUNTS["direct 16384"]
    assert_says(RESULTS, f"is {two:.2f} after two stages (5% each), and {one:.2f} after one stage (64x)")


def test_a_search_in_short_windows() -> None:
    values = {name: f"{value:.2f}" for name, value in EXTENSION["window"].items()}
    assert_says(
        RESULTS,
        f"perplexity of {values['searched in windows']}, YaRN's {values['yarn']}, and the heuristic's "
        f"{values['heuristic']}.",
    )
