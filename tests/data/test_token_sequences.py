from __future__ import annotations

import numpy as np
import pytest
import torch

from longrope.data.token_sequences import as_sequences, same_length
from longrope.errors import LongRopeError


@pytest.mark.parametrize(
    "sequences",
    [
        [[1, 2, 3], [4, 5]],
        ((1, 2, 3), (4, 5)),
        [np.array([1, 2, 3], dtype=np.int32), torch.tensor([4, 5], dtype=torch.int16)],
        [torch.tensor([1.0, 2.0, 3.0]), [4.0, 5.0]],
        [range(1, 4), [np.int64(4), np.uint8(5)]],
    ],
)
def test_ragged_sequences_become_int64_arrays(sequences: object) -> None:
    arrays = as_sequences(sequences)
    assert [row.tolist() for row in arrays] == [[1, 2, 3], [4, 5]]
    assert {row.dtype for row in arrays} == {np.dtype(np.int64)}
    assert not same_length(arrays)


def test_a_tensor_or_array_is_a_row_for_each_sequence() -> None:
    for sequences in (torch.tensor([[1, 2], [3, 4]], dtype=torch.int32), np.array([[1, 2], [3, 4]], dtype=np.uint16)):
        arrays = as_sequences(sequences)
        assert [row.tolist() for row in arrays] == [[1, 2], [3, 4]]
        assert same_length(arrays)


def test_int64_arrays_are_not_copied() -> None:
    tokens = np.arange(12).reshape(3, 4)
    assert all(np.shares_memory(row, tokens) for row in as_sequences(tokens, vocabulary=12))


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([1, 2, 3], r"sequences\[0\] = 1: not one sequence .* Pass a list of sequences"),
        (torch.tensor([1, 2, 3]), r"sequences\[0\] = 1: not one sequence"),
        (np.zeros((2, 2, 2), dtype=int), r"sequences\[0\] = \[\[0 0\] \[0 0\]\]: not one sequence"),
        (5, "sequences = 5: not a list of token ids"),
        (np.float32(5), "sequences = 5.0: not a list of token ids"),
        ("text", "sequences = text: not a list of token ids. Pass the tokenizer's input_ids"),
        (["text"], r"sequences\[0\] = text: not one sequence"),
        ({"input_ids": [[1, 2]]}, "input_ids.*: not a list of token ids"),
        ([["a", "b"]], r"sequences\[0\]\[0\] = a: not a whole number"),
        ([[1, None]], r"sequences\[0\]\[1\] = None: not a whole number"),
        ([[True, False]], r"sequences\[0\]\[0\] = True: not a whole number"),
        ([[1, float("nan")]], r"sequences\[0\]\[1\] = nan: not a whole number"),
        ([[1, float("inf")]], r"sequences\[0\]\[1\] = inf: not a whole number"),
        ([[[1, 2], [3]]], r"sequences\[0\]\[0\] = \[1, 2\]: not a whole number"),
        ([[1, 2**70]], rf"sequences\[0\]\[1\] = {2**70}: above 2147483647"),
        (torch.zeros((0, 5)), r"sequences = \[\]: .* Pass at least one sequence"),
        (torch.zeros((2, 1)), r"sequences\[0\] = \[0.\]: a loss needs two tokens"),
    ],
)
def test_what_is_not_token_ids_is_refused_with_its_place(sequences: object, message: str) -> None:
    with pytest.raises(LongRopeError, match=message):
        as_sequences(sequences)


def test_the_vocabulary_ends_below_its_size() -> None:
    assert as_sequences([[0, 9]], vocabulary=10)[0].tolist() == [0, 9]
    with pytest.raises(
        LongRopeError, match=r"sequences\[0\]\[1\] = 10: beyond the model's vocabulary \(vocab_size = 10\)"
    ):
        as_sequences([[0, 10]], vocabulary=10)
