"""Tables of docs/results.md about 2M tokens, searches before training, composed runs and a training step."""

from __future__ import annotations

from typing import Any

from published import assert_says, assert_table, record, row

RESULTS = "docs/results.md"
FAR = record("extension-2m.json")["values"]
TRAINED = record("search-and-train.json")
STEPS = record("finetune.json")["summary"]


def test_2m_tokens_by_length() -> None:
    labels = {
        "trained": "trained",
        "ramp": "ramp for 2,097,152, not trained",
        "YaRN": "YaRN for 2,097,152, not trained",
    }
    rows = []
    for name, label in labels.items():
        fields = [f"{FAR[f'{name}, perplexity {length}']:.1f}" for length in (2048, 8192, 16384)]
        for length in (512, 2048, 8192, 16384, 32768):
            rate = FAR.get(f"{name}, recall {length}")
            fields.append(rate_of(rate) if rate else "")
        rows.append(row(label, *fields))
    assert_table(RESULTS, rows)
    plain, original = FAR["trained, plain RoPE, perplexity 256"], FAR["original, perplexity 256"]
    training = record("extension-2m.json")["training"]
    assert round(training["seconds"] / 60) == 11
    assert_says(
        RESULTS,
        f"is {plain:.2f}, {100 * (plain / original - 1):.1f}% above the original's {original:.2f};",
        "in eleven minutes on one core.",
        f"`auto` mixed in {training['average']['average']:.0%} of the original weights.",
    )


def rate_of(value: dict[str, Any]) -> str:
    """Return a rate, with the number of questions if they are few."""
    return f"{value['rate']:.0%}" + (f" (of {value['trials']})" if value["trials"] < 50 else "")


def test_two_chunks_at_a_distance() -> None:
    distances = (1024, 8192, 131072, 1048576, 2096128)

    def values(name: str) -> list[dict[str, float]]:
        return [FAR[f"{name}, far {distance}"] for distance in distances]

    rows = [
        row("trained: recall of 104 lines", *(f"{value['recall']:.0%}" for value in values("trained"))),
        row("trained: perplexity", *(f"{value['perplexity']:.1f}" for value in values("trained"))),
    ]
    for name in ("ramp", "YaRN"):
        fields = [f"{value['recall']:.0%}, {value['perplexity']:.1f}" for value in values(name)]
        rows.append(row(f"{name}, not trained: recall and perplexity", *fields))
    assert_table(RESULTS, rows)


def test_one_pass_over_the_whole_text() -> None:
    whole = {name: FAR[f"{name}, one pass"] for name in ("trained", "ramp", "YaRN")}
    *first, last = (f"{value:.1f}" for value in whole["trained"]["blocks"])
    ranges = {
        name: (f"{value['perplexity']:.1f}", f"{min(value['blocks']):.1f} to {max(value['blocks']):.1f}")
        for name, value in whole.items()
    }
    assert_says(
        RESULTS,
        f"is {whole['trained']['perplexity']:.1f}, and by blocks of 16,384 tokens {', '.join(first)} and {last}.",
        "the ramp has {} in the same pass ({} by blocks) and YaRN {} ({})".format(*ranges["ramp"], *ranges["YaRN"]),
    )


SEARCHED = {
    "YaRN, not trained": "yarn, not trained",
    "ramp, not trained": "ramp, not trained",
    "searched, not trained": "search, not trained",
    "YaRN, trained": "yarn, trained",
    "ramp, trained": "ramp, trained",
    "searched, trained": "search, trained",
    "YaRN, trained, searched again": "yarn, trained, searched again",
    "ramp, trained, searched again": "ramp, trained, searched again",
    "searched, trained, searched again": "search, trained, searched again",
}


def test_a_search_before_and_after_training() -> None:
    rows = []
    for label, name in SEARCHED.items():
        fields = []
        for scale, lengths in (("8x", (2048,)), ("512x", (2048, 16384))):
            value = TRAINED[scale].get(name)
            if value is None:
                fields += [""] * (len(lengths) + 1)
                continue
            fields += [f"{value[f'perplexity {length}']:.2f}" for length in lengths]
            error = 100 * value["standard error"]
            fields.append(f"{100 * value['recall 2048']:.0f}" + (f" ± {error:.0f}%" if error else "%"))
        rows.append(row(label, *fields))
    assert_table(RESULTS, rows)


def test_what_a_search_brings_beside_training() -> None:
    near = {name: value["perplexity 2048"] for name, value in TRAINED["8x"].items()}
    far = {name: value["perplexity 16384"] for name, value in TRAINED["512x"].items()}
    again = [
        100 * (near[f"{name}, trained, searched again"] / near[f"{name}, trained"] - 1) for name in ("search", "yarn")
    ]
    assert_says(
        RESULTS,
        f"equal to the ramp, and {1 - near['search, trained'] / near['yarn, trained']:.1%} better than YaRN.",
        f"it is {1 - far['search, trained'] / far['yarn, trained']:.1%} better than YaRN at 16,384 tokens and "
        f"{far['search, trained'] / far['ramp, trained'] - 1:.0%} worse than the ramp.",
        f"for {again[0]:.1f} to {again[1]:.1f}% of perplexity",
    )


def test_an_extended_export() -> None:
    difference = record("composed-run.json")["relative_differences"]
    at = record("composed-run.json")["rows"]["composed"]["perplexity"]["16384"]
    assert_says(
        RESULTS,
        f"by at most {scientific(difference['long_factors'])} of their size",
        f"at 256, 2,048 and 16,384 tokens by {scientific(difference['perplexity'])} ({at:.2f} at 16,384)",
        f"from the second export, to {scientific(difference['perplexity of the export'])} (",
    )


def scientific(value: float) -> str:
    """Return a small number by one digit and its power of ten."""
    return f"{value:.0e}".replace("e-0", "e-")


CASES = {
    "`tiny`, 2,048 tokens": "tiny 2048",
    "`tiny`, 8,192": "tiny 8192",
    "`tiny`, 32,768": "tiny 32768",
    "SmolLM2, 1,024": "smollm2 1024",
}


def test_a_training_step() -> None:
    rows = []
    for label, case in CASES.items():
        fields = []
        for way in ("plain", "checkpointed", "ours", "sparse"):
            median = STEPS["medians"].get(f"{case} {way}")
            if median is None:
                fields.append("")
                continue
            seconds = f"{median['seconds_per_step']:#.3g}".rstrip(".")
            fields.append(f"{seconds} s, {median['peak_bytes'] / 1e6:,.0f} MB")
        rows.append(row(label, *fields))
    assert_table(RESULTS, rows)
    ratios = {name: f"{value:.2f}x" for name, value in STEPS["seconds_ratios"].items()}
    saved = STEPS["medians"]
    memory = saved["smollm2 1024 ours"]["peak_bytes"] / saved["smollm2 1024 plain"]["peak_bytes"]
    checkpointed = (
        saved["smollm2 1024 plain"]["seconds_per_step"] / saved["smollm2 1024 checkpointed"]["seconds_per_step"]
    )
    assert_says(
        RESULTS,
        f"({STEPS['seconds_ratios']['tiny 32768: ours / sparse']:.0f} times less time)",
        f"has {ratios['tiny 8192: plain / ours']} the speed of the plain Trainer's at 8,192 tokens, and "
        f"{ratios['tiny 2048: plain / ours']} at 2,048 ({ratios['tiny 2048: plain / sparse']} with the mask",
        f"has {ratios['smollm2 1024: plain / ours']} the speed in {memory:.0%} of the memory.",
        f"({checkpointed:.2f}x)",
    )
