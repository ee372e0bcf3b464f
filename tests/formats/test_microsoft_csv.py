from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrope.errors import LongRopeError
from longrope.formats.microsoft_csv import scaling_of_table
from longrope.scaling import Scaling

FACTORS = [1.0, 1.009999990463257, 2.5, 32.0]


def table(folder: Path, text: str | bytes) -> Path:
    path = folder / "x.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "1,1.009999990463257,2.5,32\n" * 32,
        "1,1.009999990463257,2.5,32",
        "\ufeff1, 1.009999990463257, 2.5, 32\r\n\r\n1,1.009999990463257,2.5,3.2e1\r\n",
        "1\n1.009999990463257\n2.5\n32\n",
    ],
)
def test_layers_of_the_same_factors_and_columns(text: str, tmp_path: Path) -> None:
    assert scaling_of_table(table(tmp_path, text)) == Scaling(FACTORS)


@pytest.mark.parametrize("start", [0, 1, 16])
def test_a_column_that_begins_with_start_tokens(start: int, tmp_path: Path) -> None:
    np.savetxt(tmp_path / "x.csv", [start, *FACTORS], delimiter=",")
    assert scaling_of_table(tmp_path / "x.csv") == Scaling(FACTORS, start_tokens=start)


def test_an_odd_column_without(tmp_path: Path) -> None:
    assert scaling_of_table(table(tmp_path, "1.5\n2\n3\n")) == Scaling([1.5, 2, 3])


@given(st.lists(st.floats(1e-3, 1e6), min_size=2, max_size=40), st.integers(1, 5))
def test_what_numpy_writes(tmp_path_factory: pytest.TempPathFactory, factors: list[float], layers: int) -> None:
    path = tmp_path_factory.getbasetemp() / "x.csv"
    np.savetxt(path, np.tile(factors, (layers, 1)), delimiter=",")
    assert scaling_of_table(path) == Scaling(factors)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1,2\n1,2\n1,2.01\n1,3\n", "the factors of layer 2 differ from those of layer 0.*keep one line"),
        ("1,2\n1,2,3\n", "layer 1 differ"),
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("layer,factor\n1,2\n", "line 1: 'layer,factor' is not a list of numbers"),
        ("1,2\n1;2\n", "line 2: '1;2' is not a list of numbers"),
        ("1,,2\n", "line 1"),
        ("1,0\n", r"factors\[1\] = 0.0"),
        ("1,-2\n1,-2\n", r"factors\[1\] = -2.0"),
        ("1,nan\n", "nan"),
        ("inf\n1\n2\n", "inf"),
        ("-1\n1\n2\n", "start_tokens = -1"),
        (b"\xff\xfe\x00", "is not a table of factors"),
    ],
)
def test_what_is_no_table_is_named(text: str | bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(LongRopeError, match=rf"x\.csv.*{said}"):
        scaling_of_table(table(tmp_path, text))
