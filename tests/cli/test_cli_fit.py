"""``longrope fit``: the nearest YaRN of a factors file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import scheme, yarn
from longrope.yarn_fit import distances, fit_yarn

TINY = Rope(dim=64, base=10000.0, original_length=256)


def write(path: Path, scaling: Scaling, rope: Rope | None = TINY) -> Path:
    path.write_text(Extension.of(rope, scaling).to_json() if rope else scaling.to_json())
    return path


def test_the_parameters_give_the_file_that_is_written(cli, tmp_path: Path) -> None:
    source = scheme("ramp", TINY, 2048)
    factors, output = write(tmp_path / "ramp.json", source), tmp_path / "yarn.json"
    record = cli("fit", factors, "-o", output, "--json").json
    written = Extension.from_json(output.read_text())
    parameters = {name: record[name] for name in ("factor", "beta_fast", "beta_slow")}
    assert written.long.factors == yarn(TINY, 2048, **parameters).factors
    assert written.long.attention_factor == record["attention_factor"] == source.attention_factor
    assert (written.rope, written.length, written.short.is_identity) == (TINY, 2048, True)
    assert record["distance"] == distances(TINY, source, fit_yarn(TINY, source)[0])
    assert record["distance"]["rms_log"] < record["plain_yarn_distance"]["rms_log"] / 4
    text = cli("fit", output)
    assert f"factor {record['factor']:.6g}" in " ".join(text.out.split())
    assert "Warning" not in text.out


def test_a_fit_that_is_worse_than_plain_yarn_is_said(cli, tmp_path: Path) -> None:
    result = cli("fit", write(tmp_path / "pro.json", scheme("mrrope_pro", TINY, 2048)))
    assert result.code == 0
    assert "Warning: plain YaRN is nearer by the root mean square of log λ" in result.out


def test_a_table_without_geometry_takes_that_of_a_model(cli, tmp_path: Path) -> None:
    factors = tmp_path / "table.csv"
    scaling = scheme("yarn", TINY, 2048)
    factors.write_text("".join(f"{factor!r}\n" for factor in scaling.factors))
    record = cli("fit", factors, "--model", "tiny", "-l", "2k", "--json").json
    assert (record["beta_fast"], record["beta_slow"]) == (32, 1)
    assert record["factor"] == pytest.approx(8)
    assert np.isclose(record["distance"]["largest_log"], 0, atol=1e-9)


@pytest.mark.parametrize(
    ("scaling", "rope", "options", "message"),
    [
        (Scaling([2.0] * 32, length=2048), None, (), "without a model's geometry. Name the model with --model."),
        (Scaling([2.0] * 32), None, ("--model", "tiny"), "Give the target length with -l"),
        (Scaling([2.0] * 8, length=2048), None, ("--model", "tiny"), "belong to another model"),
        (Scaling([2.0] * 32, length=2048), TINY, ("--original-length", "128"), "Name the model with --model."),
        (Scaling([2.0] * 32, length=2048), TINY, ("--original-length", "banana"), "original_length = 'banana'"),
        (Scaling([2.0] * 32, length=2048), TINY, ("-l", "128"), "length = 128 is below"),
        (Scaling([2.0] * 32, length=2048), TINY, ("-l", "none"), "none"),
        (Scaling([2.0] * 32, length=2048, start_tokens=4), TINY, (), "a YaRN has none"),
        (Scaling([2.0] * 32, length=4096), scheme("pi", TINY, 512).rope_after(TINY), (), "cannot express products"),
    ],
)
def test_bad_input_ends_in_one_line(cli, tmp_path: Path, scaling, rope, options, message: str) -> None:
    result = cli("fit", write(tmp_path / "factors.json", scaling, rope), *options)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_an_existing_output_is_kept(cli, tmp_path: Path) -> None:
    factors = write(tmp_path / "factors.json", scheme("ramp", TINY, 2048))
    result = cli("fit", factors, "-o", factors)
    assert result.code == 2
    assert "exists" in result.err
    assert cli("fit", factors, "-o", factors, "--overwrite").code == 0
    assert json.loads(factors.read_text())["long"]["scheme"] == "yarn"
