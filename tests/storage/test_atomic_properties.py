from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrope.errors import LongRopeError
from longrope.storage.atomic import dumps, write_bytes, write_json
from longrope.storage.lock import claim_output

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200
)
NUMBERS = st.integers(-(2**70), 2**70) | st.floats()
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda some: (
        st.lists(some, max_size=4).flatmap(lambda list_: st.sampled_from([list_, tuple(list_)]))
        | st.dictionaries(st.text(), some, max_size=4)
    ),
    max_leaves=12,
)


@given(NAMES, st.binary(), st.binary())
def test_a_file_is_what_was_written_last_and_nothing_else_is_left(name: str, first: bytes, second: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "new" / name
        for data in (first, second):
            write_bytes(path, data)
            assert path.read_bytes() == data
            assert list(path.parent.iterdir()) == [path]


def finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@given(VALUES)
def test_json_is_strict_and_gives_back_what_is_finite(value: object) -> None:
    assert json.loads(dumps(value), parse_constant=pytest.fail) == finite(value)
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "x.json", value)
        assert json.loads((Path(folder) / "x.json").read_bytes()) == finite(value)


@given(NAMES, st.sampled_from(["absent", "file", "empty folder", "full folder"]), st.booleans(), st.booleans())
def test_a_place_is_claimed_as_it_should_be(name: str, there: str, overwrite: bool, folder: bool) -> None:
    """Never over what is there but with overwrite, never a file over a folder, and nothing is made or changed."""
    with tempfile.TemporaryDirectory() as parent:
        path = Path(parent) / name
        if there == "file":
            path.write_text("old")
        elif there != "absent":
            path.mkdir()
        if there == "full folder":
            (path / "x").write_text("old")
        fits = there == "absent" or (there != "file") == folder
        free = overwrite or there == "absent" or there == "empty folder"
        before = sorted(Path(parent).rglob("*"))
        if fits and free:
            claim_output(path, overwrite=overwrite, folder=folder)
        else:
            with pytest.raises(LongRopeError, match=r"choose another output with -o$"):
                claim_output(path, overwrite=overwrite, folder=folder)
        assert sorted(Path(parent).rglob("*")) == before
