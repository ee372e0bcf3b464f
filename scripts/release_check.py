"""Check that this tree can be released: build sdist and wheel, and install and use each in a clean environment.

    make release-check     # some minutes; writes dist/

The wheel must contain only the package and stay below 10 MB. Both must install into a clean environment and work in an
empty folder. The script prints each command and exits with 1 at the first failure.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIMIT = 10 * 10**6
USES = (
    ("--version",),
    ("doctor",),
    ("inspect", "tiny", "--json"),
    ("scale", "tiny", "--scheme", "yarn", "--length", "2k", "-o", "factors.json"),
    ("generate", "tiny", "def main():", "--factors", "factors.json", "--max-new-tokens", "4"),
)
NAMES = "import longrope; print(len([getattr(longrope, name) for name in longrope.__all__]), 'public names')"


def main() -> None:
    """Build, inspect, install and use both archives."""
    version = re.search(r'__version__ = "(.+)"', (ROOT / "src/longrope/__init__.py").read_text())
    must(version is not None, "src/longrope/__init__.py names no version")
    assert version is not None
    must(f"\n## {version[1]}" in (ROOT / "CHANGELOG.md").read_text(), f"CHANGELOG.md has no section {version[1]}")
    dist = ROOT / "dist"
    call(sys.executable, "-m", "build", "--outdir", dist, ROOT)
    wheel = dist / f"longrope-{version[1]}-py3-none-any.whl"
    source = dist / f"longrope-{version[1]}.tar.gz"
    look_inside(wheel, source)
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder) / "venv"
        venv.create(environment, with_pip=True)
        python = environment / "bin" / "python"
        install = (python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt")
        call(*install, "torch")
        for archive, options in ((wheel, ()), (source, ("--no-deps", "--force-reinstall"))):
            call(*install, *options, archive)
            use(python, Path(folder) / archive.name.replace(".", "-"))
    print(f"can be released: {wheel.name}, {wheel.stat().st_size / 10**6:.1f} MB, and {source.name}")


def look_inside(wheel: Path, source: Path) -> None:
    """Check the contents and the size of the wheel and the contents of the sdist."""
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
    tops = {name.split("/")[0] for name in names}
    must(tops == {"longrope", wheel.name.split("-py3")[0] + ".dist-info"}, f"the wheel holds {sorted(tops)}")
    for path in ("longrope/assets/tiny/model.safetensors", "longrope/report/page.html", "longrope/plans/demo.toml"):
        must(path in names, f"the wheel lacks {path}")
    must(any(name.endswith("licenses/LICENSE") for name in names), "the wheel lacks its licence")
    must(wheel.stat().st_size <= LIMIT, f"the wheel has {wheel.stat().st_size} bytes, more than {LIMIT}")
    with tarfile.open(source) as opened:
        inside = {name.split("/", 1)[-1] for name in opened.getnames()}
    must({"pyproject.toml", "README.md", "LICENSE", "tests/conftest.py"} <= inside, "the sdist lacks files")


def use(python: Path, empty: Path) -> None:
    """Use the installed package in an empty folder."""
    empty.mkdir()
    call(python, "-c", NAMES, cwd=empty)
    for words in USES:
        call(python, "-m", "longrope", *words, cwd=empty)


def call(*words: str | Path, cwd: Path = ROOT) -> None:
    """Run a command and show its output if it fails."""
    line = " ".join(Path(word).name if isinstance(word, Path) else word for word in words)
    print(f"$ {line}", flush=True)
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True)
    must(done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")


def must(condition: bool, problem: str) -> None:
    """Exit with the problem unless the condition is true."""
    if not condition:
        sys.exit(f"cannot be released: {problem}")


if __name__ == "__main__":
    main()
