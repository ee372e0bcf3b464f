"""Numbers of the README: the demo, search methods, 512 times the length, memory."""

from __future__ import annotations

import re
from statistics import fmean, median

from published import ROOT, assert_says, assert_table, exact, extension, perplexity_at, record, row

README = "README.md"
DEMO = record("demo.json")
EXTENSION = extension()
SEARCH = record("search-tiny-8x.json")


def test_the_table_of_the_demo() -> None:
    rows = []
    for name in DEMO["rows"]:
        values = (perplexity_at(DEMO, name, length) for length in DEMO["lengths"])
        rows.append(row(name, *(f"{x['perplexity']:.1f} ± {x['standard_error']:.1f}" for x in values)))
    assert_table(README, rows)


def test_what_the_readme_says_of_the_demo() -> None:
    change, recall = DEMO["short_context"], {name: exact(DEMO, name, 2048) for name in ("extended", "yarn")}
    assert recall["extended"] == (20, 20)
    seconds = record("first-run.json")["from clone to report"]["seconds"]
    assert {f"{seconds[step] / 60:.1f}" for step in ("make install", "longrope demo")} == {"2.4"}
    assert_says(
        README,
        f"as good as the original ({change['extended']:.1f}%), where YaRN is {change['yarn']:.1f}% worse",
        f"all 20 lines that were planted in texts of 2,048 tokens; YaRN recalls {recall['yarn'][0]}.",
        "Installation and demo took 2.4 minutes each on two cores (",
    )


def test_the_table_of_search_methods() -> None:
    yarn, against = SEARCH["schemes_test"]["yarn"], SEARCH["auto_against"]
    cheaper = {name: f"{value['median']['times_cheaper']:.0f} times cheaper" for name, value in against.items()}
    never, few, more = sorted(against["gradient"]["times_cheaper"])
    assert never == 0  # on one seed
    cheaper["gradient"] = f"{few:.0f} and {more:.0f} times cheaper on two seeds, not reached on one"
    rows = []
    for name in ("auto", "gradient", "cma", "paper", "simple"):
        runs = SEARCH["runs"][name]
        evaluations = median(run["evaluations"] for run in runs)
        ratio = median(run["test"][-1][1] for run in runs) / yarn
        rows.append(row(f"`{name}`", f"{evaluations + 1e-9:,.0f}", f"{ratio:.3f}", cheaper.get(name, "")))
    assert_table(README, rows)


def test_recall_after_a_search_for_perplexity_and_after_the_default() -> None:
    runs = record("objectives.json")["runs"]
    bad, yarn = (fmean(run["recall"] for run in runs[name]) for name in ("auto, perplexity, free", "yarn"))
    contexts = [record("contexts.json")[f"auto, seed {seed}"] for seed in range(3)]
    forms = [run["closed_forms"]["yarn"] for run in contexts]
    saved = [1 - run["test"]["perplexity"] / form["perplexity"] for run, form in zip(contexts, forms, strict=True)]
    ours, theirs = (fmean(x["recall"] for x in tested) for tested in ([run["test"] for run in contexts], forms))
    assert_says(
        README,
        f"recall at 2,048 tokens is {bad:.0%}, where YaRN's is {yarn:.0%}",
        f"{100 * min(saved):.0f} to {max(saved):.0%} below YaRN's on three seeds, and recall is {ours:.0%} where "
        f"YaRN has {theirs:.0%}",
    )


def test_the_table_of_512_times_the_length() -> None:
    lengths, table = (2048, 8192, 32768, 131072), EXTENSION["table"]
    values = {
        "YaRN": [table[f"yarn {length}"] for length in lengths],
        "heuristic": [table[f"heuristic {length}"] for length in lengths],
        "three stages, one jump in a window, twice the tokens": [
            table[f"staged, last stage {length}"] for length in lengths
        ],
        "one stage on sparse windows": [
            fmean(table[f"sparse-{seed} {length}"] for seed in range(3)) for length in lengths
        ],
    }
    assert_table(README, [row(name, *(f"{value:.1f}" for value in line)) for name, line in values.items()])


def test_what_the_readme_says_of_512_times_the_length() -> None:
    table, short, recall = (EXTENSION[name] for name in ("table", "short", "retrieval"))
    rises = [100 * (table[f"sparse-{seed} 131072"] / table[f"sparse-{seed} 2048"] - 1) for seed in range(3)]

    def changes(name: str) -> list[float]:
        return [100 * (short[f"sparse-{seed}, {name}"] / short["original"] - 1) for seed in range(3)]

    near, plain = changes("recovered"), changes("plain RoPE")
    lengths = [2**power for power in range(9, 15)]
    rates = [fmean(100 * recall[f"sparse-{seed} {length}"]["rate"] for seed in range(3)) for length in lengths]
    minutes = [table[f"sparse-{seed} seconds of training"] / 60 for seed in range(3)]
    assert_says(
        README,
        f"for {min(minutes):.0f} to {max(minutes):.0f} minutes on one core",
        f"({min(rises):.1f} to {max(rises):.1f}% above it)",
        f"by {min(near):.1f} to {max(near):+.1f}% with the short factors of a second search, and by "
        f"{min(plain):+.1f} to {max(plain):+.1f}% with plain RoPE; YaRN for 512x costs "
        f"{short['yarn'] / short['original'] - 1:.0%} there",
        f"recalls {min(rates):.1f} to {max(rates):.1f}% of the planted lines from 512 to 16,384 tokens",
        f"recalls {recall['yarn 4096']['rate']:.0%} at 4,096",
    )


def test_memory_and_speed() -> None:
    runs, longest = record("scale.json")["cells"], record("gpu-scale.json")["cells"]["2097152 yarn"]
    (ours, theirs), (ours_32k, theirs_32k) = (
        [runs[f"forward smollm2 {length} {variant} 0"]["peak_bytes"] for variant in ("ours", "plain")]
        for length in (16384, 32768)
    )
    assert_says(
        README,
        f"over 16,384 tokens takes {ours / 1e6:.0f} MB above the weights. Transformers with full logits takes "
        f"{theirs / 1e9:.1f} GB",
        f"longrope takes {ours_32k / 1e6:.0f} MB and transformers {theirs_32k / 1e9:.0f} GB",
        f"in one pass of {longest['seconds']:.0f} s, in {longest['peak_bytes'] / 1e9:.1f} GB above the weights",
    )


def test_the_model_types() -> None:
    text = (ROOT / "docs" / "reference" / "model-types.md").read_text(encoding="utf-8")
    extended, refused = (int(re.findall(rf"## {name} \((\d+)\)", text)[0]) for name in ("Extended", "Refused"))
    assert_says(README, f"Of {extended + refused} causal model types of transformers", f"{extended} are extended")
