"""An export gets its name only if a fresh process computes from it what the model computes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf_files
import pytest
import torch
from families import build, logits, tokens
from test_apply import TWO_SETS
from test_huggingface import TOKENIZER, extension
from transformers import PreTrainedModel

import longrope as lr
from longrope.errors import LongRopeError
from longrope.export import huggingface, verify
from longrope.export.exporter import ExportOptions
from longrope.export.gguf import convert
from longrope.export.huggingface import export_huggingface
from longrope.formats.load_factors import load_factors
from longrope.models.load import load
from longrope.rope import Rope
from longrope.schemes import scheme


@pytest.fixture
def llama() -> PreTrainedModel:
    return build("llama")


def refused(message: str, model: PreTrainedModel, folder: Path, **options: Any) -> None:
    """Whether an export is refused and nothing is left of it."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(LongRopeError, match=message):
        export_huggingface(model, TOKENIZER, extension(model), folder / "made", **options)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.usefixtures("fresh_process")
@pytest.mark.parametrize(("family", "mode"), [("gemma3_text", "static"), ("llama", "dual")])
def test_a_good_export_in_a_fresh_process(family: str, mode: str, tmp_path: Path) -> None:
    model = build(family).to(torch.bfloat16)
    before = logits(model, tokens(1, 100))
    held = export_huggingface(model, TOKENIZER, extension(model), tmp_path / "made", mode=mode)
    assert load_factors(tmp_path / "made") == held
    assert torch.equal(logits(model, tokens(1, 100)), before)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16}


def other_factor(config: dict[str, Any], name: str, pair: int) -> dict[str, Any]:
    for fields in (config["rope_scaling"], config["rope_parameters"]):
        fields[name] = [2 * factor if i == pair else factor for i, factor in enumerate(fields[name])]
    return config


def other_attention(config: dict[str, Any]) -> dict[str, Any]:
    for fields in (config["rope_scaling"], config["rope_parameters"]):
        fields["attention_factor"] = 1.5
    return config


SABOTAGED: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "64 tokens": lambda config: other_factor(config, "short_factor", 1),
    "512 tokens": lambda config: other_factor(config, "long_factor", 2),
    "6[4] tokens": other_attention,
}


@pytest.mark.parametrize("where", SABOTAGED)
def test_a_config_with_other_factors_is_refused(
    where: str, llama: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, sabotage = huggingface.config_fields, SABOTAGED[where]
    monkeypatch.setattr(huggingface, "config_fields", lambda *given: sabotage(right(*given)))
    message = rf"made: .*computes other logits.*in a text of {where} they differ by 0\.\d+ .*most at position \d+"
    refused(message, llama, tmp_path, mode="dual")
    export_huggingface(llama, TOKENIZER, extension(llama), tmp_path / "made", mode="dual", check=False)
    assert (tmp_path / "made" / "config.json").is_file()


@pytest.mark.usefixtures("fresh_process")
def test_other_weights_are_refused_and_the_earlier_checkpoint_stays(
    llama: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_huggingface(llama, TOKENIZER, extension(llama), tmp_path / "made", check=False)
    other = build("llama")
    other.model.layers[1].mlp.up_proj.weight.data[:, 0].neg_()
    monkeypatch.setattr(llama, "save_pretrained", other.save_pretrained)
    refused("computes other logits than the model", llama, tmp_path, overwrite=True)
    assert torch.equal(load(str(tmp_path / "made"))[0].state_dict()["lm_head.weight"], llama.lm_head.weight)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_weights_that_are_not_finite_are_refused(value: float, llama: PreTrainedModel, tmp_path: Path) -> None:
    llama.model.layers[1].mlp.up_proj.weight.data[3, 4] = value
    message = r"not finite in a text of 64 tokens.*model\.layers\.1\.mlp\.up_proj\.weight holds numbers that are not"
    refused(message, llama, tmp_path)


def gguf_refused(message: str, model: PreTrainedModel, folder: Path, outtype: str = "auto") -> None:
    options = ExportOptions(outtype=outtype)
    with pytest.raises(LongRopeError, match=message):
        lr.export(
            model, gguf_files.TOKENIZER, extension(model), folder / "x.gguf", to="gguf", mode="dual", options=options
        )
    assert not list(folder.iterdir())


@pytest.mark.parametrize(("value", "outtype"), [(float("nan"), "f32"), (1e5, "f16")])
def test_numbers_that_are_not_finite_in_a_gguf_type_are_refused(value: float, outtype: str, tmp_path: Path) -> None:
    model = gguf_files.model()
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = value
    message = rf"up_proj\.weight: it is not finite as {outtype.upper()}\. Choose outtype f32 or bf16"
    gguf_refused(message, model, tmp_path, outtype)


@pytest.mark.usefixtures("fresh_process")
def test_the_process_runs_no_code_of_the_working_folder(
    llama: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as that of a checkpoint that was fetched, by the name of a module that the program imports."""
    (tmp_path / "safetensors.py").write_text("raise SystemExit('run')")
    monkeypatch.chdir(tmp_path)
    export_huggingface(llama, TOKENIZER, extension(llama), Path("made"))


@pytest.mark.usefixtures("fresh_process")
def test_a_process_that_is_killed_or_fails(
    llama: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    monkeypatch.setattr(verify, "PROGRAM", (sys.executable, "-c", killed))
    refused("ended by signal 9.*memory ran out.*check=False.*--no-check", llama, tmp_path)
    monkeypatch.setattr(verify, "PROGRAM", (sys.executable, "-c", "raise OSError('no head')"))
    refused("does not open in a fresh process: OSError: no head", llama, tmp_path)


def test_a_copy_that_does_not_fit_is_refused_before_anything_is_written(
    llama: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "free_memory", lambda device: 4 * llama.num_parameters() - 1)
    assert not verify.fits_copy(llama)
    refused("check = True: .*float32.*does not fit.*--no-check", llama, tmp_path)
    monkeypatch.setattr(verify, "free_memory", lambda device: 4 * llama.num_parameters())
    assert verify.fits_copy(llama)


def test_a_checkpoint_of_two_sets_is_exported_with_the_long_one_alone(llama: PreTrainedModel, tmp_path: Path) -> None:
    made = extension(llama)
    export_huggingface(llama, TOKENIZER, made, tmp_path / "dual", mode="dual")
    opened, tokenizer = load(str(tmp_path / "dual"))
    export_huggingface(opened, tokenizer, made, tmp_path / "static", mode="static")
    config = json.loads((tmp_path / "static" / "config.json").read_text())
    assert config["rope_scaling"]["short_factor"] == list(made.long.factors)


@pytest.mark.parametrize(
    ("name", "message"),
    [("factor_tensors", "has other short factors"), ("scaling_keys", "has the attention factor 1.25")],
)
def test_a_gguf_file_with_another_scaling_is_refused(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(convert, name)

    def wrong(*given: Any) -> dict[str, Any]:
        values = right(*given)
        if name == "factor_tensors":
            return {key: 2 * factors for key, factors in values.items()}
        return {key: 1.25 if key.endswith("attn_factor") else value for key, value in values.items()}

    monkeypatch.setattr(convert, name, wrong)
    gguf_refused(rf"x\.gguf: the file, reopened, {message}", gguf_files.model(), tmp_path)


def test_a_model_of_two_sets_is_compared_between_its_lengths_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A config of two sets has the new long one there, so the model is compared with it."""
    model = build("llama", **TWO_SETS)
    right, extended = verify._spread_text, scheme("ntk", Rope.of(model), 1024)
    lengths = []
    monkeypatch.setattr(verify, "_spread_text", lambda model, length: lengths.append(length) or right(model, length))
    lr.export(model, TOKENIZER, extended, tmp_path / "made", mode="dual")
    assert lengths == [64, 256, 1024]
