"""Numbers of the guides and of docs/dependencies.md."""

from __future__ import annotations

from statistics import fmean

from published import assert_says, assert_table, extension, perplexity_at, record, row

from longrope import Rope
from longrope.schemes import scheme

LAPTOP, UNTRAINED, GPU = (f"docs/guides/{name}.md" for name in ("laptop", "without-fine-tuning", "gpu"))
SMOLLM2 = record("smollm2-16k.json")["perplexity"]


def smollm2(name: str, length: int) -> float:
    """Return the perplexity of SmolLM2 with some factors at a length."""
    return next(value["perplexity"] for value in SMOLLM2[name]["lengths"] if value["length"] == length)


def test_smollm2_on_a_laptop() -> None:
    rows = []
    for label, name in {"original": "original", "YaRN": "yarn"}.items():
        values = (smollm2(name, 8192), smollm2(name, 16384), SMOLLM2[name]["last_quarter"])
        rows.append(row(label, *(f"{value:.2f}" for value in values)))
    assert_table(LAPTOP, rows)
    adapters = record("smollm2-extension.json")
    trained, yarn = (
        adapters["perplexity"][f"{name} 32768"]["perplexity"] for name in ("adapter, several wordings", "yarn")
    )
    asked = [
        adapters["retrieval"][f"niah_single_2 16384 {name}"]["rate"] for name in ("adapter, several wordings", "yarn")
    ]
    assert 2 < asked[0] / asked[1] < 2.5
    assert_says(
        LAPTOP,
        f"was trained for {adapters['training']['32k-wordings']['seconds'] / 60:.0f} minutes on one CPU core",
        f"a perplexity of {trained:.2f} at 32,768 tokens, where YaRN has {yarn:.2f}. ",
    )
    factors = scheme("yarn", Rope(dim=64, base=1e5, original_length=8192), 16384)
    assert_says(LAPTOP, f"16,384 tokens long attention factor {factors.attention_factor:.5f} as made")


def test_formulas_without_training() -> None:
    table, lengths = extension()["table"], (2048, 8192, 32768)
    yarn = [f"{table[f'yarn {length}']:.1f}" for length in lengths]
    trained = [f"{fmean(table[f'sparse-{seed} {length}'] for seed in range(3)):.1f}" for length in lengths]
    demo, near = record("demo.json"), {}
    for name in ("yarn", "heuristic", "ntk", "pi"):
        near[name] = f"{perplexity_at(demo, name, 2048)['perplexity']:.1f}"
    far = ", ".join(f"{smollm2(name, 16384):.2f}" for name in near)
    assert min(near, key=lambda name: float(near[name])) == "yarn"
    assert min(near, key=lambda name: smollm2(name, 16384)) == "yarn"
    costs = [100 * (smollm2("yarn", length) / smollm2("original", length) - 1) for length in (8192, 4096)]
    assert_says(
        UNTRAINED,
        f"YaRN's perplexity is {yarn[0]} at 8x, {yarn[1]} at 32x and {yarn[2]} at 128x; fine-tuned once for 512x it is "
        f"{trained[0]}, {trained[1]} and {trained[2]} (",
        f"(YaRN {near['yarn']}, heuristic {near['heuristic']}, NTK {near['ntk']}, PI {near['pi']};",
        f"SmolLM2 at 2x ({far};",
        f"(SmolLM2 with YaRN for 2x: {costs[0]:.1f}% at 8,192 tokens, {costs[1]:.1f}% at 4,096)",
    )


def test_a_search_without_training() -> None:
    runs = [record("contexts.json")[f"auto, seed {seed}"] for seed in range(3)]
    tested, forms = [run["test"] for run in runs], [run["closed_forms"]["yarn"] for run in runs]
    saved = [100 * (1 - a["perplexity"] / b["perplexity"]) for a, b in zip(tested, forms, strict=True)]
    recall = [fmean(value["recall"] for value in values) for values in (tested, forms)]
    below = f"{min(saved):.0f} to {max(saved):.0f}% below YaRN's"
    assert_says(UNTRAINED, f"{below}, and recall is {recall[0]:.0%} where YaRN has {recall[1]:.0%}")
    assert_says("docs/extension.md", f"`tiny` at 8x: perplexity {below};")


def test_one_gpu() -> None:
    values = record("gpu-scale.json")["cells"]
    near, far = (values[f"{length} yarn"]["seconds"] for length in (131072, 2097152))
    assert_says(GPU, f"SmolLM2 reads 131,072 tokens in {near:.2f} s on an H200 and 2,097,152 in {far:.0f} s (")


def test_start_up_and_fuzzing() -> None:
    start = record("first-run.json")["start-up"]
    seconds = start["seconds"]
    readers = record("fuzz.json")["readers"]
    long = [readers[name] for name in ("json", "csv", "config", "gguf", "jsonl")]
    assert min(value["seconds"] for value in long) > 3600
    assert not [name for name, value in readers.items() if value["open"]]
    assert_says(
        "docs/dependencies.md",
        f"{seconds['longrope --help']:.1f} s; Python alone takes {seconds['python alone']:.3f} s.",
        f"The wheel has {start['wheel bytes'] / 1e6:.1f} MB",
        "({:.0f} to {:.0f} minutes of processor time)".format(*limits([value["cpu_seconds"] / 60 for value in long])),
        "that of plans for {:.0f} minutes ({:.0f} of processor time)".format(*minutes(readers["plan"])),
        "that of journals for {:.0f} ({:.0f})".format(*minutes(readers["lines"])),
    )


def minutes(reader: dict[str, float]) -> tuple[float, float]:
    """Return the time of a reader by the clock and by the processor."""
    return reader["seconds"] / 60, reader["cpu_seconds"] / 60


def limits(values: list[float]) -> tuple[float, float]:
    """Return the smallest and the largest value."""
    return min(values), max(values)
