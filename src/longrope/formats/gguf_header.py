"""Read the header of a GGUF file within the bounds of the file, so that a damaged header costs no time."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from longrope.errors import LongRopeError

# gguf's GGUFValueType as letters of struct
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9
FLOATS = {0: "f4", 1: "f2"}  # gguf's GGMLQuantizationType as names of numpy
VERSIONS, DIMENSIONS, ALIGNMENT = (2, 3), 4, 32


@dataclass(frozen=True)
class TensorPlace:
    """The place of a tensor's values in the file.

    Args:
        shape: Shape of the tensor.
        kind: GGML type of the values.
        at: Offset of the first byte in the file.
        size: Size of the values in bytes.
    """

    shape: tuple[int, ...]
    kind: int
    at: int
    size: int


@dataclass(frozen=True)
class GgufHeader:
    """The keys and tensors of a GGUF file.

    Args:
        path: Path of the file.
        order: Byte order, ``<`` or ``>``.
        keys: Values by key; texts are bytes.
        tensors: Places of the tensors by name.
    """

    path: Path
    order: str
    keys: dict[str, Any]
    tensors: dict[str, TensorPlace]

    def values(self, name: str) -> np.ndarray:
        """Return the values of a tensor in float32 or float16, or as bytes if it has another type."""
        tensor = self.tensors[name]
        with self.path.open("rb") as file:
            file.seek(tensor.at)
            data = file.read(tensor.size)
        if tensor.kind in FLOATS:
            return np.frombuffer(data, self.order + FLOATS[tensor.kind]).reshape(tensor.shape)
        return np.frombuffer(data, np.uint8)


class HeaderCursor:
    """A cursor that reads a file from its start and never beyond its end."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.at, self.size, self.order = file, 0, size, "<"

    def take(self, count: int) -> bytes:
        """Read the next ``count`` bytes."""
        if count > self.size - self.at:
            raise ValueError(f"its header names {count} bytes after byte {self.at}, and the file has {self.size}")
        self.at += count
        return self.file.read(count)

    def number(self, kind: int) -> Any:
        """Read a number of a GGUF type."""
        return struct.unpack(self.order + NUMBERS[kind], self.take(struct.calcsize("<" + NUMBERS[kind])))[0]

    def text(self) -> bytes:
        """Read a text, which follows its length."""
        return self.take(self.number(10))

    def value(self) -> Any:
        """Read a value, which follows its type; arrays of arrays are refused because models have none."""
        kind = self.number(4)
        if kind != ARRAY:
            return self.text() if kind == TEXT else self.number(_known(kind))
        kind, count = self.number(4), self.number(10)
        if kind == TEXT:
            return [self.text() for _ in range(count)]
        letter = NUMBERS[_known(kind)]
        return list(struct.unpack(f"{self.order}{count}{letter}", self.take(count * struct.calcsize("<" + letter))))


def read_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file and check that every tensor lies within the file.

    Raises:
        LongRopeError: The file is not a GGUF file, is cut or damaged, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            return _header(path, HeaderCursor(file, path.stat().st_size))
    except OSError as error:
        raise LongRopeError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise LongRopeError(f"{path} is not a complete GGUF file ({error}); fetch it again") from None


def _header(path: Path, data: HeaderCursor) -> GgufHeader:
    if data.take(4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version = data.take(4)
    data.order = ">" if version[:2] == b"\0\0" else "<"
    if struct.unpack(data.order + "I", version)[0] not in VERSIONS:
        raise ValueError(f"its version is none of {VERSIONS}")
    tensor_count, key_count = data.number(10), data.number(10)
    keys: dict[str, Any] = {}
    for _ in range(key_count):
        _add(keys, data.text(), data.value(), "key")
    infos: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(tensor_count):
        _add(infos, data.text(), _info(data), "tensor")
    alignment = keys.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment = {alignment!r} is not a power of two")
    begin = -(-data.at // alignment) * alignment
    tensors = {name: _place(name, *info, begin, data) for name, info in infos.items()}
    return GgufHeader(path, data.order, keys, tensors)


def _add(entries: dict[str, Any], name: bytes, value: Any, noun: str) -> None:
    text = name.decode()
    if text in entries:
        raise ValueError(f"{noun} {text} is there twice")
    entries[text] = value


def _known(kind: int) -> int:
    if kind not in NUMBERS:
        raise ValueError(f"{kind} is not a type of value")
    return kind


def _info(data: HeaderCursor) -> tuple[tuple[int, ...], int, int]:
    count = data.number(4)
    if count > DIMENSIONS:
        raise ValueError(f"a tensor has {count} dimensions")
    shape = tuple(data.number(10) for _ in range(count))[::-1]
    return shape, data.number(4), data.number(10)


def _place(name: str, shape: tuple[int, ...], kind: int, offset: int, begin: int, data: HeaderCursor) -> TensorPlace:
    from gguf import GGML_QUANT_SIZES

    known = {int(known_type): sizes for known_type, sizes in GGML_QUANT_SIZES.items()}
    if kind not in known:
        raise ValueError(f"tensor {name} has type {kind}, which the installed package gguf does not know: upgrade it")
    block, bytes_of_block = known[kind]
    size = prod(shape) * bytes_of_block // block
    if begin + offset + size > data.size:
        raise ValueError(f"tensor {name} ends at byte {begin + offset + size}, and the file has {data.size}")
    return TensorPlace(shape, kind, begin + offset, size)
