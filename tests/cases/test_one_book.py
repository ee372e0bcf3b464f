"""Few documents, such as one long book: they are cut into parts that serve search, held-out and test."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import families
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

import longrope as lr
from longrope.cli.main import app
from longrope.data.documents import Document
from longrope.data.split import SPLITS, draw_tokens, split_documents
from longrope.errors import CorpusWarning, LongRopeError

pytestmark = pytest.mark.filterwarnings("ignore::longrope.errors.CorpusWarning")
WORDS = st.text(alphabet="ab é\n", max_size=300)


def numbered(words: int) -> str:
    """A text in which every token is known by its place: t3 … t127 in an order that repeats late."""
    rng = random.Random(0)
    return " ".join(f"t{rng.randrange(3, families.VOCABULARY)}" for _ in range(words))


@given(st.lists(WORDS.filter(str.strip), min_size=1, max_size=4, unique=True), st.integers(0, 9))
def test_parts_make_up_the_documents_and_do_not_overlap(texts: list[str], seed: int) -> None:
    documents = [Document(f"d{i}", text) for i, text in enumerate(texts)]
    splits = split_documents(documents, seed=seed)
    for document in documents:
        parts = ["".join(part.text for part in splits[name] if part.part_of == document.name) for name in SPLITS]
        assert re.sub(r"\s", "", "".join(parts)) == re.sub(r"\s", "", document.text)
    assert split_documents(documents, seed=seed) == splits


def test_a_book_is_cut_at_words_into_40_20_and_40_percent() -> None:
    book = " ".join(f"w{i}" for i in range(1000))
    with pytest.warns(CorpusWarning, match="1 document, fewer than the 5 .*parts of 40%, 20%, 40% .* do not overlap"):
        splits = split_documents([Document("book.txt", book)])
    assert [split[0].name for split in splits.values()] == [
        "book.txt, 0% to 40%",
        "book.txt, 40% to 60%",
        "book.txt, 60% to 100%",
    ]
    words = [split[0].text.split() for split in splits.values()]
    assert [word for part in words for word in part] == book.split()
    assert [round(len(part), -2) for part in words] == [400, 200, 400]


def test_text_without_blanks_is_cut_too() -> None:
    splits = split_documents([Document("dna", "ACGT" * 1000)])
    assert [len(split[0].text) for split in splits.values()] == [1600, 800, 1600]


@pytest.mark.parametrize("length", [16, 100, 400])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_texts_of_a_book_never_overlap(length: int, count: int) -> None:
    tokenizer, book = families.tokenizer(), numbered(5000)
    ids = np.array(tokenizer(book)["input_ids"])
    starts = {}
    for name, split in split_documents([Document("book", book)]).items():
        if name == "held_out" and count * length > 1000:
            continue
        drawn = draw_tokens(split, tokenizer, length=length, count=count)
        assert drawn.tokens.shape == (count, length)
        windows = np.lib.stride_tricks.sliding_window_view(ids, length)
        starts[name] = [int(np.flatnonzero((windows == row).all(axis=1))[0]) for row in drawn.tokens]
    places = sorted(start for found in starts.values() for start in found)
    assert min(np.diff(places), default=length) >= length
    assert max(starts["search"]) < 2010
    assert min(starts["test"]) >= 2990


def test_each_text_begins_as_the_models_own_input(bpe: PreTrainedTokenizerFast) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=type(bpe.backend_tokenizer).from_str(bpe.backend_tokenizer.to_str())
    )
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    begin = tokenizer.convert_tokens_to_ids("<s>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    drawn = draw_tokens([Document("d", "the cat sat on the mat " * 500)], tokenizer, length=50, count=6)
    assert drawn.tokens[:, 0].tolist() == [begin] * 6
    assert (drawn.tokens[:, 1:] != begin).all()


def test_several_texts_come_from_long_documents_only_where_they_must(bpe: PreTrainedTokenizerFast) -> None:
    long, short = Document("long", "the cat sat " * 900), Document("short", "a dog ran " * 8)
    assert draw_tokens([short, long], bpe, length=5, count=2).names == ("short", "long")
    with pytest.warns(CorpusWarning, match="4 texts of 200 tokens are taken from 1 document, as no others are long"):
        assert draw_tokens([short, long], bpe, length=200, count=4).names == ("long",) * 4


def test_a_book_that_is_too_short_says_how_long_it_is() -> None:
    split = split_documents([Document("book", numbered(1000))])["search"]
    found = (
        r"Of 1 document in all, split into search, held_out, test, 1 are in this split, the longest of which has (\d+)"
    )
    with pytest.raises(
        LongRopeError, match=rf"4 texts of 128 tokens are needed\. {found} .* in all has 1000\."
    ) as raised:
        draw_tokens(split, families.tokenizer(), length=128, count=4)
    match = re.search(found, str(raised.value))
    assert match is not None
    assert 395 < int(match[1]) < 410


@pytest.mark.parametrize("books", [1, 2, 4])
def test_a_book_serves_search_and_evaluation(books: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    families.build("llama").save_pretrained("model")
    families.tokenizer().save_pretrained("model")
    Path("books").mkdir()
    for number in range(books):
        Path("books", f"{number}.txt").write_text(" ".join(reversed(numbered(5000 + number).split())))
    few = ["--search-documents", "2", "--held-out-documents", "2", "--schemes", "yarn", "--budget", "2k"]
    for words in (
        ["search", "model", "-l", "128", "--data", "books", *few, "-o", "s", "--json"],
        ["eval", "model", "--lengths", "128", "--data", "books", "--schemes", "none", "--json"],
    ):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
        assert result.stderr.count("which do not overlap") == 1
    assert json.loads(Path("s/run.json").read_text())["documents"]["search"][0].endswith("0% to 40%")


def test_training_documents_leave_out_the_parts_for_other_splits(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text(numbered(4000))
    data = lr.Plan.model_validate(
        {
            "version": 1,
            "data": {"source": str(book), "train": str(book)},
            "stages": [{"length": 128, "factors": "yarn", "finetune": {"tokens": 128, "batch": 1}}],
        }
    )
    from longrope.stages.run_data import RunData

    rope = lr.Rope(dim=16, base=10000.0, original_length=families.L0)
    run_data = RunData(data, rope, families.tokenizer(), tmp_path / "tokens", families.VOCABULARY)
    with pytest.raises(LongRopeError, match=r"the training documents give 0 .*data\.train"):
        run_data.windows(data.stages[0])
