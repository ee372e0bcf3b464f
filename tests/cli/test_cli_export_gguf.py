from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGUFReader
from gguf_files import plain

from longrope.formats.load_factors import load_factors
from longrope.rope import Rope
from longrope.scaling import Extension
from longrope.schemes import scheme

Refused = Callable[..., None]
ROPE = Rope(dim=16, base=10000.0, original_length=64)


def tensors(path: Path) -> dict[str, bytes]:
    return {one.name: one.data.tobytes() for one in GGUFReader(path).tensors}


@pytest.fixture(scope="module")
def made(cli, model: Path, searched, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("gguf") / "x.gguf"
    result = cli("export", model, "--factors", searched[0], "--to", "gguf", "-o", output)
    assert result.code == 0, result.err
    assert f"llama-server -m {output} -c 160" in result.err
    return output


def test_the_file_holds_the_run_s_factors(searched, made: Path) -> None:
    extension = load_factors(searched[0] / "extension.json")
    assert isinstance(extension, Extension)
    long = extension.long.factors
    held = GGUFReader(made).get_tensor
    names = [one.name for one in GGUFReader(made).tensors]
    for name in ("rope_factors_long.weight", "rope_factors_short.weight"):  # static: the long ones twice
        assert held(names.index(name)).data.tolist() == pytest.approx(long, rel=1e-6)


@pytest.mark.parametrize("kind", ["checkpoint", "run"])
def test_what_longrope_extended_needs_no_factors(cli, exported: Path, made: Path, kind: str, tmp_path: Path) -> None:
    given = exported
    if kind == "run":
        given = tmp_path / "run"
        shutil.copytree(exported, given / "checkpoint")
    assert cli("export", given, "--to", "gguf", "-o", tmp_path / "dual.gguf").code == 0
    assert cli("export", given, "--to", "gguf", "-o", tmp_path / "static.gguf", "--mode", "static").code == 0
    dual, static = tensors(tmp_path / "dual.gguf"), tensors(tmp_path / "static.gguf")
    assert static == tensors(made)
    assert {name for name in dual if dual[name] != static[name]} == {"rope_factors_short.weight"}


def test_a_gguf_becomes_one_with_factors(cli, model: Path, searched, made: Path, tmp_path: Path) -> None:
    source = plain(tmp_path / "plain.gguf")
    assert cli("scale", source, "-l", 512, "--scheme", "yarn", "-o", tmp_path / "yarn.json").code == 0
    result = cli("export", source, "--factors", tmp_path / "yarn.json", "--to", "gguf", "-o", tmp_path / "x.gguf")
    assert result.code == 0, result.err
    assert tensors(tmp_path / "x.gguf").items() > tensors(source).items()


def test_factors_straight_after_the_model_are_taken_too(cli, model: Path, searched, made: Path, tmp_path: Path) -> None:
    output = tmp_path / "y.gguf"
    assert cli("export", model, searched[0], "--to", "gguf", "-o", output).code == 0
    assert output.read_bytes() == made.read_bytes()


def test_bad_input(refused: Refused, model: Path, searched, exported: Path, made: Path, tmp_path: Path) -> None:
    output, other = tmp_path / "x.gguf", tmp_path / "other.json"
    other.write_text(Extension.of(ROPE, scheme("ntk", ROPE, 128)).to_json())
    refused("to = 'onnx' is unknown", "export", model, "--factors", searched[0], "--to", "onnx", "-o", output)
    refused("factors are missing.*--factors", "export", model, "-o", output)
    refused("factors are missing.*--factors", "export", model, "--to", "gguf", "-o", output)
    refused("outtype = 'q9' is unknown", "export", exported, "--to", "gguf", "-o", output, "--outtype", "q9")
    arguments = ("export", model, "--factors", searched[0], "-o", output)
    refused("outtype = 'f16': huggingface has none", *arguments, "--outtype", "f16")
    refused("exists", "export", exported, "--to", "gguf", "-o", made)
    refused("given twice.*--factors", "export", model, other, "--factors", other, "-o", output)
    refused("checkpoint carries", "export", exported, "--factors", other, "--to", "gguf", "-o", output)
    refused("checkpoint carries", "export", made, "--factors", other, "--to", "gguf", "-o", output)
    refused(
        "keeps its quantisation",
        "export",
        plain(tmp_path / "plain.gguf"),
        "--factors",
        searched[0],
        "--to",
        "gguf",
        "-o",
        output,
        "--outtype",
        "q8_0",
    )
    words = ("export", tmp_path / "plain.gguf", "--factors", searched[0], "--to", "gguf", "-o", output)
    refused("dtype = 'float16': plain.gguf keeps its weights. Leave dtype out", *words, "--dtype", "float16")
    refused("to = 'gguf' with --no-check: .*Leave --no-check out", *words, "--no-check")
    (tmp_path / "half.gguf").write_bytes(made.read_bytes()[:5000])
    refused(
        "half.gguf is not a complete GGUF",
        "export",
        tmp_path / "half.gguf",
        "--factors",
        searched[0],
        "--to",
        "gguf",
        "-o",
        output,
    )
