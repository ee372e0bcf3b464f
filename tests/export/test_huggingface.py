from __future__ import annotations

import json
import os
from pathlib import Path

import families
import numpy as np
import pytest
import torch
from families import build, logits, tokens
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from longrope.errors import LongRopeError
from longrope.export.huggingface import export_huggingface
from longrope.export.parity import check_parity
from longrope.formats.load_factors import load_factors
from longrope.models.load import load
from longrope.models.patch import patch
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import attention_factor, scheme

LENGTH = 512
LENGTHS = [63, 64, 65, 511]
TOKENIZER = families.tokenizer()


def extension(model: PreTrainedModel, policy: str = "su", **fields: object) -> Extension:
    rope = Rope.of(model)
    attention, pairs = attention_factor(policy, rope, LENGTH), rope.dim // 2
    short = Scaling([1 + 0.2 * i / pairs for i in range(1, pairs + 1)], attention_factor=attention)
    found = {"attention_factor": attention, "length": LENGTH, "provenance": {"seed": 7}, **fields}
    long = Scaling(scheme("pi", rope, LENGTH).factors, **found)
    return Extension(rope=rope, short=short, long=long, length=LENGTH)


@pytest.fixture
def llama() -> PreTrainedModel:
    return build("llama")


def same(folder: Path, model: PreTrainedModel, held: Extension, lengths: list[int]) -> bool:
    """Whether plain transformers computes from the folder what the patched model computes."""
    exported = AutoModelForCausalLM.from_pretrained(folder).eval()
    differences = []
    for length in lengths:
        x = tokens(1, length)
        with patch(model, held):
            ours = logits(model, x)
        differences.append((logits(exported, x) - ours).abs().max().item())
    return max(differences) < 1e-4


@pytest.mark.parametrize(("mode", "policy"), [("dual", "none"), ("dual", "su"), ("static", "su")])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_plain_transformers_computes_the_same(family: str, mode: str, policy: str, tmp_path: Path) -> None:
    model = build(family)
    if (family, policy) == ("phi3", "none"):
        with pytest.raises(LongRopeError, match="phi3"):
            export_huggingface(model, TOKENIZER, extension(model, policy), tmp_path / "made", mode=mode)
        return
    export_huggingface(model, TOKENIZER, extension(model, policy), tmp_path / "made", mode=mode)
    parities = check_parity(tmp_path / "made", model)
    assert [parity.length for parity in parities] == LENGTHS
    assert max(parity.difference for parity in parities) < 1e-4


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3"])
@pytest.mark.parametrize("mode", ["dual", "static"])
def test_all_logits_are_the_same(family: str, mode: str, tmp_path: Path) -> None:
    model = build(family)
    made = extension(model)
    held = export_huggingface(model, TOKENIZER, made, tmp_path / "made", mode=mode)
    assert same(tmp_path / "made", model, held, LENGTHS)
    assert not same(tmp_path / "made", model, Extension.of(held.rope, held.long), [64])
    assert same(tmp_path / "made", model, made, [64]) == (mode == "dual")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_keep_their_dtype(llama: PreTrainedModel, dtype: torch.dtype, tmp_path: Path) -> None:
    export_huggingface(llama.to(dtype), TOKENIZER, extension(llama), tmp_path / "made", mode="dual")
    model, _ = load(str(tmp_path / "made"))
    assert model.dtype == dtype
    assert all(parity.ok for parity in check_parity(tmp_path / "made", llama))


def test_what_the_folder_holds(llama: PreTrainedModel, tmp_path: Path) -> None:
    made, folder = extension(llama), tmp_path / "made"
    held = export_huggingface(llama, TOKENIZER, made, folder, mode="dual", name="my-llama")
    names = {path.name for path in folder.iterdir()}
    wanted = {"config.json", "generation_config.json", "model.safetensors", "extension.json", "README.md", "SERVING.md"}
    assert wanted | {"tokenizer.json", "tokenizer_config.json"} <= names
    assert held == made == load_factors(folder / "extension.json")
    assert held.long.provenance == {"seed": 7}
    assert AutoTokenizer.from_pretrained(folder)("t7 t8")["input_ids"] == [7, 8]
    assert all(text in (folder / "README.md").read_text() for text in ("my-llama", "512", "64", "seed: 7"))
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert Rope.of(llama) == made.rope


@pytest.mark.skipif(os.name == "nt", reason="no permissions of groups and others")
def test_others_may_read_the_weights_too(llama: PreTrainedModel, tmp_path: Path) -> None:
    """Safetensors 0.8 writes them for their owner alone."""
    export_huggingface(llama, TOKENIZER, extension(llama), tmp_path / "made")
    (tmp_path / "file").touch()
    permissions = {path.name: path.stat().st_mode for path in (tmp_path / "made").iterdir()}
    assert permissions == dict.fromkeys(permissions, (tmp_path / "file").stat().st_mode)


def test_sharded_and_tied_weights(tmp_path: Path) -> None:
    build("llama", tie_word_embeddings=True).save_pretrained(tmp_path / "plain", max_shard_size="20KB")
    TOKENIZER.save_pretrained(tmp_path / "plain")
    assert len(list((tmp_path / "plain").glob("model-*.safetensors"))) > 2
    model, tokenizer = load(str(tmp_path / "plain"))
    held = export_huggingface(model, tokenizer, extension(model), tmp_path / "made")
    assert same(tmp_path / "made", build("llama", tie_word_embeddings=True), held, LENGTHS)


def test_a_scaling_is_never_put_onto_another(llama: PreTrainedModel, tmp_path: Path) -> None:
    export_huggingface(llama, TOKENIZER, extension(llama), tmp_path / "made")
    exported, _ = load(str(tmp_path / "made"))
    other = extension(llama, provenance={"seed": 8}, scheme="mine")
    other = Extension(other.rope, other.short, other.long.times([1.5] * 8), LENGTH)
    refused(
        exported,
        other,
        tmp_path / "again",
        r"its checkpoint carries a rope scaling.*load the checkpoint that they were made for",
    )


@pytest.mark.parametrize("mode", ["dual", "static"])
def test_a_checkpoint_is_exported_again_with_its_own_factors(llama: PreTrainedModel, mode: str, tmp_path: Path) -> None:
    """A Trainer's checkpoint, say, becomes one with a model card and the fields for every engine."""
    found = extension(llama)
    export_huggingface(llama, TOKENIZER, found, tmp_path / "first", mode=mode)
    exported, tokenizer = load(str(tmp_path / "first"))
    export_huggingface(exported, tokenizer, found, tmp_path / "again", mode=mode)
    first, again = tmp_path / "first", tmp_path / "again"
    assert json.loads((first / "config.json").read_text()) == json.loads((again / "config.json").read_text())
    assert (first / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()


@pytest.mark.parametrize("room", [5_000, 100_000])
def test_a_disk_that_fills_up_leaves_nothing(llama: PreTrainedModel, room: int, at_most, tmp_path: Path) -> None:
    with at_most(room):
        refused(llama, extension(llama), tmp_path / "made", "cannot write")


def test_static_is_the_default(llama: PreTrainedModel, tmp_path: Path) -> None:
    held = export_huggingface(llama, TOKENIZER, extension(llama), tmp_path / "made")
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    assert held.short == held.long
    for field in ("rope_scaling", "rope_parameters"):
        assert config[field]["short_factor"] == config[field]["long_factor"] == list(held.long.factors)


def refused(model: PreTrainedModel, made: Extension, folder: Path, message: str, **options: object) -> None:
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(LongRopeError, match=message):
        export_huggingface(model, TOKENIZER, made, folder, **options)
    assert sorted(folder.parent.rglob("*")) == before


def test_what_a_config_cannot_hold_is_refused(llama: PreTrainedModel, tmp_path: Path) -> None:
    two = Extension.of(Rope.of(llama), extension(llama).long)
    refused(llama, two, tmp_path / "made", "attention_factor = 1 ", mode="dual")
    refused(llama, extension(llama, start_tokens=4), tmp_path / "made", "start_tokens = 4")
    refused(llama, extension(llama), tmp_path / "made", "mode = 'triple'", mode="triple")
    refused(llama, extension(build("mixtral")), tmp_path / "made", "1000000.*: the model has")


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_existing_folder_is_left_alone_on_failure(llama: PreTrainedModel, overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "notes.txt").write_text("mine")
    (tmp_path / "made" / "extension.json").write_text("{}")
    if not overwrite:
        refused(llama, extension(llama), tmp_path / "made", "exists.*overwrite")
    phi3 = build("phi3")
    refused(phi3, extension(phi3, "none"), tmp_path / "made", "phi3", overwrite=True)
    assert (tmp_path / "made" / "notes.txt").read_text() == "mine"


def test_a_failure_half_way_leaves_nothing(llama: PreTrainedModel, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "notes.txt").write_text("mine")
    (tmp_path / "made" / "extension.json").write_text("{}")
    broken = build("llama")
    broken.generation_config.temperature = 0.5  # save_pretrained refuses it without do_sample
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Exception, match=r"temperature|cannot write"):
        export_huggingface(broken, TOKENIZER, extension(llama), tmp_path / "made", overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_old_folder_stays_where_the_new_one_cannot_have_its_name(
    llama: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_huggingface(llama, TOKENIZER, extension(llama), tmp_path / "made")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.suffix == ".tmp" and target == tmp_path / "made":
            raise PermissionError(13, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    refused(llama, extension(llama), tmp_path / "made", "cannot write .*Permission denied", overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    (tmp_path / "made").rename(tmp_path / ".made.old")  # as a process leaves it that is killed there
    with pytest.raises(LongRopeError, match=r"exists.*overwrite"):
        export_huggingface(llama, TOKENIZER, extension(llama), tmp_path / "made")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_overwrite_replaces_the_folder(llama: PreTrainedModel, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "notes.txt").write_text("mine")
    (tmp_path / "made" / "extension.json").write_text("{}")
    export_huggingface(llama, TOKENIZER, extension(llama), tmp_path / "made", overwrite=True)
    assert not (tmp_path / "made" / "notes.txt").exists()
    assert all(parity.ok for parity in check_parity(tmp_path / "made", llama))


@pytest.mark.parametrize("file", ["config.json", "search-0.jsonl"])
def test_overwrite_replaces_only_what_longrope_exported(llama: PreTrainedModel, file: str, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / file).write_text("{}")
    if file == "search-0.jsonl":
        (tmp_path / "made" / "extension.json").write_text("{}")
    refused(llama, extension(llama), tmp_path / "made", "not a checkpoint that longrope wrote", overwrite=True)
    assert (tmp_path / "made" / file).exists()


def test_a_place_that_cannot_be_written(llama: PreTrainedModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(llama, extension(llama), tmp_path / "file" / "made", "cannot write")


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("field", "value", "wrong"),
    [("long_factor", [9.0] * 8, [65, 511]), ("short_factor", [2.0] * 8, [63, 64]), ("attention_factor", 1.5, LENGTHS)],
)
def test_check_parity_notices_an_edited_config(
    llama: PreTrainedModel, field: str, value: object, wrong: list[int], tmp_path: Path
) -> None:
    export_huggingface(llama, TOKENIZER, extension(llama), tmp_path / "made", mode="dual")
    path = tmp_path / "made" / "config.json"
    config = json.loads(path.read_text())
    edit(path, **{key: {**config[key], field: value} for key in ("rope_scaling", "rope_parameters")})
    parities = check_parity(tmp_path / "made", llama)
    assert [parity.length for parity in parities if not parity.ok] == wrong


def test_check_parity_at_a_length_that_no_memory_holds_as_a_whole_text(llama: PreTrainedModel, tmp_path: Path) -> None:
    rope = Rope.of(llama)
    export_huggingface(llama, TOKENIZER, Extension.of(rope, scheme("heuristic", rope, 2**21)), tmp_path / "made")
    parities = check_parity(tmp_path / "made", llama)
    assert [(parity.length, parity.ok) for parity in parities] == [(n, True) for n in (63, 64, 65, 2**21 - 1)]
    path = tmp_path / "made" / "config.json"
    config = json.loads(path.read_text())
    edited = {"long_factor": [*config["rope_parameters"]["long_factor"][:-1], 2.0**20]}  # of the slowest pair
    edit(path, **{key: {**config[key], **edited} for key in ("rope_scaling", "rope_parameters")})
    assert [parity.ok for parity in check_parity(tmp_path / "made", llama)][-1] is False


def test_check_parity_notices_other_weights(llama: PreTrainedModel, tmp_path: Path) -> None:
    export_huggingface(llama, TOKENIZER, extension(llama), tmp_path / "made")
    llama.model.layers[0].mlp.down_proj.weight.data.mul_(1.2)
    assert not any(parity.ok for parity in check_parity(tmp_path / "made", llama, [10, 100]))


def test_check_parity_takes_arrays_of_lengths_and_a_loaded_model(llama: PreTrainedModel, tmp_path: Path) -> None:
    export_huggingface(llama, TOKENIZER, extension(llama), tmp_path / "made", check=False)
    for lengths in (np.array([10, 70]), torch.tensor([10, 70])):
        parities = check_parity(tmp_path / "made", llama, lengths)  # pyright: ignore[reportArgumentType]
        assert [(parity.length, parity.ok) for parity in parities] == [(10, True), (70, True)]
    assert [parity.length for parity in check_parity(tmp_path / "made", llama, 70)] == [70]
    with pytest.raises(LongRopeError, match=r"lengths\[0\] = 0 must be a whole number, 1 or more"):
        check_parity(tmp_path / "made", llama, [0])
    with pytest.raises(LongRopeError, match=r"model = a str: not a loaded model"):
        check_parity(tmp_path / "made", "tiny")  # pyright: ignore[reportArgumentType]


def test_check_parity_of_no_checkpoint(llama: PreTrainedModel, tmp_path: Path) -> None:
    with pytest.raises(LongRopeError, match=r"extension.json"):
        check_parity(tmp_path, llama)
    made = extension(llama)
    (tmp_path / "extension.json").write_text(made.long.to_json())
    with pytest.raises(LongRopeError, match="one set of factors without a model's geometry; an extension is needed"):
        check_parity(tmp_path, llama)
    (tmp_path / "extension.json").write_text(made.to_json())
    with pytest.raises(LongRopeError, match="cannot be loaded"):
        check_parity(tmp_path, llama)
