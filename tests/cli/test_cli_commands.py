"""What the commands do when all is well."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from longrope.data.documents import load_documents
from longrope.data.search_texts import SearchTextSpec, search_texts
from longrope.data.split import draw_tokens, split_documents
from longrope.evaluation.losses import model_losses
from longrope.evaluation.perplexity import perplexity
from longrope.formats.load_factors import load_factors
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import SCHEMES, attention_factor, scheme
from longrope.search.registry import METHODS

ROPE = Rope(dim=16, base=10000.0, original_length=64)


def test_inspect_json_holds_the_numbers(cli, model: Path) -> None:
    record = cli("inspect", model, "-l", "1k", "--schemes", "all", "--json").json
    assert (record["dim"], record["rope_theta"], record["original_length"], record["length"]) == (16, 10000, 64, 1024)
    assert record["critical_pair"] == ROPE.critical_pair == 3
    assert record["wavelengths"] == pytest.approx([2 * math.pi * 10 ** (i / 2) for i in range(8)])
    assert set(record["factors"]) == set(SCHEMES)
    for name in SCHEMES:
        expected = scheme(name, ROPE, 1024)
        assert record["factors"][name] == pytest.approx(expected.factors)
        assert record["attention_factors"][name] == pytest.approx(expected.attention_factor)


def test_inspect_prints_a_row_a_pair(cli, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the four schemes that people compare, in the width of a terminal."""
    monkeypatch.setenv("COLUMNS", "80")
    result = cli("inspect", model)
    assert result.code == 0
    assert not result.err
    assert "L0 = 64" in result.out
    assert "512 tokens (s = 8)" in result.out
    assert result.out.count(" yes ") == 3
    assert result.out.count(" no ") == 5
    assert "pair wavelength turns trained pi    ntk   yarn  heuristic" in result.out
    assert max(map(len, result.out.splitlines())) <= 80
    assert "wavelength turns trained yarn  ramp+cope" in cli("inspect", model, "--schemes", "yarn,ramp+cope").out


@pytest.mark.parametrize(
    ("text", "length"), [("512", 512), ("1k", 1024), ("1.5k", 1536), ("1.5K", 1536), ("2m", 2**21), (" 2M ", 2**21)]
)
def test_forms_of_lengths(cli, model: Path, text: str, length: int) -> None:
    assert cli("inspect", model, "-l", text, "--json").json["length"] == length


@pytest.mark.parametrize("name", [*SCHEMES, "linear"])
def test_scale_writes_the_scheme(cli, model: Path, name: str, tmp_path: Path) -> None:
    result = cli("scale", model, "--scheme", name, "--length", "1k", "-o", tmp_path / "new" / "f.json")
    assert result.code == 0
    assert "f.json" in result.err
    assert not result.out
    written = load_factors(tmp_path / "new" / "f.json")
    expected = Extension.of(ROPE, scheme(name, ROPE, 1024))
    assert written == expected
    assert cli("scale", model, "--scheme", name, "-l", "1k").json == json.loads(expected.to_json())


def test_the_original_rope_past_its_window_measures_as_the_model_itself(
    cli, refused, model: Path, texts: Path, tmp_path: Path
) -> None:
    assert cli("scale", model, "--scheme", "original", "-l", 256, "-o", tmp_path / "plain.json").code == 0
    written = load_factors(tmp_path / "plain.json")
    assert written == Extension(ROPE, Scaling.identity(ROPE), replace(Scaling.identity(ROPE), length=256), 256)
    options = ("--lengths", "64,256", "--schemes", "none", "--data", texts, "--documents", 2, "--json")
    result = cli("eval", model, "--factors", tmp_path / "plain.json", *options)
    assert result.code == 0, result.err
    perplexity = result.json["perplexity"]
    assert perplexity[str(tmp_path / "plain.json")] == perplexity["original"]
    refused("length = 16 is below the model's original length 64", "scale", model, "--scheme", "original", "-l", 16)


@pytest.mark.parametrize("policy", ["su", "yarn", "none", "1.25"])
def test_scale_with_another_attention_factor(cli, model: Path, policy: str) -> None:
    record = cli("scale", model, "--scheme", "pi", "-l", 1024, "--attention", policy).json
    assert record["long"]["attention_factor"] == pytest.approx(attention_factor(policy, ROPE, 1024))


def test_search_tells_what_its_files_hold(searched, model: Path, texts: Path) -> None:
    output, result = searched
    assert result.code == 0
    files = {"search-0.jsonl", "held-out.jsonl", "best.json", "extension.json", "run.json"}
    assert {path.name for path in output.iterdir()} == files
    record, extension = result.json, load_factors(output / "extension.json")
    assert record == json.loads((output / "run.json").read_text()) or record == {
        key: value for key, value in json.loads((output / "run.json").read_text()).items() if key != "provenance"
    }
    assert isinstance(extension, Extension)
    assert extension.rope == ROPE
    assert extension.length == 160
    assert record["factors"] == list(extension.long.factors)
    assert record["winner"] == extension.long.scheme
    assert record["length"] == 160
    assert record["evaluations"] == 10
    assert record["token_evaluations"] == 3200
    assert record["data"] == str(texts)
    assert record["stopped"] == ["the budget of 3,200 token-evaluations is spent"]
    assert record["model"] == str(model)
    parts = split_documents(load_documents(str(texts)), seed=0)
    for part, names in record["documents"].items():
        assert names == [document.name for document in parts[part][:2]]
    lowest = min(record["held_out_loss"], key=record["held_out_loss"].__getitem__)
    assert lowest == record["winner"]


def test_minutes_end_a_search_after_the_first_candidate(cli, model: Path, few, tmp_path: Path) -> None:
    """Of 1e-6 minutes; a limit in another unit, or of the whole search, would leave it another time."""
    result = cli("search", model, "-l", 160, *few, "--minutes", 1e-6, "-o", tmp_path / "run", "--json")
    assert result.code == 0, result.err
    assert result.json["stopped"] == ["the time budget of 6e-05 s is spent"]
    assert 1 <= result.json["evaluations"] < 10
    assert json.loads((tmp_path / "run" / "extension.json").read_text())["long"]["factors"] == result.json["factors"]


def test_search_prints_the_comparison(cli, model: Path, few, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    result = cli("search", model, "-l", "160", *few, "--budget", 960)
    assert result.code == 0, result.err
    for word in ("searched", "pi", "ntk", "yarn", "heuristic", "budget of 960", "random-llama-160/extension.json"):
        assert word in result.out
    assert (tmp_path / "random-llama-160" / "extension.json").exists()  # the folder's name when none is given


def test_a_larger_budget_continues_a_smaller_one(cli, model: Path, few, run: Path, tmp_path: Path) -> None:
    common = ("search", model, "-l", 160, *few, "--budget", "5k")
    assert cli(*common, "-o", run, "--resume").code == 0
    assert cli(*common, "-o", tmp_path / "whole").code == 0
    for name in ("extension.json", "best.json"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    journals = [(folder / "search-0.jsonl").read_text().splitlines() for folder in (run, tmp_path / "whole")]
    losses = [[json.loads(line).get("loss") for line in journal] for journal in journals]
    assert losses[0] == losses[1]


def test_overwrite_begins_anew(cli, model: Path, few, run: Path) -> None:
    (run / "notes.txt").write_text("mine")
    result = cli("search", model, "-l", 200, *few, "--budget", "4k", "-o", run, "--overwrite", "--method", "simple")
    assert result.code == 0, result.err
    assert load_factors(run / "extension.json").length == 200
    assert "Simple" in (run / "search-0.jsonl").read_text().splitlines()[0]
    assert (run / "notes.txt").read_text() == "mine"


def test_several_seeds_and_start_tokens(cli, model: Path, few, tmp_path: Path) -> None:
    more = ("--seeds", 2, "--start-tokens", "--attention", 1.1, "--budget", 2880, "--batch", 2, "--dtype", "bfloat16")
    record = cli(
        "search",
        model,
        "-l",
        160,
        *few,
        *more,
        "--method",
        "cma",
        "-o",
        tmp_path / "r",
        "--cache",
        tmp_path / "c",
        "--json",
    ).json
    assert record["seeds"] == [0, 1]
    assert record["evaluations"] == 18
    assert record["dtype"] == "torch.bfloat16"
    lines = [json.loads(line) for line in (tmp_path / "r" / "search-1.jsonl").read_text().splitlines()]
    searched = [line for line in lines if line.get("attention_factor") == 1.1]
    assert len(searched) == 18  # a line for each document
    assert len({line["start_tokens"] for line in searched}) > 1
    assert len(list((tmp_path / "c").iterdir())) >= 4


def table(cli, model: Path, texts: Path, *more: object) -> dict[str, list[dict[str, float]]]:
    result = cli("eval", model, "--lengths", "32,64,65,160", "--data", texts, "--documents", 3, "--json", *more)
    assert result.code == 0, result.err
    return result.json["perplexity"]


def test_eval_equals_the_library(cli, model: Path, texts: Path, run: Path) -> None:
    found = table(cli, model, texts, "--factors", run, "--factors", run / "best.json")
    alone = f"{run} (long factors alone)"
    assert list(found) == ["original", "pi", "ntk", "yarn", "heuristic", str(run), alone, str(run / "best.json")]
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    drawn = draw_tokens(
        split_documents(load_documents(str(texts)))["test"], AutoTokenizer.from_pretrained(model), length=160, count=3
    )
    extension = load_factors(run / "extension.json")
    assert isinstance(extension, Extension)
    candidates = {"original": None, "yarn": scheme("yarn", ROPE, 160), str(run): extension, alone: extension.long}
    for name, scaling in candidates.items():
        row = perplexity(loaded, drawn.tokens, [32, 64, 65, 160], scaling=scaling)
        assert [cell["length"] for cell in found[name]] == [32, 64, 65, 160]
        for cell, expected in zip(found[name], row, strict=True):
            assert cell["perplexity"] == pytest.approx(expected.perplexity, rel=1e-5)
            assert cell["standard_error"] == pytest.approx(expected.standard_error, rel=1e-4)
            assert cell["losses"] == pytest.approx(expected.losses, rel=1e-5)


def test_the_long_factors_alone_are_measured_where_they_differ_from_another_row(
    cli, model: Path, texts: Path, run: Path, tmp_path: Path
) -> None:
    """Not where no text fits into L0, and not where the sets are equal or a scheme has these factors already."""
    options = ("--data", texts, "--documents", 2, "--schemes", "yarn", "--json")
    beyond = cli("eval", model, "--lengths", 160, "--factors", run, *options)
    assert list(beyond.json["rows"]) == ["original", "yarn", str(run)]
    assert "long factors alone" not in beyond.err
    assert cli("scale", model, "--scheme", "yarn", "-l", 160, "-o", tmp_path / "yarn.json").code == 0
    extension = load_factors(run / "extension.json")
    assert isinstance(extension, Extension)
    equal = replace(extension, short=extension.long)
    (tmp_path / "static.json").write_text(equal.to_json())
    files = ("--factors", tmp_path / "yarn.json", "--factors", tmp_path / "static.json")
    within = cli("eval", model, "--lengths", "64,160", *files, *options)
    assert within.code == 0, within.err
    assert not [name for name in within.json["rows"] if "(long factors alone)" in name]


def test_eval_documents_are_none_that_the_search_saw(cli, model: Path, texts: Path, searched) -> None:
    command = ("eval", model, "--lengths", "160", "--data", texts, "--documents", 4, "--schemes", "none", "--json")
    (first,) = (corpus["documents"] for corpus in cli(*command).json["corpora"].values())
    seen = [name for names in searched[1].json["documents"].values() for name in names]
    assert len(set(first)) == 4
    assert not set(first) & set(seen)
    (other,) = (corpus["documents"] for corpus in cli(*command, "--data-seed", 1).json["corpora"].values())
    assert other != first


def test_eval_prints_and_writes_a_table(cli, model: Path, texts: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    output = tmp_path / "new" / "run"
    result = cli("eval", model, "--lengths", "0.125k,64", "--schemes", "pi, yarn", "--data", texts, "-o", output)
    assert result.code == 0, result.err
    record = json.loads((output / "results.json").read_text())
    assert list(record["perplexity"]) == ["original", "pi", "yarn"]
    assert record["lengths"] == [64, 128]
    assert "64 (L0)" in result.out
    for row in record["perplexity"].values():
        for cell in row:
            assert f"{cell['perplexity']:.2f} ± {cell['standard_error']:.2f}" in result.out


def test_an_exported_checkpoint_evaluates_like_the_run(cli, model: Path, texts: Path, searched, exported: Path) -> None:
    ours = table(cli, model, texts, "--schemes", "none", "--factors", searched[0])
    theirs = table(cli, exported, texts, "--schemes", "none")
    for a, b in zip(ours[str(searched[0])], theirs["original"], strict=True):
        assert a["perplexity"] == pytest.approx(b["perplexity"], rel=1e-4), a["length"]
    assert ours["original"][3]["perplexity"] != pytest.approx(theirs["original"][3]["perplexity"], rel=1e-4)


def test_export_and_check(cli, model: Path, exported: Path, searched) -> None:
    config = json.loads((exported / "config.json").read_text())
    extension = load_factors(searched[0] / "extension.json")
    assert config["rope_scaling"]["long_factor"] == list(extension.long.factors)
    assert load_factors(exported / "extension.json") == extension
    assert list(extension.long.provenance)
    assert "held_out_loss" in (exported / "README.md").read_text()
    result = cli("check", exported, model, "--json")
    assert result.code == 0, result.err
    assert [row["length"] for row in result.json] == [63, 64, 65, 159]
    assert all(row["ok"] and 0 <= row["difference"] < 1e-4 for row in result.json)
    assert cli("check", exported, model, "--lengths", "100").out.count("same") == 1


def test_export_of_a_scheme_and_static(cli, model: Path, tmp_path: Path) -> None:
    assert cli("scale", model, "--scheme", "yarn", "-l", 256, "-o", tmp_path / "yarn.json").code == 0
    result = cli("export", model, "--factors", tmp_path / "yarn.json", "-o", tmp_path / "static")  # static unless told
    assert result.code == 0, result.err
    fields = json.loads((tmp_path / "static" / "config.json").read_text())["rope_scaling"]
    assert (fields["rope_type"], fields["factor"], fields["beta_fast"], fields["beta_slow"]) == ("yarn", 4, 32, 1)
    assert cli("check", tmp_path / "static", model).code == 0
    engines = cli("check", tmp_path / "static", "--engine", "llama.cpp", "--json").json
    assert [prediction["factors"] for prediction in engines] == ["long"] * 3


def test_export_of_other_factors_and_static(cli, model: Path, tmp_path: Path) -> None:
    assert cli("scale", model, "--scheme", "ntk", "-l", 256, "-o", tmp_path / "ntk.json").code == 0
    assert cli("export", model, "--factors", tmp_path / "ntk.json", "-o", tmp_path / "static").code == 0
    sets = json.loads((tmp_path / "static" / "config.json").read_text())["rope_scaling"]
    assert sets["short_factor"] == sets["long_factor"] == pytest.approx(scheme("ntk", ROPE, 256).factors)


@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters", "weights"])
def test_check_sees_a_changed_checkpoint(cli, model: Path, exported: Path, tmp_path: Path, field: str) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "tampered"))
    if field == "weights":
        weights = load_file(folder / "model.safetensors")
        weights["model.norm.weight"] *= -1
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        config = json.loads((folder / "config.json").read_text())
        for name in ("rope_scaling", "rope_parameters"):  # transformers 5 may read either
            config[name]["long_factor"] = [1.0] * 8
        (folder / "config.json").write_text(json.dumps(config))
    result = cli("check", folder, model)
    assert result.code == 1
    assert "DIFFERENT" in result.out
    rows = cli("check", folder, model, "--json").json
    assert not rows[3]["ok"]
    assert rows[3]["difference"] > 0.01
    assert [row["ok"] for row in rows[:2]] == [field != "weights"] * 2


def test_a_plain_factors_file_is_made_an_extension(cli, model: Path, tmp_path: Path) -> None:
    scaling = Scaling(np.linspace(1, 4, 8).tolist(), length=256)
    (tmp_path / "mine.json").write_text(scaling.to_json())
    result = cli("export", model, "--factors", tmp_path / "mine.json", "-o", tmp_path / "long", "--mode", "dual")
    assert result.code == 0, result.err
    assert load_factors(tmp_path / "long" / "extension.json") == Extension.of(ROPE, scaling)


@pytest.mark.parametrize("length", [131, 160, 200])
@pytest.mark.parametrize("starts", ["heuristic", "yarn, pi", "dynamic_ntk", "pi,ntk,yarn,llama3"])
def test_search_from_other_starts(cli, model: Path, few, tmp_path: Path, starts: str, length: int) -> None:
    result = cli(
        "search", model, "-l", length, *few, "--budget", 20 * 2 * length, "--schemes", starts, "-o", tmp_path / "r"
    )
    assert result.code == 0, result.err
    lines = [json.loads(line) for line in (tmp_path / "r" / "search-0.jsonl").read_text().splitlines()]
    tried = [line["factors"] for line in lines if "loss" in line]
    assert (
        tried[0] == pytest.approx(scheme(starts.split(",")[0], ROPE, length).factors, abs=0.005)
        or max(scheme(starts, ROPE, length).factors) > 1.25 * length / 64
    )
    assert max(map(max, tried)) <= 1.25 * length / 64
    assert min(map(min, tried)) >= 1


def test_search_from_the_factors_of_another_run(cli, model: Path, few, run: Path, tmp_path: Path) -> None:
    result = cli(
        "search", model, "-l", 160, *few, "--budget", 960, "--schemes", "pi", "--factors", run, "-o", tmp_path / "r"
    )
    assert result.code == 0, result.err
    lines = [json.loads(line) for line in (tmp_path / "r" / "search-0.jsonl").read_text().splitlines()]
    tried = [line["factors"] for line in lines if "loss" in line]
    found = load_factors(run / "extension.json")
    assert isinstance(found, Extension)
    assert tried[2] == pytest.approx(np.maximum.accumulate(found.long.factors), abs=0.005)  # after PI on two documents


def header(run: Path) -> dict:
    return json.loads((run / "search-0.jsonl").read_text().splitlines()[0])["settings"]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_finds_what_it_says(cli, model: Path, few, tmp_path: Path, name: str) -> None:
    """The losses that it tells are those of its winner, computed anew."""
    result = cli("search", model, "-l", 160, *few, "--method", name, "--budget", 24 * 320, "-o", tmp_path, "--json")
    assert result.code == 0, result.err
    record, best = result.json, load_factors(tmp_path / "best.json")
    assert list(header(tmp_path)["method"]) == [type(METHODS[name]).__name__]
    assert [start.split()[0] for start in header(tmp_path)["starts"]] == list(METHODS[name].schemes)
    assert header(tmp_path)["space"]["parametrization"] == METHODS[name].parametrization
    assert record["token_evaluations"] <= 24 * 320
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tokenizer, parts = AutoTokenizer.from_pretrained(model), split_documents(load_documents(record["data"]))
    tokens = {part: draw_tokens(parts[part], tokenizer, length=160, count=2).tokens for part in ("search", "held_out")}
    assert record["search_loss"] == pytest.approx(model_losses(loaded, best, tokens["search"]).mean(), abs=1e-5)
    winner = load_factors(tmp_path / "extension.json").long
    held_out = model_losses(loaded, winner, tokens["held_out"]).mean()
    assert record["held_out_loss"][record["winner"]] == pytest.approx(held_out, abs=1e-5)
    assert min(record["held_out_loss"].values()) == record["held_out_loss"][record["winner"]]


def test_auto_is_the_default(cli, model: Path, few, tmp_path: Path) -> None:
    assert few[2:4] == ("--method", "paper")
    common = ("search", model, "-l", 160, *few[:2], *few[4:8], "--budget", "6k", "--json")
    found = [cli(*common, *more, "-o", tmp_path / f"{i}") for i, more in enumerate([(), ("--method", "auto")])]
    assert found[0].code == 0, found[0].err
    assert found[0].json["factors"] == found[1].json["factors"]
    assert list(header(tmp_path / "0")["method"]) == ["Auto"]
    lines = (tmp_path / "0" / "search-0.jsonl").read_text().splitlines()
    assert any("gradient" in json.loads(line) for line in lines)


def test_needles_tails_and_other_lengths(cli, model: Path, few, texts: Path, tmp_path: Path) -> None:
    """The search minimises what `search_texts` makes."""
    more = ("--needles", 0.25, "--also", "450,400", "--tail", 100, "--budget", "30k", "--batch", 2)
    result = cli("search", model, "-l", 500, *few, *more, "-o", tmp_path, "--json")
    assert result.code == 0, result.err
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    items, names = search_texts(
        split_documents(load_documents(str(texts)))["search"],
        AutoTokenizer.from_pretrained(model),
        SearchTextSpec([500, 450, 400], count=2, needles=0.25, tail=100),
    )
    assert result.json["documents"]["search"] == list(names)
    best = load_factors(tmp_path / "best.json")
    losses = [float(model_losses(loaded, best, item.tokens[None])[0] @ item.weights) for item in items]
    assert result.json["search_loss"] == pytest.approx(np.mean(losses), abs=1e-5)


def test_the_attention_factor_is_searched(cli, model: Path, few, tmp_path: Path) -> None:
    more = ("--attention", "search", "--parametrization", "monotone", "--method", "cma", "--population", 4)
    assert cli("search", model, "-l", 160, *few, *more, "--budget", "5k", "-o", tmp_path).code == 0
    lines = [json.loads(line) for line in (tmp_path / "search-0.jsonl").read_text().splitlines()]
    tried = [line for line in lines if "loss" in line]
    assert len({line["attention_factor"] for line in tried}) > 4
    assert tried[0]["attention_factor"] == pytest.approx(attention_factor("su", ROPE, 160))
    assert header(tmp_path)["space"]["parametrization"] == "monotone"
    assert all((np.diff(line["factors"]) >= -1e-9).all() for line in tried)


def test_a_number_of_steps_is_heeded_also_with_a_budget(cli, model: Path, few, tmp_path: Path) -> None:
    more = ("--method", "gradient", "--population", 5, "--budget", "64k")
    assert cli("search", model, "-l", 160, *few, *more, "-o", tmp_path).code == 0
    assert header(tmp_path)["method"]["Gradient"]["steps"] == 5
