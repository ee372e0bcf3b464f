from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from ruler_files import ruler_folder
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from longrope.data.key_value_lines import make_key_value_text
from longrope.data.tokenize import encode_within
from longrope.errors import LongRopeError
from longrope.models.load import load_tokenizer
from longrope.tasks.conversation import mrcr, random_turn
from longrope.tasks.graph import random_edge
from longrope.tasks.haystack import LEAST_BORDERS, NOISE, drawn, sentence_borders
from longrope.tasks.lookups import random_pair
from longrope.tasks.needle_task import NeedleDraft, NeedleTask
from longrope.tasks.prompts import Prompt, PromptRequest
from longrope.tasks.registry import RULER, TASKS, make_prompts, task_names
from longrope.tasks.ruler_words import draw_words
from longrope.tasks.words import all_words, letters, uuids

TEXT = "It was the year in which nothing grew, and the people went to the coast.\n" * 700
LENGTH = 4000
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
    """Return two different documents of 6,000 tokens."""
    return np.array([row[:6000] for row in tokenizer([TEXT, "# " + TEXT])["input_ids"]])


def prompts(task: str, tokenizer: PreTrainedTokenizerFast, **fields: object) -> list[Prompt]:
    """Return two prompts of 4,000 tokens, unless the fields say otherwise."""
    request = {"length": LENGTH, "trials": 2, "texts": texts(tokenizer), "ruler_data": ruler_folder()}
    return make_prompts(task, tokenizer, **{**request, **fields})


def read(tokenizer: PreTrainedTokenizerFast, prompt: Prompt) -> str:
    return str(tokenizer.decode(prompt.tokens, skip_special_tokens=True))


NAMES = ("able-cat", "bold-dog", "calm-fox", "dark-owl", "even-pig")


@pytest.mark.parametrize("questions", [1, 2])
def test_a_drawn_line_never_has_the_key_of_a_planted_one(tiny: PreTrainedTokenizerFast, questions: int) -> None:
    """Else the question had two answers. Of five names, nearly every haystack would have the asked one."""

    def draft(rng: np.random.Generator, depth: float) -> NeedleDraft:
        name = str(rng.choice(NAMES))
        return NeedleDraft("", (f"{name} is 1.\n",), (depth,), f"\n{name} is", ("1",), keys=(name,))

    haystack = drawn(lambda rng: f"{rng.choice(NAMES)} is 2. A table-cat is 3.\n")
    request = PromptRequest("names", tiny, 400, 4, questions=questions, chat="off")
    for prompt in NeedleTask(draft, room=4, haystack=haystack).prompts(request):
        text = read(tiny, prompt)
        name = text.rsplit("\n", 1)[1].removesuffix(" is")
        assert re.findall(rf"(?<!\S){name} is (\d)", text) == ["1"]
        assert len(set(re.findall(r"(?<!\S)(\S+) is 2", text))) == len(NAMES) - questions


def test_a_haystack_of_nothing_but_planted_keys_ends(tiny: PreTrainedTokenizerFast) -> None:
    def draft(rng: np.random.Generator, depth: float) -> NeedleDraft:
        return NeedleDraft("", ("fox is 1.\n",), (depth,), "\nfox is", ("1",), keys=("fox",))

    task = NeedleTask(draft, room=4, haystack=drawn(lambda _: "fox is 2.\n"))
    [prompt] = task.prompts(PromptRequest("foxes", tiny, 100, 1, chat="off"))
    assert "fox is 2." in read(tiny, prompt)


@pytest.mark.parametrize("task", TASKS)
def test_the_length_is_exact_and_the_answers_stand_in_the_text(task: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """Where whole entries are the haystack, less than one of them is missing."""
    begins = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    entry = max(map(len, encode_within(tokenizer, ENTRIES[task]))) if task in ENTRIES else 0
    for length, prompt in ((n, prompt) for n in (LENGTH, 3901) for prompt in prompts(task, tokenizer, length=n)):
        assert length - entry <= len(prompt.tokens) + prompt.room <= length
        assert prompt.tokens.dtype == np.int64
        text = read(tokenizer, prompt)
        assert all(answer in text for answer in prompt.answers)
        assert not {*prompt.wrong} & {*prompt.answers}
        assert not prompt.chat
        assert not prompt.own_haystack
        if begins:
            assert (prompt.tokens == tokenizer.bos_token_id).nonzero()[0].tolist() == [0]


ENTRIES = {
    "kv_retrieval": [random_pair(np.random.default_rng(i)) for i in range(50)],
    "json_kv": [random_pair(np.random.default_rng(i)) for i in range(50)],
    "graph_walks": [random_edge(np.random.default_rng(i)) for i in range(50)],
    "cwe": [" 999. a"],
    "fwe": [" ..."],
    "qa_1": ["\n\nDocument 999:\n"],
    "qa_2": ["\n\nDocument 999:\n"],
}


@pytest.mark.parametrize("task", TASKS)
def test_the_text_has_as_many_tokens(task: str, tiny: PreTrainedTokenizerFast) -> None:
    """Strings that are encoded alone give the tokens that they have within the text."""
    for prompt in prompts(task, tiny, length=3000):
        tokens = tiny(tiny.decode(prompt.tokens))["input_ids"]
        assert abs(len(tokens) - len(prompt.tokens)) <= 1


def test_the_tasks_of_ruler() -> None:
    assert len(RULER) == 13
    assert set(RULER) < set(TASKS)
    assert task_names(["passkey", "ruler", "vt"]) == ["passkey", *RULER]
    assert task_names(["all"]) == [*TASKS]


NUMBERS = {"passkey": r"\d{5}", "number_string": r"(?:(\d)\1){5}", "niah_single_1": r"\d{7}", "niah_single_2": r"\d{7}"}


@pytest.mark.parametrize("task", [*NUMBERS, "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3"])
@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
def test_a_needle_lies_whole_at_its_depth(task: str, depth: float, tokenizer: PreTrainedTokenizerFast) -> None:
    """The question repeats the key of the line with the answer."""
    for prompt in prompts(task, tokenizer, depths=[depth], length=5000):
        text, (answer,) = read(tokenizer, prompt), prompt.answers
        assert prompt.depth == depth
        kind = NUMBERS.get(task, r"\d{7}" if task.startswith("niah_multikey") and task[-1] != "3" else UUID)
        assert re.fullmatch(kind, answer)
        before, _, after = text.partition(answer)
        if task.startswith("niah"):
            (key,) = re.findall(rf"One of the special magic (?:numbers|uuids) for (\S+) is: {answer}\.", text)
            assert text.endswith(f" for {key} mentioned in the provided text is")
        else:
            assert re.search(rf"(pass key|sequence of digits) is {answer}\. Remember it\. {answer} is the \1\.", text)
        body = before.index("\n"), len(text) - text[::-1].index("\n")
        assert (len(before) - body[0]) / (body[1] - body[0]) == pytest.approx(depth, abs=0.08)
        assert len(after)


UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


def test_depths_take_turns_and_are_random_without(tiny: PreTrainedTokenizerFast) -> None:
    depths = [prompt.depth for prompt in prompts("passkey", tiny, trials=5, depths=[0.0, 0.5, 1.0])]
    assert depths == [0.0, 0.5, 1.0, 0.0, 0.5]
    assert not prompts("passkey", tiny, depths=[0.0])[0].drawn
    at_random = prompts("passkey", tiny, trials=40)
    assert all(prompt.drawn for prompt in at_random)
    drawn = [prompt.depth for prompt in at_random]
    assert np.histogram(drawn, bins=2, range=(0, 1))[0].min() > 10
    assert prompts("vt", tiny)[0].depth is None


def test_real_documents_are_the_haystack_in_turn_without_essays(tiny: PreTrainedTokenizerFast) -> None:
    for i, prompt in enumerate(prompts("niah_multivalue", tiny, trials=4, ruler_data=None)):
        assert prompt.own_haystack
        plain = re.sub(r" One of the special magic numbers for \S+ is: \d+\.", "", read(tiny, prompt))
        haystack = plain.split("\n", 1)[1].rsplit("\nWhat", 1)[0]
        document = str(tiny.decode(texts(tiny)[i % 2]))
        assert len(haystack) > 3000
        assert document.startswith(haystack.rstrip("\n"))


@pytest.mark.parametrize(("documents", "depths"), [(4, 4), (5, 5), (10, 5), (6, 4), (4, 5), (1, 3)])
def test_each_depth_meets_all_documents(documents: int, depths: int, tiny: PreTrainedTokenizerFast) -> None:
    """Each pair equally often, also where the numbers of depths and documents have a divisor in common."""
    rows = np.arange(documents)[:, None].repeat(8, axis=1)
    request = PromptRequest("recall", tiny, 8, 2 * documents * depths, rows, [float(d) / 8 for d in range(depths)])
    met = Counter((request.depth(trial), int(request.text(trial)[0])) for trial in range(request.trials))
    assert len(met) == documents * depths
    assert set(met.values()) == {2}


def test_essays_are_the_haystack_from_their_beginning(tiny: PreTrainedTokenizerFast) -> None:
    """With single blanks between words, and the needle between two sentences."""
    for prompt in prompts("niah_single_2", tiny, texts=None, trials=8):
        assert not prompt.own_haystack
        text = read(tiny, prompt).split("\n", 1)[1].rsplit("\nWhat", 1)[0]
        before, after = re.split(r" One of the special magic numbers for \S+ is: \d+\.", text)
        assert (before + after).startswith(
            "The 0th thing to learn is to wait. Does it help? It helped 0 of us! The 1th"
        )
        assert not before or before[-1] in ".?!"
        assert after.startswith((" The", " Does", " It")) or not after


def test_documents_may_begin_with_the_start_of_a_text_or_not() -> None:
    """The start token stands only at the beginning of the prompt."""
    tokenizer = in_threes()
    for task in ("niah_single_2", "recall"):
        for with_start, without in zip(
            prompts(task, tokenizer, ruler_data=None),
            prompts(task, tokenizer, texts=texts(tokenizer)[:, 1:], ruler_data=None),
            strict=True,
        ):
            np.testing.assert_array_equal(with_start.tokens, without.tokens)
            assert (with_start.tokens == 0).nonzero()[0].tolist() == [0]


def test_noise_is_cut_at_its_end_only(tokenizer: PreTrainedTokenizerFast) -> None:
    for prompt in prompts("niah_single_1", tokenizer, trials=4):
        _, *lines, last, _ = read(tokenizer, prompt).split("\n")
        assert {NOISE} == {line for line in lines if "special" not in line and line}
        assert "special" in last or NOISE.startswith(last)


def test_the_answers_are_all_values_of_the_queried_keys(tiny: PreTrainedTokenizerFast) -> None:
    for task, keys in (("niah_multikey_1", 4), ("niah_multivalue", 1), ("niah_multiquery", 4)):
        for prompt in prompts(task, tiny):
            text = read(tiny, prompt)
            pairs = re.findall(r"One of the special magic numbers for ([\w'-]+) is: (\d{7})\.", text)
            queried = re.findall(r"[\w'-]+", text.split("\n")[-1].split("?")[0].split(" for ")[1])
            assert len(pairs) == 4
            assert len({key for key, _ in pairs}) == keys
            assert {number for key, number in pairs if key in queried} == {*prompt.answers}
            if task == "niah_multikey_1":
                assert {number for key, number in pairs if key not in queried} == {*prompt.wrong}


def test_the_variables_follow_from_the_value(tiny: PreTrainedTokenizerFast) -> None:
    """Running the assignments from top to bottom gives the answers, in the worked example too."""
    for prompt in prompts("vt", tiny, trials=8):
        example, task = read(tiny, prompt).split("\n\n\n\n")
        for text, size in ((example, 3), (task, 5)):
            values: dict[str, str] = {}
            for name, copied, value in re.findall(r"VAR (\w+) = (?:VAR (\w+)|(\d+))", text):
                values[name] = values[copied] if copied else value
            (queried,) = re.findall(r"assigned the value (\d+) in", text)
            assert {queried} == {*values.values()}
            answers = prompt.answers if size == 5 else text.split("are:  ")[1].split()
            assert [*values] == [*answers]
            assert {len(name) for name in values} == {size}


@pytest.mark.parametrize(("task", "answers"), [("cwe", 10), ("fwe", 3)])
@pytest.mark.parametrize("length", [2500, 6000])
def test_the_words_are_the_most_frequent(task: str, answers: int, length: int, tiny: PreTrainedTokenizerFast) -> None:
    for prompt in prompts(task, tiny, length=length, texts=None):
        text = read(tiny, prompt).split("most often.\n")[-1].split("\nQuestion")[0]
        listed = re.findall(r"\d+\. (\D+?)(?= \d|$)", text) if task == "cwe" else text.split("words.")[-1].split()
        counts = Counter(word for word in listed if word != "...").most_common()
        assert {word for word, _ in counts[:answers]} == {*prompt.answers}
        assert counts[answers - 1][1] > counts[answers][1]
        often, seldom = (30, 3) if length >= 4096 else (6, 1)
        if task == "cwe":
            assert {count for _, count in counts[:10]} == {often}
            assert len([count for _, count in counts[10:] if count != seldom]) <= 5
            assert {word for word, _ in counts} <= {*all_words()}
        else:
            assert listed.count("...") > counts[0][1]
        assert listed != sorted(listed, key=lambda word: -listed.count(word))


def test_words_run_out_into_compounds() -> None:
    words = draw_words(np.random.default_rng(0), 10_000)
    known = len(all_words())
    assert {*words[:known]} == {*all_words()}
    assert len({*words}) == 10_000
    assert all("-" in word for word in words[known:])


def test_a_question_stands_among_documents_of_its_article_first(tiny: PreTrainedTokenizerFast) -> None:
    for task in ("qa_1", "qa_2"):
        for number, prompt in enumerate(prompts(task, tiny, length=700, trials=3, texts=None)):
            text = read(tiny, prompt)
            headings = [int(n) for n in re.findall(r"\n\nDocument (\d+):\n", text)]
            assert headings == [*range(1, len(headings) + 1)]
            assert prompt.any_answer
            if task == "qa_1":
                assert f"The tower of town {number // 3} in part {number % 3} is {100 + number % 3} feet high." in text
                assert all(f"town {number // 3} in part {other}" in text for other in range(3))
            else:
                assert f"lives in city {number}. She" in text
                assert f"City {number} lies in Land {number}." in text
    shifted = prompts("qa_1", tiny, length=700, trials=1, seed=1, texts=None)[0]
    assert f"town {500 % 360 // 3} in part {500 % 3}?" in read(tiny, shifted)


def test_the_value_is_that_of_the_key_in_the_object(tiny: PreTrainedTokenizerFast) -> None:
    for task, demos in (("kv_retrieval", 0), ("json_kv", 2)):
        for prompt in prompts(task, tiny):
            text = read(tiny, prompt)
            table = json.loads(text[text.index("{") : text.index("}") + 1])
            *shown, key = re.findall(r'Key: "(\S+)"', text)
            assert len(table) > 20
            assert (table[key],) == prompt.answers
            assert len(shown) == demos
            assert all(f'Key: "{key}"\nCorresponding value: "{table[key]}"\n' in text for key in shown)


def test_the_nodes_are_those_of_a_search_of_two_steps(tiny: PreTrainedTokenizerFast) -> None:
    for prompt in prompts("graph_walks", tiny, trials=4):
        example, text = read(tiny, prompt).split("Below")
        answers = (prompt.answers, tuple(example.split("nodes are ")[1].strip().split(", ")))
        for edges, nodes in zip((text, example), answers, strict=True):
            graph: dict[str, list[str]] = {}
            for source, target in re.findall(r"(\w+) -> (\w+)\n", edges):
                graph.setdefault(source, []).append(target)
            (root,) = re.findall(r"from node (\w+)\?", edges)
            assert sorted(leaf for node in graph[root] for leaf in graph[node]) == sorted(nodes)


def test_the_text_is_the_nth_of_the_equal_requests(tiny: PreTrainedTokenizerFast) -> None:
    for prompt in prompts("mrcr", tiny, trials=4):
        text = read(tiny, prompt)
        ordinal, request = re.findall(r"Repeat the (\w+) (.*) of the conversation", text)[0]
        turns = re.findall(rf"User: Write a {request}\.\nAssistant: (.*)\n", text)
        assert len(turns) == 4
        assert " ".join(prompt.answers) == turns[("first", "second", "third", "fourth").index(ordinal)]


def test_no_other_turn_of_a_conversation_may_be_asked_for(tiny: PreTrainedTokenizerFast) -> None:
    """Another text of the same form and topic would make the third one the fourth."""
    rng = np.random.default_rng(0)
    asked = {request for _ in range(200) for request in mrcr(rng, 0.5).keys}
    others = {
        turn.splitlines()[0].removeprefix("User: Write a ").rstrip(".") for turn in map(random_turn, [rng] * 9000)
    }
    assert len(others) > 7000
    assert asked.isdisjoint(others)


def test_the_words_follow_the_given_ones(tiny: PreTrainedTokenizerFast) -> None:
    for prompt in prompts("copy", tiny, trials=4):
        text = read(tiny, prompt)
        (start,) = re.findall(r'after "(.*)" in', text)
        assert text.split(start)[1].startswith(f" {prompt.answers[0]} ")
        assert len(start.split()) >= 8


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
    assert len({prompt.tokens.tobytes() for prompt in [*long, *other]}) == 5


@pytest.mark.parametrize("task", TASKS)
def test_the_error_gives_the_least_length_and_it_is_enough(task: str, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(LongRopeError, match="too short") as caught:
        prompts(task, tokenizer, length=20)
    least = int(re.findall(r"\d+", str(caught.value))[-1])
    if task == "recall":
        assert prompts(task, tokenizer, length=20 + least, trials=1)
    else:
        assert len(prompts(task, tokenizer, length=least)) == 2
        with pytest.raises(LongRopeError, match=f"length = {least - 1}: .* {task} .* at least {least}"):
            prompts(task, tokenizer, length=least - 1)


def test_wrong_requests_are_refused(tiny: PreTrainedTokenizerFast) -> None:
    with pytest.raises(LongRopeError, match=r"task = 'niah' is unknown; choose one of niah_single_1, .*recall"):
        prompts("niah", tiny)
    with pytest.raises(LongRopeError, match=r"task = 'arc_easy' is unknown.*lm-evaluation-harness are not retrieval"):
        prompts("arc_easy", tiny)
    with pytest.raises(LongRopeError, match=r"task = 'ruler_qa_hotpot': another suite's name. Here the task is qa_2"):
        prompts("ruler_qa_hotpot", tiny)
    with pytest.raises(LongRopeError, match=r"depths = 1\.2"):
        prompts("passkey", tiny, depths=[0.5, 1.2])
    with pytest.raises(LongRopeError, match="trials = 0"):
        prompts("passkey", tiny, trials=0)
    for task in ("niah_single_3", "recall"):
        with pytest.raises(LongRopeError, match=f"texts = None: task {task} .*at least 4000"):
            prompts(task, tiny, texts=None, ruler_data=None)
        with pytest.raises(LongRopeError, match=r"texts = \(2, 3999\): task"):
            prompts(task, tiny, texts=texts(tiny)[:, :3999], ruler_data=None)


def test_ids_that_no_token_has_may_lie_below_a_token() -> None:
    vocabulary = Tokenizer(models.WordLevel({"a": 0, "b.": 1, " c": 500}, unk_token="a"))
    tokens = np.array([0, 1, 500, 0] * LEAST_BORDERS)
    borders = sentence_borders(PreTrainedTokenizerFast(tokenizer_object=vocabulary), tokens)
    assert borders == [0, *range(2, len(tokens), 4)]


def test_random_strings(tiny: PreTrainedTokenizerFast) -> None:
    assert len({*letters(np.random.default_rng(0), 500, 2)}) == 500
    assert all(re.fullmatch(UUID, text) for text in uuids(np.random.default_rng(0), 50))


def test_strings_are_encoded_as_within_a_text() -> None:
    """SentencePiece's blank before a text is left out."""
    tokenizer = blank_first()
    (tokens,) = encode_within(tokenizer, [" the year"])
    longer = tokenizer("in the year", add_special_tokens=False)["input_ids"]
    assert longer[-len(tokens) :] == tokens.tolist()
    assert len(tokenizer(" the year", add_special_tokens=False)["input_ids"]) > len(tokens)
