from __future__ import annotations

import json
from pathlib import Path

import gguf_files
import pytest

from longrope.errors import LongRopeError
from longrope.export.gguf.convert import export_gguf
from longrope.export.huggingface import export_huggingface
from longrope.formats.load_factors import load_extension, load_factors
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.storage.atomic import write_text

SCALING = Scaling([1.0, 2.0, 3.0, 4.0], attention_factor=1.1, length=128, provenance={"seed": 3})
EXTENSION = Extension.of(Rope(dim=8, base=1e4, original_length=64), SCALING)


@pytest.mark.parametrize("noun", [SCALING, EXTENSION])
def test_load_factors_reads_what_was_written(noun: Scaling | Extension, tmp_path: Path) -> None:
    write_text(tmp_path / "factors.json", noun.to_json())
    assert load_factors(tmp_path / "factors.json") == noun
    assert load_factors(str(tmp_path / "factors.json")) == noun
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "factors.json").write_text(noun.to_json(), encoding=encoding)
        assert load_factors(tmp_path / "factors.json") == noun


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY\x01\x00\xff\xfe\x00",
        b"1.0,2.0\n",
        b"[1.0, 2.0]",
        b"3",
        b"null",
        b'{"kind": "plan", "version": 1}',
        b'{"rope_theta": 10000.0}',
        b'{"kind": "scaling", "version": 2, "factors": [1.0]}',
        b'{"kind": "scaling", "version": 1}',
        b'{"kind": "extension", "version": 1}',
    ],
)
def test_load_factors_names_a_file_that_is_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    path.write_bytes(content)
    with pytest.raises(LongRopeError) as error:
        load_factors(path)
    assert str(path) in str(error.value)


CONFIG = {"head_dim": 8, "rope_theta": 10000.0, "max_position_embeddings": 64}
CONFIG |= {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}


def test_every_form_is_told_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "other.json").write_text(json.dumps(CONFIG))
    for name in ("x.csv", "X.CSV"):
        (tmp_path / name).write_text("1,2,3,4\n" * 3)
    scaling = Scaling([2.0] * 4, scheme="pi", length=128)
    extension = Extension(Rope(dim=8, base=1e4, original_length=64), scaling, scaling, 128)
    for path in (tmp_path, tmp_path / "config.json", tmp_path / "other.json"):
        assert load_factors(path) == extension
    assert load_factors(tmp_path / "x.csv") == load_factors(tmp_path / "X.CSV") == Scaling([1, 2, 3, 4])
    write_text(tmp_path / "extension.json", EXTENSION.to_json())
    assert load_factors(tmp_path) == EXTENSION
    assert load_factors(tmp_path / "config.json") == extension


def test_a_gguf_file(tmp_path: Path) -> None:
    made = gguf_files.model()
    rope = Rope.of(made)
    scaling = Scaling([1.0, 2.0] * (rope.dim // 4), attention_factor=1.25, scheme="longrope", length=128)
    written = Extension(rope, Scaling([1.5] * (rope.dim // 2), attention_factor=1.25), scaling, 128)
    for mode in ("dual", "static"):
        export_gguf(made, gguf_files.TOKENIZER, written, tmp_path / "x.gguf", mode=mode, overwrite=True)
        loaded = load_factors(tmp_path / "x.gguf")
        assert isinstance(loaded, Extension)
        assert (loaded.rope, loaded.long, loaded.length) == (rope, scaling, 128)
        assert loaded.short.factors == (scaling.factors if mode == "static" else written.short.factors)
    export_huggingface(made, gguf_files.TOKENIZER, written, tmp_path / "folder")
    (tmp_path / "folder" / "extension.json").unlink()
    assert load_factors(tmp_path / "folder") == loaded


def test_what_is_wrong_within_names_the_file(tmp_path: Path) -> None:
    for name, content, said in (
        ("config.json", '{"model_type": "llama"}', "carries no rope scaling"),
        ("x.csv", "1,2\n1,3\n", "layer 1"),
        ("x.gguf", "", "not a complete GGUF file"),
        ("x.npz", "", "longrope reads .*config.json.*csv.*gguf"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(LongRopeError, match=f"{name}.*{said}") as error:
            load_factors(tmp_path / name)
        assert str(error.value).count(str(tmp_path)) == 1


@pytest.mark.parametrize("name", ["absent.json", "absent.csv", "absent.gguf", "."])
def test_load_factors_of_no_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(LongRopeError, match="cannot read "):
        load_factors(tmp_path / name)


def test_load_extension_refuses_one_set_of_factors(tmp_path: Path) -> None:
    (tmp_path / "extension.json").write_text(EXTENSION.to_json())
    assert load_extension(tmp_path) == EXTENSION
    (tmp_path / "scaling.json").write_text(SCALING.to_json())
    with pytest.raises(LongRopeError, match=r"scaling.json: one set of factors without a model's geometry"):
        load_extension(tmp_path / "scaling.json")
