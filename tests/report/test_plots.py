from __future__ import annotations

import struct
import zlib
from xml.etree import ElementTree

import numpy as np
import pytest

from longrope.errors import LongRopeError
from longrope.evaluation.perplexity import perplexity
from longrope.report import plots, svg
from longrope.report.charts import bars
from longrope.report.looks import COLOURS, looks
from longrope.report.provenance import provenance
from longrope.report.svg import inline_svg, save
from longrope.rope import Rope
from longrope.schemes import scheme

ROPE = Rope(dim=32, base=1e4, original_length=256)


@pytest.fixture
def charts(monkeypatch):
    """The charts that are saved."""
    saved, kept = [], plots.save
    monkeypatch.setattr(plots, "save", lambda chart, path: (saved.append(chart), kept(chart, path))[1])
    return saved


def values_of(chart):
    """What the lines of a chart draw, by name."""
    whole = chart.to_dict()
    line = next(one for one in whole["layer"] if one["mark"]["type"] == "line")
    data = line.get("data", {}).get("values") or whole["datasets"][line["data"]["name"]]
    return {name: [(one["x"], one["y"]) for one in data if one["name"] == name] for name in {o["name"] for o in data}}


def test_factor_plot_draws_the_factors(tmp_path, charts):
    scalings = {name: scheme(name, ROPE, 2048) for name in ("yarn", "pi")}
    plots.plot_factors(ROPE, scalings, tmp_path / "new" / "factors.png")
    assert (tmp_path / "new" / "factors.png").read_bytes().startswith(b"\x89PNG")
    drawn = values_of(charts[0])
    assert drawn.keys() == scalings.keys()
    for name, scaling in scalings.items():
        assert drawn[name] == list(enumerate(scaling.factors))


def test_perplexity_plot_draws_the_table(tmp_path, charts):
    losses = np.random.default_rng(0).random((3, 511))
    table = {name: [perplexity(losses * i, length) for length in (256, 512)] for i, name in enumerate(("a", "b"), 1)}
    plots.plot_perplexity(table, 256, tmp_path / "perplexity.svg")
    assert ElementTree.parse(tmp_path / "perplexity.svg").getroot().tag.endswith("svg")
    drawn = values_of(charts[0])
    assert drawn == {name: [(cell.length, cell.perplexity) for cell in row] for name, row in table.items()}


def test_one_document_has_no_error_bar_and_a_loss_that_is_not_finite_no_point(tmp_path, charts):
    table = {"a": [perplexity(np.full((1, 511), value), 512) for value in (1.0, np.inf)]}
    plots.plot_perplexity(table, 256, tmp_path / "perplexity.png")
    assert values_of(charts[0]) == {"a": [(512, pytest.approx(np.e))]}


def chunks(png):
    """Of a PNG: the size and depth, and the pixels; every checksum right."""
    place, found = 8, {}
    while place < len(png):
        (size,) = struct.unpack(">I", png[place : place + 4])
        body = png[place + 4 : place + 8 + size]
        assert struct.unpack(">I", png[place + 8 + size : place + 12 + size]) == (zlib.crc32(body),)
        found[body[:4]] = found.get(body[:4], b"") + body[4:]
        place += 12 + size
    assert list(found)[-1] == b"IEND"
    return found[b"IHDR"], zlib.decompress(found[b"IDAT"])


def test_packing_keeps_the_pixels(tmp_path, monkeypatch):
    chart = bars([{"name": "a", "value": 1.0, "label": "1", "tip": "a"}], looks(["a"]), "x")
    save(chart, tmp_path / "packed.png")
    monkeypatch.setattr(svg, "_packed", lambda png: png)
    save(chart, tmp_path / "plain.png")
    packed, plain = ((tmp_path / name).read_bytes() for name in ("packed.png", "plain.png"))
    assert chunks(packed) == chunks(plain)
    assert len(packed) < len(plain) / 2
    assert len(list(tmp_path.iterdir())) == 2


def test_a_picture_of_another_format_is_refused(tmp_path):
    with pytest.raises(LongRopeError, match=r"a\.pdf: a picture ends in \.svg or \.png"):
        plots.plot_perplexity({}, 256, tmp_path / "a.pdf")


def test_every_data_mark_of_an_inline_picture_says_its_numbers():
    names = ["a", "<b> & 'c'"]
    records = [{"name": name, "value": 1.0, "label": "1", "tip": f"{name} is 1"} for name in names]
    root = ElementTree.fromstring(inline_svg(bars(records, looks(names), "x"), "key", "Title <1>"))
    assert root.get("aria-label") == "Title <1>"
    assert [one.text for one in root.iter("{http://www.w3.org/2000/svg}title")] == [f"{name} is 1" for name in names]
    assert all(one.get("id", "key-").startswith("key-") for one in root.iter())


@pytest.mark.parametrize(
    "names",
    [
        ("original", "pi", "ntk", "yarn", "heuristic", "searched"),
        ("original", "pi", "ntk", "yarn", "heuristic", "2k searched", "2k fine-tuned", "extended"),
        ("mine", "yours"),
        [f"{run}: {row}" for run in ("a", "b", "c") for row in ("original", "pi", "yarn", "extended", "mine")],
    ],
)
def test_every_curve_can_be_told_apart(names):
    styles = looks(names)
    assert list(styles) == list(names)
    assert len({(look.colour, look.shape, look.dash) for look in styles.values()}) == len(names)
    if len(names) <= len(COLOURS):
        assert len({look.colour for look in styles.values()}) == len({look.shape for look in styles.values()})
        assert len({look.colour for look in styles.values()}) == len(names)


def test_a_known_name_looks_the_same_in_every_plot():
    alone, among = looks(["yarn"]), looks(["a", "b", "yarn", *"cdefghijk"])
    assert alone["yarn"] == among["yarn"]
    assert looks(["b: yarn"])["b: yarn"].colour == alone["yarn"].colour


def test_provenance_names_versions_and_no_folder(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/longrope", "eval", "my model"])
    record = provenance()
    assert record["command"] == "longrope eval 'my model'"
    assert set(record["versions"]) == {"longrope", "torch", "transformers", "numpy", "python"}
