"""Tables of docs/scale.md: a laptop, one GPU, formulas for other models, processes, positions."""

from __future__ import annotations

from statistics import median
from typing import Any

from published import assert_says, assert_table, record, row

from longrope.search.auto import Auto

SCALE = "docs/scale.md"
LAPTOP, GPU, MODELS = record("scale.json"), record("gpu-scale.json")["cells"], record("cost-model.json")
CASES = ("smollm2 8192", "smollm2 16384", "smollm2 32768", "tiny 16384", "tiny 65536", "tiny 131072")
PASSES = [*(f"forward {case}" for case in CASES[:3]), "gradient smollm2 4096", "gradient smollm2 8192"]
PASSES += [f"forward {case}" for case in CASES[3:]]
SHAPES = {"1B (Llama 3.2's shape)": "1B", "LLaMA2-7B": "LLaMA2-7B", "8B (Llama 3's shape)": "8B"}
SHAPES |= {"70B (Llama 3's shape)": "70B"}


def figures(value: float, count: int) -> str:
    """Return a value with some significant figures, without an exponent."""
    return f"{float(f'{value:.{count}g}'):,g}"


def peaks(case: str, variant: str) -> list[int]:
    """Return the peak of each measurement of a pass."""
    runs = LAPTOP["cells"]
    return [run["peak_bytes"] for name, run in runs.items() if name.startswith(f"{case} {variant} ") and run]


def test_a_laptop() -> None:
    rows = []
    for case in PASSES:
        kind, model, length = case.split()
        ours, plain = peaks(case, "ours"), peaks(case, "plain")
        ratio = LAPTOP["summary"][case]
        time = f"{ratio['our time over theirs']:.2f}" + (f" (median of {len(ours)})" if len(ours) > 1 else "")
        if model == "tiny" and length == "131072":
            time = "not fair: other work ran beside ours"
        name = {"smollm2": "SmolLM2-135M", "tiny": "tiny"}[model]
        times_less = ratio["memory over ours"]
        less = f"{times_less:.0f}" if times_less >= 10 else f"{times_less:.1f}"
        memory = (f"{median(values) / 1e6:,.0f} MB" for values in (ours, plain))
        rows.append(row(kind, f"{name}, {int(length):,}", *memory, less, time))
    assert_table(SCALE, rows)


def test_what_fits_into_8_gb() -> None:
    longest = {name: value for name, value in LAPTOP["summary"].items() if name.endswith("longest in 8 GB")}

    def tokens(name: str) -> str:
        return f"{round(longest[f'{name}: longest in 8 GB'], -3):,}"

    assert_says(
        SCALE,
        f"{tokens('forward smollm2 ours')} tokens of SmolLM2 (plain transformers {tokens('forward smollm2 plain')}) "
        f"and {tokens('forward tiny ours')} of `tiny` (plain {tokens('forward tiny plain')}), in a gradient "
        f"{tokens('gradient smollm2 ours')} tokens of SmolLM2 (plain {tokens('gradient smollm2 plain')}).",
    )


def gpu_row(name: str) -> str:
    """Return a row of the table of one GPU."""
    values = GPU[name]
    length, factors = name.split()
    labels = {"none": "none", "heuristic": "heuristic", "yarn": "YaRN"}

    def seconds(value: float) -> str:
        return f"{value:.2f} s" if value < 10 else f"{value:.0f} s"

    def memory(value: float) -> str:
        return f"{value / 1e9:#.2g} GB" if value > 1e9 else f"{value / 1e9:.2f} GB"

    perplexity = values["perplexity"]
    return row(
        f"{int(length):,}",
        labels[factors],
        seconds(values["seconds"]) + ("*" if name == "65536 yarn" else ""),
        seconds(values["foreseen_seconds"]),
        seconds(values["attention_floor_seconds"]),
        memory(values["peak_bytes"]),
        memory(values["foreseen_bytes"]),
        f"{values['flops_per_second'] / 1e12:.0f} T",
        f"{values['head_and_loss_over_backbone']:.1%}",
        f"{perplexity:,.0f}" if perplexity > 1000 else f"{perplexity:.3g}",
    )


def test_one_gpu() -> None:
    names = ("65536 none", "65536 heuristic", "65536 yarn", "131072 yarn", "2097152 yarn")
    assert_table(SCALE, [gpu_row(name) for name in names])
    rate = record("gpu-scale.json")["product_flops_per_second"]
    assert_says(SCALE, f"one large product of matrices, {rate / 1e12:.0f} TFLOP/s")


def duration(hours: float) -> str:
    """Return a time in hours or minutes."""
    if hours < 2:
        return f"{60 * hours:.0f} min"
    return f"{hours:.1f} h" if hours < 10 else f"{hours:.0f} h"


def test_formulas_for_other_models() -> None:
    rows = []
    for label, name in SHAPES.items():
        values = MODELS["models"][name]["one forward pass"]
        flops = values["linear_flops"] + values["attention_flops"]
        rows.append(
            row(
                label,
                f"{flops:.1e}".replace("e+", "e"),
                f"{values['attention_flops'] / flops:.0%}",
                f"{values['memory_bytes'] / 1e9:.0f} GB",
                *(duration(values[f"hours on {count}"]) for count in (1, 8)),
            )
        )
    assert_table(SCALE, rows)


def test_memory_of_fine_tuning() -> None:
    parameters = {"1B": "1.24 billion", "8B": "8.03 billion"}
    rows = []
    for label, name in SHAPES.items():
        memory: Any = MODELS["training_memory_bytes"].get(name)
        if memory:
            values = (f"{figures(value / 1e9, 3 if value > 1e11 else 2)} GB" for value in memory.values())
            rows.append(row(label, parameters[name], *values))
    assert_table(SCALE, rows)


def test_hours_of_a_search_at_2m() -> None:
    rows = []
    for name in ("1B", "8B", "70B"):
        values = MODELS["models"][name]
        hours = (values[search]["hours on 8"] for search in ("paper", "ours", "ours, windows of 32K"))
        rows.append(row(name, *(figures(value, count) for value, count in zip(hours, (3, 2, 1), strict=True))))
    assert_table(SCALE, rows)


def test_huge_pages() -> None:
    training, passes = (
        record("huge-pages.json")["summary"][f"{case} bfloat16"]["times faster"]
        for case in ("training 2048", "passes 8192")
    )
    assert_says(
        SCALE,
        f"is {training:.2f} times as fast with them, and a forward pass over 8,192 tokens {passes:.2f} times",
    )


def test_processes_positions_and_the_loss() -> None:
    spread = record("spread.json")["cells"]
    fast = {name: values["times_as_fast_as_one_process"] for name, values in spread.items()}
    tiny, smollm2 = fast["tiny 32768"], fast["smollm2 8192"]
    rest = [cell["rest_over_backbone"] for cell in record("overhead.json")["cells"].values()]
    far = record("phases.json")["cos and sin"]["2097152"]
    assert_says(
        SCALE,
        f"were {tiny['two processes']:.2f} times as fast as one such process on `tiny` at 32,768 tokens, and "
        f"{smollm2['two processes']:.2f} times on SmolLM2 at 8,192.",
        f"was {tiny['one process, two threads']:.2f} and {smollm2['one process, two threads']:.2f} times as fast",
        f"{rest[2]:.1%} of the backbone's time on SmolLM2 at 8,192 tokens, {rest[0]:.1%} on `tiny` at 2,048 and "
        f"{rest[1]:.1%} at 16,384",
        f"their error is {far['ours error']:.0e}".replace("e-0", "e-"),
        f"float32 phases is {far['transformers error']:.2f}; ours take {far['our time over theirs']:.2f} times as long",
        f"The run on file is {record('losses.json')['times faster']:.1f} times as fast;",
        f"# {record('smollm2-extension.json')['training']['2m-wordings']['seconds'] / 60:.0f} minutes on one core:",
    )


def test_what_the_scale_page_says_of_its_tables() -> None:
    summary, cells = LAPTOP["summary"], LAPTOP["cells"]
    losses = [value["difference of the mean loss"] for value in summary.values() if isinstance(value, dict)]
    assert max(losses) < 0.0015
    slower = [summary[f"gradient smollm2 {length}"]["our time over theirs"] - 1 for length in (8192, 4096)]
    less = [1 / summary[f"gradient smollm2 {length}"]["memory over ours"] for length in (8192, 4096)]
    assert round(max(less), 1) == round(min(less), 1) == 0.1
    quick = [cells[f"candidate {name}"] for name in ("smollm2 8192", "tiny 2048")]
    slow = record("overhead.json")["cells"]["smollm2 8192"]["backbone"]
    assert round(slow / quick[0]["backbone"]) == 8
    assert_says(
        SCALE,
        "Losses in the table below differ by less than 0.0015 nats.",
        f"takes {100 * slower[0]:.0f} to {slower[1]:.0%} more time and a tenth of the memory",
        "these parts took {:.0%} and {:.0%} of its time".format(*(cell["rest over backbone"] for cell in quick)),
    )


def test_a_gradient_and_a_search_of_8b_at_2m() -> None:
    layers, hidden, cached, length = 32, 4096, 2 * 8 * 128, 2**21
    values = MODELS["models"]["8B"]
    minutes = 60 * MODELS["models"]["LLaMA2-7B"]["one forward pass"]["hours on 8"]
    assert f"{50 / minutes:.0f}" == "3"  # a third of the paper's 50 minutes
    searching = Auto().passes(2, context_cost=1e-6)  # of two documents; rankings in contexts cost next to nothing
    assert_says(
        SCALE,
        f"A gradient at 2M takes {values['ours']['memory_bytes'] / 1e9:.0f} GB, of which "
        f"{2 * length * hidden * layers / 1e9:.0f} are the inputs of layers.",
        f"take {2 * length * cached * layers / 1e9:.0f} GB a document for 8B",
        f"one pass takes {minutes:.0f} minutes there",
        f"For `auto` it counts {values['ours']['passes']:.0f} passes over one document: {searching} of the search, "
        f"and {values['ours']['passes'] - searching:.0f} that",
    )
