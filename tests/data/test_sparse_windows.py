"""Sparse windows: chunks of one text at their own positions, weighed as the tokens that they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from longrope.data.key_value_lines import KeyValueText, Line
from longrope.data.sparse_windows import (
    MOST_CHUNKS,
    NOT_PREDICTED,
    REACH,
    SHORTEST_CHUNK,
    SparseWindow,
    draw_sparse_window,
)
from longrope.data.training_windows import IGNORED, TrainingWindows
from longrope.errors import LongRopeError

NO_STARTS = np.array([], dtype=np.int64)
seeds = st.integers(0, 2**40)


def draw(
    seed: int, *, size: int = 600, length: int = 20_000, text: int = 30_000, starts: np.ndarray = NO_STARTS
) -> SparseWindow:
    """A window of a text in which every token is its own offset."""
    return draw_sparse_window(np.arange(text), starts, [], size=size, length=length, rng=np.random.default_rng(seed))


def chunks(window: SparseWindow) -> list[np.ndarray]:
    """The places of each chunk in the window."""
    return [np.flatnonzero(window.chunk_ids == number) for number in np.unique(window.chunk_ids)]


@given(seeds, st.integers(2 * SHORTEST_CHUNK, 900), st.integers(1000, 50_000))
def test_every_token_stands_at_its_distance_in_the_text(seed: int, size: int, length: int) -> None:
    window = draw(seed, size=size, length=length)
    assert len(window.tokens) == size
    assert (window.tokens - window.positions == window.tokens[0]).all()
    assert window.positions[0] == 0
    assert (np.diff(window.positions) >= 1).all()
    assert window.positions[-1] < max(REACH * length, size)
    sizes = [len(places) for places in chunks(window)]
    assert 1 <= len(sizes) <= MOST_CHUNKS
    assert min(sizes) >= SHORTEST_CHUNK


@given(seeds)
def test_keys_weigh_as_many_tokens_as_the_text_has(seed: int) -> None:
    """The weights of all keys before a chunk add up to the number of tokens before it in the text."""
    window = draw(seed)
    weights = np.exp(window.key_bias.astype(float))
    for places in chunks(window):
        assert weights[: places[0]].sum() == pytest.approx(window.positions[places[0]], rel=1e-5)
    assert (window.key_bias[chunks(window)[-1]] == 0).all()


@given(seeds)
def test_what_follows_a_gap_or_begins_a_document_is_not_predicted(seed: int) -> None:
    starts = np.arange(0, 30_000, 37)
    window = draw(seed, starts=starts)
    jumps = np.flatnonzero(np.diff(window.positions) > 1) + 1
    after_gap = {int(place) for jump in jumps for place in range(jump, jump + NOT_PREDICTED)}
    for place in range(len(window.tokens)):
        assert window.predicted[place] == (place not in after_gap and window.tokens[place] % 37 != 0)


def test_gaps_reach_all_distances() -> None:
    reached = np.array([draw(seed).positions[-1] + 1 for seed in range(400)])
    assert 0.05 < (reached == 600).mean() < 0.16
    assert 0.25 < (reached == round(REACH * 20_000)).mean() < 0.42
    shares = np.histogram(reached, bins=[601, 1200, 3000, 10_000, 22_999])[0] / 400
    assert (shares > 0.03).all(), shares


def test_a_text_that_is_shorter_than_the_length_is_used_whole() -> None:
    reached = [draw(seed, length=10**6, text=5000).positions[-1] for seed in range(40)]
    assert max(reached) == 4999


@given(seeds, st.integers(1, 8))
def test_planted_lines_are_asked_for_later_and_the_text_around_them_is_whole(seed: int, count: int) -> None:
    rng, answers = np.random.default_rng(seed), np.array([False] * 3 + [True] * 2)
    tokens = [10**6 * (number + 1) + np.arange(9) for number in range(count)]
    lines = [Line(KeyValueText(ids[:4], np.zeros(4, bool)), KeyValueText(ids[4:], answers)) for ids in tokens]
    window = draw_sparse_window(np.arange(30_000), NO_STARTS, lines, size=900, length=20_000, rng=rng)
    assert len(window.tokens) == 900
    background = window.tokens < 10**6
    assert (np.diff(window.tokens[background])[np.diff(window.chunk_ids[background]) == 0] == 1).all()
    assert (window.key_bias[~background] == 0).all()
    assert window.answers.sum() == 2 * count
    assert (np.diff(window.positions)[np.diff(window.chunk_ids) == 0] == 1).all()
    for line in lines:
        (first,), (second,) = (
            np.flatnonzero(window.tokens == text.tokens[0]) for text in (line.planted, line.question)
        )
        assert first < second
        assert np.array_equal(window.tokens[first : first + 4], line.planted.tokens)
        assert np.array_equal(window.tokens[second : second + 5], line.question.tokens)
        assert not window.answers[first : first + 4].any()
        assert np.array_equal(window.answers[second : second + 5], answers)


def test_windows_of_a_stage_are_sparse(bpe: PreTrainedTokenizerFast) -> None:
    documents = [np.arange(3000) % len(bpe) for _ in range(4)]
    fields = {"length": 8000, "original_length": 100, "window": 400, "short": 0.5, "needles": 1.0, "tokenizer": bpe}
    made = TrainingWindows(documents, count=12, sparse=True, answer_weight=3.0, **fields)
    long = [made[i] for i in range(12) if "key_bias" in made[i]]
    short = [made[i] for i in range(12) if "key_bias" not in made[i]]
    assert len(long) == len(short) == 6
    for inputs in long + short:
        predicted = inputs["labels"] != IGNORED
        assert inputs["weights"][predicted].mean() == pytest.approx(1, rel=1e-5)
        assert (inputs["weights"][~predicted] == 0).all()
        values = np.unique(inputs["weights"][predicted])
        assert len(values) == 1 or values[-1] == pytest.approx(3 * values[0], rel=1e-5)
    assert max(int(inputs["position_ids"].max()) for inputs in long) > 4000
    assert all(inputs["input_ids"].shape == (4, 100) for inputs in short)


def test_a_window_without_room_for_two_chunks_is_refused() -> None:
    with pytest.raises(LongRopeError, match=r"window = 95: sparse windows hold chunks of 48 tokens or more"):
        TrainingWindows([np.arange(500)], length=400, count=1, original_length=64, window=95, sparse=True)
