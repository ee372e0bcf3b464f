"""Long documents from a folder, a file, ``.jsonl``, ``.parquet`` or the running Python's standard library."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from longrope.data.stdlib import stdlib_documents
from longrope.errors import LongRopeError


@dataclass(frozen=True)
class Document:
    """A text and its source."""

    name: str
    text: str


def load_documents(source: str) -> list[Document]:
    """Return all distinct documents of a source, in a fixed order.

    Args:
        source: A text file, a ``.jsonl`` file (key ``text``), a ``.parquet`` file (column ``text``), or a folder that
            is searched for such files, without hidden ones and those that are not UTF-8. ``stdlib`` is the library of
            the running Python, one document a package, and ``stdlib:unseen`` the part of it that the model ``tiny``
            was not trained on.

    Raises:
        LongRopeError: If the source does not exist, cannot be read, or holds no text.
    """
    try:
        documents = list(_documents(source))
    except OSError as error:
        path = str(error.filename or source)
        raise LongRopeError(f"data = {path!r}: cannot be read: {error.strerror}. Give another source.") from None
    distinct = {document.text: document for document in documents if document.text.strip()}
    if not distinct:
        raise LongRopeError(f"data = {source!r}: holds no text. Give a folder of text files, .jsonl or .parquet.")
    return list(distinct.values())


def _documents(source: str) -> Iterator[Document]:
    if source in ("stdlib", "stdlib:unseen"):
        yield from (Document(*pair) for pair in stdlib_documents(unseen=source == "stdlib:unseen"))
    elif source and Path(source).is_dir():  # Path("") is the working folder
        yield from _folder(Path(source))
    elif Path(source).is_file():
        yield from _file(Path(source))
    else:
        raise LongRopeError(f"data = {source!r}: not a file or folder. Give one that exists, or stdlib.")


def _folder(folder: Path) -> Iterator[Document]:
    for path in sorted(folder.rglob("*")):
        hidden = any(name.startswith(".") for name in path.relative_to(folder).parts)
        if path.is_file() and not hidden:
            try:
                yield from _file(path)
            except LongRopeError:
                if path.suffix in (".jsonl", ".parquet"):
                    raise


def _file(path: Path) -> Iterator[Document]:
    if path.suffix == ".parquet":
        yield from _parquet(path)
        return
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise LongRopeError(f"data = {str(path)!r}: not UTF-8 text. Give text files, .jsonl or .parquet.")
    if path.suffix == ".jsonl":
        yield from _jsonl(path, text)
    else:
        yield Document(str(path), text)


def _jsonl(path: Path, text: str) -> Iterator[Document]:
    for number, line in enumerate(text.rstrip("\n").split("\n"), start=1):
        try:
            content = json.loads(line)["text"]
            if not isinstance(content, str):
                raise TypeError
            content.encode()
        except UnicodeEncodeError as error:
            raise LongRopeError(
                f'{path}, line {number}: "text" holds half a character ({error.object[error.start]!a}, number '
                f"{error.start + 1}), which tokenizers refuse. Remove it."
            ) from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise LongRopeError(f'{path}, line {number}: expected a JSON object with a string "text".') from None
        yield Document(f"{path}:{number}", content)


def _parquet(path: Path) -> Iterator[Document]:
    try:
        import pyarrow.parquet  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise LongRopeError(f"data = {str(path)!r}: needs pyarrow. Install it: pip install pyarrow") from None
    try:
        column = pyarrow.parquet.read_table(path, columns=["text"]).column("text").to_pylist()
    except (OSError, KeyError, IndexError, pyarrow.ArrowException) as error:
        raise LongRopeError(
            f'data = {str(path)!r}: not a parquet file with a column "text": {error}. Give one that has it.'
        ) from None
    yield from (Document(f"{path}:{row}", str(text)) for row, text in enumerate(column, start=1) if text)
