"""The documentation site: generated pages are up to date, links lead to files, guides run."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from repository_scripts import script
from typer.testing import CliRunner

import longrope
from longrope.cli.main import app
from longrope.stages.plan import parse_plan

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
IN_REPOSITORY = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]


def test_the_cli_reference_is_what_help_says() -> None:
    written = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    assert written == script("docs_cli").page(), "run scripts/docs_cli.py"


def test_the_cli_reference_has_every_option_of_every_command() -> None:
    cli = script("docs_cli")
    page = cli.page()
    group = cli.typer.main.get_command(cli.app)
    for name, command in group.commands.items():
        section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        names = [name for parameter in command.params for name in parameter.opts]
        for option in (name for name in names if name.startswith("-")):
            assert f"`{option}`" in section, (name, option)


def test_drift_is_reported_with_its_remedy(tmp_path, monkeypatch, capsys) -> None:
    cli = script("docs_cli")
    monkeypatch.setattr(cli, "PAGE", tmp_path / "cli.md")
    monkeypatch.setattr(sys, "argv", ["docs_cli.py", "--check"])
    assert cli.main() == 1
    assert "Run scripts/docs_cli.py" in capsys.readouterr().err
    (tmp_path / "cli.md").write_text(cli.page(), encoding="utf-8")
    assert cli.main() == 0


def test_the_schema_of_results_is_what_the_types_give() -> None:
    written = (DOCS / "reference" / "results.schema.json").read_text(encoding="utf-8")
    assert json.loads(written) == script("results_schema").schema(), "run scripts/results_schema.py"


def test_the_reference_of_plans_is_what_the_types_give() -> None:
    written = (DOCS / "reference" / "plan.md").read_text(encoding="utf-8")
    assert written == script("docs_plan").page(), "run scripts/docs_plan.py"


def test_the_python_reference_has_every_name_once() -> None:
    text = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: longrope\.(\w+)$", text, re.MULTILINE)) == longrope.__all__


def test_every_page_is_in_the_navigation() -> None:
    named = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(named) == sorted(str(page.relative_to(DOCS)) for page in PAGES)


@pytest.mark.parametrize("page", IN_REPOSITORY, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing = [link for link in links if link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", IN_REPOSITORY, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_pages_exist(page: Path) -> None:
    """Check that the command line has every ``longrope COMMAND --option`` of a shell block or a sentence."""
    cli = script("docs_cli")
    commands = cli.typer.main.get_command(cli.app).commands
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += [line.replace("\n", " ") for line in re.findall(r"`(longrope [a-z][^`]+)`", text)]
    for line in lines:
        words = re.sub(r'"[^"]*"|#.*', "", line).split()
        if words[:1] == ["longrope"] and words[1:2] and not words[1].startswith("-"):
            parameters = commands[words[1]].params
            known = {name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)}
            assert {word for word in words[2:] if re.match(r"--?[a-z]", word)} <= known | {"--help"}, line


@pytest.mark.parametrize("page", IN_REPOSITORY, ids=lambda page: str(page.relative_to(ROOT)))
def test_targets_and_scripts_in_pages_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {*re.findall(r"(?:`|^)make ([a-z0-9-]+)", text, re.MULTILINE)} <= {*targets}
    scripts = re.findall(r"\b(?:benchmarks|scripts|tests|plans)/[\w/-]+\.(?:py|toml|sh)\b", text)
    assert not [name for name in scripts if not (ROOT / name).exists()]


@pytest.mark.parametrize(
    ("page", "link", "path"),
    [
        ("scale.md", "../benchmarks/results/scale.json", "benchmarks/results/scale.json"),
        ("guides/gpu.md", "../../plans/tiny.toml", "plans/tiny.toml"),
        ("guides/gpu.md", "../scale.md", None),
        ("scale.md", "../../elsewhere", None),
    ],
)
def test_the_hook_separates_links_that_leave_the_docs(page: str, link: str, path: str | None) -> None:
    assert script("docs_hook").outside(page, link) == path


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mkdocs", path=str(Path(sys.executable).parent)) is None, reason="no mkdocs")
def test_the_site_builds_without_a_warning(tmp_path) -> None:
    mkdocs = Path(sys.executable).parent / "mkdocs"
    completed = subprocess.run(
        [mkdocs, "build", "--strict", "--site-dir", tmp_path / "site"], cwd=ROOT, capture_output=True, text=True
    )
    assert completed.returncode == 0, completed.stderr
    assert (tmp_path / "site" / "files" / "benchmarks" / "results" / "demo.json").exists()


GUIDES = [
    ROOT / "README.md",
    *sorted(DOCS.glob("guides/add-*.md")),
    DOCS / "guides/without-fine-tuning.md",
    DOCS / "reading.md",
]
PLACEHOLDERS = {"MODEL", "my-texts/"}


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return (language, content) of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def run_guide(page: Path, folder: Path) -> str:
    """Follow a guide in an empty folder, and return what its programs and commands print.

    A Python block that begins with ``# name.py`` is written to that file. If a command of the guide runs the file, the
    block itself does not run. Shell blocks with a placeholder are for the reader's own model and do not run.
    """
    commands = "".join(block for language, block in blocks(page) if language == "sh")
    printed = []
    for language, block in blocks(page):
        lines = []
        if language == "python":
            name = (re.match(r"# (\w+\.py)\n", block) or ["", "guide.py"])[1]
            (folder / name).write_text(block, encoding="utf-8")
            lines = [] if f"python {name} " in commands else [f"python {name}"]
        elif language == "sh" and not PLACEHOLDERS & set(block.split()):
            lines = block.replace("\\\n", " ").splitlines()
        printed += [run_line(line, folder) for line in lines]
    return "".join(printed)


def run_line(line: str, folder: Path) -> str:
    """Run a line if it is a command of Python or longrope, and return what it prints."""
    words = shlex.split(line, comments=True)
    programs = {"python": [sys.executable], "longrope": [sys.executable, "-m", "longrope"]}
    if not words or words[0] not in programs:
        return ""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [*programs[words[0]], *words[1:]]
    completed = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert completed.returncode == 0, f"{line}\n{completed.stderr}"
    return completed.stdout


@pytest.mark.slow
@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_a_guide_runs_and_prints_what_it_says(page: Path, tmp_path: Path) -> None:
    """Compare words and not numbers, whose last digits differ from one processor to the next."""
    printed = set(re.findall("[a-z_]+", run_guide(page, tmp_path)))
    outputs = "".join(block for language, block in blocks(page) if not language)
    assert not set(re.findall("[a-z_]+", outputs)) - printed


def sessions(page: Path) -> list[str]:
    """Return the blocks of a page with commands after ``$`` and their output, without those that need a server."""
    contents = [content for language, content in blocks(page) if not language]
    return [content for content in contents if content.startswith("$ longrope ") and "http" not in content]


def shapes(text: str) -> list[str]:
    """Return the lines of a text without blanks at their ends, and with one sign for every number."""
    return [re.sub(r"[\d.,]*\d", "#", line).strip() for line in text.splitlines()]


@pytest.mark.parametrize("page", [page for page in PAGES if sessions(page)], ids=lambda page: page.stem)
def test_a_session_prints_what_the_page_shows(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare all but numbers, whose last digits differ from one processor to the next."""
    monkeypatch.chdir(tmp_path)
    for session in sessions(page):
        lines = session.splitlines()
        commands = [shlex.split(line)[2:] for line in lines if line.startswith("$ ")]
        printed = "".join(CliRunner(env={"COLUMNS": "130"}).invoke(app, command).output for command in commands)
        missing = {*shapes("\n".join(line for line in lines if not line.startswith("$ ")))} - {*shapes(printed)}
        assert not missing, printed


def plans(page: Path) -> list[str]:
    """Return the blocks of a page that are whole plans."""
    return [content for language, content in blocks(page) if language == "toml" and content.startswith("version")]


@pytest.mark.parametrize("page", [page for page in PAGES if plans(page)], ids=lambda page: page.stem)
def test_a_plan_in_a_page_is_one(page: Path) -> None:
    for text in plans(page):
        assert parse_plan(text).stages
