from __future__ import annotations

from pathlib import Path

import pytest

from longrope.errors import LongRopeError
from longrope.files import write_text
from longrope.reading.factors import load_factors
from longrope.rope import Extension, Rope, Scaling

SCALING = Scaling([1.0, 2.0, 3.0, 4.0], attention_factor=1.1, length=128, provenance={"seed": 3})
EXTENSION = Extension.of(Rope(dim=8, base=1e4, original_length=64), SCALING)


@pytest.mark.parametrize("noun", [SCALING, EXTENSION])
def test_load_factors_reads_what_was_written(noun: Scaling | Extension, tmp_path: Path) -> None:
    write_text(tmp_path / "factors.json", noun.to_json())
    assert load_factors(tmp_path / "factors.json") == noun
    assert load_factors(str(tmp_path / "factors.json")) == noun


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


@pytest.mark.parametrize("name", ["absent.json", "."])
def test_load_factors_of_no_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(LongRopeError, match="cannot read the factors file"):
        load_factors(tmp_path / name)
