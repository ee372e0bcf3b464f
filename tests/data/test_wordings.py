from __future__ import annotations

import re
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from longrope.data.key_value_lines import make_lines
from longrope.data.tokenize import encode_within
from longrope.data.training_windows import IGNORED, TrainingWindows
from longrope.data.wordings import KEY_VALUE, WORDINGS, Wording
from longrope.tasks.lookups import passkey
from longrope.tasks.ruler import niah

KEY = "(?P<key>[a-z]{6}|[a-z]+-[a-z]+)"


@pytest.mark.parametrize("wording", WORDINGS, ids=lambda wording: wording.line.strip())
@pytest.mark.parametrize("seed", range(3))
def test_a_question_asks_for_the_value_of_its_line(bpe: PreTrainedTokenizerFast, wording: Wording, seed: int) -> None:
    before, after = (re.escape(text).replace(r"\{\}", KEY) for text in (wording.line, wording.end))
    form = before + (r" (?P<value>\d{4,8})" if wording.numbers else " (?P<value>[a-z]+ [a-z]+)") + after
    keys = set()
    for line in make_lines(bpe, np.random.default_rng(seed), 5, (wording,)):
        planted = re.fullmatch(form, bpe.decode(line.planted.tokens))
        assert planted
        asked = wording.question.replace("{}", planted["key"])
        assert bpe.decode(line.question.tokens) == f"{asked} {planted['value']}\n"
        assert bpe.decode(line.question.tokens[line.question.answers]) == f" {planted['value']}"
        assert not line.planted.answers.any()
        keys.add(planted["key"])
    assert len(keys) == 5


def test_no_blank_stands_before_a_stop() -> None:
    """With a tokenizer of words that start with a blank, and that has two stops as one word."""
    characters = ["<s>", "\u2581", *string.printable, "\u2581.", "\u2581.."]
    merges = [("\u2581", "."), ("\u2581.", ".")]
    bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(characters)}, merges=merges))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe)
    stop, *_ = encode_within(tokenizer, [".\n", "a"])
    assert tokenizer.convert_ids_to_tokens(stop.tolist())[0] == "."


def test_no_wording_is_that_of_the_needle_tasks() -> None:
    """So that the tasks measure questions whose words the training did not have."""
    rng = np.random.default_rng(0)
    words = " ".join(wording.line + wording.question for wording in WORDINGS)
    for draft in (niah(rng, 0.5), passkey(rng, 0.5)):
        for text in (draft.question, *draft.lines):
            longest = [" ".join(part) for part in zip(*(text.split()[i:] for i in range(4)), strict=False)]
            assert not [part for part in longest if part in words]


@given(st.sampled_from([96, 130, 400, 2048]), st.booleans(), st.integers(0, 2**32))
def test_windows_of_any_size_have_each_line_and_its_question(
    bpe: PreTrainedTokenizerFast, window: int, sparse: bool, seed: int
) -> None:
    """In bytes the longest sentence and its question have 120 tokens; lines without room are left out."""
    background = bpe("A" * 20_000)["input_ids"]
    fields = {"length": 4000, "original_length": 256, "window": window, "sparse": sparse, "short": 0.3, "needles": 1.0}
    made = TrainingWindows(
        [background], count=4, tokenizer=bpe, wordings=WORDINGS, answer_weight=3.0, seed=seed, **fields
    )
    for i in range(4):
        inputs = made[i]
        weights = inputs["weights"][inputs["labels"] != IGNORED]
        answers = (inputs["weights"] > 1.5 * np.median(weights)).ravel()
        text = inputs["input_ids"].ravel()
        starts = np.flatnonzero(np.diff(answers, prepend=False) & answers)
        assert starts.size or window < 2048
        for start in starts:
            end = start + np.argmin(np.append(answers[start:], False))
            value = bpe.decode(text[start:end])
            assert value in bpe.decode(text[:start])


def test_one_wording_repeats_the_line(bpe: PreTrainedTokenizerFast) -> None:
    for line in make_lines(bpe, np.random.default_rng(0), 4):
        assert np.array_equal(line.planted.tokens, line.question.tokens)
    assert KEY_VALUE in WORDINGS
