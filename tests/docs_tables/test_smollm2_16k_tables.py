"""Tables and figures of SmolLM2 at 16,384 tokens, in the README and in docs/search.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from statistics import fmean, median
from typing import Any

import numpy as np
import pytest
from published import RESULTS, assert_says, assert_table, record, row

from longrope.evaluation.statistics import mean_error
from longrope.rope import Rope
from longrope.schemes import attention_factor

README, SEARCH = "README.md", "docs/search.md"
ROWS = record("smollm2-16k-tests.json")["rows"]
KINDS, LENGTHS = ("recall", "niah_single_1"), (8192, 12288, 16384)
LABELS = dict.fromkeys(("original", "heuristic", "ramp", "searched")) | {
    "pi": "PI", "ntk": "NTK-aware", "yarn": "YaRN", "tailspline": "TailSpline",
    "searched_yarn": "searched, `--parametrization yarn`", "nearest_yarn": "nearest YaRN to the searched factors"
}  # fmt: skip
YARNS = ("nearest_yarn", "searched_yarn")
ORDER = ("original", "pi", "ntk", "heuristic", "ramp", "yarn", "tailspline", "searched")


def last_quarter(values: Any, digits: int) -> str:
    """Return the perplexity of the last quarter; without digits where it is in the hundreds."""
    value = values["last_quarter"]
    return f"{value:.{digits if value < 100 else 0}f}"


def test_the_table_of_the_readme() -> None:
    rows = []
    for name in (*ORDER[:-1], "searched_yarn", "searched"):
        values = ROWS[f"code {name}"]
        fields = [f"{values['perplexity'][str(length)]:.2f}" for length in (8192, 16384)]
        fields.append(last_quarter(values, 2))
        for length in LENGTHS:
            both = [values[f"{kind} {length}"] for kind in KINDS]
            fields.append(f"{fmean(x['loss'] for x in both):.2f} ({fmean(x['rate'] for x in both):.0%})")
        rows.append(row(name.replace("_yarn", " YaRN"), *fields))
    assert_table(README, rows)


def question_row(label: str, values: Any, lengths: tuple[int, ...], *first: str) -> str:
    """Return a row of perplexities, and of loss and rate of the answers by kind and length."""
    fields = [*first, f"{values['perplexity'][str(lengths[-1])]:.3f}", last_quarter(values, 3)]
    for kind in KINDS:
        answers = [values[f"{kind} {length}"] for length in lengths]
        fields.append(" / ".join(f"{answer['loss']:.2f}" for answer in answers))
        fields.append(" / ".join(f"{100 * answer['rate']:.0f}" for answer in answers) + "%")
    return row(label, *fields)


@pytest.mark.parametrize(("corpus", "names"), [("code", (*ORDER[:-1], *YARNS, ORDER[-1])), ("prose", ORDER[-3:])])
def test_the_table_of_each_kind_of_question(corpus: str, names: tuple[str, ...]) -> None:
    assert_table(SEARCH, [question_row(LABELS[name] or name, ROWS[f"{corpus} {name}"], LENGTHS) for name in names])


def exact_beyond_l0(name: str, rows: Mapping[str, Any] = ROWS, lengths: tuple[int, ...] = LENGTHS) -> tuple[int, int]:
    """Return the exact answers of a row beyond L0, and the number of questions."""
    answers = [rows[name][f"{kind} {length}"] for kind in KINDS for length in lengths[1:]]
    return round(sum(x["rate"] * x["trials"] for x in answers)), sum(x["trials"] for x in answers)


def below(corpus: str, other: str, name: str = "searched") -> str:
    """Return by how much the answers' loss with the factors of a row is below that of another row."""
    difference = ROWS[f"{corpus} {name}"][f"answers beyond L0 against {other}"]
    return f"{-difference['nats']:.2f} ± {difference['standard_error']:.2f}"


def test_the_answers_beyond_l0() -> None:
    yarn, tailspline = below("code", "yarn"), below("code", "tailspline")
    says = f"{yarn} nats below YaRN's and {tailspline} below TailSpline's"
    counts = {name: exact_beyond_l0(f"code {name}") for name in ORDER[-3:]}
    exact, trials = counts["searched"]
    assert counts["yarn"] == counts["tailspline"]
    assert_says(
        README, says, f"Of {trials} answers {exact} are exact, with YaRN and TailSpline {counts['yarn'][0]} each."
    )
    assert_says(SEARCH, says)
    assert_says("docs/extension.md", f"{exact} exact answers of {trials} beyond L0, YaRN {counts['yarn'][0]}")


def test_a_search_over_the_parameters_of_yarn() -> None:
    run, yarn = record("smollm2-16k-search-yarn/run.json"), ROWS["code searched_yarn"]
    journals = (passes(name, "smollm2-16k-search-yarn") for name in ("search-0.jsonl", "held-out.jsonl"))
    seconds = sum(line["seconds"] for lines in journals for kind in lines.values() for line in kind)
    text = [yarn[f"beyond L0 against {other}"] for other in ("yarn", "tailspline")]
    percent = [f"{-100 * x['nats']:.1f} ± {100 * x['standard_error']:.1f}%" for x in text]
    answers = [below("code", other, "searched_yarn") for other in ("yarn", "tailspline")]
    exact, trials = exact_beyond_l0("code searched_yarn")
    assert_says(
        SEARCH,
        f"took {run['token_evaluations'] / 1000:.0f}K token-evaluations (",
        f"with the choice of the winner {seconds / 60:.0f} minutes on one core beside other work",
        f"its perplexity is {percent[0]} below YaRN's and {percent[1]} below TailSpline's",
        f"is {answers[0]} nats below YaRN's and {answers[1]} below TailSpline's; {exact} of {trials} are exact",
        f"far ahead ({record('smollm2-16k-search/run.json')['search_loss']:.3f}, this YaRN {run['search_loss']:.3f})",
        f"its answers lose {below('code', 'yarn', 'nearest_yarn')} nats less than YaRN's",
    )
    assert_says(README, f"{percent[0]} below YaRN's and {percent[1]} below TailSpline's")
    assert_says(
        "docs/guides/without-fine-tuning.md",
        f"took {seconds / 60:.0f} minutes on one core with `--budget 250k`: perplexity beyond L0 is {percent[0]} below",
    )


def test_the_attention_factor_brings_as_much_perplexity() -> None:
    other = ROWS["code tailspline_su"]
    assert other["documents"] == 6
    text, answers = (other[f"{kind} L0 against tailspline"] for kind in ("beyond", "answers beyond"))
    lowest = other["perplexity"]["16384"]
    assert lowest == min(ROWS[f"code {name}"]["perplexity"]["16384"] for name in (*ORDER, *YARNS, "tailspline_su"))
    rope = Rope(dim=64, base=1e5, original_length=8192)
    own, formula = (attention_factor(policy, rope, 16384) for policy in ("su", "yarn"))
    assert_says(
        SEARCH,
        f"`: {own:.3f}, its own is {formula:.3f}) has {lowest:.3f} at 16,384 tokens",
        f"is {-100 * text['nats']:.1f} ± {100 * text['standard_error']:.1f}% below TailSpline's own, and its answers "
        f"lose {-answers['nats']:.2f} ± {answers['standard_error']:.2f} nats less.",
    )
    assert_says(README, f"has a perplexity of {lowest:.2f}.")


def paired(name: str, other: str, kind: str) -> str:
    """Return the difference of two rows beyond L0 on code, paired by document: percent of ``text``, nats of answers."""
    measured = record("smollm2-16k-tests.json")["measured"]

    def mean(row: str, number: int) -> float:
        values = measured[f"code {number} {row}"]
        if kind == "text":
            return fmean(values["losses"][8:])  # of blocks of 1,024 tokens
        keys = [f"{task} {length}" for task in KINDS for length in LENGTHS[1:]]
        return fmean(loss for key in keys for _, loss in values["answers"][key])

    difference, error = mean_error([mean(name, number) - mean(other, number) for number in range(6)])
    return f"{100 * difference:.1f} ± {100 * error:.1f}%" if kind == "text" else f"{-difference:.2f} ± {error:.2f}"


def test_the_search_pays_for_answers_with_perplexity() -> None:
    halfway, many = ROWS["code halfway"]["beyond L0 against tailspline"], "code searched_24_questions"
    run = record("smollm2-16k-search-24-questions/run.json")
    journals = [passes(name, "smollm2-16k-search-24-questions") for name in ("search-0.jsonl", "held-out.jsonl")]
    minutes = sum(line["seconds"] for lines in journals for kind in lines.values() for line in kind) / 60
    above = ROWS[many]["beyond L0 against yarn"]
    assert_says(
        SEARCH,
        f"rises by {paired('searched', 'tailspline_su', 'text')}, and the answers lose "
        f"{paired('searched', 'tailspline_su', 'answers')} nats less.",
        f"perplexity is {-100 * halfway['nats']:.1f} ± {100 * halfway['standard_error']:.1f}% lower, the answers lose "
        f"{below('code', 'tailspline', 'halfway')} nats less, and {exact_beyond_l0('code halfway')[0]} are exact.",
        f"perplexity beyond L0 is {100 * above['nats']:.1f} ± {100 * above['standard_error']:.1f}% above YaRN's, "
        f"the answers lose {below('code', 'yarn', 'searched_24_questions')} nats less, and "
        f"{exact_beyond_l0(many)[0]} are exact.",
        f"took {run['token_evaluations'] / 1000:.0f}K token-evaluations, and {minutes:.0f} minutes with the choice",
    )


def test_yarn_and_tailspline_are_close_in_perplexity() -> None:
    yarn, tailspline = (ROWS[f"code {name}"]["perplexity"]["16384"] for name in ("yarn", "tailspline"))
    assert_says(SEARCH, f"YaRN and TailSpline are {yarn / tailspline - 1:.1%} apart in perplexity at 16,384 tokens")


def test_what_the_search_page_says_of_perplexity_and_of_prose() -> None:
    code, prose = (ROWS[f"{corpus} searched"] for corpus in ("code", "prose"))
    yarn, tailspline = (code[f"beyond L0 against {other}"] for other in ("yarn", "tailspline"))
    counts = [exact_beyond_l0(f"prose {name}") for name in ("searched", "yarn", "tailspline")]
    loss = prose["beyond L0 against yarn"]
    assert_says(
        SEARCH,
        f"the difference beyond L0 is {yarn['nats']:+.3f} ± {yarn['standard_error']:.3f} nats to YaRN, and "
        f"{tailspline['nats']:+.3f} ± {tailspline['standard_error']:.3f} to TailSpline",
        f"{below('prose', 'yarn')} nats below YaRN's, and {below('prose', 'tailspline')} below TailSpline's",
        f"Of {counts[0][1]} answers beyond L0 {counts[0][0]} are exact, with YaRN {counts[1][0]} and with TailSpline "
        f"{counts[2][0]}.",
        f"Perplexity is {100 * loss['nats']:.1f} ± {100 * loss['standard_error']:.1f}% above YaRN's",
    )


def answers(name: str) -> list[int]:
    """Return whether each answer beyond L0 of a row is exact, on code."""
    measured = record("smollm2-16k-tests.json")["measured"]
    documents = (measured[f"code {number} {name}"]["answers"] for number in range(6))
    keys = [f"{kind} {length}" for kind in KINDS for length in LENGTHS[1:]]
    return [exact for document in documents for key in keys for exact, _ in document[key]]


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ("yarn", "the searched factors alone give the exact answer {} times, and YaRN alone {} times"),
        ("tailspline", "the searched factors alone give it {} times, and TailSpline alone {} times"),
    ],
)
def test_exact_answers_of_one_row_alone(other: str, says: str) -> None:
    pairs = list(zip(answers("searched"), answers(other), strict=True))
    assert_says(SEARCH, says.format(pairs.count((1, 0)), pairs.count((0, 1))))


def test_the_search() -> None:
    run = record("smollm2-16k-search/run.json")
    loss = {name: f"{value:.3f}" for name, value in run["held_out_loss"].items()}
    assert run["closed_form"] == "tailspline"
    cost = f"took {run['token_evaluations'] / 1000:.0f}K token-evaluations"
    assert_says(
        SEARCH,
        cost,
        f"The search took it to {run['search_loss']:.3f}",
        f"loss of the winner is {loss['searched']}; MrRoPE-Uni has {loss['mrrope_uni']}, and TailSpline "
        f"{loss['tailspline']}.",
    )


def passes(journal: str, folder: str = "smollm2-16k-search") -> dict[str, list[Any]]:
    """Return the full passes, rankings and steps of a journal of a search."""
    text = (RESULTS / folder / journal).read_text(encoding="utf-8")
    lines: dict[str, list[Any]] = {"full": [], "ranking": [], "step": []}
    for line in (json.loads(line) for line in text.splitlines()):
        if "item" in line:
            lines["step" if "gradient" in line else "ranking" if "context" in line else "full"].append(line)
    return lines


def test_the_passes_of_the_search() -> None:
    searched, chosen = passes("search-0.jsonl"), passes("held-out.jsonl")
    full, rankings, steps = (len(searched[kind]) for kind in ("full", "ranking", "step"))
    choice = f"took {len(chosen['full'])} full passes and {len(chosen['ranking'])} rankings more."
    losses = [fmean(line["loss"] for line in searched["full"][start : start + 2]) for start in range(0, 8, 2)]
    assert_says(
        SEARCH,
        f"{full} full passes, {rankings} rankings in contexts and {steps} steps in contexts.",
        choice,
        f"Their loss is {losses[0]:.3f} with YaRN and {min(losses):.3f} with TailSpline.",
    )


def test_the_search_again() -> None:
    folder = "smollm2-16k-search-again"
    run, journals = (
        record(f"{folder}/run.json"),
        [passes(name, folder) for name in ("search-0.jsonl", "held-out.jsonl")],
    )
    assert (run["command"], run["winner"]) == ("longrope search smollm2 --length 16k", "searched")
    assert run["held_out_loss"]["searched"] == min(run["held_out_loss"].values())
    loss = {name: f"{value:.3f}" for name, value in run["held_out_loss"].items()}
    times = {kind: [line["seconds"] for journal in journals for line in journal[kind]] for kind in journals[0]}
    minutes = sum(map(sum, times.values())) / 60
    of_each = {kind: f"{median(line['seconds'] for line in lines):.0f}" for kind, lines in journals[0].items()}
    differences = np.log(run["factors"]) - np.log(record("smollm2-16k-search/run.json")["factors"])
    on_two_cores = f"{minutes:.0f} minutes on two cores"
    assert_says(
        SEARCH,
        on_two_cores,
        f"a median of {of_each['full']} seconds a full pass over one document, {of_each['step']} a step and "
        f"{of_each['ranking']} a ranking",
        f"Its winner has a held-out loss of {loss['searched']}, TailSpline {loss['tailspline']} (",
        f"differ from these by at most {np.abs(differences).max():.2f} in logarithm",
    )
    assert_says(
        README,
        f"takes {run['token_evaluations'] / 1000:.0f}K token-evaluations",
        on_two_cores,
        f"its loss is {loss['searched']}; the best closed forms have {loss['tailspline']} (TailSpline) and "
        f"{loss['mrrope_uni']} (MrRoPE-Uni)",
    )
    for page in ("docs/extension.md", "docs/guides/laptop.md"):
        assert_says(page, f"took {on_two_cores}")
    assert_says("docs/faq.md", f"The default search at that length took [{minutes:.0f} minutes]")


def test_an_export_gives_the_same_model() -> None:
    reloaded = record("smollm2-16k-reloaded.json")
    differences = {check["length"]: check["difference"] for check in reloaded["check"]}
    near = max(differences[length] for length in (8191, 8192, 8193))
    assert_says(
        SEARCH,
        f"has perplexity {reloaded['from_pretrained']:.3f} on the first document, and the patched model has "
        f"{reloaded['patched']:.3f}",
        f"by {differences[16383]:.0e} of their size at 16,383 tokens".replace("e-0", "e-"),
        f"by at most {near:.0e} at L0 - 1, L0 and L0 + 1".replace("e-0", "e-"),
    )
