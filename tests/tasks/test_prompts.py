from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from longrope.data.key_value_lines import make_key_value_text
from longrope.errors import LongRopeError
from longrope.models.load import load_tokenizer
from longrope.tasks.haystack import NOISE, encode_within
from longrope.tasks.prompts import Prompt
from longrope.tasks.registry import TASKS, make_prompts
from longrope.tasks.ruler import invented

TEXT = "It was the year in which nothing grew, and the people went to the coast.\n" * 400
BYTES, PLAIN = pre_tokenizers.ByteLevel.alphabet(), [*string.printable, "▁"]


def trained(bpe: Tokenizer, alphabet: list[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer that puts ``<s>`` before every text."""
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    bpe.train_from_iterator([TEXT[:2000], " ".join(map(str, range(300)))], trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>")


def by_bytes() -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token for each byte, digits included."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.train_from_iterator([], trainers.BpeTrainer(vocab_size=256, initial_alphabet=BYTES, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=bpe)


def in_threes() -> PreTrainedTokenizerFast:
    """Return a tokenizer that splits digits in threes and puts a token before every text, as Llama 3's."""
    bpe = Tokenizer(models.BPE())
    digits = pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe.decoder = decoders.ByteLevel()
    return trained(bpe, BYTES)


def blank_first() -> PreTrainedTokenizerFast:
    """Return a tokenizer that puts a blank before every text, as SentencePiece in Llama 2."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")  # in training: no token is of two words
    tokenizer = trained(bpe, PLAIN)
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Split("\0", "isolated")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return tokenizer


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "bytes": by_bytes,
    "threes": in_threes,
    "blank": blank_first,
    "tiny": lambda: load_tokenizer("tiny"),
}


@pytest.fixture(scope="module", params=[*TOKENIZERS])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]()


@pytest.fixture(scope="module")
def tiny() -> PreTrainedTokenizerFast:
    return load_tokenizer("tiny")


@cache
def texts(tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """Return two different documents of 3,000 tokens."""
    return np.array([row[:3000] for row in tokenizer([TEXT, "# " + TEXT])["input_ids"]])


def prompts(task: str, tokenizer: PreTrainedTokenizerFast, **fields: object) -> list[Prompt]:
    """Return two prompts of 2,000 tokens, unless the fields say otherwise."""
    return make_prompts(task, tokenizer, **{"length": 2000, "trials": 2, "texts": texts(tokenizer), **fields})


def read(tokenizer: PreTrainedTokenizerFast, prompt: Prompt) -> str:
    return str(tokenizer.decode(prompt.tokens, skip_special_tokens=True))


@pytest.mark.parametrize("task", TASKS)
def test_the_length_is_exact_and_the_answers_stand_in_the_text(task: str, tokenizer: PreTrainedTokenizerFast) -> None:
    begins = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    for length, prompt in ((n, prompt) for n in (2000, 2999) for prompt in prompts(task, tokenizer, length=n)):
        assert len(prompt.tokens) + prompt.room == length
        assert prompt.tokens.dtype == np.int64
        text = read(tokenizer, prompt)
        assert all(answer in text for answer in prompt.answers)
        for answer in [", ".join(prompt.answers), *(() if task == "recall" else prompt.wrong)]:
            assert len(encode_within(tokenizer, [f" {answer}"])[0]) <= prompt.room
        assert not {*prompt.wrong} & {*prompt.answers}
        assert len({*prompt.wrong}) == (3 if len(prompt.answers) == 1 else 0)
        assert text.endswith(" =" if task == "recall" else (" is", " are"))
        if begins:
            assert (prompt.tokens == tokenizer.bos_token_id).nonzero()[0].tolist() == [0]


NUMBERS = {"passkey": 5, "niah_single_1": 7, "niah_single_2": 7, "niah_multikey_1": 7}


@pytest.mark.parametrize("task", NUMBERS)
@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
def test_a_needle_lies_whole_at_its_depth(task: str, depth: float, tokenizer: PreTrainedTokenizerFast) -> None:
    """The line is planted once, and the question repeats its key."""
    for prompt in prompts(task, tokenizer, depths=[depth]):
        text, (answer,) = read(tokenizer, prompt), prompt.answers
        assert prompt.depth == depth
        assert re.fullmatch(rf"\d{{{NUMBERS[task]}}}", answer)
        assert text.count(answer) == 1
        before, after = text.split(answer)
        query = re.search(r"(?:is the|secret) ((?:pass key)|number for [\w-]+)\?", after)
        assert query is not None
        assert before.endswith(f"{query[1]} is ")
        body = before.index("\n"), len(text) - len(text.split("\n\n")[-1])
        assert (len(before) - body[0]) / (body[1] - body[0]) == pytest.approx(depth, abs=0.12)


def test_depths_take_turns_and_are_random_without(tiny: PreTrainedTokenizerFast) -> None:
    depths = [prompt.depth for prompt in prompts("passkey", tiny, trials=5, depths=[0.0, 0.5, 1.0])]
    assert depths == [0.0, 0.5, 1.0, 0.0, 0.5]
    drawn = [prompt.depth for prompt in prompts("passkey", tiny, trials=40)]
    assert np.histogram(drawn, bins=2, range=(0, 1))[0].min() > 10
    assert prompts("vt", tiny)[0].depth is None


def test_real_documents_are_the_haystack_in_turn(tiny: PreTrainedTokenizerFast) -> None:
    documents = 3000 * np.arange(1, 3)[:, None] + np.arange(2000)
    for i, prompt in enumerate(make_prompts("niah_multivalue", tiny, length=600, trials=4, texts=documents)):
        haystack = prompt.tokens[prompt.tokens >= 3000]
        np.testing.assert_array_equal(haystack, documents[i % 2, : len(haystack)])
        assert len(haystack) > 300


def test_documents_may_begin_with_the_start_of_a_text_or_not() -> None:
    """The start token stands only at the beginning of the prompt."""
    tokenizer = in_threes()
    for task in ("niah_single_2", "recall"):
        for with_start, without in zip(
            prompts(task, tokenizer), prompts(task, tokenizer, texts=texts(tokenizer)[:, 1:]), strict=True
        ):
            np.testing.assert_array_equal(with_start.tokens, without.tokens)
            assert (with_start.tokens == 0).nonzero()[0].tolist() == [0]


def test_noise_is_cut_between_sentences_only(tokenizer: PreTrainedTokenizerFast) -> None:
    """Only its end is cut within a sentence."""
    for prompt in prompts("niah_single_1", tokenizer, trials=6):
        lines = read(tokenizer, prompt).split("\n")
        haystack = "".join(line for line in lines[1:-1] if "secret" not in line)
        assert haystack in "".join(NOISE) * 200
        assert all(line == "" or line.startswith(" ") for line in lines[2:-2] if "secret" not in line)


def test_the_answers_are_all_values_of_the_queried_keys(tiny: PreTrainedTokenizerFast) -> None:
    for task, keys in (("niah_multikey_1", 4), ("niah_multivalue", 1), ("niah_multiquery", 4)):
        for prompt in prompts(task, tiny):
            text = read(tiny, prompt)
            pairs = re.findall(r"A secret number for ([\w-]+) is (\d{7})\.", text)
            queried = text.split("\n\n")[-1].split("?")[0].split(" for ")[1].split(" and ")
            assert len(pairs) == 4
            assert len({key for key, _ in pairs}) == keys
            assert {number for key, number in pairs if key in queried} == {*prompt.answers}
            if task == "niah_multikey_1":
                assert {number for key, number in pairs if key not in queried} == {*prompt.wrong}


def test_the_variables_follow_from_the_value(tiny: PreTrainedTokenizerFast) -> None:
    """Running the assignments from top to bottom gives the answers."""
    for prompt in prompts("vt", tiny, trials=8):
        text, values = read(tiny, prompt), {}
        for name, copied, value in re.findall(r"VAR (\w+) = (?:VAR (\w+)|(\d+))", text):
            values[name] = values[copied] if copied else value
        (queried,) = re.findall(r"have the value (\d+)\?", text)
        assert {name for name, value in values.items() if value == queried} == {*prompt.answers}
        assert [*Counter(values.values()).values()] == [5, 5]


@pytest.mark.parametrize(("task", "answers"), [("cwe", 10), ("fwe", 3)])
@pytest.mark.parametrize("length", [1500, 5000])
def test_the_words_are_the_most_frequent(task: str, answers: int, length: int, tiny: PreTrainedTokenizerFast) -> None:
    for prompt in prompts(task, tiny, length=length, texts=None):
        text = read(tiny, prompt)
        assert len(tiny(text[: text.index("Below")])["input_ids"]) < 20  # noise where no other word fits
        listed = text.split("\n\n")[-2].split("\n")[-1].split()
        counts = Counter(word for word in listed if word != "...").most_common()
        assert {word for word, _ in counts[:answers]} == {*prompt.answers}
        assert counts[answers - 1][1] > counts[answers][1]
        often, seldom = (30, 3) if length >= 4096 else (10, 1)
        if task == "cwe":
            assert {count for _, count in counts[:10]} == {often}
            assert {count for _, count in counts[10:]} == {seldom}
            assert len(counts) >= 20
        else:
            assert listed.count("...") > counts[0][1]
        assert listed != sorted(listed, key=lambda word: -listed.count(word))


def test_recall_plants_as_tiny_was_trained(tiny: PreTrainedTokenizerFast) -> None:
    """All trials draw from one generator, and the prompt ends where the answer begins."""
    rng, rows = np.random.default_rng(7), texts(tiny)
    for i, prompt in enumerate(make_prompts("recall", tiny, length=300, trials=5, texts=rows, seed=7)):
        text = make_key_value_text(rows[i % 2], tiny, rng=rng, length=300)
        answers = np.flatnonzero(text.answers)
        np.testing.assert_array_equal(prompt.tokens, text.tokens[: answers[0]])
        assert f" {prompt.answers[0]}" == tiny.decode(text.tokens[answers])
        np.testing.assert_array_equal(encode_within(tiny, [f" {prompt.answers[0]}"])[0], text.tokens[answers])


@pytest.mark.parametrize("task", TASKS)
def test_the_seed_decides_and_more_begin_with_the_same(task: str, tiny: PreTrainedTokenizerFast) -> None:
    long, again, other = prompts(task, tiny, trials=3), prompts(task, tiny), prompts(task, tiny, seed=1)
    for first, second in zip(long, again, strict=False):
        np.testing.assert_array_equal(first.tokens, second.tokens)
        assert (first.answers, first.wrong, first.depth) == (second.answers, second.wrong, second.depth)
    assert len({prompt.answers for prompt in [*long, *other]}) == 5


@pytest.mark.parametrize("task", TASKS)
def test_the_error_gives_the_least_length_and_it_is_enough(task: str, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(LongRopeError, match="too short") as caught:
        prompts(task, tokenizer, length=20)
    least = int(re.findall(r"\d+", str(caught.value))[-1])
    if task == "recall":
        assert prompts(task, tokenizer, length=20 + least, trials=1)
    else:
        assert all(len(prompt.tokens) + prompt.room == least for prompt in prompts(task, tokenizer, length=least))
        with pytest.raises(LongRopeError, match=f"length = {least - 1}: .* {task} .* at least {least}"):
            prompts(task, tokenizer, length=least - 1)


def test_wrong_requests_are_refused(tiny: PreTrainedTokenizerFast) -> None:
    with pytest.raises(LongRopeError, match=r"task = 'niah' is unknown; choose one of passkey, .*recall"):
        prompts("niah", tiny)
    with pytest.raises(LongRopeError, match=r"depths = 1\.2"):
        prompts("passkey", tiny, depths=[0.5, 1.2])
    with pytest.raises(LongRopeError, match="trials = 0"):
        prompts("passkey", tiny, trials=0)
    for task in (name for name, task in TASKS.items() if task.needs_texts):
        with pytest.raises(LongRopeError, match=f"texts = None: task {task} .*at least 2000"):
            prompts(task, tiny, texts=None)
        with pytest.raises(LongRopeError, match=r"texts = \(2, 1999\): task"):
            prompts(task, tiny, texts=texts(tiny)[:, :1999])
    for task in (name for name, task in TASKS.items() if not task.needs_texts):
        assert prompts(task, tiny, texts=None)


def test_invented_words_are_distinct_and_grow(tiny: PreTrainedTokenizerFast) -> None:
    few, many = (invented(np.random.default_rng(0), count) for count in (10, 5000))
    assert many[:10] == few
    assert len({*many}) == 5000
    assert {len(word) for word in many} == {6}


def test_strings_are_encoded_as_within_a_text() -> None:
    """SentencePiece's blank before a text is left out."""
    tokenizer = blank_first()
    (tokens,) = encode_within(tokenizer, [" the year"])
    longer = tokenizer("in the year", add_special_tokens=False)["input_ids"]
    assert longer[-len(tokens) :] == tokens.tolist()
    assert len(tokenizer(" the year", add_special_tokens=False)["input_ids"]) > len(tokens)
