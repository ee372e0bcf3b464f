"""Factors of one model side by side, and how many turns they are apart."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import longrope as lr
from longrope.errors import LongRopeError
from longrope.formats.load_factors import load_factors
from longrope.report.compare_factors import compared, comparison_figures, distances_from_first
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import scheme

ROPE = Rope(dim=64, base=1e4, original_length=256)
YARN = scheme("yarn", ROPE, 2048)
PLAIN = replace(Scaling.identity(ROPE), length=2048)


def test_turns_are_those_of_two_tokens_that_are_l_apart() -> None:
    """PI at 8x turns the fastest pair, of 2π tokens a turn, by 7/8 of 2,048 / 2π turns less."""
    comparison = compared({"plain": PLAIN, "pi": scheme("pi", ROPE, 2048)}, rope=ROPE)
    assert comparison.length == 2048
    assert comparison.turns("plain").tolist() == [0.0] * 32
    assert comparison.turns("pi")[0] == pytest.approx(-7 / 8 * 2048 / (2 * math.pi))
    assert comparison.turns("pi")[31] == pytest.approx(-7 / 8 * 2048 / ROPE.wavelengths[31])
    half = compared({"plain": PLAIN, "pi": scheme("pi", ROPE, 2048)}, rope=ROPE, length=1024)
    assert half.turns("pi") == pytest.approx(comparison.turns("pi") / 2)
    assert distances_from_first(comparison)["pi"]["rms_log"] == pytest.approx(math.log(8))


def test_a_yarn_in_a_config_is_the_formula(tmp_path: Path) -> None:
    """The frequencies of transformers are the reference."""
    rope_parameters = {"rope_type": "yarn", "factor": 8.0, "rope_theta": 1e4, "original_max_position_embeddings": 256}
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 2048}
    config = LlamaConfig(**sizes, rope_parameters=rope_parameters)
    config.save_pretrained(tmp_path)
    comparison = compared({"formula": Extension.of(ROPE, YARN), "config": load_factors(tmp_path)})
    frequencies, attention = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
    assert comparison.scalings["config"].inv_freq(ROPE) == pytest.approx(frequencies.numpy(), rel=1e-6)
    assert comparison.scalings["config"].attention_factor == pytest.approx(attention)
    assert abs(comparison.turns("config")).max() < 1e-3
    assert list(comparison.scalings) == ["formula", "config"]  # a YaRN has one set for all lengths


def test_a_checkpoint_with_factors_of_its_own_is_compared_with_the_products() -> None:
    """A second extension's factors multiply those of the first; both are relative to plain RoPE here."""
    first = scheme("yarn", ROPE, 1024)
    second = Scaling([2.0] * 32, length=2048)
    carried = Extension.of(first.rope_after(ROPE), second)
    both = compared({"first": Extension.of(ROPE, first), "second": carried})
    assert both.scalings["second"].factors == pytest.approx([2 * factor for factor in first.factors])
    alone = compared({"first": Extension.of(ROPE, first), "second": second}, rope=first.rope_after(ROPE))
    assert alone.scalings["second"].factors == pytest.approx([2 * factor for factor in first.factors])


def test_the_figures_show_every_set(tmp_path: Path) -> None:
    extension = Extension(ROPE, scheme("pi", ROPE, 256).times([1.5] * 32), YARN, 2048)
    summary, factors, turns = comparison_figures(compared({"a": Extension.of(ROPE, PLAIN), "b": extension}))
    names = ["a", "b", "b (short)"]
    assert [row[0] for row in summary.rows] == names
    assert [column.head for column in factors.columns] == ["pair", "wavelength", *names]
    assert [column.head for column in turns.columns] == ["pair", *names[1:]]
    farthest = max(range(32), key=lambda pair: abs(turns.rows[pair][2]))
    assert summary.rows[2][3:5] == [pytest.approx(abs(turns.rows[farthest][2])), str(farthest)]
    assert factors.rows[20][2:] == [1.0, YARN.factors[20], 1.5]
    assert summary.rows[0][3:] == [0.0, "–", 0.0, 0.0]


def test_what_cannot_be_compared_is_refused() -> None:
    extension, other = Extension.of(ROPE, YARN), Rope(dim=64, base=5e5, original_length=256)
    refusals = [
        ({"a": YARN, "b": PLAIN}, "these files hold no model's geometry. Name the model"),
        ({"a": extension}, "one set alone. Give two files or more"),
        (
            {"a": extension, "b": Extension.of(other, YARN)},
            "b: factors for dim 64 and rope_theta 500000, but the others",
        ),
        ({"a": extension, "b": Scaling([1.0, 2.0], length=2048)}, "b: factors: 2 values for a rope of dim 64"),
    ]
    for sources, message in refusals:
        with pytest.raises(LongRopeError, match=message):
            compared(sources)
    with pytest.raises(LongRopeError, match="these files name no length"):
        compared({"a": lr.Scaling([1.0] * 32), "b": lr.Scaling([2.0] * 32)}, rope=ROPE)
