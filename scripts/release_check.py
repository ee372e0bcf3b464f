"""Is this tree fit to be released? Builds sdist and wheel and uses each as a stranger would.

    make release-check     # some minutes; writes dist/

The wheel must hold the package alone and stay below 10 MB; both must install into a clean environment and work in an
empty folder. Prints what it did; exits with 1 at the first thing that is not so.
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
    ("generate", "tiny", "def main():", "--extension", "factors.json", "--max-new-tokens", "4"),
)
NAMES = "import longrope; print(len([getattr(longrope, name) for name in longrope.__all__]), 'public names')"


def main() -> None:
    """Build, look inside, install, use."""
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
        place = Path(folder) / "venv"
        venv.create(place, with_pip=True)
        python, constraints = place / "bin" / "python", ROOT / "constraints.txt"
        install = (python, "-m", "pip", "install", "--quiet", "-c", constraints)
        call(*install, "torch")
        for given, options in ((wheel, ()), (source, ("--no-deps", "--force-reinstall"))):
            call(*install, *options, given)
            use(python, Path(folder) / given.name.replace(".", "-"))
    print(f"fit to be released: {wheel.name}, {wheel.stat().st_size / 10**6:.1f} MB, and {source.name}")


def look_inside(wheel: Path, source: Path) -> None:
    """What they hold, and what they must not."""
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
    tops = {name.split("/")[0] for name in names}
    must(tops == {"longrope", wheel.name.split("-py3")[0] + ".dist-info"}, f"the wheel holds {sorted(tops)}")
    for wanted in ("longrope/assets/tiny/model.safetensors", "longrope/report/page.html", "longrope/plans/demo.toml"):
        must(wanted in names, f"the wheel lacks {wanted}")
    must(any(name.endswith("licenses/LICENSE") for name in names), "the wheel lacks its licence")
    must(wheel.stat().st_size <= LIMIT, f"the wheel has {wheel.stat().st_size} bytes, more than {LIMIT}")
    with tarfile.open(source) as opened:
        inside = {name.split("/", 1)[-1] for name in opened.getnames()}
    must({"pyproject.toml", "README.md", "LICENSE", "tests/conftest.py"} <= inside, "the sdist lacks files")


def use(python: Path, empty: Path) -> None:
    """The installed package in an empty folder."""
    empty.mkdir()
    call(python, "-c", NAMES, cwd=empty)
    for words in USES:
        call(python, "-m", "longrope", *words, cwd=empty)


def call(*words: str | Path, cwd: Path = ROOT) -> None:
    """Run a command; its output is shown where it fails."""
    line = " ".join(Path(word).name if isinstance(word, Path) else word for word in words)
    print(f"$ {line}", flush=True)
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True)
    must(done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")


def must(true: bool, otherwise: str) -> None:
    """End with what is wrong, unless it is true."""
    if not true:
        sys.exit(f"not fit to be released: {otherwise}")


if __name__ == "__main__":
    main()
