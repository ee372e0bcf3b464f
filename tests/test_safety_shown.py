"""Names from foreign files stay text on pages, in pictures, in Markdown and in the terminal."""

from __future__ import annotations

import io
import json
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import sample_runs
import typer
from markdown_it import MarkdownIt
from rich.console import Console

from longrope.cli import inspect, plan_output, progress
from longrope.cli.main import guarded
from longrope.errors import LongRopeError
from longrope.export.model_card import model_card
from longrope.models.attention_layers import LayerSurvey
from longrope.report import terminal
from longrope.report.all_figures import figures
from longrope.report.html import page
from longrope.report.load import LoadedRun, read_runs
from longrope.report.report import write_pictures
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.stages.plan_cost import Cost

ROPE = Rope(dim=8, base=1e4, original_length=256)
LAYERS = LayerSurvey(layers=1, attention=(), position_field="", window_field="")
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onload='alert(1)",
    "]]><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "../../outside",
    "[red]x[/red] [/b]",
    "\x1b[31mx\x1b]0;title\x07",
)
PLAIN = tuple("x" * (len(word) - 2) + f"{i:02}" for i, word in enumerate(HOSTILE))


class Elements(HTMLParser):
    """Counts of elements by name and attribute names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.counts = Counter()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.counts[(tag, *sorted(name for name, _ in attrs))] += 1


def run(folder: Path, words: tuple[str, ...]) -> tuple[LoadedRun, ...]:
    """Write and read a run whose candidates, model, corpus, documents, tasks and machine are named by the words."""
    record = sample_runs.results(("original", "yarn", *words), model=words[0])
    record = json.loads(json.dumps(record).replace(json.dumps(sample_runs.CORPUS), json.dumps(words[1])))
    record["corpora"][words[1]]["documents"] = list(words[:6])
    record["provenance"] |= {"command": " ".join(words), "machine": {words[2]: words[3]}}
    for row, tasks, cells in zip(
        record["rows"].values(), record["tasks"].values(), record["retrieval"].values(), strict=True
    ):
        row["weights"] = words[4]
        tasks[words[1]] = tasks.pop("local_task")
        for cell in cells:
            cell["task"] = words[5] if cell["task"] == "passkey" else cell["task"]
    return read_runs([sample_runs.write_run(folder / "run", record)])


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedRun, ...]:
    return run(tmp_path_factory.mktemp("hostile"), HOSTILE)


def test_names_add_no_element_to_a_page(hostile: tuple[LoadedRun, ...], tmp_path: Path) -> None:
    plain = run(tmp_path, PLAIN)
    text = page(hostile, figures(hostile))
    assert Elements(text).counts == Elements(page(plain, figures(plain))).counts
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "{{ 7 * 7 }}" in text
    assert "\x1b" not in text


def test_names_add_no_element_to_a_picture_and_name_no_file(hostile: tuple[LoadedRun, ...], tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "figures"
    write_pictures(hostile, folder)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert {path.parent for path in files} == {folder}
    for path in folder.glob("*.svg"):
        for element in ElementTree.parse(path).iter():
            assert element.tag.partition("}")[2] not in ("script", "image", "foreignObject", "a")
            assert not [name for name in element.attrib if name.startswith("on") or name.endswith("href")]


def test_the_terminal_prints_names_without_interpreting_them(hostile: tuple[LoadedRun, ...]) -> None:
    console = Console(file=io.StringIO(), width=300, force_terminal=True)
    terminal.show(hostile, figures(hostile), console)
    printed = console.file.getvalue()
    assert "[red]x[/red] [/b]" in printed
    assert "\x1b]" not in printed
    assert "\x1b[31mx" not in printed


SHOWN = {
    "inspect": lambda word: inspect.show(word, ROPE, word, {word: Scaling.identity(ROPE)}, 512, LAYERS),
    "plan": lambda word: plan_output.show(plan_output.Report([Cost("part", 512, 1, 0, {}, 1)], {}, ()), word, err=True),
}


@pytest.mark.parametrize("name", [*SHOWN, "progress"])
def test_markup_in_a_name_is_text(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    word = "a[red]b[/red][/c]"
    if name == "progress":
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        with progress.parts_bar(quiet=False) as tell:
            tell(word, 0, 2, word)
    else:
        SHOWN[name](word)
    printed = capsys.readouterr()
    assert word in printed.out + printed.err


def test_an_error_prints_no_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise LongRopeError("a file named \x1b]0;title\x07\x1b[2J")

    with pytest.raises(typer.Exit) as ended:
        guarded(command)()
    said = capsys.readouterr().err
    assert ended.value.exit_code == 2
    assert "error: a file named" in said
    assert "\x1b" not in said


MARKDOWN = (
    "<img src=x onerror=alert(1)>",
    "</td><script>alert(1)</script>",
    "[x](javascript:alert(1)) ![y](http://127.0.0.1/y)",
    "x\n\n# head\n\n- item\n",
    "`code` **bold** | cell | <!--",
)


def kinds(text: str) -> list[str]:
    """Return the Markdown elements of a text, with tables and HTML as the hub renders it."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    return [inner.type for token in tokens for inner in (token, *(token.children or ()))]


@pytest.mark.parametrize("word", MARKDOWN)
def test_names_add_nothing_to_a_model_card(word: str) -> None:
    def written(word: str) -> str:
        long = Scaling([1.0, 2.0, 3.0, 4.0], scheme=word, length=512, provenance={"note": word, word + "!": 1})
        return model_card(Extension.of(ROPE, long), "static", word, {})

    assert kinds(written(word)) == kinds(written("x"))
