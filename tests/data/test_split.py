from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from longrope.data.documents import Document
from longrope.data.split import SPLITS, draw_tokens, split_documents
from longrope.errors import LongRopeError

SIZES = st.lists(st.integers(1, 99), min_size=5, max_size=40)  # fewer are cut: tests/cases/test_one_book.py


def documents(sizes: list[int]) -> list[Document]:
    return [Document(f"d{i}", "x" * size) for i, size in enumerate(sizes)]


@given(SIZES, st.integers(0, 2**32))
def test_disjoint_complete_and_decided_by_the_seed(sizes: list[int], seed: int) -> None:
    given_ = documents(sizes)
    parts = split_documents(given_, seed=seed)
    assert set(parts) == set(SPLITS)
    names = [document.name for found in parts.values() for document in found]
    assert sorted(names) == sorted(document.name for document in given_)
    assert split_documents(given_, seed=seed) == parts


@given(SIZES, st.integers(0, 99))
def test_the_order_they_come_in_does_not_matter(sizes: list[int], seed: int) -> None:
    shuffled = documents(sizes)
    random.Random(seed).shuffle(shuffled)
    assert split_documents(shuffled, seed=seed) == split_documents(documents(sizes), seed=seed)


@given(st.lists(st.integers(1, 10**6), min_size=5, max_size=40, unique=True), st.integers(0, 99))
def test_every_five_of_like_size_are_shared_two_one_two(sizes: list[int], seed: int) -> None:
    part_of = {
        len(one.text): part
        for part, found in split_documents(documents([s % 997 for s in sizes])).items()
        for one in found
    }
    by_size = sorted((size % 997 for size in sizes), reverse=True)
    if len(part_of) == len(by_size):  # distinct sizes: which block a document is in is then certain
        for start in range(0, len(by_size) - 4, 5):
            shares = [part_of[size] for size in by_size[start : start + 5]]
            assert [shares.count(part) for part in SPLITS] == [2, 1, 2]


def test_seeds_differ_in_parts_and_in_order() -> None:
    given_ = documents(list(range(1, 31)))
    assert len({tuple(one.name for one in split_documents(given_, seed=seed)["search"]) for seed in range(20)}) == 20
    assert len({frozenset(one.name for one in split_documents(given_, seed=seed)["test"]) for seed in range(20)}) > 15


def test_every_document_can_land_in_every_part() -> None:
    given_ = documents([5, 4, 3, 2, 1])
    landed = {
        (one.name, part)
        for seed in range(60)
        for part, found in split_documents(given_, seed=seed).items()
        for one in found
    }
    assert len(landed) == 15


@pytest.fixture(scope="module")
def prose() -> list[Document]:
    rng = random.Random(0)
    words = "the cat sat on a mat and def return été\n".split(" ")
    sizes = (30, 400, 50, 900, 3000, 10)
    return [Document(f"d{i}", " ".join(rng.choice(words) for _ in range(n))) for i, n in enumerate(sizes)]


@pytest.mark.parametrize("length", [1, 2, 16, 100, 257])
def test_draw_cuts_exactly_and_keeps_the_order(
    bpe: PreTrainedTokenizerFast, prose: list[Document], length: int
) -> None:
    own = {one.name: bpe(one.text)["input_ids"] for one in prose}
    long_enough = [one.name for one in prose if len(own[one.name]) >= length][:3]
    drawn = draw_tokens(prose, bpe, length=length, count=3)
    assert drawn.tokens.shape == (3, length)
    assert drawn.tokens.dtype == np.int64
    assert list(drawn.names) == long_enough
    assert drawn.tokens.tolist() == [own[name][:length] for name in long_enough]


def test_a_longer_draw_begins_like_a_shorter_one(bpe: PreTrainedTokenizerFast, prose: list[Document]) -> None:
    short, long = (draw_tokens(prose[3:5], bpe, length=length, count=2).tokens for length in (64, 512))
    assert np.array_equal(long[:, :64], short)


@pytest.mark.parametrize("length", [6, 12, 24])
def test_a_cut_inside_a_word_does_not_show(bpe: PreTrainedTokenizerFast, length: int) -> None:
    """Only the head of a very long text is tokenized; its last word is then not whole, and its tokens are others."""
    for shift in range(24):
        text = "b\n" * (length // 4) + "a" * shift + "\n" + "a" * 40 * length
        own = bpe(text)["input_ids"][:length]
        assert draw_tokens([Document("d", text)], bpe, length=length, count=1).tokens[0].tolist() == own


def test_special_tokens_come_as_for_the_models_own_input(bpe: PreTrainedTokenizerFast, prose: list[Document]) -> None:
    from tokenizers.processors import TemplateProcessing

    with_ends = PreTrainedTokenizerFast(
        tokenizer_object=type(bpe.backend_tokenizer).from_str(bpe.backend_tokenizer.to_str())
    )
    with_ends.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    ends = [(name, with_ends.convert_tokens_to_ids(name)) for name in ("<s>", "</s>")]
    with_ends.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    tokens = draw_tokens(prose[4:5], with_ends, length=50, count=1).tokens[0].tolist()
    assert tokens == with_ends(prose[4].text)["input_ids"][:50]
    assert tokens[0] == ends[0][1]
    assert ends[1][1] not in tokens


def test_too_few_says_what_was_found_and_what_is_needed(bpe: PreTrainedTokenizerFast, prose: list[Document]) -> None:
    longest = max(len(bpe(one.text)["input_ids"]) for one in prose)
    needed = longest // 2 + 1  # twice in no document
    with pytest.raises(LongRopeError) as raised:
        draw_tokens(prose, bpe, length=needed, count=3)
    assert [int(number) for number in re.findall(r"\d+", str(raised.value))] == [3, needed, len(prose), longest]
    with pytest.raises(LongRopeError, match=rf"Of 6 documents, the longest of which has {longest} tokens\. Give more"):
        draw_tokens(prose, bpe, length=longest + 1, count=1)
    with pytest.raises(LongRopeError, match="There are no documents"):
        draw_tokens([], bpe, length=8, count=1)
    splits = split_documents(prose)
    counts = [len(split) for split in splits.values()]
    for split, count in zip(splits.values(), counts, strict=True):
        own = max(len(bpe(one.text)["input_ids"]) for one in split)
        message = (
            rf"Of 6 documents in all, split into search, held_out, test, {count} are in this split, the longest of "
        )
        with pytest.raises(
            LongRopeError, match=rf"{message}which has {own} tokens; the longest in all has {longest}\."
        ):
            draw_tokens(split, bpe, length=longest + 1, count=1)


def test_the_cache_is_used_and_gives_the_same(
    bpe: PreTrainedTokenizerFast, prose: list[Document], tmp_path: Path
) -> None:
    plain, cached, again = (
        draw_tokens(prose, bpe, length=40, count=3, cache=cache).tokens
        for cache in (None, tmp_path / "c", tmp_path / "c")
    )
    assert np.array_equal(plain, cached)
    assert np.array_equal(plain, again)
    files = list((tmp_path / "c").iterdir())
    for path in files:
        np.save(path, np.load(path)[::-1])
    poisoned = draw_tokens(prose, bpe, length=40, count=3, cache=tmp_path / "c").tokens
    assert not np.array_equal(poisoned, plain)
    assert sorted(files) == sorted((tmp_path / "c").iterdir())
