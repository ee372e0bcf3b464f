"""The documentation site: what is made from the code has not drifted, links lead somewhere, examples run."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import longrope

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
IN_REPOSITORY = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_cli_reference_is_what_help_says() -> None:
    written = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    assert written == script("docs_cli").page(), "run scripts/docs_cli.py"


def test_the_cli_reference_has_every_option_of_every_command() -> None:
    cli = script("docs_cli")
    page = cli.page()
    group = cli.typer.main.get_command(cli.app)
    for name, command in group.commands.items():
        section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        for option in (one for parameter in command.params for one in parameter.opts if one.startswith("-")):
            assert f"`{option}`" in section, (name, option)


def test_drift_is_told_with_its_remedy(tmp_path, monkeypatch, capsys) -> None:
    cli = script("docs_cli")
    monkeypatch.setattr(cli, "PAGE", tmp_path / "cli.md")
    monkeypatch.setattr(sys, "argv", ["docs_cli.py", "--check"])
    assert cli.main() == 1
    assert "Run scripts/docs_cli.py" in capsys.readouterr().err
    (tmp_path / "cli.md").write_text(cli.page(), encoding="utf-8")
    assert cli.main() == 0


def test_the_python_reference_has_every_name_once() -> None:
    text = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: longrope\.(\w+)$", text, re.MULTILINE)) == longrope.__all__


def test_every_page_is_in_the_navigation() -> None:
    named = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(named) == sorted(str(page.relative_to(DOCS)) for page in PAGES)


@pytest.mark.parametrize("page", IN_REPOSITORY, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere_on_disk_as_on_the_site(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing = [link for link in links if link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", IN_REPOSITORY, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_pages_exist(page: Path) -> None:
    """Every ``longrope COMMAND --option`` of a shell block is one that the command line knows."""
    cli = script("docs_cli")
    commands = cli.typer.main.get_command(cli.app).commands
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    for line in lines:
        words = re.sub(r'"[^"]*"|#.*', "", line).split()
        if words[:1] == ["longrope"] and words[1:2] and not words[1].startswith("-"):
            known = {
                one for parameter in commands[words[1]].params for one in (*parameter.opts, *parameter.secondary_opts)
            }
            assert {word for word in words[2:] if re.match(r"--?[a-z]", word)} <= known | {"--help"}, line


@pytest.mark.parametrize(
    ("page", "link", "path"),
    [
        ("scale.md", "../benchmarks/results/scale.json", "benchmarks/results/scale.json"),
        ("guides/gpu.md", "../../plans/tiny.toml", "plans/tiny.toml"),
        ("guides/gpu.md", "../scale.md", None),
        ("scale.md", "../../elsewhere", None),
    ],
)
def test_links_that_leave_the_docs_are_told_from_those_that_do_not(page: str, link: str, path: str | None) -> None:
    assert script("docs_hook").outside(page, link) == path


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mkdocs", path=str(Path(sys.executable).parent)) is None, reason="no mkdocs")
def test_the_site_builds_without_a_warning(tmp_path) -> None:
    mkdocs = Path(sys.executable).parent / "mkdocs"
    done = subprocess.run(
        [mkdocs, "build", "--strict", "--site-dir", tmp_path / "site"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "files" / "benchmarks" / "results" / "demo.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", ["guides/add-a-scheme.md", "guides/add-a-search-method.md", "guides/without-fine-tuning.md"]
)
def test_python_of_the_guides_runs_and_prints_what_they_say(page: str, tmp_path: Path) -> None:
    """All but the numbers, which differ in their last digits from one processor to the next."""
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    code, *_ = (block for language, block in blocks if language == "python")
    told = "".join([block for language, block in blocks if not language][:1])
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(re.findall("[a-z]+", done.stdout)) == sorted(re.findall("[a-z]+", told))
