from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from longrope.data.tokenize import encode
from longrope.errors import LongRopeError

TEXT = st.text(st.sampled_from("a  b\ncat the é✓"), max_size=600)


@given(TEXT, st.integers(1, 40), st.integers(1, 5))
def test_the_first_tokens_are_the_tokenizers_own(
    bpe: PreTrainedTokenizerFast, text: str, length: int, times: int
) -> None:
    tokens = encode(text * times, bpe, length=length)
    assert tokens.tolist() == bpe(text * times)["input_ids"][:length]
    assert tokens.dtype == np.int64


@given(TEXT, st.integers(1, 40))
def test_with_a_cache_twice_as_without(
    bpe: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory, text: str, length: int
) -> None:
    cache = tmp_path_factory.getbasetemp() / "tokens"
    own = encode(text, bpe, length=length).tolist()
    assert [encode(text, bpe, length=length, cache=cache).tolist() for _ in range(2)] == [own, own]


def test_another_tokenizer_has_other_files(
    bpe: PreTrainedTokenizerFast, other_bpe: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    for tokenizer in (bpe, other_bpe):
        own = tokenizer("the cat sat on the mat")["input_ids"]
        assert encode("the cat sat on the mat", tokenizer, length=99, cache=tmp_path).tolist() == own
    assert len(list(tmp_path.iterdir())) == 2


def test_another_text_has_another_file(bpe: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    one, two = (encode(text, bpe, length=99, cache=tmp_path).tolist() for text in ("the cat", "the mat"))
    assert one != two
    assert len(list(tmp_path.iterdir())) == 2


def test_a_cache_that_cannot_be_written(bpe: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LongRopeError, match="file"):
        encode("the cat", bpe, length=9, cache=tmp_path / "file" / "cache")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_damaged_cache_file_is_not_believed(bpe: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    own = encode("the cat", bpe, length=9, cache=tmp_path).tolist()
    for path in tmp_path.iterdir():
        path.write_bytes(b"\x93NUMPY garbage")
    assert encode("the cat", bpe, length=9, cache=tmp_path).tolist() == own


def test_a_text_that_begins_with_many_blanks(bpe: PreTrainedTokenizerFast) -> None:
    text = " " * 3072 + "hello world " * 1000
    np.testing.assert_array_equal(encode(text, bpe, length=256), bpe(text)["input_ids"][:256])
