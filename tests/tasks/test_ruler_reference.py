"""RULER's tasks beside those of lm-evaluation-harness: the same words, the same kinds of lines, the same scores."""

from __future__ import annotations

import random
import re
from collections import Counter
from itertools import pairwise
from typing import Any

import nltk
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("lm_eval")
pytest.importorskip("scipy")

from longrope.models.load import load_tokenizer
from longrope.tasks.haystack import NOISE
from longrope.tasks.prompts import string_match
from longrope.tasks.registry import make_prompts

LENGTH, TRIALS = 3000, 3
TINY = load_tokenizer("tiny")
KEY, UUID = r"[\w']+(?:-[\w']+)+", r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


@pytest.fixture(scope="module")
def ruler() -> Any:
    """The harness's modules, without the download of its splitter of sentences, which these tasks do not need."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk, "download", lambda *_, **__: False)
        from lm_eval.tasks.ruler import common_utils, cwe_utils, fwe_utils, niah_utils, prepare_niah, vt_utils
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  the harness draws from it
    modules = (common_utils, cwe_utils, fwe_utils, niah_utils, prepare_niah, vt_utils)
    return {module.__name__.split(".")[-1]: module for module in modules}


def needles(ruler: Any, haystack: str, key: str, value: str) -> list[dict[str, Any]]:
    """Return samples of the harness's needle tasks."""
    niah = ruler["prepare_niah"]
    options = {"type_haystack": haystack, "type_needle_k": key, "type_needle_v": value, "num_samples": TRIALS}
    text = niah.get_haystack(type_haystack=haystack)
    template = ruler["niah_utils"].TEMPLATE
    return niah.generate_samples(text, max_seq_length=LENGTH, template=template, TOKENIZER=TINY, **options)


def masked(text: str) -> str:
    """Return a text with placeholders for the words that a trial draws."""
    for pattern, name in ((UUID, "UUID"), (r"\b\d{7}\b", "NUMBER"), (rf"(?<=for ){KEY}", "KEY")):
        text = re.sub(pattern, name, text)
    return text


def kinds(text: str) -> tuple[str, list[str], str]:
    """Return the masked first line, the different lines of the haystack but for its last, and the end."""
    first, *lines, _, last = masked(text).split("\n")
    return first, sorted({line for line in lines if line}), last


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("niah_single_1", ("repeat", "words", "numbers")),
        ("niah_multikey_2", ("needle", "words", "numbers")),
        ("niah_multikey_3", ("needle", "uuids", "uuids")),
    ],
)
def test_needles_are_the_same(task: str, kind: tuple[str, str, str], ruler: Any) -> None:
    theirs = needles(ruler, *kind)
    ours = make_prompts(task, TINY, length=LENGTH, trials=TRIALS, chat="off")
    texts = [TINY.decode(prompt.tokens) for prompt in ours]
    samples = [f"{sample['input']} {sample['gen_prefix']}" for sample in theirs]
    assert {str(kinds(text)) for text in texts} == {str(kinds(text)) for text in samples}
    pairs = [(text, prompt.answers) for text, prompt in zip(texts, ours, strict=True)]
    pairs += [(text, sample["outputs"]) for text, sample in zip(samples, theirs, strict=True)]
    for text, answers in pairs:
        assert len(answers) == 1
        assert text.count(f"is: {answers[0]}.") == 1
    assert {len(prompt.tokens) + prompt.room for prompt in ours} == {LENGTH}
    assert {prompt.room for prompt in ours} == {128}
    assert all(0.6 * LENGTH < sample["length"] <= LENGTH for sample in theirs)  # without the beginning of the answer


def test_variables_are_the_same(ruler: Any) -> None:
    """With a worked example of ten lines of noise, as the harness makes it of 500 tokens of a larger vocabulary."""
    make = ruler["vt_utils"].sys_vartrack_w_noise_random
    (example,) = make(tokenizer=TINY, num_samples=1, max_seq_length=760, incremental=5)
    assert example["input"].count("grass") == 10
    theirs = make(tokenizer=TINY, num_samples=TRIALS, max_seq_length=LENGTH, icl_example=example)
    ours = make_prompts("vt", TINY, length=LENGTH, trials=TRIALS)

    def frame(text: str) -> list[str]:
        text = re.sub(r"\b\d{5}\b", "VALUE", re.sub(r"\b(?!VAR\b)[A-Z]{3,5}\b", "NAME", text))
        lines = re.sub(r"\s*\n ?", "\n", text).split("\n")
        return [line for line, after in pairwise([*lines, ""]) if line != after and not NOISE.startswith(line)]

    for prompt, sample in zip(ours, theirs, strict=True):
        text, other = TINY.decode(prompt.tokens), f"{sample['input']} {sample['gen_prefix']}"
        assert Counter(frame(text)).keys() - {NOISE} >= {line for line in frame(other) if "VAR" not in line} - {NOISE}
        assert text.split("\n\n\n\n")[0].count(NOISE) == other.split("\n\n\n\n")[0].count(NOISE) == 10
        for whole in (text, other):
            assert len(re.findall(r" VAR [A-Z]{5} = (?:\d{5}|VAR [A-Z]{5} ) ", whole.replace("\n", "  "))) >= 4
        assert len(prompt.answers) == len(sample["outputs"]) == 5
        assert frame(text)[-1] == frame(other)[-1]
        assert prompt.room == 30


def test_common_words_are_the_same(ruler: Any) -> None:
    """The harness keeps the worked example out of its prompt; RULER puts it first, and so do we."""
    for length in (LENGTH, 5000):
        (sample,) = ruler["cwe_utils"].sys_word_pair_random(num_samples=1, max_seq_length=length, tokenizer=TINY)
        (prompt,) = make_prompts("cwe", TINY, length=length, trials=1)
        text = TINY.decode(prompt.tokens)
        example, body = text.split("\nBelow")[0], "Below" + text.split("\nBelow")[1]
        other = f"{sample['input']} {sample['gen_prefix']}"
        for mine, their in ((example, sample["input_example"]), (body, other)):
            assert re.sub(r"1\. .*", "LIST", mine) == re.sub(r"1\. .*", "LIST", their)
            counts = [
                Counter(Counter(re.findall(r"\d+\. (\D+?)(?= \d|\n|$)", words)).values()) for words in (mine, their)
            ]
            often = max(counts[1])
            assert counts[0][often] == counts[1][often] == 10
            assert max(counts[0], key=counts[0].__getitem__) == max(counts[1], key=counts[1].__getitem__)
        assert len(prompt.answers) == len(sample["outputs"]) == 10


def test_frequent_words_are_the_same(ruler: Any) -> None:
    (sample,) = ruler["fwe_utils"].sys_kwext(TINY, LENGTH, num_samples=1)
    (prompt,) = make_prompts("fwe", TINY, length=LENGTH, trials=1)
    text, other = TINY.decode(prompt.tokens), f"{sample['input']} {sample['gen_prefix']}"
    assert re.sub(r"words\. .*\n", "LIST", text) == re.sub(r"words\. .*\n", "LIST", other)
    for whole, answers in ((text, prompt.answers), (other, sample["outputs"])):
        words = whole.split("words. ")[1].split("\n")[0].split()
        counts = [Counter(words)[word] for word in answers]
        total = counts[0] / (0.25 * 6 / np.pi**2)  # the second word of a Zipf law with exponent 2
        assert counts == pytest.approx([total * rank**-2 * 6 / np.pi**2 for rank in (2, 3, 4)], abs=1)
        assert {len(word) for word in words if word != "..."} == {6}


@given(text=st.text(), answers=st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=4))
def test_scores_are_the_same(text: str, answers: list[str]) -> None:
    """Also where the text holds control characters, which the harness replaces, and the answers do not."""
    from lm_eval.tasks.ruler import common_utils

    answers = [re.sub(r"[\x00-\x1f\s]", "x", answer) for answer in answers]
    for whole in (text, text + "\t".join(answers[1:])):
        sample = {"max_length": 4096, "outputs": answers}
        assert string_match(whole, answers) == common_utils.process_results(sample, [whole])["4096"]
        one = [
            common_utils.process_results_part({"max_length": 4096, "outputs": [a]}, [whole])["4096"] for a in answers
        ]
        assert string_match(whole, answers, any_answer=True) == max(one)
