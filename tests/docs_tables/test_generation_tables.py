"""Numbers of docs/generation.md and docs/faq.md."""

from __future__ import annotations

import json
import re
from statistics import fmean

from published import ROOT, assert_says, assert_table, extension, record, row

GENERATION, FAQ = "docs/generation.md", "docs/faq.md"
RESULTS = record("generation.json")
LOSS, CHAT, CACHES = RESULTS["losses"]["loss"], RESULTS["chat"], record("cache-speed.json")
THEIRS = "transformers, both sets"
POLICIES = ("pin", "switch", "static")


def test_the_loss_beyond_l0() -> None:
    policies = ", ".join(f"{LOSS[name]:.2f}" for name in POLICIES)
    rows = [
        row("the long factors, no cache", f"{LOSS['long factors, no cache']:.2f}"),
        row("`longrope.generating`: `pin`, `switch`, `static`", policies),
        row("transformers' own `longrope` config with both sets", f"{LOSS[THEIRS]:.2f}"),
    ]
    assert_table(GENERATION, rows)
    assert_says(GENERATION, f"It read {RESULTS['losses']['documents']} unseen documents")
    assert_says(FAQ, f"the loss after L0 is then {LOSS[THEIRS]:.2f} instead of {LOSS['pin']:.2f}")


def test_the_first_token_beyond_l0() -> None:
    differences = RESULTS["first_logits"]["difference"]
    theirs = {family: values[THEIRS] for family, values in differences.items()}
    assert max(values[policy] for values in differences.values() for policy in POLICIES) < 1e-6
    assert theirs.pop("phi3") < 1e-6
    assert_says(GENERATION, f"by {theirs['llama']:.0%} (Llama) and {theirs['qwen3']:.0%} (Qwen3) in root mean square")


def test_a_chat_about_a_long_file() -> None:
    rows = []
    for size in ("1500", "6000", "10000"):
        values = CHAT["summary"][size]
        [factors] = {
            turn["factors"] for key, x in CHAT["cells"].items() if key.split()[0] == size for turn in x["turns"]
        }
        seconds, quotient = values["first_token_seconds"], values["second_over_first"]
        first = f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
        second = f"{quotient:.2f}" if quotient > 0.02 else f"{quotient:.3f}"
        rate, number = f"{values['tokens_per_second']:.1f}", f"{values['found']} of {values['of']}"
        rows.append(row(f"{int(size):,}", factors, first, second, rate, number))
    assert_table(GENERATION, rows)
    assert (CHAT["dtype"], CHAT["scheme"], CHAT["length"]) == ("bfloat16", "heuristic", 4 * 8192)


def test_tokens_behind_a_long_text() -> None:
    rows = []
    for label, name in {"`tiny`": "tiny", "SmolLM2": "smollm2"}.items():
        model = CACHES["models"][name]
        for task, words in {"generate": "one by one", "question": f"{CACHES['question']} in one pass"}.items():
            rates = (f"{model[task]['tokens_per_cpu_second'][way]:.1f}" for way in ("transformers", "longrope"))
            faster = f"{model[task]['times_faster']:.2f}"
            rows.append(row(f"{label}, {model['length']:,}", words, *rates, faster))
    assert_table(GENERATION, rows)
    assert_says(GENERATION, f"medians of {CACHES['rounds']} rounds")


def test_with_and_without_training() -> None:
    table, amounts = extension()["table"], extension()["amounts"]
    lengths = (8192, 32768)
    searched = [f"{table[f'staged, searched {length}']:.1f}" for length in lengths]
    trained = [f"{fmean(table[f'sparse-{seed} {length}'] for seed in range(3)):.1f}" for length in lengths]
    none, little, much = (amounts[f"{share}% 2048"] for share in (0, 1, 5))
    assert round(3 * (none - little) / (none - much)) == 2, "two thirds"
    assert_says(
        FAQ,
        f"perplexity of {searched[0]} at 32x and {searched[1]} at 128x; after one training for 512x it is "
        f"{trained[0]} and {trained[1]}",
        f"perplexity of {table['staged, last stage 2048']:.1f} with weights and factors for 131,072 tokens, and "
        f"{table['staged, fine-tuned 2048']:.1f} with those for 2,048",
        f"(perplexity {none:.2f} without training, {little:.2f} with 1%, {much:.2f} with 5%;",
    )


def test_smollm2_with_a_closed_form() -> None:
    tested = record("smollm2-16k-tests.json")["rows"]
    yarn, original, searched = (
        tested[f"code {name}"]["perplexity"]["16384"] for name in ("yarn", "original", "searched")
    )
    assert abs(searched / yarn - 1) < 0.005, "leaves perplexity as it is"
    assert_says(FAQ, f"has a perplexity of {yarn:.2f} at 16,384 tokens, the plain model {original:.1f} (")


def test_a_search_without_training() -> None:
    runs = [record("contexts.json")[f"auto, seed {seed}"] for seed in range(3)]
    tested, forms = [run["test"] for run in runs], [run["closed_forms"]["yarn"] for run in runs]
    saved = [100 * (1 - a["perplexity"] / b["perplexity"]) for a, b in zip(tested, forms, strict=True)]
    recall = [fmean(value["recall"] for value in values) for values in (tested, forms)]
    bad, yarn = (
        fmean(run["recall"] for run in record("objectives.json")["runs"][name])
        for name in ("auto, perplexity, free", "yarn")
    )
    assert_says(
        FAQ,
        f"perplexity by {min(saved):.0f} to {max(saved):.0f}% on `tiny` at 8x, and recall is "
        f"{recall[0]:.0%} where YaRN has {recall[1]:.0%}",
        f"the best perplexity recall {bad:.0%}, and YaRN's {yarn:.0%}",
    )


def test_what_yarn_costs_short_texts() -> None:
    smollm2, demo = record("smollm2-16k.json")["perplexity"], record("demo.json")
    yarn, original = (
        next(value["perplexity"] for value in smollm2[name]["lengths"] if value["length"] == 8192)
        for name in ("yarn", "original")
    )
    tiny = demo["short_context"]["yarn"]
    assert_says(FAQ, f"this costs {yarn / original - 1:.0%} for SmolLM2 at 2x and {tiny:.0f}% for `tiny` at 8x")


def test_memory_and_time_of_smollm2() -> None:
    ours, theirs = (record("scale.json")["cells"][f"forward smollm2 16384 {way} 0"] for way in ("ours", "plain"))
    assert_says(
        FAQ,
        f"take {131072 * 128256 * 4 / 1e9:.0f} GB in float32",
        f"takes {ours['peak_bytes'] / 1e6:.0f} MB above the weights, plain transformers "
        f"{theirs['peak_bytes'] / 1e9:.1f} GB",
        f"over 16,384 tokens took {ours['seconds']:.0f} seconds",
    )


def test_killed_runs() -> None:
    faults = record("faults.json")
    assert faults["not_equal"] == 0
    kinds = [kind for kind in faults["commands"] if kind != "sparse"]  # which is `extend` too
    assert faults["commands"]["sparse"]["rounds"] == faults["commands"]["extend"]["rounds"] == faults["rounds"] / 8
    names = ", ".join(f"`{name}`" for name in kinds[:-1]) + f" and `{kinds[-1]}`"
    assert_says(FAQ, f"In {faults['rounds']} runs on `tiny` we killed {names} {faults['kills']} times")


def test_models_and_configs() -> None:
    text = (ROOT / "docs" / "reference" / "model-types.md").read_text(encoding="utf-8")
    extended, refused = (int(re.findall(rf"## {name} \((\d+)\)", text)[0]) for name in ("Extended", "Refused"))
    configs = json.loads((ROOT / "tests" / "data" / "published_configs.json").read_text(encoding="utf-8"))
    assert_says(
        FAQ,
        f"Of {extended + refused} causal model types of transformers with a RoPE that our test can build small, "
        f"longrope extends {extended}:",
        f"A test reads and extends {len(configs['checkpoints'])} published configs",
    )
