from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from families import build
from peft import LoraConfig, get_peft_model
from test_huggingface import TOKENIZER, extension
from typer.testing import CliRunner

import longrope as lr
from longrope.cli.main import app
from longrope.errors import LongRopeError
from longrope.export.exporter import Exporter, ExportOptions, ExportRequest
from longrope.export.hf_config import config_fields, for_mode
from longrope.export.registry import EXPORTERS
from longrope.formats.load_factors import load_factors
from longrope.scaling import Extension


def write_text(request: ExportRequest) -> Extension:
    """Write the long factors as text."""
    written = for_mode(request.extension, request.mode)
    model, _ = request.load()
    request.output.write_text(f"{model.config.model_type} {request.name} {written.long.factors}")
    return written


def test_the_users_own_line_with_a_scaling_and_a_string(tmp_path: Path) -> None:
    model, tokenizer = build("llama"), TOKENIZER
    scaling, folder = extension(model).long, str(tmp_path / "folder")
    written = lr.export(model, tokenizer, scaling, folder)
    assert load_factors(folder) == written
    assert written.short == written.long == scaling


def test_a_name_is_taken_where_a_model_is(tmp_path: Path) -> None:
    scaling = lr.scheme("pi", lr.Rope.of(lr.load("tiny")[0]), 1024)
    for to, output in (("huggingface", tmp_path / "folder"), ("gguf", tmp_path / "x.gguf")):
        lr.export("tiny", None, scaling, output, to=to)
        held = load_factors(output)
        assert isinstance(held, Extension)
        assert held.long.factors == pytest.approx(scaling.factors)
    assert "# tiny, extended from 256 to 1,024 tokens" in (tmp_path / "folder" / "README.md").read_text()


def test_a_format_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXPORTERS, "text", Exporter(write_text, "a text"))
    model = build("llama")
    lr.export(model, TOKENIZER, extension(model), tmp_path / "python.txt", to="text")
    assert (tmp_path / "python.txt").read_text() == f"llama model {extension(model).long.factors}"
    (tmp_path / "factors.json").write_text(lr.scheme("pi", lr.Rope.of(lr.load("tiny")[0]), 1024).to_json())
    words = ["export", "tiny", "--factors", tmp_path / "factors.json", "--to", "text", "-o", tmp_path / "command.txt"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    assert f"Wrote {tmp_path / 'command.txt'}" in result.output
    assert (tmp_path / "command.txt").read_text().startswith("llama tiny (4.0, 4.0")


def test_the_help_names_every_format(tmp_path: Path) -> None:
    """Formats that a program adds before the command line is made are in its help, as rendered."""
    code = (
        "from longrope.export.exporter import Exporter\n"
        "from longrope.export.registry import EXPORTERS\n"
        "EXPORTERS['text'] = Exporter(print, 'a plain text')\n"
        "from longrope.cli.main import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, "export", "--help"], capture_output=True, text=True, check=True)
    rendered = " ".join(re.sub(r"[│╭╮╰╯─]", " ", done.stdout).split())
    assert "text: a plain text" in rendered
    assert all(f"{name}: {exporter.summary}" in rendered for name, exporter in EXPORTERS.items())


@pytest.mark.parametrize(("to", "command"), [("gguf", "llama-server -m"), ("huggingface", "longrope check")])
def test_the_next_steps_are_valid_shell(to: str, command: str, tmp_path: Path) -> None:
    model, output = build("llama"), tmp_path / "it's a folder"
    output.mkdir()
    (output / "config.json").write_text(json.dumps(config_fields(model.config.to_dict(), extension(model))))
    request = ExportRequest("my model", None, extension(model), output)
    lines = "\n".join(EXPORTERS[to].next_steps(request, extension(model)))
    assert str(output) in shlex.split(lines[lines.index(command) :].partition("\n")[0].rstrip(")"))


def refused(message: str, folder: Path, **options: object) -> None:
    model = build("llama")
    with pytest.raises(LongRopeError, match=message):
        lr.export(model, options.pop("tokenizer", TOKENIZER), extension(model), folder / "made", **options)
    assert not list(folder.iterdir())


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused("to = 'onnx' is unknown; choose one of huggingface, config, gguf", tmp_path, to="onnx")
    refused(r"outtype = 'f16': huggingface has none.*gguf", tmp_path, options=ExportOptions(outtype="f16"))
    refused("tokenizer = None: .*Give both", tmp_path, tokenizer=None)
    refused("mode = 'both'", tmp_path, mode="both")
    monkeypatch.setitem(EXPORTERS, "far", Exporter(write_text, "far", packages=("no_such_package",)))
    refused("to = 'far': it needs packages .*pip install no_such_package", tmp_path, to="far")


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("to", ["huggingface", "config"])
def test_an_adapter_that_is_not_in_the_weights_is_refused(to: str, tmp_path: Path) -> None:
    """Such an export once stopped at a file that peft does not write, and a config alone left the adapter out."""
    lora = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    adapted, added = get_peft_model(build("llama"), lora), build("llama")
    added.add_adapter(lora)
    made = extension(build("llama"))
    for model, message in (
        (adapted, "PeftModelForCausalLM: a wrapper of peft.*merge_and_unload"),
        (adapted.get_base_model(), "has an adapter of peft that is not in its weights"),
        (added, "has an adapter of peft that is not in its weights"),
    ):
        with pytest.raises(LongRopeError, match=message):
            lr.export(model, TOKENIZER, made, tmp_path / "made", to=to)  # pyright: ignore[reportArgumentType]
    assert not list(tmp_path.iterdir())
    lr.export(adapted.merge_and_unload(), TOKENIZER, made, tmp_path / "made", to=to)  # pyright: ignore


def test_a_model_in_the_working_folder_has_the_folders_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    model.save_pretrained(tmp_path / "my-model")
    TOKENIZER.save_pretrained(tmp_path / "my-model")
    monkeypatch.chdir(tmp_path / "my-model")
    lr.export(".", None, extension(model), tmp_path / "made", to="config")
    assert "# my-model, extended from 64 to 512 tokens" in (tmp_path / "made" / "README.md").read_text()
