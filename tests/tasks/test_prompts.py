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
    """With ``<s>`` before every text."""
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    bpe.train_from_iterator([TEXT[:2000], " ".join(map(str, range(300)))], trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>")


def by_bytes() -> PreTrainedTokenizerFast:
    """One token a byte, digits too."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.train_from_iterator([], trainers.BpeTrainer(vocab_size=256, initial_alphabet=BYTES, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=bpe)


def in_threes() -> PreTrainedTokenizerFast:
    """Digits in threes, and a token before every text, as Llama 3 has it."""
    bpe = Tokenizer(models.BPE())
    digits = pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe.decoder = decoders.ByteLevel()
    return trained(bpe, BYTES)


def blank_first() -> PreTrainedTokenizerFast:
    """A blank before every text, as SentencePiece has it in Llama 2."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")  # in training: no token is of two words
    tokenizer = trained(bpe, PLAIN)
    whole = tokenizer.backend_tokenizer
    whole.pre_tokenizer = pre_tokenizers.Split("\0", "isolated")
    whole.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    whole.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
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
    """Two different documents of 3,000 tokens."""
    return np.array([row[:3000] for row in tokenizer([TEXT, "# " + TEXT])["input_ids"]])


def probes(task: str, tokenizer: PreTrainedTokenizerFast, **fields: object) -> list[Prompt]:
    """Two of 2,000 tokens, some of it changed."""
    return make_prompts(task, tokenizer, **{"length": 2000, "trials": 2, "texts": texts(tokenizer), **fields})


def read(tokenizer: PreTrainedTokenizerFast, probe: Prompt) -> str:
    return str(tokenizer.decode(probe.tokens, skip_special_tokens=True))


@pytest.mark.parametrize("task", TASKS)
def test_the_length_is_exact_and_what_is_wanted_stands_in_the_text(
    task: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    begins = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    for length, probe in ((n, probe) for n in (2000, 2999) for probe in probes(task, tokenizer, length=n)):
        assert len(probe.tokens) + probe.room == length
        assert probe.tokens.dtype == np.int64
        text = read(tokenizer, probe)
        assert all(answer in text for answer in probe.answers)
        for said in [", ".join(probe.answers), *(() if task == "recall" else probe.wrong)]:
            assert len(encode_within(tokenizer, [f" {said}"])[0]) <= probe.room
        assert not {*probe.wrong} & {*probe.answers}
        assert len({*probe.wrong}) == (3 if len(probe.answers) == 1 else 0)
        assert text.endswith(" =" if task == "recall" else (" is", " are"))
        if begins:
            assert (probe.tokens == tokenizer.bos_token_id).nonzero()[0].tolist() == [0]


NUMBERS = {"passkey": 5, "niah_single_1": 7, "niah_single_2": 7, "niah_multikey_1": 7}


@pytest.mark.parametrize("task", NUMBERS)
@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
def test_a_needle_lies_whole_at_its_depth(task: str, depth: float, tokenizer: PreTrainedTokenizerFast) -> None:
    """In its own words, once but for the question."""
    for probe in probes(task, tokenizer, depths=[depth]):
        text, (answer,) = read(tokenizer, probe), probe.answers
        assert probe.depth == depth
        assert re.fullmatch(rf"\d{{{NUMBERS[task]}}}", answer)
        assert text.count(answer) == 1
        before, after = text.split(answer)
        asked = re.search(r"(?:is the|secret) ((?:pass key)|number for [\w-]+)\?", after)
        assert asked is not None
        assert before.endswith(f"{asked[1]} is ")
        body = before.index("\n"), len(text) - len(text.split("\n\n")[-1])
        assert (len(before) - body[0]) / (body[1] - body[0]) == pytest.approx(depth, abs=0.12)


def test_depths_take_turns_and_are_random_without(tiny: PreTrainedTokenizerFast) -> None:
    given = [probe.depth for probe in probes("passkey", tiny, trials=5, depths=[0.0, 0.5, 1.0])]
    assert given == [0.0, 0.5, 1.0, 0.0, 0.5]
    drawn = [probe.depth for probe in probes("passkey", tiny, trials=40)]
    assert np.histogram(drawn, bins=2, range=(0, 1))[0].min() > 10
    assert probes("vt", tiny)[0].depth is None


def test_real_documents_are_the_haystack_in_turn(tiny: PreTrainedTokenizerFast) -> None:
    documents = 3000 * np.arange(1, 3)[:, None] + np.arange(2000)
    for i, probe in enumerate(make_prompts("niah_multivalue", tiny, length=600, trials=4, texts=documents)):
        hay = probe.tokens[probe.tokens >= 3000]
        np.testing.assert_array_equal(hay, documents[i % 2, : len(hay)])
        assert len(hay) > 300


def test_documents_may_begin_with_the_start_of_a_text_or_not() -> None:
    """It stands at the beginning of the prompt only."""
    tokenizer = in_threes()
    for task in ("niah_single_2", "recall"):
        for one, two in zip(
            probes(task, tokenizer), probes(task, tokenizer, texts=texts(tokenizer)[:, 1:]), strict=True
        ):
            np.testing.assert_array_equal(one.tokens, two.tokens)
            assert (one.tokens == 0).nonzero()[0].tolist() == [0]


def test_noise_is_cut_between_sentences_only(tokenizer: PreTrainedTokenizerFast) -> None:
    """But at its end."""
    for probe in probes("niah_single_1", tokenizer, trials=6):
        lines = read(tokenizer, probe).split("\n")
        hay = "".join(line for line in lines[1:-1] if "secret" not in line)
        assert hay in "".join(NOISE) * 200
        assert all(line == "" or line.startswith(" ") for line in lines[2:-2] if "secret" not in line)


def test_all_values_of_a_key_or_of_all_keys_are_wanted(tiny: PreTrainedTokenizerFast) -> None:
    for task, keys in (("niah_multikey_1", 4), ("niah_multivalue", 1), ("niah_multiquery", 4)):
        for probe in probes(task, tiny):
            text = read(tiny, probe)
            pairs = re.findall(r"A secret number for ([\w-]+) is (\d{7})\.", text)
            asked = text.split("\n\n")[-1].split("?")[0].split(" for ")[1].split(" and ")
            assert len(pairs) == 4
            assert len({key for key, _ in pairs}) == keys
            assert {number for key, number in pairs if key in asked} == {*probe.answers}
            if task == "niah_multikey_1":
                assert {number for key, number in pairs if key not in asked} == {*probe.wrong}


def test_the_variables_follow_from_the_value(tiny: PreTrainedTokenizerFast) -> None:
    """By running the assignments from top to bottom."""
    for probe in probes("vt", tiny, trials=8):
        text, held = read(tiny, probe), {}
        for name, copied, value in re.findall(r"VAR (\w+) = (?:VAR (\w+)|(\d+))", text):
            held[name] = held[copied] if copied else value
        (asked,) = re.findall(r"have the value (\d+)\?", text)
        assert {name for name, value in held.items() if value == asked} == {*probe.answers}
        assert [*Counter(held.values()).values()] == [5, 5]


@pytest.mark.parametrize(("task", "wanted"), [("cwe", 10), ("fwe", 3)])
@pytest.mark.parametrize("length", [1500, 5000])
def test_the_words_are_the_most_frequent(task: str, wanted: int, length: int, tiny: PreTrainedTokenizerFast) -> None:
    for probe in probes(task, tiny, length=length, texts=None):
        text = read(tiny, probe)
        assert len(tiny(text[: text.index("Below")])["input_ids"]) < 20  # noise where no other word fits
        listed = text.split("\n\n")[-2].split("\n")[-1].split()
        counts = Counter(word for word in listed if word != "...").most_common()
        assert {word for word, _ in counts[:wanted]} == {*probe.answers}
        assert counts[wanted - 1][1] > counts[wanted][1]
        often, seldom = (30, 3) if length >= 4096 else (10, 1)
        if task == "cwe":
            assert {count for _, count in counts[:10]} == {often}
            assert {count for _, count in counts[10:]} == {seldom}
            assert len(counts) >= 20
        else:
            assert listed.count("...") > counts[0][1]
        assert listed != sorted(listed, key=lambda word: -listed.count(word))


def test_recall_plants_as_tiny_was_trained(tiny: PreTrainedTokenizerFast) -> None:
    """Trial by trial from one generator; the prompt ends where the answer begins."""
    rng, rows = np.random.default_rng(7), texts(tiny)
    for i, probe in enumerate(make_prompts("recall", tiny, length=300, trials=5, texts=rows, seed=7)):
        recall = make_key_value_text(rows[i % 2], tiny, rng=rng, length=300)
        wanted = np.flatnonzero(recall.answers)
        np.testing.assert_array_equal(probe.tokens, recall.tokens[: wanted[0]])
        assert f" {probe.answers[0]}" == tiny.decode(recall.tokens[wanted])
        np.testing.assert_array_equal(encode_within(tiny, [f" {probe.answers[0]}"])[0], recall.tokens[wanted])


@pytest.mark.parametrize("task", TASKS)
def test_the_seed_decides_and_more_begin_with_the_same(task: str, tiny: PreTrainedTokenizerFast) -> None:
    long, again, other = probes(task, tiny, trials=3), probes(task, tiny), probes(task, tiny, seed=1)
    for one, two in zip(long, again, strict=False):
        np.testing.assert_array_equal(one.tokens, two.tokens)
        assert (one.answers, one.wrong, one.depth) == (two.answers, two.wrong, two.depth)
    assert len({probe.answers for probe in [*long, *other]}) == 5


@pytest.mark.parametrize("task", TASKS)
def test_the_least_length_is_told_and_is_enough(task: str, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(LongRopeError, match="is too short") as caught:
        probes(task, tokenizer, length=20)
    number = int(re.findall(r"\d+", str(caught.value))[-1])
    if task == "recall":
        assert probes(task, tokenizer, length=20 + number, trials=1)
    else:
        assert all(len(probe.tokens) + probe.room == number for probe in probes(task, tokenizer, length=number))
        with pytest.raises(LongRopeError, match=f"length = {number - 1} .* {task} .* at least {number}"):
            probes(task, tokenizer, length=number - 1)


def test_wrong_requests_are_refused(tiny: PreTrainedTokenizerFast) -> None:
    with pytest.raises(LongRopeError, match=r"task = 'niah' is unknown; choose one of passkey, .*recall"):
        probes("niah", tiny)
    with pytest.raises(LongRopeError, match=r"depths = 1\.2"):
        probes("passkey", tiny, depths=[0.5, 1.2])
    with pytest.raises(LongRopeError, match="trials = 0"):
        probes("passkey", tiny, trials=0)
    for task in (name for name, task in TASKS.items() if task.real):
        with pytest.raises(LongRopeError, match=f"texts = None: task {task} .*at least 2000"):
            probes(task, tiny, texts=None)
        with pytest.raises(LongRopeError, match=r"texts = \(2, 1999\): task"):
            probes(task, tiny, texts=texts(tiny)[:, :1999])
    for task in (name for name, task in TASKS.items() if not task.real):
        assert probes(task, tiny, texts=None)


def test_invented_words_are_distinct_and_grow(tiny: PreTrainedTokenizerFast) -> None:
    few, many = (invented(np.random.default_rng(0), count) for count in (10, 5000))
    assert many[:10] == few
    assert len({*many}) == 5000
    assert {len(word) for word in many} == {6}


def test_pieces_are_encoded_as_within_a_text() -> None:
    """No blank of SentencePiece's before them."""
    tokenizer = blank_first()
    (piece,) = encode_within(tokenizer, [" the year"])
    whole = tokenizer("in the year", add_special_tokens=False)["input_ids"]
    assert whole[-len(piece) :] == piece.tolist()
    assert len(tokenizer(" the year", add_special_tokens=False)["input_ids"]) > len(piece)
