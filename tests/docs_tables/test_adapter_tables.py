"""Tables of SmolLM2's adapters: docs/results.md, docs/extension.md and the README."""

from __future__ import annotations

from datetime import datetime
from math import exp, log
from statistics import fmean
from typing import Any

from published import ROOT, assert_says, assert_table, exact, perplexity_at, record, row

from longrope.cost.peak_memory import ADAM
from longrope.evaluation.statistics import mean_error
from longrope.stages import choose_plan, plan_advice, plan_by_hours, plan_goal, plan_options, rank_starts

RESULTS, EXTENDING, README = "docs/results.md", "docs/extension.md", "README.md"
ADAPTERS = record("smollm2-extension.json")
FAR, FARTHER = record("smollm2-128k.json").values()
HOURS = record("smollm2-16k-by-hours/results.json")
PLAN = "benchmarks/results/smollm2-16k-by-hours/plan.toml"
OUTPUT = "benchmarks/results/smollm2-16k-by-hours/output.txt"
TINY = record("extend-by-hours.json")
FAR_WORDS = "2m adapter, several wordings"
ROWS = {
    "original": "original",
    "YaRN for 32,768, not trained": "yarn",
    "[searched](search.md#smollm2-at-32768-tokens) for 32,768, not trained": "searched",
    "YaRN's factors and adapter": "adapter",
    "YaRN's factors and adapter, [several wordings](extension.md#sparse-windows)": "adapter, several wordings",
    "adapter merged, original RoPE": "merged",
    "YaRN for 2,097,152, not trained": "2m yarn",
    "heuristic for 2,097,152, not trained": "2m heuristic",
    "heuristic and adapter, for 2,097,152": "2m adapter",
    "heuristic and adapter, for 2,097,152, 180 steps": "2m adapter, 180 steps",
    "heuristic and adapter, for 2,097,152, 180 steps, several wordings": FAR_WORDS,
}
LENGTHS = (2048, 4096, 8192, 16384, 32768)
TASKS = ("niah_single_1", "niah_single_2", "recall")


def three_figures(value: float) -> str:
    """Return a perplexity with three significant figures."""
    return f"{value:#.3g}".rstrip(".")


def perplexity(name: str, length: int) -> Any:
    """Return the perplexity of a row at a length; None where it was not measured."""
    return ADAPTERS["perplexity"].get(f"{name} {length}")


def test_perplexity_by_length() -> None:
    rows = []
    for label, name in ROWS.items():
        values = [perplexity(name, length) for length in LENGTHS]
        show = three_figures if name.startswith("2m") else "{:.2f}".format
        rows.append(row(label, *(show(value["perplexity"]) if value else "" for value in values)))
    assert_table(RESULTS, rows)


def by_quarter(by_position: list[float]) -> list[float]:
    """Return the perplexity of each quarter of a text."""
    nats = [log(value) for value in by_position]
    return [exp(fmean(nats[first : first + 4])) for first in range(0, 16, 4)]


def test_perplexity_by_position_of_131072_tokens() -> None:
    original = by_quarter(FARTHER["in_windows"])
    few, many = (by_quarter(measured["perplexity_by_position"]) for measured in (FAR, FARTHER))
    rows = {
        "original, in windows of 8,192": [*original, exp(fmean(map(log, original)))],
        "60 steps": [*few, FAR["perplexity"]],
        "180 steps, several wordings": [*many, FARTHER["perplexity"]],
    }
    right = [round(measured["recall"] * measured["questions"]) for measured in (FAR, FARTHER)]
    answers = ["", *(f"{count} of {FAR['questions']}" for count in right)]
    shown = zip(rows.items(), answers, strict=True)
    assert_table(RESULTS, [row(name, *(f"{x:.1f}" for x in values), count) for (name, values), count in shown])
    times = [here / there for here, there in zip(many, original, strict=True)]
    assert times == sorted(times)
    near = answered("recall 16384 2m adapter")
    assert_says(
        RESULTS,
        f"in the last quarter it is {times[-1]:.1f} times that of the original's windows, after 60 steps "
        f"{few[-1] / original[-1]:.1f} times.",
        f"After 180 steps the model answers {right[1]} of {FAR['questions']} questions",
        f"after 60 steps none, where {near:.0%} were answered at 16,384.",
        f"from {times[0]:.1f} times in the first quarter",
    )
    assert_says(
        README,
        f"pass over 131,072 tokens it answers {right[1]} of {FAR['questions']} questions on planted lines, and in the "
        f"last quarter perplexity is {times[-1]:.1f} times that of the original in windows of 8,192 tokens",
    )


def test_perplexity_by_position_of_65536_tokens() -> None:
    rows, answers, minutes = [], [], []
    for name, measured in record("smollm2-64k.json").items():
        wordings = "several wordings" if "2m-wordings" in name else "one wording"
        quarters = by_quarter(measured["perplexity_by_position"])
        values = [f"{value:.1f}" for value in [*quarters, measured["perplexity"]]]
        right = round(measured["recall"] * measured["questions"])
        rows.append(row(f"180 steps, {wordings}", *values, f"{right} of {measured['questions']}"))
        answers.append(right)
        minutes.append(round(measured["seconds"] / 60))
    assert_table(RESULTS, rows)
    assert_says(RESULTS, f"({minutes[0]} and {minutes[1]} minutes on one core beside tests;")
    assert_says(RESULTS, f"answers {answers[1]} of 24 questions on planted lines, as many as over 65,536 tokens")


def test_what_the_pages_say_of_the_adapter() -> None:
    adapter, yarn = perplexity("adapter", 32768), perplexity("yarn", 32768)
    near, far = (
        f"{-perplexity('adapter', length)['nats']:.3f} ± {perplexity('adapter', length)['standard_error']:.3f}"
        for length in (16384, 32768)
    )
    merged = 1 - perplexity("merged", 4096)["perplexity"] / perplexity("original", 4096)["perplexity"]
    cost = perplexity("2m adapter", 8192)["perplexity"] / perplexity("original", 8192)["perplexity"] - 1
    minutes, minutes_2m = (ADAPTERS["training"][name]["seconds"] / 60 for name in ("32k", "2m"))
    says = f"is {adapter['perplexity']:.2f}, where YaRN has {yarn['perplexity']:.2f}."
    assert_says(README, f"{minutes:.0f} minutes of LoRA on one CPU core", says)
    assert_says(EXTENDING, f"perplexity {adapter['perplexity']:.2f}, YaRN {yarn['perplexity']:.2f}")
    assert_says(
        RESULTS,
        f"is {far} nats a token better than YaRN, at 16,384 {near} (",
        f"{minutes:.0f} minutes on one core with bfloat16 instructions for 32,768 tokens, {minutes_2m:.0f} beside",
        f"the merged adapter is {merged:.0%} better",
        f"It is {cost:.0%} above the original at 8,192 tokens",
    )


def test_the_searched_factors_are_between_yarn_and_the_adapter() -> None:
    searched = perplexity("searched", 32768)
    losses = ADAPTERS["losses"]
    trained, error = mean_error(
        [losses[f"adapter {number}"]["32768"] - losses[f"searched {number}"]["32768"] for number in range(4)]
    )
    assert_says(
        RESULTS,
        f"{-searched['nats']:.3f} ± {searched['standard_error']:.3f} nats better than YaRN at 32,768 tokens",
        f"the adapter is {-trained:.3f} ± {error:.3f} better than they",
    )


def test_the_longer_training_for_2m_tokens() -> None:
    near, far = (perplexity("2m adapter, 180 steps", length)["perplexity"] for length in (8192, 32768))
    above_original = near / perplexity("original", 8192)["perplexity"] - 1
    above_yarn = far / perplexity("yarn", 32768)["perplexity"] - 1
    training = ADAPTERS["training"]["2m-180"]
    recalled = answered("recall 32768 2m adapter, 180 steps")
    assert_says(
        RESULTS,
        f"{180 * 2 * 2048:,} tokens, {training['seconds'] / 60:.0f} minutes on one core",
        f"{above_original:.0%} above the original at 8,192 tokens, and from there perplexity falls",
        f"it is {above_yarn:.0%} above that of YaRN",
    )
    assert 0.5 < recalled < 0.55
    assert 1.8 < recalled / answered("recall 32768 adapter") < 2.2


def test_earlier_trainings() -> None:
    first = ADAPTERS["earlier"]["2m, first training"]["losses"].values()
    values = [exp(fmean(losses[str(length)] for losses in first)) for length in LENGTHS]
    ramp, trained, yarn, heuristic = (
        f"{exp(losses['32768']):.2f}"
        for losses in (
            ADAPTERS["earlier"]["ramp 0"],
            ADAPTERS["earlier"]["adapter 0"],
            ADAPTERS["losses"]["yarn 0"],
            ADAPTERS["losses"]["heuristic 0"],
        )
    )
    assert_says(
        RESULTS,
        f"2 to 3% lower ({', '.join(three_figures(value) for value in values)};",
        f"On one document {ramp} at 32,768 tokens became {trained}, where YaRN without training has {yarn} (",
        f"and {float(ramp) / float(yarn) - 1:.0%} worse than YaRN on one document of SmolLM2 at 4x, below)",
        f"({yarn}; heuristic {heuristic} on the same document)",
    )


def rate(name: str) -> str:
    """Return a rate of exact answers with its standard error; nothing where it was not measured."""
    value = ADAPTERS["retrieval"].get(name)
    return f"{100 * value['rate']:.0f} ± {100 * value['standard_error']:.0f}%" if value else ""


def answered(name: str) -> float:
    """Return a measured rate of exact answers."""
    return ADAPTERS["retrieval"][name]["rate"]


def test_exact_answers() -> None:
    columns = [*(f"{task} 16384" for task in TASKS), "recall 32768"]
    asked = (
        "yarn",
        "searched",
        "adapter",
        "adapter, several wordings",
        "2m adapter",
        "2m adapter, 180 steps",
        FAR_WORDS,
    )
    labels = {name: label for label, name in ROWS.items()}
    assert_table(RESULTS, [row(labels[name], *(rate(f"{column} {name}") for column in columns)) for name in asked])
    one, two, three = (rate(f"{task} 8192 original") for task in TASKS)
    assert_says(RESULTS, f"The original model answers {one}, {two} and {three} at 8,192 tokens")
    assert answered("recall 16384 adapter") > 3 * answered("recall 16384 yarn")
    assert answered("recall 32768 2m adapter") < answered("recall 32768 yarn") < answered("recall 32768 adapter")
    needles = [
        ADAPTERS["retrieval"][f"niah_single_1 16384 {name}"]["rate"] for name in ("2m adapter, 180 steps", "yarn")
    ]
    assert needles[0] <= needles[1]
    for length in (16384, 32768):
        yarn, searched, adapter = (answered(f"recall {length} {name}") for name in ("yarn", "searched", "adapter"))
        assert yarn < searched < adapter


def difference(task: str, other: str, name: str = "adapter, several wordings") -> str:
    """Return how much lower the loss of a row's answers is than another's, in nats, paired over the four documents."""
    ours, theirs = (ADAPTERS["retrieval"][f"{task} 16384 {name}"]["losses"] for name in (name, other))
    pairs = [fmean(theirs[i : i + 12]) - fmean(ours[i : i + 12]) for i in range(0, 48, 12)]
    return "{:.2f} ± {:.2f}".format(*mean_error(pairs))


def test_several_wordings() -> None:
    noise, documents = TASKS[:2]
    higher = (
        perplexity("adapter, several wordings", 32768)["perplexity"] / perplexity("adapter", 32768)["perplexity"] - 1
    )
    assert_says(
        RESULTS,
        f"is {difference(noise, 'adapter')} nats (in noise) and {difference(documents, 'adapter')} nats (in documents)",
        f"and {difference(noise, 'yarn')} and {difference(documents, 'yarn')} nats below YaRN's",
        f"its perplexity is {higher:.1%} higher at 32,768 tokens",
        f"the model has more than {plan_advice.SMALL / 1e6:.0f}M parameters",
    )
    recalled, before = (ADAPTERS["retrieval"][f"recall 32768 adapter{name}"] for name in (", several wordings", ""))
    assert abs(recalled["rate"] - before["rate"]) < recalled["standard_error"]
    ours, one, yarn = (rate(f"{documents} 16384 {name}") for name in ("adapter, several wordings", "adapter", "yarn"))
    assert_says(
        README,
        f"answers {ours} of RULER's questions, whose words it has not trained on, in documents of 16,384 tokens. "
        f"After a training with lines of one form it answers {one}, YaRN {yarn}, and the original model at 8,192 "
        f"tokens {rate(f'{documents} 8192 original')}.",
    )
    for task in TASKS[:2]:  # as many as the original model within L0, within the error
        value, original = (
            ADAPTERS["retrieval"][f"{task} {name}"] for name in ("16384 adapter, several wordings", "8192 original")
        )
        assert abs(value["rate"] - original["rate"]) < value["standard_error"]


def test_several_wordings_for_2m_tokens() -> None:
    noise, far = TASKS[0], perplexity(FAR_WORDS, 32768)["perplexity"]
    ours, original = (ADAPTERS["retrieval"][f"{noise} {name}"] for name in (f"16384 {FAR_WORDS}", "8192 original"))
    assert abs(ours["rate"] - original["rate"]) < ours["standard_error"]
    lower = 1 - far / perplexity("2m adapter, 180 steps", 32768)["perplexity"]
    minutes = ADAPTERS["training"]["2m-wordings"]["seconds"] / 60
    assert_says(
        RESULTS,
        f"several wordings, took {minutes:.0f}.",
        f"at 16,384 tokens as the original model at 8,192 ({rate(f'{noise} 8192 original')}).",
        f"is {difference(noise, '2m adapter, 180 steps', FAR_WORDS)} nats below that of the training with one wording",
        f"and {difference(noise, 'yarn', FAR_WORDS)} nats below YaRN's (paired over the documents). At 32,768 tokens",
        f"it answers {rate(f'{noise} 32768 {FAR_WORDS}')} of them, YaRN {rate(f'{noise} 32768 yarn')}.",
        f"Its perplexity is {lower:.1%} lower at 32,768 tokens. It recalls fewer of the lines",
    )
    for length in (16384, 32768):
        assert answered(f"recall {length} {FAR_WORDS}") < answered(f"recall {length} 2m adapter, 180 steps")
    assert_says(
        README,
        f"trained for {minutes:.0f} minutes with factors for 2,097,152 tokens (256x), has {far:.2f} at 32,768 tokens. "
        f"At 16,384 tokens it answers {rate(f'{noise} 16384 {FAR_WORDS}')} of RULER's questions for a number in noise, "
        f"YaRN for 32,768 tokens {rate(f'{noise} 16384 yarn')}, and the original model at 8,192 tokens "
        f"{rate(f'{noise} 8192 original')}.",
    )


def test_seventy_minutes_for_16384_tokens() -> None:
    rows = []
    for label, name in {"original": "original", "YaRN": "yarn", "extended": "extended"}.items():
        values = [f"{perplexity_at(HOURS, name, length)['perplexity']:.2f}" for length in (8192, 16384)]
        rows.append(row(label, *values, "{} of {}".format(*exact(HOURS, name, 16384))))
    assert_table(EXTENDING, rows)
    ours, yarn = (perplexity_at(HOURS, name, 16384)["perplexity"] for name in ("extended", "yarn"))
    assert_says(README, f"perplexity is {ours:.2f}, where YaRN has {yarn:.2f}")
    right, trials = exact(HOURS, "extended", 16384)
    assert_says(
        README,
        f"of {trials} lines planted in six texts {right} are recalled, with YaRN {exact(HOURS, 'yarn', 16384)[0]} (",
    )
    began, *lines, ended = (ROOT / OUTPUT).read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("│ stage 1:") and line.endswith(" 40 min │") for line in lines)
    assert any(line.startswith("│ all ") and line.endswith(" 56 min │") for line in lines)
    times = [datetime.strptime(line, "%a %b %d %H:%M:%S UTC %Y") for line in (began, ended)]
    minutes = round((times[1] - times[0]).total_seconds() / 60)
    assert_says(
        README,
        "With `--to 16k --hours 1.2` on two CPU cores with fast bfloat16, beside some other work, it took "
        f"SmolLM2-135M from 8,192 to 16,384 tokens in {minutes} minutes: on four test documents",
    )
    assert_says(
        EXTENDING,
        "--hours 1.2 --yes` on two CPU cores with fast bfloat16, beside some other work, chose LoRA from YaRN's "
        f"factors, and took {minutes} of the 72 minutes (",
    )
    assert (ROOT / PLAN).read_text(encoding="utf-8").startswith("# longrope extend smollm2 --to 16k --hours 1.2 --yes")
    assert {(cell["trials"], cell["questions"]) for cell in HOURS["retrieval"]["extended"]} == {(5, 4), (4, 4)}
    assert (trials, len(HOURS["corpora"]["stdlib"]["documents"])) == (6 * 4, 4)
    difference = next(
        found for found in HOURS["differences"]["extended"] if found["length"] == 16384 and found["against"] == "yarn"
    )
    assert difference["wins"] == 4
    assert_says(
        EXTENDING,
        f"is {-difference['percent']:.1f} ± {difference['standard_error']:.1f}% below YaRN's, and lower on all four "
        "documents",
        f"(the plan said 56; the training took {record('smollm2-16k-by-hours/training.json')['seconds'] / 60:.0f} "
        "minutes where the plan had 40)",
    )


def test_why_fine_tuning_comes_before_a_search() -> None:
    training = record("smollm2-16k-by-hours/training.json")
    settings, seconds = training["settings"], training["seconds"]
    ours, yarn = (perplexity_at(HOURS, name, 16384)["perplexity"] for name in ("extended", "yarn"))
    adapter = perplexity("adapter", 32768)["perplexity"] / perplexity("yarn", 32768)["perplexity"]
    assert f"steps = {settings['steps']}\nbatch = 2" in (ROOT / PLAN).read_text(encoding="utf-8")
    assert "steps = 60 " in ADAPTERS["plans"][0]
    assert "batch = 2\n" in ADAPTERS["plans"][0]
    assert_says(
        EXTENDING,
        f"The {settings['steps']} steps of LoRA took {seconds / 60:.0f} minutes, "
        f"{seconds / (settings['steps'] * settings['batch']):.0f} s a window, and perplexity fell to "
        f"{1 - ours / yarn:.0%} below YaRN's (",
        f"at 2x, {settings['steps']} steps: {ours:.2f}, YaRN {yarn:.2f} |",
        f"60 steps from YaRN's factors are {1 - adapter:.0%} better than YaRN",
    )


def test_the_rules_of_a_plan_by_hours() -> None:
    assert plan_options.advised_tokens(plan_options.ORIGINAL_TOKENS * 10**6) == 10**6, "one for each parameter"
    assert plan_options.advised_tokens(15e12) == 2**30
    assert rank_starts.STARTS == ("yarn", "ramp", "heuristic")
    assert choose_plan.TRUSTED == 4
    assert plan_options.EVALUATIONS[0][:2] == (8, 50)
    assert plan_options.EVALUATIONS[-1][0] == 1
    assert plan_options.LEAST_STEPS == 10
    assert plan_options.SIDE_STEP == 0.1
    assert_says(
        EXTENDING,
        f"at least one token for every {1 / plan_options.LEAST_FULL_SHARE:.0f} parameters, and Adam's {ADAM} bytes a",
        f"LoRA of rank {plan_options.RANK} on sparse windows",
        f"on {rank_starts.LEAST_WINDOWS} to {rank_starts.MOST_WINDOWS} sparse windows of held-out text with planted "
        f"lines, in at most {plan_by_hours.RANKED:.0%} of the time",
        f"The evaluation gets up to {plan_options.MEASURED:.0%} of the time.",
        f"The estimated times fill {plan_goal.USED:.0%} of the hours.",
        f"of a model below {plan_advice.SMALL / 1e6:.0f}M parameters",
    )


def test_six_minutes_for_tiny() -> None:
    run = TINY["hours"]["0.1"]
    ours, yarn = run["results"]["extended"], run["results"]["yarn"]
    starts = [f"{loss:.3f}" for loss in TINY["starts"]["tiny 2048"].values()]
    ten, twenty = (TINY["rules"][f"yarn, {steps} steps"]["results"] for steps in (10, 20))
    ramp = TINY["rules"]["ramp, 0 steps"]["results"]
    earlier, float32 = (TINY["earlier"][name]["results"] for name in ("0.1", "0.1, 217 steps"))
    assert "steps = 201\nbatch = 6" in run["plan"]
    assert "steps = 17\n" in TINY["earlier"]["0.1"]["plan"]
    assert_says(
        EXTENDING,
        "`tiny` at 8x, 201 steps of six windows:",
        "Training for 17 steps from the ramp",
        f"took {run['seconds'] / 60:.1f} minutes instead of six.",
        f"tokens is {ours['perplexity']:.2f}, YaRN's {yarn['perplexity']:.2f} (8 documents).",
        f"Recall is {ours['recall']:.0%} of {ours['questions']} questions, YaRN's {yarn['recall']:.0%}.",
        f"perplexity is {-ours['percent_at_l0']:.1f}% below that of the original model",
        f"perplexity {ours['perplexity']:.1f}, YaRN {yarn['perplexity']:.1f}; recall {ours['recall']:.0%}, YaRN "
        f"{yarn['recall']:.0%}",
        f"(loss {', '.join(starts[:2])} and {starts[2]})",
        f"take perplexity from {float32['yarn']['perplexity']:.2f} to {ten['perplexity']:.2f} and recall from "
        f"{yarn['recall']:.0%} to {ten['recall']:.0%} of {ten['questions']} questions. Twenty steps take them to "
        f"{twenty['perplexity']:.2f} and {twenty['recall']:.0%}.",
        f"({ramp['perplexity']:.2f}, YaRN {float32['yarn']['perplexity']:.2f}), yet it recalls "
        f"{ramp['recall']:.0%} where YaRN recalls {yarn['recall']:.0%}.",
        f"({earlier['extended']['recall']:.0%}, YaRN {earlier['yarn']['recall']:.0%} on the same "
        f"{earlier['yarn']['questions']} questions",
    )
