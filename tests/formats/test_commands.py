"""The commands take what others wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from longrope.cli.main import app
from longrope.formats.load_factors import load_factors
from longrope.models.load import load_config
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import attention_factor, scheme

ROPE = Rope.of(load_config("tiny"))
FACTORS = [1 + i * i / 40 for i in range(32)]
CONFIG = {"model_type": "llama", "hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 256}
CONFIG |= {"rope_theta": 10000.0, "rope_scaling": {"type": "yarn", "factor": 8.0}}


def run(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.savetxt(tmp_path / "x.csv", np.tile(FACTORS, (6, 1)), delimiter=",")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def test_scale_gives_a_table_its_length_and_attention_factor(folder: Path) -> None:
    run("scale", "tiny", "--factors", folder / "x.csv", "-l", "2k", "--attention", "su", "-o", folder / "f.json")
    long = Scaling(FACTORS, attention_factor=attention_factor("su", ROPE, 2048), length=2048)
    assert load_factors(folder / "f.json") == Extension.of(ROPE, long)


def test_scale_of_a_config(folder: Path) -> None:
    made = Extension.from_json(run("scale", "tiny", "--factors", folder))
    yarn = scheme("yarn", ROPE, 2048)
    assert (made.rope, made.length, made.short.factors) == (ROPE, 2048, made.long.factors)
    np.testing.assert_allclose(made.long.factors, yarn.factors, rtol=1e-12)
    plain = Extension.from_json(run("scale", "tiny", "--factors", folder, "-l", "1k", "--attention", "none"))
    assert (plain.length, plain.short.attention_factor, plain.long.attention_factor) == (1024, 1.0, 1.0)


def test_inspect_shows_them(folder: Path) -> None:
    record = json.loads(run("inspect", "tiny", "--factors", folder / "x.csv", "--json"))
    assert record["factors"]["read"] == pytest.approx(FACTORS)
    record = json.loads(run("inspect", "tiny", "--factors", folder, "--json"))
    assert record["factors"]["long"] == record["factors"]["short"] == pytest.approx(record["factors"]["yarn"])
    assert record["attention_factors"]["long"] == pytest.approx(record["attention_factors"]["yarn"])
    assert "read" in run("inspect", "tiny", "--factors", folder / "x.csv")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["scale", "tiny"], "length is missing"),
        (["scale", "tiny", "--factors", "x.csv"], r"length is missing: x\.csv does not name it"),
        (["scale", "tiny", "--factors", "x.csv", "--scheme", "pi", "-l", "2k"], "exclude each other"),
        (["scale", "tiny", "--factors", "other.json"], r"other\.json: extension\.rope = .*dim=32"),
        (["inspect", "tiny", "--factors", "few.csv"], "belong to another model"),
    ],
)
def test_refusals(words: list[str], said: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "other.json").write_text(json.dumps({**CONFIG, "head_dim": 32}))
    (folder / "few.csv").write_text("1,2\n")
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert re.search(said, result.output)
