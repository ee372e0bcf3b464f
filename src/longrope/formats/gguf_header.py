"""The header of a GGUF file, read within the bounds of the file: whatever it says, the time is at most by its size."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from longrope.errors import LongRopeError

# of gguf's GGUFValueType, in struct's letters
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9
FLOATS = {0: "f4", 1: "f2"}  # of gguf's GGMLQuantizationType, in numpy's names
VERSIONS, DIMENSIONS, ALIGNMENT = (2, 3), 4, 32


@dataclass(frozen=True)
class Tensor:
    """Where the values of a tensor lie: its shape, its type in GGML and the bytes from ``at`` on."""

    shape: tuple[int, ...]
    kind: int
    at: int
    size: int


@dataclass(frozen=True)
class Header:
    """Keys, with text as bytes, and tensors of a file of that byte order (``<`` or ``>``)."""

    path: Path
    order: str
    keys: dict[str, Any]
    tensors: dict[str, Tensor]

    def values(self, name: str) -> np.ndarray:
        """A tensor, in float32 or float16; in bytes if it is of another type."""
        tensor = self.tensors[name]
        with self.path.open("rb") as file:
            file.seek(tensor.at)
            data = file.read(tensor.size)
        if tensor.kind in FLOATS:
            return np.frombuffer(data, self.order + FLOATS[tensor.kind]).reshape(tensor.shape)
        return np.frombuffer(data, np.uint8)


class Bytes:
    """A file that is read from its begin on and never beyond its end."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.at, self.size, self.order = file, 0, size, "<"

    def take(self, count: int) -> bytes:
        """So many bytes."""
        if count > self.size - self.at:
            raise ValueError(f"{count} bytes are said to follow byte {self.at}, and the file has {self.size}")
        self.at += count
        return self.file.read(count)

    def number(self, kind: int) -> Any:
        """One number of a type of GGUF."""
        return struct.unpack(self.order + NUMBERS[kind], self.take(struct.calcsize("<" + NUMBERS[kind])))[0]

    def text(self) -> bytes:
        """Text, with its length before it."""
        return self.take(self.number(10))

    def value(self) -> Any:
        """A value of any type, with its type before it; an array of arrays is refused, as no model has one."""
        kind = self.number(4)
        if kind != ARRAY:
            return self.text() if kind == TEXT else self.number(_known(kind))
        kind, count = self.number(4), self.number(10)
        if kind == TEXT:
            return [self.text() for _ in range(count)]
        letter = NUMBERS[_known(kind)]
        return list(struct.unpack(f"{self.order}{count}{letter}", self.take(count * struct.calcsize("<" + letter))))


def read_header(path: Path) -> Header:
    """The header of a GGUF file, whose every tensor lies within the file.

    Raises:
        LongRopeError: if it is none, is cut or damaged, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            return _header(path, Bytes(file, path.stat().st_size))
    except OSError as error:
        raise LongRopeError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise LongRopeError(f"{path} is no whole GGUF file ({error}); fetch it again") from None


def _header(path: Path, data: Bytes) -> Header:
    if data.take(4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version = data.take(4)
    data.order = ">" if version[:2] == b"\0\0" else "<"
    if struct.unpack(data.order + "I", version)[0] not in VERSIONS:
        raise ValueError(f"its version is none of {VERSIONS}")
    tensors, keys, found = data.number(10), data.number(10), {}
    for _ in range(keys):
        _add(found, data.text(), data.value(), "key")
    infos: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(tensors):
        _add(infos, data.text(), _info(data), "tensor")
    alignment = found.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment = {alignment!r} is no power of two")
    begin = -(-data.at // alignment) * alignment
    return Header(path, data.order, found, {name: _placed(name, *info, begin, data) for name, info in infos.items()})


def _add(found: dict[str, Any], name: bytes, value: Any, what: str) -> None:
    text = name.decode()
    if text in found:
        raise ValueError(f"{what} {text} is there twice")
    found[text] = value


def _known(kind: int) -> int:
    if kind not in NUMBERS:
        raise ValueError(f"{kind} is no type of a value")
    return kind


def _info(data: Bytes) -> tuple[tuple[int, ...], int, int]:
    count = data.number(4)
    if count > DIMENSIONS:
        raise ValueError(f"a tensor has {count} dimensions")
    shape = tuple(data.number(10) for _ in range(count))[::-1]
    return shape, data.number(4), data.number(10)


def _placed(name: str, shape: tuple[int, ...], kind: int, offset: int, begin: int, data: Bytes) -> Tensor:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block, bytes_of_block = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    size = prod(shape) * bytes_of_block // block
    if begin + offset + size > data.size:
        raise ValueError(f"tensor {name} ends at byte {begin + offset + size}, and the file has {data.size}")
    return Tensor(shape, kind, begin + offset, size)
