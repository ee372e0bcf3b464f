"""Text that is not text: records under other endings, byte order marks, other encodings, files to pass over."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrope.cli.main import guarded
from longrope.data.documents import load_documents
from longrope.errors import CorpusWarning, LongRopeError
from longrope.formats.load_factors import load_factors
from longrope.scaling import Scaling

TEXTS = ['the "first" text', "the\nsecond", "été, third"]
LINES = [json.dumps({"url": "http://example.org/", "text": text}) for text in TEXTS]
MARK = b"\xef\xbb\xbf"


def texts(source: Path, text_key: str | None = None) -> list[str]:
    return [document.text for document in load_documents(str(source), text_key=text_key)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson", "a.JSONL", "a.txt", "a"])
@pytest.mark.parametrize("layout", ["lines", "blank lines", "array", "indented", "in an object"])
def test_records_are_read_by_their_content(tmp_path: Path, name: str, layout: str) -> None:
    records = [json.loads(line) for line in LINES]
    content = {
        "lines": "\n".join(LINES),
        "blank lines": "\n\n" + "\n \n".join(LINES) + "\n\n",
        "array": "[" + ",\n".join(LINES) + "]",
        "indented": "\n".join(json.dumps(record, indent=2) for record in records),
        "in an object": json.dumps({"version": 1, "data": records}),
    }
    (tmp_path / name).write_text(content[layout], encoding="utf-8")
    assert texts(tmp_path) == TEXTS


def test_one_object_a_file(tmp_path: Path) -> None:
    for number, line in enumerate(LINES):
        (tmp_path / f"{number}.json").write_text(line)
    assert texts(tmp_path) == TEXTS


def test_an_array_of_strings(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(TEXTS))
    assert texts(tmp_path / "a.json") == TEXTS


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "answer"}]},
        {"conversations": [{"from": "human", "value": "ask"}, {"from": "gpt", "value": "answer"}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "ask"}]},
                {"role": "x", "content": "answer"},
            ]
        },
    ],
)
def test_chats_are_joined(tmp_path: Path, record: object) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    assert texts(tmp_path / "a.jsonl") == ["ask\n\nanswer"]


def test_another_key_is_named_in_every_format(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"content": text, "text": "title"} for text in TEXTS]))
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"content": f"{text}!"}) for text in TEXTS))
    (tmp_path / "c.csv").write_text('id,content\n1,"a, b"\n2,"c\nd"\n')
    pq.write_table(pa.table({"content": ["parquet"]}), tmp_path / "d.parquet")
    expected = [*TEXTS, *(f"{text}!" for text in TEXTS), "a, b", "c\nd", "parquet"]
    assert texts(tmp_path, "content") == expected


def test_records_without_text_name_their_keys_and_the_option(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"content": "x", "id": 3}\n')
    with pytest.raises(LongRopeError, match=r'line 1: .*"text".* It has content, id\. .*--text-key'):
        load_documents(str(tmp_path / "a.jsonl"))
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "a.json").write_text('[{"content": "x"}, {"content": "y"}]')
    with pytest.raises(LongRopeError, match="--text-key"):
        load_documents(str(tmp_path / "a.json"))
    with pytest.warns(CorpusWarning, match="1 of 1 files are records without the key text"):
        assert texts(tmp_path) == ['[{"content": "x"}, {"content": "y"}]']


@pytest.mark.parametrize("content", ['{"name": "code", "version": "1.0"}', "{not JSON}", "[1] a footnote", "[1, 2]"])
def test_other_json_and_prose_are_text(tmp_path: Path, content: str) -> None:
    (tmp_path / "package.json").write_text(content)
    assert texts(tmp_path) == [content]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_byte_order_mark_is_not_text(tmp_path: Path, encoding: str, name: str) -> None:
    content = "\n".join(LINES) if name == "a.jsonl" else TEXTS[2]
    (tmp_path / name).write_bytes(content.encode(encoding))
    assert texts(tmp_path / name) == (TEXTS if name == "a.jsonl" else TEXTS[2:])


def test_a_byte_order_mark_before_factors(tmp_path: Path) -> None:
    scaling = Scaling([1.0, 2.0])
    (tmp_path / "f.json").write_bytes(MARK + scaling.to_json().encode())
    assert load_factors(tmp_path / "f.json") == scaling


@pytest.mark.parametrize(("start", "kind"), [(b"\x1f\x8b\x08", "gzip"), (b"PK\x03\x04", "zip"), (b"%PDF-1.7", "PDF")])
def test_other_kinds_of_files_are_refused_by_name(tmp_path: Path, start: bytes, kind: str) -> None:
    (tmp_path / "a.txt").write_bytes(start)
    with pytest.raises(LongRopeError, match=f"not UTF-8 text but {kind}"):
        load_documents(str(tmp_path / "a.txt"))


@pytest.mark.parametrize(("good", "severe"), [(38, False), (20, True)])
def test_files_passed_over_are_counted_with_the_reason(tmp_path: Path, good: int, severe: bool) -> None:
    for number in range(good):
        (tmp_path / f"{number}.txt").write_text(f"text {number}")
    for name, content in {"a": b"caf\xe9", "b": b"\xff\xff", "c": b" \n"}.items():
        (tmp_path / f"{name}.txt").write_bytes(content)
    with pytest.warns(CorpusWarning) as recorded:
        assert len(load_documents(str(tmp_path))) == good
    (warning,) = recorded
    assert isinstance(warning.message, CorpusWarning)
    assert f"3 of {good + 3} files passed over: 2 not UTF-8 text, 1 empty" in str(warning.message)
    assert warning.message.severe is severe


@pytest.mark.parametrize(("severe", "prefix"), [(False, "Note: "), (True, "Warning: ")])
def test_a_command_prints_each_warning_once_on_standard_error(
    capsys: pytest.CaptureFixture[str], severe: bool, prefix: str
) -> None:
    def command() -> None:
        for _ in range(2):
            warnings.warn(CorpusWarning("3 of 4 files", severe), stacklevel=1)

    guarded(command)()
    assert capsys.readouterr().err == f"{prefix}3 of 4 files\n"
