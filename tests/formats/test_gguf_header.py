"""The header that we read against gguf's reader, and headers that lie."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFEndian, GGUFReader, GGUFValueType, GGUFWriter
from hypothesis import given
from hypothesis import strategies as st

from longrope.errors import LongRopeError
from longrope.formats.gguf import extension_of_gguf
from longrope.formats.gguf_file import open_gguf
from longrope.formats.gguf_header import NUMBERS, read_header

NUMBER = {
    **{kind: st.integers(0, 2 ** (8 * struct.calcsize(NUMBERS[kind])) - 1) for kind in (0, 2, 4, 10)},
    **{kind: st.integers(-(2 ** (8 * struct.calcsize(NUMBERS[kind]) - 1)), 127) for kind in (1, 3, 5, 11)},
    6: st.floats(width=32, allow_nan=False),
    7: st.booleans(),
    12: st.floats(allow_nan=False),
}
WORDS = st.text(max_size=5)


@st.composite
def values(draw: st.DrawFn) -> tuple[int, int | None, Any]:
    """A type, that of the members of an array, and the value."""
    kind = draw(st.sampled_from(sorted(NUMBERS)))
    scalar = draw(st.booleans())
    if draw(st.integers(0, 3)) == 0:
        return (8, None, draw(WORDS)) if scalar else (9, 8, draw(st.lists(WORDS, min_size=1, max_size=5)))
    return (
        (kind, None, draw(NUMBER[kind])) if scalar else (9, kind, draw(st.lists(NUMBER[kind], min_size=1, max_size=5)))
    )


@given(
    st.dictionaries(st.text(min_size=1, max_size=5), values(), max_size=5),
    st.dictionaries(st.text(min_size=1, max_size=5), st.lists(st.integers(1, 4), min_size=1, max_size=4), max_size=3),
    st.sampled_from(list(GGUFEndian)),
)
def test_it_reads_what_gguf_reads(
    tmp_path_factory: pytest.TempPathFactory,
    keys: dict[str, tuple[int, int | None, Any]],
    shapes: dict[str, list[int]],
    order: GGUFEndian,
) -> None:
    path = tmp_path_factory.getbasetemp() / "header.gguf"
    writer = GGUFWriter(path, "llama", endianess=order)
    for name, (kind, member, value) in keys.items():
        writer.add_key_value(name, value, GGUFValueType(kind), None if member is None else GGUFValueType(member))
    for name, shape in shapes.items():
        writer.add_tensor(name, np.arange(np.prod(shape), dtype=np.float32).reshape(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours, theirs = read_header(path), GGUFReader(path)
    assert list(ours.keys) == [name for name in theirs.fields if not name.startswith("GGUF.")]
    for name, value in ours.keys.items():
        whole = [one.decode() if isinstance(one, bytes) else one for one in (value if type(value) is list else [value])]
        assert (whole if type(value) is list else whole[0]) == theirs.fields[name].contents()
    assert list(ours.tensors) == [one.name for one in theirs.tensors]
    for one in theirs.tensors:
        np.testing.assert_array_equal(ours.values(one.name), one.data)


def text(word: bytes) -> bytes:
    return struct.pack("<Q", len(word)) + word


def header(*keys: bytes, tensors: bytes = b"", counts: tuple[int, int] | None = None) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, *(counts or (bool(tensors), len(keys)))) + b"".join(keys) + tensors


HUGE = 2**62
LIES = {
    "keys": (header(counts=(0, HUGE)), "the file has 24"),
    "tensors": (header(counts=(HUGE, 0)), "the file has 24"),
    "length of a key": (header(struct.pack("<Q", HUGE)), "bytes after byte 32"),
    "bytes of an array": (header(text(b"a") + struct.pack("<IIQ", 9, 0, HUGE)), f"{HUGE} bytes after byte"),
    "words of an array": (header(text(b"a") + struct.pack("<IIQ", 9, 8, HUGE)), "the file has"),
    "an array of arrays": (header(text(b"a") + struct.pack("<IIQIQ", 9, 9, 1, 0, 0)), "9 is not a type of value"),
    "a type": (header(text(b"a") + struct.pack("<IQ", 13, 0)), "13 is not a type of value"),
    "a key twice": (header(*[text(b"a") + struct.pack("<IB", 7, 1)] * 2), "key a is there twice"),
    "dimensions": (header(tensors=text(b"t") + struct.pack("<I", 2**31)), "2147483648 dimensions"),
    "a shape": (header(tensors=text(b"t") + struct.pack("<IQQIQ", 2, HUGE, HUGE, 0, 0)), "tensor t ends at byte"),
    "an offset": (header(tensors=text(b"t") + struct.pack("<IQIQ", 1, 1, 0, HUGE)), "tensor t ends at byte"),
    "a tensor's type": (
        header(tensors=text(b"t") + struct.pack("<IQIQ", 1, 1, 99, 0)),
        "type 99, which the installed package gguf",
    ),
    "an alignment": (header(text(b"general.alignment") + struct.pack("<II", 4, 3)), "alignment = 3"),
    "a version": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_header_that_lies_is_refused_at_once(name: str, tmp_path: Path) -> None:
    data, said = LIES[name]
    (tmp_path / "x.gguf").write_bytes(data)
    begun = time.process_time()
    for read in (read_header, open_gguf, extension_of_gguf):
        with pytest.raises(LongRopeError, match=rf"x\.gguf is not a complete GGUF file .*{said}.*fetch it again"):
            read(tmp_path / "x.gguf")
    assert time.process_time() - begun < 1
