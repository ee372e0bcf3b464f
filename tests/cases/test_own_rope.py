"""The rope fields of a model's own config: each is read, refused by name, or noted as without effect."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
from gguf import GGUFWriter
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from longrope.cli.layer_notes import check_layers
from longrope.errors import LongRopeError
from longrope.formats.gguf import find_extension
from longrope.formats.hf_config import extension_of_config
from longrope.formats.own_rope import describe_rope
from longrope.models.load import load, load_config
from longrope.storage.atomic import write_json

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown field": ({**YARN, "foo": 1}, "foo = 1: not a field of rope_type 'yarn'"),
    "attn_factor": ({**YARN, "attn_factor": 1.5}, "attn_factor = 1.5: transformers ignores this field"),
    "beta": ({"rope_type": "linear", "factor": 4.0, "beta": 32}, "beta = 32: not a field"),
    "alpha": ({"rope_type": "dynamic", "factor": 1.0, "alpha": 1000.0}, "alpha = 1000: transformers ignores"),
    "unknown type": ({"rope_type": "superrope", "factor": 4.0}, "rope_type = 'superrope'"),
    "not a number": ({"rope_type": "linear", "factor": "four"}, "factor = .four. must be a number"),
}
NOTED: dict[str, tuple[dict[str, Any], str]] = {
    "no type": ({"factor": 4.0}, "plain RoPE without factor"),
    "unknown without type": ({"rope_type": "default", "foo": 3}, "plain RoPE without foo"),
    "scaled": (YARN, r"carries a rope scaling \(yarn, L0 = 64, L = 256\).*L0 is the length with it: 256"),
    "no effect": ({**YARN, "finetuned": True}, "without effect on the factors of rope_type yarn: finetuned"),
}


@pytest.fixture(params=["rope_scaling", "rope_parameters"])
def field(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def save(folder: Path, field: str, scaling: dict[str, Any]) -> str:
    """A folder with a config alone, whose rope has these fields."""
    plain = families.config("llama")
    plain.save_pretrained(folder)
    fields = plain.to_dict() | {"rope_parameters": None} | {field: {**scaling, "rope_theta": 10000.0}}
    write_json(folder / "config.json", fields)
    return str(folder)


@pytest.mark.parametrize("name", REFUSED)
def test_a_field_that_changes_another_engines_numbers_is_refused(name: str, field: str, tmp_path: Path) -> None:
    scaling, message = REFUSED[name]
    folder = save(tmp_path / "model", field, scaling)
    for use in (load_config, load):
        with pytest.raises(LongRopeError, match=f"model = '.*{message}"):
            use(folder)


@pytest.mark.parametrize("name", NOTED)
def test_a_field_without_effect_is_noted(
    name: str, field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scaling, message = NOTED[name]
    check_layers(load_config(save(tmp_path / "model", field, scaling)), 128)
    assert_noted(capsys.readouterr().err, message)


def assert_noted(text: str, message: str) -> None:
    assert re.search(f"Note: .*{message}", " ".join(text.split()))


@pytest.mark.parametrize("family", families.FAMILIES)
def test_plain_rope_has_no_note(family: str) -> None:
    assert describe_rope(families.config(family)) is None


def test_each_layer_type_is_read() -> None:
    config = families.config("gemma3_text")
    config.rope_parameters["sliding_attention"] |= {"rope_type": "linear", "factor": 2.0, "beta": 1}
    with pytest.raises(LongRopeError, match="beta = 1"):
        describe_rope(config)


def test_names_of_a_model_types_own_are_read() -> None:
    """Dbrx writes max_seq_len, d_model and n_heads."""
    scaling = {"rope_type": "linear", "factor": 4.0}
    config = AutoConfig.for_model("dbrx", d_model=256, n_heads=4, max_seq_len=512, rope_scaling=scaling)
    extension = extension_of_config(config.to_dict())
    theirs, _ = ROPE_INIT_FUNCTIONS["linear"](config, "cpu")
    np.testing.assert_allclose(extension.long.inv_freq(extension.rope), theirs.double().numpy(), rtol=1e-6)
    assert extension.rope.original_length == 512


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("foo", 3.0, "rope.scaling.foo = 3.0: not a key"),
        ("alpha", 1000.0, "rope.scaling.alpha = 1000.0: not a key"),
        ("yarn_ext_factor", 0.5, "rope.scaling.yarn_ext_factor = 0.5: llama.cpp reads it in some"),
        ("finetuned", True, None),
    ],
)
@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_each_key_of_a_gguf_is_read_or_refused(
    key: str, value: float | bool, message: str | None, factor: float, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "llama")
    for name, number in {"context_length": 64, "embedding_length": 64, "attention.head_count": 4}.items():
        writer.add_uint32(f"llama.{name}", number)
    writer.add_float32("llama.rope.scaling.factor", factor)
    add = writer.add_bool if isinstance(value, bool) else writer.add_float32
    add(f"llama.rope.scaling.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if message is not None:
        with pytest.raises(LongRopeError, match=message):
            find_extension(path)
        return
    extension = find_extension(path)
    assert extension is None if factor == 1 else extension.long.factors == (4.0,) * 8
