from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from longrope.data.training_windows import IGNORED, SHORTEST_SPAN, TrainingWindows
from longrope.errors import LongRopeError

LINE = re.compile(r"^([a-z]{6} = \w+ \w+)$", re.MULTILINE)
FAR = 10**6  # between the tokens of two documents
corpora = st.lists(st.integers(0, 70), min_size=1, max_size=8)
sizes = st.integers(2, 16)
seeds = st.integers(0, 2**40)


def corpus(lengths: Sequence[int]) -> list[np.ndarray]:
    """Documents in which every token is unique, and tells its document and its place."""
    return [FAR * number + np.arange(length) for number, length in enumerate(lengths)]


def windows(lengths: Sequence[int], length: int, count: int | None = None, **fields: object) -> TrainingWindows:
    """All sequences that the documents give in one pass, if no number is said."""
    count = sum(lengths) // length if count is None else count
    return TrainingWindows(corpus(lengths), length=length, count=count, **{"original_length": length, **fields})


def ids(made: TrainingWindows) -> np.ndarray:
    return np.concatenate([made[i]["input_ids"].ravel() for i in range(len(made))] or [np.array([], dtype=int)])


def begins(tokens: np.ndarray) -> np.ndarray:
    """Which tokens do not follow in their document the one that stands before them."""
    return np.diff(tokens, prepend=-FAR) != 1


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@given(corpora, sizes, seeds)
def test_a_pass_gives_all_the_sequences_that_there_are(lengths: list[int], size: int, seed: int) -> None:
    """Of the exact size, no token twice, and whole ones as many as the documents have room for."""
    made = windows(lengths, size, seed=seed)
    found = [made[i]["input_ids"] for i in range(len(made))]
    assert all(one.shape == (1, size) for one in found)
    counts = Counter(ids(made).tolist())
    assert set(counts.values()) <= {1}
    assert counts.keys() <= {token for document in corpus(lengths) for token in document.tolist()}
    assert sum(not begins(one[0])[1:].any() for one in found) >= sum(length // size for length in lengths)
    assert sum(len(pieces) == 1 for pieces in made.windows) == sum(length // size for length in lengths)
    with pytest.raises(LongRopeError):
        windows(lengths, size, len(made) + 1, seed=seed)


@given(corpora, sizes, seeds)
def test_no_token_is_predicted_from_another_document(lengths: list[int], size: int, seed: int) -> None:
    """Every piece's first token is not predicted, and all others are."""
    made = windows(lengths, size, seed=seed)
    for i, pieces in enumerate(made.windows):
        tokens, labels = (made[i][name][0] for name in ("input_ids", "labels"))
        assert (labels[begins(tokens)] == IGNORED).all()
        assert (labels[labels != IGNORED] == tokens[labels != IGNORED]).all()
        assert (labels == IGNORED).sum() == len(pieces)
        assert tokens.tolist() == [FAR * one + place for one, first, end in pieces for place in range(first, end)]


@given(st.lists(st.integers(1, 9), min_size=3, max_size=30), seeds)
def test_documents_shorter_than_a_sequence_are_packed(lengths: list[int], seed: int) -> None:
    made = windows(lengths, 10, seed=seed)
    assert len(made) == sum(lengths) // 10
    assert all(len(set(made[i]["input_ids"][0] // FAR)) > 1 for i in range(len(made)))


def test_whole_sequences_begin_anywhere() -> None:
    firsts = {int(windows([29], 10, seed=seed)[i]["input_ids"][0, 0]) for seed in range(200) for i in range(2)}
    assert firsts == set(range(20))


def test_sequences_come_in_no_order_of_documents() -> None:
    whole = [int(made["input_ids"][0, 0]) for made in map(windows([200] * 3, 10).__getitem__, range(60))]
    assert whole != sorted(whole)
    assert len({token // FAR for token in whole[:12]}) == 3


def test_full_sequences_have_every_position() -> None:
    made = windows([95, 40], 20)
    for i in range(len(made)):
        assert made[i].keys() == {"input_ids", "labels", "position_ids"}
        assert all(array.dtype == np.int64 for array in made[i].values())
        assert made[i]["position_ids"].tolist() == [list(range(20))]


@given(st.integers(2, 30), st.integers(0, 500), seeds)
def test_skipped_positions_jump_once(window: int, more: int, seed: int) -> None:
    made = windows([3 * window, window], window + more, 3, window=window, seed=seed)
    assert made.size == window
    for i in range(3):
        item = made[i]
        positions = item["position_ids"][0]
        assert item["input_ids"].shape == item["position_ids"].shape == (1, window)
        assert positions[0] == 0
        assert positions[-1] < made.length
        steps = np.diff(positions)
        assert (steps >= 1).all()
        assert (steps > 1).sum() <= 1
        assert item["attention_mask"].tolist() == [[1] * window]


def test_skipped_sequences_reach_anywhere_within_the_length() -> None:
    made = windows([16] * 400, 1000, 400, window=16)
    items = [made[i]["position_ids"][0] for i in range(400)]
    reaches = np.array([positions[-1] for positions in items])
    assert reaches.min() < 16 + 20
    assert reaches.max() > 1000 - 20
    shares = np.histogram(reaches, bins=4, range=(15, 1000))[0] / 400
    np.testing.assert_allclose(shares, 0.25, atol=0.08)
    assert {int(np.argmax(np.diff(positions))) for positions in items if positions[-1] > 15} == set(range(15))


@given(corpora, sizes, st.integers(2, 20), seeds)
def test_short_rows(lengths: list[int], size: int, original: int, seed: int) -> None:
    """Even rows of at most L0 tokens; where a row or document begins, positions do, and nothing is predicted."""
    made = windows(lengths, size, original_length=original, short=1.0, seed=seed)
    row = size // -(-size // original)
    assert row <= original
    for i, pieces in enumerate(made.windows):
        item = made[i]
        assert item.keys() == {"input_ids", "labels", "position_ids"}
        assert all(array.shape == (size // row, row) for array in item.values())
        whole = [(one, place, place == first) for one, first, end in pieces for place in range(first, end)]
        kept, position = whole[: size // row * row], -1
        for n, (document, place, first) in enumerate(kept):
            position = 0 if first or n % row == 0 else position + 1
            token, label, found = (item[name].flat[n] for name in ("input_ids", "labels", "position_ids"))
            assert token == FAR * document + place
            assert found == position < original
            assert label == (IGNORED if position == 0 else token)


def test_short_rows_with_a_jump() -> None:
    """The same tokens in a row of one text; its positions reach anywhere, and the original model's have no jump."""
    plain, made = (
        windows([800], 1000, 100, original_length=4, window=8, short=1.0, skipped=skipped) for skipped in (0.0, 0.5)
    )
    jumping = [i for i in range(100) if "teacher_position_ids" in made[i]]
    assert 35 < len(jumping) < 65
    for i in range(100):
        assert np.array_equal(made[i]["input_ids"], plain[i]["input_ids"])
        assert np.array_equal(made[i]["labels"], plain[i]["labels"])
        assert i in jumping or same(made[i], plain[i])
    reaches = []
    for i in jumping:
        assert made[i]["teacher_position_ids"].tolist() == [[0, 1, 2, 3]] * 2
        assert made[i]["attention_mask"].tolist() == [[1, 1, 1, 1]] * 2
        for positions in made[i]["position_ids"]:
            assert positions[0] == 0
            assert sum(np.diff(positions) > 1) <= 1
            reaches.append(positions[-1])
    assert min(reaches) < 100
    assert 900 < max(reaches) < 1000


@pytest.mark.parametrize("short", [0.0, 0.1, 0.3, 0.5, 0.75, 1 / 3, 1.0])
def test_the_share_of_short_sequences_is_exact_at_any_time(short: float) -> None:
    made = windows([800], 8, 100, original_length=4, short=short)
    rows = np.cumsum([made[i]["input_ids"].shape == (2, 4) for i in range(100)])
    assert rows.tolist() == [math.floor(n * short) for n in range(1, 101)]
    assert all(made[i]["input_ids"].shape in ((2, 4), (1, 8)) for i in range(100))


def text(tokenizer: PreTrainedTokenizerFast, lengths: Sequence[int]) -> list[np.ndarray]:
    """Documents without lines of their own."""
    letters = np.array(tokenizer("?" * max(lengths))["input_ids"])
    return [letters[:length] for length in lengths]


def lines_of(tokenizer: PreTrainedTokenizerFast, tokens: np.ndarray) -> dict[str, list[int]]:
    """Every line in a sequence, and the characters (in this text, about tokens) at which it stands."""
    found: dict[str, list[int]] = {}
    for match in LINE.finditer(tokenizer.decode(tokens)):
        found.setdefault(match[0], []).append(match.start())
    return found


def with_needles(tokenizer: PreTrainedTokenizerFast, lengths: Sequence[int], **fields: object) -> TrainingWindows:
    defaults = {"original_length": 64, "needles": 1.0, "tokenizer": tokenizer, "count": sum(lengths) // max(lengths)}
    return TrainingWindows(text(tokenizer, lengths), **{"length": max(lengths), **defaults, **fields})


@pytest.mark.parametrize("size", [SHORTEST_SPAN, 2 * SHORTEST_SPAN, 8 * SHORTEST_SPAN + 77])
def test_planted_lines_are_repeated_once(bpe: PreTrainedTokenizerFast, size: int) -> None:
    made = with_needles(bpe, [size] * 10)
    for i in range(10):
        item = made[i]
        assert item["input_ids"].shape == (1, size)
        assert item["position_ids"].tolist() == [list(range(size))]
        assert item["labels"][0, 0] == IGNORED
        assert item["labels"][0, 1:].tolist() == item["input_ids"][0, 1:].tolist()
        assert {len(places) for places in lines_of(bpe, item["input_ids"][0]).values()} == {2}


def test_planted_lines_are_asked_for_at_all_distances(bpe: PreTrainedTokenizerFast) -> None:
    made = with_needles(bpe, [4096] * 40)
    found = [places for i in range(40) for places in lines_of(bpe, made[i]["input_ids"][0]).values()]
    distances = np.array([last - first for first, last in found])
    shares = np.histogram(distances, bins=[0, 64, 256, 1024, 4096])[0] / len(distances)
    assert (shares > 0.04).all(), shares
    assert len(found) > 3 * 40


def test_planted_lines_are_repeated_at_skipped_positions(bpe: PreTrainedTokenizerFast) -> None:
    made = with_needles(bpe, [300] * 6, length=3000, window=300, count=6)
    for i in range(6):
        assert {len(places) for places in lines_of(bpe, made[i]["input_ids"][0]).values()} == {2}
        assert made[i]["attention_mask"].tolist() == [[1] * 300]
    assert max(int(made[i]["position_ids"][0, -1]) for i in range(6)) > 300


def test_the_share_of_sequences_and_rows_with_planted_lines(bpe: PreTrainedTokenizerFast) -> None:
    fields = {"length": 400, "original_length": 200, "short": 0.5, "needles": 0.4}
    made = with_needles(bpe, [400] * 160, **fields)
    rows: dict[int, list[np.ndarray]] = {400: [], 200: []}
    for i in range(160):
        for row in made[i]["input_ids"]:
            rows[len(row)].append(row)
    assert len(rows[200]) == 2 * len(rows[400]) == 160
    for found in rows.values():
        assert 0.25 < np.mean([bool(lines_of(bpe, row)) for row in found]) < 0.55
    plain = with_needles(bpe, [400] * 160, **{**fields, "needles": 0.0})
    assert not any(lines_of(bpe, row) for i in range(160) for row in plain[i]["input_ids"])


def test_planted_lines_stay_within_a_document(bpe: PreTrainedTokenizerFast) -> None:
    """What is planted in one document is not asked for in the next, which does not see it."""
    made = with_needles(
        bpe, [290, 170, 350, 211, 379] * 20, length=800, count=15, original_length=400, short=1.0, needles=1.0
    )
    seen = 0
    for i in range(15):
        for row in range(2):
            tokens, labels, positions = (made[i][name][row] for name in ("input_ids", "labels", "position_ids"))
            documents = np.cumsum(positions == 0)
            assert (labels[positions == 0] == IGNORED).all()
            for places in lines_of(bpe, tokens).values():
                seen += len(places) == 2
                assert len({documents[place] for place in places}) == 1
    assert seen > 10


def test_where_no_line_fits_the_borders_stay(bpe: PreTrainedTokenizerFast) -> None:
    fields = {"length": 100, "count": 8, "original_length": 50, "short": 1.0}
    plain, asked = (with_needles(bpe, [30] * 40, needles=needles, **fields) for needles in (0.0, 1.0))
    assert all(same(plain[i], asked[i]) for i in range(8))


@pytest.mark.parametrize("short", [0.0, 1.0])
def test_no_token_is_predicted_from_another_document_where_lines_are_planted(
    bpe: PreTrainedTokenizerFast, short: float
) -> None:
    """Documents of equal tokens, one number each; what is seen of their borders is in no planted line."""
    documents = [np.full(40, len(bpe) + number) for number in range(60)]
    fields = {"original_length": 200, "needles": 1.0, "tokenizer": bpe, "short": short}
    made = TrainingWindows(documents, length=200, count=8, **fields)
    for i in range(8):
        tokens, labels = made[i]["input_ids"][0], made[i]["labels"][0]
        border = (tokens[1:] >= len(bpe)) & (tokens[:-1] >= len(bpe)) & (tokens[1:] != tokens[:-1])
        assert (labels[1:][border] == IGNORED).all()


def test_needles_without_a_tokenizer_are_refused() -> None:
    with pytest.raises(LongRopeError, match=r"needles = 0\.5: planted lines need a tokenizer"):
        windows([100], 10, needles=0.5)


EVERY = {"original_length": 150, "window": 170, "short": 0.25, "needles": 0.5}


def test_a_sequence_is_the_same_whatever_was_asked_before(bpe: PreTrainedTokenizerFast) -> None:
    documents = text(bpe, [400, 90, 777, 160, 500])
    one, other = (TrainingWindows(documents, length=400, count=11, tokenizer=bpe, **EVERY) for _ in range(2))
    forwards = [one[i] for i in range(11)]
    backwards = [other[i] for i in reversed(range(11))][::-1]
    assert all(map(same, forwards, backwards))
    assert same(one[4], forwards[4])
    fewer = TrainingWindows(documents, length=400, count=7, tokenizer=bpe, **EVERY)
    assert all(same(fewer[i], forwards[i]) for i in range(7))


def test_the_seed_decides() -> None:
    one, again, other = (windows([100] * 4, 16, window=8, seed=seed) for seed in (3, 3, 4))
    assert all(same(one[i], again[i]) for i in range(len(one)))
    assert not any(same(one[i], other[i]) for i in range(len(one)))
    assert not np.array_equal(np.sort(ids(one)), np.sort(ids(other)))  # cut from other offsets
    places = [[made[i]["position_ids"].tolist() for i in range(len(made))] for made in (one, other)]
    assert places[0] != places[1]


def test_there_are_as_many_as_wanted() -> None:
    made = windows([50, 50], 10, 4)
    assert len(made) == len(list(made)) == 4
    with pytest.raises(IndexError):
        made[4]


def test_too_little_data_says_how_much_and_what_to_change() -> None:
    with pytest.raises(
        LongRopeError,
        match=r"2,001 sequences of 1,000 tokens .* give 1 in 1 pass.*data\.train.*finetune\.tokens.*data\.repeats",
    ):
        windows([700, 600], 1000, 2001)
    with pytest.raises(LongRopeError, match=r"7 sequences of 10 tokens .* give 6 in 2 pass"):
        windows([35], 20, 7, window=10, repeats=2)


@given(corpora, sizes, st.integers(2, 4), seeds)
def test_repeats_see_each_token_at_most_so_often(lengths: list[int], size: int, repeats: int, seed: int) -> None:
    once = sum(lengths) // size
    made = windows(lengths, size, repeats * once, repeats=repeats, seed=seed)
    for number in range(repeats):
        part = np.concatenate(
            [np.array([], dtype=int), *(made[number * once + i]["input_ids"][0] for i in range(once))]
        )
        assert len(set(part.tolist())) == len(part)
    assert same_windows(made, windows(lengths, size, seed=seed), once)
    with pytest.raises(LongRopeError, match=f"in {repeats} pass"):
        windows(lengths, size, repeats * once + 1, repeats=repeats, seed=seed)


def same_windows(one: TrainingWindows, other: TrainingWindows, count: int) -> bool:
    return all(same(one[i], other[i]) for i in range(count))


def test_the_second_pass_cuts_elsewhere() -> None:
    made = windows([1009], 10, 200, repeats=2)
    first, second = ({int(made[i + at]["input_ids"][0, 0]) for i in range(100)} for at in (0, 100))
    assert len(first) == len(second) == 100
    assert not first & second
    order = [[int(made[i + at]["input_ids"][0, 0]) // 10 for i in range(100)] for at in (0, 100)]
    assert order[0] != order[1]


def test_a_window_above_the_length_is_refused() -> None:
    with pytest.raises(LongRopeError, match="window = 128: longer than length = 64"):
        windows([600], 64, 1, window=128)


def test_documents_may_be_lists_and_lengths_text() -> None:
    documents = corpus([80, 60])
    made = TrainingWindows([document.tolist() for document in documents], "64", 2.0, original_length="64")  # type: ignore[arg-type]
    expected = TrainingWindows(documents, 64, 2, original_length=64)
    assert same_windows(made, expected, 2)
    for wrong in ("a text", 5):
        with pytest.raises(LongRopeError, match=r"^documents\[1\]: not token ids\. Pass the tokenizer's input_ids"):
            TrainingWindows([documents[0], wrong], 64, 1, original_length=64)  # type: ignore[list-item]
