"""The readers of files from elsewhere, with the properties that must hold of every result."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from longrope.data.documents import load_documents
from longrope.errors import LongRopeError
from longrope.formats.gguf_file import open_gguf
from longrope.formats.load_factors import load_factors
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.stages.plan import load_plan, parse_plan, shipped_plans
from longrope.storage.jsonl import JsonlFile

SETTINGS = {"model": "tiny", "lengths": [1, 2]}
SIZE = {"hidden_size": 16, "num_attention_heads": 2, "max_position_embeddings": 64, "rope_theta": 1e4}
SETS = {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [1.0, 2.0, 4.0, 8.0]}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES = [
    {"type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16, "beta_slow": 2, "truncate": False},
    {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.0, "attention_factor": 1.2},
    {"rope_type": "llama3", "factor": 8.0, **LLAMA3, "original_max_position_embeddings": 32},
    {"rope_type": "longrope", **SETS, "factor": 4.0, "attention_factor": 1.2},
    {"type": "su", **SETS, "short_mscale": 1.1, "long_mscale": 1.2},
    {"full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
]
MODELS = ["", "llama", "phi3", "phimoe", "gemma3_text", "qwen2", "gpt_neox"]
GGUF = {"context_length": 64, "embedding_length": 16, "attention.head_count": 2, "rope.freq_base": 1e4}


class Reader(NamedTuple):
    """A kind of file and its reader.

    Attributes:
        name: File name; its suffix selects the format.
        read: Function that reads a file and checks the result, or raises `LongRopeError`.
        seeds: Valid files, as bytes.
    """

    name: str
    read: Callable[[Path], None]
    seeds: Callable[[], Iterator[bytes]]


def read_factors(path: Path) -> None:
    """Check that the factors of a file can be used, and written and read again."""
    loaded = load_factors(path)
    for scaling in (loaded.short, loaded.long) if isinstance(loaded, Extension) else (loaded,):
        rope = loaded.rope if isinstance(loaded, Extension) else Rope(2 * len(scaling.factors), 1e4, 64)
        assert np.isfinite(scaling.inv_freq(rope)).all()
        assert scaling.scheme.encode() is not None
    assert type(loaded).from_json(loaded.to_json()) == loaded


def read_gguf(path: Path) -> None:
    """Check the factors, and that `open_gguf` reads the file or refuses it."""
    with suppress(LongRopeError):
        open_gguf(path)
    read_factors(path)


def read_texts(path: Path) -> None:
    """Check that documents are distinct, not blank, and can be encoded."""
    texts = [document.text for document in load_documents(str(path))]
    assert all(text.strip() and text.encode() for text in texts)
    assert len(set(texts)) == len(texts) > 0


def read_plan(path: Path) -> None:
    """Check that a plan can be written and read again."""
    plan = load_plan(str(path))
    assert parse_plan(plan.to_toml()) == plan


def read_lines(path: Path) -> None:
    """Check that a journal holds objects, and holds them again after one more line."""
    with closing(JsonlFile(path, SETTINGS, subject="a test", resume=True)) as lines:
        records = lines.lines
        lines.append({"cell": 1})
    with closing(JsonlFile(path, SETTINGS, subject="a test", resume=True)) as lines:
        assert [*records, {"cell": 1}] == lines.lines or "nan" in repr(records)
    assert all(isinstance(record, dict) for record in records)


def _scalings() -> Iterator[bytes]:
    scaling = Scaling(
        [1.0, 2.0, 3.0, 4.0], attention_factor=1.1, start_tokens=2, length=128, provenance={"seed": [3, None]}
    )
    yield scaling.to_json().encode()
    yield Extension.of(Rope(dim=8, base=1e4, original_length=64), scaling).to_json().encode()


def _configs() -> Iterator[bytes]:
    for model in MODELS:
        for field in ("rope_scaling", "rope_parameters"):
            for rope in ROPES:
                config: dict[str, Any] = {**SIZE, field: rope, **({"model_type": model} if model else {})}
                yield json.dumps(config).encode()
    yield json.dumps({"model_type": "gemma3", "text_config": {**SIZE, "rope_scaling": ROPES[0]}}).encode()


ARRAYS: dict[str, Any] = {"words": ["a", "bc"], "sizes": [1, 2, 3]}


def _ggufs() -> Iterator[bytes]:
    from gguf import GGUFWriter

    sets = {"rope_factors_long.weight": SETS["long_factor"], "rope_factors_short.weight": SETS["short_factor"]}
    for keys, tensors in (
        ({}, {}),
        ({"type": "linear", "factor": 4.0}, {}),
        ({"type": "yarn", "factor": 8.0, "original_context_length": 16, "yarn_beta_fast": 32.0}, {}),
        ({"type": "longrope", "attn_factor": 1.2, "original_context_length": 16}, sets),
        ({"factor": 2.0}, {"rope_freqs.weight": SETS["long_factor"]}),
    ):
        with tempfile.TemporaryDirectory() as folder:
            writer = GGUFWriter(Path(folder) / "x.gguf", "llama")
            for name, value in {
                **GGUF,
                **ARRAYS,
                **{f"rope.scaling.{name}": value for name, value in keys.items()},
            }.items():
                add: dict[type, Callable[[str, Any], None]]
                add = {
                    str: writer.add_string,
                    int: writer.add_uint32,
                    float: writer.add_float32,
                    list: writer.add_array,
                }
                add[type(value)](f"llama.{name}", value)
            for name, values in {**tensors, "output_norm.weight": [1.0] * 16}.items():
                writer.add_tensor(name, np.array(values, dtype=np.float32))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            yield (Path(folder) / "x.gguf").read_bytes()


def _plans() -> Iterator[bytes]:
    for path in shipped_plans().values():
        yield path.read_bytes()


def _journals() -> Iterator[bytes]:
    yield json.dumps({"version": 1, "settings": SETTINGS}).encode() + b'\n{"cell": 1, "loss": [0.5, null]}\n{"cut": '


TABLES = [b"1,1.01,2.5,32\n" * 2, b"16\n1\n1.5\n2\n4\n", b"\xef\xbb\xbf1, 2e0\r\n\r\n1,2\r\n"]
TEXTS = [b'{"text": "one"}\n{"text": "\\u00e9t\\u00e9", "id": [3, {"a": null}]}\n', '{"text": "naïve ✓"}'.encode()]
READERS = {
    "json": Reader("factors.json", read_factors, _scalings),
    "csv": Reader("factors.csv", read_factors, lambda: iter(TABLES)),
    "config": Reader("config.json", read_factors, _configs),
    "gguf": Reader("model.gguf", read_gguf, _ggufs),
    "jsonl": Reader("texts.jsonl", read_texts, lambda: iter(TEXTS)),
    "plan": Reader("plan.toml", read_plan, _plans),
    "lines": Reader("journal.jsonl", read_lines, _journals),
}
