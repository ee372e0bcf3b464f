from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from longrope.evaluation.perplexity import perplexity
from longrope.report import plots
from longrope.report.provenance import provenance
from longrope.rope import Rope
from longrope.schemes import scheme

ROPE = Rope(dim=32, base=1e4, original_length=256)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    saved, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (saved.append(self), save(self, *a, **k))[1])
    return saved


def lines_of(figure):
    return {line.get_label(): line.get_xydata() for line in figure.axes[0].lines if line.get_label()[0] != "_"}


def test_factor_plot_draws_the_factors(tmp_path, figures):
    scalings = {name: scheme(name, ROPE, 2048) for name in ("yarn", "pi")}
    plots.plot_factors(ROPE, scalings, tmp_path / "new" / "factors.png")
    assert (tmp_path / "new" / "factors.png").read_bytes().startswith(b"\x89PNG")
    drawn = lines_of(figures[0])
    assert drawn.keys() == scalings.keys()
    for name, scaling in scalings.items():
        np.testing.assert_array_equal(drawn[name], list(enumerate(scaling.factors)))


def test_perplexity_plot_draws_the_table(tmp_path, figures):
    losses = np.random.default_rng(0).random((3, 511))
    table = {name: [perplexity(losses * i, length) for length in (256, 512)] for i, name in enumerate(("a", "b"), 1)}
    plots.plot_perplexity(table, 256, tmp_path / "perplexity.svg")
    text = (tmp_path / "perplexity.svg").read_text()
    assert text.lstrip().startswith("<?xml")
    containers = figures[0].axes[0].containers
    assert [container.get_label() for container in containers] == ["a", "b"]
    for container, row in zip(containers, table.values(), strict=True):
        assert container.lines[0].get_ydata().tolist() == pytest.approx([cell.perplexity for cell in row])


@pytest.mark.parametrize(
    "names",
    [
        ("original", "pi", "ntk", "yarn", "heuristic", "searched"),
        ("original", "pi", "ntk", "yarn", "heuristic", "2k searched", "2k fine-tuned", "extended"),
        ("mine", "yours"),
    ],
)
def test_every_curve_can_be_told_apart(names):
    styles = plots._styles(names)
    assert len({style["color"] for style in styles.values()}) == len(names)
    assert len({style["marker"] for style in styles.values()}) == len(names)


def test_a_known_name_looks_the_same_in_every_plot():
    alone, among = plots._styles(["yarn"]), plots._styles(["a", "b", "yarn", *"cdefghijk"])
    assert alone["yarn"] == among["yarn"]


def test_provenance_names_versions_and_no_folder(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/longrope", "eval", "my model"])
    record = provenance()
    assert record["command"] == "longrope eval 'my model'"
    assert set(record["versions"]) == {"longrope", "torch", "transformers", "numpy", "python"}
