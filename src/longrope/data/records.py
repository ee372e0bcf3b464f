"""Texts of JSON records: objects one after another, an array of objects or strings, and chats."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from typing import Any

from longrope.errors import LongRopeError

TEXT_KEY = "text"
CHAT_KEYS = ("messages", "conversations")
LONGEST_FIELD = 2**31 - 1  # characters of a cell; the most where a C long has 32 bits
BLANK = re.compile(r"[ \t\n\r]*")  # JSON's white space
Numbered = list[tuple[int, Any]]  # line, or place in an array, and a JSON value


class RecordError(LongRopeError):
    """A record without the text that is asked for."""


def record_texts(text: str, path: object, *, text_key: str | None = None, strict: bool = False) -> Numbered | None:
    """Return the texts of the JSON records in a file, each with its number; None for text that is not such records.

    A record has its text under ``text_key`` or ``text``, or is a chat: a list of messages under ``messages`` or
    ``conversations``.

    Args:
        text: Content of the file.
        path: Path of the file, for errors.
        text_key: Key of the text in a record.
        strict: Whether the file must hold records, as a ``.jsonl`` file does.

    Raises:
        RecordError: The first record has a text and another one has not, or the file must hold records and does not.
    """
    if not strict and text.lstrip()[:1] not in ("{", "["):
        return None
    values, broken = _json_values(text)
    records, unit = _array(values, text_key) if len(values) == 1 and broken is None else None, "record"
    if records is None:
        records, unit = values, "line"
    if not strict and not (records and _is_record(records[0][1], text_key)):
        return None
    where = f"{path}, {unit} "
    texts = [(number, _text_of(value, text_key, f"{where}{number}")) for number, value in records]
    if broken is not None:
        raise RecordError(f"{where}{broken}: {_expected(text_key)}.")
    return texts


def has_records_without_text(text: str) -> bool:
    """Return whether a text is several JSON objects, one after another or in an array."""
    if text.lstrip()[:1] not in ("{", "["):
        return False
    values, broken = _json_values(text)
    records = (_array(values, None) if len(values) == 1 else None) or values
    return broken is None and len(records) > 1 and all(isinstance(value, dict) for _, value in records)


def table_texts(text: str, path: object, delimiter: str, text_key: str | None) -> Numbered | None:
    """Return the texts of a table's column, each with its row; None if the first row does not name the column.

    Raises:
        RecordError: If the first row names the column, and another one is not a row of a table.
    """
    csv.field_size_limit(LONGEST_FIELD)
    rows, name = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True), text_key or TEXT_KEY
    header: list[str] | None = None
    try:
        header = next(rows, [])
        if name not in header:
            return None
        column = header.index(name)
        return [(number, row[column]) for number, row in enumerate(rows, start=1) if len(row) > column]
    except csv.Error as error:
        if header is None:
            return None
        raise RecordError(
            f'{path}, line {rows.line_num}: not a row of a table with the column "{name}": {error}. Correct its quotes.'
        ) from None


def column_text(value: Any, where: str, name: str) -> str:
    """Return the text of a value in a table's column: a string, its bytes in UTF-8, or a chat, which may be empty.

    Args:
        value: Value of the column.
        where: File and row, for the error.
        name: Name of the column.

    Raises:
        RecordError: If the value is none of them.
    """
    try:
        content = value.decode() if isinstance(value, bytes) else "" if value == [] else _plain(value)
    except UnicodeDecodeError:
        content = None
    if content is None:
        kind = type(value).__name__
        raise RecordError(
            f'{where}: "{name}" holds a value of type {kind}, not text, UTF-8 bytes or a chat. '
            "Name the column of the text with --text-key."
        )
    return content


def has_table_without_text(text: str, delimiter: str) -> bool:
    """Return whether a text is a table: a row of several names, and at least one row of as many cells."""
    csv.field_size_limit(LONGEST_FIELD)
    try:
        sizes = [len(row) for row in csv.reader(io.StringIO(text), delimiter=delimiter, strict=True) if row]
    except csv.Error:
        return False
    return len(sizes) > 1 and sizes[0] > 1 and len(set(sizes)) == 1


def _json_values(text: str) -> tuple[Numbered, int | None]:
    """Return the JSON values that a text consists of, each with its line, and the line of the first that is broken."""
    decoder = json.JSONDecoder()
    values: Numbered = []
    line, end, start = 1, 0, _skip_blank(text, 0)
    while start < len(text):
        line += text.count("\n", end, start)
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            return values, line
        values.append((line, value))
        line += text.count("\n", start, end)
        start = _skip_blank(text, end)
    return values, None


def _skip_blank(text: str, start: int) -> int:
    match = BLANK.match(text, start)
    return match.end() if match else start


def _array(values: Numbered, text_key: str | None) -> Numbered | None:
    """Return the records of one array, bare or as the only array of records in an object, or one chat."""
    value = values[0][1]
    if isinstance(value, dict) and not _has_text(value, text_key):
        arrays = [member for member in value.values() if isinstance(member, list) and member]
        value = arrays[0] if len(arrays) == 1 and all(isinstance(member, dict) for member in arrays[0]) else None
    if not isinstance(value, list) or not value or _chat(value) is not None:
        return None
    rows = [row["row"] if isinstance(row, dict) and isinstance(row.get("row"), dict) else row for row in value]
    return list(enumerate(rows, start=1))


def _has_text(record: dict[str, Any], text_key: str | None) -> bool:
    return any(key in record for key in ((TEXT_KEY, *CHAT_KEYS) if text_key is None else (text_key,)))


def _is_record(value: Any, text_key: str | None) -> bool:
    if isinstance(value, dict):
        return text_key in value if text_key is not None else _default_text(value) is not None
    return isinstance(value, str) or _chat(value) is not None


def _text_of(value: Any, text_key: str | None, where: str) -> str:
    if isinstance(value, dict):
        content = _default_text(value) if text_key is None else _plain(value.get(text_key))
    else:
        content = value if isinstance(value, str) and where.rsplit(" ", 2)[1] == "record" else _chat(value)
    if content is None:
        keys = ", ".join(map(str, value)) if isinstance(value, dict) else ""
        hint = f" It has {keys[:200]}. Name the key of the text with --text-key." if keys else ""
        raise RecordError(f"{where}: {_expected(text_key)}.{hint}")
    wrong = half_character(content)
    if wrong:
        raise RecordError(f'{where}: "{text_key or TEXT_KEY}" {wrong}')
    return content


def half_character(text: str) -> str:
    """Return what is wrong with a text that holds a surrogate, which is half a character; empty where nothing is."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        return f"holds half a character ({half}, number {error.start + 1}), which tokenizers refuse. Remove it."
    return ""


def _expected(text_key: str | None) -> str:
    chats = "" if text_key else ', or a list "messages" or "conversations"'
    return f'expected a JSON object with a string "{text_key or TEXT_KEY}"{chats}'


def _default_text(record: dict[str, Any]) -> str | None:
    if TEXT_KEY in record:
        return _plain(record[TEXT_KEY])
    return next((_chat(record[key]) for key in CHAT_KEYS if key in record), None)


def _plain(value: Any) -> str | None:
    return value if isinstance(value, str) else _chat(value)


def _chat(messages: Any) -> str | None:
    """Return the contents of a chat's messages with blank lines between them; None if it is not a chat."""
    if not isinstance(messages, list) or not messages:
        return None
    contents = [_content(message) for message in messages]
    if not any(contents) or not all(_is_message(message) for message in messages):
        return None
    return "\n\n".join(content for content in contents if content)


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and ("role" in message or "from" in message)


def _content(message: Any) -> str | None:
    if not isinstance(message, dict):
        return None
    content = message.get("content", message.get("value"))
    if isinstance(content, Sequence) and not isinstance(content, str):
        texts = [block.get("text") for block in content if isinstance(block, dict)]
        content = "\n".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else None
