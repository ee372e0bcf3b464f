from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import logits, tokens
from gguf import GGMLQuantizationType, GGUFWriter
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from longrope.errors import LongRopeError
from longrope.export.gguf.convert import export_gguf
from longrope.formats.gguf import FREQS, LONG, SHORT, extension_of_gguf, find_extension
from longrope.formats.gguf_file import architecture_keys, open_gguf
from longrope.formats.gguf_header import GgufHeader
from longrope.formats.hf_config import extension_of_config
from longrope.models.load import load
from longrope.models.patch import patch
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling

SIZE = {"context_length": 4096, "embedding_length": 256, "attention.head_count": 4, "rope.freq_base": 500000.0}
SHORTS, LONGS = [1 + i / 100 for i in range(32)], [1 + i * i / 16 for i in range(32)]
SETS = {LONG: LONGS, SHORT: SHORTS}
SCALING = "rope.scaling."


def write(path: Path, keys: dict[str, Any], tensors: dict[str, Any] | None = None, architecture: str = "llama") -> Path:
    writer = GGUFWriter(path, architecture)
    for name, value in keys.items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
        add[type(value)](f"{architecture}.{name}", value)
    for name, values in {**(tensors or {}), "output_norm.weight": [1.0] * 256}.items():
        writer.add_tensor(name, values if isinstance(values, np.ndarray) else np.array(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def of_config(**scaling: Any) -> Any:
    size = {"hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 4096, "rope_theta": 500000.0}
    return extension_of_config({**size, "rope_scaling": scaling})


@pytest.mark.parametrize(
    ("keys", "scaling"),
    [
        ({"type": "linear", "factor": 4.0}, {"type": "linear", "factor": 4.0}),
        ({"factor": 4.0}, {"type": "linear", "factor": 4.0}),
        ({"type": "yarn", "factor": 8.0, "original_context_length": 512}, {"type": "yarn", "factor": 8.0}),
        ({"type": "yarn", "factor": 8.0}, {"type": "yarn", "factor": 8.0}),
    ],
)
def test_keys_say_what_a_config_says(keys: dict[str, Any], scaling: dict[str, Any], tmp_path: Path) -> None:
    original = keys.get("original_context_length", 4096)
    extension = extension_of_gguf(write(tmp_path / "x.gguf", {**SIZE, **{SCALING + k: v for k, v in keys.items()}}))
    assert extension == of_config(**scaling, original_max_position_embeddings=original)


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_longrope(architecture: str, tmp_path: Path) -> None:
    keys = {"type": "longrope", "original_context_length": 1024, "attn_factor": 1.25}
    keys = {**SIZE, **{SCALING + name: value for name, value in keys.items()}}
    extension = extension_of_gguf(write(tmp_path / "x.gguf", keys, SETS, architecture))
    assert (extension.rope, extension.length) == (Rope(dim=64, base=500000.0, original_length=1024), 4096)
    for scaling, factors, length in ((extension.short, SHORTS, 1024), (extension.long, LONGS, 4096)):
        assert scaling.factors == tuple(np.float32(factors).tolist())
        assert (scaling.attention_factor, scaling.length, scaling.scheme) == (1.25, length, "longrope")


def test_the_frequencies_of_llama_3(tmp_path: Path) -> None:
    """The tensor is what llama.cpp's converter writes: plain frequencies over Llama 3's."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    size = {"hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 131072}
    parameters = {**scaling, "rope_theta": 500000.0, "original_max_position_embeddings": 8192}
    config = AutoConfig.for_model("llama", **size, rope_parameters=parameters)
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1 / 500000.0 ** (torch.arange(0, 64, 2).float() / 64)
    path = write(tmp_path / "x.gguf", {**SIZE, "context_length": 131072}, {FREQS: (plain / theirs).numpy()})
    extension = extension_of_gguf(path)
    assert extension.short == extension.long
    assert (extension.long.attention_factor, extension.length) == (1.0, 131072)
    np.testing.assert_allclose(extension.long.inv_freq(extension.rope), theirs.numpy(), rtol=2e-6)


def test_a_factor_multiplies_the_tensor(tmp_path: Path) -> None:
    """As in llama.cpp, where the tensor divides the angle before the factor does."""
    keys = {**SIZE, "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.attn_factor": 1.5}
    extension = extension_of_gguf(write(tmp_path / "x.gguf", keys, {FREQS: LONGS})).long
    yarn = of_config(type="yarn", factor=4.0).long
    np.testing.assert_allclose(extension.factors, np.array(yarn.factors) * np.float32(LONGS), rtol=1e-12)
    assert extension.attention_factor == pytest.approx(1.5 * yarn.attention_factor)


@pytest.mark.parametrize(
    ("keys", "dim"),
    [
        ({}, 64),
        ({"attention.key_length": 32}, 32),
        ({"attention.key_length": 128, "rope.dimension_count": 96}, 96),
    ],
)
def test_the_geometry(keys: dict[str, Any], dim: int, tmp_path: Path) -> None:
    size = {key: value for key, value in SIZE.items() if key != "rope.freq_base"}
    extension = extension_of_gguf(write(tmp_path / "x.gguf", {**size, **keys, SCALING + "factor": 2.0}))
    assert extension.rope == Rope(dim=dim, base=10000.0, original_length=4096)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {SCALING + "type": "none", SCALING + "factor": 4.0},
        {SCALING + "type": "linear"},
        {SCALING + "attn_factor": 1.0},
    ],
)
def test_a_plain_model(keys: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", {**SIZE, **keys})
    assert find_extension(path) is None
    with pytest.raises(LongRopeError, match=r"x\.gguf carries no rope scaling"):
        extension_of_gguf(path)


HALF = np.ones(32, dtype=np.uint8)
REFUSED = {
    "type": ({SCALING + "type": "dynamic", SCALING + "factor": 2.0}, {}, "'dynamic'.*linear.*yarn.*longrope"),
    "MLA": ({SCALING + "factor": 2.0, "attention.kv_lora_rank": 512}, {}, "not supported"),
    "betas": (
        {SCALING + "type": "yarn", SCALING + "factor": 2.0, SCALING + "yarn_beta_fast": 8.0},
        {},
        "yarn_beta_fast",
    ),
    "log": (
        {SCALING + "type": "yarn", SCALING + "factor": 2.0, SCALING + "yarn_log_multiplier": 0.1},
        {},
        "multiplier",
    ),
    "few": ({}, {FREQS: [1.0] * 16}, r"\(16,\) values.*\(32,\) is expected"),
    "zero": ({}, {FREQS: [0.0] * 32}, r"rope_freqs\.weight\[0\] = 0.0"),
    "negative": ({SCALING + "factor": -2.0}, {}, "factor = -2.0"),
    "heads": ({"attention.head_count": [4, 4], SCALING + "factor": 2.0}, {}, "attention.head_count = .* must be"),
    "length": ({"context_length": "long", SCALING + "factor": 2.0}, {}, "context_length = 'long' must be"),
    "wide": ({"attention.key_length": 4_000_000_000, SCALING + "factor": 2.0}, {}, "more than any model has"),
    "odd": ({"rope.dimension_count": 63, SCALING + "factor": 2.0}, {}, "must be even"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    keys, tensors, said = REFUSED[name]
    with pytest.raises(LongRopeError, match=f"x.gguf: .*{said}"):
        extension_of_gguf(write(tmp_path / "x.gguf", {**SIZE, **keys}, tensors))


def test_a_tensor_of_another_type(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    for name, value in SIZE.items():
        (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(f"llama.{name}", value)
    writer.add_tensor(FREQS, np.zeros(34, dtype=np.uint8), raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(LongRopeError, match=r"float32 .* is expected"):
        extension_of_gguf(tmp_path / "x.gguf")


def test_a_file_cut_anywhere_or_of_other_content(tmp_path: Path) -> None:
    content = write(tmp_path / "x.gguf", {**SIZE, SCALING + "factor": 2.0, "words": ["a", "bc"]}, SETS).read_bytes()
    cut = tmp_path / "cut.gguf"
    for end in [*range(1200), *range(1200, len(content), 101), len(content) - 1]:
        cut.write_bytes(content[:end])
        with pytest.raises(LongRopeError, match=r"cut.gguf is not a complete GGUF file.*fetch it again"):
            open_gguf(cut)
    for other in (
        b"GGML" + content[4:],
        b"not a gguf file at all",
        content[::-1],
        b"\0" * 5000,
        b"GGUF" + b"\xff" * 60,
    ):
        cut.write_bytes(other)
        with pytest.raises(LongRopeError, match=r"cut.gguf is not a complete GGUF file"):
            open_gguf(cut)


def test_a_word_that_is_damaged(tmp_path: Path) -> None:
    content = write(tmp_path / "x.gguf", {**SIZE, SCALING + "factor": 2.0, SCALING + "type": "yarn"}).read_bytes()
    (tmp_path / "x.gguf").write_bytes(content.replace(b"yarn", b"\xffarn"))
    with pytest.raises(LongRopeError, match=r"llama\.rope\.scaling\.type is not text; the file is damaged"):
        find_extension(tmp_path / "x.gguf")


def test_no_file_and_no_key(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.gguf", tmp_path):
        with pytest.raises(LongRopeError, match="cannot read"):
            open_gguf(path)
    with pytest.raises(LongRopeError, match=r"has no key general\.architecture: it is not a language model"):
        architecture_keys(GgufHeader(tmp_path / "x.gguf", "<", {}, {}))


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(LongRopeError, match="pip install gguf"):
        open_gguf(tmp_path / "x.gguf")


@pytest.mark.real
@pytest.mark.parametrize(
    ("keys", "tensors"),
    [
        ({"type": "linear", "factor": 4.0}, {}),
        ({"factor": 4.0}, {}),
        ({"type": "yarn", "factor": 8.0, "attn_factor": 1.2}, {}),
        ({"type": "yarn", "factor": 8.0}, {FREQS: LONGS}),
        ({"type": "none", "factor": 4.0, "attn_factor": 1.2}, {FREQS: LONGS}),
        ({"type": "longrope", "attn_factor": 1.2}, SETS),
        ({"type": "longrope", "factor": 2.0}, SETS),
    ],
)
def test_llama_cpp_computes_with_what_is_read(keys: dict[str, Any], tensors: dict[str, Any], tmp_path: Path) -> None:
    """Logits of `tiny` with these keys and tensors, in contexts of L0 and of four times that."""
    from llama_cpp import Llama

    model, tokenizer = load("tiny", dtype="float32")
    rope = Rope.of(model)
    export_gguf(
        model, tokenizer, Extension.of(rope, Scaling([1.0] * 32, length=512)), tmp_path / "plain.gguf", outtype="f32"
    )
    reader, writer = open_gguf(tmp_path / "plain.gguf"), GGUFWriter(tmp_path / "x.gguf", "llama")
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "general.architecture", "llama.rope.scaling", "llama.context_length")):
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if field.types[1:] else None)
    for name, value in {**keys, "original_context_length": 256}.items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(f"llama.{SCALING}{name}", value)
    writer.add_uint32("llama.context_length", 2048)
    for name, values in tensors.items():
        writer.add_tensor(name, np.array(values, dtype=np.float32))
    for one in reader.tensors:
        if one.name not in SETS:
            writer.add_tensor(one.name, one.data, raw_dtype=one.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    extension, ids = extension_of_gguf(tmp_path / "x.gguf"), tokens(1, 1000)
    assert extension.rope == rope
    for context, scaling in ((256, extension.short), (1024, extension.long)):
        row = ids[:, :context]
        llama = Llama(
            str(tmp_path / "x.gguf"), n_ctx=context, n_threads=1, logits_all=True, verbose=False, type_k=0, type_v=0
        )
        llama.eval(row[0].tolist())
        theirs = torch.from_numpy(np.array(llama.scores[: row.shape[1]], dtype=np.float32))
        llama.close()
        with patch(model, scaling):
            ours = logits(model, row)[0]
        assert (ours - theirs).square().mean() < 1e-8 * ours.square().mean()
