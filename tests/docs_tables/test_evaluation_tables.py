"""Numbers of docs/evaluation.md, and of servers in docs/serving.md and docs/guides/serve.md."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from typing import Any

import pytest
from published import assert_says, assert_table, page, record

from longrope import Rope
from longrope.schemes import attention_factor
from longrope.tasks.registry import RULER as RULER_TASKS
from longrope.tasks.registry import TASKS

RULER = record("ruler.json")["rows"]
PROBES = record("probes.json")["probes"]


def rate(row: dict[str, Any]) -> str:
    """Return a score in percent with its interval."""
    return f"{row['score']:.0%} ({100 * row['low']:.0f}–{100 * row['high']:.0f}%)"


def ruler_rows(kind: str) -> Iterator[tuple[str, int, Any]]:
    """Yield the task, the length in tokens and the record of a kind of measurement, short lengths first."""
    names = [key.split() for key in RULER if key.startswith(f"{kind} ")]
    for _, task, length in sorted(names, key=lambda name: int(name[2])):
        yield task, int(length), RULER[f"{kind} {task} {length}"]


def harness_table() -> list[str]:
    """Return the rows of the harness's prompts through both scorers."""
    lines = []
    for task, length, row in ruler_rows("harness"):
        theirs, ours = row["lm_eval"], row["same_prompts"]
        equal = f"{ours['equal_scores']} and {ours['equal_texts']} of {ours['trials']}"
        seconds = f"{theirs['cpu_seconds']:.1f} | {ours['cpu_seconds']:.1f}"
        lines.append(f"| `{task}` | {length:,} | {rate(theirs)} | {rate(ours)} | {equal} | {seconds} |")
    return lines


def shared_table() -> list[str]:
    """Return the rows of our prompts that share a document, beside the harness's seconds for a prompt."""
    lines = []
    for task, length, row in ruler_rows("shared"):
        theirs = RULER[f"harness {task} {length}"]["lm_eval"]["cpu_seconds"]
        ours = row["cpu_seconds"]
        lines.append(f"| `{task}` | {length:,} | {theirs:.1f} | {ours:.1f} | {theirs / ours:.1f}x |")
    return lines


def own_table() -> list[str]:
    """Return the rows of our prompts."""
    haystack = {True: "own", False: "RULER's"}
    return [
        f"| `{task}` | {length:,} | {rate(row)} | {row['trials']} | {haystack[row['own_haystack']]} |"
        for task, length, row in ruler_rows("ours")
    ]


def probe_table() -> list[str]:
    """Return the rows of the servers that were probed: how far the set that they run is from ours, and the others."""
    programs = {key.partition(":")[0]: row["server"] for key, row in PROBES.items()}
    lines = []
    for name, program in programs.items():
        right, dropped = (PROBES[f"{name}: {launch}"] for launch in ("right", "factors dropped"))
        command = {"transformers": "transformers serve", "vllm": "vllm serve"}.get(program, program)
        version = right["version"].rpartition("commit ")[2].rstrip(")").partition("+")[0]
        limit = refusal(PROBES.get(f"{name}: too short"))
        texts = f"{distances(right, 'longrope')} | {distances(dropped, 'original')}"
        lines.append(f"| `{command}` {version} | {texts} | {limit} |")
    return lines


def distances(row: dict[str, Any], running: str) -> str:
    """Return the largest distance to the set that runs, and the smallest one to any other."""
    own = max(length["distances"][running] for length in row["lengths"])
    others = min(x for length in row["lengths"] for name, x in length["distances"].items() if name != running)
    if row["evidence"] == "log-probabilities":
        return f"`{running}`: {own:.3f} nats; others from {others:.3f}"
    return f"`{running}`: {own:.0%} of the tokens; others from {others:.0%}"


def refusal(row: dict[str, Any] | None) -> str:
    """Return what a server does that was launched for L0 tokens."""
    if row is None:
        return "has no limit"
    least = min(length["length"] for length in row["lengths"] if length["refusal"])
    return f"refuses {least} tokens and more"


def harness_sentence() -> str:
    """Return how many of the harness's prompts have equal scores and texts, and the share of its seconds."""
    rows = [row for _, _, row in ruler_rows("harness")]
    trials, scores, texts = (
        sum(row["same_prompts"][name] for row in rows) for name in ("trials", "equal_scores", "equal_texts")
    )
    ratios = [row["same_prompts"]["cpu_seconds"] / row["lm_eval"]["cpu_seconds"] for row in rows]
    return (
        f"{scores} of {trials} scores and {texts} of {trials} texts are equal; ours takes {min(ratios):.0%} to "
        f"{max(ratios):.0%} of the harness's seconds."
    )


def memory_table() -> list[str]:
    """Return the rows of memory, speed and loss beside other ways to compute perplexity."""
    lines = []
    for name, values in record("evaluation.json")["summary"].items():
        length, _, way = name.partition(" ")
        difference = f"{values['relative difference of the mean loss']:.0e}"
        memory, speed = f"{values['memory over ours']:.1f}x ours", f"{values['our speed over theirs']:.2f}x theirs"
        lines.append(f"| {way}, {int(length):,} tokens | {memory} | {speed} | {difference} |")
    return lines


TABLES = {
    "memory": ("evaluation.md", memory_table()),
    "harness": ("evaluation.md", harness_table()),
    "shared": ("evaluation.md", shared_table()),
    "ours": ("evaluation.md", own_table()),
    "probes": ("serving.md", probe_table()),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_the_rows_of_its_file(name: str) -> None:
    page, rows = TABLES[name]
    if rows:
        assert_table(f"docs/{page}", rows)


def test_the_sentence_about_the_harness_is_that_of_its_file() -> None:
    assert_says("docs/evaluation.md", harness_sentence())


def test_how_much_shorter_the_texts_of_the_harness_are() -> None:
    rooms = {"vt": 30, "cwe": 120, "fwe": 50}  # tokens of an answer in RULER; 128 in the other tasks
    shares: dict[int, list[float]] = {2048: [], 4096: []}
    for task, length, row in ruler_rows("harness"):
        if length in shares:
            shares[length].append(100 * (1 - (row["same_prompts"]["prompt_tokens"] + rooms.get(task, 128)) / length))
    near, far = (f"{min(values):.0f} to {max(values):.0f}% shorter" for values in shares.values())
    assert_says("docs/evaluation.md", f"they are {near} than 2,048 tokens of SmolLM2, and {far} than 4,096")


def test_ten_questions_of_one_text() -> None:
    shared = [RULER[f"shared niah_single_1 {length}"] for length in (2048, 4096, 8192)]
    near, middle, far = (f"{row['score']:.0%}" for row in shared)
    assert {row["trials"] for row in shared} == {10}
    questions = {
        (row["questions"], row["way"]): row for row in record("questions.json")["rows"] if row["length"] == 2048
    }
    one, five, ten, alone = (
        f"{questions[key]['rate']:.0%}" for key in ((1, "shared"), (5, "shared"), (10, "shared"), (10, "alone"))
    )
    assert_says(
        "docs/evaluation.md",
        f"falls from 100% at every length to {near}, {middle} and {far} of ten questions",
        f"100 questions: {one} with one line in a text, {five} with five, {ten} with ten, and {alone} too if each",
    )


def test_the_table_of_tasks_has_every_task() -> None:
    text = page("docs/evaluation.md")
    tasks = re.findall(
        r"`(\w+)`", "".join(re.findall(r"^\| (`.+?) \| .+\|$", section(text, "## Retrieval tasks"), re.M))
    )
    assert sorted(tasks) == sorted(TASKS)
    names = re.findall(r"`([\w*]+)`", "".join(re.findall(r"^\| (`.+?) \|", section(text, "### Which scores"), re.M)))
    assert {name for name in TASKS if not any(fnmatch(name, pattern) for pattern in names)} == set()
    assert len(RULER_TASKS) == 13  # as the page says


def section(text: str, heading: str) -> str:
    """Return a section of a page up to the next heading of any level."""
    return text[text.index(f"\n{heading}") + 1 :].partition("\n#")[0]


def differences(measured: Callable[[str], bool]) -> tuple[float, float]:
    """Return the largest difference to the set that an engine uses, and the smallest one to the other set."""
    own, other = [], []
    for cell_name, cell in record("serving.json")["cells"].items():
        if cell.get("verified") != "run" or not measured(cell_name):
            continue
        for length in cell["lengths"].values():
            by_set = dict(length["from each"])
            if length["set"] in by_set:
                own.append(by_set.pop(length["set"]))
                other += [by_set[name] for name in ("long", "short") if name in by_set and " dual " in cell_name]
    return max(own), min(other)


def test_how_far_engines_are_from_our_log_probabilities() -> None:
    odd = "transformers-4.57 gemma2"
    own, other = differences(lambda name: not name.startswith(odd))
    largest, vllm = differences(lambda name: name.startswith(odd))[0], differences(lambda name: "vllm" in name)[0]
    assert other >= 0.027
    assert_says(
        "docs/serving.md",
        f"uses by at most {own:.0e} nats (root mean square; {largest:.0e} for Gemma 2 in transformers 4.57)",
        "from ours with the other set by at least 0.027.",
    )
    assert 1e-5 < vllm < 1e-4
    assert_says("docs/guides/serve.md", "to 1e-4 nats")


def test_attention_factors_by_launched_length() -> None:
    rope = Rope(dim=64, base=1e4, original_length=256)
    long, short = (f"{attention_factor('su', rope, length):.3f}" for length in (2048, 1024))
    assert_says("docs/serving.md", f"(L = 2,048, L0 = 256: {long}; launched for 1,024: {short})")
