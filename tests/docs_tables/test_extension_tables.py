"""Tables of docs/results.md that show benchmarks/results/extension.json: 512 times the length."""

from __future__ import annotations

import re
from statistics import fmean

from published import assert_says, assert_table, extension, row

RESULTS = "docs/results.md"
EXTENSION = extension()
TABLE, SHORT, RECALL = (EXTENSION[name] for name in ("table", "short", "retrieval"))
LENGTHS = (2048, 8192, 32768, 131072)
SEEDS = range(3)
KEEPING_SEEDS = range(2)


def perplexities(name: str, digits: int = 1) -> list[str]:
    """Return the perplexity of a row at each length."""
    return [f"{TABLE[f'{name} {length}']:.{digits}f}" for length in LENGTHS]


def rise(values: list[float], digits: int = 0) -> str:
    """Return the change from the first value to the last one in percent."""
    return f"{100 * (values[-1] / values[0] - 1):+.{digits}f}%"


def test_the_seeds_at_each_length() -> None:
    rows = []
    for seed in SEEDS:
        values = [TABLE[f"sparse-{seed} {length}"] for length in LENGTHS]
        rows.append(row(f"seed {seed}", *(f"{value:.2f}" for value in values), rise(values, 1)))
    once, staged = (
        [TABLE[f"{name} {length}"] for length in LENGTHS] for name in ("once, fine-tuned", "staged, last stage")
    )
    rows.append(row("*once*: one stage, one jump in a window", *(f"{value:.1f}" for value in once), rise(once)))
    rows.append(
        row("weights and factors of the last of three stages", *(f"{value:.1f}" for value in staged), rise(staged))
    )
    rows.append(row("YaRN, not trained", *perplexities("yarn"), ""))
    assert_table(RESULTS, rows)


def test_the_seeds_at_l0() -> None:
    rows = []
    labels = {"recovered": "recovered short factors", "plain RoPE": "plain RoPE", "long factors": "long factors"}
    for name, label in labels.items():
        values = [SHORT[f"sparse-{seed}, {name}"] for seed in SEEDS]
        rows.append(row(label, *(f"{value:.2f} ({rise([SHORT['original'], value], 1)})" for value in values)))
    assert_table(RESULTS, rows)
    names = ("sparse-0, not averaged, recovered", "sparse-0, not averaged, plain RoPE")
    changes = [rise([SHORT["original"], SHORT[name]], 1) for name in names]
    assert_says(
        RESULTS,
        f"(the original has {SHORT['original']:.2f})",
        "seed 0 is {} and {} above the original".format(*(change.lstrip("+") for change in changes)),
    )


def test_the_recall_of_the_seeds() -> None:
    lengths = [2**power for power in range(8, 15)]
    rows = []
    names = {f"sparse-{seed}": f"seed {seed}" for seed in SEEDS} | {"yarn": "YaRN for each length, not trained"}
    for name, label in names.items():
        rates = [RECALL.get(f"{name} {length}") for length in lengths]
        rows.append(row(label, *(f"{rate['rate']:.0%}" if rate else "" for rate in rates)))
    assert_table(RESULTS, rows)
    means = [100 * fmean(RECALL[f"sparse-{seed} {length}"]["rate"] for seed in SEEDS) for length in lengths[:-1]]
    farthest = [RECALL[f"sparse-{seed} 16384"] for seed in SEEDS]
    right = sum(rate["rate"] * rate["trials"] for rate in farthest)
    assert_says(
        RESULTS,
        f"by the mean of the seeds ({min(means):.1f} to {max(means):.1f}%)",
        f"({right:.0f} of {sum(rate['trials'] for rate in farthest)})",
    )


def test_the_time_of_the_training() -> None:
    minutes = [TABLE[f"sparse-{seed} seconds of training"] / 60 for seed in SEEDS]
    assert_says(RESULTS, f"took {min(minutes):.0f} to {max(minutes):.0f} minutes on one core")


def test_the_tokens_of_the_training() -> None:
    [steps], [original] = (
        [int(value) for value in re.findall(rf"^{name} = (\d+)", EXTENSION["plan"], re.MULTILINE)]
        for name in ("steps", "original_tokens")
    )
    tokens = steps * (2048 + 8 * 256)  # a sparse window and eight short rows
    share = f"{tokens / original:.1%} of"
    assert_says(RESULTS, f"256 → 131,072 tokens in one stage (512x): {steps} steps of one")
    assert_says(RESULTS, f"eight short rows, {tokens / 1e6:.2f} million tokens, {share} the original ones.")
    assert_says("README.md", f"It trained on {share} its original tokens")


def test_the_questions_at_16384_tokens() -> None:
    names = ("16384, 5 lines", "16384, 25 lines", "32768, 25 lines")
    few, many, far = (EXTENSION["questions"][f"sparse-2 {name}"] for name in names)
    assert_says(
        RESULTS,
        f"recalls {100 * few['rate']:.1f} ± {100 * few['standard_error']:.1f}% of {few['trials']} lines there",
        f"it recalls {100 * many['rate']:.0f} ± {100 * many['standard_error']:.0f}% of {many['trials']} lines at "
        f"16,384 tokens and {100 * far['rate']:.0f} ± {100 * far['standard_error']:.0f}% of {far['trials']} at 32,768",
    )


def test_shares_of_the_original_weights() -> None:
    rows = []
    for share in ("0.0", "0.2", "0.37", "0.5"):
        values = []
        for name in ("but queries and keys", "of all"):
            value = EXTENSION["averages"][f"{share} {name}"]
            values += [rise([SHORT["original"], value["256, plain RoPE"]], 1), f"{value['32768']:.2f}"]
        rows.append(row(f"{float(share):.0%}", *values))
    assert_table(RESULTS, rows)


ABLATIONS = {
    "the recipe (rate 1e-3)": "recipe",
    "rate 1e-4": "rate 1e-4",
    'rate 3e-4, which `rate = "auto"` chooses': "rate auto",
    "rate 3e-3": "rate 3e-3",
    "windows with one jump": "one jump",
    "keys without weights": "keys without weights",
    "no distillation": "no distillation",
    "half distillation": "half distillation",
    "hidden states too, `hidden = 4`": "hidden states",
    "hidden states too, `hidden = 16`": "hidden states, weight 16",
    "skipped positions too, `skipped = 0.5`": "skipped positions",
    "both: `hidden = 16`, `skipped = 0.5`": "hidden states and skipped positions",
    "moving average of the weights (EMA), decay 0.9": "EMA",
    "all three": "hidden states and skipped positions, EMA",
    "YaRN's factors": "YaRN",
    "the heuristic's factors": "heuristic",
}
STAGES = {
    "one stage: 128K": "one stage",
    "two stages: 8K, 128K": "two stages",
    "three stages: 4K, 32K, 128K": "three stages",
}


def test_the_parts_of_the_recipe() -> None:
    rows = []
    for label, name in ABLATIONS.items():
        values = EXTENSION["ablations"][name]
        rows.append(row(label, *(f"{values[length]:.2f}" for length in ("2048", "16384", "256"))))
    assert_table(RESULTS, rows)
    recipe, three = (EXTENSION["ablations"][name] for name in ("recipe", "hidden states and skipped positions, EMA"))
    gains = (f"{1 - three[length] / recipe[length]:.0%}" for length in ("2048", "16384", "256"))
    assert_says(RESULTS, "better than the recipe at all lengths, by {}, {} and {}.".format(*gains))
    automatic, next_higher = EXTENSION["ablations"]["rate auto"], EXTENSION["ablations"]["recipe"]
    assert automatic["rate"] == 3e-4
    assert_says(
        RESULTS,
        f"the next higher rate is {1 - next_higher['16384'] / automatic['16384']:.0%} better at 16,384 tokens and "
        f"{next_higher['256'] / automatic['256'] - 1:.0%} worse at 256.",
    )


def test_what_keeps_more_of_the_original_model() -> None:
    rows: list[str] = []
    perplexities: dict[str, list[float]] = {}
    names = {
        "the recipe": "recipe",
        "both: `hidden = 16`, `skipped = 0.5`": "LongReD",
        "moving average (EMA), decay 0.95": "EMA",
    }
    for label, name in names.items():
        seeds = [EXTENSION["keeping"][f"{name}, seed {seed}"] for seed in KEEPING_SEEDS]
        perplexities[name] = [fmean(seed[length] for seed in seeds) for length in ("2048", "131072", "256")]
        recall = fmean(seed["recall at 16384"]["rate"] for seed in seeds)
        rows.append(row(label, *(f"{value:.2f}" for value in perplexities[name]), f"{recall:.1%}"))
    assert_table(RESULTS, rows)
    _, long, short = (
        [100 * (values[i] / perplexities["recipe"][i] - 1) for values in perplexities.values()] for i in range(3)
    )
    assert_says(
        RESULTS,
        f"Both terms cost {long[1]:.1f}% at 131,072 and {short[1]:.1f}% at 256 tokens",
        f"The moving average buys {-short[2]:.1f}% at 256 tokens with {long[2]:.1f}% at 131,072.",
    )


def test_one_stage_or_more_on_sparse_windows() -> None:
    orders, lengths = EXTENSION["orders"], ("2048", "16384", "131072")
    rows = [row(label, *(f"{orders[name][length]:.2f}" for length in lengths)) for label, name in STAGES.items()]
    assert_table(RESULTS, rows)
