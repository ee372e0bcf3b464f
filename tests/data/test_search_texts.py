from __future__ import annotations

import re

import families
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import byte_bpe
from transformers import PreTrainedModel

from longrope.data.documents import Document
from longrope.data.questions import ASKED, KINDS, LEAD, PASSAGE, TEXT, ask_questions
from longrope.data.search_texts import SearchTextSpec, question_texts, search_texts
from longrope.data.weighted_text import perplexity_texts
from longrope.errors import LongRopeError
from longrope.longcontext.token_losses import token_losses
from longrope.models.patch import patch
from longrope.scaling import Scaling

SCALING = Scaling(np.linspace(1, 3, 8).tolist(), attention_factor=1.1)
TOKENIZER = byte_bpe(300, ["x = apple pearl\n"])
LENGTH = 2048
VALUE, CHAIN, COPY = (1 + KINDS.index(kind) for kind in ("value", "chain", "copy"))
QUESTION = re.compile(r"\n([a-z]{6}) =(?: ([a-z]{6}) =)?( \w+ \w+)(?=\n)")


@pytest.fixture(scope="module")
def reader() -> PreTrainedModel:
    """A model of as many tokens as the bytes' tokenizer has."""
    return families.build("llama", vocab_size=300, num_hidden_layers=1)


def document(length: int = LENGTH) -> np.ndarray:
    """Upper-case letters, of which no passage is repeated."""
    letters = np.random.default_rng(0).choice(list("QZJXVKWY"), size=length)
    return np.array(TOKENIZER("".join(letters))["input_ids"][:length])


def asked(seed: int, length: int = LENGTH) -> tuple[np.ndarray, np.ndarray]:
    return ask_questions(document(length), TOKENIZER, np.random.default_rng(seed), KINDS)


@given(st.integers(100, LENGTH), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_a_document_keeps_its_length_and_its_first_tokens_in_order(length: int, seed: int) -> None:
    tokens, labels = asked(seed, length)
    assert len(tokens) == len(labels) == length
    text = tokens[labels == TEXT]
    assert np.array_equal(text, document(length)[: len(text)])
    assert {VALUE} <= set(labels) <= {TEXT, ASKED, VALUE, CHAIN, COPY}


@pytest.mark.parametrize("seed", range(3))
def test_the_lines_of_the_text_answer_the_questions(seed: int) -> None:
    tokens, labels = asked(seed)
    last = np.flatnonzero(labels == TEXT)[-1] + 1
    text, questions = TOKENIZER.decode(tokens[:last]), TOKENIZER.decode(tokens[last:])
    lines = QUESTION.findall(questions)
    assert len(lines) == len({key for key, _, _ in lines}) == 12
    for key, other, words in lines:
        if not other:
            assert text.count(f"\n{key} ={words}\n") == 1
        else:  # the line of the value comes before the one that names its key
            assert 0 <= text.find(f"\n{other} ={words}\n") < text.find(f"\n{key} = {other}\n")
    values = [words for _, other, words in lines if not other]
    assert TOKENIZER.decode(tokens[labels == VALUE]) == "".join(values)
    chains = [f" {other}{words}" for _, other, words in lines if other]
    assert TOKENIZER.decode(tokens[labels == CHAIN]) == "".join(chains)


@pytest.mark.parametrize("seed", range(3))
def test_passages_are_repeated_and_all_but_their_first_tokens_are_answers(seed: int) -> None:
    tokens, labels = asked(seed)
    text = tokens[labels == TEXT].tolist()
    copies = np.split(np.flatnonzero(labels == COPY), 2)
    for copy in copies:
        assert len(copy) == PASSAGE - LEAD
        passage = tokens[copy[0] - LEAD : copy[-1] + 1].tolist()
        assert sum(text[i : i + PASSAGE] == passage for i in range(len(text))) == 1


def test_the_generator_decides_the_questions() -> None:
    assert np.array_equal(asked(4)[0], asked(4)[0])
    assert not np.array_equal(asked(4)[0], asked(5)[0])


def test_a_document_too_short_for_a_question_is_refused() -> None:
    with pytest.raises(LongRopeError, match=r"40 tokens of a document: too short for 1 question. Use .* at least \d+"):
        asked(0, 40)


def means(model: PreTrainedModel, tokens: np.ndarray, masks: list[np.ndarray]) -> list[float]:
    with patch(model, SCALING):
        losses = token_losses(model, tokens[None])[0].astype(np.float64)
    return [losses[mask[1:]].mean() for mask in masks]


@pytest.mark.parametrize("tail", [None, 100])
@pytest.mark.parametrize("share", [0.2, 1.0])
def test_the_loss_is_that_of_the_text_and_of_each_kind_of_answer(
    reader: PreTrainedModel, share: float, tail: int | None
) -> None:
    (text,) = question_texts(document()[None], TOKENIZER, share=share, tail=tail, seed=3, kinds=KINDS)
    tokens, labels = asked(3)
    assert np.array_equal(text.tokens, tokens)
    scored = labels == TEXT
    scored[0] = False
    scored[: np.flatnonzero(scored)[-(tail or scored.sum())]] = False
    mean, *answers = means(reader, tokens, [scored, *(labels == kind for kind in (VALUE, CHAIN, COPY))])
    with patch(reader, SCALING):
        loss = token_losses(reader, tokens[None])[0].astype(np.float64) @ text.weights
    assert loss == pytest.approx((1 - share) * mean + share * np.mean(answers), rel=1e-6)


def test_a_tail_longer_than_the_text_before_the_questions_is_refused() -> None:
    with pytest.raises(LongRopeError, match=r"tail = 1900: \d+ tokens lie before the questions"):
        question_texts(document()[None], TOKENIZER, share=0.5, tail=1900)


DOCUMENTS = [Document(f"{i}", f"{letter} apple = pearl " * 200) for i, letter in enumerate("QZJXV")]


@pytest.mark.parametrize("needles", [0.0, 0.25])
@pytest.mark.parametrize("lengths", [[500], [350, 500], [500, 350, 400, 350]])
def test_each_length_weighs_the_same(needles: float, lengths: list[int]) -> None:
    texts, names = search_texts(DOCUMENTS, TOKENIZER, SearchTextSpec(lengths, 2, needles, tail=50, seed=3))
    assert names == ("0", "1")
    tokens = np.array([TOKENIZER(document.text)["input_ids"][:500] for document in DOCUMENTS[:2]])
    expected = []
    for length in sorted(set(lengths)):
        cut = tokens[:, :length]
        expected += (
            question_texts(cut, TOKENIZER, share=needles, tail=50, seed=3)
            if needles
            else perplexity_texts(cut, tail=50)
        )
    for text, other in zip(texts, expected, strict=True):
        assert np.array_equal(text.tokens, other.tokens)
        np.testing.assert_allclose(text.weights, other.weights)  # a mean of all is a mean of the means


def test_too_few_documents_are_refused() -> None:
    with pytest.raises(LongRopeError, match="99 texts of 300 tokens are needed"):
        search_texts(DOCUMENTS, TOKENIZER, SearchTextSpec([100, 300], 99))


def test_a_tail_longer_than_the_shortest_length_is_refused() -> None:
    with pytest.raises(LongRopeError, match="tail = 100: not between 1 and 99"):
        search_texts(DOCUMENTS, TOKENIZER, SearchTextSpec([100, 300], 1, tail=100))
