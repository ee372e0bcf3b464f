"""``longrope plan``: a plan that fits, what it costs, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longrope.cli import plan_output as printed
from longrope.cost import bfloat16_speed
from longrope.stages.plan import load_plan, parse_plan, shipped_plans

QUICK = ("--no-measure", "--device", "cpu")


def test_a_plan_on_standard_output(cli, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    result = cli("plan", model, "--to", "8k", *QUICK, "--data", "texts", "--original-tokens", "1b")
    assert result.code == 0, result.err
    plan = parse_plan(result.out)
    assert [stage.length for stage in plan.stages] == [4096, 8192]  # 64x, then 2x
    assert (plan.data.source, plan.original_tokens) == ("texts", 1e9)
    assert plan.stages[0].finetune is not None
    assert plan.stages[0].finetune.token_count(4096) == pytest.approx(5e7, rel=0.02)
    assert plan.stages[1].finetune is not None
    assert plan.stages[1].finetune.windows == "sparse"
    assert plan.recovery is not None
    assert result.out.startswith("# longrope plan ")
    assert f"# longrope extend {model} THIS_FILE\n" in result.out
    for said in ("stage 1", "stage 2", "recovery", "evaluation", "8,192", "peak memory", "64 to 8,192 tokens on cpu"):
        assert said in result.err
    assert "Advice" not in result.err


def test_a_plan_in_a_file(cli, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "plan.toml"
    result = cli("plan", model, "--to", "512", *QUICK, "-o", path)
    assert result.code == 0, result.err
    assert "stage 1" in result.out
    plan = load_plan(str(path))
    assert f"# longrope extend {model} {path}\n" in path.read_text()
    assert [stage.length for stage in plan.stages] == [512]
    assert plan.stages[0].finetune is not None
    assert cli("plan", model, "--to", "1k", *QUICK, "-o", path).code == 2
    assert load_plan(str(path)) == plan
    assert cli("plan", model, "--to", "1k", *QUICK, "-o", path, "--overwrite").code == 0
    assert load_plan(str(path)).length == 1024


def test_json(cli, model: Path) -> None:
    record = cli("plan", model, "--to", "512", *QUICK, "--json").json
    assert [part["part"] for part in record["costs"]] == ["stage 1", "recovery", "evaluation"]
    first = record["costs"][0]
    assert (first["length"], first["seconds"]) == (512, None)
    assert min(first["search_tokens"], first["train_tokens"], first["flops"], first["memory_bytes"]) > 0
    assert record["advice"] == []
    assert record["plan"]["stages"][0]["length"] == 512


def test_the_dtype_of_the_search(cli, model: Path) -> None:
    command = ("plan", model, "--to", "16k", *QUICK, "--json")
    plain, half = (cli(*command, "--dtype", dtype).json["costs"] for dtype in ("auto", "bfloat16"))
    assert (plain[2]["part"], plain[2]["train_tokens"]) == ("recovery", 0)
    assert half[2]["memory_bytes"] < plain[2]["memory_bytes"]
    assert half[0]["flops"] == plain[0]["flops"]


@pytest.mark.parametrize(("ratio", "dtype"), [(1.0, "bfloat16"), (3.0, "float32")])
def test_the_dtype_of_fine_tuning_is_one_that_the_cpu_is_fast_in(
    cli, model: Path, monkeypatch: pytest.MonkeyPatch, ratio: float, dtype: str
) -> None:
    monkeypatch.setattr(bfloat16_speed, "bfloat16_slowdown", lambda: ratio)
    plan = parse_plan(cli("plan", model, "--to", "512", "--device", "cpu", "--no-measure").out)
    assert plan.stages[0].finetune is not None
    assert plan.stages[0].finetune.dtype == dtype


def test_times_of_this_device(cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from longrope.cost import timing

    monkeypatch.setattr(timing, "ENOUGH", 1e-4)
    record = cli("plan", model, "--to", "512", "--device", "cpu", "--json").json
    assert set(record["flops_per_second"]) == {"bfloat16", "float32"}  # mixed in training; the checkpoint's
    assert all(part["seconds"] > 0 for part in record["costs"])
    shown = cli("plan", model, "--to", "512", "--device", "cpu", "-o", tmp_path / "plan.toml")
    assert shown.out.count("FLOP/s in attention") == 2


@pytest.mark.parametrize("name", ["tiny", "tiny.toml"])
def test_costs_of_a_plan_there_is(cli, name: str) -> None:
    result = cli("plan", "tiny", "--plan", name, *QUICK)
    assert result.code == 0, result.err
    assert "stage 1" in result.out
    assert "[[stages]]" not in result.out
    record = cli("plan", "tiny", "--plan", shipped_plans()["tiny"], *QUICK, "--json").json
    assert [part["part"] for part in record["costs"]][-2:] == ["recovery", "evaluation"]


def test_advice_is_printed(cli, tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text("version = 1\n[[stages]]\nlength = '16k'\nfactors = 'yarn'\n")
    result = cli("plan", "tiny", "--plan", tmp_path / "plan.toml", *QUICK)
    assert result.code == 0
    assert result.out.count("Advice: ") == 3
    record = json.loads(cli("plan", "tiny", "--plan", tmp_path / "plan.toml", *QUICK, "--json").out)
    assert len(record["advice"]) == 3


def test_a_device_that_is_too_small(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from longrope.models import device_memory

    monkeypatch.setattr(device_memory, "device_memory", lambda _: 2**20)
    advice = cli("plan", "tiny", "--plan", "tiny", *QUICK, "--json").json["advice"]
    small = [line for line in advice if "where cpu has 1.05 MB" in line]
    assert len(small) == 4
    assert "stage 1: needs about" in small[0]


@pytest.mark.parametrize(
    ("options", "source", "train"),
    [
        ((), None, "stdlib"),  # `tiny` was trained on the rest of it, and is tested on the unseen part
        (("--train", "more"), None, "more"),
        (("--data", "texts"), "texts", None),
        (("--data", "texts", "--train", "more"), "texts", "more"),
    ],
)
def test_the_documents_to_train_on(cli, options: tuple[str, ...], source: str | None, train: str | None) -> None:
    data = parse_plan(cli("plan", "tiny", "--to", "512", *QUICK, *options).out).data
    assert (data.source, data.train) == (source, train)


BAD = {
    "no target": ((), "to is missing: give --to LENGTH"),
    "both": (("--to", "2k", "--plan", "tiny"), "plan = 'tiny' says all itself: drop --to, or edit the file"),
    "output of a plan": (("--plan", "tiny", "-o", "x"), "drop -o"),
    "data of a plan": (("--plan", "tiny", "--data", "x", "--original-tokens", "1b"), "drop --data, --original-tokens"),
    "dtype": (("--to", "2k", "--dtype", "float8"), "dtype = 'float8' is unknown; choose one of float32"),
    "length": (("--to", "2kk"), "to = '2kk' is not a number of tokens"),
    "too short": (("--to", "256"), "to = 256 is not above the model's original length 256"),
    "shorter": (("--to", "128"), "to = 128 is not above"),
    "tokens": (("--to", "2k", "--original-tokens", "many"), "original_tokens = 'many' is not a number of tokens"),
    "no tokens": (("--to", "2k", "--original-tokens", "0"), "original_tokens = '0' is not a number"),
    "no plan": (("--plan", "nowhere"), "plan = 'nowhere' cannot be read"),
    "a plan for shorter models": (("--plan", "plan.toml"), "stages[0].length = 128 is not above the model's original"),
    "a bad plan": (("--plan", "bad.toml"), "bad.toml: version is missing"),
    "a folder": (("--to", "2k", "-o", "."), "choose another output with -o"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(cli, below, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.toml").write_text("version = 1\n[[stages]]\nlength = 128\n")
    (tmp_path / "bad.toml").write_text("[[stages]]\nlength = 128\n")
    before = below(tmp_path)
    arguments, said = BAD[name]
    result = cli("plan", "tiny", *arguments, *QUICK)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert said in result.err
    assert below(tmp_path) == before


def test_a_model_without_rope(cli, no_rope: Path) -> None:
    result = cli("plan", no_rope, "--to", "8k", *QUICK)
    assert (result.code, result.out) == (2, "")
    assert "has no rotary" in result.err


@pytest.mark.parametrize(
    ("value", "said"), [(0, "0"), (999, "999"), (999.6, "1 k"), (16384, "16.4 k"), (5e23, "500 Z"), (2e30, "2e+06 Y")]
)
def test_prefixes(value: float, said: str) -> None:
    assert printed.si(value) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (99, "99 s"), (101, "1.7 min"), (1e5, "28 h"), (1e6, "11.6 d")]
)
def test_spans(seconds: float, said: str) -> None:
    assert printed.span(seconds) == said
