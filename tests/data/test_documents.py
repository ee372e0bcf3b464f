from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrope.data.documents import Document, load_documents
from longrope.errors import CorpusWarning, LongRopeError


def texts(source: Path | str, **options: str) -> list[str]:
    return [document.text for document in load_documents(str(source), **options)]


def write_parquet(path: Path, **columns: list[object]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_a_folder_is_searched_through_in_a_fixed_order(tmp_path: Path) -> None:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    (tmp_path / "z.txt").write_text("zed")
    (tmp_path / "b" / "deep" / "x.md").write_text("ex")
    (tmp_path / "a.py").write_text("a = 1")
    (tmp_path / ".hidden").write_text("no")
    (tmp_path / ".git" / "config.txt").write_text("no")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff\xfe\x00")
    (tmp_path / "zeros.txt").write_bytes(b"valid UTF-8 \0 but binary")
    (tmp_path / "more.jsonl").write_text('{"text": "one"}\n{"text": "two", "id": 3}\n')
    write_parquet(tmp_path / "p.parquet", text=["three"], id=[1])
    with pytest.warns(CorpusWarning, match="2 of 7 files passed over: 2 not UTF-8 text"):
        documents = load_documents(str(tmp_path))
    assert [document.text for document in documents] == ["a = 1", "ex", "one", "two", "three", "zed"]
    names = [document.name for document in documents]
    assert len(set(names)) == 6
    assert all(str(tmp_path) in name for name in names)


@contextmanager
def as_somebody() -> Iterator[None]:
    """Work as a user whom permissions stop, unlike root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no permissions to list folders")
def test_a_folder_that_may_not_be_listed_is_passed_over_with_a_note() -> None:
    with TemporaryDirectory() as path:  # the folders of pytest are closed to others
        corpus, closed = Path(path), Path(path) / "b" / "closed"
        closed.mkdir(parents=True)
        (closed / "x.txt").write_text("not to be read")
        (corpus / "a.txt").write_text("to be read")
        corpus.chmod(0o755)
        closed.chmod(0)
        note = f"passed over, no permission to list {closed}"
        with as_somebody(), pytest.warns(CorpusWarning, match=note) as warned:
            assert texts(corpus) == ["to be read"]
        assert [str(warning.message) for warning in warned] == [f"{corpus}: {note}"]
        with as_somebody(), pytest.raises(LongRopeError, match=f"holds no text .*{note}"):
            load_documents(str(closed))
        closed.chmod(0o755)
        assert len(texts(corpus)) == 2


def test_a_hidden_folder_itself_may_be_given(tmp_path: Path) -> None:
    (tmp_path / ".texts").mkdir()
    (tmp_path / ".texts" / "a.txt").write_text("a")
    assert texts(tmp_path / ".texts") == ["a"]


def test_a_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "été.txt").write_text("naïve ✓\n", encoding="utf-8")
    path = str(tmp_path / "été.txt")
    assert load_documents(path) == [Document(path, "naïve ✓\n")]


def test_the_same_text_counts_once(tmp_path: Path) -> None:
    for name, text in {"a": "same", "b": "other", "c": "same", "d": " \n"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    with pytest.warns(CorpusWarning, match="1 of 4 files passed over: 1 empty"):
        assert texts(tmp_path) == ["same", "other"]


@pytest.mark.parametrize(
    "text", ["plain", "line\nbreak", "form\x0cfeed", "next\x85line", "line\u2028separator", "\x1e"]
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_jsonl_gives_back_any_text(tmp_path: Path, text: str, ascii_only: bool) -> None:
    path = tmp_path / "x.jsonl"
    lines = [json.dumps({"text": one}, ensure_ascii=ascii_only) for one in (text + ".", "after")]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert texts(path) == [text + ".", "after"]


def test_a_record_with_a_list_of_objects_has_its_own_text(tmp_path: Path) -> None:
    record = json.dumps({"id": 1, "body": "All of it.", "authors": [{"name": "A"}, {"name": "B"}]})
    for name in ("x.json", "x.jsonl"):
        (tmp_path / name).write_text(record)
        assert [one.text for one in load_documents(str(tmp_path / name), text_key="body")] == ["All of it."]


@pytest.mark.parametrize("line", ["{", "[]", '"text"', "3", '{"content": "x"}', '{"text": 3}', '{"text": null}'])
def test_a_bad_jsonl_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(f'{{"text": "fine"}}\n{line}\n{{"text": "fine too"}}\n')
    with pytest.raises(LongRopeError, match=r'x\.jsonl, line 2: .*"text"'):
        load_documents(str(path))
    with pytest.raises(LongRopeError, match="line 2"):  # also in a folder: it is no file to pass over
        load_documents(str(tmp_path))


def test_parquet_rows_are_documents_and_nulls_are_none(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", id=[1, 2, 3], text=["one", None, "three"])
    assert load_documents(str(path)) == [Document(f"{path}:1", "one"), Document(f"{path}:3", "three")]


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("broken", ["column", "bytes"])
def test_a_parquet_that_cannot_be_used(tmp_path: Path, folder: bool, broken: str) -> None:
    path = tmp_path / "x.parquet"
    if broken == "column":
        write_parquet(path, content=["one"])
    else:
        path.write_bytes(b"PAR1 not really")
    message = r'x\.parquet.*column "text"\. It has content\. Name' if broken == "column" else "not a parquet file: "
    with pytest.raises(LongRopeError, match=message):
        load_documents(str(tmp_path if folder else path))


def test_the_standard_library_and_its_unseen_part() -> None:
    everything, unseen = texts("stdlib"), texts("stdlib:unseen")
    assert set(unseen) < set(everything)
    assert 10 < len(unseen) < len(everything) / 2
    assert load_documents("stdlib:unseen") == load_documents("stdlib:unseen")


@pytest.mark.parametrize("name", ["nowhere", "no/where.jsonl", "stdlib:seen"])
def test_what_is_not_there(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LongRopeError, match=f"data = '{name}'.*not a file or folder"):
        load_documents(name)


@pytest.mark.parametrize("content", [None, b"", b" \n\t\n", b"\xff\xfb\x00\x01", b"nul\0"])
def test_nothing_to_read_in_a_folder(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(LongRopeError, match=r"data = .*: holds no text"):
        load_documents(str(tmp_path))


@pytest.mark.parametrize("column", ["messages", "text"])
def test_chats_and_bytes_in_a_parquet_are_text(tmp_path: Path, column: str) -> None:
    """As in a JSON record, and not Python's notation of lists and bytes."""
    chat = [{"role": "user", "content": "Hi é"}, {"role": "assistant", "content": "Yes"}]
    path = write_parquet(tmp_path / "x.parquet", messages=[chat], text=["Hi é\n\nYes".encode()], number=[3])
    assert texts(path, text_key=column) == texts(path) == ["Hi é\n\nYes"]
    assert texts(write_parquet(tmp_path / "z.parquet", conversations=[chat])) == ["Hi é\n\nYes"]
    write_parquet(tmp_path / "y.parquet", text=["fine".encode("utf-16")])
    for source, key, kind in ((path, "number", "int"), (tmp_path / "y.parquet", "text", "bytes")):
        with pytest.raises(LongRopeError, match=rf'row 1: "{key}" holds a value of type {kind}.*--text-key'):
            load_documents(str(source), text_key=key)


def test_linked_folders_are_searched_once_and_loops_end(tmp_path: Path) -> None:
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    for folder in (corpus / "b", elsewhere):
        folder.mkdir(parents=True)
        (folder / "x.txt").write_text(f"in {folder.name}")
    (corpus / "a").symlink_to(elsewhere)
    (corpus / "b" / "up").symlink_to(corpus)
    (corpus / "self").symlink_to("self")
    (corpus / "c").symlink_to(elsewhere)
    (corpus / "b.txt").write_text("after folder b")
    documents = load_documents(str(corpus))
    assert [document.text for document in documents] == ["in elsewhere", "in b", "after folder b"]
    assert documents[0].name == str(corpus / "a" / "x.txt")


def test_texts_that_differ_in_blanks_at_their_ends_are_one_document(tmp_path: Path) -> None:
    """Else a split could search on the one and test on the other."""
    (tmp_path / "a.txt").write_text("The same.\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "The same."}) + "\n")
    (tmp_path / "c.txt").write_text("Another.\n")
    assert [text.strip() for text in texts(tmp_path)] == ["The same.", "Another."]


def test_a_table_with_semicolons(tmp_path: Path) -> None:
    """As spreadsheets write it where the comma is for decimals."""
    path = tmp_path / "x.csv"
    path.write_text('id;text\n1;"one; and, more"\n2;two\n')
    assert texts(path) == ["one; and, more", "two"]
    with pytest.raises(LongRopeError, match="column body"):
        load_documents(str(path), text_key="body")


@pytest.mark.parametrize("content", [b"\xff\xfb\x00\x01", b"nul\0"])
def test_binary_given_as_text(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(LongRopeError, match=r"x\.txt': not UTF-8 text"):
        load_documents(str(tmp_path / "x.txt"))


@pytest.mark.parametrize("content", ["", "  \n"])
@pytest.mark.parametrize("name", ["x.txt", "x.jsonl"])
def test_a_file_without_text(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content if name == "x.txt" else json.dumps({"text": content}) + "\n")
    with pytest.raises(LongRopeError, match="holds no text"):
        load_documents(str(tmp_path / name))


@pytest.mark.parametrize("name", ["x.csv", "x.tsv"])
def test_a_table_without_the_column_is_not_read_as_prose(tmp_path: Path, name: str) -> None:
    path, comma = tmp_path / name, "," if name == "x.csv" else "\t"
    path.write_text(f"id{comma}Body\n1{comma}one\n2{comma}two\n")
    assert texts(path, text_key="Body") == ["one", "two"]
    for key in ("body", None):
        with pytest.raises(LongRopeError, match=rf"{name}.*column {key or 'text'}\. .*--text-key"):
            load_documents(str(path), text_key=key)
    (tmp_path / "y.txt").write_text("A text.")
    with pytest.warns(CorpusWarning, match="1 of 2 files are records without the key text"):
        assert len(load_documents(str(tmp_path))) == 2
    for prose in ("Dear reader,\nthis is prose, with commas, and no table.\n", f"One line{comma} and no more.\n"):
        path.write_text(prose)
        assert texts(path) == [prose]


def test_a_broken_row_of_a_table_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('id,text\n1,"one"\n2,"two" and more\n3,three\n')
    with pytest.raises(LongRopeError, match=r'x\.csv, line 3: not a row of a table with the column "text"'):
        load_documents(str(path))


def test_texts_records_and_tables_of_texts_are_documents() -> None:
    expected = [Document("data[0]", "one"), Document("data[1]", "two")]
    records = [{"text": "one", "id": 1}, {"text": "two", "id": 2}]
    table = pd.DataFrame(records)
    for source in (["one", "two"], np.array(["one", "two"]), iter(["one", "two"]), records, table, table["text"]):
        assert load_documents(source) == expected
    assert load_documents({"body": ["one", "two"]}, text_key="body") == expected
    assert load_documents(expected) == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (["one", 2], r"^data\[1\] = 2: not a text\. Give strings"),
        ([{"body": "one"}], r"^data\[0\] = \{'body': 'one'\}: not a text\. .* with the key 'text'\.$"),
        (pd.DataFrame({"body": ["one"]}), r"^data: a table without the column 'text'\. Name that .* with text_key\.$"),
        ([], r"^data = 'texts': holds no text"),
        (5, r"^data = '5': not a file or folder"),
        ({"text": "one text"}, r"^data: one record, not a list of records\. Put it in a list\.$"),
        (["one", "ab\ud800c"], r"^data\[1\]: holds half a character \('\\ud800', number 3\), .* Remove it\.$"),
    ],
)
def test_values_that_hold_no_texts_are_refused(source: Any, message: str) -> None:
    with pytest.raises(LongRopeError, match=message):
        load_documents(source)
