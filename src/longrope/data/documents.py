"""Long documents from a folder, a file, JSON records, tables or the running Python's standard library."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from longrope.data.records import (
    CHAT_KEYS,
    TEXT_KEY,
    RecordError,
    column_text,
    half_character,
    has_records_without_text,
    has_table_without_text,
    record_texts,
    table_texts,
)
from longrope.data.stdlib import stdlib_documents
from longrope.data.text_files import UnreadableFileError, decode
from longrope.errors import CorpusWarning, LongRopeError

RECORD_SUFFIXES = (".jsonl", ".ndjson")
DELIMITERS = {".csv": ",;", ".tsv": "\t"}
Source: TypeAlias = str | Path | Iterable[Any]
MOST_LOST = 0.1  # share of a corpus above which its loss is shown in red


@dataclass(frozen=True)
class Document:
    """A text and its source.

    Args:
        name: Name of the text: file, and line or row.
        text: The text.
        part_of: Name of the document that this is a part of; empty for a whole one.
    """

    name: str
    text: str
    part_of: str = ""


def load_documents(source: Source, *, text_key: str | None = None) -> list[Document]:
    """Return all distinct documents of a source, in a fixed order.

    The content decides what a file is. JSON records (objects one after another, or an array) are documents, in files
    of any ending; all other text is one document a file. Warnings say which files and folders are passed over.

    Args:
        source: A file of text, JSON records or ``.parquet`` (key or column ``text``, or chats under ``messages`` or
            ``conversations``), ``.csv`` (column ``text``), or a folder that is searched for such files, also in linked
            folders, without hidden ones. ``stdlib`` is the library of the running Python, one document a package, and
            ``stdlib:unseen`` the part of it that the model ``tiny`` was not trained on. Or texts: strings, records
            with the key ``text``, or a table with the column ``text``, such as a pandas DataFrame.
        text_key: Key or column of the text, if it is not ``text``.

    Raises:
        LongRopeError: If the source does not exist, cannot be read, or holds no text.
    """
    notes: list[CorpusWarning] = []
    try:
        if isinstance(source, (str, Path)) or not isinstance(source, Iterable):
            documents = list(_documents(str(source), text_key, notes))
        else:
            documents = list(_given(source, text_key))
    except OSError as error:
        path = str(error.filename or source)
        raise LongRopeError(f"data = {path!r}: cannot be read: {error.strerror}. Give another source.") from None
    distinct = {text_digest(document.text): document for document in documents if document.text.strip()}
    if not distinct:
        passed_over = f" ({'; '.join(map(str, notes))})" if notes else ""
        raise LongRopeError(
            f"data = {source_name(source)!r}: holds no text{passed_over}. "
            "Give a folder of text files, .jsonl or .parquet."
        )
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return list(distinct.values())


def source_name(source: Source) -> str:
    """Return the name of a source of documents; ``texts`` for the texts themselves."""
    return str(source) if isinstance(source, (str, Path)) else "texts"


def _given(source: Iterable[Any], text_key: str | None) -> Iterator[Document]:
    """Yield documents of texts, records or a table."""
    key = text_key or TEXT_KEY
    columns: Any = source if isinstance(source, Mapping) else getattr(source, "columns", None)
    if columns is not None:
        if key not in columns:
            raise LongRopeError(f"data: a table without the column {key!r}. Name that of the text with text_key.")
        table: Any = source
        source = table[key]
        if isinstance(source, str):
            raise LongRopeError("data: one record, not a list of records. Put it in a list.")
    for number, value in enumerate(source):
        text = value.get(key) if isinstance(value, Mapping) else value
        if not isinstance(text, (str, Document)):
            raise LongRopeError(
                f"data[{number}] = {value!r:.60}: not a text. Give strings, or records with the key {key!r}."
            )
        wrong = half_character(text) if isinstance(text, str) else ""
        if wrong:
            raise LongRopeError(f"data[{number}]: {wrong}")
        yield text if isinstance(text, Document) else Document(f"data[{number}]", text)


def text_digest(text: str) -> bytes:
    """Return a key that texts share which differ in the blanks at their ends only."""
    return hashlib.sha256(text.strip().encode()).digest()


def _documents(source: str, text_key: str | None, notes: list[CorpusWarning]) -> Iterator[Document]:
    if source in ("stdlib", "stdlib:unseen"):
        yield from (Document(*pair) for pair in stdlib_documents(unseen=source == "stdlib:unseen"))
    elif source and Path(source).is_dir():  # Path("") is the working folder
        yield from _folder(Path(source), text_key, notes)
    elif Path(source).is_file():
        yield from _single_file(Path(source), text_key)
    else:
        raise LongRopeError(f"data = {source!r}: not a file or folder. Give one that exists, or stdlib.")


def _folder(folder: Path, text_key: str | None, notes: list[CorpusWarning]) -> Iterator[Document]:
    """Yield the documents of a folder; add notes on files and folders that are passed over, and on odd JSON."""
    reasons: Counter[str] = Counter()
    closed: list[Path] = []
    files = without_key = 0
    for path in _files(folder, set(), closed):
        files += 1
        try:
            documents = list(_file(path, text_key))
        except UnreadableFileError as error:
            reasons[error.reason] += 1
            continue
        without_key += _lacks_key(documents, path)
        yield from documents
    if reasons:
        lost = reasons.total()
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        notes.append(
            CorpusWarning(f"{folder}: {lost} of {files} files passed over: {counts}", lost > MOST_LOST * files)
        )
    if closed:
        more = f" and {len(closed) - 1} more" if len(closed) > 1 else ""
        notes.append(CorpusWarning(f"{folder}: passed over, no permission to list {closed[0]}{more}", severe=True))
    if without_key:
        records = f"{without_key} of {files} files are records without the key {text_key or 'text'}"
        notes.append(CorpusWarning(f"{folder}: {records}, read as they are; --text-key names another key"))


def _files(folder: Path, read: set[Path], closed: list[Path]) -> Iterator[Path]:
    """Yield the files of a folder, hidden ones left out, in the order of their paths; each folder is read once.

    Args:
        folder: The folder.
        read: Folders that were read before; this one is added.
        closed: Folders that may not be listed; those below this one are added.
    """
    read.add(folder.resolve())
    try:
        paths = sorted(folder.iterdir(), key=lambda path: path.name)
    except PermissionError:
        closed.append(folder)
        return
    for path in paths:
        if path.name.startswith("."):
            continue
        if path.is_file():
            yield path
        elif path.is_dir() and path.resolve() not in read:
            yield from _files(path, read, closed)


def _single_file(path: Path, text_key: str | None) -> Iterator[Document]:
    documents = list(_file(path, text_key)) if path.stat().st_size else []
    if _lacks_key(documents, path):
        raise RecordError(
            f"data = {str(path)!r}: records without the key or column {text_key or 'text'}. "
            "Name that of the text with --text-key."
        )
    yield from documents


def _lacks_key(documents: list[Document], path: Path) -> bool:
    if len(documents) != 1 or documents[0].name != str(path):
        return False
    text, delimiters = documents[0].text, DELIMITERS.get(path.suffix.lower(), "")
    return has_records_without_text(text) or any(has_table_without_text(text, delimiter) for delimiter in delimiters)


def _file(path: Path, text_key: str | None) -> Iterator[Document]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet(path, text_key)
        return
    text = decode(path.read_bytes(), path)
    if not text.strip():
        raise UnreadableFileError(path, "empty", "Give files with text: it holds no text.")
    texts = record_texts(text, path, text_key=text_key, strict=suffix in RECORD_SUFFIXES)
    for delimiter in DELIMITERS.get(suffix, ""):
        texts = table_texts(text, path, delimiter, text_key) if texts is None else texts
    if texts is None:
        yield Document(str(path), text)
    else:
        yield from (Document(f"{path}:{number}", content) for number, content in texts)


def _parquet(path: Path, text_key: str | None) -> Iterator[Document]:
    try:
        import pyarrow.parquet  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise LongRopeError(f"data = {str(path)!r}: needs pyarrow. Install it: pip install pyarrow") from None
    try:
        names = pyarrow.parquet.read_schema(path).names
        name = text_key or next((key for key in CHAT_KEYS if key in names and TEXT_KEY not in names), TEXT_KEY)
        column = pyarrow.parquet.read_table(path, columns=[name]).column(name).to_pylist() if name in names else None
    except (OSError, KeyError, IndexError, pyarrow.ArrowException) as error:
        raise LongRopeError(f"data = {str(path)!r}: not a parquet file: {error}. Give one that is whole.") from None
    if column is None:
        raise LongRopeError(
            f'data = {str(path)!r}: a parquet file without a column "{name}". It has {", ".join(names)[:200]}. '
            "Name the column with --text-key, or give a file that has it."
        )
    for row, value in enumerate(column, start=1):
        if value is not None:
            yield Document(f"{path}:{row}", column_text(value, f"{path}, row {row}", name))
