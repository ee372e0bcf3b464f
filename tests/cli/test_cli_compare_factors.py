"""``longrope compare-factors``: any files that hold factors, a page, a picture, JSON."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from longrope.formats.load_factors import load_factors
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import scheme

ROPE = Rope(dim=16, base=10000.0, original_length=64)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A factors file and the table of another program."""
    (tmp_path / "yarn.json").write_text(Extension.of(ROPE, scheme("yarn", ROPE, 512)).to_json())
    table = ["layer 0", *(f"{1 + pair / 2:.6f}" for pair in range(8))]
    (tmp_path / "table.csv").write_text(",".join(table[1:]) + "\n")
    return tmp_path / "yarn.json", tmp_path / "table.csv"


def test_files_of_any_format_are_compared(cli, searched, files: tuple[Path, Path]) -> None:
    record = cli("compare-factors", *files, searched[0], "--json").json
    yarn, table, run = (str(path) for path in (*files, searched[0]))
    assert (record["length"], record["against"], list(record["factors"])) == (512, yarn, [yarn, table, run])
    assert record["factors"][table]["factors"] == pytest.approx([1 + pair / 2 for pair in range(8)])
    searched_factors = load_factors(searched[0])
    assert isinstance(searched_factors, Extension)
    assert record["factors"][run]["factors"] == list(searched_factors.long.factors)
    expected = 512 / (1.0 + 7 / 2) / ROPE.wavelengths[7] - 512 / 8 / ROPE.wavelengths[7]
    assert record["factors"][table]["turns"][7] == pytest.approx(expected)


def test_a_page_and_a_picture_are_written(cli, files: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("comparison.html", "comparison.svg"):
        result = cli("compare-factors", *files, "-o", tmp_path / name)
        assert result.code == 0, result.err
        assert result.out.endswith(f"Comparison: {tmp_path / name}\n")
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "<h1>Factors side by side</h1>" in page
    assert page.count("<figure ") == 3
    assert "Turns ahead of" in page
    assert ElementTree.parse(tmp_path / "comparison.svg").getroot().tag.endswith("svg")


def test_what_is_refused(cli, refused, model: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    yarn, table = files
    (tmp_path / "other.json").write_text(Scaling([2.0] * 8, length=256).to_json())
    refused("Name the model", "compare-factors", table, tmp_path / "other.json")
    assert cli("compare-factors", table, tmp_path / "other.json", "--model", model, "--json").json["length"] == 256
    refused("original_length = 128: .*Name the model", "compare-factors", *files, "--original-length", 128)
    refused("original_length = 'banana'", "compare-factors", *files, "--original-length", "banana")
    refused("a file is given twice", "compare-factors", yarn, yarn)
    refused("not a page or a picture", "compare-factors", *files, "-o", tmp_path / "a.pdf")
    refused("cannot read the factors file", "compare-factors", yarn, tmp_path / "nowhere.json")
