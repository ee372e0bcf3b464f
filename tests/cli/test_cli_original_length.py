"""``--original-length`` decides L0 in every command, for a plain checkpoint and for one with a rope scaling."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import families
import pytest

import longrope as lr
from longrope.errors import LongRopeError
from longrope.scaling import Extension

OWN, DECIDED, LENGTH = 256, 128, 320
CHOSEN = ("--original-length", DECIDED)
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
Cli = Callable[..., object]


@pytest.fixture(params=["plain", "yarn"])
def wrong(request: pytest.FixtureRequest, model: Path, tmp_path: Path) -> Path:
    """A model whose config says 256 tokens, though it was trained on 128."""
    folder = Path(shutil.copytree(model, tmp_path / "wrong"))
    scaling = {"rope_parameters": YARN} if request.param == "yarn" else {}
    fields = {"num_hidden_layers": 1, "vocab_size": 300, "max_position_embeddings": OWN, **scaling}
    families.config("llama", **fields).save_pretrained(folder)
    return folder


@pytest.fixture
def factors(wrong: Path, cli: Cli, tmp_path: Path) -> Path:
    path = tmp_path / "f.json"
    assert cli("scale", wrong, *CHOSEN, "-l", LENGTH, "--scheme", "pi", "-o", path).code == 0
    assert Extension.from_json(path.read_text()).rope.original_length == DECIDED
    return path


def test_search(wrong: Path, few: tuple[object, ...], cli: Cli, refused: Callable, tmp_path: Path) -> None:
    words = ("search", wrong, "-l", LENGTH, *few, "--budget", 3 * 2 * LENGTH, "-o", tmp_path / "run")
    result = cli(*words, *CHOSEN)
    assert result.code == 0, result.err
    extension = Extension.from_json((tmp_path / "run" / "extension.json").read_text())
    assert extension.rope.original_length == DECIDED
    assert extension.scale == LENGTH / DECIDED
    refused("space", *words, "--resume")  # the search of another L0


def test_search_in_python(wrong: Path, texts: Path, tmp_path: Path) -> None:
    few = {"search_documents": 1, "held_out_documents": 1, "budget": 2 * LENGTH, "schemes": ["pi"], "needles": 0}
    options = lr.SearchOptions(original_length=DECIDED, device="cpu", **few)
    found = lr.search(str(wrong), length=LENGTH, data=texts, method="paper", options=options).extension
    assert found.rope.original_length == DECIDED
    loaded, tokenizer = lr.load(str(wrong), original_length=DECIDED)
    with pytest.raises(LongRopeError, match="original_length = 128: the model is loaded already"):
        lr.search(loaded, tokenizer, length=LENGTH, data=texts, options=options)


def test_plan_and_extend(wrong: Path, texts: Path, cli: Cli, refused: Callable, tmp_path: Path) -> None:
    written, run = tmp_path / "plan.toml", tmp_path / "run"
    result = cli("plan", wrong, "--to", 512, "--data", texts, *CHOSEN, "--no-measure", "-o", written)
    assert result.code == 0, result.err
    assert f"original_length = {DECIDED}" in written.read_text()
    assert f"From {DECIDED} to 512 tokens (4x)" in written.read_text()
    refused("says all itself: drop --original-length", "plan", wrong, "--plan", written, *CHOSEN)
    stage = "[[stages]]\nlength = 192\nfactors = 'yarn'\n[stages.finetune]\nsteps = 1\nbatch = 1\n"
    short = f"version = 1\noriginal_length = {DECIDED}\n{stage}"
    short += f"[data]\nsource = '{texts}'\n[evaluation]\ndocuments = 1\nschemes = ['pi']\n"
    written.write_text(short)
    result = cli("extend", wrong, written, "-o", run)
    assert result.code == 0, result.err
    assert Extension.from_json((run / "extension.json").read_text()).rope.original_length == DECIDED
    assert list(json.loads((run / "results.json").read_text())["lengths"]) == [DECIDED, 192]
    config = json.loads((run / "checkpoint" / "config.json").read_text())
    assert "longrope_original_length" not in config
    border = 64 if "yarn" in wrong.joinpath("config.json").read_text() else DECIDED
    assert config["original_max_position_embeddings"] in (DECIDED, border)
    written.write_text(short.replace(f"original_length = {DECIDED}\n", ""))
    refused("192 is not above the model's original length 256", "extend", wrong, written, "-o", tmp_path / "other")
    assert cli("extend", wrong, written, *CHOSEN, "-o", run, "--resume").code == 0  # the option is the plan's field


def test_eval(wrong: Path, texts: Path, factors: Path, cli: Cli, refused: Callable, tmp_path: Path) -> None:
    words = ("eval", wrong, "--lengths", f"192,{LENGTH}", "--data", texts, "--documents", 1, "--schemes", "pi")
    result = cli(*words, "--factors", factors, *CHOSEN, "-o", tmp_path / "e", "--json")
    assert result.code == 0, result.err
    assert result.json["rope"]["original_length"] == DECIDED
    ours, scheme = (result.json["rows"][name]["factors"] for name in (str(factors), "pi"))
    assert (ours["long"]["factors"], ours["rope"]["original_length"]) == (scheme["factors"], DECIDED)
    refused("extension.rope = .*original_length=128", *words, "--factors", factors, "-o", tmp_path / "other")
    refused(
        "other original_length|settings|original_length", *words, "--factors", factors, "-o", tmp_path / "e", "--resume"
    )


def test_evaluate_in_python(wrong: Path, texts: Path, factors: Path) -> None:
    extension = Extension.from_json(factors.read_text())
    options = lr.EvalOptions(documents=1, original_length=DECIDED, device="cpu")
    results = lr.evaluate(str(wrong), None, {"ours": extension}, lengths=[LENGTH], data=texts, options=options)
    assert set(results.candidates) == {"original", "ours"}
    loaded, tokenizer = lr.load(str(wrong))
    with pytest.raises(LongRopeError, match="original_length = 128: the model is loaded already"):
        lr.evaluate(loaded, tokenizer, {}, lengths=[LENGTH], data=texts, options=options)


def test_generate_and_chat(
    wrong: Path, factors: Path, cli: Cli, refused: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("generate", wrong, "the cat", "--factors", factors, "--max-new-tokens", 3)
    result = cli(*words, *CHOSEN)
    assert result.code == 0, result.err
    assert f"L0 = {DECIDED}, L = {LENGTH}" in result.err
    refused("extension.rope = .*original_length=128", *words)
    monkeypatch.setattr(sys, "stdin", io.StringIO("the cat\n"))
    result = cli("chat", wrong, "--factors", factors, "--max-new-tokens", 3, *CHOSEN)
    assert result.code == 0, result.err
    assert f"L0 = {DECIDED}, L = {LENGTH}" in result.err


def test_export_names_the_command_that_compares(
    wrong: Path, factors: Path, model: Path, cli: Cli, refused: Callable, tmp_path: Path
) -> None:
    result = cli("export", wrong, "--factors", factors, *CHOSEN, "-o", tmp_path / "out")
    assert result.code == 0, result.err
    assert f"longrope check {tmp_path / 'out'} {wrong} --original-length {DECIDED}" in result.err
    assert cli("check", tmp_path / "out", wrong, *CHOSEN).code == 0
    refused("original_length = 128: an engine", "check", tmp_path / "out", "--engine", "vllm", *CHOSEN)


def test_a_checkpoint_that_is_extended_has_its_l0(exported: Path, refused: Callable) -> None:
    refused("original_length = 128: .*is extended already. Leave it out", "generate", exported, "the", *CHOSEN)


@pytest.mark.parametrize(
    "command", ["inspect", "scale", "search", "plan", "eval", "generate", "chat", "extend", "export"]
)
def test_a_length_that_is_none(command: str, model: Path, refused: Callable, tmp_path: Path) -> None:
    words = {
        "scale": ("-l", 512),
        "search": ("-l", 512, "-o", tmp_path / "x"),
        "plan": ("--to", 512),
        "eval": ("--lengths", 512),
        "generate": ("the",),
        "extend": ("demo",),
        "export": ("-o", tmp_path / "x"),
    }
    refused("original_length = 'many'", command, model, *words.get(command, ()), "--original-length", "many")
