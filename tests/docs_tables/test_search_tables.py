"""Tables of docs/search.md: search methods and frozen contexts."""

from __future__ import annotations

from math import log
from statistics import fmean, median

from published import assert_says, assert_table, perplexity_at, record, row

SEARCH = "docs/search.md"
METHODS, METHODS_32X = record("search-tiny-8x.json"), record("search-tiny-32x.json")
CONTEXTS = record("contexts.json")


def spread(values: list[float]) -> str:
    """Return the median with the range, if there are several values."""
    return f"{median(values):.3f}" + (f" ({min(values):.3f}–{max(values):.3f})" if len(values) > 1 else "")


def test_methods_side_by_side() -> None:
    rows = []
    for name in ("auto", "gradient", "cma", "paper", "simple"):
        runs = METHODS["runs"][name]
        counts = [f"{run['evaluations'] + 1e-9:,.0f}" for run in runs]  # halves upwards
        searched = [run["search"][-1][1] / yarn for run, yarn in zip(runs, METHODS["yarn_search"], strict=False)]
        tested = [run["test"][-1][1] / METHODS["schemes_test"]["yarn"] for run in runs]
        fewest_and_most = sorted(set(counts), key=lambda count: int(count.replace(",", "")))
        rows.append(
            row(
                f"`{name}`",
                "–".join(fewest_and_most[:: max(1, len(fewest_and_most) - 1)]),
                spread(searched),
                spread(tested),
            )
        )
    assert_table(SEARCH, rows)


def test_auto_against_the_algorithm_of_the_paper() -> None:
    against, simple = METHODS["auto_against"]["paper"], METHODS["auto_against"]["simple"]
    *first, last = (f"{value:.0f}" for value in against["times_cheaper"])
    *lower, lowest = (f"{100 * (1 - value):.1f}" for value in against["test_perplexity_at_the_end"])
    evaluations = [
        run["evaluations"] / times + 1e-9  # halves upwards
        for run, times in zip(METHODS["runs"]["paper"], against["times_cheaper"], strict=True)
    ]
    assert_says(
        SEARCH,
        "after {:.0f}, {:.0f} and {:.0f} evaluations".format(*evaluations),
        f"{', '.join(first)} and {last} times cheaper",
        f"{simple['times_cheaper'][0]:.0f} times cheaper",
        f"is then {', '.join(lower)} and {lowest}% below that of the paper's algorithm at its end",
    )


def test_the_best_closed_form() -> None:
    schemes = record("schemes.json")
    values = {name: perplexity_at(schemes, name, 2048)["perplexity"] for name in schemes["perplexity"]}
    assert min(values, key=lambda name: values[name]) == "ramp"
    whole = median(run["test"][-1][1] for run in METHODS["runs"]["auto"]) / METHODS["schemes_test"]["yarn"]
    assert_says(
        SEARCH,
        f"its perplexity is {values['ramp'] / values['yarn']:.3f} of YaRN's (",
        f"and the whole search reaches {whole:.3f}.",
    )


def test_32_times_the_length() -> None:
    yarn, yarn_search = METHODS_32X["schemes_test"]["yarn"], METHODS_32X["yarn_search"][0]
    (auto,), (paper,) = METHODS_32X["runs"]["auto"], METHODS_32X["runs"]["paper"]
    reached = next(count for count, value in auto["search"] if value <= paper["search"][-1][1])
    best_count, best = min(auto["test"], key=lambda point: point[1])
    assert_says(
        SEARCH,
        f"has a search perplexity of {auto['search'][-1][1] / yarn_search:.3f} after its {auto['evaluations']:.0f} "
        f"evaluations. The paper's algorithm has {paper['search'][-1][1] / yarn_search:.3f} after "
        f"{paper['evaluations']:.0f}, which `auto` had after {reached:.0f}.",
        f"they end level, at {auto['test'][-1][1] / yarn:.3f} and {paper['test'][-1][1] / yarn:.3f}. `auto` was best "
        f"after {best_count:.0f} evaluations ({best / yarn:.3f})",
    )


CONTEXT_ROWS = {
    "`auto` before": "before",
    "`auto` in contexts, needles apart": "needles apart",
    "`auto`": "auto",
    "`auto` on full passes": "full passes",
    "`auto`, planted lines alone": "values alone",
    "`auto`, chains of two lines too": "chains too",
    "`auto`, answers weigh 0.1": "weight 0.1",
    "`auto`, answers weigh 0.05": "weight 0.05",
}


def test_frozen_contexts() -> None:
    def tested(values: list[dict[str, float]]) -> tuple[str, str]:
        perplexities = " / ".join(f"{value['perplexity']:.2f}" for value in values)
        return perplexities, " / ".join(f"{100 * value['recall']:.0f}" for value in values)

    forms = [CONTEXTS[f"auto, seed {seed}"]["closed_forms"] for seed in range(3)]
    rows = [
        row(label, *tested([form[name] for form in forms]), "–", "–")
        for label, name in {"YaRN": "yarn", "`ramp`, the best closed form in perplexity": "ramp"}.items()
    ]
    for label, name in CONTEXT_ROWS.items():
        runs = [CONTEXTS[f"{name}, seed {seed}"] for seed in range(3)]
        tokens, seconds = (fmean(run[key] for run in runs) for key in ("token_evaluations", "seconds"))
        rows.append(row(label, *tested([run["test"] for run in runs]), f"{tokens / 1000:.0f}K", f"{seconds:.0f} s"))
    assert_table(SEARCH, rows)
    assert {CONTEXTS[f"auto, seed {seed}"]["closed_form"] for seed in range(3)} == {"ramp(10, 0.3, 1.15)"}
    best = [
        CONTEXTS[f"auto, seed {seed}"]["test"]["perplexity"] / forms[seed]["yarn"]["perplexity"] for seed in range(3)
    ]
    whole, ours = ([CONTEXTS[f"{name}, seed {seed}"] for seed in range(3)] for name in ("full passes", "auto"))
    more, slower = (
        sum(run[key] for run in whole) / sum(run[key] for run in ours) for key in ("token_evaluations", "seconds")
    )
    assert_says(
        SEARCH,
        "lower on every seed: {:.3f}, {:.3f} and {:.3f} of YaRN's.".format(*best),
        "The search went on from the ramp between 10 turns and 0.3 turns on every seed.",
        f"takes {more:.1f} times the token-evaluations and {slower:.1f} times the processor time",
    )


def test_a_lower_weight_of_the_answers() -> None:
    runs = {
        name: [CONTEXTS[f"{name}, seed {seed}"]["test"] for seed in range(3)]
        for name in ("auto", "weight 0.1", "weight 0.05")
    }
    recall = [f"{100 * fmean(run['recall'] for run in found):.0f}" for found in runs.values()]
    assert_says(
        SEARCH, f"mean perplexity does not fall, and recall falls from {recall[0]}% to {recall[1]}% and {recall[2]}%."
    )
    whole, *lower = (fmean(log(run["perplexity"]) for run in found) for found in runs.values())
    assert whole < min(lower)
