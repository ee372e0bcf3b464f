"""Check that this tree can be released: build sdist and wheel, install and use them in clean environments.

    make release-check     # a quarter of an hour; writes dist/

The wheel must contain only the package and stay below 10 MB, and the package page must have no relative link. Both
archives must work in an empty folder under this Python with the versions of ``constraints.txt``, and the wheel runs
``longrope demo``. The wheel must also work under the other Pythons that are installed (on the PATH or by pyenv), with
the newest versions of its dependencies. Where pip offers torch only with gigabytes of CUDA packages, these are checked
without torch unless ``--cuda`` is given (``PIP_EXTRA_INDEX_URL`` can name an index of CPU builds). The script prints
each command and exits with 1 at the first failure.
"""

from __future__ import annotations

import argparse
import email
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from email.message import Message
from pathlib import Path

from markdown_it import MarkdownIt
from packaging.requirements import Requirement
from release_uses import USES, USES_WITHOUT_TORCH

ROOT = Path(__file__).parent.parent
LIMIT = 10 * 10**6
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
PYTHONS = [version for version in ("3.10", "3.11", "3.12", "3.13") if version != HERE]
ADDRESS = re.compile(r'(?:href|src)="(?!https?:|#)([^"]*)"')


def main() -> None:
    """Build both archives, inspect them, and install and use them in every Python."""
    parser = argparse.ArgumentParser(description="Check that this tree can be released.")
    parser.add_argument("--cuda", action="store_true", help="install torch with CUDA's packages in the other Pythons")
    options = parser.parse_args()
    wheel, source = build()
    look_inside(wheel, source)
    with tempfile.TemporaryDirectory() as folder:
        tools = environment(Path(sys.executable), Path(folder) / "tools")
        call(tools, "-m", "pip", "install", "--quiet", "twine")
        call(tools, "-m", "twine", "check", "--strict", wheel, source)
        checked = {version: other(version, wheel, Path(folder), cuda=options.cuda) for version in PYTHONS}
        this(wheel, source, Path(folder))
    for version, outcome in {**checked, HERE: "works, with its demo, as does the sdist"}.items():
        print(f"Python {version}: {outcome}")
    print(f"can be released: {wheel.name}, {wheel.stat().st_size / 10**6:.1f} MB, and {source.name}")


def build() -> tuple[Path, Path]:
    """Build the wheel and the sdist of the version that the changelog describes."""
    version = re.search(r'__version__ = "(.+)"', (ROOT / "src/longrope/__init__.py").read_text())
    must(version is not None, "src/longrope/__init__.py names no version")
    assert version is not None
    must(f"\n## {version[1]}" in (ROOT / "CHANGELOG.md").read_text(), f"CHANGELOG.md has no section {version[1]}")
    citation = (ROOT / "CITATION.cff").read_text()
    must(f"\nversion: {version[1]}\n" in citation, f"CITATION.cff does not name version {version[1]}")
    dist = ROOT / "dist"
    call(Path(sys.executable), "-m", "build", "--outdir", dist, ROOT)
    return dist / f"longrope-{version[1]}-py3-none-any.whl", dist / f"longrope-{version[1]}.tar.gz"


def look_inside(wheel: Path, source: Path) -> None:
    """Check the contents and the size of the wheel, its package page, and the contents of the sdist."""
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
    tops = {name.split("/")[0] for name in names}
    must(tops == {"longrope", wheel.name.split("-py3")[0] + ".dist-info"}, f"the wheel holds {sorted(tops)}")
    for path in ("longrope/assets/tiny/model.safetensors", "longrope/report/page.html", "longrope/plans/demo.toml"):
        must(path in names, f"the wheel lacks {path}")
    must(any(name.endswith("licenses/LICENSE") for name in names), "the wheel lacks its licence")
    must(wheel.stat().st_size <= LIMIT, f"the wheel has {wheel.stat().st_size} bytes, more than {LIMIT}")
    relative = relative_links(metadata(wheel).get_payload())
    must(not relative, f"the package page has relative links: {relative}")
    with tarfile.open(source) as opened:
        inside = {name.split("/", 1)[-1] for name in opened.getnames()}
    needed = {"pyproject.toml", "README.md", "LICENSE", "CITATION.cff", "scripts/package_page.py", "tests/conftest.py"}
    must(needed <= inside, f"the sdist lacks {sorted(needed - inside)}")


def metadata(wheel: Path) -> Message:
    """Return the metadata of a wheel; its payload is the text of the package page."""
    with zipfile.ZipFile(wheel) as opened:
        (name,) = [name for name in opened.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_string(opened.read(name).decode())


def relative_links(markdown: object) -> list[str]:
    """Return the addresses of links and images of a page that lead to files beside it."""
    return ADDRESS.findall(MarkdownIt("commonmark").enable("table").render(str(markdown)))


def this(wheel: Path, source: Path, folder: Path) -> None:
    """Install and use both archives in this Python, with the versions of ``constraints.txt``."""
    python = environment(Path(sys.executable), folder / HERE)
    install = (python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt")
    call(*install, "torch")
    for archive, options in ((source, ()), (wheel, ("--no-deps", "--force-reinstall"))):
        call(*install, *options, archive)
        use(python, USES, folder / archive.name.replace(".", "-"))
    use(python, [("-m", "longrope", "demo")], folder / "demo")


def other(version: str, wheel: Path, folder: Path, *, cuda: bool) -> str:
    """Install and use the wheel in another Python; return what was checked."""
    found = interpreter(version)
    if found is None:
        return "not installed on this machine, so not checked"
    python = environment(found, folder / version)
    if cuda or not cuda_packages(python):
        call(python, "-m", "pip", "install", "--quiet", wheel)
        use(python, USES, folder / f"empty-{version}")
        return "works"
    needed = [Requirement(line) for line in metadata(wheel).get_all("Requires-Dist", ())]
    light = [
        str(line) for line in needed if "extra" not in str(line.marker) and line.name not in ("torch", "accelerate")
    ]
    call(python, "-m", "pip", "install", "--quiet", *light)
    call(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel)
    use(python, USES_WITHOUT_TORCH, folder / f"empty-{version}")
    return "works without torch, which pip offers here only with CUDA (--cuda installs it)"


def interpreter(version: str) -> Path | None:
    """Return a Python of this version that runs, from the PATH or pyenv, or None."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for python in (shutil.which(f"python{version}"), *sorted(pyenv.glob(f"versions/{version}.*/bin/python"))):
        if python and subprocess.run([python, "-c", "import ensurepip"], capture_output=True).returncode == 0:
            return Path(python)
    return None


def cuda_packages(python: Path) -> list[str]:
    """Return the CUDA packages that pip would install beside torch."""
    command = [str(python), "-m", "pip", "install", "--quiet", "--dry-run", "--report", "-", "torch"]
    done = subprocess.run(command, capture_output=True, text=True)
    must(done.returncode == 0, f"pip does not find torch\n{done.stderr}")
    names = [package["metadata"]["name"] for package in json.loads(done.stdout)["install"]]
    return [name for name in names if name.startswith("nvidia-")]


def environment(python: Path, folder: Path) -> Path:
    """Make a clean virtual environment and return its Python."""
    call(python, "-m", "venv", folder)
    return folder / "bin" / "python"


def use(python: Path, uses: Sequence[Sequence[str]], empty: Path) -> None:
    """Use the installed package in an empty folder."""
    empty.mkdir()
    for words in uses:
        call(python, *words, cwd=empty)


def call(*words: str | Path, cwd: Path = ROOT) -> None:
    """Run a command and show its output if it fails."""
    line = " ".join(Path(word).name if isinstance(word, Path) else " ".join(word.split()) for word in words)
    print(f"$ {line[:120]}", flush=True)
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(word) for word in words], cwd=cwd, env=clean, capture_output=True, text=True)
    must(done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")


def must(condition: bool, problem: str) -> None:
    """Exit with the problem unless the condition is true."""
    if not condition:
        sys.exit(f"cannot be released: {problem}")


if __name__ == "__main__":
    main()
