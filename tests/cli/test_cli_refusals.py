"""Bad input: exit code 2, a message that names the field and the value, nothing lost and nothing left behind."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import families
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from longrope.cost import memory_check
from longrope.longcontext import token_losses as loss_module
from longrope.models.load import load_config
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import scheme
from longrope.stages.run_folder import VERSION

ROPE = Rope(dim=16, base=10000.0, original_length=64)
Refused = Callable[..., None]


def commands(model: Path, few: tuple[object, ...], output: Path, factors: Path) -> dict[str, tuple[object, ...]]:
    """Each command with good arguments."""
    return {
        "inspect": ("inspect", model),
        "scale": ("scale", model, "-l", 128, "-o", output),
        "search": ("search", model, "-l", 160, *few, "--budget", 960, "-o", output),
        "eval": ("eval", model, "--lengths", "128", *few[:2], "-o", output),
        "export": ("export", model, "--factors", factors, "-o", output),
    }


@pytest.fixture(scope="session")
def factors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("factors") / "yarn.json"
    path.write_text(Extension.of(ROPE, scheme("ntk", ROPE, 128)).to_json())
    return path


WRITING = pytest.mark.parametrize("command", ["scale", "search", "eval", "export"])


@pytest.mark.parametrize("lengths", ["128", "32", "64,128"])
def test_unknown_schemes(refused: Refused, model: Path, few, lengths: str, tmp_path: Path) -> None:
    said = "scheme = 'bogus' is unknown; choose one of pi, ntk"
    refused(said, "scale", model, "-l", 128, "--scheme", "bogus", "-o", tmp_path / "x.json")
    refused("scheme = '' is unknown", "scale", model, "-l", 128, "--scheme", "", "-o", tmp_path / "x.json")
    refused(said, "eval", model, "--lengths", lengths, *few[:2], "--schemes", "pi,bogus")


@pytest.mark.parametrize("length", ["63", "2", "0.03k"])
def test_lengths_below_the_original(refused: Refused, model: Path, few, length: str, tmp_path: Path) -> None:
    said = r"length = \d+ is below the model's original length 64" if length != "0.03k" else "length = '0.03k'"
    refused(said, "inspect", model, "-l", length)
    refused(said, "scale", model, "-l", length, "-o", tmp_path / "x.json")
    refused(said, "search", model, "-l", length, *few, "-o", tmp_path / "x")


BAD_LENGTHS = ["", "k", "16kk", "16 k", "abc", "-5", "1e3", "0", "1", "0k", "1.3k", "12.5", "nan", "inf", "9" * 400]


@pytest.mark.parametrize("length", BAD_LENGTHS)
def test_lengths_that_are_no_numbers(refused: Refused, model: Path, few, length: str, tmp_path: Path) -> None:
    said = "lengths? = .* is not a number of tokens; write 16384, 16k or 2m"
    refused(said, "inspect", model, "--length=" + length)
    refused(said, "scale", model, "--length=" + length, "-o", tmp_path / "x.json")
    refused(said, "search", model, "--length=" + length, *few, "-o", tmp_path / "x")
    refused(said, "eval", model, "--lengths=128," + length, *few[:2])
    refused(said, "check", tmp_path, model, "--lengths=" + length)


def broken(**changes: object) -> str:
    """An extension file with something wrong in its long set, or outside when named `top_…`."""
    data = json.loads(Extension.of(ROPE, scheme("pi", ROPE, 128)).to_json())
    for name, value in changes.items():
        if name.startswith("top_"):
            data[name[4:]] = value
        else:
            data["long"][name] = value
    return json.dumps(data)


BAD_FACTORS = {
    "wrong length": (broken(factors=[1.0, 2.0]), "factors: 2 values for a rope of dim 16"),
    "nan": (broken(factors=[1.0] * 7 + [float("nan")]), r"factors\[7\] = nan must be a finite number above 0"),
    "infinite": (broken(factors=[float("inf")] + [1.0] * 7), r"factors\[0\] = inf"),
    "zero": (broken(factors=[1.0] * 4 + [0] + [1.0] * 3), r"factors\[4\] = 0"),
    "negative": (broken(factors=[1.0] * 4 + [-2.5] + [1.0] * 3), r"factors\[4\] = -2.5"),
    "text": (broken(factors=["1"] * 8), r"factors\[0\] = '1'"),
    "no list": (broken(factors=3), "factors = 3 must be a list"),
    "no factors": (broken(factors=[]), "0 values"),
    "attention": (broken(attention_factor=0), "attention_factor = 0"),
    "provenance": (broken(provenance=[1]), r"provenance = \[1\] must be an object"),
    "start tokens": (broken(start_tokens=-1), "start_tokens = -1"),
    "unknown field": (broken(beta=3), "field missing or unknown: .*beta"),
    "newer": (broken(top_version=2), "version = 2, but this longrope reads up to 1: upgrade"),
    "no version": (broken(top_version=None), "version = None"),
    "other kind": (broken(top_kind="recipe"), "not a longrope scaling|extension"),
    "length": (broken(top_length=32), "length = 32 is below"),
    "rope": (broken(top_rope={"dim": 16, "base": 5e5, "original_length": 64}), "500000.*the model has Rope"),
    "no rope": (broken(top_rope=3), "field missing or unknown"),
    "list": ("[1, 2]", "not a factors file"),
    "no JSON": ("{", "not a factors file"),
    "nothing": ("", "not a factors file"),
    "plain of wrong length": (Scaling([1, 2, 3], length=128).to_json(), "factors: 3 values"),
}


@pytest.mark.parametrize("name", BAD_FACTORS)
def test_bad_factors(refused: Refused, model: Path, few, name: str, tmp_path: Path) -> None:
    text, said = BAD_FACTORS[name]
    path = tmp_path / "factors.json"
    path.write_text(text)
    refused(said, "export", model, "--factors", path, "-o", tmp_path / "x")
    refused(said, "eval", model, "--lengths", "128", *few[:2], "--factors", path, "-o", tmp_path / "x", "--json")


def test_factors_without_a_length(refused: Refused, model: Path, tmp_path: Path) -> None:
    (tmp_path / "factors.json").write_text(Scaling([1.0] * 7 + [2.0]).to_json())
    refused("length = None", "export", model, "--factors", tmp_path / "factors.json", "-o", tmp_path / "x")


def test_factors_that_are_binary(refused: Refused, model: Path, few, tmp_path: Path) -> None:
    (tmp_path / "factors.json").write_bytes(b"\xff\xfe\x00")
    refused(
        "factors.json is not a factors file",
        "export",
        model,
        "--factors",
        tmp_path / "factors.json",
        "-o",
        tmp_path / "x",
    )


@pytest.mark.parametrize("command", ["inspect", "scale", "search", "eval", "export"])
def test_a_model_without_rope(
    refused: Refused, no_rope: Path, few, factors: Path, tmp_path: Path, command: str
) -> None:
    refused("model type 'gpt2': its config has no rotary", *commands(no_rope, few, tmp_path / "x", factors)[command])


@pytest.mark.parametrize("command", ["inspect", "scale", "search", "eval", "export"])
@pytest.mark.parametrize(
    ("name", "said"),
    [("nowhere", "no such folder|cannot be loaded"), ("x.gguf", "no such file"), ("", "cannot be loaded")],
)
def test_a_model_that_is_not_there(
    refused: Refused, few, factors: Path, tmp_path: Path, command: str, name: str, said: str
) -> None:
    """With an empty name the folder is there, and empty."""
    (tmp_path / "models").mkdir()
    refused(
        f"model = '.*{name}'.*({said})", *commands(tmp_path / "models" / name, few, tmp_path / "x", factors)[command]
    )


def test_a_hub_name_without_a_network(refused: Refused) -> None:
    refused("model = 'no-such-model-here' cannot be loaded", "inspect", "no-such-model-here")


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_model(refused: Refused, model: Path, few, tmp_path: Path, damage: str) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "damaged"))
    (folder / damage).write_bytes(b"\x89garbage\xff")
    refused("model = .*damaged.* cannot be loaded", "search", folder, "-l", 160, *few, "-o", tmp_path / "x")


@pytest.mark.parametrize(
    ("free", "said"), [(2**10, "the weights alone do not fit: lower"), (2**24, r"fit in a gradient: lower .* \(cma\)")]
)
def test_searches_without_room(
    refused: Refused, model: Path, few, tmp_path: Path, free: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_check, "free_memory", lambda _: free)
    refused(said, "search", model, "-l", 4096, *few[:2], "-o", tmp_path / "x")


@pytest.mark.parametrize(("option", "value"), [("--dtype", "float8"), ("--device", "bogus"), ("--device", "cuda:77")])
def test_dtypes_and_devices(refused: Refused, model: Path, few, tmp_path: Path, option: str, value: str) -> None:
    words = commands(model, few, tmp_path / "x", tmp_path)
    for command in ("search", "eval"):
        refused(f"{option[2:]} = '{value}'", *words[command], option, value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(refused: Refused, model: Path, few, tmp_path: Path) -> None:
    words, factors = commands(model, few, tmp_path / "x", tmp_path), tmp_path / "factors.json"
    factors.write_text(scheme("yarn", Rope.of(load_config("tiny")), 2048).to_json())
    words |= {"plan": ("plan", model, "--to", "1k"), "hours": ("extend", model, "--to", "1k", "--hours", 1)}
    words |= {"generate": ("generate", "tiny", "A question", "--factors", factors)}
    for command in ("search", "eval", "plan", "hours", "generate"):
        refused("device = 'cuda': .*CUDA.*. Give cpu, or auto", *words[command], "--device", "cuda")


def test_factors_that_are_not_there(refused: Refused, model: Path, few, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for path, said in (
        (tmp_path / "no.json", "no.json: No such file"),
        (tmp_path / "run", "run/extension.json: No such"),
    ):
        refused(f"cannot read the factors file .*{said}", "export", model, "--factors", path, "-o", tmp_path / "x")
        refused(f"cannot read the factors file .*{said}", "eval", model, "--lengths", 128, "--factors", path)


def data_of(folder: Path, kind: str) -> Path:
    folder.mkdir()
    if kind == "garbage":
        (folder / "x.txt").write_bytes(b"\x81\xfe\x00\x01")
        return folder / "x.txt"
    if kind in ("short", "few"):
        for i in range(20 if kind == "short" else 1):
            (folder / f"{i}.txt").write_text(f"{i} the cat sat on a mat " * (1 if kind == "short" else 50))
    if kind == "jsonl":
        (folder / "x.jsonl").write_text('{"text": "fine"}\n{"txt": 1}\n')
        return folder / "x.jsonl"
    return folder / "nowhere" if kind == "missing" else folder


BAD_DATA = {
    "missing": "data = '.*nowhere': not a file or folder",
    "empty": "data = '.*data': holds no text",
    "garbage": r"data = '.*x.txt': not UTF-8 text",
    "short": r"2 texts of 160 tokens are needed. Of 20 documents in all, .* [48] are .*the longest in all has \d+",
    "few": r"2 texts of 160 tokens are needed. Of 1 document in all, .*, 1 are in this split, the longest of",
    "jsonl": r'x\.jsonl, line 2: expected a JSON object with a string "text"',
}


@pytest.mark.parametrize("kind", BAD_DATA)
@pytest.mark.parametrize("command", ["search", "eval"])
def test_bad_data(refused: Refused, model: Path, few, tmp_path: Path, kind: str, command: str) -> None:
    data = ("--data", data_of(tmp_path / "data", kind))
    args = {
        "search": ("search", model, "-l", 160, *few, *data, "-o", tmp_path / "x"),
        "eval": ("eval", model, "--lengths", 160, "--documents", 2, *data, "-o", tmp_path / "x"),
    }
    refused(BAD_DATA[kind], *args[command])


@pytest.mark.parametrize("kind", BAD_DATA)
def test_overwrite_loses_nothing_before_the_data_are_known_good(
    refused: Refused, model: Path, few, run: Path, tmp_path: Path, kind: str
) -> None:
    data = ("--data", data_of(tmp_path / "data", kind))
    refused(BAD_DATA[kind], "search", model, "-l", 160, *few, *data, "-o", run, "--overwrite")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("--budget", 0), "budget = '0' is not a number of tokens; write 16384, 16k or 2m"),
        (("--budget", -3), "budget = '-3' is not a number of tokens"),
        (("--budget", "many"), "budget = 'many' is not a number of tokens"),
        (("--budget", 319), "budget = 319: one step of this search takes 320 token-evaluations"),
        (("--minutes", 0), "minutes = 0: allows nothing"),
        (("--minutes", -1), "minutes = -1: allows nothing"),
        (("--minutes", "nan"), "minutes = nan: allows nothing"),
        (("--population", 3), "population = 3: too small. Use at least 4."),
        (("--schemes", "pi,bogus"), "scheme = 'bogus' is unknown"),
        (("--schemes", ""), "starts? = ''|scheme = ''"),
        (("--method", "bogus"), "method = 'bogus' is unknown; choose one of auto, gradient, cma, paper, simple"),
        (("--method", "gradient", "--population", 3), "population = 3: too small. Use at least 4."),
        (
            ("--parametrization", "bogus"),
            "parametrization = 'bogus' is unknown; choose one of free, monotone, spline, ramp, critical",
        ),
        (("--tail", 160), "tail = 160: not between 1 and 159, the length less 1"),
        (("--tail", "4k"), "tail = 4096: not between 1 and 159"),
        (("--tail", "end"), "tail = 'end' is not a number of tokens"),
        (("--also", "100", "--tail", 120), "tail = 120: not between 1 and 99"),
        (("--also", "some"), "also = 'some' is not a number of tokens"),
        (("--also", ""), "also = '' is not a number of tokens"),
        (("--also", "100,300"), "also = 300: above length = 160. Give the longest as the length"),
        (("--window", "4k"), "window = 4096: above length = 160. Give a shorter window, or none"),
        (("--workers", "0"), "workers = '0': not known. Use a number of processes"),
        (("--workers", "many"), "workers = 'many': not known"),
        (("--workers", "1.5"), "workers = '1.5': not known"),
        (("--workers", "²"), "workers = '²': not known"),
        (("--workers=-1",), "workers = '-1': not known"),
        (("--attention", "bogus"), "attention = 'bogus': choose su, yarn, none or a number above 0"),
        (("--attention", "nan"), "attention = 'nan'"),
        (("--attention=-1",), "attention = '-1'"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_wrong_values_of_search(
    refused: Refused, model: Path, few, run: Path, tmp_path: Path, wrong: tuple[object, ...], said: str, overwrite: bool
) -> None:
    output = ("-o", run, "--overwrite") if overwrite else ("-o", tmp_path / "x")
    refused(said, "search", model, "-l", 160, *few, *wrong, *output)


@pytest.mark.parametrize("attention", ["bogus", "0", "inf"])
def test_wrong_attention_of_scale(refused: Refused, model: Path, tmp_path: Path, attention: str) -> None:
    refused(
        f"attention = '{attention}'", "scale", model, "-l", 128, "--attention", attention, "-o", tmp_path / "x.json"
    )


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--seed", ("generate", "tiny", "hello", "--seed", 10**20)),
        ("--timeout", ("probe", "http://localhost:1", "--checkpoint", "tiny", "--timeout", "inf")),
    ],
)
def test_numbers_above_what_torch_and_sockets_take(cli, option: str, words: tuple[object, ...]) -> None:
    result = cli(*words)
    assert (result.code, result.out) == (2, "")
    assert f"Invalid value for '{option}'" in result.err


@WRITING
def test_outputs_that_cannot_be_written(
    refused: Refused, model: Path, few, factors: Path, tmp_path: Path, command: str
) -> None:
    """The tests may run as root, whom no permission stops: a regular file stands where a folder would have to be."""
    (tmp_path / "file").write_text("mine")
    refused("cannot write .*x.*-o", *commands(model, few, tmp_path / "file" / "x", factors)[command])
    refused("cannot write .*x.*-o", *commands(model, few, tmp_path / "file" / "deep" / "x", factors)[command])


@pytest.mark.parametrize("command", ["scale"])
@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_a_folder_where_a_file_should_be_written(
    refused: Refused, model: Path, few, tmp_path: Path, command: str, overwrite: tuple[str, ...]
) -> None:
    (tmp_path / "folder").mkdir()
    refused("folder", *commands(model, few, tmp_path / "folder", tmp_path)[command], *overwrite)
    (tmp_path / "folder" / "mine").write_text("mine")
    refused("folder", *commands(model, few, tmp_path / "folder", tmp_path)[command], *overwrite)


@pytest.mark.parametrize("command", ["search", "eval"])
def test_a_file_where_the_run_should_be_written(
    refused: Refused, model: Path, few, tmp_path: Path, command: str
) -> None:
    (tmp_path / "file").write_text("mine")
    for how in ((), ("--overwrite",), ("--resume",)):
        refused("file", *commands(model, few, tmp_path / "file", tmp_path)[command], *how)


@WRITING
def test_outputs_that_exist(
    refused: Refused, cli, model: Path, few, factors: Path, tmp_path: Path, command: str
) -> None:
    output = tmp_path / "x"
    good = commands(model, few, output, factors)[command]
    assert cli(*good).code == 0
    refused("x exists; .*--resume" if command in ("search", "eval") else "x exists; .*--overwrite", *good)
    result = cli(*good, "--overwrite")
    assert result.code == 0, result.err


@pytest.mark.parametrize("more", [(), ("--overwrite",), ("--resume",)])
def test_nothing_is_written_among_other_files(
    refused: Refused, model: Path, few, tmp_path: Path, more: tuple[str, ...]
) -> None:
    """Without --overwrite the message must not advise it, as it is refused too."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine.txt").write_text("mine")
    refused("x does not hold an evaluation", *commands(model, few, tmp_path / "x", tmp_path)["eval"], *more)
    (tmp_path / "x" / "run.json").write_text("mine, and a name of a search")
    refused("x does not hold a search", *commands(model, few, tmp_path / "x", tmp_path)["search"], *more)


@WRITING
def test_an_empty_folder_may_be_filled(cli, model: Path, few, factors: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "x").mkdir()
    result = cli(*commands(model, few, tmp_path / "x", factors)[command])
    assert result.code == (0 if command in ("search", "eval", "export") else 2), result.err


def test_a_cache_that_cannot_be_written(refused: Refused, model: Path, few, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    good = commands(model, few, tmp_path / "x", tmp_path)
    refused("cannot write .*file", *good["search"], "--cache", tmp_path / "file")
    refused("cannot write .*file", *good["eval"][:-2], "--cache", tmp_path / "file")


def test_an_export_that_fails_keeps_the_old_checkpoint(
    refused: Refused, model: Path, exported: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(exported, tmp_path / "old"))
    other = Rope(dim=16, base=5e5, original_length=64)
    bad = {
        "Rope": Extension.of(other, scheme("pi", other, 128)),
        "start_tokens": Scaling([2.0] * 8, start_tokens=4, length=128),
        "attention_factor": Scaling([2.0] * 8, attention_factor=1.2, length=128),
        "factors": Scaling([2.0] * 3, length=128),
    }
    for said, scaling in bad.items():
        (tmp_path / "bad.json").write_text(scaling.to_json())
        refused(
            said, "export", model, "--factors", tmp_path / "bad.json", "-o", output, "--overwrite", "--mode", "dual"
        )
    refused(
        "mode = 'bogus'",
        "export",
        model,
        "--factors",
        exported / "extension.json",
        "-o",
        output,
        "--overwrite",
        "--mode",
        "bogus",
    )


def test_resume_with_other_settings(refused: Refused, model: Path, few, run: Path) -> None:
    again = ("search", model, *few, "--budget", 3200, "-o", run, "--resume")
    refused(r"starts was .*now .'pi \w{8}'.", *again, "-l", 160, "--schemes", "pi")
    refused("written with other settings: .*space was", *again, "-l", 200)
    refused("method was .*now", *again, "-l", 160, "--method", "simple")
    for other in ("auto", "gradient", "cma", "simple"):
        refused(f"method was .*Paper.*now .*{other.title()}", *again, "-l", 160, "--method", other)
    refused(
        "parametrization = 'ramp': has no effect on the method paper", *again, "-l", 160, "--parametrization", "ramp"
    )
    refused("racing was False, now True", *again, "-l", 160, "--racing")
    refused("data was", *again, "-l", 160, "--tail", 50)
    refused("data was", *again, "-l", 160, "--also", 100)
    refused("method was .*'population': 8.*now .*'population': 12", *again, "-l", 160, "--population", 12)
    refused("dtype was 'torch.float32', now 'torch.bfloat16'", *again, "-l", 160, "--dtype", "bfloat16")
    refused("data was", *again, "-l", 160, "--data-seed", 1)
    refused("space was .*'attention_factor': 1.0.*now.*1.5", *again, "-l", 160, "--attention", 1.5)


@pytest.mark.parametrize("value", [2, -0.5, "nan", "some"])
def test_a_weight_of_needles_that_is_none(cli, model: Path, few, tmp_path: Path, value: object) -> None:
    result = cli("search", model, "-l", 160, *few, f"--needles={value}", "-o", tmp_path / "x")
    assert (result.code, result.out) == (2, "")
    assert "--needles" in result.err
    assert not (tmp_path / "x").exists()


def test_resume_with_other_workers(cli, model: Path, few, run: Path) -> None:
    """Who computes does not matter; a finished run starts none of them."""
    before = json.loads((run / "extension.json").read_text())["long"]["factors"]
    result = cli("search", model, "-l", 160, *few, "--budget", 3200, "-o", run, "--resume", "--workers", 2)
    assert result.code == 0, result.err
    assert json.loads((run / "extension.json").read_text())["long"]["factors"] == before


def test_resume_with_a_slash_behind_the_model(cli, model: Path, few, run: Path) -> None:
    result = cli("search", f"{model}/", "-l", 160, *few, "--budget", 3200, "-o", run, "--resume")
    assert result.code == 0, result.err


def test_resume_where_there_is_nothing_begins(cli, model: Path, few, tmp_path: Path, searched) -> None:
    result = cli("search", model, "-l", 160, *few, "--budget", 3200, "-o", tmp_path / "new", "--resume")
    assert result.code == 0
    assert (tmp_path / "new" / "best.json").read_bytes() == (searched[0] / "best.json").read_bytes()


@pytest.mark.parametrize("journal", ["search-0.jsonl", "held-out.jsonl"])
@pytest.mark.parametrize("cut", [1, 30])
def test_a_cut_journal_is_resumed(cli, model: Path, few, run: Path, journal: str, cut: int) -> None:
    before = (run / "extension.json").read_bytes()
    (run / journal).write_bytes((run / journal).read_bytes()[:-cut])
    (run / "extension.json").unlink()
    result = cli("search", model, "-l", 160, *few, "--budget", 3200, "-o", run, "--resume")
    assert result.code == 0, result.err
    assert (run / "extension.json").read_bytes() == before


def test_a_broken_journal_is_refused(refused: Refused, model: Path, few, run: Path) -> None:
    lines = (run / "search-0.jsonl").read_text().splitlines(keepends=True)
    again = ("search", model, "-l", 160, *few, "--budget", 3200, "-o", run, "--resume")
    for said, middle in (("search-0.jsonl is not a journal", "garbage\n"), ("search-0.jsonl is not a journal", "3\n")):
        (run / "search-0.jsonl").write_text("".join([*lines[:2], middle, *lines[2:]]))
        refused(said, *again)
    (run / "search-0.jsonl").write_text(lines[0].replace('"version": 1', '"version": 2') + "".join(lines[1:]))
    refused("version = 2", *again)


@pytest.fixture(scope="module")
def nan_model(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    loaded = AutoModelForCausalLM.from_pretrained(model)
    loaded.model.norm.weight.data.fill_(float("nan"))
    folder = tmp_path_factory.mktemp("models") / "nan"
    loaded.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["auto", "gradient", "cma", "paper", "simple"])
def test_a_model_whose_losses_are_nan(cli, nan_model: Path, few, tmp_path: Path, method: str) -> None:
    more = ("--method", method, "--budget", 12 * 320, "-o", tmp_path / "x")
    result = cli("search", nan_model, "-l", 160, *few, *more)
    assert result.code == 2
    assert "no candidate has a finite loss" in result.err
    assert "float32" in result.err
    assert not (tmp_path / "x" / "extension.json").exists()
    lines = [json.loads(line) for line in (tmp_path / "x" / "search-0.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines if "loss" in line] == [None] * len(
        [line for line in lines if "loss" in line]
    )


def test_eval_of_a_model_whose_losses_are_nan(cli, nan_model: Path, few, tmp_path: Path) -> None:
    """Told, not thrown: JSON has no NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        result = cli("eval", nan_model, "--lengths", "128", *few[:2], "-o", tmp_path / "x", "--json")
    if result.code == 0:
        assert result.json["perplexity"]["pi"][0]["perplexity"] is None
        assert json.loads((tmp_path / "x" / "results.json").read_text(), parse_constant=pytest.fail)
    else:
        assert result.code == 2
        assert "finite" in result.err


def test_out_of_memory_names_the_length_and_loses_nothing(
    cli, model: Path, few, tmp_path: Path, searched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fitted is kept: the same command with a smaller batch goes on."""
    plain, calls = loss_module._batch_losses, []

    def greedy(loaded: torch.nn.Module, tokens: torch.Tensor, *rest: object) -> np.ndarray:
        calls.append(len(tokens))
        if len(calls) > 4 and len(tokens) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
        return plain(loaded, tokens, *rest)

    monkeypatch.setattr(loss_module, "_batch_losses", greedy)
    command = ("search", model, "-l", 160, *few, "--budget", 3200, "-o", tmp_path / "x")
    result = cli(*command, "--batch", 2)
    assert result.code == 2
    assert "out of memory at length 160 with batch 2" in result.err
    assert "lower" in result.err
    known = (tmp_path / "x" / "search-0.jsonl").read_text().splitlines()
    assert len(known) == 9  # the settings, and four batches of two documents
    assert (tmp_path / "x" / "best.json").exists()
    assert cli(*command, "--batch", 1, "--resume").code == 0
    assert (tmp_path / "x" / "search-0.jsonl").read_text().splitlines()[:9] == known


@pytest.mark.parametrize("folder", ["missing", "empty", "model"])
def test_check_of_what_is_no_checkpoint(refused: Refused, model: Path, tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    shutil.copytree(model, tmp_path / "model")
    refused(f"{folder}.*(no config.json|extension.json)", "check", tmp_path / folder, model)


@pytest.mark.parametrize("text", ["[]", "3", "{", "\udcff"])
def test_check_of_a_broken_config(refused: Refused, model: Path, exported: Path, tmp_path: Path, text: str) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "broken"))
    (folder / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    refused("broken", "check", folder, model)


def test_check_against_another_model(refused: Refused, exported: Path, tmp_path: Path, model: Path) -> None:
    other = families.build("llama", num_hidden_layers=1, vocab_size=300, max_position_embeddings=128)
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "other")
    refused("extension.rope = .*the model has Rope.*original_length=128", "check", exported, tmp_path / "other")


def test_check_against_a_model_of_another_vocabulary(
    refused: Refused, exported: Path, tmp_path: Path, model: Path
) -> None:
    families.build("llama", num_hidden_layers=1, vocab_size=400).save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "other")
    refused("vocab", "check", exported, tmp_path / "other")


def test_a_checkpoint_that_is_extended_already(
    refused: Refused, exported: Path, few, factors: Path, tmp_path: Path
) -> None:
    said = "length = 128 is below the model's original length 160"
    refused(said, "search", exported, "-l", 128, *few, "--budget", 960, "-o", tmp_path / "x")
    said = "its checkpoint carries a rope scaling"
    refused(said, "export", exported, "--factors", factors, "-o", tmp_path / "x")


@pytest.mark.parametrize(
    "words",
    [
        ("export", "MODEL", "--factors", "RUN", "-o", "RUN", "--overwrite"),
        ("search", "MODEL", "-l", "160", "-o", "RUN", "--overwrite"),
        ("search", "MODEL", "-l", "160", "-o", "RUN", "--resume"),
        ("eval", "MODEL", "--lengths", "160", "-o", "RUN", "--overwrite"),
    ],
)
def test_the_run_of_an_extension_is_never_written_over(
    refused: Callable[..., None], model: Path, factors: Path, words: tuple[str, ...], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    (run / "stage-1" / "model").mkdir(parents=True)
    shutil.copy(factors, run / "extension.json")
    for name in ("plan.toml", "run.json", "cells.jsonl", "results.json", "stage-1/model/weights"):
        (run / name).write_text("{}")
    plan = "version = 1\n[[stages]]\nlength = 160\nfactors = 'yarn'\n"
    (run / "run.json").write_text(json.dumps({"version": VERSION, "model": str(model), "dtype": "auto", "plan": plan}))
    given = [{"MODEL": model, "RUN": run}.get(word, word) for word in words]
    refused("[Cc]hoose another output", *given)
